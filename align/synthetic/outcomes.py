"""What becomes of replies that may be of no use: counted by step and reason, and a rule for each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from data.chat import Conversation

RULES = ("drop", "keep", "fail")
REASONS = {     # predicates of a reply
    "unanswered": "is missing, as the prompt was too long or rejected", "empty": "is empty",
    "truncated": "was cut at the limit of its tokens", "unchanged": "equals the one before it",
    "refusal": "is a refusal", "no_letter": "names neither option, or both"}


class Outcomes:
    """Counts faults, and decides by the rules.

    Args:
        rules: drop, keep or fail for each of `REASONS`.

    Attributes:
        counts: faults by step and reason, whatever became of them.
        removed: a row for each conversation that a fault removed.

    Raises:
        UserError: there is no such rule.
    """

    def __init__(self, rules: Mapping[str, str]):
        for reason, rule in rules.items():
            if rule not in RULES:
                raise UserError(f"constitution.rules.{reason}={rule!r}", f"is none of "
                                f"{', '.join(RULES)}", "choose one of them")
        self._rules = rules
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.removed: list[dict[str, Any]] = []

    def keeps(self, step: str, reason: str, prompt: Conversation, text: str,
              rule_of: str = "") -> bool:
        """Whether a conversation goes on although a reply has a fault.

        Args:
            step: answer, critique, revision, choice.
            reason: one of `REASONS`; "" for a reply without a fault.
            text: of the reply.
            rule_of: the reason whose rule decides; "" for `reason` itself.

        Raises:
            UserError: by the rule, such a reply ends the run.
        """
        if not reason:
            return True
        decisive = rule_of or reason
        if self._rules[decisive] == "fail":
            place = str(prompt.meta.get("place", "a conversation"))
            raise UserError(place, f"its {step} {REASONS[reason]}",
                            f"set --config.constitution.rules.{decisive} to drop or keep")
        self.count(step, reason)
        if self._rules[decisive] == "keep":
            return True
        self.remove(step, reason, prompt, text)
        return False

    def count(self, step: str, reason: str) -> None:
        """Counts a fault that no rule decides about."""
        self.counts[step][reason] += 1

    def remove(self, step: str, reason: str, prompt: Conversation, text: str) -> None:
        """Records a conversation that is left out."""
        self.removed.append({"step": step, "reason": reason, "text": text,
                             "messages": prompt.to_dict()["messages"],
                             "place": prompt.meta.get("place", "")})
