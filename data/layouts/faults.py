"""What a stage leaves out of its data, counted by reason."""

from __future__ import annotations

from collections import Counter

from core.errors import UserError
from core.progress import log

RULES = ("drop", "fail")


class Faults:
    """Rows of data that teach nothing or cannot be read: each is counted, none passes silently.

    Args:
        stage: the stage's name, for messages.
        rule: drop, which leaves them out, or fail, which ends the run at the first.

    Attributes:
        counts: rows left out, by reason.

    Raises:
        UserError: there is no such rule.
    """

    def __init__(self, stage: str, rule: str = "drop"):
        if rule not in RULES:
            raise UserError(f"{stage}.faulty={rule!r}", f"is none of {', '.join(RULES)}",
                            "choose one of them")
        self._stage, self._rule = stage, rule
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, place: str, what: str) -> None:
        """Leaves a row out.

        Args:
            reason: one word, which becomes a key of the stage's JSON, as ``empty_answer``.
            place: of the row, ``FILE, line 3``.
            what: the reason in words: the predicate of the place.

        Raises:
            UserError: by the rule, the first such row ends the run.
        """
        if self._rule == "fail":
            raise UserError(place, what, f"mend it, or set {self._stage}.faulty to drop")
        self.counts[reason] += 1
        self._first.setdefault(reason, f"{place}: {what}")

    def report(self) -> None:
        """Logs a line for each reason, with the first row of it."""
        for reason, first in self._first.items():
            log(f"{self._stage}: left out {self.counts[reason]:,} ({reason}), the first: {first}")
