"""Axes of a sweep, parsed from the command line, and their product."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from core.points import Settings

Axis = list[Settings]


def grid_axis(text: str) -> Axis:
    """``field=1,2,3``: one point for each value."""
    field, values = _split("--grid", text)
    return [{field: value} for value in values]


def zip_axis(text: str) -> Axis:
    """``a=1,2;b=3,4``: fields that change together.

    Raises:
        UserError: their numbers of values differ.
    """
    columns = [_split("--zip", part) for part in text.split(";")]
    if len({len(values) for _, values in columns}) != 1:
        raise UserError(f"--zip={text}", "has fields with unequal numbers of values",
                        "give each field as many")
    names = [field for field, _ in columns]
    return [dict(zip(names, row)) for row in zip(*(values for _, values in columns))]


def random_axis(texts: Sequence[str], *, trials: int, seed: int) -> Axis:
    """``field=loguniform(a,b)``, ``uniform``, ``randint`` (ends included) or ``choice``.

    A trial's draw depends only on seed, field and the trial's number, so that adding trials does
    not change the earlier ones.
    """
    fields = [_parse_draw(text) for text in texts]
    return [{field: _draw(kind, values, np.random.default_rng(
        [seed, trial, zlib.crc32(field.encode())])) for field, kind, values in fields}
        for trial in range(trials)]


def make_points(axes: Sequence[Axis]) -> list[Settings]:
    """The product of all axes, without duplicates.

    Raises:
        UserError: two axes set the same field.
    """
    fields = [field for axis in axes for field in axis[0]]
    for field in fields:
        if fields.count(field) > 1:
            raise UserError(field, "is set by two axes", "name it once")
    points = [{field: value for part in parts for field, value in part.items()}
              for parts in itertools.product(*axes)]
    return [point for number, point in enumerate(points) if point not in points[:number]]


def _split(flag: str, text: str) -> tuple[str, list[str]]:
    field, equals, rest = text.strip().partition("=")
    # Split at commas outside of brackets: a value may be a tuple.
    values = [value.strip() for value in re.split(r",(?![^(\[]*[)\]])", rest)]
    if not equals or not all(values) or not re.fullmatch(r"\w+(\.\w+)+", field):
        raise UserError(f"{flag}={text}", "is not section.field=value,value",
                        f"write {flag}=pretrain.seed=0,1")
    return field, values


def _parse_draw(text: str) -> tuple[str, str, list[str]]:
    match = re.fullmatch(r"(\w+(?:\.\w+)+)=(loguniform|uniform|randint|choice)\((.+)\)", text)
    if not match:
        raise UserError(f"--random={text}", "is no distribution that is known here",
                        "write field=loguniform(1e-4,1e-1), uniform, randint or choice")
    field, kind, values = match[1], match[2], [value.strip() for value in match[3].split(",")]
    if kind != "choice":
        try:
            low, high = map(int if kind == "randint" else float, values)
        except ValueError:
            low, high = math.nan, math.nan
        if not low <= high or (kind == "loguniform" and low <= 0):
            raise UserError(f"--random={text}", "needs two numbers, the lower one first"
                            + (" and above 0" if kind == "loguniform" else ""),
                            f"write {field}={kind}(1,2)")
    return field, kind, values


def _draw(kind: str, values: list[str], rng: np.random.Generator) -> str:
    if kind == "choice":
        return values[rng.integers(len(values))]
    if kind == "randint":
        return str(rng.integers(int(values[0]), int(values[1]), endpoint=True))
    low, high = map(float, values)
    if kind == "loguniform":
        return f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}"
    return f"{rng.uniform(low, high):.4g}"
