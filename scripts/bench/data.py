"""Benchmark of the data engine against datatrove, on the same documents and rules, on one core.

    python -m scripts.bench.data --corpus=runs/quickstart-cpu/corpus [--megabytes=4]

Texts are those of a corpus (documents and removed ones alike) and, where HEARTWOOD_DATASETS is set,
real web pages and articles. Both sides run FineWeb's English chain: Gopher's rules, C4's on
lines, FineWeb's; documents that pass are redacted and get a MinHash signature of 14 x 8 hashes over
word 5-grams. A second run applies every step to every document. Heartwood also identifies the
language; datatrove's fastText model would have to be downloaded. Seconds are CPU seconds of this
process, the median of three runs. Without the extra `peers`, which needs an environment of its own,
only Heartwood is timed.

Near duplicates are checked on the same corpus against the Jaccard similarity of all pairs.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.corpus import Corpus
from data.dedup.clusters import choose_representatives, jaccard, verify_groups
from data.dedup.groups import find_groups
from data.dedup.shingles import band_keys, minhash_batch, shingle, shingle_batch
from data.extraction.extract import extract
from data.filters.language import identify
from data.filters.lines import clean_lines
from data.filters.presets import line_rules, thresholds
from data.filters.rules import decide
from data.filters.signals import measure_batch
from data.privacy import redaction

NUM_RUNS, BATCH = 3, 256
NUM_BANDS, ROWS_PER_BAND = 14, 8
ACTIONS = {"email": "redact", "ip": "redact"}   # what datatrove redacts, too

Step = Callable[[Sequence[str]], Sequence[str]]     # texts in, texts that pass out


def read_corpus(folder: Path, max_bytes: int, with_code: bool = False) -> list[str]:
    """Texts of a corpus, kept and removed, in the order of ids, which is random."""
    corpus, rows = Corpus(folder), []
    for kind in ("documents", "removed"):
        rows += [(row["id"], row["text"]) for _, row in corpus.rows(kind, ["id", "text", "domain"])
                  if with_code or row["domain"] != "code"]
    return _take([text for _, text in sorted(rows)], max_bytes)


def read_web(datasets: Path, max_bytes: int) -> list[str]:
    """Pages of the article extraction benchmark, extracted by Heartwood, and the sample of C4."""
    texts = [extract(gzip.decompress(path.read_bytes()), "text/html")
             for path in sorted((datasets / "web_extraction").rglob("*.html.gz"))]
    for path in sorted((datasets / "text_small").glob("*.jsonl*")):
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt") as file:
            texts += [row["text"] for row in map(json.loads, file) if "text" in row]
    random.Random(0).shuffle(texts)
    return _take([text for text in texts if text], max_bytes)


def _take(texts: Sequence[str], max_bytes: int) -> list[str]:
    taken, size = [], 0
    for text in texts:
        if size >= max_bytes:
            break
        taken.append(text)
        size += len(text.encode())
    return taken


# --- Heartwood ----------------------------------------------------------------------------------

def our_steps(keep_all: bool) -> dict[str, Step]:
    """Heartwood's chain in four steps, as its passes run it."""
    bounds, rules = thresholds("fineweb", "en"), line_rules("fineweb")

    def language(texts):
        for text in texts:
            identify(text)
        return texts

    def all_rules(texts):
        kept = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start:start + BATCH]
            signals = measure_batch(batch, ["prose"] * len(batch), [("en", 1.0)] * len(batch))
            results = [clean_lines(text, rules) for text, row in zip(batch, signals)
                       if decide(row, bounds) is None or keep_all]
            kept += [result.text for result in results if result.removal is None or keep_all]
        return kept

    def redact(texts):
        return [redaction.apply(text, redaction.find(text, tuple(ACTIONS)), ACTIONS)[0]
                for text in texts]

    def minhash(texts):
        for start in range(0, len(texts), BATCH):
            grams, offsets = shingle_batch(texts[start:start + BATCH], 5)
            minhash_batch(grams, offsets, NUM_BANDS * ROWS_PER_BAND, 0)
        return texts

    return {"language": language, "rules": all_rules, "privacy": redact, "minhash": minhash}


