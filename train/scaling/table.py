"""Runs from a table: CSV, TSV, JSON lines, Parquet, plain or compressed."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from data.layouts.rows import Damaged, find_files, read_rows
from train.scaling.forms import FLOPS_PER_PARAM
from train.scaling.runs import Curve, Runs

SIZES = ("params", "tokens", "flops")
ORIGINS = ("tokenizer", "corpus", "eval_length")
COLUMNS = (*SIZES, "loss", "accuracy", "run", *ORIGINS)


@dataclasses.dataclass(frozen=True)
class Point:
    """A loss of a run: one row of a table, or one evaluation of a run."""

    run: str
    params: float
    tokens: float
    flops: float
    loss: float
    accuracy: float
    origin: Mapping[str, str]


def read_table(path: Path, count: str, *, columns: Mapping[str, str],
               only: Mapping[str, str]) -> tuple[Runs, dict[str, int]]:
    """Reads runs from a table, one row each, or several where a column `run` tells runs apart.

    Two of `params`, `tokens` and `flops` are needed, and `loss`; the third size follows from
    C = 6 N D. `tokenizer`, `corpus` and `eval_length` (tokens of a row of the evaluation) are
    compared where they are.

    Args:
        count: which parameters the table counts, one of `COUNTS`.
        columns: names in the table by ours, where they differ.
        only: the rows whose columns have these values are read, and no others.

    Returns:
        The runs; and how many rows were left out, by reason.

    Raises:
        UserError: a row is damaged, lacks a column, or has no positive number in one; no row is
            left; or runs differ in what must be held fixed.
    """
    if unknown := sorted(columns.keys() - {*COLUMNS}):
        raise UserError(f"--columns={unknown[0]}", "is no column of runs",
                        f"choose among {', '.join(COLUMNS)}")
    names = {name: columns.get(name, name) for name in COLUMNS}
    left_out: Counter[str] = Counter()
    points = []
    for file in find_files(path):
        for place, row in read_rows(file):
            if isinstance(row, Damaged):
                raise UserError(place, row.what, "correct this row, or remove it")
            if any(str(row.get(column)) != value for column, value in only.items()):
                left_out["not_chosen"] += 1
                continue
            points.append(_read_point(place, row, names, set(columns)))
    if not points:
        raise UserError(str(path), "holds no row" + (" with " + ", ".join(
            f"{name}={value}" for name, value in only.items()) if only else ""),
            "correct --only, or name another table")
    return make_runs(points, count), dict(left_out)


def make_runs(points: Sequence[Point], count: str) -> Runs:
    """Runs of points, each run's final loss that of its last token.

    Raises:
        UserError: runs differ in tokenizer, corpus or length of the evaluation, or one run has two
            sizes or twice as many tokens.
    """
    origin = _common_origin(points)
    by_run: dict[str, list[Point]] = {}
    for point in points:
        by_run.setdefault(point.run, []).append(point)
    finals, curves = [], []
    for name, own in by_run.items():
        own = sorted(own, key=lambda point: point.tokens)
        tokens = [point.tokens for point in own]
        if len({point.params for point in own}) > 1 or len(set(tokens)) < len(tokens):
            raise UserError(f"run {name!r}", "has two sizes, or two losses after the same tokens",
                            "give each run a name of its own in the column `run`")
        finals.append(own[-1])
        if len(own) > 1:
            curves.append(Curve(own[0].params, np.array(tokens),
                                np.array([point.loss for point in own])))
    arrays = {f"{name}_R": np.array([getattr(point, name) for point in finals], np.float64)
              for name in (*SIZES, "loss", "accuracy")}
    return Runs(tuple(by_run), **arrays, count=count, origin=origin, curves=tuple(curves))


def _common_origin(points: Sequence[Point]) -> dict[str, str]:
    """What is known of all points, which must agree."""
    common = {}
    for name in ORIGINS:
        found = Counter(point.origin.get(name, "") for point in points)
        if len(found) > 1:
            kinds = ", ".join(f"{kind or 'not given'!s} ({num})"
                              for kind, num in found.most_common(4))
            raise UserError(f"runs of {len(found)} kinds of {name.replace('_', ' ')}",
                            f"their losses cannot be compared: {kinds}",
                            "choose one kind, of a table with --only=COLUMN=VALUE")
        [kind] = found
        if kind:
            common[name] = kind
    return common


def _read_point(place: str, row: Mapping[str, Any], names: Mapping[str, str],
                given: set[str]) -> Point:
    """A row of a table."""
    for name in given:
        if names[name] not in row:
            raise UserError(place, f"has no column {names[name]!r}",
                            f"correct --columns={name}={names[name]}")
    numbers = {name: _number(place, names[name], row.get(names[name]), may_be_0=name == "accuracy")
               for name in (*SIZES, "loss", "accuracy")}
    known = [name for name in SIZES if numbers[name] is not None]
    if numbers["loss"] is None or len(known) < 2:
        lacking = "loss" if numbers["loss"] is None else "two of params, tokens and flops"
        raise UserError(place, f"has no {lacking}", "name the table's columns with "
                        "--columns=params=NAME,tokens=NAME,loss=NAME")
    params, tokens, flops = (numbers[name] for name in SIZES)
    params = params or flops / (FLOPS_PER_PARAM * tokens)
    tokens = tokens or flops / (FLOPS_PER_PARAM * params)
    accuracy = numbers["accuracy"]
    return Point(str(row.get(names["run"]) or place), params, tokens,
                 flops or FLOPS_PER_PARAM * params * tokens, numbers["loss"],
                 math.nan if accuracy is None else accuracy,
                 {name: str(row[names[name]]) for name in ORIGINS
                  if row.get(names[name]) not in (None, "")})


def _number(place: str, column: str, value: Any, *, may_be_0: bool) -> float | None:
    """A positive number, or None where there is none."""
    if value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not may_be_0):
        raise UserError(place, f"{column} is {value!r}, which is no positive number",
                        "correct this row, or leave the run out and say so")
    return number
