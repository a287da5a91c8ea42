"""The best learning rate over width and depth: does it move, as is and scaled?

    python -m scripts.lab.learning_rate --tokens=runs/quickstart-cpu/tokens --out=runs/lab

Byte-level models of several widths, and of several depths, are trained at learning rates that are
powers of 2: as they are (standard), and scaled from the smallest by muP for width (arXiv
2203.03466) and by CompleteP for depth (arXiv 2505.01618). Of each size a parabola through the best
rate and its neighbours gives the optimum. How far that moves when a size doubles is the slope of
its binary logarithm over that of the size, by least squares; 0 means that a rate found on a small
model is the best of a large one too. Intervals are Student's over seeds, each of which has its own
weights and rows.

`--out` gets the folder learning_rate with a result for each seed, the table and the figure, which
needs matplotlib, pip install -e '.[report]'. A run that was stopped goes on with what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_results import Row, estimate
from scripts.coordinate_check import OWN, read_sizes, resize
from scripts.lab.experiment import finish_chart, format_estimate, run_seeds
from scripts.lab.small_models import (
    Text,
    draw_rows,
    find_optimum,
    make_trainer,
    mean_loss,
    read_text,
    sweep,
)

SCALED = {"width": "muP", "depth": "CompleteP"}
BASE = "base"       # name of the smallest model, which is scaled by nothing


class TransferPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        widths, depths: the first of each is the base's, which stays where the other is varied.
        exponents: of the first and the last power of 2 that is always tried as a learning rate.
        num_steps, num_rows, row_length: of a training; the rate rises for `warmup_steps`, and
            falls linearly to 0.
        heldout_rows: rows of the loss that is compared.
        domain, num_tokens: the text.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 8)
    exponents: tuple[int, int] = (-7, -4)
    num_steps: int = 100
    warmup_steps: int = 10
    num_rows: int = 8
    row_length: int = 32
    heldout_rows: int = 256
    domain: str = "pages"
    num_tokens: int = 1_000_000


class Panel(NamedTuple):
    """Models of one parametrisation that differ in one size.

    Attributes:
        axis: what is varied, width or depth.
        scaling: the parametrisation.
        names: of the models' rows by their size, the base first.
    """

    axis: str
    scaling: str
    names: Mapping[int, str]


def list_panels(plan: TransferPlan) -> list[Panel]:
    """Width and depth, each as it is and scaled."""
    sizes = {"width": plan.widths, "depth": plan.depths}
    return [Panel(axis, scaling, {sizes[axis][0]: BASE} | {
        size: f"{scaling}, {axis} {size}" for size in sizes[axis][1:]})
        for axis in sizes for scaling in ("standard", SCALED[axis])]


@cache
def make_training(plan: TransferPlan, axis: str, size: int,
                  scaling: str) -> Callable[[Text, int, float], jax.Array]:
    """The loss after a training, of the text, the seed and the learning rate: one program."""
    base = resize(OWN, plan.widths[0], plan.depths[0])
    sizes = {"width": base.D, "depth": base.N} | {axis: size}
    trainer = make_trainer(
        resize(OWN, **sizes), ConfigDict(dict(schedule="linear", warmup_steps=plan.warmup_steps)),
        plan.num_steps, None if scaling == "standard" else base)

    @jax.jit
    def train(text, seed, learning_rate):
        key_weights, key_rows, key_heldout = jax.random.split(jax.random.key(seed), 3)

        def step(state, key):
            batch = draw_rows(text.train_T, key, plan.num_rows, plan.row_length)
            return trainer.step(state, batch, learning_rate), None

        (params, _), _ = jax.lax.scan(step, trainer.start(key_weights),
                                      jax.random.split(key_rows, plan.num_steps))
        heldout = draw_rows(text.heldout_T, key_heldout, plan.heldout_rows, plan.row_length)
        return mean_loss(params, heldout, trainer.config)

    return train


def measure_model(train: Callable[[float], float], plan: TransferPlan) -> Row:
    """The row of a model: its optimum, the loss there, and its losses by learning rate.

    Args:
        train: loss after a training, of the learning rate.
    """
    losses = sweep(train, *plan.exponents)
    best = find_optimum(losses)
    return {"exponent": best.exponent, "loss": best.value,
            "losses": [[exponent, loss if np.isfinite(loss) else None]
                       for exponent, loss in losses.items()]}


def list_rows(plan: TransferPlan, text: Text, seed: int) -> dict[str, Callable[[], Row]]:
    """A function for each model, by the name of the row that it makes."""
    def make(panel: Panel, size: int) -> Row:
        train = make_training(plan, panel.axis, size, panel.scaling)
        return measure_model(lambda rate: float(train(text, seed, rate)), plan)

    panels = list_panels(plan)
    return {name: partial(make, panel, size) for panel in panels
            for size, name in panel.names.items() if name != BASE or panel is panels[0]}


def list_shifts(panel: Panel, rows: Sequence[Mapping[str, Row]]) -> list[float]:
    """Of each seed the slope of the optimum's binary logarithm over that of the size."""
    sizes = np.log2([*panel.names])
    return [float(np.polyfit(sizes, [seed[name]["exponent"] for name in panel.names.values()],
                             1)[0]) for seed in rows]


