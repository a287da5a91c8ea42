"""What votes are worth: order bias, repeated and instant votes, agreement of the voters."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.agreement import Bootstrap
from eval.arena.votes import Votes
from eval.measures.agreement import (
    agreement_with_others,
    count_values,
    fleiss_kappa,
    krippendorff_alpha,
    raw_agreement,
)
from eval.statistics import estimate_share

VALUES = np.array([0.0, 0.5, 1.0])      # scores of a comparison


def measure_order(votes: Votes) -> dict[str, Any]:
    """How much depends on which answer was shown first.

    Returns:
        `first_shown`: share of the decided comparisons that the answer shown first wins, with its
        95 % interval (over votes, where a ranking has several comparisons); `consistency`: of what
        one voter judged in both orders, the share of two verdicts that are the same, as the mean
        over items. None where there is no such comparison.
    """
    decided = votes.scores != 0.5
    return {"first_shown": _share(votes.scores[decided], votes.votes[decided]),
            "consistency": _consistency(votes)}


def _share(values: np.ndarray, groups: np.ndarray) -> dict[str, Any] | None:
    if not len(values):
        return None
    is_grouped = len(np.unique(groups)) < len(groups)
    found = estimate_share(values, groups.tolist() if is_grouped else None)
    return {"value": found.value, "low": found.low, "high": found.high, "num": len(values),
            "wins": int(values.sum())}


def _consistency(votes: Votes) -> dict[str, Any] | None:
    known = votes.items >= 0
    if not known.any():
        return None
    is_swapped = (votes.first > votes.second)[known]
    scores = np.where(is_swapped, 1 - votes.scores[known], votes.scores[known])
    voters = votes.annotator[votes.votes[known]] + 1
    keys = voters * (votes.items.max() + 1) + votes.items[known]
    _, groups = np.unique(keys, return_inverse=True)
    counts = np.zeros((groups.max() + 1, 2, len(VALUES)))
    np.add.at(counts, (groups, is_swapped.astype(int), np.rint(2 * scores).astype(int)), 1)
    pairs = counts[:, 0].sum(axis=1) * counts[:, 1].sum(axis=1)
    same = (counts[:, 0] * counts[:, 1]).sum(axis=1)
    both = pairs > 0
    if not both.any():
        return None
    found = estimate_share(same[both] / pairs[both])
    return {"value": found.value, "low": found.low, "high": found.high, "num": int(pairs.sum()),
            "same": int(same.sum())}


def find_repeated(votes: Votes) -> np.ndarray:
    """Whether a named voter has voted on the same answers in the same order before, bool [votes].

    A ranking is repeated where each of its comparisons is.
    """
    voters = votes.annotator[votes.votes]
    known = np.flatnonzero((votes.items >= 0) & (voters >= 0))
    keys = np.stack([voters[known], votes.items[known],
                     (votes.first > votes.second)[known]], axis=1)
    is_repeated = np.zeros(len(votes.items), bool)
    if len(known):
        firsts = np.unique(keys, axis=0, return_index=True)[1]
        is_repeated[np.delete(known, firsts)] = True
    return _of_all(is_repeated, votes)


def _of_all(of_comparison: np.ndarray, votes: Votes) -> np.ndarray:
    """Whether all comparisons of a vote are such, bool [votes]."""
    nums = np.bincount(votes.votes, minlength=votes.num_votes)
    return (np.bincount(votes.votes, of_comparison, votes.num_votes) == nums) & (nums > 0)


def describe_voters(votes: Votes, suspicious: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of each named voter the votes, the suspicious ones, and the shares of firsts and of ties.

    Args:
        suspicious: masks [votes] by name.
    """
    voters, num = votes.annotator[votes.votes], len(votes.annotators)
    named = voters >= 0

    def total(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.bincount(rows[rows >= 0], values[rows >= 0], num)

    compared = total(np.ones(len(voters)), voters)
    ties = total((votes.scores == 0.5).astype(float), voters)
    firsts = total((votes.scores == 1.0).astype(float), voters)
    cast = total(np.ones(votes.num_votes), votes.annotator)
    marked = {name: total(mask.astype(float), votes.annotator)
              for name, mask in suspicious.items()}
    agreed = _agreed(votes) if named.any() else np.full(num, np.nan)
    return [{"voter": name, "votes": int(cast[i]), "ties_frac": ties[i] / max(compared[i], 1),
             "first_frac": firsts[i] / max(compared[i] - ties[i], 1),
             "agreement": None if np.isnan(agreed[i]) else float(agreed[i]),
             **{mark: int(counted[i]) for mark, counted in marked.items()}}
            for i, name in enumerate(votes.annotators)]


def _once_each(votes: Votes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items, voters and codes of `VALUES`: of each named voter and item the one that is not
    contradicted, [ratings]."""
    voters = votes.annotator[votes.votes]
    known = (votes.items >= 0) & (voters >= 0)
    scores = np.where(votes.first > votes.second, 1 - votes.scores, votes.scores)
    rows = np.unique(np.stack([votes.items[known], voters[known],
                               np.rint(2 * scores[known]).astype(np.int64)], axis=1), axis=0)
    same = (rows[1:, :2] == rows[:-1, :2]).all(axis=1)
    is_single = ~(np.append(same, False) | np.append(False, same)) if len(rows) else slice(None)
    return tuple(rows[is_single].T)


def _agreed(votes: Votes) -> np.ndarray:
    """Mean share of the others who agree with each voter, NaN without others, [annotators]."""
    items, voters, codes = _once_each(votes)
    shares = agreement_with_others(count_values(items, codes, len(VALUES)), items, codes)
    known = ~np.isnan(shares)
    num = len(votes.annotators)
    counted = np.bincount(voters[known], minlength=num)
    return np.divide(np.bincount(voters[known], shares[known], num), counted,
                     out=np.full(num, np.nan), where=counted > 0)


def measure_voters(votes: Votes, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Agreement of the named voters on what several of them judged; None where there is nothing.

    Choices count in both orders and a tie is an answer like others, as in `eval.agreement`, which
    has further coefficients; who contradicts themselves on an item does not count there.

    Returns:
        `raw`, `fleiss_kappa`, `krippendorff_alpha` (nominal), with intervals of the bootstrap over
        prompts, `items` with several voters.
    """
    items, _, codes = _once_each(votes)
    counts = count_values(items, codes, len(VALUES))
    several = np.flatnonzero(counts.sum(axis=1) > 1)
    if not len(several):
        return None
    counts, prompts = counts[several], votes.prompts[several].tolist()

    def in_both_orders(picked: np.ndarray) -> np.ndarray:
        return np.concatenate([counts[picked], counts[picked][:, ::-1]])

    return {"items": len(several),
            "raw": bootstrap.estimate(lambda picked: raw_agreement(in_both_orders(picked)),
                                      prompts),
            "fleiss_kappa": bootstrap.estimate(
                lambda picked: fleiss_kappa(in_both_orders(picked)), prompts),
            "krippendorff_alpha": bootstrap.estimate(
                lambda picked: krippendorff_alpha(in_both_orders(picked), VALUES, "nominal"),
                prompts)}
