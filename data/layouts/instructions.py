"""Instructions with their input and output apart, from files in the layout `alpaca`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from data.layouts.chats import has_alpaca, read_alpaca
from data.layouts.faults import Faults
from data.layouts.rows import Damaged, find_files, read_rows
from data.layouts.turns import Fault
from data.readers import conversations


class Instruction(NamedTuple):
    """A solved task: what to do, the text to do it with ("" if there is none), and the answer."""

    instruction: str
    input: str
    output: str


def read_instructions(path: Path, faults: Faults) -> Iterator[Instruction]:
    """Reads the instructions of a file, or of the files of a folder, as a stream.

    A row holds `instruction`, `input` and `output` (Alpaca), or `instruction` and one of
    `instances` (Self-Instruct).

    Args:
        faults: counts the rows that are damaged or hold no such instruction.

    Raises:
        UserError: there is no such file, or it holds no instruction; or, by the rule of `faults`,
            at the first fault.
    """
    num = 0
    for file in find_files(path):
        for place, row in read_rows(file):
            try:
                instruction = _read_row(row)
            except Fault as fault:
                faults.add(fault.reason, place, fault.what)
                continue
            num += 1
            yield instruction
    if not num:
        faults.report()
        raise UserError(str(path), "holds no instruction", 'write {"instruction": "...", "input": '
                        '"", "output": "..."}, a row a line')


def _read_row(row: Damaged | Mapping[str, Any]) -> Instruction:
    if isinstance(row, Damaged):
        raise Fault(row.reason, row.what)
    if not has_alpaca(row):
        raise Fault("other_layout", f"holds no instruction (fields: {', '.join(map(str, row))})")
    answer = read_alpaca(row).messages[-1].content
    if not answer.strip():
        raise Fault("empty_answer", "has no text to learn from")
    fields = {**row, **row["instances"][0]} if isinstance(row.get("instances"), list) else row
    given = next((fields[name] for name in conversations.INPUT_FIELDS
                  if isinstance(fields.get(name), str)), "")
    return Instruction(row["instruction"].strip(), given.strip(), answer.strip())
