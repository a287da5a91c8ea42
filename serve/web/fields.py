"""The fields of a request's body, each read once and checked; what is left is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from core.errors import quote
from serve.web.errors import WebError, wrong

MAX_INT64 = 2**63 - 1


def parse_body(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        WebError: it is no UTF-8, no JSON by RFC 8259 (which has neither NaN nor infinities), nested
            too deeply, or no object.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise WebError(400, f"the body is not UTF-8 text ({error.reason})",
                       code="invalid_utf8") from None
    except (ValueError, RecursionError) as error:
        raise WebError(400, f"the body is not JSON ({str(error)[:100]})",
                       code="invalid_json") from None
    if not isinstance(value, dict):
        raise WebError(400, "the body is no JSON object", code="invalid_json")
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


class Fields:
    """Reads fields; one that is null counts as absent."""

    def __init__(self, body: Mapping[str, Any], prefix: str = ""):
        self._rest = {name: value for name, value in body.items() if value is not None}
        self._prefix = prefix

    def take(self, name: str, default: Any = None) -> Any:
        """A field as it is, which its reader checks."""
        return self._rest.pop(name, default)

    def boolean(self, name: str) -> bool:
        """A field that is true or false, and false where it is absent."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def whole(self, name: str, default: int | None, low: int, high: int = MAX_INT64) -> Any:
        """A whole number within bounds."""
        value = self.take(name, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int)
                                     or not low <= value <= high):
            raise self.wrong(name, f"must be a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number within bounds."""
        value = self.take(name, default)
        if (isinstance(value, bool) or not isinstance(value, int | float)
                or not low <= value <= high or not math.isfinite(value)):
            raise self.wrong(name, f"must be a finite number from {low:g} to {high:g}")
        return float(value)

    def text(self, name: str, default: str | None = None) -> Any:
        """A text; required without a default."""
        value = self.take(name, default)
        if value is None:
            raise self.wrong(name, "is missing")
        return check_text(self._prefix + name, value)

    def one_of(self, name: str, default: str, words: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.take(name, default)
        if value not in words:
            raise self.wrong(name, f"must be one of {', '.join(words)}")
        return value

    def neutral(self, accepted: Mapping[str, Any]) -> None:
        """Drops fields that ask for nothing, as their value is the one that changes nothing."""
        for name, value in accepted.items():
            if name in self._rest and self._rest[name] == value \
                    and isinstance(self._rest[name], bool) == isinstance(value, bool):
                del self._rest[name]

    def end(self) -> None:
        """Raises `WebError` if a field was not read: none is ignored in silence."""
        if self._rest:
            name = self._prefix + quote(next(iter(self._rest))).strip("'\"")
            raise WebError(400, f"{name} is not supported", param=name, code="unsupported_field")

    def wrong(self, name: str, rule: str) -> WebError:
        """The error of a field."""
        return wrong(self._prefix + name, rule)


def check_text(name: str, value: Any) -> str:
    """A text that UTF-8 can hold; raises `WebError` for anything else."""
    if not isinstance(value, str):
        raise wrong(name, "must be a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise wrong(name, "holds half a surrogate pair, which is no character") from None
    return value
