"""Rendered examples on disk: token ids with the weight of each as a target.

A folder holds `examples.tokens` (uint32), `examples.weights` (float32), `examples.ends` (int64,
the end of each example) and `examples.groups` (int64, the end of each group among the examples),
all little-endian and with checksums, and `examples.json`, which is written last. A group is what is
learned from at once: one conversation, two answers of a pair, K answers of a ranking.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.artifacts import read_json, write_json
from core.errors import UserError
from data.batch import Batch
from data.tokens.best_fit import best_fit
from data.tokens.checked import CheckedArray, write_sums

DTYPES = {"tokens": "<u4", "weights": "<f4", "ends": "<i8", "groups": "<i8"}
DESCRIBED = "examples.json"


class Example(NamedTuple):
    """Token ids, and for each the weight of its loss as a target; equally long."""

    tokens: Sequence[int]
    weights: Sequence[float]


def write_examples(folder: Path, groups: Iterable[Sequence[Example]],
                   describe: Any = lambda: {}) -> dict[str, Any]:
    """Writes groups of examples as they come; a folder that is finished is left as it is.

    Args:
        describe: called after the last group, what else `examples.json` is to hold.

    Returns:
        The contents of `examples.json`: numbers of `groups`, `examples` and `tokens`, and the rest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / DESCRIBED).exists():
        return read_json(folder / DESCRIBED)
    num_groups = num_examples = num_tokens = 0
    paths = {name: folder / f"examples.{name}" for name in DTYPES}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(path, "wb")) for name, path in paths.items()}
        for group in groups:
            for tokens, weights in group:
                num_tokens += len(tokens)
                for name, values in (("tokens", tokens), ("weights", weights),
                                     ("ends", [num_tokens])):
                    files[name].write(np.asarray(values, DTYPES[name]).tobytes())
            num_examples += len(group)
            num_groups += 1
            files["groups"].write(np.asarray([num_examples], DTYPES["groups"]).tobytes())
    for path in paths.values():
        write_sums(path)
    described = {"groups": num_groups, "examples": num_examples, "tokens": num_tokens, **describe()}
    write_json(folder / DESCRIBED, described)
    return described


class Examples:
    """Random access to the groups of a folder that `write_examples` wrote.

    Attributes:
        described: contents of `examples.json`.
        lengths: tokens of each example.
    """

    def __init__(self, folder: Path):
        self.described: Mapping[str, Any] = read_json(folder / DESCRIBED)
        if not self.described["groups"]:
            raise UserError(str(folder), "holds no example", "give more data")
        arrays = {name: CheckedArray(folder / f"examples.{name}", dtype)
                  for name, dtype in DTYPES.items()}
        self._tokens, self._weights = arrays["tokens"], arrays["weights"]
        self._ends, self._groups = arrays["ends"][:], arrays["groups"][:]
        self.lengths = np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> list[Example]:
        """The examples of a group."""
        first = self._groups[index - 1] if index else 0
        return [self.example(number) for number in range(first, self._groups[index])]

    def example(self, number: int) -> Example:
        """An example by its number among all."""
        start = self._ends[number - 1] if number else 0
        return Example(self._tokens[start:self._ends[number]],
                       self._weights[start:self._ends[number]])


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
    edges = itertools.accumulate((len(tokens) - 1 for tokens, _ in examples), initial=0)
    for segment, ((begin, end), (tokens, weights)) in enumerate(
            zip(itertools.pairwise(edges), examples), start=1):
        row.tokens_BL[begin:end], row.targets_BL[begin:end] = tokens[:-1], tokens[1:]
        row.loss_weights_BL[begin:end] = weights[1:]
        row.segment_ids_BL[begin:end] = segment
        row.positions_BL[begin:end] = np.arange(end - begin)
    return row
