"""The critical batch size, of trainings to one loss and by the gradient noise scale.

    python -m scripts.lab.critical_batch --tokens=runs/quickstart-cpu/tokens --out=runs/lab

A small byte-level model is trained by AdamW to a given loss at several batch sizes, at the best
learning rate of each: powers of 2, with a parabola through the best and its neighbours. Steps and
tokens to the loss give the critical batch size by (S / S_min - 1) (E / E_min - 1) = 1 (arXiv
1812.06162, equation 2.7). Beside it stands the noise scale of each of these models when it has
reached the loss, by `train.scaling.noise_scale`. Intervals are Student's over seeds, each of which
has its own weights and rows.

`--out` gets the folder critical_batch with a result for each seed, the table and the figure, which
needs matplotlib, pip install -e '.[report]'. A run that was stopped goes on with what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from model.families.registry import Params
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_results import Row, estimate
from scripts.coordinate_check import OWN, resize
from scripts.lab.experiment import finish_chart, format_estimate, run_seeds
from scripts.lab.small_models import (
    EXECUTION,
    Text,
    Trainer,
    draw_rows,
    find_optimum,
    make_trainer,
    mean_loss,
    read_text,
    sweep,
)
from train.loss import next_token_loss
from train.scaling.gradients import measure_norms
from train.scaling.noise_scale import (
    estimate_from_norms,
    fit_critical_batch,
    relative_examples,
    relative_steps,
)
from train.step import LossFn

PATIENCE = 3.0      # a training ends after so many times the steps of the best learning rate


class BatchPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        width, depth: of the model.
        loss: in nats per byte, that is to be reached on `heldout_rows` rows.
        sizes: batches, in rows of `row_length` bytes, multiples of `piece_rows`.
        exponents: of the first and the last power of 2 that is always tried as a learning rate.
        warmup_steps: while the rate rises; it is constant then.
        max_tokens: of a training.
        rows_between: rows that are trained on between two measurements of the loss; one step of a
            larger batch.
        small_rows, large_rows, large_batches: of the noise scale.
        domain, num_tokens: the text.
    """

    width: int = 32
    depth: int = 2
    loss: float = 2.9
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    exponents: tuple[int, int] = (-7, -6)
    warmup_steps: int = 5
    max_tokens: int = 500_000
    row_length: int = 32
    piece_rows: int = 4
    heldout_rows: int = 128
    rows_between: int = 64
    small_rows: int = 8
    large_rows: int = 64
    large_batches: int = 8
    domain: str = "pages"
    num_tokens: int = 1_000_000

    def tokens(self, size: int) -> int:
        """Tokens of a batch of so many rows."""
        return size * self.row_length


class Reached(NamedTuple):
    """The state of a training when it ends.

    Attributes:
        params: the parameters.
        num_steps: steps, whole ones.
        before, loss: the last two measured losses, from which the step of the crossing follows.
    """

    params: Params
    num_steps: jax.Array
    before: jax.Array
    loss: jax.Array


@cache
def make_trainer_of(plan: BatchPlan) -> Trainer:
    """The model, with its optimizer."""
    schedule = ConfigDict(dict(schedule="constant", warmup_steps=plan.warmup_steps))
    return make_trainer(resize(OWN, plan.width, plan.depth), schedule, plan.max_tokens)


@cache
def make_loss(plan: BatchPlan) -> LossFn:
    """The loss of which the noise scale is measured: one object, for one program."""
    return partial(next_token_loss, config=make_trainer_of(plan).config, execution=EXECUTION)


