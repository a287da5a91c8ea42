"""The losses of updates, and log-probabilities and values of answers: one forward pass for both.

What is trained is a tree: `model`, the parameters or an adapter beside frozen ones, and with PPO
`value`, a scalar head on the same hidden states, which begins at zero.
"""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp

from align.losses import preference
from align.losses.policy import PolicyBatch, Settings, policy_loss, weigh
from align.losses.preference import PreferenceBatch, at_temperature, preference_loss
from data.batch import Batch
from model.adapters.lora import Lora, apply_lora
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, forward
from model.heads.language import token_logps
from train.loss import Metrics
from train.step import LossFn

Tree = dict[str, Any]       # "model" and "value"


@flax.struct.dataclass
class UpdateBatch:
    """Answers, as an update reads them.

    Attributes:
        rows: prompts with their answers, whose tokens have weight 1.
        known: what was known of them before the first update.
    """

    rows: Batch
    known: PolicyBatch


def loss_weight(batch: UpdateBatch | PreferenceBatch,
                settings: Settings | preference.Settings) -> float:
    """What divides the gradient of an update: tokens, answers or pairs, by its loss."""
    if isinstance(batch, PreferenceBatch):
        return float(batch.weights_B.sum())
    return float(weigh(batch.known.mask_BL, settings)[1])


def make_value_head(config: ModelConfig) -> Params:
    """A head whose values are 0."""
    return {"score_DY": jnp.zeros((config.D, 1)), "score_bias_Y": jnp.zeros(1)}


def whole_params(tree: Tree, frozen: Params | None, lora: Lora | None) -> Params:
    """The policy's parameters; with an adapter, the frozen ones with it."""
    return tree["model"] if lora is None else apply_lora(frozen, tree["model"], lora)


def score_rows(params: Params, head: Params | None, rows: Batch, *, config: ModelConfig,
               execution: Execution, temperature: float) -> tuple[jax.Array, jax.Array | None]:
    """Log-probabilities of the targets with weight, and values before each token.

    Args:
        temperature: divides all logits.

    Returns:
        logp_BL in nats, 0 at targets without weight; and value_BL, None without a head. Both are
        float32.
    """
    x_BLD = forward(params, *rows.inputs, config=config, execution=execution)
    params, config = at_temperature(params, config, temperature)
    logp_BL = token_logps(params, x_BLD, rows.targets_BL, config=config, execution=execution,
                          scored_BL=rows.loss_weights_BL > 0)
    if head is None:
        return logp_BL, None
    value_BLY = jnp.einsum("BLD,DY->BLY", x_BLD.astype(jnp.float32), head["score_DY"],
                           precision="highest")
    return logp_BL, (value_BLY + head["score_bias_Y"][None, None])[..., 0]


def make_update_loss(settings: Settings, temperature: float, lora: Lora | None) -> LossFn:
    """The loss of `align.losses.policy` on an `UpdateBatch`, summed; see `train.loss`.

    Args:
        lora: of the adapter that is trained beside the frozen parameters; None for all parameters.
    """
    def update_loss(tree: Tree, batch: UpdateBatch, *, key: jax.Array,
                    frozen: Params | None = None, **model: Any) -> tuple[jax.Array, Metrics]:
        del key     # nothing is drawn
        logp_BL, value_BL = score_rows(whole_params(tree, frozen, lora), tree.get("value"),
                                       batch.rows, temperature=temperature, **model)
        return policy_loss(logp_BL, batch.known, settings=settings, values_BL=value_BL)

    return update_loss


def make_pair_loss(settings: preference.Settings, lora: Lora | None) -> LossFn:
    """The loss of `align.losses.preference` on a `PreferenceBatch`; see `make_update_loss`."""
    def pair_loss(tree: Tree, batch: PreferenceBatch, *, key: jax.Array,
                  frozen: Params | None = None, **model: Any) -> tuple[jax.Array, Metrics]:
        return preference_loss(whole_params(tree, frozen, lora), batch, key=key, settings=settings,
                               **model)

    return pair_loss
