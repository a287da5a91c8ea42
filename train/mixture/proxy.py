"""Stage: DoReMi's proxy model, whose losses beside a reference's raise and lower domain weights.

    python -m train.mixture.proxy --config=configs/mixture.py:cpu --workdir=WORKDIR

`train.mixture doremi` runs it, after train.pretrain has trained the reference in the same workdir.
At each step the batch has as many rows of every domain. A domain's excess loss is the mean over its
tokens of max(proxy loss - reference loss, 0); its weight grows with it, and the proxy descends the
domains' mean losses by these weights (arXiv 2305.10429, algorithm 1). The mixture is the mean of
the weights over all steps. A stage that is killed begins at its first step again: it has no
checkpoints, and gives the same weights. The loss is the cross-entropy alone.

Arrays of domains end in S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from core.artifacts import write_jsonl
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import Progress
from data.batch import Batch
from data.tokens.learned_mixture import doremi_average, doremi_update
from data.tokens.mixture import mixture
from data.tokens.rows import batches, check_tokenizer
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.directory import load_params, read_description
from model.families.registry import Params, abstract_params, init
from model.mup import is_on, mup_of
from model.parallel.sharding import check_mesh, param_shardings
from train.mixture.shares import read_sizes
from train.optimizer.optimizers import make_optimizer, scale_optimizer
from train.setup import Setup, make_setup
from train.step import place_batch

SEED_OFFSET = 500   # of the data: the proxy reads a domain in another order than the reference
LOSSES = ("excess", "loss", "reference_loss")   # of domains, in nats per token
LAST_FRAC = 0.1     # of the steps, over which the losses that are reported are averaged


@flax.struct.dataclass
class ProxyState:
    """Everything that a step updates.

    Attributes:
        params: float32 parameters of the proxy.
        opt_state: the optimizer's state.
        log_weights_S: log of the domains' weights, which sum to 1.
        excess_S: the domains' latest excess losses, in nats per token.
    """

    params: Any
    opt_state: Any
    log_weights_S: jax.Array
    excess_S: jax.Array


# `step(state, reference, batch) -> (state, {name: [num_domains]})`.
ProxyStep = Callable[[ProxyState, Params, Batch], tuple[ProxyState, dict[str, jax.Array]]]


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains the proxy; writes `steps.jsonl`, and returns the mean weights and the last losses."""
    section, own, tokens = config.pretrain, config.doremi, parents["tokens"]
    domains = [*read_sizes(tokens, "doremi.domains", own.domains)]
    described = read_description(parents["reference"])
    check_tokenizer(tokens, described.tokenizer, "doremi.tokens")
    setup = make_setup(described.config, section, config.mesh)
    check_proxy(section, setup.config)
    rows = rows_per_domain(section.batch_size, len(domains))
    check_mesh(*setup, row_length=section.row_length, batch_size=section.batch_size)
    own_optimizer = section.optimizer
    if is_on(mup_of(config.model)):
        own_optimizer = scale_optimizer(own_optimizer, setup.config, mup_of(config.model))
    optimizer = make_optimizer(own_optimizer, section.num_steps)
    reference = load_params(parents["reference"], setup.config, setup.mesh)
    step = make_proxy_step(setup, optimizer, step_size=own.step_size, smoothing=own.smoothing)
    state = make_proxy_state(setup, optimizer, len(domains), section.seed)
    rows_read = domain_batches(tokens, domains, rows, section)
    measured = train_proxy(step, state, reference, rows_read, setup, section)
    write_jsonl(folder / "steps.jsonl", describe_steps(domains, measured))
    last = max(round(LAST_FRAC * section.num_steps), 1)
    weights_S = doremi_average(measured["log_weights_S"].astype(np.float64))
    return {"weights": dict(zip(domains, weights_S.tolist()))} | {
        name: dict(zip(domains, measured[f"{name}_S"][-last:].mean(axis=0).tolist()))
        for name in LOSSES}


def check_proxy(section: ConfigDict, config: ModelConfig) -> None:
    """Refuses what needs another loss than the cross-entropy of the next token."""
    if section.objective != "causal":
        raise UserError(f"pretrain.objective={section.objective!r}", "has no excess loss that "
                        "DoReMi defines", "set --config.pretrain.objective=causal")
    if config.E:
        raise UserError(f"model.E={config.E}", "needs a balance loss, which DoReMi's proxy lacks",
                        "set --config.model.E=0")


def train_proxy(step: ProxyStep, state: ProxyState, reference: Params, rows_read: Iterator[Batch],
                setup: Setup, section: ConfigDict) -> dict[str, np.ndarray]:
    """Trains over all batches: what each step measured, [num_steps, num_domains] by name."""
    history: list[dict[str, Any]] = []
    with (jax.set_mesh(setup.mesh),
          Progress("doremi", section.num_steps, "tokens",
                   units_per_step=section.batch_size * section.row_length) as progress):
        for batch in rows_read:
            state, measured = step(state, reference, place_batch(batch, setup.mesh))
            if history:     # one step late, so that the device does not wait
                history[-1] = jax.device_get(history[-1])
            history.append(measured)
            progress.update(len(history))
    return {name: np.stack([np.asarray(row[name]) for row in history]) for name in history[0]}


