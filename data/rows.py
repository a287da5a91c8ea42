"""Token files and the rows that training reads from them.

A token folder holds, per domain, `NAME.tokens` (flat little-endian uint16 or uint32: <|bos|>
text <|end|> for each document) and `NAME.ends` (little-endian int64: where each document ends),
and one `tokens.json`. Rows are cut at load, so that one folder serves every row length, and a
row is found by its number alone: the whole state of a loader is one integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import grain
import numpy as np

from core.artifacts import read_json
from core.errors import UserError
from data.batch import Batch, make_row, stack


class TokenRows:
    """Random access to the rows of one domain; a Grain source.

    Args:
        folder: token folder.
        domain: which of its files to read.
        row_length: inputs in a row, L.
        stride: inputs from one row's start to the next; below `row_length` rows overlap, and
            the overlap is context that is not scored again.
    """

    def __init__(self, folder: Path, domain: str, row_length: int, stride: int | None = None):
        described = read_json(Path(folder) / "tokens.json")
        if domain not in described["domains"]:
            raise UserError(f"domain {domain!r}", f"{folder} holds {sorted(described['domains'])}",
                            "name one of these in the mixture")
        dtype = np.dtype(described["dtype"]).newbyteorder("<")
        #: All tokens of the domain, memory-mapped.
        self.tokens = np.memmap(Path(folder) / f"{domain}.tokens", dtype, mode="r")
        self._ends = np.memmap(Path(folder) / f"{domain}.ends", np.dtype("<i8"), mode="r")
        expected = described["domains"][domain]["tokens"]
        if len(self.tokens) != expected or self._ends[-1] != expected:
            raise UserError(f"{folder}/{domain}.tokens", f"does not hold {expected} tokens",
                            "run `python -m data.pack` again")
        self._row_length, self._stride = row_length, stride or row_length
        self._name = f"{folder}/{domain}/{row_length}/{self._stride}"

    def __len__(self) -> int:
        return max(-(-(len(self.tokens) - 1 - self._row_length) // self._stride) + 1, 1)

    def __getitem__(self, index: int) -> Batch:
        start = int(index) * self._stride
        tokens = np.asarray(self.tokens[start:start + self._row_length + 1])
        where = np.arange(start, start + len(tokens))
        document = np.searchsorted(self._ends, where, side="right")
        segments = document - document[0] + 1
        weights = np.ones(len(tokens))
        if index > 0:
            weights[:self._row_length - self._stride + 1] = 0
        missing = self._row_length + 1 - len(tokens)
        return make_row(*(np.pad(part, (0, missing)) for part in (tokens, weights, segments)))

    def __repr__(self) -> str:  # Grain checks on restore that the source is the same
        return f"TokenRows({self._name})"


def mixture(folder: Path, weights: Mapping[str, float], row_length: int, *, num_rows: int,
            seed: int) -> grain.MapDataset:
    """An endless, shuffled, deterministic mix of domains, cut to `num_rows` rows.

    Args:
        weights: share of rows from each domain; domains of weight 0 are left out.

    Raises:
        UserError: no weight is positive, or a domain is not in the folder.
    """
    shares = {name: float(weight) for name, weight in weights.items() if weight > 0}
    if not shares:
        raise UserError(f"mixture={dict(weights)}", "gives no domain a positive weight",
                        "set one, e.g. --config.pretrain.mixture.pages=1.0")
    parts = [grain.MapDataset.source(TokenRows(folder, name, row_length)).seed(seed + i)
             .shuffle().repeat() for i, name in enumerate(sorted(shares))]
    mixed = grain.MapDataset.mix(parts, [shares[name] for name in sorted(shares)])
    return mixed[:num_rows]


def batches(rows: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """Groups rows into batches; batch i depends on i alone."""
    return rows.batch(batch_size, drop_remainder=True, batch_fn=stack)