# --- datatrove ----------------------------------------------------------------------------------

def datatrove_steps(folder: str, keep_all: bool) -> dict[str, Step] | None:
    """The same chain of datatrove; None if it is not installed."""
    try:
        from datatrove.data import Document
        from datatrove.pipeline import filters
        from datatrove.pipeline.dedup import MinhashDedupSignature
        from datatrove.pipeline.dedup.minhash import MinhashConfig
        from datatrove.pipeline.formatters import PIIFormatter
        from datatrove.utils.hashing import HashConfig
    except ImportError as error:
        log(f"datatrove cannot be imported ({error}): pip install -e .[peers]")
        return None
    chain = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter(),
             filters.C4QualityFilter(filter_no_terminal_punct=False),
             filters.FineWebQualityFilter()]
    formatter = PIIFormatter()
    signature = MinhashDedupSignature(output_folder=folder, config=MinhashConfig(
        n_grams=5, num_buckets=NUM_BANDS, hashes_per_bucket=ROWS_PER_BAND,
        hash_config=HashConfig(hash_fc="sha1")))    # FineWeb's; its xxhash needs xxhash < 4

    def all_rules(texts):
        documents = [Document(text=text, id=str(place)) for place, text in enumerate(texts)]
        if keep_all:
            for step in chain:
                for document in filter(lambda one: one.text, documents):
                    step.filter(document)
            return [document.text for document in documents]
        return [document.text for document in documents
                if all(document.text and step.filter(document) is True for step in chain)]

    def redact(texts):
        return [formatter.format(text) for text in texts]

    def minhash(texts):
        signature.run((Document(text=text, id=str(place)) for place, text in enumerate(texts)),
                      rank=0, world_size=1)
        return texts

    return {"rules": all_rules, "privacy": redact, "minhash": minhash}


# --- measuring ----------------------------------------------------------------------------------

def time_chain(steps: dict[str, Step], texts: Sequence[str]) -> dict[str, float]:
    """CPU seconds of each step on the output of the previous step; the median of the runs."""
    runs: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(NUM_RUNS):
        passing = texts
        for name, step in steps.items():
            began = time.process_time()
            passing = step(passing)
            runs[name].append(time.process_time() - began)
    return {name: statistics.median(secs) for name, secs in runs.items()} | {"kept": len(passing)}


def compare(name: str, texts: Sequence[str], folder: str, keep_all: bool) -> dict[str, Any]:
    """Times both chains on one set of texts; prints a table.

    Args:
        keep_all: applies every step to every document instead of stopping at the first rule.
    """
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours, theirs = our_steps(keep_all), datatrove_steps(folder, keep_all)
    time_chain(ours, texts[:50])    # warm: vocabularies, compiled patterns
    measured = {"ours": time_chain(ours, texts)}
    if theirs:
        time_chain(theirs, texts[:50])
        measured["datatrove"] = time_chain(theirs, texts)
    result: dict[str, Any] = {"documents": len(texts), "megabytes": round(megabytes, 2)}
    print(f"{name}, {'every step on every document' if keep_all else 'until a rule is broken'}: "
          f"{len(texts)} documents, {megabytes:.2f} MB")
    for side, secs in measured.items():
        kept, steps = secs.pop("kept"), {step: round(s, 3) for step, s in secs.items()}
        speed = megabytes / sum(secs.values())
        shared = megabytes / sum(s for step, s in secs.items() if step != "language")
        result[side] = {"secs": steps, "kept": kept, "mb_per_sec": round(speed, 3),
                        "mb_per_sec_without_language": round(shared, 3)}
        print(f"  {side:10} {speed:8.3f} MB/s, keeps {kept:5}   "
              + "  ".join(f"{step} {s:.2f} s" for step, s in steps.items()))
    if theirs:
        result["ratio"] = round(result["ours"]["mb_per_sec_without_language"]
                                / result["datatrove"]["mb_per_sec_without_language"], 1)
        print(f"  ours / datatrove, without language: {result['ratio']:.1f}")
    return result


