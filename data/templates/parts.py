"""Conversations rendered by the chat template of their tokenizer, as parts.

Contents are data: the name of a special token that stands in a content never becomes that token.
Before a conversation is rendered, a character that occurs nowhere in it, the mark, is put into each
such name, and where a content begins or ends with a part of one. Of the rendered text, names
without a mark were written by the template, and the mark is removed as text is encoded.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from core.errors import UserError
from data.templates.template import open_template
from data.tokenizers.tokenizer import Tokenizer

MARKS = range(0xE000, 0xF900)       # private use: no text should need them all


class Part(NamedTuple):
    """A stretch of a rendered conversation.

    Attributes:
        tokens: its token ids.
        answer: an assistant's text, whose last token ends the turn; None for what lies between.
    """

    tokens: list[int]
    answer: str | None = None


def render_template(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, prompt: bool,
                    tools: Sequence[Mapping[str, Any]] = ()) -> list[Part]:
    """Renders messages with the tokenizer's chat template.

    Answers are encoded apart from what precedes them, as they are drawn apart from it.

    Args:
        messages: as `data.chat.Message.to_dict` makes them: all of each is given to the template.
        prompt: whether the start of a further answer follows. Answers are then parts of their own
            only if the template lets them be told apart.
        tools: that may be called, as OpenAI writes them; data, as contents are.

    Raises:
        UserError: the template refuses the conversation, fails, or exceeds its limits; or, without
            `prompt`, the rendering of some first messages is no prefix of that of all, or an answer
            does not end with a stop token of its own.
    """
    mark = _unused_mark([*messages, *tools], tokenizer.chat_template)
    stop_names = tokenizer.end_names
    names = tuple(dict.fromkeys((*tokenizer.specials, *stop_names)))
    marked = [_hide(message, names, mark) | {"role": message["role"]} for message in messages]
    places = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    template = open_template(tokenizer.chat_template, tokenizer.named)
    whole, *firsts = template.render([
        (marked, prompt), *((marked[:k], True) for k in places),
        *((marked[:k + 1], False) for k in places if not prompt)], _hide(tools, names, mark))
    stop = _any_of(stop_names)
    starts, answered = firsts[:len(places)], firsts[len(places):] or [whole] * len(places)
    edges = [0]
    for start, upto in zip(starts, answered):
        if fault := _find_fault(whole, start, upto, stop_names, begins_after=edges[-1]):
            if prompt:
                edges = [0]
                break
            raise UserError("the chat template", f"cannot be taught on: it {fault}",
                            "train with another chat_template.jinja, or name a template")
        edges += [len(start), stop.search(upto, len(start)).end()]
    parts = []
    for place, (begin, end) in enumerate(itertools.pairwise([*edges, len(whole)])):
        tokens = tokenizer.encode_rendered(whole[begin:end], mark, begins=not begin)
        answer = None
        if place % 2:
            answer = stop.sub("", whole[begin:end]).replace(mark, "")
        parts.append(Part(tokens, answer))
    return parts


def _find_fault(whole: str, start: str, upto: str, stop_names: tuple[str, ...], *,
                begins_after: int) -> str:
    """Why an answer cannot be found in a rendering, as a predicate; "" if it can.

    Args:
        whole: the rendering.
        start: the rendering of the messages before the answer, with the start of an answer.
        upto: that of the messages up to the answer, it included.
        stop_names: of the tokens that end a turn.
        begins_after: where the answer before it ends.
    """
    if not whole.startswith(start) or not whole.startswith(upto) or len(start) < begins_after:
        return "rewrites earlier turns when others follow"
    stop = _any_of(stop_names)
    if stop.search(upto, len(start)):
        return ""
    if stop.match(whole, len(upto)):
        return "leaves the token that ends an answer to the next message"
    return f"ends an answer with none of the tokens {', '.join(stop_names)}"


@functools.lru_cache(maxsize=4)
def _any_of(names: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, names)))


def hide_names(content: str, names: tuple[str, ...], mark: str) -> str:
    """A content with `mark` in all names of special tokens, and beside parts of them at its edges.

    Spaces around the content stay where they are, as many templates remove them.

    Raises:
        UserError: it holds a special token's name of one character, which no mark can break.
    """
    whole, heads, tails = _name_parts(names)
    while found := whole.search(content):
        if len(found[0]) == 1:
            raise UserError(f"a message with {found[0]!r}", "holds the name of a special token "
                            "that cannot be told from text", "remove it")
        content = f"{content[:found.start() + 1]}{mark}{content[found.start() + 1:]}"
    begin, end = len(content) - len(content.lstrip()), len(content.rstrip())
    if content.startswith(tails, begin):
        content, end = f"{content[:begin]}{mark}{content[begin:]}", end + 1
    if content.endswith(heads, 0, end):
        content = f"{content[:end]}{mark}{content[end:]}"
    return content


@functools.lru_cache(maxsize=4)
def _name_parts(names: tuple[str, ...]) -> tuple[re.Pattern, tuple[str, ...], tuple[str, ...]]:
    """All names, their proper beginnings and their proper ends."""
    cuts = [(name[:i], name[i:]) for name in names for i in range(1, len(name))]
    pattern = re.compile("|".join(map(re.escape, names)) or "(?!)")
    heads, tails = ({cut[side] for cut in cuts} for side in (0, 1))
    return pattern, tuple(heads), tuple(tails)


def _hide(value: Any, names: tuple[str, ...], mark: str) -> Any:
    """A value with `hide_names` applied to all texts in it."""
    if isinstance(value, str):
        return hide_names(value, names, mark)
    if isinstance(value, Mapping):
        return {hide_names(key, names, mark): _hide(item, names, mark)
                for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item, names, mark) for item in value]
    return value


def _unused_mark(messages: Sequence[Mapping[str, Any]], template: str) -> str:
    used = set(template).union(*_texts(messages))
    return next(mark for mark in map(chr, MARKS) if mark not in used)


def _texts(value: Any) -> Iterator[str]:
    """All texts in messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
