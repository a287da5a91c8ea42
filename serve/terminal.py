"""What a user types or pipes in: one message after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from core.progress import log

PROMPT = "> "


def read_terminal() -> Iterator[str]:
    """Messages that are typed, until Ctrl-D.

    They can be edited, also over several lines (Alt-Enter begins a new one), and recalled with the
    arrow keys, those of earlier chats too; what is pasted is one message.
    """
    # It takes a while to import, and a pipe does without.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    file = _history_file()
    session = PromptSession(PROMPT, multiline=True, key_bindings=keys,
                            prompt_continuation=" " * len(PROMPT),
                            history=FileHistory(file) if file else InMemoryHistory())
    while True:
        try:
            text = session.prompt().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            log("Ctrl-D or /quit exits")
            continue
        if text:
            yield text


def read_pipe(as_one: bool) -> Iterator[str]:
    """Messages of the standard input, a line each; blank lines are none.

    Args:
        as_one: whether all of it is one message instead.
    """
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    for text in [sys.stdin.read()] if as_one else sys.stdin:
        if text := text.strip():
            yield text


def _history_file() -> Path | None:
    """The file of earlier messages, for this user alone; None if there is no place for it.

    It is in `~/.local/state`, or where the XDG base directory specification has it.
    """
    states = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    file = Path(states) / "heartwood" / "chat_history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError as error:
        log(f"{file}: {error.strerror.lower()}: messages are recalled until the chat ends")
        return None
    return file
