"""A global shuffle on disk, in bounded memory.

It is an external sort. Each unit of work writes *runs*: documents sorted by a seeded hash of their
ids. Runs are merged bucket by bucket: a bucket is a range of hashes, so it is one slice of every
run; the slices are read, sorted together and appended to the token file. The order depends on
ids and seed alone, not on units, workers, or the size of a bucket.

A run is two files: `NAME.run`, the tokens, and `NAME.index`, little-endian uint64 [4, documents],
with the rows KEY, RANK, END and BYTES.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from core.artifacts import read_json, write_json

KEY, RANK, END, BYTES = range(4)  # hash; rank by score; end in the run, in tokens; bytes of text
WORST_RANK = 2**64 - 1


def shuffle_key(document_id: str, seed: int) -> int:
    """64-bit hash that determines a document's place in the shuffled order."""
    return xxhash.xxh3_64_intdigest(document_id.encode(), seed=seed)


def write_run(path: Path, keys: Sequence[int], scores: Sequence[float], sizes: Sequence[int],
              tokens: Sequence[np.ndarray]) -> None:
    """Writes documents as a run, ``{path}.run`` and ``{path}.index``.

    Args:
        keys, scores, sizes, tokens: of each document, in the order of the corpus: shuffle key,
            score (the higher the better), bytes of text, and token ids.
    """
    keys_array = np.asarray(keys, np.uint64)
    order = np.argsort(keys_array, kind="stable")
    ends = np.cumsum([len(tokens[i]) for i in order])
    index = np.stack([keys_array[order], _ranks(keys_array, scores)[order], ends.astype(np.uint64),
                      np.asarray(sizes, np.uint64)[order]])
    _replace(path.with_name(f"{path.name}.run"), [tokens[i] for i in order])
    _replace(path.with_name(f"{path.name}.index"), [index.astype("<u8")])


def merge_runs(runs: Sequence[Path], output: Path, dtype: np.dtype, num_buckets: int,
               max_rank: int = WORST_RANK) -> dict[str, int]:
    """Merges runs into ``{output}.tokens`` and ``{output}.ends``, one bucket in memory at a time.

    A killed merge resumes at the last finished bucket, recorded in ``{name}.merged.json`` beside
    the runs.

    Args:
        runs: paths without suffix in the order of the corpus, which decides between equal keys.
        dtype: of the tokens.
        num_buckets: parts of the range of hashes; affects memory, not the result.
        max_rank: documents of a larger rank are excluded.

    Returns:
        Documents, tokens, and bytes of text.
    """
    reached = runs[0].with_name(f"{output.name}.merged.json")
    state = {"num_buckets": num_buckets, "buckets": 0, "documents": 0, "tokens": 0, "bytes": 0}
    if reached.exists() and read_json(reached)["num_buckets"] == num_buckets:
        state = read_json(reached)
    with open(f"{output}.tokens", "ab") as tokens, open(f"{output}.ends", "ab") as ends:
        tokens.truncate(state["tokens"] * dtype.itemsize)
        ends.truncate(state["documents"] * 8)
        for bucket in range(state["buckets"], num_buckets):
            documents, num_bytes = _bucket(runs, dtype, bucket, num_buckets, max_rank)
            lengths = np.asarray([len(document) for document in documents], np.int64)
            tokens.writelines(documents)
            ends.write((state["tokens"] + np.cumsum(lengths)).astype("<i8"))
            for file in (tokens, ends):
                file.flush()
                os.fsync(file.fileno())
            state = {"num_buckets": num_buckets, "buckets": bucket + 1,
                     "documents": state["documents"] + len(documents),
                     "tokens": state["tokens"] + int(lengths.sum()),
                     "bytes": state["bytes"] + num_bytes}
            write_json(reached, state)
    return {name: state[name] for name in ("documents", "tokens", "bytes")}


def select_rank(runs: Sequence[Path], num_wanted: int) -> int:
    """The largest rank among the best `num_wanted` documents of the runs.

    A radix selection: four passes over the ranks, with 65,536 counters.
    """
    prefix, num_remaining = 0, num_wanted
    for shift in (48, 32, 16, 0):
        counts = np.zeros(2**16, np.int64)
        for run in runs:
            above, digit = np.divmod(_index(run)[RANK] >> np.uint64(shift), np.uint64(2**16))
            counts += np.bincount(digit[above == prefix].astype(np.int64), minlength=2**16)
        up_to = np.cumsum(counts)
        chosen = int(np.searchsorted(up_to, num_remaining))
        num_remaining -= int(up_to[chosen] - counts[chosen])
        prefix = prefix << 16 | chosen
    return prefix


def _bucket(runs: Sequence[Path], dtype: np.dtype, bucket: int, num_buckets: int,
            max_rank: int) -> tuple[list[np.ndarray], int]:
    """The documents of one range of hashes, in order, and their bytes of text."""
    low, high = (np.uint64((bucket + i) * 2**64 // num_buckets - i) for i in (0, 1))  # inclusive
    keys, documents, num_bytes = [], [], 0
    for run in runs:
        index = _index(run)
        first = int(np.searchsorted(index[KEY], low, side="left"))
        stop = int(np.searchsorted(index[KEY], high, side="right"))
        if first == stop:
            continue
        origin = int(index[END, first - 1]) if first else 0
        ends = index[END, first:stop].astype(np.int64) - origin
        tokens = np.fromfile(run.with_name(f"{run.name}.run"), dtype, ends[-1],
                             offset=origin * dtype.itemsize)
        kept = np.flatnonzero(index[RANK, first:stop] <= np.uint64(max_rank))
        starts = np.r_[0, ends[:-1]]
        documents += [tokens[starts[i]:ends[i]] for i in kept]
        keys.append(index[KEY, first:stop][kept])
        num_bytes += int(index[BYTES, first:stop][kept].sum())
    order = np.argsort(np.concatenate(keys), kind="stable") if keys else []
    return [documents[i] for i in order], num_bytes


def _index(run: Path) -> np.ndarray:
    path = run.with_name(f"{run.name}.index")
    return np.memmap(path, "<u8", mode="r", shape=(4, path.stat().st_size // 32))


def _ranks(keys: np.ndarray, scores: Sequence[float]) -> np.ndarray:
    """Ranks, best first: the score as float32 in the upper half, the hash in the lower one."""
    bits = np.asarray(scores, np.float32).view(np.uint32)
    # IEEE 754: positive numbers sort as their bits, negative ones in reverse.
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    return (~ascending).astype(np.uint64) << np.uint64(32) | keys >> np.uint64(32)


def _replace(path: Path, arrays: Sequence[np.ndarray]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.writelines(arrays)
    os.replace(temporary, path)