def check_near_duplicates(folder: Path) -> dict[str, Any]:
    """Recall and precision of near-duplicate removal against the similarity of all pairs.

    Over a corpus, with the bands by which it was curated. Recall is over pairs of J >= 0.8, of
    which at least one must be removed; precision over removed documents, whose representative must
    have J >= 0.7.
    """
    rules = Corpus(folder).lineage["config"]["curate"]["dedup"]
    num_bands, min_jaccard = rules["num_bands"], rules["min_jaccard"]
    texts = list(dict.fromkeys(read_corpus(folder, 1_000_000_000, with_code=True)))
    grams = [shingle(text, 5) for text in texts]
    pairs = {pair: value for pair, value in _all_pairs(grams) if value >= 0.8}
    offsets = np.cumsum([0, *map(len, grams)])
    signatures = minhash_batch(np.concatenate(grams), offsets,
                               num_bands * rules["rows_per_band"], rules["seed"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bands.npy"
        np.save(path, band_keys(signatures, num_bands, rules["rows_per_band"]))
        groups = [group.positions // num_bands
                  for group in find_groups([path], memory_bytes=1 << 30)]
    edges = verify_groups(groups, grams.__getitem__, min_jaccard)
    removed = {}
    for tree in edges.forest.trees():
        tree.sort(key=lambda number: (-len(texts[number].encode()), number))
        for number, kept, _ in choose_representatives(tree, grams.__getitem__, min_jaccard):
            removed[number] = kept
    num_caught = sum(first in removed or second in removed for first, second in pairs)
    right = sum(jaccard(grams[number], grams[kept]) >= 0.7 for number, kept in removed.items())
    return {"documents": len(texts), "pairs": len(pairs), "removed": len(removed),
            "recall": round(num_caught / max(len(pairs), 1), 4),
            "precision": round(right / max(len(removed), 1), 4),
            "acceptance_rate": round(edges.num_accepted / max(edges.num_verified, 1), 4)}


def _all_pairs(grams: Sequence[np.ndarray]) -> Iterator[tuple[tuple[int, int], float]]:
    """Exact similarities of all pairs that share a shingle, by an inverted index."""
    sizes = np.array(list(map(len, grams)))
    owners = np.repeat(np.arange(len(grams)), sizes)
    hashes = np.concatenate(grams)
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    for number, own in enumerate(grams):
        first, last = np.searchsorted(hashes, own, "left"), np.searchsorted(hashes, own, "right")
        lengths = last - first
        starts = np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        shared = np.bincount(owners[starts + np.arange(lengths.sum())], minlength=len(grams))
        for other in np.flatnonzero(shared[number + 1:]) + number + 1:
            yield (number, int(other)), shared[other] / (sizes[number] + sizes[other]
                                                         - shared[other])


def main() -> dict[str, Any]:
    """Runs the benchmark; returns its figures."""
    if not flags.FLAGS.corpus:
        raise UserError("--corpus", "is missing", "try --corpus=runs/quickstart-cpu/corpus")
    max_bytes = flags.FLAGS.megabytes * 1_000_000
    result: dict[str, Any] = {}
    sets = {"corpus": read_corpus(Path(flags.FLAGS.corpus), max_bytes)}
    if "HEARTWOOD_DATASETS" in os.environ:
        sets = {"web": read_web(Path(os.environ["HEARTWOOD_DATASETS"]), max_bytes)} | sets
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in sets.items():
            result[name] = {"chain": compare(name, texts, folder, keep_all=False),
                            "every_step": compare(name, texts, folder, keep_all=True)}
    result["near_dedup"] = check_near_duplicates(Path(flags.FLAGS.corpus))
    print(f"near duplicates: {result['near_dedup']}")
    first = next(iter(sets))
    return result | {"ratio": result[first]["chain"].get("ratio")}


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Folder that `python -m data.curate` wrote.")
    flags.DEFINE_integer("megabytes", 4, "Text of each set, in MB.", lower_bound=1)
    entry.run(main)
