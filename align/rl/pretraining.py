"""PPO-ptx: the next-token loss of pretraining text beside the loss of every update.

InstructGPT's objective (arXiv 2203.02155, equation 2) has such a term against the loss of what a
model knows beside the tasks that are rewarded. It fits any algorithm. An update reads as many rows
of text as it has answers, or pairs of them; which ones follows from its step alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax
import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from align.finetune import pretraining_rows
from align.losses.preference import PreferenceBatch
from align.rl.algorithms import Algorithm, LossSettings, num_examples
from align.rl.update import Tree, UpdateBatch, loss_weight, whole_params
from core.errors import UserError
from data.batch import Batch
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.rows import batches as group_rows
from data.tokens.rows import check_tokenizer
from model.adapters.lora import Lora
from model.families.registry import Params
from train.loss import Metrics, next_token_loss
from train.step import LossFn


@flax.struct.dataclass
class MixedBatch:
    """What an update reads with pretraining text.

    Attributes:
        learned: answers or pairs of them.
        text: rows of pretraining text, as many.
        scale_B: weight of the update's loss over the number of the text's targets, the same in each
            row: what makes of a sum over targets a mean, once the gradient is divided by that
            weight.
    """

    learned: UpdateBatch | PreferenceBatch
    text: Batch
    scale_B: Any


class Pretraining:
    """Adds rows of pretraining text to the batches of updates.

    Args:
        batches: of rows, one for each update of the run.
        settings: of the loss of an update.
    """

    def __init__(self, batches: grain.MapDataset, settings: LossSettings):
        self._batches, self._settings = batches, settings

    def add(self, learned: UpdateBatch | PreferenceBatch, step: int) -> MixedBatch:
        """The batch of the update that begins at `step`, on the host."""
        text = self._batches[step]
        scale = loss_weight(learned, self._settings) / max(text.loss_weights_BL.sum(), 1)
        return MixedBatch(learned, text, np.full(len(text.tokens_BL), scale, np.float32))


def open_pretraining(section: ConfigDict, tokens: Path | None, tokenizer: Tokenizer,
                     algorithm: Algorithm, settings: LossSettings) -> Pretraining | None:
    """The pretraining text of a section; None where `ptx_coef` is 0.

    Raises:
        UserError: there are no tokens, they are another tokenizer's, or a domain is not among them.
    """
    if not section.ptx_coef:
        return None
    if tokens is None:
        raise UserError(f"{section.out}.ptx_coef={section.ptx_coef}", "there is no pretraining "
                        "text", f"name an artifact of data.pack in {section.out}.tokens, or set it "
                        "to 0")
    check_tokenizer(tokens, tokenizer.fingerprint, f"{section.out}.tokens")
    num_updates = section.num_iterations * section.num_epochs * section.num_minibatches
    batch_size = num_examples(section, algorithm) // section.num_minibatches
    rows = pretraining_rows(section, tokens, num_updates * batch_size)
    return Pretraining(group_rows(rows, batch_size), settings)


def with_pretraining(loss_fn: LossFn, ptx_coef: float, lora: Lora | None) -> LossFn:
    """The loss with `ptx_coef` times the mean next-token loss of text, as one of a `MixedBatch`.

    The logits of text are not divided by the sampling temperature. `ptx_loss` among the metrics is
    nats per token, without the coefficient.

    Args:
        lora: see `align.rl.update.make_update_loss`.
    """
    def loss(tree: Tree, batch: MixedBatch, *, key: jax.Array, frozen: Params | None = None,
             **model: Any) -> tuple[jax.Array, Metrics]:
        loss_sum, metrics = loss_fn(tree, batch.learned, key=key, frozen=frozen, **model)
        text_sum, found = next_token_loss(whole_params(tree, frozen, lora), batch.text, key=key,
                                          **model)
        return (loss_sum + ptx_coef * batch.scale_B[0] * text_sum,
                metrics | {"ptx_loss": found["loss"]})

    return loss
