"""Preference losses and their batch."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp

from data.batch import Batch
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params
from train.loss import Metrics


@flax.struct.dataclass
class PreferenceBatch:
    """Pairs of answers to the same questions, one row each, with reference log-probabilities.

    Attributes:
        chosen: rows of preferred answers; weights are 1 on answer tokens, <|end|> included.
        rejected: rows of the rejected answers, in the same order.
        reference_chosen_B: summed log-probability of each chosen answer under the frozen
            reference, in nats.
        reference_rejected_B: the same of the rejected ones.
    """

    chosen: Batch
    rejected: Batch
    reference_chosen_B: Any
    reference_rejected_B: Any


def answer_logps(params: Params, batch: Batch, *, config: ModelConfig,
                 execution: Execution) -> jax.Array:
    """Summed log-probability of each row's weighted tokens, in nats: logp_B."""
    logp_BL = batch_logps(params, batch, config=config, execution=execution)
    return jnp.sum(logp_BL * batch.loss_weights_BL, axis=1)


def pair_logps(params: Params, pairs: PreferenceBatch, *, config: ModelConfig,
               execution: Execution) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of chosen and rejected answers, from one forward pass over both."""
    both = jax.tree.map(lambda chosen, rejected: jnp.concatenate([chosen, rejected]),
                        pairs.chosen, pairs.rejected)
    logp_B = answer_logps(params, both, config=config, execution=execution)
    chosen_B, rejected_B = jnp.split(logp_B, 2)
    return chosen_B, rejected_B


reference_logps = jax.jit(pair_logps, static_argnames=("config", "execution"))


def dpo_loss(params: Params, pairs: PreferenceBatch, *, config: ModelConfig, execution: Execution,
             key: jax.Array, beta: float, nll_coef: float) -> tuple[jax.Array, Metrics]:
    """Direct preference optimization (arXiv 2305.18290, equation 7), summed over pairs.

    The margin can also grow while both answers become less likely; `nll_coef` times the chosen
    answer's loss per token counteracts that (arXiv 2404.19733, equation 1).

    Args:
        beta: strength in nats; larger stays closer to the reference.
        nll_coef: weight of the chosen answers' likelihood; 0 is plain DPO.

    Metrics: `loss` (the preference part alone: ln 2 before the first step), `nll` (nats per token
    of chosen answers), `accuracy` (a tie counts as a loss), `margin` (difference of implicit
    rewards), and `chosen_reward`, `rejected_reward`, positive if the answers became likelier
    than under the reference.
    """
    del key  # no dropout: the ratio to the reference must be exact
    chosen_B, rejected_B = pair_logps(params, pairs, config=config, execution=execution)
    chosen_reward_B = beta * (chosen_B - pairs.reference_chosen_B)
    rejected_reward_B = beta * (rejected_B - pairs.reference_rejected_B)
    margin_B = chosen_reward_B - rejected_reward_B
    preference_sum = -jnp.sum(jax.nn.log_sigmoid(margin_B))
    nll_sum = -jnp.sum(chosen_B / jnp.sum(pairs.chosen.loss_weights_BL, axis=1))
    num_pairs = jnp.float32(margin_B.shape[0])
    sums = {"loss": preference_sum, "nll": nll_sum, "accuracy": jnp.sum(margin_B > 0),
            "margin": jnp.sum(margin_B), "chosen_reward": jnp.sum(chosen_reward_B),
            "rejected_reward": jnp.sum(rejected_reward_B)}
    return preference_sum + nll_coef * nll_sum, {
        name: (total.astype(jnp.float32), num_pairs) for name, total in sums.items()}
