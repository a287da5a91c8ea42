"""Conversations, preferences and labels from files in the layouts of `data.layouts.table`."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.chat import Conversation
from data.layouts.faults import Faults
from data.layouts.orders import label_responses
from data.layouts.rows import Damaged, find_files, log_once, name_of, read_rows
from data.layouts.table import LAYOUTS, find_layout
from data.layouts.turns import Fault
from data.preferences import Labelled, Preference

KINDS = ("conversations", "preferences", "labels")
HEAD_ROWS = 64          # of a file, from which its layout is recognised
MAX_NAMES = 12          # of fields, in a message
USES = {"conversations": "supervised fine-tuning (align.sft)",
        "preferences": "preference losses (align.dpo) and reward models",
        "labels": "the loss of labelled answers (KTO)"}

Item = Conversation | Preference | Labelled


def read_examples(path: Path, kind: str, *, layout: str = "", faults: Faults) -> Iterator[Item]:
    """Reads a file, or the files of a folder in their order, as a stream.

    Each item's `meta` holds its place. Its source, of a conversation in its `meta`, is the file's
    name without endings, unless a row of preferences names one itself.

    Args:
        kind: what is needed: one of `KINDS`. Preferences give labels, too: each best response is
            good, each other one is not.
        layout: of the rows, a name of `LAYOUTS`; "" recognises each file's by its first rows.
        faults: counts the rows that are damaged, of another layout, or no such item.

    Raises:
        UserError: there is no such file or layout, or the file is of another kind or layout, or
            not one row of it could be read; or, by the rule of `faults`, at the first fault.
    """
    if layout and layout not in LAYOUTS:
        raise UserError(f"layout={layout!r}", f"is none of {', '.join(LAYOUTS)}",
                        "choose one of them, or leave it empty to have it recognised")
    files, num_items = find_files(path), 0
    for file in files:
        for item in _read_file(file, kind, layout, faults, is_alone=len(files) == 1):
            num_items += 1
            yield item
    if not num_items:
        raise UserError(str(path), "holds no row", "give files with at least one")


def _read_file(file: Path, kind: str, layout: str, faults: Faults,
               is_alone: bool) -> Iterator[Item]:
    found, head, rows = read_rows(file), [], []
    for place, row in found:
        head.append((place, row))
        rows += [] if isinstance(row, Damaged) else [row]
        if len(rows) == HEAD_ROWS:
            break
    name = layout or _recognise(rows)
    if not is_alone and len(head) == 1 and rows and find_layout(rows[0]) is None:
        log_once(f"{file}: describes the other files and is not read")
        return
    if rows:
        _check_layout(file, rows, kind, name, layout)
        log_once(f"{file}: its layout is {name}")
    num_items, mine, source = 0, _Counted(faults), name_of(file)
    for place, row in itertools.chain(head, found):
        for item in _read_row(row, kind, name, place, mine):
            num_items += 1
            yield _place(item, place, source)
    if mine.first and not num_items:
        raise UserError(str(file), f"not one of its {mine.num_faults:,} rows could be read, as "
                        f"{mine.first}{_describe(rows)}",
                        f"correct it, or name its layout among {', '.join(LAYOUTS)}")


class _Counted:
    """Passes faults on, and keeps their number and the first."""

    def __init__(self, faults: Faults):
        self._faults, self.num_faults, self.first = faults, 0, ""

    def add(self, reason: str, place: str, what: str) -> None:
        self.num_faults += 1
        self.first = self.first or f"{place.rpartition(', ')[2]} {what}"
        self._faults.add(reason, place, what)


def _recognise(rows: Sequence[dict[str, Any]]) -> str:
    """The layout of most of the first rows, of equally many that of the earlier row; or ""."""
    votes = Counter(filter(None, map(find_layout, rows)))
    return votes.most_common(1)[0][0] if votes else ""


def _check_layout(file: Path, rows: Sequence[dict[str, Any]], kind: str, name: str,
                  layout: str) -> None:
    """Raises `UserError` where a file's rows have no layout, another one, or are another kind."""
    if not name:
        raise UserError(str(file), f"its rows are in no known layout{_describe(rows)}",
                        f"bring them into one of {', '.join(LAYOUTS)}")
    if layout and not any(map(LAYOUTS[layout].recognise, rows)):
        found = _recognise(rows)
        raise UserError(str(file), f"its rows are not in the layout {layout}{_describe(rows)}",
                        f"name the layout {found}" if found else
                        f"bring them into one of {', '.join(LAYOUTS)}")
    kinds = LAYOUTS[name].kinds
    if kind not in kinds:
        other = next((other for row in rows for other, one in LAYOUTS.items()
                      if kind in one.kinds and one.recognise(row) and _can_read(other, row)), "")
        raise UserError(str(file), f"holds {kinds[0]} (layout {name}), not {kind}",
                        f"use it for {USES[kinds[0]]}" + (
                            f", or name the layout {other} to read that part of it as {kind}"
                            if other else ""))


def _can_read(name: str, row: dict[str, Any]) -> bool:
    try:
        LAYOUTS[name].read(row)
    except Fault:
        return False
    return True


def _read_row(row: Any, kind: str, name: str, place: str, faults: _Counted) -> Sequence[Item]:
    """The items of a row: one, or a label for each response, or none and a fault."""
    if isinstance(row, Damaged):
        faults.add(row.reason, place, row.what)
        return []
    try:
        if not LAYOUTS[name].recognise(row):
            found = find_layout(row)
            raise Fault("other_layout", f"is not in the file's layout {name}" + (
                f" but in {found}" if found else _describe([row])))
        item = LAYOUTS[name].read(row)
        is_labelled = kind == "labels" and isinstance(item, Preference)
        return label_responses(item) if is_labelled else [item]
    except Fault as fault:
        faults.add(fault.reason, place, fault.what)
        return []


def _place(item: Item, place: str, source: str) -> Item:
    if isinstance(item, Conversation):
        return dataclasses.replace(item, meta={**item.meta, "place": place, "source": source})
    return dataclasses.replace(item, meta={**item.meta, "place": place},
                               source=item.source or source)


def _describe(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    listed = ", ".join(map(str, names[:MAX_NAMES])) + (", ..." if len(names) > MAX_NAMES else "")
    return f" (fields: {listed})" if names else ""
