"""Overfitting: train and held-out loss of small Transformers over epochs of few unique tokens.

    python -m scripts.lab.overfitting --parents=runs/quickstart-cpu --out=runs/lab/overfitting

Each model is trained for the same number of tokens whatever the number of unique ones, so fewer
unique tokens are read in more epochs. Rows are drawn at random from one domain of the tokens in
`--parents`, the rows of a smaller amount being among those of a larger one. The learning rate is
constant after its warmup, so that each point of a curve is the end of a run of that length.

`scripts.lab.repeats` fits the law of repeated data to the curves. `--out` gets the curves, a table,
`law.json` and a figure; a run that was stopped goes on with the models that the folder lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from core import artifacts, entry
from core.artifacts import write_json
from core.errors import UserError
from core.progress import format_count, log
from data.batch import Batch, stack
from data.tokens.rows import TokenRows
from eval.measures.likelihood import has_heldout
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, init
from model.flops import matmul_params
from scripts.bench.frontier_results import Row, add_rows, open_results, summarise
from scripts.bench.frontier_train import Recipe, draw_batches
from scripts.lab.experiment import format_table
from scripts.lab.overfitting_page import COLUMNS, describe_turns, draw
from scripts.lab.repeats import estimate_repeats, measure_fresh
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer
from train.scaling.figures import load_matplotlib

HEAD_SIZE = 32
KEY = jax.random.key(0)     # of the loss, which uses none


class Plan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        tokens: mark of the tokens.
        domain: that rows are drawn from.
        row_length: L, tokens of a row.
        widths: D of the models.
        num_layers: N of all models.
        unique_rows: rows that a run has.
        heldout_rows: rows of held-out pages, drawn once.
        recipe: how a model is trained.
    """

    tokens: str
    domain: str = "pages"
    row_length: int = 128
    widths: tuple[int, ...] = (32, 64, 128)
    num_layers: int = 2
    unique_rows: tuple[int, ...] = (32, 128, 512, 2048)
    heldout_rows: int = 192
    recipe: Recipe = Recipe(num_steps=256, batch_size=8, learning_rate=3e-3)

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.recipe.batch_size * self.row_length


class Texts(NamedTuple):
    """Rows that models are trained on and measured on, on the device.

    Attributes:
        train: as many rows as the largest number of unique ones; a smaller number takes the first.
        seen: those that all runs have, on which the train loss is measured.
        heldout: rows of held-out pages.
    """

    train: Batch
    seen: Batch
    heldout: Batch


def draw_rows(tokens: Path, domain: str, row_length: int, num: int, seed: int) -> Batch:
    """Rows of a domain, drawn without replacement.

    Raises:
        UserError: the domain has fewer.
    """
    source = TokenRows(tokens, domain, row_length)
    if len(source) < num:
        raise UserError(f"{num} rows of {row_length} tokens", f"{tokens} has {len(source)} of the "
                        f"domain {domain}", "name a workdir with more text in --parents")
    chosen = np.random.default_rng([seed, row_length]).permutation(len(source))[:num]
    return jax.tree.map(jnp.asarray, stack([source[int(index)] for index in chosen]))


def read_texts(plan: Plan, tokens: Path, seed: int) -> Texts:
    """The texts of a seed; raises `UserError` as `draw_rows`, or where no page is held out."""
    if not has_heldout(tokens):
        raise UserError(str(tokens), "holds no page out", "curate the corpus with "
                        "--config.curate.heldout.frac above 0")
    train = draw_rows(tokens, plan.domain, plan.row_length, max(plan.unique_rows), seed)
    return Texts(train, jax.tree.map(lambda leaf: leaf[:min(plan.unique_rows)], train),
                 draw_rows(tokens, "heldout", plan.row_length, plan.heldout_rows, seed))


