"""Renders conversations as documents: one paragraph per message, with its role."""

from __future__ import annotations

from typing import Any

DOMAIN = "conversations"
FIELDS = ("messages", "conversations")      # {role, content}, and ShareGPT's {from, value}
ROLES = {"human": "user", "gpt": "assistant", "bing": "assistant", "chatgpt": "assistant",
         "bard": "assistant"}               # ShareGPT's names


def render(messages: Any) -> str | None:
    """Messages as text, ``Role: content`` separated by blank lines; None for other values.

    Contents may be strings, or lists of parts, of which those with a text are used.
    """
    if not isinstance(messages, list):
        return None
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        role = message.get("role") or message.get("from")
        content = _text(message.get("content", message.get("value")))
        if not isinstance(role, str) or content is None:
            return None
        turns.append(f"{ROLES.get(role, role).capitalize()}: {content.strip()}")
    return "\n\n".join(turns)


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None
