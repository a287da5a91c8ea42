"""What a page sends, checked field by field, and the refusals that it reads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from serve.web.errors import WebError, wrong
from serve.web.fields import Fields

MAX_BODY_BYTES = 1 << 20
MAX_NAME_CHARS, MAX_REASON_CHARS, MAX_TEXT_CHARS = 40, 2_000, 200_000
NAME = re.compile(rf"[\w.@+-](?:[\w .@+-]{{0,{MAX_NAME_CHARS - 2}}}[\w.@+-])?")
FLAGS = ("unsafe", "off topic", "wrong facts", "personal data")
SKIPS = ("unclear", "beyond my knowledge", "unsafe", "personal data", "broken text", "other")
MARK = re.compile(r"[0-9a-f]{16}")      # of items and of their order


@dataclasses.dataclass(frozen=True)
class Sent:
    """What an annotator says about an item.

    Attributes:
        ticket: marks the order in which the item's answers were shown.
        ranks: of the answers as they were shown, 1 for the best; None where there are none.
        is_both_bad: of two answers with equal ranks, that neither is good.
        text: the answer that was written; "" where there is none.
        reason: why, or why the item is skipped.
        flags: words of `FLAGS` for each answer as they were shown.
    """

    annotator: str
    item: str
    ticket: str
    ranks: tuple[int, ...] | None = None
    is_both_bad: bool = False
    text: str = ""
    reason: str = ""
    flags: tuple[tuple[str, ...], ...] = ()


def parse_label(body: Mapping[str, Any]) -> Sent:
    """A label; raises `WebError`. Whether it fits its item is for `serve.labelling.work`."""
    fields = Form(body)
    sent = Sent(**fields.head(), ranks=_parse_ranks(fields.take("ranks")),
                is_both_bad=fields.boolean("both_bad"),
                text=fields.long_text("text", MAX_TEXT_CHARS),
                reason=fields.long_text("reason", MAX_REASON_CHARS).strip(),
                flags=_parse_flags(fields.take("flags", [])))
    fields.end()
    return sent


def parse_skip(body: Mapping[str, Any]) -> Sent:
    """An item that is skipped, and why; raises `WebError`."""
    fields = Form(body)
    head, reason = fields.head(), fields.take("reason")
    if reason not in SKIPS:
        raise wrong("reason", f"must be one of {', '.join(SKIPS)}")
    fields.end()
    return Sent(**head, reason=reason)


def parse_undo(body: Mapping[str, Any]) -> str:
    """Who undoes their last label; raises `WebError`."""
    fields = Form(body)
    name = parse_name(fields.take("annotator"))
    fields.end()
    return name


def parse_name(value: Any) -> str:
    """An annotator's name without the space around it; raises `WebError` for what is none."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not NAME.fullmatch(name):
        raise WebError(400, f"annotator must be a name of at most {MAX_NAME_CHARS} letters, "
                       "digits, spaces and .@+-_", "no_name")
    return name


class Form(Fields):
    """The fields of what a page sends."""

    def long_text(self, name: str, max_chars: int) -> str:
        """A text, "" where there is none."""
        text = self.text(name, "")
        if len(text) > max_chars:
            raise self.wrong(name, f"must be a text of at most {max_chars:,} characters")
        return text

    def head(self) -> dict[str, str]:
        """Who speaks of which item, in which order of its answers."""
        head = {"annotator": parse_name(self.take("annotator"))}
        for name in ("item", "ticket"):
            head[name] = self.take(name)
            if not isinstance(head[name], str) or not MARK.fullmatch(head[name]):
                raise wrong(name, "must be 16 hex digits, as they were sent with the item")
        return head


def _parse_ranks(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(rank) is int for rank in value):
        raise wrong("ranks", "must be a list of whole numbers")
    return tuple(value)


def _parse_flags(value: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list) or not all(
            isinstance(words, list) and all(word in FLAGS for word in words) for words in value):
        raise wrong("flags", f"must be a list of words for each answer, of {', '.join(FLAGS)}")
    return tuple(tuple(word for word in FLAGS if word in words) for words in value)
