"""Files of a judge's preferences for models against one baseline, as AlpacaEval writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError, quote
from data.chat import Message
from data.layouts.faults import Faults
from data.layouts.rows import Damaged, find_files, read_rows
from eval.judges.candidates import mark_question
from eval.judges.length_control import Comparisons

DRAWS = (0.0, 1.5)
SHARES = "pseudo_preference01"      # of rows whose preferences are from 0 to 1


class Annotation(NamedTuple):
    """A comparison of a model's answer with the baseline's.

    Attributes:
        index: of the instruction, or the mark of its text; "" where the file has neither.
        preference: probability that the model's answer is better, from 0 to 1.
        length, baseline_length: characters of the answers.
        place: the row, for messages.
    """

    index: str
    preference: float
    length: float
    baseline_length: float
    place: str


def read_annotations(path: Path, faults: Faults) -> dict[str, list[Annotation]]:
    """The comparisons of each model, in the order of the rows.

    A row has `preference` (1 for the baseline to 2 for the model; 0 and 1.5 are draws) or
    `pseudo_preference01` (from 0 to 1), the model as `model` or `generator_2`, its instruction's
    `index` or the `instruction` itself, and the lengths as `len_baseline` and `len_model`, or the
    answers themselves as `output_1` and `output_2`.

    Args:
        faults: counts damaged rows, and those without a preference as `unparsed`.

    Raises:
        UserError: a row lacks a column, has a preference out of its range, or repeats another one's
            instruction; or there is none.
    """
    found: dict[str, list[Annotation]] = {}
    seen: dict[tuple[str, str], str] = {}
    for place, row in _rows(path, faults):
        model = str(row.get("model") or row.get("generator_2") or "")
        if not model:
            raise UserError(place, "names no model", "add a column `model`")
        preference = _preference(row, place)
        if preference is None:
            faults.add("unparsed", place, "has no preference")
            continue
        index = _index(row)
        if index and (before := seen.setdefault((model, index), place)) != place:
            raise UserError(place, f"compares {model} on the instruction {index} as {before} does",
                            "remove one of them")
        found.setdefault(model, []).append(Annotation(
            index, preference, _length(row, "len_model", "output_2", place),
            _length(row, "len_baseline", "output_1", place), place))
    if not found:
        raise UserError(str(path), f"holds no comparison (left out: {dict(faults.counts)})",
                        "name a file of annotations")
    return found


def read_difficulties(path: Path) -> dict[str, float]:
    """The column `instruction_difficulty` by `index` or `instruction`.

    Raises:
        UserError: a row has neither, or no difficulty.
    """
    found = {}
    for place, row in _rows(path, Faults("difficulty", "fail")):
        if not (index := _index(row)):
            raise UserError(place, "has no `index`", "add it: it says which instruction it is")
        found[index] = _number(row, "instruction_difficulty", place)
    return found


def read_leaderboard(path: Path) -> dict[str, dict[str, Any]]:
    """A leaderboard's rows by their model, which is in its first column, as published."""
    found = {}
    for _, row in _rows(path, Faults("published", "fail")):
        model = next(iter(row.values()))
        found[str(model)] = row
    return found


def compare(annotations: Sequence[Annotation], difficulties: Mapping[str, float]) -> Comparisons:
    """A model's comparisons as arrays.

    The difficulty is that of the row's own `index`. The reference joins it by the row's position,
    so that the published values of models with missing rows are of other difficulties.

    Args:
        difficulties: by index; without any, all are zero.

    Raises:
        UserError: an instruction has no difficulty.
    """
    for one in annotations:
        if difficulties and one.index not in difficulties:
            raise UserError(one.place, f"its index {quote(one.index)} has no difficulty",
                            "add it to the file of --difficulty, or leave that flag out")
    columns = [[one.preference, one.length, one.baseline_length, difficulties.get(one.index, 0.0)]
               for one in annotations]
    return Comparisons(*np.array(columns, np.float64).T)


def _rows(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in find_files(path):
        for place, row in read_rows(file):
            if isinstance(row, Damaged):
                faults.add(row.reason, place, row.what)
            else:
                yield place, row


def _index(row: Mapping[str, Any]) -> str:
    """What marks the instruction: `eval.judge` has the mark of its text as the index."""
    if "index" in row:
        return str(row["index"])
    text = row.get("instruction")
    return mark_question([Message("user", text)]) if isinstance(text, str) else ""


def _preference(row: Mapping[str, Any], place: str) -> float | None:
    """The probability that the model's answer is better; None where there is none."""
    for column, first in (("preference", 1.0), (SHARES, 0.0)):
        if column not in row:
            continue
        text = row[column]
        value = math.nan if text in (None, "") else _number(row, column, place)
        if math.isnan(value):
            return None
        if first == 1.0 and value in DRAWS:
            return 0.5
        if not first <= value <= first + 1:
            raise UserError(f"{place}, {column}={value}", f"is not from {first:g} to {first + 1:g}",
                            "1 prefers the baseline and 2 the model; leave it empty where the "
                            "judge gave no verdict")
        return value - first
    raise UserError(place, "has no `preference`", f"its columns are {', '.join(map(str, row))}")


def _length(row: Mapping[str, Any], column: str, text: str, place: str) -> float:
    if column in row:
        return _number(row, column, place)
    if isinstance(row.get(text), str):
        return float(len(row[text]))
    raise UserError(place, f"has neither `{column}` nor the text `{text}`",
                    "add one of them: the win rate is controlled for lengths")


def _number(row: Mapping[str, Any], column: str, place: str) -> float:
    try:
        return float(row[column])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{place}, {column}={quote(row.get(column))}", "is no number",
                        "correct this row, or remove it") from None
