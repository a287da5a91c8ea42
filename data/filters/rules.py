"""Rules: ``<family>_min_<signal>`` and ``<family>_max_<signal>`` decide on the family's signal."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache

from core.errors import UserError

_RULE = re.compile(r"([a-z0-9]+)_(min|max)_(\w+)")


@dataclasses.dataclass(frozen=True)
class Removal:
    """Why a document goes: the rule's name, and the value of the signal that broke it."""

    reason: str
    score: float


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule's signal, e.g. ``gopher_words``, and the side of its bound, ``min`` or ``max``."""

    signal: str
    side: str


@cache
def parse_rule(name: str) -> Rule:
    """Takes the name of a rule apart.

    Raises:
        UserError: it is not the name of a rule.
    """
    match = _RULE.fullmatch(name)
    if match is None:
        raise UserError(name, "is not the name of a rule",
                        "write <family>_min_<signal> or <family>_max_<signal>")
    return Rule(f"{match[1]}_{match[3]}", match[2])


def decide(signals: Mapping[str, float], thresholds: Mapping[str, float]) -> Removal | None:
    """The first broken rule, in the order of `thresholds`; None when the document stays.

    Args:
        signals: the document's numbers, from `data.filters.signals`. Rules on signals that it
            lacks, e.g. those of code, do not apply to it.
        thresholds: inclusive bounds, from `data.filters.presets`.
    """
    for name, bound in thresholds.items():
        rule = parse_rule(name)
        value = signals.get(rule.signal)
        if value is not None and (value < bound if rule.side == "min" else value > bound):
            return Removal(name, float(value))
    return None


def check_thresholds(field: str, thresholds: Mapping[str, float]) -> None:
    """Raises `UserError` when a threshold names no signal; `field` is where it stands."""
    from data.filters.code import CODE_SIGNALS
    from data.filters.signals import PROSE_SIGNALS

    known = {*PROSE_SIGNALS, *CODE_SIGNALS}
    for name in thresholds:
        if parse_rule(name).signal not in known:
            raise UserError(f"{field}.{name}", "names no signal",
                            f"write <family>_min_ or <family>_max_ and one of "
                            f"{', '.join(sorted(known))}")
