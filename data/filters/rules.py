"""Rules: ``<family>_min_<signal>`` and ``<family>_max_<signal>`` decide on the family's signal."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache

from core.errors import UserError

_RULE = re.compile(r"([a-z0-9]+)_(min|max)_(\w+)")


@dataclasses.dataclass(frozen=True)
class BrokenRule:
    """The rule that removes a document (`reason`) and the value of its signal (`score`)."""

    reason: str
    score: float


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule's signal, e.g. ``gopher_words``, and the side of its bound, ``min`` or ``max``."""

    signal: str
    side: str


@cache
def parse_rule(name: str) -> Rule:
    """Parses the name of a rule.

    Raises:
        UserError: it is not the name of a rule.
    """
    match = _RULE.fullmatch(name)
    if match is None:
        raise UserError(name, "is not the name of a rule",
                        "write <family>_min_<signal> or <family>_max_<signal>")
    return Rule(f"{match[1]}_{match[3]}", match[2])


def decide(signals: Mapping[str, float], thresholds: Mapping[str, float]) -> BrokenRule | None:
    """The first broken rule, in the order of `thresholds`; None when the document is kept.

    Args:
        signals: the document's numbers, from `data.filters.signals`. Rules on other signals,
            e.g. those of code, do not apply to it.
        thresholds: inclusive bounds, from `data.filters.presets`.
    """
    for name, bound in thresholds.items():
        rule = parse_rule(name)
        value = signals.get(rule.signal)
        if value is not None and (value < bound if rule.side == "min" else value > bound):
            return BrokenRule(name, float(value))
    return None
