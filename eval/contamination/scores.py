"""Scores of an evaluation on clean and on contaminated items, side by side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.artifacts import read_jsonl
from core.errors import UserError, require_file
from data.contamination.task_files import Item
from data.dedup.words import normalise_words
from eval.records import Record, verdict
from eval.statistics import Estimate, estimate_share

NOT_TASKS = ("open.jsonl",)     # sampled answers, without a verdict


def read_results(folder: Path) -> dict[str, list[Record]]:
    """The records of `python -m eval.run`, by task; or of one file of them.

    Raises:
        UserError: there is no such folder, or no record with a question and a verdict in it.
    """
    remedy = "name the folder that python -m eval.run wrote"
    folder = require_file("--results", folder, remedy)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    read = {path.stem: read_jsonl(path) for path in files if path.name not in NOT_TASKS}
    found = {task: rows for task, rows in read.items() if rows and all(map(_is_judged, rows))}
    if not found:
        raise UserError(f"--results={folder}", "holds no records of items", remedy)
    return found


def _is_judged(record: Record) -> bool:
    return "question" in record and ("score" in record or "judged_by" in record)


def join_results(results: Mapping[str, Sequence[Record]],
                 items: Sequence[Item]) -> dict[str, list[tuple[Record, list[int]]]]:
    """The records of each task whose questions are items, each with the numbers of these.

    A record is joined with items that have its question, case, spaces and punctuation aside, as a
    field, or as their fields in succession. Tasks of which no question is an item are left out.

    Raises:
        UserError: no question of any is an item.
    """
    numbers: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        for key in {_key(text) for text in (*item.fields, "\n".join(item.fields))} - {()}:
            numbers[key].append(number)
    joined = {task: [(record, numbers.get(_key(record["question"]), [])) for record in records]
              for task, records in results.items()}
    joined = {task: rows for task, rows in joined.items() if any(held for _, held in rows)}
    if not joined:
        raise UserError("--results", f"no question of {', '.join(results)} is an item of the tasks "
                        "that are searched for", "name the results of the same tasks")
    return joined


def _key(text: str) -> tuple[str, ...]:
    return tuple(normalise_words(text, keep_digits=True))


def split_scores(joined: Mapping[str, Sequence[tuple[Record, list[int]]]],
                 dirty: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Scores on all, clean and dirty items of each task, by rule.

    An item that stands for several, of one question, is dirty if one of them is.

    Args:
        dirty: which items are contaminated, by rule.

    Returns:
        By task `all`, `unmatched`, the number of records that are no items and count in no score,
        and `rules`: by rule `clean`, `dirty` and `difference`, dirty less clean, None without
        items.
    """
    tasks = {}
    for task, rows in joined.items():
        held = [(verdict(record), numbers) for record, numbers in rows if numbers]
        scores = np.array([score for score, _ in held])
        tasks[task] = {"all": _describe(scores), "unmatched": len(rows) - len(held), "rules": {}}
        for rule, mask in dirty.items():
            is_dirty = np.array([mask[numbers].any() for _, numbers in held])
            tasks[task]["rules"][rule] = compare(scores[~is_dirty], scores[is_dirty])
    return tasks


def compare(clean: np.ndarray, dirty: np.ndarray) -> dict[str, Any]:
    """Mean scores on two sets of items, and the difference with a 95 % interval.

    The interval is Newcombe's tenth (Statistics in Medicine 17, 1998), of the two Wilson intervals.
    """
    parts = {"clean": _describe(clean), "dirty": _describe(dirty)}
    if not (len(clean) and len(dirty)):
        return parts | {"difference": None}
    one, other = estimate_share(dirty), estimate_share(clean)
    value = one.value - other.value
    return parts | {"difference": {
        "value": value,
        "low": value - math.hypot(one.value - one.low, other.high - other.value),
        "high": value + math.hypot(one.high - one.value, other.value - other.low)}}


def _describe(scores: np.ndarray) -> dict[str, Any] | None:
    if not len(scores):
        return None
    found: Estimate = estimate_share(scores)
    return {"value": found.value, "low": found.low, "high": found.high, "items": found.items}
