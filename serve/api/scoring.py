"""Log-probabilities of the tokens of a prompt, for answers that begin with their prompt (`echo`).

A prompt is read in pieces, one between two steps of the engine, so that answers that are drawn go
on. Pieces have a few lengths, each of which is compiled once, and a prompt is always cut into the
same ones: neither other requests nor what slots hold change a number.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.tokenizers.tokenizer import Tokenizer
from eval.respond.loaded import LoadedModel
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, extend, make_cache
from model.generation.weights import choose_adapters
from model.heads.language import logits
from serve.api.streaming import Piece, TextWriter, Top

if TYPE_CHECKING:
    from serve.api.worker import Answer

PIECES = (64, 256)      # tokens that are read at once, padded to one of these lengths
NUM_TOP = 5             # likeliest tokens that are kept of each place


class Echo:
    """A prompt that its answers begin with, and its scores; of all answers to it.

    Args:
        tokens: of the prompt.
        num_top: likeliest tokens that are sent of each place.
        adapter: see `Request`.
    """

    def __init__(self, tokens: Sequence[int], num_top: int, adapter: int = 0):
        self.tokens, self._num_top, self.adapter = tuple(tokens), num_top, adapter
        self.logps: list[float | None] = [None]     # nothing is before the first token
        self._tops: list[Top] = [()]
        self.error: Exception | None = None

    @property
    def num_read(self) -> int:
        """Tokens whose successors have scores."""
        return len(self.logps) - 1

    @property
    def is_over(self) -> bool:
        """Whether all tokens have scores, or none will have any more."""
        return self.error is not None or len(self.logps) == len(self.tokens)

    def add(self, logp_L: np.ndarray, tokens_LN: np.ndarray, logps_LN: np.ndarray) -> None:
        """Adds the scores of the next tokens."""
        self.logps += logp_L.tolist()
        self._tops += [[*zip(tokens[:self._num_top], logps[:self._num_top])]
                       for tokens, logps in zip(tokens_LN.tolist(), logps_LN.tolist())]

    def piece(self, tokenizer: Tokenizer) -> Piece:
        """The prompt as the first piece of an answer; raises what its scoring failed with."""
        if self.error is not None:
            raise self.error
        writer = TextWriter(tokenizer, (), ())
        text, marks = writer.push(self.tokens, self.logps, self._tops)
        rest, more = writer.end()
        return Piece(text + rest, marks + more)


class Scorer:
    """Scores prompts of answers one after another; for the thread that owns the engine.

    Args:
        capacity: tokens of a prompt at most.

    Attributes:
        waiting: answers whose prompts have no scores yet.
    """

    def __init__(self, model: LoadedModel, capacity: int):
        self._model, self._capacity = model, capacity
        # In the compute dtype: one row is small, and scores are those that evaluations have.
        self._bound = dict(config=model.config, execution=dataclasses.replace(
            model.execution, kv_cache="compute"))
        self._cache: Any = None
        self.waiting: deque[Answer] = deque()

    def warm_up(self) -> None:
        """Compiles what prompts need."""
        for length in PIECES:
            self._read(Echo([0] * (length + 1), 0))

    def step(self, new: Sequence[Answer]) -> list[Answer]:
        """Takes new answers and reads a piece of a prompt.

        Returns:
            The answers that can be drawn: those without an echo at once.
        """
        ready = [answer for answer in new if answer.echo is None]
        self.waiting.extend(answer for answer in new if answer.echo is not None)
        self.waiting = deque(answer for answer in self.waiting if not answer.is_over)
        if not self.waiting:
            return ready
        echo = self.waiting[0].echo
        if not echo.is_over:    # as that of a single token is
            try:
                self._read(echo)
            except Exception as error:      # it is of this prompt alone
                traceback.print_exc()
                echo.error, self._cache = error, None
        while self.waiting and self.waiting[0].echo.is_over:
            ready.append(self.waiting.popleft())
        return ready

    def _read(self, echo: Echo) -> None:
        """Reads the next piece of a prompt."""
        if self._cache is None:
            self._cache = make_cache(batch_size=1, capacity=self._capacity, piece=PIECES[-1],
                                     **self._bound)
        begin, missing = echo.num_read, len(echo.tokens) - 1 - echo.num_read
        length = next((size for size in PIECES if size >= missing), PIECES[-1])
        count = min(length, missing)
        tokens_1L, next_L = np.zeros((1, length), np.int32), np.zeros(length, np.int32)
        tokens_1L[0, :count] = echo.tokens[begin:begin + count]
        next_L[:count] = echo.tokens[begin + 1:begin + count + 1]
        numbers_1 = (np.array([number], np.int32) for number in (
            begin, echo.tokens[begin - 1] if begin else -1, count, echo.adapter))
        self._cache, scores = _read_piece(self._model.weights, self._cache, PromptPiece(
            tokens_1L, next_L, *numbers_1), **self._bound)
        echo.add(*(score[:count] for score in jax.device_get(scores)))


class PromptPiece(NamedTuple):
    """A piece of a prompt.

    Attributes:
        tokens_1L: its tokens.
        next_L: the token that follows each.
        begin_1: tokens of the prompt before it.
        previous_1: the last of these.
        count_1: how many of its own are real.
        adapter_1: see `model.generation.weights.choose_adapters`.
    """

    tokens_1L: np.ndarray
    next_L: np.ndarray
    begin_1: np.ndarray
    previous_1: np.ndarray
    count_1: np.ndarray
    adapter_1: np.ndarray


class PieceScores(NamedTuple):
    """Scores of the tokens that follow those of a piece, in nats.

    Attributes:
        logp_L: of each.
        tokens_LN, logps_LN: the likeliest ones in its place, the first first.
    """

    logp_L: jax.Array
    tokens_LN: jax.Array
    logps_LN: jax.Array


@partial(jax.jit, static_argnames=("config", "execution"), donate_argnames="cache")
def _read_piece(params: Params, cache: Any, piece: PromptPiece, *, config: ModelConfig,
                execution: Execution) -> tuple[Any, PieceScores]:
    """Reads a piece of a prompt; returns the cache with it, and scores.

    Args:
        params: see `model.generation.weights.unstack`.
    """
    params = choose_adapters(params, piece.adapter_1)
    cache = cache.rewind(jnp.arange(1), piece.begin_1, piece.previous_1)
    x_BLD, cache = extend(params, piece.tokens_1L, piece.count_1, cache, config=config,
                          execution=execution)
    logits_LV = logits(params, x_BLD, config=config, execution=execution)[0]
    log_z_L1 = jax.nn.logsumexp(logits_LV, axis=-1, keepdims=True)
    top_LN, tokens_LN = jax.lax.top_k(logits_LV, min(NUM_TOP, logits_LV.shape[1]))
    next_L1 = jnp.take_along_axis(logits_LV, piece.next_L[:, None], axis=1)
    # The same subtraction for all, so that the likeliest token has the same number in both.
    return cache.advance(piece.tokens_1L, piece.count_1), PieceScores(
        (next_L1 - log_z_L1)[:, 0], tokens_LN, top_LN - log_z_L1)