def format_table(panels: Sequence[Panel], rows: Sequence[Mapping[str, Row]]) -> str:
    """A Markdown table: optimum and loss of each size, and how far the optimum moves."""
    lines = ["| | size | best learning rate, power of 2 | loss there, nats per byte | loss at the "
             "base's best | shift per doubling |", "|---|---|---|---|---|---|"]
    for panel in panels:
        shift = format_estimate(estimate(list_shifts(panel, rows)), 2)
        for size, name in panel.names.items():
            numbers = [([seed[name]["exponent"] for seed in rows], 2),
                       ([seed[name]["loss"] for seed in rows], 3),
                       ([loss_at_base(seed, name) for seed in rows], 3)]
            cells = [format_estimate(estimate(values), digits) if np.isfinite(values).all()
                     else "diverged or not tried" for values, digits in numbers]
            first = size == min(panel.names)
            lines.append(f"| {panel.scaling * first} | {panel.axis} {size} | {' | '.join(cells)} "
                         f"| {shift * first} |")
    return "\n".join(lines) + "\n"


def loss_at_base(rows: Mapping[str, Row], name: str) -> float:
    """A model's loss at the power of 2 that is the best of the base's; nan where it diverged, or
    was not tried."""
    best = min((loss, exponent) for exponent, loss in rows[BASE]["losses"] if loss is not None)[1]
    loss = dict(map(tuple, rows[name]["losses"])).get(best)
    return float("nan") if loss is None else loss


def draw(path: Path, panels: Sequence[Panel], rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws the mean loss over the learning rate, a line for each size, with the optima.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, charts = open_figure(path, len(panels))
    for panel, chart in zip(panels, charts):
        for number, (size, name) in enumerate(panel.names.items()):
            draw_model(chart, [seed[name] for seed in rows], color=f"C{number}",
                       label=f"{panel.axis} {size}")
        chart.set_xscale("log", base=2)
        shift = format_estimate(estimate(list_shifts(panel, rows)), 2)
        finish_chart(chart, "learning rate", "loss, nats per byte",
                     f"{panel.scaling}: {shift} per doubling")
    best = [row["loss"] for seed in rows for row in seed.values()]
    for chart in charts:    # far from the optima the losses say nothing more
        chart.set_ylim(min(best) - 0.05, max(best) + 0.6)
    save_figure(figure, path)


def draw_model(chart: Any, rows: Sequence[Row], **style: Any) -> None:
    """A line of means over the seeds' rows, where all have a loss, and the mean optimum."""
    losses = [dict(map(tuple, row["losses"])) for row in rows]
    tried = [exponent for exponent in losses[0]
             if all(seed.get(exponent) is not None for seed in losses)]
    chart.plot(np.exp2(tried), [np.mean([seed[each] for seed in losses]) for each in tried], "o-",
               markersize=4, linewidth=1, **style)
    chart.plot(2.0**np.mean([row["exponent"] for row in rows]),
               np.mean([row["loss"] for row in rows]), "D", color=style["color"],
               markeredgecolor="black")


def run_plan(plan: TransferPlan, text: Text, seeds: int, folder: Path) -> dict[str, Any]:
    """Trains what the folder lacks, writes table and figure, and returns the slopes."""
    panels = list_panels(plan)
    rows = run_seeds(plan, partial(list_rows, plan, text), seeds, folder)
    table = format_table(panels, rows)
    (folder / "table.md").write_text(table)
    print(table, end="", flush=True)
    draw(folder / "figure.png", panels, rows)
    return {"seeds": seeds, "shifts": {axis: {
        panel.scaling: estimate(list_shifts(panel, rows)) for panel in panels
        if panel.axis == axis} for axis in SCALED}}


def main() -> dict[str, Any]:
    """Reads the flags, and runs the experiment."""
    values, plan = flags.FLAGS, TransferPlan()
    if not values.out:
        raise UserError("--out", "is missing", "try --out=runs/lab")
    plan = plan._replace(**{name: tuple(read_sizes(name)) for name in ("widths", "depths")})
    text = read_text(values.tokens, plan.domain, plan.num_tokens)
    return run_plan(plan, text, values.seeds, Path(values.out) / "learning_rate")


if __name__ == "__main__":
    flags.DEFINE_string("tokens", "", "Folder of tokens, of which the text is read.")
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_list("widths", [str(width) for width in TransferPlan().widths],
                      "Widths; the first is the base.")
    flags.DEFINE_list("depths", [str(depth) for depth in TransferPlan().depths],
                      "Depths; the first is the base.")
    entry.run(main)
