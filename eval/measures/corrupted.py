"""How well a model restores what a corruption hides in held-out pages.

The rows and what is hidden in them are the same at every measurement. As in bits per byte, special
tokens are not scored: sentinels and ends are easily guessed.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from data.batch import Batch, stack
from data.tokens.corruption import Corruption, corrupt
from data.tokens.rows import TokenRows
from eval.measures.likelihood import unigram_logps
from eval.respond.loaded import LoadedModel
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, forward
from model.heads.language import score_targets

SEED = 0


class CorruptedPages:
    """The held-out rows of a token folder, corrupted.

    Args:
        batch_size: rows that are scored at a time; the last batch is filled with rows of weight 0.
    """

    def __init__(self, tokens: Path, corruption: Corruption, batch_size: int):
        rows = grain.MapDataset.source(TokenRows(tokens, "heldout", corruption.text_length))
        self._rows, self._batch_size = corrupt(rows, corruption, SEED), batch_size
        self._tokens = tokens

    def measure(self, model: LoadedModel) -> dict[str, float]:
        """Means over the hidden tokens.

        Returns:
            `loss_nats`: cross-entropy. `unigram_nats`: that of a unigram model of the training
            tokens. `acc`: how often the most probable token is the right one.
        """
        logp_V, sums = jnp.asarray(self._unigram_logps, jnp.float32), []
        for first in range(0, len(self._rows), self._batch_size):
            model.between_batches()
            jax.block_until_ready(sums[-2:-1])  # else all of them would wait in the device's queue
            sums.append(_score(model.params, self._batch(first), logp_V, config=model.config,
                               execution=model.execution))
        loss, unigram, right, count = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
        return {"loss_nats": float(loss / count), "unigram_nats": float(unigram / count),
                "acc": float(right / count)}

    def _batch(self, first: int) -> Batch:
        last = min(first + self._batch_size, len(self._rows))
        rows = [self._rows[i] for i in range(first, last)]
        empty = rows[0].replace(loss_weights_BL=np.zeros_like(rows[0].loss_weights_BL))
        return stack(rows + [empty] * (self._batch_size - len(rows)))

    @cached_property
    def _unigram_logps(self) -> np.ndarray:
        return unigram_logps(self._tokens)


@partial(jax.jit, static_argnames=("config", "execution"))
def _score(params: Params, batch: Batch, unigram_V: jax.Array, *, config: ModelConfig,
           execution: Execution) -> tuple[jax.Array, ...]:
    """Sums over the scored targets: loss, the unigram model's, right guesses; and their number."""
    x_BLD = forward(params, *batch.inputs, config=config, execution=execution)
    scores = score_targets(params, x_BLD, batch.targets_BL, config=config, execution=execution)
    unigram_BL = unigram_V[batch.targets_BL]
    counts_BL = (batch.loss_weights_BL > 0) & jnp.isfinite(unigram_BL)
    # The same subtraction as that of `logp_BL`, so that equal logits give equal numbers.
    right_BL = scores.logp_BL >= scores.top_logit_BL - scores.log_z_BL
    return tuple(jnp.sum(value_BL, where=counts_BL, dtype=jnp.float32)
                 for value_BL in (-scores.logp_BL, -unigram_BL, right_BL, counts_BL))
