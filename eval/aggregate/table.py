"""A table of models by measurements, from which pages, commands and aggregates read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import read_json
from core.errors import UserError

# Of each metric whether more is better; of others it is unknown.
IS_HIGHER_BETTER = {
    **dict.fromkeys(("acc", "acc_raw", "acc_norm", "acc_bytes", "acc_tokens", "acc_pmi", "f1",
                     "exact_match", "score", "win_rate", "mc1", "mc2", "pass@1"), True),
    **dict.fromkeys(("ppl", "word_ppl", "byte_ppl", "token_ppl", "bpb", "bpc", "brier", "ece",
                     "loss_nats"), False)}


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of one model.

    Attributes:
        stderr: of the value; None where it is not known.
        items: number of items; None where it is not known.
        chance: the value of guessing; None where it is not known.
    """

    value: float
    stderr: float | None = None
    items: int | None = None
    chance: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Scores of models by column; a cell may be missing.

    Attributes:
        models: names, in order.
        columns: (task, metric), in order.
        cells: by model and column; what was not measured is absent.
    """

    models: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    cells: Mapping[tuple[str, tuple[str, str]], Score]

    def column(self, column: tuple[str, str]) -> dict[str, float]:
        """A column's values by model; models without one are absent."""
        return {model: self.cells[model, column].value for model in self.models
                if (model, column) in self.cells}

    def missing(self) -> list[tuple[str, tuple[str, str]]]:
        """The cells that were not measured."""
        return [(model, column) for model in self.models for column in self.columns
                if (model, column) not in self.cells]

    def of_metrics(self, metrics: Collection[str]) -> Table:
        """The table with the columns of these metrics alone."""
        columns = tuple(column for column in self.columns if column[1] in metrics)
        return Table(self.models, columns, {(model, column): cell for (model, column), cell
                                            in self.cells.items() if column in columns})


def make_table(scores: Iterable[tuple[str, str, str, Score]]) -> Table:
    """Makes a table of (model, task, metric, score), in the order in which names come first.

    Raises:
        UserError: a cell comes twice, or its value is not finite.
    """
    models: dict[str, None] = {}
    columns: dict[tuple[str, str], None] = {}
    cells: dict[tuple[str, tuple[str, str]], Score] = {}
    for model, task, metric, score in scores:
        place = f"{task} {metric} of {model}"
        if not math.isfinite(score.value):
            raise UserError(place, f"is {score.value}", "measure it anew, or leave it out")
        if (model, (task, metric)) in cells:
            raise UserError(place, "comes twice", "leave one of the two out, or name models apart")
        models[model] = columns[task, metric] = None
        cells[model, (task, metric)] = score
    return Table(tuple(models), tuple(columns), cells)


def name_evaluations(folders: Sequence[Path]) -> dict[str, Path]:
    """Evaluations by their folders' names.

    Raises:
        UserError: two names are equal.
    """
    named = {folder.resolve().name: folder for folder in folders}
    if len(named) < len(folders):
        raise UserError(" ".join(map(str, folders)), "two evaluations have one name",
                        "rename a folder")
    return named


def read_evaluations(folders: Mapping[str, Path]) -> Table:
    """Reads finished evaluations, artifacts of `eval.run`, by the model names to show.

    Of each of `tasks` in `metrics.json`: `acc` with its standard error, items and chance, and its
    other metrics by their names; and `bpb`, where it was measured.

    Raises:
        UserError: a folder holds no evaluation.
    """
    return make_table((model, task, metric, score) for model, folder in folders.items()
                      for task, metric, score in _scores(Path(folder)))


def _scores(folder: Path) -> Iterable[tuple[str, str, Score]]:
    metrics = read_json(folder / "metrics.json")
    if "tasks" not in metrics:
        raise UserError(str(folder), "holds no evaluation", "name a folder that eval.run wrote")
    if metrics.get("bpb") is not None:
        yield "heldout", "bpb", Score(metrics["bpb"])
    for task in metrics["tasks"]:
        known: dict[str, Any] = {name: metrics.get(f"{task}_{name}")
                                 for name in ("stderr", "items", "chance")}
        for metric in IS_HIGHER_BETTER:
            value = metrics.get(f"{task}_{metric}")
            if value is not None:
                yield task, metric, (Score(value, **known) if metric == "acc" else
                                     Score(value, items=known["items"], chance=known["chance"]
                                           if metric.startswith("acc") else None))


def format_table(table: Table, digits: int = 4) -> list[str]:
    """The table as lines of text: a line for each task of each model, a column for each metric.

    A standard error stands behind `+-`; what is missing is `-`.
    """
    metrics = list(dict.fromkeys(metric for _, metric in table.columns))
    rows = [["task", "model", "chance", *metrics]]
    for task in dict.fromkeys(task for task, _ in table.columns):
        for model in table.models:
            cells = [table.cells.get((model, (task, metric))) for metric in metrics]
            chance = next((cell.chance for cell in cells if cell and cell.chance), None)
            if any(cells):
                rows.append([task, model, "-" if chance is None else f"{chance:.{digits}f}",
                             *("-" if cell is None else _format_cell(cell, digits)
                               for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
            for row in rows]


def _format_cell(cell: Score, digits: int) -> str:
    error = "" if cell.stderr is None else f" +- {cell.stderr:.{digits}f}"
    return f"{cell.value:.{digits}f}{error}"