@cache
def make_training(plan: BatchPlan) -> Callable[[Text, int, int, float, float], Reached]:
    """A training to the loss, of the text, the seed, the rows of a batch, the learning rate and the
    most steps. The gradient is summed over pieces of a batch, so that one program serves all sizes.
    """
    trainer = make_trainer_of(plan)

    @jax.jit
    def train(text, seed, size, learning_rate, max_steps):
        key_weights, key_rows, key_heldout = jax.random.split(jax.random.key(seed), 3)
        heldout = draw_rows(text.heldout_T, key_heldout, plan.heldout_rows, plan.row_length)
        num_pieces, every = size // plan.piece_rows, steps_between(plan, size)

        def step(number, state):
            def add(piece, total):
                key = jax.random.fold_in(jax.random.fold_in(key_rows, number), piece)
                batch = draw_rows(text.train_T, key, plan.piece_rows, plan.row_length)
                gradient = jax.grad(mean_loss)(state[0], batch, trainer.config)
                return jax.tree.map(lambda sums, leaf: sums + leaf / num_pieces, total, gradient)

            zeros = jax.tree.map(jnp.zeros_like, state[0])
            return trainer.update(state, jax.lax.fori_loop(0, num_pieces, add, zeros),
                                  learning_rate)

        def is_unfinished(reached):
            _, num_steps, _, loss = reached
            return (loss > plan.loss) & (num_steps < max_steps)    # a nan ends it too

        def train_on(reached):
            state, num_steps, _, before = reached
            state = jax.lax.fori_loop(num_steps, num_steps + every, step, state)
            return state, num_steps + every, before, mean_loss(state[0], heldout, trainer.config)

        state = trainer.start(key_weights)
        loss = mean_loss(state[0], heldout, trainer.config)
        (params, _), *rest = jax.lax.while_loop(
            is_unfinished, train_on, (state, jnp.zeros((), jnp.int32), loss, loss))
        return Reached(params, *rest)

    return train


def steps_between(plan: BatchPlan, size: int | jax.Array) -> int | jax.Array:
    """Steps between two measurements of the loss, for a size that is a number or an array."""
    return -(-plan.rows_between // size)


def steps_to_loss(plan: BatchPlan, size: int, reached: Reached) -> float:
    """Steps to the loss, linear between its last two measurements; infinite if it is not reached.
    """
    before, loss = float(reached.before), float(reached.loss)
    if not loss <= plan.loss:
        return float("inf")
    every = steps_between(plan, size)
    return float(reached.num_steps) - every * (plan.loss - loss) / max(before - loss, 1e-9)


def measure_batch(plan: BatchPlan, text: Text, seed: int, size: int) -> Row:
    """The row of a batch size: steps and tokens to the loss, and the noise scale there.

    Raises:
        UserError: as `sweep` and `estimate_from_norms`.
    """
    train, params = make_training(plan), None
    most, fewest = plan.max_tokens / plan.tokens(size), float("inf")

    def measure(rate: float) -> float:
        nonlocal fewest, params
        reached = train(text, seed, size, rate, min(most, PATIENCE * fewest))
        if (steps := steps_to_loss(plan, size, reached)) < fewest:
            fewest, params = steps, reached.params
        return float(np.log2(steps))

    logs = sweep(measure, *plan.exponents)
    best = find_optimum(logs)
    steps = 2**best.value
    return {"exponent": best.exponent, "steps": steps, "tokens": steps * plan.tokens(size),
            "noise_scale": measure_noise(plan, text, seed, params),
            "tried": [[exponent, 2**each if np.isfinite(each) else None]
                      for exponent, each in logs.items()]}


def measure_noise(plan: BatchPlan, text: Text, seed: int, params: Params) -> float:
    """The noise scale of a model, in tokens; errors as `estimate_from_norms`."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), plan.large_batches)
    norms = measure_norms(
        make_loss(plan), params, [draw_rows(text.train_T, key, plan.large_rows, plan.row_length)
                          for key in keys],
        num_small=plan.large_rows // plan.small_rows, key=keys[0])
    return estimate_from_norms(norms).noise_scale


def list_rows(plan: BatchPlan, text: Text, seed: int) -> dict[str, Callable[[], Row]]:
    """A function for each batch size, by the name of the row that it makes."""
    return {str(size): partial(measure_batch, plan, text, seed, size) for size in plan.sizes}


class Fit(NamedTuple):
    """Of one seed: fewest steps and tokens, the critical batch size, and the mean noise scale over
    models of all batch sizes, geometric, in tokens."""

    steps: float
    tokens: float
    critical: float
    noise_scale: float


def fit_seed(rows: Mapping[str, Row]) -> Fit:
    """The fit to a seed's rows; raises `UserError` as `fit_critical_batch`."""
    steps, tokens, noise = (np.array([row[name] for row in rows.values()])
                            for name in ("steps", "tokens", "noise_scale"))
    return Fit(*fit_critical_batch(steps, tokens), float(np.exp(np.mean(np.log(noise)))))


def format_table(plan: BatchPlan, rows: Sequence[Mapping[str, Row]],
                 fits: Sequence[Fit]) -> str:
    """Markdown tables: the trainings by batch size, and both critical batch sizes."""
    def cell(size: int, name: str, digits: int) -> str:
        return format_estimate(estimate([seed[str(size)][name] for seed in rows]), digits)

    lines = ["| batch, tokens | best learning rate, power of 2 | steps | tokens | noise scale, "
             "tokens |", "|---|---|---|---|---|"]
    lines += [f"| {plan.tokens(size):,} | {cell(size, 'exponent', 2)} | {cell(size, 'steps', 0)} | "
              f"{cell(size, 'tokens', 0)} | {cell(size, 'noise_scale', 0)} |"
              for size in plan.sizes]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {format_estimate(estimate(values), 0)} |" for name, values in zip(
        ("fewest steps", "fewest tokens", "critical batch by the trainings, tokens",
         "noise scale at the loss, tokens"), zip(*fits))]
    return "\n".join(lines) + "\n"


