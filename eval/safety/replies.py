"""Files of items, and verdicts on replies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.layouts.faults import Faults
from data.layouts.rows import Damaged, find_files, read_rows
from eval.respond.responder import Reply
from eval.safety.items import EMPTY, failure_of
from eval.safety.refusal import classify_refusal

FAULT = "fault"     # the verdict on a reply that did not come, so that nothing is said of the model

Row = dict[str, Any]


def read_items(path: Path, faults: Faults, fields: Sequence[str]) -> Iterator[tuple[Path, Row]]:
    """The rows of a file, or of the files of a folder, that hold these fields as texts.

    Args:
        faults: counts rows that are damaged, lack a field (`missing_field`), or have an id that
            another row of their file has (`repeated_id`).

    Raises:
        UserError: there is no such file, or it holds no rows.
    """
    for file in find_files(path):
        seen = set()
        for place, row in read_rows(file):
            if isinstance(row, Damaged):
                faults.add(row.reason, place, row.what)
            elif missing := [name for name in fields if not isinstance(row.get(name), str)]:
                faults.add("missing_field", place, f"has no text {missing[0]!r}")
            elif (mark := row.get("id")) is not None and mark in seen:
                faults.add("repeated_id", place, f"has the id {mark} of another row")
            else:
                seen.add(mark)
                yield file, row


def judge_refusal(prompt: str, reply: Reply) -> str:
    """One of `eval.safety.refusal.VERDICTS`, `EMPTY`, or `FAULT`."""
    return FAULT if failure_of(reply) not in ("", EMPTY) else classify_refusal(prompt, reply.text)
