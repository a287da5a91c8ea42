"""Prompts from files of any layout: what comes before the last answer, which may be missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.chat import Conversation, Message
from data.layouts.chats import system_of, turns_of
from data.layouts.faults import Faults
from data.layouts.orders import PROMPTS
from data.layouts.rows import Damaged, find_files, name_of, read_rows
from data.layouts.table import LAYOUTS, find_layout
from data.layouts.turns import Fault, check_prompt, read_messages, read_prompt


def read_prompts(path: Path, faults: Faults) -> Iterator[Conversation]:
    """Reads the prompts of a file, or of the files of a folder, as a stream.

    A row is in a layout of `data.layouts.table`, or has no answer: messages that end with the
    user's, or a text or transcript as ``prompt``, ``instruction``, ``question`` or ``query``.

    Args:
        faults: counts the rows that are damaged or hold no prompt.

    Returns:
        Conversations whose last message is the user's. Their `meta` has `place`, `source` (the
        file's name) and, where the row has one answer, its text as `answer`.

    Raises:
        UserError: there is no such file, or it holds no prompt; or, by the rule of `faults`, at
            the first fault.
    """
    num_prompts = 0
    for file in find_files(path):
        for place, row in read_rows(file):
            try:
                if isinstance(row, Damaged):
                    raise Fault(row.reason, row.what)
                messages, answer = _read_row(row)
            except Fault as fault:
                faults.add(fault.reason, place, fault.what)
                continue
            num_prompts += 1
            meta = {"place": place, "source": name_of(file)}
            yield Conversation(messages, meta if answer is None else meta | {"answer": answer})
    if not num_prompts:
        faults.report()
        raise UserError(str(path), "holds no prompt", 'write {"prompt": "..."} or {"messages": '
                        '[{"role": "user", "content": "..."}]}, a row a line')


def _read_row(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str | None]:
    """The messages of a row's prompt, and its answer if it has one."""
    layout, answer = find_layout(row), None
    if layout in (None, "messages", "sharegpt"):
        messages = _read_turns(row)
    else:
        item = LAYOUTS[layout].read(row)
        messages = (item if isinstance(item, Conversation) else item.prompt).messages
    if messages[-1].role == "assistant":
        *messages, last = messages
        answer = last.content or None
    check_prompt(messages)
    if messages[-1].role not in ("user", "tool"):
        raise Fault("no_question", "its prompt does not end with a message of the user")
    if not any(message.content.strip() for message in messages if message.role == "user"):
        raise Fault("empty_question", "asks nothing")
    return tuple(messages), answer


def _read_turns(row: Mapping[str, Any]) -> list[Message]:
    if found := turns_of(row):
        return read_messages(found[1], found[0], system_of(row))
    field = next((name for name in PROMPTS if name in row), None)
    if field is None:
        raise Fault("other_layout", f"holds no prompt (fields: {', '.join(map(str, row))})")
    return read_prompt(row[field], field, system_of(row))
