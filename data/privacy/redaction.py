"""Personal data and secrets in text: found by rule, then redacted, masked, or the document dropped.

`find` says where they are, `apply` what becomes of them: spans can be kept as a column and decided
on later. Every kind is a pattern that proposes and a check that disposes (a checksum, a registry,
an entropy), because patterns alone take versions, serial numbers and matrix products for people.
"""

from __future__ import annotations

import bisect
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import re2

from core.errors import UserError
from data.privacy.kinds import FINDERS, is_worth_a_look

KINDS = (*FINDERS, "name")     # where two claim the same characters, the earlier one has them
ACTIONS = ("redact", "mask", "drop", "keep")

_MASKS = {"email": "email@example.com", "name": "Alex Doe"}
_IP_MASKS = {4: "192.0.2.1", 6: "2001:db8::1"}     # reserved for documentation (RFC 5737, 3849)
_UPPER, _LOWER, _DIGIT = re2.compile("[A-Z]"), re2.compile("[a-z]"), re2.compile("[0-9]")

NameFinder = Callable[[str], Iterable[tuple[int, int]]]


class Span(NamedTuple):
    """Characters ``text[start:end]`` and what they are, one of `KINDS`."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: Sequence[str] = KINDS,
         name_finder: NameFinder | None = None) -> list[Span]:
    """Finds personal data and secrets.

    What counts as what:
        key: private key blocks, JSON web tokens, and tokens whose issuer marked them with a
            prefix, when they look random.
        email: anything@domain whose last label is a top-level domain of the public suffix list
            or any two letters; also ``name [at] example [dot] org``.
        iban: country, length and check digits (ISO 13616).
        card: 14 to 19 digits of an issuer's range that pass Luhn, in the groups of a card.
        ip: public addresses, versions 4 and 6; no version, section or chain of numbers.
        phone: ``+`` and a country code, North American groups, or digits after a word like "tel".
        name: whatever `name_finder` finds; without one, nothing.

    Args:
        name_finder: see `load_name_finder`.

    Returns:
        Spans in order of appearance, which do not overlap.

    Raises:
        UserError: `name_finder` returns something else than places in the text.
    """
    found: list[Span] = []
    if is_worth_a_look(text):
        for kind, finder in FINDERS.items():
            if kind in kinds:
                found += _not_taken(found, kind, finder(text))
    if name_finder is not None and "name" in kinds:
        found += _not_taken(found, "name", _names(text, name_finder))
    return sorted(found)


def apply(text: str, spans: Sequence[Span],
          actions: Mapping[str, str]) -> tuple[str, dict[str, int]] | None:
    """Does to every span what its kind's action says.

    Args:
        spans: as from `find`, of this very text.
        actions: kind to action. ``redact`` puts a placeholder such as ``<email>``, ``mask`` a
            neutral value of the same shape, ``keep`` only counts, as for a kind without action,
            and ``drop`` lets the whole document go.

    Returns:
        The text and the number of spans by kind; None when the document goes, for the reason that
        `drop_reason` names.
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
    """``privacy_<kind>`` of the first span whose action is ``drop``; None when there is none."""
    return next((f"privacy_{span.kind}" for span in spans
                 if actions.get(span.kind) == "drop"), None)


def check_actions(field: str, actions: Mapping[str, str]) -> None:
    """Raises `UserError` when `actions` names no kind or no action."""
    for kind, action in actions.items():
        if kind not in KINDS:
            raise UserError(f"{field}.{kind}", "is no kind of personal data",
                            f"choose among {', '.join(KINDS)}")
        if action not in ACTIONS:
            raise UserError(f"{field}.{kind}={action!r}", "is no action",
                            f"choose one of {', '.join(ACTIONS)}")


def load_name_finder(path: str) -> NameFinder:
    """Imports a finder of personal names, e.g. ``my_package.names.find_names``.

    It is called with a text and returns the ``(start, end)`` of every name in it. We bring none:
    one that is right for a corpus depends on its language and on what the user may install.

    Raises:
        UserError: there is no such function.
    """
    module, _, name = path.rpartition(".")
    try:
        finder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"name_finder={path!r}", f"cannot be imported ({error})",
                        "write package.module.function of an installed package") from None
    if not callable(finder):
        raise UserError(f"name_finder={path!r}", "is no function",
                        "name a function of a text that returns (start, end) pairs")
    return finder


def _not_taken(found: Sequence[Span], kind: str,
               places: Iterable[tuple[int, int]]) -> Iterator[Span]:
    """Those of `places` that overlap neither what is found already nor one another."""
    taken = sorted(found)
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
                            "characters", "let it return (start, end) pairs inside the text")
        yield place


def _mask(value: str, kind: str) -> str:
    if kind == "ip":
        return _IP_MASKS[6 if ":" in value else 4]
    if kind in _MASKS:
        return _MASKS[kind]
    return _DIGIT.sub("0", _UPPER.sub("X", _LOWER.sub("x", value)))
