"""Losses of a reward model on rankings, and their batch."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp

from eval.respond.reward import answer_scores
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params
from train.loss import Metrics

LOSSES = ("bradley_terry", "plackett_luce")
MARGINS = ("none", "scores")


@flax.struct.dataclass
class RankingBatch:
    """Answers to prompts, J to each; a missing one is a row of padding.

    Attributes:
        tokens_BJL: int32, each answer with its prompt; see `data.answers`.
        positions_BJL: int32, position of each token in its text.
        segment_ids_BJL: int32, 1 at tokens of the text and 0 at padding.
        value_BJ: float32, larger for a better answer; equal ones are tied.
        is_real_BJ: bool, whether there is such an answer.
    """

    tokens_BJL: Any
    positions_BJL: Any
    segment_ids_BJL: Any
    value_BJ: Any
    is_real_BJ: Any


def ranking_loss(params: Params, batch: RankingBatch, *, config: ModelConfig, execution: Execution,
                 key: jax.Array, loss: str, margin: str = "none",
                 centering_coef: float = 0.0) -> tuple[jax.Array, Metrics]:
    """Loss of rankings, summed over prompts: of each the mean over its pairs, or its choices.

    Every answer is read once, in one forward pass, whatever the number of its pairs, and a prompt
    counts as one element (InstructGPT, arXiv 2203.02155, section 3.5 and equation 1).

    Args:
        loss: bradley_terry: -log sigmoid(r_w - r_l - m) of each pair that is not tied.
            plackett_luce: of each answer that has worse ones, -log of its share in the softmax
            over itself and them (Plackett 1975); with two answers the same as the former. Tied
            answers are not compared.
        margin: m of the former: none is 0, scores the difference of values
            (Llama 2, arXiv 2307.09288, equation 2).
        centering_coef: of the mean over pairs of (r_w + r_l)^2, which keeps scores near 0
            (arXiv 2312.09244, equation 2; `center_rewards_coefficient` of TRL).

    Metrics: `loss` (the ranking part alone, of each prompt with a pair), `centering` (without its
    coefficient), `accuracy` (of pairs; a tie of scores counts as wrong), `margin` (mean of
    r_w - r_l over pairs), `score` (mean over answers).
    """
    del key  # no dropout
    flat = (leaf.reshape(-1, leaf.shape[-1]) for leaf in
            (batch.tokens_BJL, batch.positions_BJL, batch.segment_ids_BJL))
    score_BJ = answer_scores(params, *flat, config=config, execution=execution).reshape(
        batch.value_BJ.shape)
    return score_rankings(score_BJ, batch.value_BJ, batch.is_real_BJ, loss=loss, margin=margin,
                          centering_coef=centering_coef)


def score_rankings(score_BJ: jax.Array, value_BJ: jax.Array, is_real_BJ: jax.Array, *, loss: str,
                   margin: str = "none", centering_coef: float = 0.0) -> tuple[jax.Array, Metrics]:
    """`ranking_loss` of scores that are known."""
    # Axes of what ends in BJJ: prompt, one answer, another one.
    gap_BJJ = score_BJ[:, :, None] - score_BJ[:, None, :]
    better_BJJ = value_BJ[:, :, None] - value_BJ[:, None, :]
    is_pair_BJJ = (better_BJJ > 0) & is_real_BJ[:, :, None] & is_real_BJ[:, None, :]
    has_pair_B = jnp.any(is_pair_BJJ, axis=(1, 2))

    def mean_of(terms: jax.Array, counts: jax.Array) -> jax.Array:
        """Sum over prompts of each one's mean over those terms that count."""
        axes = tuple(range(1, terms.ndim))
        num_B = jnp.sum(counts, axis=axes, dtype=jnp.float32)
        return jnp.sum(jnp.sum(terms, axis=axes, where=counts) / jnp.maximum(num_B, 1))

    if loss == "bradley_terry":
        wanted_BJJ = better_BJJ if margin == "scores" else jnp.zeros_like(better_BJJ)
        loss_sum = mean_of(-jax.nn.log_sigmoid(gap_BJJ - wanted_BJJ), is_pair_BJJ)
    else:
        is_self_JJ = jnp.eye(score_BJ.shape[1], dtype=bool)
        among_BJJ = is_pair_BJJ | is_self_JJ[None]
        surprise_BJ = jax.nn.logsumexp(-gap_BJJ, axis=2, where=among_BJJ)
        loss_sum = mean_of(surprise_BJ, jnp.any(is_pair_BJJ, axis=2))
    centering_sum = mean_of((score_BJ[:, :, None] + score_BJ[:, None, :])**2, is_pair_BJJ)
    num_prompts = jnp.sum(has_pair_B, dtype=jnp.float32)
    num_pairs = jnp.sum(is_pair_BJJ, dtype=jnp.float32)
    metrics = {"loss": (loss_sum, num_prompts), "centering": (centering_sum, num_prompts),
               "accuracy": (jnp.sum(is_pair_BJJ & (gap_BJJ > 0), dtype=jnp.float32), num_pairs),
               "margin": (jnp.sum(gap_BJJ, where=is_pair_BJJ), num_pairs),
               "score": (jnp.sum(score_BJ, where=is_real_BJ),
                         jnp.sum(is_real_BJ, dtype=jnp.float32))}
    return loss_sum + centering_coef * centering_sum, metrics
