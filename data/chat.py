"""Conversations, and how they are rendered as tokens.

With a tokenizer of ours a conversation is <|bos|>, then for each turn <|role|> text <|end|>; with
that of another model it is what the model's own chat template makes of it. A template of
`data.templates.named` may be named instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from data.templates.named import NAMED, with_template
from data.templates.parts import Part, render_template
from data.tokenizers.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
TRAIN_ON = ("assistant", "all")
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant", "tool": "Tool"}


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str       # one of `ROLES`
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()      # of an assistant, as OpenAI writes them
    tool_call_id: str = ""      # of a tool's result: the call that it answers, where it is known

    def to_dict(self) -> dict[str, Any]:
        """The message as plain JSON: content null beside calls without a text, no empty calls."""
        if not self.tool_calls:
            answers = {"tool_call_id": self.tool_call_id} if self.tool_call_id else {}
            return {"role": self.role, "content": self.content} | answers
        return {"role": self.role, "content": self.content or None,
                "tool_calls": list(self.tool_calls)}


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order; `meta` may hold what a task needs to score an answer."""

    messages: tuple[Message, ...]
    meta: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        """The conversation as plain JSON."""
        return {"messages": [m.to_dict() for m in self.messages], "meta": dict(self.meta)}


def make_conversation(messages: Sequence[Mapping[str, Any]], where: str = "") -> Conversation:
    """Makes a conversation from plain dictionaries.

    Args:
        where: the place of the messages, for error messages.

    Raises:
        UserError: there is no message, or one lacks a role, or has an unknown one, or has neither
            a content nor calls of tools.
    """
    if not messages:
        raise UserError(f"{where}: messages".lstrip(": "), "holds no message",
                        'write [{"role": "user", "content": "..."}]')
    made = []
    for index, message in enumerate(messages):
        is_object = isinstance(message, Mapping)
        role = message.get("role") if is_object else None
        content = message.get("content") if is_object else None
        calls = (message.get("tool_calls") if is_object else None) or []
        if content is None and calls:
            content = ""
        if (role not in ROLES or not isinstance(content, str) or not isinstance(calls, list)
                or not all(isinstance(call, Mapping) for call in calls)):
            raise UserError(f"{where}: messages[{index}]".lstrip(": "),
                            f"needs a role among {', '.join(ROLES)} and text content, or calls of "
                            "tools", 'write {"role": "user", "content": "..."}')
        made.append(Message(role, content, tuple(calls)))
    return Conversation(tuple(made))


def ask(question: str, answer: str | None = None, **meta: object) -> Conversation:
    """A conversation of one question and, if given, its answer."""
    messages = [Message("user", question)]
    if answer is not None:
        messages.append(Message("assistant", answer))
    return Conversation(tuple(messages), meta)


def write_dialogue(messages: Sequence[Message]) -> str:
    """Messages in plain text, each behind its speaker, as a judge or a critic is shown them."""
    return "\n\n".join(f"{SPEAKERS[message.role]}: {message.content}" for message in messages)


def render(conversation: Conversation, tokenizer: Tokenizer, *, template: str = "",
           train_on: str = "assistant", is_cut: bool = False) -> tuple[list[int], list[float]]:
    """Renders a conversation.

    The rendering of the messages before an answer, and up to its end, is a prefix of the rendering
    of all. Contents are encoded as data, so that user text cannot produce a special token.

    Args:
        template: a name of `data.templates.named`; "" for the tokenizer's own.
        train_on: what is learned: what the assistant writes, or all but the first token.
        is_cut: whether the last answer ended at a limit and not by itself, so that the token that
            ends its turn is none to learn, nor what follows it.

    Returns:
        Token ids, and for each the weight of its loss as a *target*: with "assistant" 1 on the
        assistant's text and the token that ends its turn, 0 elsewhere.

    Raises:
        UserError: the tokenizer has no chat template; or its template refuses the conversation, or
            cannot be taught on.
    """
    if train_on not in TRAIN_ON:
        raise UserError(f"train_on={train_on!r}", f"is none of {', '.join(TRAIN_ON)}",
                        "choose one of them")
    tokens, weights, end = [], [], None
    for part in _render_parts(conversation, tokenizer, template, prompt=False):
        tokens += part.tokens
        is_learned = part.answer is not None or train_on == "all"
        weights += [float(is_learned)] * len(part.tokens)
        if part.answer is not None:
            end = len(tokens) - 1
    if train_on == "all":
        weights[:1] = [0.0] * len(weights[:1])      # nothing precedes it
    if is_cut and end is not None:
        weights[end:] = [0.0] * len(weights[end:])
    return tokens, weights


def check_teaches(tokenizer: Tokenizer) -> None:
    """Raises `UserError` if no answer can be taught with a tokenizer's template; see `render`."""
    render(ask("1 + 1?", "2"), tokenizer)


def render_prompt(conversation: Conversation, tokenizer: Tokenizer,
                  drawn: Sequence[Sequence[int]] = (), *, template: str = "",
                  tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Renders a conversation up to the start of the assistant's next answer.

    Args:
        drawn: the tokens as which the assistant's messages were once drawn, each without the one
            that ended it. They are kept where the rendering holds the same text, as a text may
            have several encodings.
        template: see `render`.
        tools: that may be called, as OpenAI writes them.

    Raises:
        UserError: see `render`; or the template has no place for tools.
    """
    parts = _render_parts(conversation, tokenizer, template, prompt=True, tools=tools)
    answers = iter(drawn)
    tokens: list[int] = []
    for part in parts:
        kept = None if part.answer is None else next(answers, None)
        if kept is not None and tokenizer.decode(kept) == part.answer:
            tokens += [*kept, part.tokens[-1]]
        else:
            tokens += part.tokens
    return tokens


def _render_parts(conversation: Conversation, tokenizer: Tokenizer, template: str, *,
                  prompt: bool, tools: Sequence[Mapping[str, Any]] = ()) -> list[Part]:
    tokenizer = with_template(tokenizer, template)
    if tokenizer.chat_template:
        messages = [message.to_dict() for message in conversation.messages]
        parts = render_template(messages, tokenizer, prompt=prompt, tools=tools)
        if not tools or parts != render_template(messages, tokenizer, prompt=prompt):
            return parts
    if tools:
        raise UserError("tools", "have no place in the model's chat template",
                        "leave them out, or name a model whose template has one")
    if not tokenizer.turn_tokens:
        raise UserError("the model's tokenizer", "has no chat template",
                        f"name one with template={', '.join(NAMED)}; or put a chat_template.jinja "
                        "beside its tokenizer.json and import it anew")
    return _render_turns(conversation, tokenizer, prompt)


def _render_turns(conversation: Conversation, tokenizer: Tokenizer, prompt: bool) -> list[Part]:
    parts, between = [], [tokenizer.bos]
    for message in conversation.messages:
        if message.tool_calls or message.role not in tokenizer.turn_tokens:
            raise UserError(f"a message of the role {message.role!r}", "or with calls of tools has "
                            "no token that begins its turn",
                            "leave it out, or name a template that has such turns")
        between.append(tokenizer.turn_tokens[message.role])
        content = [*tokenizer.encode(message.content), tokenizer.end]
        if message.role == "assistant":
            parts += [Part(between), Part(content, message.content)]
            between = []
        else:
            between += content
    return [*parts, Part([*between, tokenizer.turn_tokens["assistant"]] if prompt else between)]
