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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.errors import UserError
from data.templates.template import open_template
from data.tokenizers.huggingface import HuggingFaceTokenizer

MARKS = range(0xE000, 0xF900)       # private use: no text should need them all


class Part(NamedTuple):
    """A stretch of a rendered conversation.

    Attributes:
        tokens: its token ids.
        answer: an assistant's text, whose last token ends the turn; None for what lies between.
    """

    tokens: list[int]
    answer: str | None = None


def render_template(messages: Sequence[Mapping[str, str]], tokenizer: HuggingFaceTokenizer, *,
                    prompt: bool) -> list[Part]:
    """Renders messages with the tokenizer's chat template.

    Answers are encoded apart from what precedes them, as they are drawn apart from it.

    Args:
        prompt: whether the start of a further answer follows. Answers are then parts of their own
            only if the template lets them be told apart.

    Raises:
        UserError: the template refuses the conversation, fails, or exceeds its limits; or, without
            `prompt`, the rendering of some first messages is no prefix of that of all, or an answer
            is followed by no stop token.
    """
    mark = _unused_mark(messages, tokenizer.chat_template)
    stop_names = (tokenizer.end_name, *tokenizer.stop_names)
    names = tuple(dict.fromkeys((*tokenizer.specials, *stop_names)))
    marked = [{**message, "content": hide_names(message["content"], names, mark)}
              for message in messages]
    places = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    template = open_template(tokenizer.chat_template, tokenizer.named)
    whole, *firsts = template.render([
        (marked, prompt), *((marked[:k], True) for k in places),
        *((marked[:k + 1], False) for k in places if not prompt)])
    edges = [0]
    if all(map(whole.startswith, firsts)):
        stop = re.compile("|".join(map(re.escape, stop_names)))
        for first in firsts[:len(places)]:
            found = stop.search(whole, len(first))
            edges += [len(first), found.end()] if found else []
    if len(edges) == 1 + 2 * len(places) and edges == sorted(edges):
        edges.append(len(whole))
    elif prompt:
        edges = [0, len(whole)]
    else:
        raise UserError("the chat template", "cannot be taught on: it rewrites earlier turns when "
                        "others follow, or ends an answer with none of the tokens "
                        f"{', '.join(stop_names)}", "train with another chat_template.jinja")
    parts = []
    for place, (begin, end) in enumerate(itertools.pairwise(edges)):
        tokens = tokenizer.encode_rendered(whole[begin:end], mark, begins=not begin)
        answer = None
        if place % 2:
            answer = stop.sub("", whole[begin:end]).replace(mark, "")
        parts.append(Part(tokens, answer))
    return parts


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


def _unused_mark(messages: Sequence[Mapping[str, str]], template: str) -> str:
    used = set(template).union(*(message["content"] for message in messages))
    return next(mark for mark in map(chr, MARKS) if mark not in used)
