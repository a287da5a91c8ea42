"""What a page sends, checked field by field, and the refusals that it reads."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from core.errors import quote

MAX_BODY_BYTES = 1 << 20
MAX_NAME_CHARS, MAX_REASON_CHARS, MAX_TEXT_CHARS = 40, 2_000, 200_000
NAME = re.compile(rf"[\w.@+-](?:[\w .@+-]{{0,{MAX_NAME_CHARS - 2}}}[\w.@+-])?")
FLAGS = ("unsafe", "off topic", "wrong facts", "personal data")
SKIPS = ("unclear", "beyond my knowledge", "unsafe", "personal data", "broken text", "other")
MARK = re.compile(r"[0-9a-f]{16}")      # of items and of their order


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: for the annotator, on one line.
        code: a word that programs compare.
    """

    def __init__(self, status: int, message: str, code: str):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "code": code}}


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


def parse_body(body: bytes) -> dict[str, Any]:
    """The object that a body holds; raises `Refused` for what is no JSON object."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON ({str(error)[:100]})", "invalid_json") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is no JSON object", "invalid_json")
    return value


def parse_label(body: Mapping[str, Any]) -> Sent:
    """A label; raises `Refused`. Whether it fits its item is for `serve.labelling.work`."""
    fields = Fields(body)
    sent = Sent(**fields.head(), ranks=_parse_ranks(fields.take("ranks")),
                is_both_bad=fields.boolean("both_bad"), text=fields.text("text", MAX_TEXT_CHARS),
                reason=fields.text("reason", MAX_REASON_CHARS).strip(),
                flags=_parse_flags(fields.take("flags", [])))
    fields.end()
    return sent


def parse_skip(body: Mapping[str, Any]) -> Sent:
    """An item that is skipped, and why; raises `Refused`."""
    fields = Fields(body)
    head, reason = fields.head(), fields.take("reason")
    if reason not in SKIPS:
        raise wrong("reason", f"must be one of {', '.join(SKIPS)}")
    fields.end()
    return Sent(**head, reason=reason)


def parse_undo(body: Mapping[str, Any]) -> str:
    """Who undoes their last label; raises `Refused`."""
    fields = Fields(body)
    name = parse_name(fields.take("annotator"))
    fields.end()
    return name


def parse_name(value: Any) -> str:
    """An annotator's name without the space around it; raises `Refused` for what is none."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not NAME.fullmatch(name):
        raise Refused(400, f"annotator must be a name of at most {MAX_NAME_CHARS} letters, digits, "
                      "spaces and .@+-_", "no_name")
    return name


class Fields:
    """Reads the fields of an object, each once; what is left is refused by name."""

    def __init__(self, body: Mapping[str, Any]):
        self._rest = dict(body)

    def take(self, name: str, default: Any = None) -> Any:
        """A field as it is, which its reader checks."""
        return self._rest.pop(name, default)

    def text(self, name: str, max_chars: int) -> str:
        """A text that UTF-8 can hold, "" where there is none."""
        value = self.take(name, "")
        if not isinstance(value, str) or len(value) > max_chars:
            raise wrong(name, f"must be a text of at most {max_chars:,} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise wrong(name, "holds half a surrogate pair, which is no character") from None
        return value

    def boolean(self, name: str) -> bool:
        """True or false, false where it is absent."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise wrong(name, "must be true or false")
        return value

    def head(self) -> dict[str, str]:
        """Who speaks of which item, in which order of its answers."""
        head = {"annotator": parse_name(self.take("annotator"))}
        for name in ("item", "ticket"):
            head[name] = self.take(name)
            if not isinstance(head[name], str) or not MARK.fullmatch(head[name]):
                raise wrong(name, "must be 16 hex digits, as they were sent with the item")
        return head

    def end(self) -> None:
        """Raises `Refused` if a field was not read."""
        if self._rest:
            raise wrong(quote(next(iter(self._rest))).strip("'\""), "is no field of this request")


def wrong(name: str, rule: str) -> Refused:
    """The refusal of a field that breaks a rule, a predicate."""
    return Refused(400, f"{name} {rule}", "invalid_value")


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


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")
