"""Rendered examples on disk: token ids with the weight of each as a target.

A folder holds for each of its parts, as `train` and `heldout`, `PART.tokens` (uint32),
`PART.weights` (float32), `PART.ends` (int64, the end of each example), `PART.values` (float32, a
number of each example) and `PART.groups` (int64, the end of each group among the examples), all
little-endian and with checksums; and one `examples.json`. A group is what is learned from at once:
one conversation, two answers of a pair, K answers of a ranking.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.artifacts import read_json, write_json
from core.errors import UserError
from data.batch import Batch
from data.tokens.best_fit import best_fit
from data.tokens.checked import CheckedArray, write_sums

DTYPES = {"tokens": "<u4", "weights": "<f4", "ends": "<i8", "values": "<f4", "groups": "<i8"}
TRAIN, HELDOUT = "train", "heldout"
DESCRIBED = "examples.json"


class Example(NamedTuple):
    """A rendered example.

    Attributes:
        tokens: ids.
        weights: of each token's loss as a target.
        value: a number that its stage needs: a rank, a label.
    """

    tokens: Sequence[int]
    weights: Sequence[float]
    value: float = 0.0


def write_examples(folder: Path, groups: Iterable[tuple[str, Sequence[Example]]],
                   describe: Callable[[], Mapping[str, Any]] = dict) -> dict[str, Any]:
    """Writes groups of examples as they come; a folder that is finished is left as it is.

    Several processes may write the same folder: the first to end gives its files.

    Args:
        groups: each with its part.
        describe: called after the last group: what else `examples.json` is to hold.

    Returns:
        The contents of `examples.json`: by part the numbers of `groups`, `examples` and `tokens`,
        and the rest.
    """
    if not (folder / DESCRIBED).exists():
        made = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        counts = _write_parts(made, groups)
        write_json(made / DESCRIBED, {"parts": counts, **describe()})
        try:
            os.rename(made, folder)
        except OSError:     # another process has been faster
            shutil.rmtree(made)
    return read_json(folder / DESCRIBED)


def _write_parts(folder: Path, groups: Iterable[tuple[str, Sequence[Example]]]) -> dict[str, Any]:
    counts: dict[str, Counter] = defaultdict(Counter)
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for part, group in groups:
            if part not in counts:
                files |= {f"{part}.{name}": stack.enter_context(
                    open(folder / f"{part}.{name}", "wb")) for name in DTYPES}
            counted = counts[part]
            for tokens, weights, value in group:
                counted["tokens"] += len(tokens)
                for name, values in (("tokens", tokens), ("weights", weights),
                                     ("ends", [counted["tokens"]]), ("values", [value])):
                    files[f"{part}.{name}"].write(np.asarray(values, DTYPES[name]).tobytes())
            counted["examples"] += len(group)
            counted["groups"] += 1
            files[f"{part}.groups"].write(
                np.asarray([counted["examples"]], DTYPES["groups"]).tobytes())
    for name in files:
        write_sums(folder / name)
    return {part: dict(counted) for part, counted in counts.items()}


class Examples:
    """Random access to the groups of a part of a folder that `write_examples` wrote.

    Attributes:
        lengths: tokens of each example.

    Raises:
        UserError: there is no example in the part, or its files are damaged.
    """

    def __init__(self, folder: Path, part: str = TRAIN):
        if part not in read_json(folder / DESCRIBED)["parts"]:
            raise UserError(str(folder), f"holds no example of {part}", "give more data")
        arrays = {name: CheckedArray(folder / f"{part}.{name}", dtype)
                  for name, dtype in DTYPES.items()}
        self._tokens, self._weights = arrays["tokens"], arrays["weights"]
        self._ends, self._values = arrays["ends"][:], arrays["values"][:]
        self._groups = arrays["groups"][:]
        self.lengths = np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> list[Example]:
        """The examples of a group."""
        first = self._groups[index - 1] if index else 0
        return [self.example(number) for number in range(first, self._groups[index])]

    def example(self, number: int) -> Example:
        """An example by its number among all."""
        start, end = self._ends[number - 1] if number else 0, self._ends[number]
        return Example(self._tokens[start:end], self._weights[start:end],
                       float(self._values[number]))


class PackedRows:
    """Random access to rows of whole examples, packed by best fit; a Grain source.

    Args:
        examples: none longer than a row and one token.
        row_length: inputs in a row, L.
    """

    def __init__(self, examples: Examples, row_length: int):
        self._examples, self._row_length = examples, row_length
        row_of = best_fit(np.maximum(examples.lengths - 1, 1), row_length)
        order = np.argsort(row_of, kind="stable")
        self._rows = np.split(order, np.cumsum(np.bincount(row_of))[:-1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Batch:
        return lay_out_examples([self._examples.example(number) for number in self._rows[index]],
                                self._row_length)

    def __repr__(self) -> str:      # Grain compares it on restore
        return f"PackedRows({len(self._examples)}/{self._row_length})"


def lay_out_examples(examples: Sequence[Example], row_length: int) -> Batch:
    """One row, without its B axis, of examples that do not see each other; the rest is padding.

    Returns:
        A row in which each example is a segment, numbered from 1.
    """
    row = Batch(*np.zeros((2, row_length), np.int32), np.zeros(row_length, np.float32),
                *np.zeros((2, row_length), np.int32))
    edges = itertools.accumulate((len(example.tokens) - 1 for example in examples), initial=0)
    for segment, ((begin, end), (tokens, weights, _)) in enumerate(
            zip(itertools.pairwise(edges), examples), start=1):
        row.tokens_BL[begin:end], row.targets_BL[begin:end] = tokens[:-1], tokens[1:]
        row.loss_weights_BL[begin:end] = weights[1:]
        row.segment_ids_BL[begin:end] = segment
        row.positions_BL[begin:end] = np.arange(end - begin)
    return row
