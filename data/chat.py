"""Conversations, and the one function that renders them as tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from core.errors import UserError
from data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str       # one of `ROLES`
    content: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order; `meta` may hold what a task needs to score an answer."""

    messages: tuple[Message, ...]
    meta: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        """The conversation as plain JSON."""
        return {"messages": [dataclasses.asdict(m) for m in self.messages], "meta": dict(self.meta)}


def make_conversation(messages: Sequence[Mapping[str, str]], where: str = "") -> Conversation:
    """Makes a conversation from plain dictionaries.

    Args:
        where: the place of the messages, for error messages.

    Raises:
        UserError: there is no message, or one lacks a role or content or has an unknown role.
    """
    if not messages:
        raise UserError(f"{where}: messages".lstrip(": "), "holds no message",
                        'write [{"role": "user", "content": "..."}]')
    made = []
    for index, message in enumerate(messages):
        is_object = isinstance(message, Mapping)
        role = message.get("role") if is_object else None
        content = message.get("content") if is_object else None
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"{where}: messages[{index}]".lstrip(": "),
                            f"needs a role among {', '.join(ROLES)} and text content",
                            'write {"role": "user", "content": "..."}')
        made.append(Message(role, content))
    return Conversation(tuple(made))


def ask(question: str, answer: str | None = None, **meta: object) -> Conversation:
    """A conversation of one question and, if given, its answer."""
    messages = [Message("user", question)]
    if answer is not None:
        messages.append(Message("assistant", answer))
    return Conversation(tuple(messages), meta)


def render(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Renders a conversation: <|bos|>, then for each turn <|role|> text <|end|>.

    The rendering of the first k messages is a prefix of the rendering of all. Contents are
    encoded as data, so that user text cannot produce a special token.

    Returns:
        Token ids, and for each the weight of its loss as a *target*: 1 on the
        assistant's text and its <|end|>, 0 elsewhere.
    """
    tokens, weights = [tokenizer.bos], [0.0]
    for message in conversation.messages:
        content = tokenizer.encode(message.content)
        weight = 1.0 if message.role == "assistant" else 0.0
        tokens += [tokenizer.special(f"<|{message.role}|>"), *content, tokenizer.end]
        weights += [0.0, *[weight] * len(content), weight]
    return tokens, weights


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Renders a conversation up to the start of the assistant's next answer."""
    tokens, _ = render(conversation, tokenizer)
    return [*tokens, tokenizer.special("<|assistant|>")]
