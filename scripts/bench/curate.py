"""Benchmark of curation at one and eight times the same corpus: speed and memory.

    python -m scripts.bench.curate --corpus=runs/quickstart-cpu/corpus [--megabytes=16]

The prose of a corpus is written as JSONL, once and eight times; in every copy a third of the words
are altered, so that the copies are no duplicates of each other. Both are curated by the users'
command (configs/curate.py:local, units of 8 MB, comparisons in 64 MB). Memory is the peak
of the largest process. The ratio is memory at eight times over memory at one time.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import ROOT
from core.errors import UserError
from scripts.bench.data import read_corpus

COPIES, ALTERED_FRAC = (1, 8), 1 / 3


def write_copies(texts: Sequence[str], num_copies: int, path: Path) -> int:
    """Writes altered copies of texts as JSONL; returns their bytes."""
    num_bytes = 0
    with open(path, "w") as file:
        for copy in range(num_copies):
            rng = random.Random(copy)
            for number, text in enumerate(texts):
                altered = "\n".join(" ".join(
                    f"{word}{copy}" if rng.random() < ALTERED_FRAC else word
                    for word in line.split(" ")) for line in text.split("\n"))
                num_bytes += len(altered.encode())
                file.write(json.dumps({"text": altered, "source": f"{copy}/{number}"}) + "\n")
    return num_bytes


def curate(path: Path, workdir: Path) -> dict[str, Any]:
    """Runs the command; returns its result."""
    done = subprocess.run(
        [sys.executable, "-m", "data.curate", "--config=configs/curate.py:local",
         f"--workdir={workdir}", f"--config.curate.inputs={path}",
         "--config.curate.unit_bytes=8000000", "--config.curate.run.memory_bytes=64000000"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> dict[str, Any]:
    """Runs the benchmark; returns its figures."""
    if not flags.FLAGS.corpus:
        raise UserError("--corpus", "is missing", "try --corpus=runs/quickstart-cpu/corpus")
    texts = read_corpus(Path(flags.FLAGS.corpus), flags.FLAGS.megabytes * 1_000_000)
    result: dict[str, Any] = {}
    for num_copies in COPIES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "copies.jsonl"
            num_bytes = write_copies(texts, num_copies, path)
            metrics = curate(path, Path(folder) / "work")
        result[f"x{num_copies}"] = {
            "bytes": num_bytes, "documents_in": metrics["documents_in"],
            "documents": metrics["documents"], "secs": metrics["secs"],
            "stage_secs": metrics["stage_secs"], "peak_memory_bytes": metrics["peak_memory_bytes"],
            "mb_per_sec": round(num_bytes / 1e6 / metrics["secs"], 3)}
        print(f"x{num_copies}: {num_bytes / 1e6:.1f} MB, {metrics['documents_in']} documents, "
              f"{metrics['secs']:.1f} s, {num_bytes / 1e6 / metrics['secs']:.2f} MB/s, "
              f"{metrics['peak_memory_bytes'] / 1e6:.0f} MB of memory")
    memory = [result[f"x{num_copies}"]["peak_memory_bytes"] for num_copies in COPIES]
    return result | {"ratio": round(memory[1] / memory[0], 3)}


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Folder that `python -m data.curate` wrote.")
    flags.DEFINE_integer("megabytes", 16, "Text of one copy, in MB.", lower_bound=1)
    entry.run(main)
