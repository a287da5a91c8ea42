"""Turns of a conversation as others write them, read into messages; and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.chat import ROLES, Message
from data.readers import conversations

# Where a turn of a transcript begins: Anthropic's, and that of datasets made from OpenAssistant.
MARKERS = (re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):"),
           re.compile(r"### ?(Human|Assistant):"))
CALLS = ("function_call", "tool_call")      # roles whose content is a call


class Fault(Exception):
    """Why a row teaches nothing or cannot be read.

    Args:
        reason: a word by which such rows are counted.
        what: the reason in words, a predicate of the row.
    """

    def __init__(self, reason: str, what: str):
        super().__init__(what)
        self.reason, self.what = reason, what


def read_messages(value: Any, field: str, system: Any = None) -> list[Message]:
    """The messages of a list of turns with roles, in OpenAI's or in ShareGPT's form, or its JSON.

    A content that is null is empty where the message calls tools. Calls have OpenAI's form,
    whichever form they had.

    Args:
        field: of the row, for messages.
        system: the content of a first message if the turns hold none of this role.

    Raises:
        Fault: it is no list of turns, a role is unknown, or a content is no text.
    """
    turns = conversations.list_turns(value)
    if not turns:
        raise Fault("no_messages", f"`{field}` holds no list of messages")
    messages = [_read_turn(turn, f"{field}[{place}]") for place, turn in enumerate(turns)]
    return with_system(messages, system)


def with_system(messages: list[Message], system: Any) -> list[Message]:
    """The messages, after a system message if `system` is a text and they hold none."""
    is_needed = isinstance(system, str) and system.strip() and all(
        message.role != "system" for message in messages)
    return [Message("system", system), *messages] if is_needed else messages


def read_prompt(value: Any, field: str, system: Any = None) -> list[Message]:
    """The messages of a prompt: a question, a transcript that awaits an answer, or messages.

    Raises:
        Fault: see `read_messages`; or it is empty.
    """
    if value is None:
        raise Fault("no_question", f"`{field}` is null")
    if isinstance(value, list | Mapping) or _is_json(value):
        return read_messages(value, field, system)
    if not is_transcript(value):
        return with_system([Message("user", check_text(value, field))], system)
    messages = read_transcript(value)
    awaits = len(messages) > 1 and messages[-1] == Message("assistant", "")
    return with_system(messages[:-1] if awaits else messages, system)


def read_answer(value: Any, field: str, *, after: Any = None) -> list[Message]:
    """The messages of an answer: a text, one message, or several of them.

    Args:
        after: the value of the prompt. The space between a transcript and its answer is none of
            the answer's.

    Raises:
        Fault: see `read_messages`.
    """
    if isinstance(value, Mapping):
        return [_read_turn(value, field)]
    if isinstance(value, list) or _is_json(value):
        return read_messages(value, field)
    text = check_text(value, field)
    return [Message("assistant", text.strip() if is_transcript(after) else text)]


def is_transcript(text: Any) -> bool:
    """Whether a text is turns after the words ``Human:`` and ``Assistant:``."""
    return isinstance(text, str) and any(
        found is not None and not text[:found.start()].strip() and "Assistant:" in text
        for found in (marker.search(text) for marker in MARKERS))


def read_transcript(text: str) -> list[Message]:
    """The messages of a transcript (`is_transcript`), without the space around their contents.

    Raises:
        Fault: it holds what is no text.
    """
    marker = MARKERS[text.lstrip().startswith("###")]
    _, *parts = marker.split(check_text(text, "the transcript"))
    return [Message("user" if role == "Human" else "assistant", content.strip())
            for role, content in zip(parts[::2], parts[1::2])]


def check_conversation(messages: Sequence[Message]) -> None:
    """Raises `Fault` for messages that do not ask and answer in turn, to the last answer."""
    check_prompt(messages[:-1] if messages[-1].role == "assistant" else messages)
    if messages[-1].role != "assistant":
        raise Fault("no_answer", "does not end with an answer of the assistant")
    check_answers(messages)


def check_prompt(messages: Sequence[Message]) -> None:
    """Raises `Fault` for messages that do not begin with a question, or leave one unanswered."""
    if not messages or messages[0].role == "assistant":
        raise Fault("no_question", "has no message before the answer")
    for place in range(len(messages) - 1):
        if messages[place].role == messages[place + 1].role == "user":
            raise Fault("no_answer", f"its message {place + 1} of the user has no answer of the "
                        "assistant before the next")


def check_answers(messages: Iterable[Message]) -> None:
    """Raises `Fault` where an answer of the assistant holds neither text nor calls."""
    for place, message in enumerate(messages, start=1):
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise Fault("empty_answer", f"its message {place}, of the assistant, is empty")


def check_text(value: Any, field: str) -> str:
    """The value if it is a text that can be encoded.

    Raises:
        Fault: it is not.
    """
    if not isinstance(value, str):
        raise Fault("no_text", f"`{field}` is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Fault("broken_text", f"`{field}` holds characters that no UTF-8 has") from None
    return value


def _is_json(text: Any) -> bool:
    """Whether a text is the JSON of messages, as CSV files have them, and not an answer in JSON."""
    turns = conversations.list_turns(text) if isinstance(
        text, str) and text.lstrip().startswith("[") else None
    return bool(turns) and all(isinstance(turn, Mapping) and any(
        name in turn for name in conversations.ROLE_FIELDS) for turn in turns)


def _read_turn(turn: Any, field: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Fault("no_messages", f"`{field}` is no message with role and content")
    name = next((turn[key] for key in conversations.ROLE_FIELDS if turn.get(key)), None)
    word = name.lower() if isinstance(name, str) else name
    role = conversations.ROLES.get(word, word) if isinstance(word, str) else None
    if role not in ROLES:
        raise Fault("unknown_role", f"`{field}` has the role {name!r}: roles are "
                    f"{', '.join(ROLES)}")
    if role == "assistant" and turn.get("weight", 1) == 0:  # OpenAI's: it is not to be learnt
        raise Fault("weight_zero", f"`{field}` has the weight 0, which conversations do not keep")
    content = next((turn[key] for key in conversations.CONTENT_FIELDS
                    if turn.get(key) is not None), None)
    if word in CALLS:
        return Message(role, "", _read_calls(content, field))
    given = turn.get("tool_calls") or turn.get("function_call")
    calls = _read_calls(given, field) if given else ()
    texts, uses = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, Mapping) and part.get("type") == "tool_use":
            uses.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, str):
            texts.append(part)
        elif part is not None or not calls:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Fault("no_text", f"`{field}` holds {kind} where a text should be"
                        if part is not None else f"`{field}` has no content")
    calls += _read_calls(uses, field) if uses else ()
    return Message(role, check_text("\n".join(texts), field), calls)


def _read_calls(given: Any, field: str) -> tuple[Mapping[str, Any], ...]:
    """Calls of tools as OpenAI writes them: ``{"type": "function", "function": {...}}``."""
    calls = conversations.parse_text(given) if isinstance(given, str) else given
    made = []
    for call in calls if isinstance(calls, list) and calls else [calls]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Fault("broken_call", f"`{field}` holds a call of a tool without a name")
        if function is not call:
            made.append(call)
            continue
        arguments = function.get("arguments", function.get("input", {}))
        identity = {"id": call["id"]} if call.get("id") else {}
        made.append({**identity, "type": "function",
                     "function": {"name": function["name"], "arguments": arguments}})
    return tuple(made)
