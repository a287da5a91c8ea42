"""Comparisons of models, aggregated to how often each outcome was voted for."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

WIN, TIE, LOSS = 1.0, 0.5, 0.0      # scores of the model that is named first


@dataclasses.dataclass(frozen=True)
class Ballots:
    """What was voted for, each different ballot once with its count.

    A vote between two models is a ballot of one outcome; a ranking of several has an outcome for
    every two of them, which are not independent of each other and are drawn together.

    Attributes:
        first, second: numbers of an outcome's models, first < second, int64 [outcomes]; sorted by
            both, so that the outcomes of a pair of models are neighbours.
        scores: `WIN`, `TIE` or `LOSS` of the first, [outcomes].
        incidence: how often a ballot holds an outcome, sparse [ballots, outcomes].
        counts: votes for each ballot, float64 [ballots].
        num_models: that the numbers count.
    """

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray
    incidence: sparse.csr_array
    counts: np.ndarray
    num_models: int

    def weights(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Votes for each outcome, [..., outcomes], for counts of ballots, [..., ballots]."""
        return (self.counts if counts is None else counts) @ self.incidence

    def recount(self, counts: np.ndarray) -> Ballots:
        """The same ballots with other counts, [ballots], without those that nobody voted for."""
        held = np.flatnonzero(counts)
        incidence = self.incidence[held]
        kept = np.unique(incidence.indices)
        return Ballots(self.first[kept], self.second[kept], self.scores[kept],
                       incidence[:, kept], counts[held].astype(np.float64), self.num_models)

    def pair_starts(self) -> np.ndarray:
        """The first outcome of each pair of models, int64 [pairs]."""
        codes = self.first * self.num_models + self.second
        return np.flatnonzero(np.diff(codes, prepend=-1))

    def games(self) -> np.ndarray:
        """Comparisons of each model, [models]."""
        weights = self.weights()
        return sum(np.bincount(side, weights, self.num_models)
                   for side in (self.first, self.second))

    def wins(self) -> np.ndarray:
        """Share-wise wins of each model over each other, a tie counting half, [models, models]."""
        table, weights = np.zeros((self.num_models, self.num_models)), self.weights()
        np.add.at(table, (self.first, self.second), weights * self.scores)
        np.add.at(table, (self.second, self.first), weights * (1 - self.scores))
        return table


def count_ballots(first: np.ndarray, second: np.ndarray, scores: np.ndarray, votes: np.ndarray,
                  num_models: int) -> tuple[Ballots, np.ndarray]:
    """Aggregates comparisons.

    Args:
        first, second: numbers of each comparison's two models, which differ, [comparisons].
        scores: of the first, [comparisons].
        votes: of each comparison its vote, from 0 on without a gap, ascending, [comparisons].

    Returns:
        The ballots, and the number of each vote's ballot, [votes].
    """
    is_swapped = first > second
    low, high = np.minimum(first, second), np.maximum(first, second)
    losses = np.rint(2 * np.where(is_swapped, scores, 1 - scores)).astype(np.int64)
    codes, outcomes = np.unique((low * num_models + high) * 3 + losses, return_inverse=True)
    starts = np.flatnonzero(np.diff(votes, prepend=-1))
    is_single = np.diff(starts, append=len(votes)) == 1
    held, numbers = np.unique(outcomes[starts], return_inverse=True)     # right where it is single
    found: dict[tuple[int, ...], int] = {(code,): place for place, code in
                                         enumerate(held.tolist())}
    for vote in np.flatnonzero(~is_single):
        end = starts[vote + 1] if vote + 1 < len(starts) else len(votes)
        ballot = tuple(sorted(outcomes[starts[vote]:end].tolist()))
        numbers[vote] = found.setdefault(ballot, len(found))
    rows = np.repeat(np.arange(len(found)), [len(ballot) for ballot in found])
    columns = np.array([code for ballot in found for code in ballot], np.int64)
    incidence = sparse.csr_array((np.ones(len(columns)), (rows, columns)),
                                 shape=(len(found), len(codes)))
    pairs, losses = np.divmod(codes, 3)
    ballots = Ballots(*np.divmod(pairs, num_models), 1 - losses / 2, incidence,
                      np.bincount(numbers, minlength=len(found)).astype(np.float64), num_models)
    return ballots, numbers


def split_components(ballots: Ballots) -> list[tuple[np.ndarray, Ballots]]:
    """The parts of the graph of comparisons that no vote connects, those of more votes first.

    Returns:
        Of each part with votes the numbers of its models, ascending, and its ballots, in which
        models are numbered by their place there.
    """
    graph = sparse.coo_array((np.ones(len(ballots.first)), (ballots.first, ballots.second)),
                             shape=(ballots.num_models,) * 2)
    num_parts, labels = csgraph.connected_components(graph, directed=False)
    if num_parts == 1:
        return [(np.arange(ballots.num_models), ballots)]
    parts, ballot_labels = [], labels[ballots.first[ballots.incidence.indices[
        ballots.incidence.indptr[:-1]]]]
    for label in np.unique(labels[ballots.first]):
        part = ballots.recount(ballots.counts * (ballot_labels == label))
        models = np.flatnonzero(labels == label)
        parts.append((models, dataclasses.replace(
            part, first=np.searchsorted(models, part.first),
            second=np.searchsorted(models, part.second), num_models=len(models))))
    return sorted(parts, key=lambda part: -part[1].counts.sum())


def find_levels(winners: np.ndarray, losers: np.ndarray, num_models: int) -> np.ndarray:
    """Numbers of the groups in which every model can be reached from every other along wins.

    Finite ratings of largest likelihood exist where there is one group (Ford 1957). A tie is a win
    of each.

    Args:
        winners, losers: models of each win, [wins].

    Returns:
        Group of each model, [models].
    """
    graph = sparse.csr_array((np.ones(len(winners)), (winners, losers)),
                             shape=(num_models, num_models))
    return csgraph.connected_components(graph, connection="strong")[1]


def find_extremes(ballots: Ballots) -> tuple[np.ndarray, np.ndarray]:
    """Models of the groups that never lost or tied against the others, and that never won or tied.

    Returns:
        Their numbers, ascending; none where there is one group.
    """
    wins, losses = ballots.scores > 0, ballots.scores < 1
    winners = np.concatenate([ballots.first[wins], ballots.second[losses]])
    losers = np.concatenate([ballots.second[wins], ballots.first[losses]])
    levels = find_levels(winners, losers, ballots.num_models)
    apart = levels[winners] != levels[losers]
    if not apart.any():
        return (np.zeros(0, np.int64),) * 2
    return tuple(np.flatnonzero(~np.isin(levels, levels[side[apart]]))
                 for side in (losers, winners))
