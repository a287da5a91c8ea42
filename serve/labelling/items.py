"""What is labelled: answers to compare, or prompts to answer, from files in any layout."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.artifacts import digest
from core.errors import UserError, quote
from data.chat import Conversation
from data.layouts.faults import Faults
from data.layouts.prompts import read_prompts
from data.layouts.rows import Damaged, find_files, read_rows
from data.layouts.table import LAYOUTS, find_layout
from data.layouts.turns import Fault
from data.preferences import Preference

COMPARE, WRITE = "compare", "write"
WORKS = (COMPARE, WRITE)
PAIR, RANK = "pair", "rank"     # kinds of comparison, by the number of answers
MAX_ANSWERS = 9                 # ranks are typed as one digit
# What the input's own label says about who gave it, and when: none of it is the new label's.
OLD_LABEL = ("annotator", "judge", "id", "time", "secs", "place", "models")


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt, and the answers to it that are compared; none where one is to be written.

    Attributes:
        finishes: how each answer ended; empty if unknown.
        models: who gave each answer; empty if unknown.
        meta: whatever else the input says, as plain JSON.
    """

    prompt: Conversation
    answers: tuple[str, ...] = ()
    finishes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What is done: `PAIR`, `RANK` or `WRITE`."""
        return {0: WRITE, 2: PAIR}.get(len(self.answers), RANK)

    @property
    def id(self) -> str:
        """Marks the item by its content, in whichever order the answers come."""
        return digest([self.prompt.to_dict()["messages"], sorted(self.answers)])

    def order(self, seed: int, annotator: str) -> list[int]:
        """The order in which an annotator sees the answers."""
        numbers = list(range(len(self.answers)))
        random.Random(f"{seed}/{annotator}/{self.id}").shuffle(numbers)
        return numbers


def read_items(path: Path, work: str | None, faults: Faults) -> dict[str, Item]:
    """The items of a file, or of the files of a folder, by their ids.

    Rows with answers are in a layout of preferences (`data.layouts.table`), whose order is not
    used, or hold `responses` that nobody ordered yet.

    Args:
        work: `COMPARE` the answers, or `WRITE` one to each prompt; None compares where the first
            row has answers to compare.
        faults: counts the rows that are damaged, hold no item, or one that came before.

    Raises:
        UserError: there is no such file, or no item in it.
    """
    read = _read_comparisons if (work or _find_work(path)) == COMPARE else _read_prompts
    items: dict[str, Item] = {}
    for place, item in read(path, faults):
        mark = item.id
        if mark in items:
            faults.add("repeated", place, "holds the same item as an earlier row")
        items.setdefault(mark, item)
    if not items:
        faults.report()
        raise UserError(f"--inputs={path}", "holds nothing to label", 'write {"messages": [...], '
                        '"responses": ["...", "..."]}, or {"prompt": "..."}, a row a line')
    return items


def _find_work(path: Path) -> str:
    for file in find_files(path):
        for _, row in read_rows(file):
            if not isinstance(row, Damaged):
                return COMPARE if _order(row) else WRITE
    return WRITE


def _order(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """A row of preferences and its layout; one of answers that nobody ordered yet gets equal ranks.

    None of others.
    """
    name = find_layout(row)
    if name and "preferences" in LAYOUTS[name].kinds:
        return name, row
    if isinstance(row.get("responses"), list):
        return "ranking", {**row, "ranks": [1] * len(row["responses"])}
    return None


def _read_comparisons(path: Path, faults: Faults) -> Iterator[tuple[str, Item]]:
    for file in find_files(path):
        for place, row in read_rows(file):
            try:
                yield place, _read_row(row)
            except Fault as fault:
                faults.add(fault.reason, place, fault.what)


def _read_row(row: Damaged | Mapping[str, Any]) -> Item:
    if isinstance(row, Damaged):
        raise Fault(row.reason, row.what)
    ordered = _order(row)
    if ordered is None:
        raise Fault("other_layout", "holds no answers to compare")
    name, row = ordered
    found: Preference = LAYOUTS[name].read(row)
    num = len(found.responses)
    if num > MAX_ANSWERS:
        raise Fault("too_many_answers", f"has {num} answers, more than {MAX_ANSWERS}")
    models = row.get("models", found.meta.get("models")) or []
    if (not isinstance(models, list) or len(models) not in (0, num)
            or not all(isinstance(model, str) for model in models)):
        raise Fault("broken_models", f"its models {quote(models)} are not one name for each answer")
    meta = {name: value for name, value in found.meta.items() if name not in OLD_LABEL}
    return Item(found.prompt, found.responses, found.finishes, tuple(models), meta)


def _read_prompts(path: Path, faults: Faults) -> Iterator[tuple[str, Item]]:
    for prompt in read_prompts(path, faults):
        yield str(prompt.meta["place"]), Item(Conversation(prompt.messages),
                                              meta={"source": prompt.meta["source"]})
