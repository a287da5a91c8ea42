"""The work of `scripts.bench.align`: one small Llama, and pairs of answers as token ids.

Needs only numpy and the standard library, because the peer imports it in an environment where
Heartwood's packages need not be installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

PAD, BOS, END = 0, 1, 2         # ids of the special tokens; the rest are words
BETA = 0.1
TASKS = ("sft", "dpo")


def write_work(folder: Path, shape: dict[str, int], *, num_pairs: int, row_length: int) -> None:
    """Writes `work.json`: the shape, and pairs of random words, each of an own length.

    A prompt has a quarter to a half of the row, an answer an eighth to a half, its end included.
    """
    rng = np.random.default_rng(0)

    def words(low: int, high: int) -> list[int]:
        return rng.integers(END + 1, shape["V"], rng.integers(low, high)).tolist()

    pairs = [{"prompt": [BOS, *words(row_length // 4, row_length // 2 - 1)],
              **{side: [*words(row_length // 8, row_length // 2 - 1), END]
                 for side in ("chosen", "rejected")}} for _ in range(num_pairs)]
    (folder / "work.json").write_text(json.dumps(
        {"shape": shape, "row_length": row_length, "pairs": pairs}))


def read_work(folder: str) -> dict[str, Any]:
    """The contents of `work.json`."""
    return json.loads((Path(folder) / "work.json").read_text())
