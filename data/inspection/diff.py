"""Compares two corpora: documents in only one, and documents treated differently, by reason.

Documents are matched by id, a hash of source and unprocessed text, which does not depend on the
config. 35 bytes per document are written to disk, partitioned by the hash of the id; one partition
of both corpora is in memory at a time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from core.page.markup import count, visible
from data.corpus import KINDS, Corpus, Place
from data.inspection.trace import NUM_CHARS, beginning

PARTITION_DOCUMENTS = 1 << 20   # of both corpora together
RECORD = np.dtype([("id", "<u8", 2), ("text", "<u8"), ("verdict", "<u2"), ("kind", "u1"),
                   ("part", "<u4"), ("row", "<u4")])
CHANGES = ("only_a", "only_b", "verdict_changed", "text_changed")


class _Spill:
    """A corpus as records in partition files, unordered."""

    def __init__(self, corpus: Corpus, labels: dict[str, int], folder: Path, num_partitions: int):
        self._paths = [folder / f"{number:04d}" for number in range(num_partitions)]
        folder.mkdir()
        records: list[list[tuple]] = [[] for _ in self._paths]
        num_waiting = 0
        for place, row in self._rows(corpus):
            high, low = divmod(xxhash.xxh3_128_intdigest(row["id"].encode()), 1 << 64)
            verdict = labels.setdefault(_verdict(place, row), len(labels))
            records[high * num_partitions >> 64].append((
                (high, low), xxhash.xxh3_64_intdigest(row["text"].encode()), verdict,
                KINDS.index(place.kind), place.part, place.row))
            num_waiting += 1
            if num_waiting == 1 << 16:
                self._flush(records)
                num_waiting = 0
        self._flush(records)

    @staticmethod
    def _rows(corpus: Corpus) -> Iterator[tuple[Place, dict[str, Any]]]:
        for kind in KINDS:
            yield from corpus.rows(kind, ["id", "text", *(["reason"] if kind == "removed" else [])])

    def _flush(self, records: list[list[tuple]]) -> None:
        for path, waiting in zip(self._paths, records):
            with open(path, "ab") as file:
                np.array(waiting, RECORD).tofile(file)
            waiting.clear()

    def load(self, partition: int) -> tuple[np.ndarray, np.ndarray]:
        """Records of a partition sorted by id, one per id, and their ids as sortable bytes.

        Of several records with one id (the same source and text), the kept one is chosen.
        """
        records = np.fromfile(self._paths[partition], RECORD)
        keys = np.ascontiguousarray(records["id"].astype(">u8")).view("V16").ravel()
        order = np.lexsort((records["kind"], records["id"][:, 1], records["id"][:, 0]))
        records, keys = records[order], keys[order]
        is_first = np.ones(len(keys), bool)
        is_first[1:] = keys[1:] != keys[:-1]
        return records[is_first], keys[is_first]


def compare(a: Corpus, b: Corpus, num: int) -> dict[str, Any]:
    """Prints both funnels and `num` documents of every kind of difference.

    Returns:
        Documents of both corpora, those equal in both, and by reason those only in `a`, only in
        `b`, with different verdicts, and with different texts.
    """
    labels: dict[str, int] = {}
    groups: dict[str, Counter] = {change: Counter() for change in CHANGES}
    samples: dict[tuple[str, str], list[tuple]] = defaultdict(list)
    totals = Counter()
    num_partitions = 1 + (a.num_rows() + b.num_rows()) // PARTITION_DOCUMENTS
    with tempfile.TemporaryDirectory() as scratch:
        spills = [_Spill(corpus, labels, Path(scratch) / name, num_partitions)
                  for name, corpus in (("a", a), ("b", b))]
        names = list(labels)
        for partition in range(num_partitions):
            for change, left, right in _differences(*(spill.load(partition) for spill in spills),
                                                    totals):
                group = _group(change, left, right, names)
                groups[change][group] += 1
                if len(samples[change, group]) < num:
                    samples[change, group].append((left, right))
    _print_funnels(a, b)
    for change, counts in groups.items():
        for group, documents in counts.most_common():
            print(f"\n{change.replace('_', ' ')}: {group} ({count(documents)})")
            for left, right in samples[change, group]:
                _print_sample(a, b, left, right)
    return {"a": str(a.folder), "b": str(b.folder), "documents_a": totals["a"],
            "documents_b": totals["b"], "same": totals["same"],
            **{change: dict(counts.most_common()) for change, counts in groups.items()}}


def _differences(a, b, totals: Counter) -> Iterator[tuple[str, Any, Any]]:
    """(change, record in a, record in b) for every id that differs between the two."""
    (records_a, keys_a), (records_b, keys_b) = a, b
    totals.update({"a": len(keys_a), "b": len(keys_b)})
    shared, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    for change, records, at in (("only_a", records_a, at_a), ("only_b", records_b, at_b)):
        is_alone = np.ones(len(records), bool)
        is_alone[at] = False
        for record in records[is_alone]:
            yield (change, record, None) if change == "only_a" else (change, None, record)
    left, right = records_a[at_a], records_b[at_b]
    other_verdict = left["verdict"] != right["verdict"]
    other_text = ~other_verdict & (left["text"] != right["text"])
    totals["same"] += len(shared) - int(other_verdict.sum() + other_text.sum())
    for change, is_other in (("verdict_changed", other_verdict), ("text_changed", other_text)):
        yield from zip(itertools.repeat(change), left[is_other], right[is_other])


def _verdict(place: Place, row: dict[str, Any]) -> str:
    return {"documents": "kept", "heldout": "held out"}.get(place.kind) or row["reason"]


def _group(change: str, left, right, names: list[str]) -> str:
    verdicts = [names[record["verdict"]] for record in (left, right) if record is not None]
    return " -> ".join(verdicts) if change == "verdict_changed" else verdicts[0]


def _print_funnels(a: Corpus, b: Corpus) -> None:
    """Prints documents of both after every stage and for every reason, and the difference."""
    left, right = _funnel_rows(a), _funnel_rows(b)
    stages = list(dict.fromkeys(stage for stage, _ in [*left, *right]))
    print(f"{'':<44}{'A':>12}{'B':>12}{'B - A':>12}")
    for name in sorted({*left, *right}, key=lambda name: (stages.index(name[0]), name[1])):
        ours, theirs = left.get(name, 0), right.get(name, 0)
        stage, reason = name
        title = f"  {reason}" if reason else stage
        print(f"{title:<44}{ours:>12,}{theirs:>12,}{theirs - ours:>+12,}")


def _funnel_rows(corpus: Corpus) -> dict[tuple[str, str], int]:
    """Documents removed by (stage, reason), and remaining documents by (stage, "")."""
    remaining = {(record["stage"], ""): record["documents_out"]
                 for record in corpus.manifest.get("funnel", ())}
    removed = {(stage, reason): counts["documents"]
               for stage, reason, counts in corpus.removals()}
    return {("read", ""): corpus.manifest["documents_in"]} | remaining | removed


def _print_sample(a: Corpus, b: Corpus, left, right) -> None:
    rows = [corpus.read_at(Place(KINDS[record["kind"]], int(record["part"]), int(record["row"])))
            for corpus, record in ((a, left), (b, right)) if record is not None]
    scores = [f"{row['reason']} = {row['score']:.4g}" for row in rows if "reason" in row]
    print(f"{rows[0]['id']}  {visible(rows[0]['source'])}  {', '.join(scores)}")
    if len(rows) == 2 and rows[0]["text"] != rows[1]["text"]:
        print(_first_change(rows[0]["text"], rows[1]["text"]))
    else:
        print(beginning(rows[0]["text"]))


def _first_change(ours: str, theirs: str) -> str:
    """The first line in which two texts differ."""
    lines = itertools.zip_longest(ours.splitlines(), theirs.splitlines(), fillvalue="(end)")
    number, (left, right) = next((number, pair) for number, pair in enumerate(lines, 1)
                                 if pair[0] != pair[1])
    left, right = (visible(line[:NUM_CHARS]) for line in (left, right))
    return f"    line {number}\n    A {left}\n    B {right}"
