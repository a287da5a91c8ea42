"""Finds personal data and secrets by rules; redacts or masks them, or drops the document.

`find` returns spans, which can be stored; `apply` acts on them. Every kind has a pattern and a
check of its matches (a checksum, a registry, the entropy), because patterns alone also match
versions, serial numbers and matrix products.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import re2

from core.errors import UserError
from core.functions import load_function
from data.privacy.forms import ascii_forms
from data.privacy.kinds import FINDERS, has_candidate

KINDS = (*FINDERS, "name")     # in order of precedence where spans overlap
ACTIONS = ("redact", "mask", "drop", "keep")

_MASKS = {"email": "email@example.com", "name": "Alex Doe"}
_IP_MASKS = {4: "192.0.2.1", 6: "2001:db8::1"}     # reserved for documentation (RFC 5737, 3849)
_UPPER, _LOWER, _DIGIT = re2.compile("[A-Z]"), re2.compile("[a-z]"), re2.compile(r"\p{Nd}")

NameFinder = Callable[[str], Iterable[tuple[int, int]]]


class Span(NamedTuple):
    """Characters ``text[start:end]`` and their kind, one of `KINDS`."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: Sequence[str] = KINDS,
         name_finder: NameFinder | None = None) -> list[Span]:
    """Finds personal data and secrets.

    Kinds:
        key: private key blocks, JSON web tokens, and tokens with the prefix of an issuer, if
            their entropy is high.
        email: an address whose domain ends in a public suffix or in two letters, in whatever
            script; also ``name [at] example [dot] org``.
        iban: country, length and check digits (ISO 13616).
        card: 14 to 19 digits of an issuer's range that pass Luhn, in the usual groups.
        ip: public addresses, versions 4 and 6, but no version or section numbers.
        phone: a country code behind ``+`` or ``00``, groups of North America and of some forty
            other countries, or digits after a word like "tel" in some thirty languages.
        name: the result of `name_finder`.

    Digits of other scripts and full-width characters count as those of ASCII.

    Args:
        name_finder: see `load_name_finder`.

    Returns:
        Disjoint spans in order of appearance.

    Raises:
        UserError: `name_finder` returns anything but spans of the text.
    """
    spans: list[Span] = []
    if has_candidate(text):
        plain = ascii_forms(text)
        for kind, finder in FINDERS.items():
            if kind in kinds:
                spans += _not_taken(spans, kind, finder(plain))
    if name_finder is not None and "name" in kinds:
        spans += _not_taken(spans, "name", _names(text, name_finder))
    return sorted(spans)


def apply(text: str, spans: Sequence[Span],
          actions: Mapping[str, str]) -> tuple[str, dict[str, int]] | None:
    """Applies to every span the action of its kind.

    Args:
        spans: result of `find` for this text.
        actions: kind to action. ``redact`` inserts a placeholder such as ``<email>``, ``mask`` a
            neutral value of the same form, ``keep`` (the default) only counts, and ``drop``
            removes the document.

    Returns:
        The text and the number of spans by kind; None when the document is removed, for the
        reason of `drop_reason`.
    """
    if drop_reason(spans, actions) is not None:
        return None
    pieces, end = [], 0
    for span in spans:
        action = actions.get(span.kind, "keep")
        if action != "keep":
            replaced = (f"<{span.kind}>" if action == "redact"
                        else _mask(text[span.start:span.end], span.kind))
            pieces += (text[end:span.start], replaced)
            end = span.end
    counts = Counter(span.kind for span in spans)
    return "".join((*pieces, text[end:])), dict(sorted(counts.items()))


def drop_reason(spans: Sequence[Span], actions: Mapping[str, str]) -> str | None:
    """``privacy_<kind>`` of the first span whose action is ``drop``, or None."""
    return next((f"privacy_{span.kind}" for span in spans
                 if actions.get(span.kind) == "drop"), None)


def check_actions(field: str, actions: Mapping[str, str]) -> None:
    """Raises `UserError` for an unknown kind or action."""
    for kind, action in actions.items():
        if kind not in KINDS:
            raise UserError(f"{field}.{kind}", "is not a kind of personal data",
                            f"choose among {', '.join(KINDS)}")
        if action not in ACTIONS:
            raise UserError(f"{field}.{kind}={action!r}", "is not an action",
                            f"choose one of {', '.join(ACTIONS)}")


def load_name_finder(path: str) -> NameFinder:
    """Imports a finder of personal names, e.g. ``my_package.names.find_names``.

    It is called with a text and returns the ``(start, end)`` of every name in it. None is included,
    since a suitable one depends on the language of the corpus.

    Raises:
        UserError: the function does not exist.
    """
    return load_function("curate.privacy.name_finder", path)


def _not_taken(spans: Sequence[Span], kind: str,
               places: Iterable[tuple[int, int]]) -> Iterator[Span]:
    """Those of `places` that overlap neither `spans` nor one another."""
    taken = sorted(spans)
    last_end = 0
    for start, end in sorted(places):
        at = bisect.bisect_right(taken, (start, end))
        free_from = max(last_end, taken[at - 1].end if at else 0)
        if start >= free_from and (at == len(taken) or end <= taken[at].start):
            yield Span(start, end, kind)
            last_end = end


def _names(text: str, name_finder: NameFinder) -> Iterator[tuple[int, int]]:
    for place in map(tuple, name_finder(text)):
        if not (len(place) == 2 and all(isinstance(at, int) for at in place)
                and 0 <= place[0] < place[1] <= len(text)):
            raise UserError("name_finder", f"returned {place!r} for a text of {len(text)} "
                            "characters", "return (start, end) pairs inside the text")
        yield place


def _mask(value: str, kind: str) -> str:
    if kind == "ip":
        return _IP_MASKS[6 if ":" in value else 4]
    if kind in _MASKS:
        return _MASKS[kind]
    return _DIGIT.sub("0", _UPPER.sub("X", _LOWER.sub("x", value)))
