"""Benchmark of data loading: tokens per second of a training loop's rows, and costs of packing.

    python -m scripts.bench.tokens --tokens=runs/quickstart/tokens --domain=pages
    python -m scripts.bench.tokens                     # on 50 million synthetic tokens

First the roofline: rows of a numpy memmap in shuffled order, without Grain. Then, in turns, each
through a shuffled, batched Grain `MapDataset` read by one thread as in training: plain rows from
the memmap, plain rows from ArrayRecord, and training rows (targets, weights, segments, positions)
in both packings. Then the shares that either packing cuts and pads. Prints one JSON line last.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter

from core import entry
from core.artifacts import write_json
from core.progress import log
from data.tokens.checked import write_sums
from data.tokens.rows import PACKINGS, batches, open_tokens

BATCH_SIZE = 32
NUM_ROUNDS = 5


class MemmapRows:
    """Rows as plain slices, as in a hand-written loop."""

    def __init__(self, tokens: np.ndarray, row_length: int):
        self._tokens, self._row_length = tokens, row_length

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._row_length

    def __getitem__(self, index: int) -> np.ndarray:
        start = index * self._row_length
        return self._tokens[start:start + self._row_length + 1]


def write_synthetic_tokens(folder: Path, num_tokens: int = 50_000_000) -> None:
    """Writes a token folder of random documents, of log-normal length with a mean near 1,000."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(6.2, 1.2, num_tokens // 1000).astype(np.int64), 2)
    total = int(lengths.sum())
    rng.integers(0, 2**15, total, np.uint16).tofile(folder / "pages.tokens")
    np.cumsum(lengths).astype("<i8").tofile(folder / "pages.ends")
    for suffix in ("tokens", "ends"):
        write_sums(folder / f"pages.{suffix}")
    write_json(folder / "tokens.json", {"dtype": "uint16", "vocab_size": 2**15,
                                        "domains": {"pages": {"tokens": total}}})


def rows_per_sec(rows: Iterator[Any], num_reads: int, rows_per_read: int) -> float:
    """Rate over `num_reads` reads, after a warm-up read."""
    next(rows)
    began = time.perf_counter()
    for _ in range(num_reads):
        next(rows)
    return num_reads * rows_per_read / (time.perf_counter() - began)


def measure(tokens: np.ndarray, sources: Mapping[str, grain.MapDataset], row_length: int,
            num_batches: int) -> dict[str, float]:
    """Median tokens per second of the roofline and of every source, measured in turns."""
    bare = MemmapRows(tokens, row_length)
    order = np.random.default_rng(0).permutation(len(bare))
    speeds: dict[str, list[float]] = {name: [] for name in ("roofline", *sources)}
    for _ in range(NUM_ROUNDS):
        plain = (bare[i].astype(np.int32) for i in itertools.cycle(order))
        speeds["roofline"].append(rows_per_sec(plain, num_batches * BATCH_SIZE, 1))
        for name, source in sources.items():
            made = batches(source.seed(0).shuffle().repeat(), BATCH_SIZE)
            iterator = iter(made.to_iter_dataset(grain.ReadOptions(num_threads=1)))
            speeds[name].append(rows_per_sec(iterator, num_batches, BATCH_SIZE))
            iterator.close()
    return {name: statistics.median(rates) * row_length for name, rates in speeds.items()}


def packing_shares(ends: np.ndarray, row_length: int, num_best_fit_rows: int) -> dict[str, Any]:
    """Shares that each packing cuts (of all documents; of those that fit a row) and pads."""
    starts = np.r_[0, ends[:-1]]
    num_inputs = ends - starts - 1
    fits = num_inputs <= row_length
    is_cut = starts // row_length != (ends - 2) // row_length
    best_fit_inputs = num_best_fit_rows * row_length
    return {
        "concatenate": {"cut_frac": float(is_cut.mean()),
                        "needlessly_cut_frac": float((is_cut & fits).mean()),
                        "padding_frac": float(-ends[-1] % row_length / ends[-1])},
        "best_fit": {"cut_frac": float((~fits).mean()), "needlessly_cut_frac": 0.0,
                     "padding_frac": float(1 - num_inputs.sum() / best_fit_inputs)},
    }


def write_array_record(path: Path, rows: MemmapRows) -> grain.MapDataset:
    """Writes rows as ArrayRecord, uncompressed, one per group, as token ids hardly compress."""
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for i in range(len(rows)):
        writer.write(rows[i].tobytes())
    writer.close()
    dtype = rows[0].dtype
    return grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(path)])).map(
        lambda record: np.frombuffer(record, dtype))


def bench(folder: Path, domain: str, row_length: int, num_batches: int,
          scratch: Path) -> dict[str, Any]:
    """Prints both tables; returns their figures."""
    tokens, ends = open_tokens(folder, domain)
    tokens = tokens[:]
    bare = MemmapRows(tokens, row_length)
    began = time.perf_counter()
    packed = {name: make(folder, domain, row_length) for name, make in PACKINGS.items()}
    open_secs = time.perf_counter() - began
    log(f"{len(tokens):,} tokens, {len(ends):,} documents, rows of {row_length}, batches of "
        f"{BATCH_SIZE}; opened and packed in {open_secs:.2f} s")
    sources = {"memmap": grain.MapDataset.source(bare),
               "array_record": write_array_record(scratch / "rows.array_record", bare)}
    sources |= {name: grain.MapDataset.source(rows) for name, rows in packed.items()}
    speeds = measure(tokens, sources, row_length, num_batches)
    for name, speed in speeds.items():
        log(f"{name:14}{speed / 1e6:8.1f} M tokens/s {speed / speeds['memmap']:6.2f} x memmap")
    shares = packing_shares(ends, row_length, len(packed["best_fit"]))
    for name, parts in shares.items():
        log(f"{name:14}" + ", ".join(f"{part} {share:.4f}" for part, share in parts.items()))
    return {"tokens": len(tokens), "row_length": row_length, "open_secs": round(open_secs, 3),
            "tokens_per_sec": {name: round(speed) for name, speed in speeds.items()},
            "packing": shares, "ratio": round(speeds["concatenate"] / speeds["memmap"], 3)}


def main() -> dict[str, Any]:
    """Reads the flags and measures, in a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(flags.FLAGS.tokens or scratch)
        if not flags.FLAGS.tokens:
            write_synthetic_tokens(folder)
        return bench(folder, flags.FLAGS.domain, flags.FLAGS.row_length, flags.FLAGS.num_batches,
                     Path(scratch))


if __name__ == "__main__":
    flags.DEFINE_string("tokens", None, "Token folder; synthetic if not given.")
    flags.DEFINE_string("domain", "pages", "Domain of the folder to read.")
    flags.DEFINE_integer("row_length", 1024, "Inputs in a row.", lower_bound=1)
    flags.DEFINE_integer("num_batches", 100, "Batches of 32 rows per measurement.", lower_bound=1)
    entry.run(main)
