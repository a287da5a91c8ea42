"""Rules: a threshold named ``min_<signal>`` or ``max_<signal>`` decides on the signal it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Removal:
    """Why a document goes: the rule's name, and the value of the signal that broke it."""

    reason: str
    score: float


def decide(signals: Mapping[str, float], thresholds: Mapping[str, float],
           family: str) -> Removal | None:
    """The first broken rule, in the order of `signals`; None when the document stays.

    Args:
        signals: the document's numbers, from `data.filters.signals`.
        thresholds: inclusive bounds, e.g. ``{"min_words": 30}``.
        family: prefix of the reason, e.g. ``gopher``.
    """
    for signal, value in signals.items():
        low, high = thresholds.get(f"min_{signal}"), thresholds.get(f"max_{signal}")
        if low is not None and value < low:
            return Removal(f"{family}_min_{signal}", float(value))
        if high is not None and value > high:
            return Removal(f"{family}_max_{signal}", float(value))
    return None


def check_thresholds(field: str, thresholds: Mapping[str, float], signals: Iterable[str]) -> None:
    """Raises `UserError` when a threshold names no signal."""
    for rule in thresholds:
        side, _, signal = rule.partition("_")
        if side not in ("min", "max") or signal not in signals:
            raise UserError(f"{field}.{rule}", "names no signal",
                            f"write min_ or max_ and one of {', '.join(sorted(signals))}")
