"""Log-probabilities of many pieces of text, packed into rows of a few lengths.

Pieces are sorted by length and share rows, in which the segment ids keep them apart. A piece goes
into the shortest kind of row that holds it, and each kind is computed by one program, with one more
for what is left at the end. A piece's figure depends neither on its neighbours nor on the batch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from core.progress import Progress
from data.batch import Batch, stack
from data.tokens.best_fit import best_fit
from data.tokens.examples import Example, lay_out_examples
from eval.measures.likelihood import batch_logps
from eval.respond.loaded import LoadedModel
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params

SHORTEST = 128      # inputs of a row: shorter ones would take more programs and save little
RATIO = 4           # of the lengths of two kinds of rows: at most three quarters are padding


class Piece(NamedTuple):
    """Tokens of one window, of which the last `num_scored` are scored; the others are context."""

    tokens: np.ndarray
    num_scored: int


# Figures of each target, [B, L] or [B, L, n], of parameters and a batch.
Score = Callable[..., jax.Array]


@partial(jax.jit, static_argnames=("config", "execution"))
def _logps(params: Params, batch: Batch, *, config: ModelConfig,
           execution: Execution) -> jax.Array:
    return batch_logps(params, batch, config=config, execution=execution)


def row_lengths(longest: int) -> list[int]:
    """Lengths of the kinds of rows, in ascending order; the last is `longest`."""
    lengths = [longest]
    while lengths[0] > SHORTEST:
        lengths.insert(0, -(-lengths[0] // RATIO))
    return lengths


def score_pieces(model: LoadedModel, pieces: Sequence[Piece], *, longest: int,
                 batch_size: int, score: Score = _logps) -> list[np.ndarray]:
    """Log-probabilities of the scored tokens of each piece, in nats, float32.

    Args:
        longest: inputs of the longest possible piece, which decides the lengths of rows.
        batch_size: rows of this length in a batch; of shorter rows, as many as have its tokens.
        score: what is computed in place of log-probabilities.
    """
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(pieces)
    in_flight: deque[tuple[list[np.ndarray], jax.Array]] = deque()
    num_done = 0

    def fetch() -> int:
        """Takes the oldest batch; the number of tokens in it that are scored."""
        members, logp_BL = in_flight.popleft()
        for row, logp_L in zip(members, jax.device_get(logp_BL)):
            ends = itertools.accumulate(len(pieces[i].tokens) - 1 for i in row.tolist())
            for i, end in zip(row.tolist(), ends):
                found[i] = logp_L[end - pieces[i].num_scored:end]
        return sum(pieces[i].num_scored for row in members for i in row.tolist())

    with Progress("likelihood", sum(piece.num_scored for piece in pieces), "tokens") as progress:
        for members, batch in _batches(pieces, longest, batch_size):
            model.between_batches()
            in_flight.append((members, score(model.params, batch, config=model.config,
                                             execution=model.execution)))
            if len(in_flight) > 1:      # one computes while another is prepared
                num_done += fetch()
                progress.update(num_done)
        while in_flight:
            num_done += fetch()
        progress.update(num_done)
    return found


def _batches(pieces: Sequence[Piece], longest: int,
             batch_size: int) -> Iterator[tuple[list[np.ndarray], Batch]]:
    """The batches, each with the numbers of the pieces in each of its rows."""
    sizes = np.array([len(piece.tokens) - 1 for piece in pieces], np.int64)
    kinds = row_lengths(longest)
    kind_of = np.searchsorted(kinds, sizes)
    for kind, row_length in enumerate(kinds):
        picked = np.flatnonzero(kind_of == kind)
        if not len(picked):
            continue
        row_of = best_fit(sizes[picked], row_length)
        order = picked[np.argsort(row_of, kind="stable")]
        rows = np.split(order, np.cumsum(np.bincount(row_of))[:-1])
        full = batch_size * (longest // row_length)
        for members in (rows[first:first + full] for first in range(0, len(rows), full)):
            num_rows = min(full, 1 << (len(members) - 1).bit_length())
            yield members, stack([_lay_out([pieces[i] for i in row], row_length) for row in
                                  (*members, *[()] * (num_rows - len(members)))])


def _lay_out(pieces: Sequence[Piece], row_length: int) -> Batch:
    return lay_out_examples([Example(tokens, np.r_[
        np.zeros(len(tokens) - num_scored), np.ones(num_scored)])
        for tokens, num_scored in pieces], row_length)
