"""Conversations, preferences and labels from files in the layouts of `data.layouts`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.json_text import read_lines
from data.chat import Conversation, ask, make_conversation
from data.layouts.faults import Faults
from data.preferences import Labelled, Preference, make_preference

KINDS = ("conversations", "preferences", "labels")


def read_examples(path: Path, kind: str, *, layout: str = "",
                  faults: Faults) -> Iterator[Conversation | Preference | Labelled]:
    """Reads a file or a folder of files.

    Args:
        kind: what is needed: one of `KINDS`.
        layout: of the rows, by its name; "" recognises it.
        faults: counts the rows that are none of this kind.
    """
    for place, row in read_lines(path):
        try:
            yield _make(row, kind, place, Path(path).stem)
        except UserError as error:
            faults.add("broken_row", place, str(error))


def _make(row: Any, kind: str, place: str, source: str) -> Conversation | Preference:
    if kind == "preferences":
        return make_preference(row, place)
    meta = {"place": place, "source": source}
    if "messages" in row:
        return Conversation(make_conversation(row["messages"], place).messages, meta)
    return ask(row["question"], row["answer"], **meta)
