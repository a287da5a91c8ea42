"""Renders conversations as documents: one paragraph per turn, with its role.

Turns may be messages with roles, pairs of a question and an answer, or strings of the user and the
assistant in turn. A turn without a content, an image for example, is left out; a call of a tool is
rendered as ``name(arguments)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DOMAIN = "conversations"
FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from", "speaker"), ("content", "value", "text")
ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant",
         "bard": "assistant", "model": "assistant", "bot": "assistant",
         "ai": "assistant", "function_call": "assistant", "tool_call": "assistant",
         "observation": "tool", "function": "tool", "tool_response": "tool", "prompter": "user",
         "developer": "system"}     # other names of roles
PAIRS = (("user", "assistant"), ("prompt", "response"), ("prompt", "completion"),
         ("instruction", "output"), ("instruction", "response"), ("question", "answer"),
         ("question", "response"), ("query", "response"), ("human", "assistant"), ("human", "gpt"))
INPUT_FIELDS = ("input", "context")         # of an instruction: Alpaca's, Dolly's
SYSTEM_FIELDS = ("system", "system_prompt")
PAIR_FIELDS = tuple(dict.fromkeys([*(name for pair in PAIRS for name in pair), *INPUT_FIELDS,
                                   *SYSTEM_FIELDS]))


def render(messages: Any, system: Any = None) -> str | None:
    """A conversation as text, ``Role: content`` separated by blank lines; None for other values.

    Args:
        messages: a list of turns, or its JSON; or lists by field, as Hugging Face's older data
            sets have them.
        system: what comes first if the turns hold no message of that role.
    """
    messages = list_turns(messages)
    if messages is None:
        return None
    turns = []
    for number, message in enumerate(messages):
        parts = _read_turns(message, number)
        if parts is None:
            return None
        turns += parts
    if isinstance(system, str) and not any(role == "system" for role, _ in turns):
        turns.insert(0, ("system", system))
    return "\n\n".join(f"{role.capitalize()}: {content.strip()}" for role, content in turns
                       if content.strip())


def list_turns(messages: Any) -> list[Any] | None:
    """The turns of a conversation that is a list, its JSON, or lists by field; None for others."""
    if isinstance(messages, str):
        messages = parse_text(messages)
    if isinstance(messages, dict) and all(isinstance(part, list) for part in messages.values()):
        messages = [dict(zip(messages, values)) for values in zip(*messages.values())]
    return messages if isinstance(messages, list) else None


def render_pair(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """Fields and text of a question and its answer; None where a row has no such fields."""
    for asks, answers in PAIRS:
        turns = row.get(asks), row.get(answers)
        if asks not in row or answers not in row or turns == (None, None):
            continue
        system = next((name for name in SYSTEM_FIELDS if isinstance(row.get(name), str)), None)
        given = next((name for name in INPUT_FIELDS if isinstance(row.get(name), str)), None)
        question, answer = turns
        if isinstance(question, list) and isinstance(answer, list):     # of messages
            text = render([*question, *answer], row.get(system))
        else:
            if given and isinstance(question, str):
                question = f"{question.rstrip()}\n\n{row[given]}"
            text = render([{"role": "user", "content": question},
                           {"role": "assistant", "content": answer}], row.get(system))
        if text is not None:
            return tuple(name for name in (asks, given, answers, system) if name), text
    return None


def _read_turns(message: Any, number: int) -> list[tuple[str, str]] | None:
    """Roles and contents of an element of a conversation; None if it is no turn."""
    if isinstance(message, str):
        return [(("user", "assistant")[number % 2], message)]
    if not isinstance(message, Mapping):
        return None
    role = next((message[name] for name in ROLE_FIELDS if message.get(name)), None)
    if role is None:
        pair = next(((asks, answers) for asks, answers in PAIRS
                     if asks in message and answers in message), None)
        contents = [content_text(message[name]) for name in pair or ()]
        if not pair or None in contents:
            return None
        return list(zip(("user", "assistant"), contents))
    content = content_text(next((message[name] for name in CONTENT_FIELDS
                                 if message.get(name) is not None), None))
    if not isinstance(role, str) or content is None:
        return None
    calls = message.get("tool_calls") or message.get("function_call") or ()
    calls = parse_text(calls) if isinstance(calls, str) else calls
    lines = [content, *map(_call_text, [calls] if isinstance(calls, Mapping) else calls or ())]
    role = role.lower()
    return [(ROLES.get(role, role), "\n".join(filter(None, lines)))]


def content_text(content: Any) -> str | None:
    """The text of a message's content: a string, null, or parts; None for other values."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    return "\n".join(filter(None, map(_part_text, content)))


def _part_text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    if part.get("type") == "tool_use":
        return _call_text(part)
    text = part.get("text") if part.get("text") is not None else part.get("content")
    return content_text(text)


def _call_text(call: Any) -> str | None:
    function = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments = function.get("arguments", function.get("input"))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str) if arguments else ""
    return f"{function['name']}({arguments})"


def parse_text(text: str) -> Any:
    """The value of a text that is JSON; None for other texts."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
