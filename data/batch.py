"""`Batch`, the input of every loss, and the packing of token rows into it.

Masks, segments and positions are carried, never inferred from token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import flax
import jax
import numpy as np


@flax.struct.dataclass
class Source:
    """What the encoder of an encoder-decoder reads: rows of packed documents.

    The decoder's tokens of a segment attend to the source tokens of the same segment.

    Attributes:
        tokens_BM: int32 inputs.
        segment_ids_BM: int32, document of each input in its row, from 1; 0 is padding.
        positions_BM: int32, position of each input in its document.
    """

    tokens_BM: jax.Array | np.ndarray
    segment_ids_BM: jax.Array | np.ndarray
    positions_BM: jax.Array | np.ndarray


@flax.struct.dataclass
class Batch:
    """Rows of packed documents, already shifted: position l of `tokens` predicts `targets` l.

    Attributes:
        tokens_BL: int32 inputs.
        targets_BL: int32, what each input predicts: the next token or, in masked language
            modelling, the original token at its own position.
        loss_weights_BL: float32, how much each target counts; 0 is not scored.
        segment_ids_BL: int32, document of each input in its row, from 1; 0 is padding.
        positions_BL: int32, position of each input in its document.
        source: the encoder's inputs, for an encoder-decoder; else None.
    """

    tokens_BL: jax.Array | np.ndarray
    targets_BL: jax.Array | np.ndarray
    loss_weights_BL: jax.Array | np.ndarray
    segment_ids_BL: jax.Array | np.ndarray
    positions_BL: jax.Array | np.ndarray
    source: Source | None = None

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What a model's forward takes: tokens, positions, segment ids and, if any, the source."""
        inputs = self.tokens_BL, self.positions_BL, self.segment_ids_BL
        return inputs if self.source is None else (*inputs, self.source)


def make_row(tokens: np.ndarray, weights: np.ndarray, segments: np.ndarray) -> Batch:
    """Makes one row from L+1 successive tokens, their weights as targets and their segment ids.

    A target in another document than its input, or in padding (segment 0), has weight 0.

    Returns:
        A `Batch` without its B axis; fields are [L].
    """
    same = (segments[1:] == segments[:-1]) & (segments[:-1] > 0)
    starts = np.flatnonzero(np.r_[True, segments[1:-1] != segments[:-2]])
    positions = np.arange(len(segments) - 1)
    positions -= np.repeat(starts, np.diff(np.r_[starts, len(positions)]))
    return Batch(tokens_BL=tokens[:-1].astype(np.int32), targets_BL=tokens[1:].astype(np.int32),
                 loss_weights_BL=(weights[1:] * same).astype(np.float32),
                 segment_ids_BL=segments[:-1].astype(np.int32),
                 positions_BL=positions.astype(np.int32))


def stack(rows: Sequence[Batch]) -> Batch:
    """Stacks rows, pytrees of one structure, into a batch."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def pack_examples(examples: Iterable[tuple[Sequence[int], Sequence[float]]],
                  row_length: int) -> tuple[list[Batch], int]:
    """Packs (tokens, weights) examples into rows of `row_length` inputs, first fit, none truncated.

    Returns:
        The rows, and the number of examples skipped because they are longer than a row.
    """
    open_rows: list[tuple[list, list, list]] = []
    closed_rows: list[tuple[list, list, list]] = []
    num_too_long = 0
    for tokens, weights in examples:
        if len(tokens) > row_length + 1:
            num_too_long += 1
            continue
        row = next((r for r in open_rows if len(r[0]) + len(tokens) <= row_length + 1), None)
        if row is None:
            row = ([], [], [])
            open_rows.append(row)
        segment = row[2][-1] + 1 if row[2] else 1
        row[0].extend(tokens)
        row[1].extend(weights)
        row[2].extend([segment] * len(tokens))
        if len(open_rows) > 32:  # bounds the search; the oldest row is the fullest
            closed_rows.append(open_rows.pop(0))
    return [_padded_row(row, row_length + 1) for row in closed_rows + open_rows], num_too_long


def _padded_row(row: tuple[list, list, list], size: int) -> Batch:
    padded = [np.pad(np.asarray(part), (0, size - len(part))) for part in row]
    return make_row(*padded)
