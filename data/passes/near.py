"""Pass 4, per range of band keys: finds near duplicates. Then clusters and representatives.

Documents are numbered over all units, in the order of the index of `data.passes.clean`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dedup.clusters import Forest, choose_representatives, verify_groups
from data.dedup.groups import groups_in_range
from data.tables import TableWriter, write_array

MAX_EXAMPLES = 8            # clusters whose members are listed in the manifest
DUPLICATES_SCHEMA = pa.schema([
    ("row", pa.int32()), ("cluster", pa.string()), ("cluster_size", pa.int64()),
    ("representative", pa.string()), ("similarity", pa.float64())])


class Documents:
    """Rows, sizes and shingles of the documents to compare, read from files.

    Args:
        cleaned: outputs of `data.passes.clean`, without suffix.
    """

    def __init__(self, cleaned: Sequence[str | Path]):
        self._cleaned = list(cleaned)
        self._index = [np.load(f"{path}.index.npy") for path in cleaned]
        self._ends = [np.cumsum(index["shingles"]) for index in self._index]
        #: Number of the first document of each unit, then the total.
        self.first = np.cumsum([0, *map(len, self._index)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def place(self, number: int) -> tuple[int, int]:
        """Unit of a document, and its position in the unit."""
        unit = int(np.searchsorted(self.first, number, "right")) - 1
        return unit, int(number - self.first[unit])

    def index(self, number: int) -> Any:
        """Row, bytes and number of shingles of a document."""
        unit, position = self.place(number)
        return self._index[unit][position]

    def shingles(self, number: int) -> np.ndarray:
        """Sorted shingles of a document: [n] uint64."""
        unit, position = self.place(number)
        size = int(self._index[unit]["shingles"][position])
        start = int(self._ends[unit][position]) - size
        return np.fromfile(f"{self._cleaned[unit]}.shingles", "<u8", size, offset=8 * start)


def find_edges(*, output: Path, cleaned: Sequence[str], bounds: Sequence[int], num_bands: int,
               min_jaccard: float) -> dict[str, int]:
    """Verifies pairs that share a band key in a range; writes the edges of accepted ones.

    Args:
        bounds: of `data.dedup.groups.plan_ranges`.

    Returns:
        Counts: verified, accepted, unverified; see `data.dedup.clusters.Edges`.
    """
    documents = Documents(cleaned)
    groups = (documents.first[group.parts] + group.positions // num_bands
              for group in groups_in_range([Path(f"{path}.bands.npy") for path in cleaned],
                                           tuple(bounds)))
    edges = verify_groups(groups, documents.shingles, min_jaccard)
    pairs = [(tree[0], member) for tree in edges.forest.trees() for member in tree[1:]]
    write_array(f"{output}.edges.npy", np.array(pairs, np.int64).reshape(-1, 2))
    return {"verified": edges.num_verified, "accepted": edges.num_accepted,
            "unverified": edges.num_unverified}


def cluster(cleaned: Sequence[Path], edges: Sequence[Path], folder: Path,
            min_jaccard: float) -> tuple[list[Path], dict[str, Any]]:
    """Joins edges into clusters, and chooses representatives: the longest, then smallest id.

    Returns:
        Per unit a Parquet file of the members of clusters (`representative` is empty for kept
        ones), and a summary of the clusters for the manifest.
    """
    documents, forest = Documents(cleaned), Forest()
    for path in edges:
        for first, second in np.load(f"{path}.edges.npy").tolist():
            forest.unite(first, second)
    trees = forest.trees()
    ids = _read_ids(cleaned, documents, itertools.chain.from_iterable(trees))
    members: list[list[dict[str, Any]]] = [[] for _ in cleaned]
    examples = []
    for tree in trees:
        tree.sort(key=lambda number: (-int(documents.index(number)["bytes"]), ids[number]))
        removed = {number: (kept, similarity) for number, kept, similarity in
                   choose_representatives(tree, documents.shingles, min_jaccard)}
        for number in tree:
            kept, similarity = removed.get(number, (None, 1.0))
            members[documents.place(number)[0]].append({
                "row": int(documents.index(number)["row"]), "cluster": ids[tree[0]],
                "cluster_size": len(tree), "representative": ids.get(kept, ""),
                "similarity": similarity})
        examples.append({"size": len(tree), "id": ids[tree[0]], "members": [
            {"id": ids[number], "similarity": round(similarity, 4)}
            for number, (_, similarity) in itertools.islice(removed.items(), MAX_EXAMPLES)]})
        examples = sorted(examples, key=lambda one: (-one["size"], one["id"]))[:MAX_EXAMPLES]
    paths = [folder / f"{unit:05d}.duplicates.parquet" for unit in range(len(cleaned))]
    for path, rows in zip(paths, members):
        with TableWriter(path, DUPLICATES_SCHEMA) as writer:
            for row in sorted(rows, key=lambda row: row["row"]):
                writer.write(row)
    sizes = Counter(map(len, trees))
    return paths, {"clusters": len(trees), "largest_cluster": max(sizes, default=0),
                   "clusters_by_size": {str(size): sizes[size] for size in sorted(sizes)},
                   "examples": examples}


def _read_ids(cleaned: Sequence[Path], documents: Documents, numbers) -> dict[int, str]:
    """Ids of the given documents."""
    ids = {}
    for unit, group in itertools.groupby(sorted(numbers), key=lambda n: documents.place(n)[0]):
        column = pq.read_table(f"{cleaned[unit]}.parquet", columns=["row", "id"])
        by_row = dict(zip(column["row"].to_pylist(), column["id"].to_pylist()))
        ids.update({number: by_row[int(documents.index(number)["row"])] for number in group})
    return ids


def summarise(counts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """Candidates and acceptance of all ranges, for the manifest."""
    total = sum((Counter(count) for count in counts), Counter())
    return {"candidates": total["verified"], "accepted": total["accepted"],
            "unverified": total["unverified"],
            "acceptance_rate": round(total["accepted"] / max(total["verified"], 1), 4)}