def rows_per_domain(batch_size: int, num_domains: int) -> int:
    """Rows of each domain in a batch; raises `UserError` if the domains do not divide it."""
    if batch_size % num_domains:
        nearest = max(round(batch_size / num_domains), 1) * num_domains
        raise UserError(f"pretrain.batch_size={batch_size}", f"is no multiple of {num_domains} "
                        "domains, and DoReMi's batches have as many rows of each",
                        f"set --config.pretrain.batch_size={nearest}")
    return batch_size // num_domains


def domain_batches(tokens: Path, domains: list[str], rows: int,
                   section: ConfigDict) -> Iterator[Batch]:
    """A batch for each step, with `rows` rows of each domain, the first domain's first."""
    parts = [batches(mixture(tokens, {name: 1.0}, section.row_length,
                             num_rows=section.num_steps * rows, packing=section.packing,
                             seed=section.seed + SEED_OFFSET + number), rows)
             for number, name in enumerate(domains)]
    for index in range(section.num_steps):
        yield jax.tree.map(lambda *leaves: np.concatenate(leaves),
                           *(part[index] for part in parts))


def make_proxy_state(setup: Setup, optimizer: optax.GradientTransformation, num_domains: int,
                     seed: int) -> ProxyState:
    """The state before the first step: new parameters, uniform weights."""
    shardings = param_shardings(abstract_params(setup.config), setup.mesh)
    with jax.set_mesh(setup.mesh):
        params = jax.jit(partial(init, setup.config), out_shardings=shardings)(
            jax.random.key(seed))
        return ProxyState(params, jax.jit(optimizer.init)(params),
                          jnp.full(num_domains, -np.log(num_domains), jnp.float32),
                          jnp.zeros(num_domains, jnp.float32))


def make_proxy_step(setup: Setup, optimizer: optax.GradientTransformation, *, step_size: float,
                    smoothing: float) -> ProxyStep:
    """Compiles a step of DoReMi (arXiv 2305.10429, algorithm 1).

    Args:
        step_size, smoothing: see `data.tokens.learned_mixture.doremi_update`.

    Returns:
        `step(state, reference, batch)`, whose state is donated and whose batch has as many rows of
        each domain, in order. It measures `log_weights_S`, and in nats per token `excess_S`,
        `loss_S` of the proxy and `reference_loss_S`.
    """
    logps = partial(batch_logps, config=setup.config, execution=setup.execution)

    def loss_fn(params, state, reference, batch):
        def mean_S(x_BL, otherwise_S):
            sums_S = (x_BL * batch.loss_weights_BL).reshape(num_domains, -1).sum(axis=1)
            return jnp.where(counts_S > 0, sums_S / jnp.maximum(counts_S, 1e-9), otherwise_S)

        num_domains = len(state.excess_S)
        counts_S = batch.loss_weights_BL.reshape(num_domains, -1).sum(axis=1)
        loss_BL = -logps(params, batch)
        reference_BL = -jax.lax.stop_gradient(logps(reference, batch))
        excess_BL = jnp.maximum(jax.lax.stop_gradient(loss_BL) - reference_BL, 0.0)
        excess_S = mean_S(excess_BL, state.excess_S)    # a domain without tokens keeps its own
        log_weights_S = doremi_update(state.log_weights_S, excess_S, step_size=step_size,
                                      smoothing=smoothing)
        loss_S = mean_S(loss_BL, jnp.zeros(num_domains))
        return jnp.sum(jnp.exp(log_weights_S) * loss_S), {
            "log_weights_S": log_weights_S, "excess_S": excess_S, "loss_S": loss_S,
            "reference_loss_S": mean_S(reference_BL, jnp.zeros(num_domains))}

    def step(state: ProxyState, reference: Params,
             batch: Batch) -> tuple[ProxyState, dict[str, jax.Array]]:
        gradient, measured = jax.grad(loss_fn, has_aux=True)(state.params, state, reference, batch)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return ProxyState(optax.apply_updates(state.params, update), opt_state,
                          measured["log_weights_S"], measured["excess_S"]), measured

    return jax.jit(step, donate_argnums=0)


def describe_steps(domains: list[str],
                   measured: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """A row for each step: its weights, and its losses in nats per token, by domain."""
    columns = {"weights": np.exp(measured["log_weights_S"])} | {
        name: measured[f"{name}_S"] for name in LOSSES}
    for index in range(len(columns["weights"])):
        yield {"step": index + 1} | {name: dict(zip(domains, values[index].tolist()))
                                     for name, values in columns.items()}


STAGE = Stage("doremi", build, parents=("tokens", "reference"), sections=("model", "pretrain"))

if __name__ == "__main__":
    run_stage(STAGE)
