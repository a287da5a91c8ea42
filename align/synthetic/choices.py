"""Preferences of a critic between two answers, shown in both orders (arXiv 2212.08073, 4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from align.synthetic.constitution import draw
from align.synthetic.critics import Critic, Pair, Vote
from align.synthetic.outcomes import Outcomes
from core.errors import UserError
from data.chat import Conversation
from data.preferences import Preference

DISAGREEMENTS = ("drop", "tie", "soft", "fail")


class TwoAnswers(NamedTuple):
    """Two answers to a prompt, and how each ended: stop, or length for a limit."""

    prompt: Conversation
    answers: tuple[str, str]
    finishes: tuple[str, str]


def prefer(candidates: Sequence[TwoAnswers], critic: Critic, preferences: Sequence[str],
           outcomes: Outcomes, *, disagreement: str, seed: int
           ) -> tuple[list[Preference], dict[str, Any]]:
    """Preferences between two answers, the better one first; its scores are both probabilities.

    Each pair is shown twice, the answers in either order, and the probability that one is better is
    the mean over both, so that a preference for a letter cancels out. Where the votes name
    different answers, the rule decides.

    Args:
        preferences: one is drawn for each pair by the digest of seed and messages; of a rule, which
            reads none, there may be none.
        disagreement: drop; tie; soft, the order of the mean probability, which is a tie where a
            letter was named; or fail.

    Returns:
        The preferences; and `choices`, how many were asked, `disagreements`, `disagreement_frac`
        of those with both votes, `ties`, and `first_frac`, the share of the probability that went
        to the answer shown first: far from a half, it is the place that decides.
    """
    pairs = [Pair(one.prompt, one.answers, draw(
        preferences or ("",), seed, one.prompt.to_dict()["messages"], "choice"))
        for one in candidates]
    shown = [part for pair in pairs for part in (
        pair, pair._replace(answers=pair.answers[::-1]))]
    votes = critic.choose(shown, seed)
    counts, made = Counter(choices=len(candidates)), []
    for number, (one, pair) in enumerate(zip(candidates, pairs, strict=True)):
        both = votes[2 * number:2 * number + 2]
        if (p_first := _decide(one, both, outcomes, disagreement, counts)) is not None:
            counts["ties"] += p_first == 0.5
            made.append(_make(one, pair, both, p_first, critic.name))
    given = [vote.p_first for vote in votes if vote.p_first is not None]
    return made, {
        "choices": counts["choices"], "disagreements": counts["disagreements"],
        "ties": counts["ties"],
        "disagreement_frac": counts["disagreements"] / max(counts["both"], 1),
        "first_frac": sum(given) / len(given) if given else None}


def _decide(one: TwoAnswers, votes: Sequence[Vote], outcomes: Outcomes, disagreement: str,
            counts: Counter[str]) -> float | None:
    """The probability that the first answer is better; None if the pair is left out."""
    for vote in votes:
        # However a letter is missing: kept, the vote in the other order decides alone.
        if not outcomes.keeps("choice", vote.fault, one.prompt, "", rule_of="no_letter"):
            return None
    # Of the first answer: the second vote saw it in the second place.
    given = [p for p in (votes[0].p_first, None if votes[1].p_first is None
                         else 1 - votes[1].p_first) if p is not None]
    if not given:
        outcomes.count("choice", "no_vote")
        outcomes.remove("choice", "no_vote", one.prompt, "")
        return None
    mean = sum(given) / len(given)
    counts["both"] += len(given) == 2
    if min(given) < 0.5 < max(given):
        counts["disagreements"] += 1
        if disagreement == "fail":
            raise UserError(str(one.prompt.meta.get("place", "a conversation")), "which of its two "
                            "answers is better depends on their order",
                            "set --config.constitution.disagreement to drop, tie or soft")
        if disagreement == "drop":
            outcomes.count("choice", "disagreement")
            outcomes.remove("choice", "disagreement", one.prompt, "")
            return None
        return 0.5 if disagreement == "tie" else mean
    return mean


def _make(one: TwoAnswers, pair: Pair, votes: Sequence[Vote], p_first: float,
          critic: str) -> Preference:
    """The preference, the better answer first."""
    order = (0, 1) if p_first >= 0.5 else (1, 0)
    meta = {"preference": pair.preference, "p_first_by_order": [vote.p_first for vote in votes],
            "origin": one.prompt.meta.get("source", "")}
    scores = (p_first, 1 - p_first)
    return Preference(
        Conversation(one.prompt.messages), tuple(one.answers[at] for at in order),
        (1, 1) if p_first == 0.5 else (1, 2), critic, meta,
        tuple(one.finishes[at] for at in order), tuple(scores[at] for at in order))
