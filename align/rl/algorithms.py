"""Algorithms by name: how answers are compared, where the KL from the reference is, and the loss.

    ppo                   a value head and generalized advantages (arXiv 1707.06347, 1506.02438)
    grpo                  answers of a group over its deviation (arXiv 2402.03300)
    dr_grpo               without that deviation and without lengths (arXiv 2503.20783)
    dapo                  as grpo, all tokens alike, only of usable groups (arXiv 2503.14476)
    rloo                  over the mean of a group's other answers (arXiv 2402.14740)
    reinforce_plus_plus   returns whitened over the batch (arXiv 2501.03262)
    online_dpo            the best answer of a group against its worst, by the loss of DPO (arXiv
                          2402.04792, section 3, which samples two); its beta is `kl_coef`
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from align.losses import preference
from align.losses.policy import PolicyBatch, Settings, check_settings
from align.losses.preference import PreferenceBatch
from align.rl.advantages import (
    STATUSES,
    KLControl,
    gae,
    group_advantages,
    group_ids,
    group_statuses,
    reinforce_plus_plus,
    select_best,
    spread,
    token_rewards,
    whiten,
)
from core.errors import UserError
from data.batch import Batch

LossSettings = Settings | preference.Settings


class Algorithm(NamedTuple):
    """What distinguishes an algorithm.

    Attributes:
        baseline: of `align.rl.advantages.group_advantages`; "" compares no groups.
        ratio, aggregation: of `align.losses.policy.Settings`.
        kl_in: `rewards`, at each token, or `loss`, as a term of it.
        has_values: whether a value head is trained.
        drops: whether answers of groups that are not usable are left out of the loss.
        has_pairs: whether it learns from pairs of answers, by a loss of `align.losses.preference`.
    """

    baseline: str
    ratio: str
    aggregation: str
    kl_in: str
    has_values: bool = False
    drops: bool = False
    has_pairs: bool = False

    @property
    def compares(self) -> bool:
        """Whether it learns from differences within groups alone."""
        return bool(self.baseline) or self.has_pairs


ALGORITHMS = {
    "ppo": Algorithm("", "token", "token", "rewards", has_values=True),
    "grpo": Algorithm("grpo", "token", "grpo", "loss"),
    "dr_grpo": Algorithm("dr_grpo", "token", "dr_grpo", "loss"),
    "dapo": Algorithm("grpo", "token", "token", "loss", drops=True),
    "rloo": Algorithm("rloo", "answer", "grpo", "rewards"),
    "reinforce_plus_plus": Algorithm("", "token", "token", "rewards"),
    "online_dpo": Algorithm("", "", "", "loss", has_pairs=True)}


def read_algorithm(section: ConfigDict) -> tuple[Algorithm, LossSettings, KLControl]:
    """The algorithm of a section, the settings of its loss, and how its KL coefficient moves.

    Raises:
        UserError: there is no such algorithm, or it cannot have what the section asks for.
    """
    if section.algorithm not in ALGORITHMS:
        raise UserError(f"{section.out}.algorithm={section.algorithm!r}",
                        "there is no such algorithm", f"choose one of {', '.join(ALGORITHMS)}")
    algorithm = ALGORITHMS[section.algorithm]
    if algorithm.compares and section.num_samples < 2:
        raise UserError(f"{section.out}.num_samples={section.num_samples}",
                        f"gives {section.algorithm} nothing to compare an answer with",
                        "set it to at least 2")
    if algorithm.has_values and not section.vf_coef:
        raise UserError(f"{section.out}.vf_coef=0", f"leaves the value head of {section.algorithm} "
                        "untrained", "set it to 0.1, or choose grpo, rloo or reinforce_plus_plus")
    in_loss = algorithm.kl_in == "loss"
    if in_loss and section.kl_target:
        raise UserError(f"{section.out}.kl_target={section.kl_target}", "moves a coefficient of "
                        f"rewards, and the KL of {section.algorithm} is in its loss",
                        "set it to 0, or choose ppo, rloo or reinforce_plus_plus")
    control = KLControl(target_nats=section.kl_target, horizon=section.kl_horizon)
    if algorithm.has_pairs:
        return algorithm, _pair_settings(section), control
    settings = Settings(
        ratio=algorithm.ratio, aggregation=algorithm.aggregation, eps_low=section.eps_low,
        eps_high=section.eps_high, kl_loss=section.kl_loss,
        max_tokens=section.max_new_tokens if algorithm.aggregation == "dr_grpo" else 0,
        kl_coef=section.kl_coef if in_loss else 0.0,
        vf_coef=section.vf_coef if algorithm.has_values else 0.0, value_clip=section.value_clip)
    return algorithm, check_settings(settings, section.out), control


def _pair_settings(section: ConfigDict) -> preference.Settings:
    """Settings of the loss of DPO, whose beta weighs the KL against the reward."""
    if not section.kl_coef:
        raise UserError(f"{section.out}.kl_coef=0", f"is the beta of {section.algorithm}, whose "
                        "loss would be the same for every policy", "set it to 0.1")
    return preference.Settings(beta=section.kl_coef, temperature=section.temperature)


def num_examples(section: ConfigDict, algorithm: Algorithm) -> int:
    """Answers that an iteration learns from, or pairs of them."""
    return section.num_prompts * (1 if algorithm.has_pairs else section.num_samples)


class Known(NamedTuple):
    """What is known of sampled answers.

    Attributes:
        scores_B: rewards of whole answers; what is not finite makes its group unusable.
        mask_BL: 1 at their tokens.
        old_BL, reference_BL: log-probabilities of policy and reference.
        values_BL: of the value head; None without one.
        kl_coef: float32 scalar, of the KL in rewards.
    """

    scores_B: Any
    mask_BL: Any
    old_BL: Any
    reference_BL: Any
    values_BL: Any
    kl_coef: Any


def make_policy_batch(known: Known, *, algorithm: Algorithm, num_samples: int, gamma: float,
                      lam: float) -> PolicyBatch:
    """The batch of an update.

    Answers lie in order, `num_samples` to each prompt. An answer whose score is not finite is left
    out of the batch.
    """
    is_finite_B = jnp.isfinite(known.scores_B)
    mask_BL = known.mask_BL * is_finite_B[:, None]
    scores_B = jnp.where(is_finite_B, known.scores_B, 0.0)
    is_answer_B = jnp.any(known.mask_BL > 0, axis=1)
    kl_coef = known.kl_coef if algorithm.kl_in == "rewards" else 0.0
    rewards_BL = token_rewards(scores_B, known.old_BL, known.reference_BL, mask_BL, kl_coef)
    batch = PolicyBatch(
        mask_BL, known.old_BL, None,
        known.reference_BL if algorithm.kl_in == "loss" else None)
    if algorithm.has_values:
        advantages_BL, returns_BL = gae(rewards_BL, known.values_BL, mask_BL, gamma=gamma, lam=lam)
        return batch.replace(advantages_BL=whiten(advantages_BL, mask_BL), returns_BL=returns_BL,
                             values_BL=known.values_BL)
    if not algorithm.baseline:
        return batch.replace(advantages_BL=reinforce_plus_plus(rewards_BL, mask_BL, gamma))
    returns_B = jnp.where(is_finite_B, jnp.sum(rewards_BL, axis=1), jnp.nan)
    num_groups = len(scores_B) // num_samples
    found = group_advantages(returns_B, group_ids(num_groups, num_samples), is_answer_B,
                             num_groups=num_groups, baseline=algorithm.baseline)
    if algorithm.drops:
        batch = batch.replace(mask_BL=mask_BL * found.usable_B[:, None])
    return batch.replace(advantages_BL=spread(found.advantages_B, batch.mask_BL))


def make_pair_batch(known: Known, rows: Batch, *, num_samples: int) -> PreferenceBatch:
    """The best and the worst answer of each group as a pair; of equal ones the first.

    Answers lie in order, `num_samples` to each prompt. A group that is not usable gives a pair
    without weight, so that there are always as many pairs as groups.

    Args:
        rows: of the answers.
    """
    num_groups, scores_B = len(known.scores_B) // num_samples, jnp.asarray(known.scores_B)
    is_answer_B = jnp.any(known.mask_BL > 0, axis=1)
    status_G = group_statuses(scores_B, is_answer_B, num_samples)
    reference_B = jnp.sum(jnp.where(known.mask_BL > 0, known.reference_BL, 0.0), axis=1)
    sides = []
    for sign in (1, -1):
        best_G = select_best(sign * scores_B, group_ids(num_groups, num_samples), is_answer_B,
                             num_groups=num_groups).best_G
        best_G = jnp.maximum(best_G, 0)
        sides.append(jax.tree.map(lambda leaf, at=best_G: jnp.asarray(leaf)[at],
                                  (rows, reference_B)))
    (chosen, chosen_B), (rejected, rejected_B) = sides
    nothing_B = jnp.zeros_like(chosen_B)    # what other losses than DPO's read
    return PreferenceBatch(
        chosen, rejected, reference_chosen_B=chosen_B, reference_rejected_B=rejected_B,
        common_chosen_B=nothing_B, common_rejected_B=nothing_B,
        weights_B=(status_G == STATUSES.index("usable")).astype(jnp.float32),
        token_share_B=nothing_B)