def make_config(plan: Plan, width: int, vocab_size: int) -> ModelConfig:
    """The Transformer of a width."""
    heads = max(1, width // HEAD_SIZE)
    return ModelConfig(V=vocab_size, D=width, N=plan.num_layers, H=heads, G=heads,
                       K=min(width, HEAD_SIZE), F=3 * width)


def measured_steps(plan: Plan) -> list[int]:
    """The steps after which losses are measured: two for each doubling."""
    last = plan.recipe.num_steps
    return sorted({round(2 ** (half / 2)) for half in range(int(2 * np.log2(last)) + 1)} | {last})


def make_descent(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with a constant learning rate after its warmup."""
    return make_optimizer(ConfigDict(dict(
        name="adamw", learning_rate=recipe.learning_rate, lr_multipliers={}, decay_multipliers={},
        weight_decay=0.1, b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32", clip_norm=1.0,
        schedule="constant", warmup_steps=min(10, recipe.num_steps - 1), final_frac=0.0)),
        recipe.num_steps)


@partial(jax.jit, static_argnames=("config", "recipe"))
def train_and_measure(params: Params, texts: Texts, rows_SB: jax.Array, is_measured_S: jax.Array, *,
                      config: ModelConfig, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """Trains on S batches of rows of `texts.train`, given by their numbers.

    Args:
        is_measured_S: after which steps losses are measured.

    Returns:
        Losses of the seen and of the held-out rows after each step, in nats per token; nan where
        none was measured.
    """
    optimizer = make_descent(recipe)
    execution = Execution(scan_unroll=config.N)
    loss_fn = partial(next_token_loss, config=config, execution=execution, key=KEY)

    def mean_loss(params, rows):
        loss_sum, weight = loss_fn(params, rows)[1]["loss"]
        return loss_sum / weight

    def step(carry, at_step):
        params, state = carry
        numbers_B, is_measured = at_step
        batch = jax.tree.map(lambda leaf: leaf[numbers_B], texts.train)
        gradient = jax.grad(mean_loss)(params, batch)
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        losses = jax.lax.cond(
            is_measured, lambda params: (mean_loss(params, texts.seen),
                                         mean_loss(params, texts.heldout)),
            lambda params: (jnp.float32(jnp.nan),) * 2, params)
        return (params, state), losses

    return jax.lax.scan(step, (params, optimizer.init(params)), (rows_SB, is_measured_S))[1]


def row_name(plan: Plan, width: int, num_rows: int) -> str:
    """The name of a run."""
    return f"width {width}, {format_count(num_rows * plan.row_length)} unique tokens"


def list_rows(plan: Plan, texts: Callable[[], Texts], vocab_size: int,
              seed: int) -> dict[str, Callable[[], Row]]:
    """Functions that train the runs and describe their curves, by name."""
    steps = measured_steps(plan)
    is_measured_S = np.isin(np.arange(1, plan.recipe.num_steps + 1), steps)

    def run(width: int, num_rows: int) -> Row:
        config = make_config(plan, width, vocab_size)
        order = draw_batches(num_rows, plan.recipe, np.random.default_rng([seed, num_rows]))
        train_S, heldout_S = train_and_measure(
            jax.jit(partial(init, config))(jax.random.key(seed)), texts(), order, is_measured_S,
            config=config, recipe=plan.recipe)
        unique = num_rows * plan.row_length
        return describe_curve(np.array(steps) * plan.step_tokens, unique,
                              np.asarray(train_S)[is_measured_S],
                              np.asarray(heldout_S)[is_measured_S]) | {
            "width": width, "params": matmul_params(config), "unique": unique}

    return {row_name(plan, width, num_rows): partial(run, width, num_rows)
            for width in plan.widths for num_rows in plan.unique_rows}


def describe_curve(tokens_R: np.ndarray, unique: int, train_R: np.ndarray,
                   heldout_R: np.ndarray) -> Row:
    """Numbers of a run: where its held-out loss is smallest, and both losses at the end.

    Returns:
        `best_epoch` and `best` of the smallest held-out loss, `train` and `heldout` at the end,
        `rise` from the smallest to the last held-out loss, `gap` between the two at the end, and
        the `curve` of tokens, train and held-out loss.
    """
    best = int(np.argmin(heldout_R))
    return {"best_epoch": float(tokens_R[best] / unique), "best": float(heldout_R[best]),
            "epochs": float(tokens_R[-1] / unique), "train": float(train_R[-1]),
            "heldout": float(heldout_R[-1]), "rise": float(heldout_R[-1] - heldout_R[best]),
            "gap": float(heldout_R[-1] - train_R[-1]),
            "curve": np.stack([tokens_R, train_R, heldout_R], axis=1).tolist()}


def main() -> dict[str, Any]:
    """Reads the flags, trains what is missing, prints the table, fits the law, draws."""
    values = flags.FLAGS
    for name, example in (("parents", "runs/quickstart-cpu"), ("out", "runs/lab/overfitting")):
        if not getattr(values, name):
            raise UserError(f"--{name}", "is missing", f"try --{name}={example}")
    tokens, mark = artifacts.parent(Path(values.parents), "--parents", "tokens")
    return run_plan(Plan(mark), tokens, values.seeds, Path(values.out))


def run_plan(plan: Plan, tokens: Path, seeds: int, folder: Path) -> dict[str, Any]:
    """Runs an experiment on a token folder; returns the summary of its runs and the law.

    Raises:
        UserError: the folder holds results of another plan, matplotlib is missing; or as
            `read_texts`.
    """
    load_matplotlib()   # it is missed now, and not after the training
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = artifacts.read_json(tokens / "tokens.json")["vocab_size"]
    results = []
    for seed in range(seeds):
        path, texts = folder / f"seed_{seed}.json", cache(partial(read_texts, plan, tokens, seed))
        results.append(open_results(path, plan))
        add_rows(path, results[-1], list_rows(plan, texts, vocab_size, seed))
    rows = [result["rows"] for result in results]
    summary = summarise(results)
    table = format_table(COLUMNS, summary)
    (folder / "table.md").write_text(table)
    print(table, end="", flush=True)
    for line in describe_turns(rows):
        log(f"overfitting: {line}")
    curves = [row for seed in rows for row in seed.values()]
    law = estimate_repeats(curves, measure_fresh(curves))
    write_json(folder / "law.json", law)
    log(f"overfitting: {law['sentence']}")
    draw(folder / "figure.png", rows)
    return {"seeds": seeds, "rows": summary, "law": law}


if __name__ == "__main__":
    flags.DEFINE_string("parents", "", "Workdir whose tokens are read.")
    flags.DEFINE_integer("seeds", 1, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_string("out", "", "Folder of the results.")
    entry.run(main)