def draw(path: Path, plan: BatchPlan, rows: Sequence[Mapping[str, Row]],
         fits: Sequence[Fit]) -> None:
    """Draws steps over tokens to the loss, both over the batch, and the noise scales.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, (trade, ratios, noise) = open_figure(path, 3)
    sizes = np.array([plan.tokens(size) for size in plan.sizes])
    line = np.geomspace(sizes.min() / 2, sizes.max() * 2, 80)
    for number, (seed, fit) in enumerate(zip(rows, fits)):
        color, label = f"C{number}", f"seed {number}"
        steps, tokens = (np.array([row[name] for row in seed.values()])
                         for name in ("steps", "tokens"))
        curve = relative_steps(line, fit.critical), relative_examples(line, fit.critical)
        trade.plot(tokens, steps, "o", color=color, label=label)
        trade.plot(fit.tokens * curve[1], fit.steps * curve[0], color=color, linewidth=1)
        noise.plot(sizes, [row["noise_scale"] for row in seed.values()], "o-", color=color,
                   linewidth=1, label=f"noise scale at the loss, {label}")
        noise.axhline(fit.critical, color=color, linestyle="--", linewidth=1,
                      label=None if number else "critical batch by the trainings")
        ratios.plot(sizes, steps / fit.steps, "o", color="C0", label=None if number else "steps")
        ratios.plot(sizes, tokens / fit.tokens, "s", color="C1",
                    label=None if number else "tokens")
    for style, name, number in (("-", "trainings", 2), (":", "noise scale", 3)):
        scale = float(np.exp(np.mean(np.log([fit[number] for fit in fits]))))
        ratios.plot(line, relative_steps(line, scale), style, color="C0", linewidth=1)
        ratios.plot(line, relative_examples(line, scale), style, color="C1", linewidth=1,
                    label=f"by the {name}")
    for chart, x, y in ((trade, "tokens to the loss", "steps to the loss"),
                        (ratios, "batch, tokens", "over the fewest"),
                        (noise, "batch of the training, tokens", "tokens")):
        chart.set_xscale("log")
        chart.set_yscale("log")
        finish_chart(chart, x, y)
    noise.xaxis.set_minor_formatter("")     # the labels would overlap
    trade.set_title(f"to {plan.loss:g} nats per byte", fontsize="medium")
    save_figure(figure, path)


def run_plan(plan: BatchPlan, text: Text, seeds: int, folder: Path) -> dict[str, Any]:
    """Trains what the folder lacks, writes table and figure, and returns both batch sizes."""
    rows = run_seeds(plan, partial(list_rows, plan, text), seeds, folder)
    fits = [fit_seed(seed) for seed in rows]
    table = format_table(plan, rows, fits)
    (folder / "table.md").write_text(table)
    print(table, end="", flush=True)
    draw(folder / "figure.png", plan, rows, fits)
    ratios = [fit.noise_scale / fit.critical for fit in fits]
    return {"seeds": seeds, "loss": plan.loss} | {
        name: estimate(values) for name, values in (
            ("min_steps", [fit.steps for fit in fits]),
            ("min_tokens", [fit.tokens for fit in fits]),
            ("critical_batch_tokens", [fit.critical for fit in fits]),
            ("noise_scale_tokens", [fit.noise_scale for fit in fits]), ("ratio", ratios))}


def main() -> dict[str, Any]:
    """Reads the flags, and runs the experiment."""
    values, plan = flags.FLAGS, BatchPlan()
    if not values.out:
        raise UserError("--out", "is missing", "try --out=runs/lab")
    text = read_text(values.tokens, plan.domain, plan.num_tokens)
    return run_plan(plan, text, values.seeds, Path(values.out) / "critical_batch")


if __name__ == "__main__":
    flags.DEFINE_string("tokens", "", "Folder of tokens, of which the text is read.")
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0 on.", lower_bound=1)
    entry.run(main)
