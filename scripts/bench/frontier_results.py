"""Results of seeds: rows by name in one file a seed, of which a later run computes what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from core.artifacts import read_json, write_json
from core.errors import UserError
from core.progress import format_secs, log
from eval.statistics import mean_and_stderr

Row = dict[str, Any]    # numbers by name, and lists of them, of which no mean is taken


def open_results(path: Path, plan: Any) -> dict[str, Any]:
    """What a seed's file holds: its `plan`, and `rows` by name; the file is made if it is missing.

    Args:
        plan: a named tuple of what decides the results.

    Raises:
        UserError: the file holds results of another plan.
    """
    described = json.loads(json.dumps(plan._asdict(), default=dataclasses.asdict))
    if not path.exists():
        write_json(path, {"plan": described, "rows": {}})
    result = read_json(path)
    if result["plan"] != described:
        raise UserError(str(path), "is a result of other settings",
                        "name another folder with --out")
    return result


def add_rows(path: Path, result: dict[str, Any], makers: Mapping[str, Callable[[], Row]]) -> None:
    """Makes the rows that a result lacks, and writes each into its file as soon as it is there."""
    for name, make in makers.items():
        if name in result["rows"]:
            continue
        began = time.monotonic()
        result["rows"][name] = row = make()
        write_json(path, result)
        numbers = ", ".join(f"{number} {row[number]:.3f}" for number in _scalars(row))
        log(f"{path.stem}, {name}: {numbers}, {format_secs(time.monotonic() - began)}")


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds with Student's 95 % interval; of one seed there is none."""
    mean, stderr = mean_and_stderr(values)
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(stdtrit(len(values) - 1, 0.975)) * stderr
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each row the `estimate` of each number over seeds."""
    return {name: {number: estimate([result["rows"][name][number] for result in results])
                   for number in _scalars(row)} for name, row in results[0]["rows"].items()}


def _scalars(row: Row) -> list[str]:
    return [number for number, value in row.items() if not isinstance(value, list)]
