"""How a judge errs: by the order of the answers, by their length, and for its own answers.

Shares are probabilities that an answer is better: 1, 0, and 1/2 for a tie. Nothing is computed from
a comparison without a verdict.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from eval.judges.candidates import Pair
from eval.judges.length_control import NUM_FOLDS, Comparisons, control_length
from eval.judges.verdicts import Verdict
from eval.statistics import Estimate, estimate_mean, estimate_share

WRITTEN_SHARES = {0.0, 0.5, 1.0}        # of verdicts that are no probabilities
UNKNOWN = {"value": None, "low": None, "high": None, "items": 0}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A pair that was judged in both orders.

    Attributes:
        pair: its answers, of which the first was shown first the first time.
        verdicts: of both times; their values are those of the answer that was shown first.
    """

    pair: Pair
    verdicts: tuple[Verdict, Verdict]

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """Of the first candidate, by the order in which the answers were shown."""
        first, second = (verdict.value for verdict in self.verdicts)
        return first, None if second is None else 1 - second

    @property
    def share(self) -> float | None:
        """Of the first candidate: 1/2 where the orders differ (arXiv 2306.05685, section 3.4).

        Of probabilities it is their mean, which no preference for a place shifts. None where a
        verdict is missing: the other one alone would follow the order.
        """
        first, second = self.shares
        if first is None or second is None:
            return None
        if {first, second} <= WRITTEN_SHARES:
            return first if first == second else 0.5
        return (first + second) / 2

    @property
    def reason(self) -> str:
        """Why there is no share: the reason of the first verdict that is missing; "" with one."""
        return next((verdict.reason for verdict in self.verdicts if verdict.value is None), "")


def measure_win_rate(outcomes: Sequence[Outcome],
                     gamed: Sequence[Comparisons] = ()) -> dict[str, Any]:
    """The win rate of the pairs' first candidate over the second.

    Args:
        gamed: see `eval.judges.length_control.control_length`.

    Returns:
        `win_rate` with its 95 % interval; `length_controlled`, what it would be at equal lengths,
        by a regression without difficulties, None of fewer than five pairs. Where one candidate's
        answers are nearly all longer, it is a guess without the gamed ones. Further
        `pairs`, those with verdicts; `wins`, `losses`, `ties`; and `unparsed`, pairs by the reason.
    """
    judged = [one for one in outcomes if one.share is not None]
    shares = [one.share for one in judged]
    found = {"win_rate": _plain(estimate_share(shares)) if judged else UNKNOWN,
             "length_controlled": None, "pairs": len(judged),
             "wins": sum(share > 0.5 for share in shares),
             "losses": sum(share < 0.5 for share in shares),
             "ties": sum(share == 0.5 for share in shares),
             "unparsed": dict(Counter(one.reason for one in outcomes if one.share is None)),
             "lengths": _mean_lengths(outcomes)}
    if len(judged) >= NUM_FOLDS:
        found["length_controlled"] = control_length(as_comparisons(judged), gamed).win_rate
    return found


def as_comparisons(outcomes: Sequence[Outcome]) -> Comparisons:
    """The outcomes that have a share, for a regression; no difficulty is known."""
    rows = [(one.share, *one.pair.lengths, 0.0) for one in outcomes if one.share is not None]
    return Comparisons(*np.array(rows, np.float64).reshape(-1, 4).T)


def measure_position(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How far the order of the answers decides.

    Returns:
        `first`, the share of verdicts for the answer that was shown first, among those for one of
        them: 1/2 without a bias; `consistent`, the share of pairs whose two verdicts agree; and
        `flips`, pairs in which the answer that was shown first, or second, won both times.
    """
    is_first, marks, agree, flips = [], [], [], Counter()
    for number, one in enumerate(outcomes):
        values = [verdict.value for verdict in one.verdicts]
        decided = [value for value in values if value not in (None, 0.5)]
        is_first += [float(value > 0.5) for value in decided]
        marks += [number] * len(decided)
        if None not in values:
            first, second = one.shares
            agree.append(float(np.sign(first - 0.5) == np.sign(second - 0.5)))
            flips["first"] += min(values) > 0.5
            flips["second"] += max(values) < 0.5
    return {"first": _plain(estimate_share(is_first, marks)) if is_first else UNKNOWN,
            "consistent": _plain(estimate_share(agree)) if agree else UNKNOWN,
            "flips": {"first": flips["first"], "second": flips["second"]}}


def measure_length(outcomes: Sequence[Outcome],
                   people: Sequence[float | None]) -> dict[str, Any]:
    """How often the longer answer is preferred, among decided pairs of unequal lengths.

    Longer answers may be better ones: a bias is what exceeds the preference of people for them.

    Args:
        people: the mean share that people give the first candidate of each pair; None where nobody
            voted.

    Returns:
        `longer` of the judge; and `people_longer` and `excess` on the pairs that both decided, None
        where there is none.
    """
    longer, both = [], []
    for one, voted in zip(outcomes, people, strict=True):
        lengths, share = one.pair.lengths, one.share
        if share in (None, 0.5) or lengths[0] == lengths[1]:
            continue
        is_longer = float((share > 0.5) == (lengths[0] > lengths[1]))
        longer.append(is_longer)
        if voted not in (None, 0.5):
            both.append((is_longer, float((voted > 0.5) == (lengths[0] > lengths[1]))))
    found = {"longer": _plain(estimate_share(longer)) if longer else UNKNOWN,
             "people_longer": None, "excess": None}
    if both:
        ours, theirs = np.array(both).T
        found |= {"people_longer": _plain(estimate_share(theirs)),
                  "excess": _plain(estimate_mean(ours - theirs))}
    return found


def measure_self_preference(outcomes: Sequence[Outcome], own: str,
                            people: Sequence[float | None]) -> dict[str, Any]:
    """How much more a judge prefers its own answers than people do, on the same pairs.

    The difference of the win rates (arXiv 2306.05685, section 3.3), which is 0 where the judge is
    as fond of its answers as people are. Without their votes only its own win rate is known, which
    is no bias: its answers may be better.

    Args:
        own: the candidate that the judge wrote; "" if there is none.
        people: see `measure_length`.
    """
    mine = [(one.share, voted) if one.pair.names[0] == own else
            (1 - one.share, None if voted is None else 1 - voted)
            for one, voted in zip(outcomes, people, strict=True)
            if own in one.pair.names and one.share is not None]
    if not own or not mine:
        return {"value": None, "why": "no candidate is the judge's own" if not own else
                f"no verdict on an answer of {own}"}
    found = {"own_win_rate": _plain(estimate_share([share for share, _ in mine]))}
    both = [(share, voted) for share, voted in mine if voted is not None]
    if not both:
        return found | {"value": None, "why": "no votes of people on its pairs"}
    ours, theirs = np.array(both).T
    return found | {"people_win_rate": _plain(estimate_share(theirs)),
                    **_plain(estimate_mean(ours - theirs))}


def correlate_length(scores: Sequence[float], lengths: Sequence[int]) -> float | None:
    """Spearman's correlation of ratings and lengths; None where one of them does not vary."""
    if len(set(scores)) < 2 or len(set(lengths)) < 2:
        return None
    return float(stats.spearmanr(scores, lengths).statistic)


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high,
            "items": estimate.items}


def _mean_lengths(outcomes: Sequence[Outcome]) -> list[float]:
    """Mean number of characters of both candidates' answers."""
    return [float(mean) for mean in np.mean([one.pair.lengths for one in outcomes], axis=0)]
