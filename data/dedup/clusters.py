"""Near-duplicate clusters: candidates, verified edges, clusters, one representative each.

Near duplicates are pairs whose sets of shingles have a Jaccard similarity of at least a threshold.
MinHash with banding (arXiv:2406.17557) proposes candidates; each is verified on the full sets,
because most candidates are wrong where documents share a template. Documents are identified by
integers chosen by the caller; only those with a neighbour take memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

MAX_ALL_PAIRS = 256         # groups up to this size are verified pair by pair
MAX_LEADERS = 64            # in larger groups: documents to which the others are compared
MAX_COMPARISONS = 4_000_000 # per cluster, in the choice of representatives
BLOCK_SHINGLES = 1 << 20    # compared at once
MAX_REMEMBERED = 1_000_000  # rejected pairs that are stored, so as not to verify them again

ShinglesOf = Callable[[int], np.ndarray]


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays of distinct values; 0 when both are empty."""
    return float(similarities(first, [second])[0])


def similarities(one: np.ndarray, others: Iterable[np.ndarray]) -> np.ndarray:
    """Jaccard similarity of a set of shingles to each of many: [num_others] float64.

    Args:
        one, others: sorted arrays of distinct uint64.
    """
    parts, block, held = [np.zeros(0)], [], 0
    for other in others:
        block.append(other)
        held += len(other)
        if held >= BLOCK_SHINGLES:
            parts.append(_similarities(one, block))
            block, held = [], 0
    if block:
        parts.append(_similarities(one, block))
    return np.concatenate(parts)


def _similarities(one: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    sizes = np.array([len(other) for other in others], np.int64)
    if not len(one):
        return np.zeros(len(others))
    values = np.concatenate(others)
    places = np.searchsorted(one, values)
    places[places == len(one)] = 0
    running = np.concatenate([[0], np.cumsum(one[places] == values)])
    ends = np.cumsum(sizes)
    shared = running[ends] - running[ends - sizes]
    return shared / (len(one) + sizes - shared)


class Forest:
    """Union-find over documents with a neighbour; a tree's root is its smallest document."""

    def __init__(self):
        self._parent: dict[int, int] = {}

    def find(self, document: int) -> int:
        """Root of a document's tree; the document itself when it has no neighbour."""
        root = document
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while document != root:     # path compression
            self._parent[document], document = root, self._parent[document]
        return root

    def unite(self, first: int, second: int) -> None:
        """Joins the trees of two documents."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[low] = self._parent[high] = low

    def trees(self) -> list[list[int]]:
        """Trees of two documents or more, each ascending, in the order of their roots."""
        trees: dict[int, list[int]] = {}
        for document in sorted(self._parent):
            trees.setdefault(self.find(document), []).append(document)
        return list(trees.values())


@dataclasses.dataclass
class Edges:
    """Verified neighbours, and counts of verified candidates.

    Attributes:
        forest: the documents, united along accepted pairs.
        num_verified: pairs that were compared.
        num_accepted: pairs that reached the threshold. Pairs already joined by earlier edges are
            not compared, so the true share is higher.
        num_unverified: documents of large groups that are similar to none of the group's leaders
            and were not compared with each other.
    """

    forest: Forest = dataclasses.field(default_factory=Forest)
    num_verified: int = 0
    num_accepted: int = 0
    num_unverified: int = 0


def verify_groups(groups: Iterable[np.ndarray], shingles_of: ShinglesOf,
                  min_jaccard: float) -> Edges:
    """Joins documents along verified pairs only.

    Every pair of a group is a candidate. In a group of more than `MAX_ALL_PAIRS` documents, each
    is compared only with up to `MAX_LEADERS` leaders: the first document, then the first that is
    similar to no leader, and so on. The work is then linear in the size of the group.

    Args:
        groups: [n] int64 documents each, n >= 2, e.g. those that share a band key. The result
            does not depend on the order within a group.
    """
    edges, rejected = Edges(), set()
    for group in groups:
        rest = np.unique(group)
        is_large, num_leaders = len(rest) > MAX_ALL_PAIRS, 0
        while len(rest) > 1 and not (is_large and num_leaders == MAX_LEADERS):
            leader, rest = int(rest[0]), rest[1:]
            num_leaders += 1
            _compare(leader, rest, shingles_of, min_jaccard, edges, rejected)
            if is_large:
                root = edges.forest.find(leader)
                rest = rest[[edges.forest.find(other) != root for other in rest.tolist()]]
        if len(rest) > 1:
            edges.num_unverified += len(rest)
    return edges


def _compare(leader: int, rest: np.ndarray, shingles_of: ShinglesOf, min_jaccard: float,
             edges: Edges, rejected: set[tuple[int, int]]) -> None:
    root = edges.forest.find(leader)
    open_ones = [other for other in rest.tolist()
                 if (leader, other) not in rejected and edges.forest.find(other) != root]
    if not open_ones:
        return
    values = similarities(shingles_of(leader), map(shingles_of, open_ones))
    edges.num_verified += len(open_ones)
    for other, similarity in zip(open_ones, values.tolist()):
        if similarity >= min_jaccard:
            edges.num_accepted += 1
            edges.forest.unite(leader, other)
        elif len(rejected) < MAX_REMEMBERED:
            rejected.add((leader, other))


def choose_representatives(members: Sequence[int], shingles_of: ShinglesOf,
                           min_jaccard: float) -> Iterator[tuple[int, int, float]]:
    """Thins a cluster so that each removed member is similar to a kept one, not only by a chain.

    The first member is kept and the members similar to it are removed; then the first of the
    others is kept, and so on. After `MAX_COMPARISONS` comparisons all others are kept.

    Args:
        members: documents of a cluster in order of preference, e.g. by length, then by id.

    Yields:
        A removed document, the one that represents it, and their Jaccard similarity, at least
        `min_jaccard`.
    """
    rest, num_comparisons = list(members), 0
    while len(rest) > 1 and num_comparisons < MAX_COMPARISONS:
        kept, *rest = rest
        num_comparisons += len(rest)
        values = similarities(shingles_of(kept), map(shingles_of, rest)).tolist()
        for member, similarity in zip(rest, values):
            if similarity >= min_jaccard:
                yield member, kept, similarity
        rest = [member for member, similarity in zip(rest, values) if similarity < min_jaccard]
