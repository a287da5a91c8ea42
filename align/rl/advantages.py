"""Rewards of tokens, advantages, baselines of groups, KL estimators and the KL coefficient.

Pure functions of numbers that are known; all of them can be compiled. An array [B, L] is about the
tokens of B answers, the one that ends an answer included. Its mask is float32, 1 at those tokens
and 0 elsewhere; it is given, never derived from token ids. The padding may stand before or behind
an answer, and tokens that the policy did not write, such as the output of a tool, may stand within
it. What is masked counts for nothing, even where it is not finite, and is 0 in every result.

Log-probabilities are in nats, at the temperature at which the answers were sampled: of policy,
sampler and reference alike the logits were divided by it (see `align.losses.preference`).

Letters are those of `model.config`, but for G: here groups of answers, each to one prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError

# exp of it is 5e8: a larger log-ratio is cut there, so that no exponential overflows.
MAX_LOG_RATIO = 20.0


def k1(d: jax.Array) -> jax.Array:
    """log pi - log ref: unbiased, the one for rewards and for logs; as a loss it is useless."""
    return d


def k2(d: jax.Array) -> jax.Array:
    """Half the square: biased, but of answers of the policy its mean gradient is that of KL."""
    return 0.5 * d**2


def k3(d: jax.Array) -> jax.Array:
    """exp(-d) - 1 + d: unbiased and never negative; its mean gradient is that of KL(ref || pi)."""
    return jnp.exp(jnp.minimum(-d, MAX_LOG_RATIO)) - 1 + d


# Estimators of KL(pi || ref) from d = log pi - log ref at tokens that pi sampled
# (http://joschu.net/blog/kl-approx.html; of their gradients see arXiv 2506.09477).
KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def estimate_kl(logps_BL: jax.Array, reference_BL: jax.Array, mask_BL: jax.Array,
                estimator: str) -> jax.Array:
    """KL from the reference at each token, [B, L] in nats; the sum of a row is an answer's.

    The KL of a run is the mean over answers of the sums of k1.

    Args:
        estimator: a name of `KL_ESTIMATORS`.

    Raises:
        UserError: there is no such estimator.
    """
    if estimator not in KL_ESTIMATORS:
        raise UserError(f"kl_estimator={estimator!r}", "there is no such estimator",
                        f"choose one of {', '.join(KL_ESTIMATORS)}")
    # The differences are masked first: past an exponential that overflows, a gradient is not a
    # number even where the result is not used.
    return KL_ESTIMATORS[estimator](masked_difference(logps_BL, reference_BL, mask_BL))


def masked_difference(first_BL: jax.Array, second_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The difference in float32, 0 where masked."""
    is_real_BL = mask_BL > 0
    first_BL, second_BL = (jnp.where(is_real_BL, array_BL, 0).astype(jnp.float32)
                           for array_BL in (first_BL, second_BL))
    return first_BL - second_BL


def token_rewards(scores_B: jax.Array, logps_BL: jax.Array, reference_BL: jax.Array,
                  mask_BL: jax.Array, kl_coef: jax.Array | float) -> jax.Array:
    """-kl_coef (log pi - log ref) at every token, and the score at an answer's last one.

    The sum of a row is its score less kl_coef times its KL by k1 (arXiv 1909.08593, equation 2). A
    row without a token has no place for a score: all of it is 0.

    Args:
        scores_B: of whole answers; integers are taken as floats.
        logps_BL: of the policy that sampled the answers.

    Returns:
        float32, [B, L].
    """
    kl_BL = estimate_kl(logps_BL, reference_BL, mask_BL, "k1")
    score_BL = jnp.asarray(scores_B, jnp.float32)[:, None]
    return jnp.where(_is_last(mask_BL), score_BL, 0.0) - kl_coef * kl_BL


def _is_last(mask_BL: jax.Array) -> jax.Array:
    """Where the last token of each row is."""
    is_real_BL = mask_BL > 0
    return is_real_BL & (jnp.cumsum(is_real_BL[:, ::-1], axis=1)[:, ::-1] == 1)


def spread(advantages_B: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The advantage of an answer at each of its tokens, float32 [B, L]."""
    advantages_BL = jnp.asarray(advantages_B, jnp.float32)[:, None]
    return jnp.where(mask_BL > 0, advantages_BL, 0.0)


# What follows the last token of an answer that was cut at the limit of its length.
TRUNCATIONS = ("end", "bootstrap")


def gae(rewards_BL: jax.Array, values_BL: jax.Array, mask_BL: jax.Array, *, gamma: float,
        lam: float, truncation: str = "end", is_cut_B: jax.Array | None = None,
        after_B: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation (arXiv 1506.02438, equation 16).

    The state before a token within an answer that is masked, as of a tool's output, is passed over:
    the token before has as its next value that of the token after (verl, tunix). No gradient
    passes.

    Args:
        values_BL: expected return before each token, from the logits' position that predicts it.
        gamma, lam: discount of rewards, and of the differences of values.
        truncation: `end` takes the return after the last token as 0 in every answer, cut or not:
            what is scored is the answer as it is (lm-human-preferences at cbfd210, TRL, OpenRLHF
            at 3c3be62). `bootstrap` takes it as the value of the state there if the answer was cut.
        is_cut_B: bool, which answers were cut; for bootstrap.
        after_B: value of the state after the last token; for bootstrap.

    Returns:
        Advantages and returns (advantages + values), float32 [B, L].

    Raises:
        UserError: there is no such truncation, or what it needs is missing.
    """
    if truncation not in TRUNCATIONS:
        raise UserError(f"truncation={truncation!r}", "there is no such rule",
                        f"choose one of {', '.join(TRUNCATIONS)}")
    end_B = jnp.zeros(len(rewards_BL), jnp.float32)
    if truncation == "bootstrap":
        if is_cut_B is None or after_B is None:
            raise UserError("truncation='bootstrap'", "lacks the cut answers or the values after "
                            "their last tokens", "give is_cut_B and after_B, or choose 'end'")
        end_B = jnp.where(is_cut_B, after_B, 0).astype(jnp.float32)
    is_real_BL = mask_BL > 0
    rewards_BL, values_BL = (jnp.where(is_real_BL, array_BL, 0).astype(jnp.float32)
                             for array_BL in (rewards_BL, values_BL))

    def step(carry, token):
        advantage_B, next_B = carry
        reward_B, value_B, is_real_B = token
        new_B = reward_B + gamma * next_B - value_B + gamma * lam * advantage_B
        advantage_B = jnp.where(is_real_B, new_B, advantage_B)
        return (advantage_B, jnp.where(is_real_B, value_B, next_B)), advantage_B

    _, advantages_LB = jax.lax.scan(step, (jnp.zeros_like(end_B), end_B),
                                    (rewards_BL.T, values_BL.T, is_real_BL.T), reverse=True)
    advantages_BL = jnp.where(is_real_BL, advantages_LB.T, 0.0)
    return jax.lax.stop_gradient((advantages_BL, advantages_BL + values_BL))


def returns_to_go(rewards_BL: jax.Array, mask_BL: jax.Array, gamma: float = 1.0) -> jax.Array:
    """Discounted sum of the rewards from each token on, float32 [B, L]."""
    return gae(rewards_BL, jnp.zeros_like(mask_BL), mask_BL, gamma=gamma, lam=1.0)[0]


def whiten(values: jax.Array, mask: jax.Array, *, shift_mean: bool = True,
           eps: float = 1e-8) -> jax.Array:
    """Values over their standard deviation, by default less their mean; of any shape, float32.

    Mean and variance (of all that is not masked, divided by their number) are sums over the whole
    array: of a sharded one over all devices, so that their number does not matter.

    Args:
        shift_mean: False keeps the mean as it was, as for rewards in lm-human-preferences.
        eps: added to the variance.
    """
    is_real = mask > 0
    values = jnp.where(is_real, values, 0).astype(jnp.float32)
    num = jnp.maximum(jnp.sum(is_real, dtype=jnp.float32), 1)
    mean = jnp.sum(values) / num
    deviations = jnp.where(is_real, values - mean, 0.0)
    whitened = deviations * jax.lax.rsqrt(jnp.sum(deviations**2) / num + eps)
    return whitened if shift_mean else jnp.where(is_real, whitened + mean, 0.0)


def reinforce_plus_plus(rewards_BL: jax.Array, mask_BL: jax.Array,
                        gamma: float = 1.0) -> jax.Array:
    """REINFORCE++: returns from each token on, whitened over the whole batch (arXiv 2501.03262).

    Its variant with a baseline is the same of rewards whose scores are first reduced by the mean of
    their group, `group_advantages` by `dr_grpo` (`reinforce_baseline` of OpenRLHF at 3c3be62).
    """
    return whiten(returns_to_go(rewards_BL, mask_BL, gamma), mask_BL)


# Whether a group of answers teaches anything, and if not why.
STATUSES = ("usable", "empty", "single", "all_equal", "not_finite")


class Advantages(NamedTuple):
    """Advantages of answers by the groups that they are in.

    Attributes:
        advantages_B: float32; 0 in a group that is not usable.
        status_G: int32, index into `STATUSES` for each group.
        usable_G: bool, whether the group has an answer that is better than another.
        usable_B: bool, whether an answer is real and its group usable.
    """

    advantages_B: jax.Array
    status_G: jax.Array
    usable_G: jax.Array
    usable_B: jax.Array


GROUP_BASELINES = ("grpo", "dr_grpo", "rloo")


def group_advantages(scores_B: jax.Array, group_B: jax.Array, mask_B: jax.Array, *,
                     num_groups: int, baseline: str, ddof: int = 1,
                     eps: float = 1e-4) -> Advantages:
    """Advantages of answers over the others to the same prompt.

    Answers of a group need not be neighbours, and groups may differ in size. A group of one answer,
    of answers that are all scored alike, or with a score that is not finite is not usable.

    Args:
        scores_B: of whole answers.
        group_B: int, the group of each, below `num_groups`; see `group_ids`.
        mask_B: 1 for an answer, 0 for what fills the batch up.
        baseline: `grpo`, (score - mean) / (std + eps) (arXiv 2402.03300, section 4.1.2); `dr_grpo`,
            score - mean (arXiv 2503.20783, section 3.2); `rloo`, score - mean of the others (arXiv
            2402.14740).
        ddof: of the standard deviation: 1 divides by one less than the answers of a group, as TRL,
            OpenRLHF and tunix do.
        eps: as TRL's.

    Raises:
        UserError: there is no such baseline.
    """
    if baseline not in GROUP_BASELINES:
        raise UserError(f"baseline={baseline!r}", "there is no such baseline",
                        f"choose one of {', '.join(GROUP_BASELINES)}")
    status_G, num_G, finite_B = _judge_groups(scores_B, group_B, mask_B, num_groups)
    deviation_B = finite_B - (_sums(finite_B, group_B, mask_B, num_groups)
                              / jnp.maximum(num_G, 1))[group_B]
    if baseline == "grpo":
        squares_G = _sums(deviation_B**2, group_B, mask_B, num_groups)
        std_G = jnp.sqrt(squares_G / jnp.maximum(num_G - ddof, 1))
        deviation_B = deviation_B / (std_G + eps)[group_B]
    elif baseline == "rloo":
        deviation_B = deviation_B * (num_G / jnp.maximum(num_G - 1, 1))[group_B]
    usable_G = status_G == STATUSES.index("usable")
    usable_B = usable_G[group_B] & (mask_B > 0)
    return Advantages(jnp.where(usable_B, deviation_B, 0.0), status_G, usable_G, usable_B)


def group_statuses(scores_B: jax.Array, mask_B: jax.Array, num_samples: int) -> jax.Array:
    """Status of each group of `num_samples` answers that lie in order: status_G, int32, an index
    into `STATUSES`. Other arguments are those of `group_advantages`."""
    num_groups = len(scores_B) // num_samples
    return _judge_groups(scores_B, group_ids(num_groups, num_samples), mask_B, num_groups)[0]


def pick_groups(status_G: np.ndarray, num_kept: int) -> np.ndarray:
    """Indices of the groups to learn from, in order: the first usable ones, and where these are
    fewer than `num_kept`, as many of the first others (arXiv 2503.14476, section 3.2, which samples
    again instead)."""
    return np.sort(np.argsort(status_G != STATUSES.index("usable"), stable=True)[:num_kept])


def group_ids(num_groups: int, num_samples: int) -> jax.Array:
    """Groups of answers that lie in order, J to each prompt: of scores_GJ.reshape(-1)."""
    return jnp.repeat(jnp.arange(num_groups), num_samples)


class Selection(NamedTuple):
    """The best answers of groups.

    Attributes:
        kept_B: bool, whether an answer is among the best of its group.
        best_G: int32, index of each group's best answer; of a group that is not usable -1.
        status_G: int32, index into `STATUSES`; a single answer, or equal ones, can be selected.
        usable_G: bool.
    """

    kept_B: jax.Array
    best_G: jax.Array
    status_G: jax.Array
    usable_G: jax.Array


def select_best(scores_B: jax.Array, group_B: jax.Array, mask_B: jax.Array, *, num_groups: int,
                num_kept: int = 1) -> Selection:
    """The answers with the highest scores of each group; of equal ones the first.

    With one kept it is best-of-n, or rejection sampling for fine-tuning (arXiv 2307.09288, section
    3.2.3). Nothing is kept of a group with a score that is not finite. Arguments are those of
    `group_advantages`.
    """
    status_G, _, finite_B = _judge_groups(scores_B, group_B, mask_B, num_groups)
    usable_G = ((status_G != STATUSES.index("empty"))
                & (status_G != STATUSES.index("not_finite")))
    # By group, those that fill up behind the others, and from the best score down.
    order_B = jnp.lexsort((-finite_B, mask_B <= 0, group_B))
    first_G = jnp.searchsorted(group_B[order_B], jnp.arange(num_groups))
    place_B = jnp.arange(len(order_B)) - first_G[group_B[order_B]]
    rank_B = jnp.zeros_like(place_B).at[order_B].set(place_B)
    best_G = order_B[jnp.minimum(first_G, len(order_B) - 1)]
    return Selection((rank_B < num_kept) & (mask_B > 0) & usable_G[group_B],
                     jnp.where(usable_G, best_G, -1).astype(jnp.int32), status_G, usable_G)


def count_statuses(status_G: jax.Array) -> dict[str, int]:
    """How many groups are usable, and how many are not for which reason; on the host.

    Raises:
        UserError: none is usable, and not because answers happen to be scored alike.
    """
    found_G = np.asarray(status_G)
    counts = {name: int(np.sum(found_G == index)) for index, name in enumerate(STATUSES)}
    if not counts["usable"] and not counts["all_equal"]:
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        raise UserError("groups of answers", f"none of {len(status_G)} is usable ({found})",
                        "sample at least 2 answers to a prompt, and find out why a score is not "
                        "finite")
    return counts


def _judge_groups(scores_B: jax.Array, group_B: jax.Array, mask_B: jax.Array,
                  num_groups: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The status of groups, their numbers of answers, and scores with 0 for what is not finite."""
    scores_B, is_real_B = jnp.asarray(scores_B, jnp.float32), mask_B > 0
    is_finite_B = jnp.isfinite(scores_B)
    finite_B = jnp.where(is_real_B & is_finite_B, scores_B, 0.0)
    num_G = _sums(jnp.ones_like(finite_B), group_B, mask_B, num_groups)
    num_wrong_G = _sums(~is_finite_B, group_B, mask_B, num_groups)
    low_G = jax.ops.segment_min(jnp.where(is_real_B, finite_B, jnp.inf), group_B, num_groups)
    high_G = jax.ops.segment_max(jnp.where(is_real_B, finite_B, -jnp.inf), group_B, num_groups)
    reasons = {"empty": num_G == 0, "not_finite": num_wrong_G > 0, "single": num_G == 1,
               "all_equal": low_G == high_G}
    status_G = jnp.select(list(reasons.values()), [STATUSES.index(name) for name in reasons], 0)
    return status_G.astype(jnp.int32), num_G, finite_B


def _sums(values_B: jax.Array, group_B: jax.Array, mask_B: jax.Array, num_groups: int) -> jax.Array:
    """Sum of each group's values, [G]."""
    return jax.ops.segment_sum(jnp.where(mask_B > 0, values_B, 0).astype(jnp.float32), group_B,
                               num_groups)


class KLControl(NamedTuple):
    """How the KL coefficient follows the KL (arXiv 1909.08593, section 2.2).

    Attributes:
        target_nats: KL of an answer to be held; 0 keeps the coefficient as it is.
        horizon: answers after which an error of the KL has had its full effect.
        clip: largest relative error that is acted on.
    """

    target_nats: float = 0.0
    horizon: float = 10_000.0
    clip: float = 0.2


def update_kl_coef(kl_coef: jax.Array | float, kl_nats: jax.Array | float, num_answers: int,
                   control: KLControl) -> jax.Array:
    """The coefficient after an update, float32.

    kl_coef (1 + clip(KL / target - 1) num_answers / horizon), as `AdaptiveKLController` of
    lm-human-preferences at cbfd210. A KL that is no number changes nothing.

    Args:
        kl_nats: mean over the answers of their KL by k1.
        num_answers: of this update, over all devices.
    """
    kl_coef = jnp.asarray(kl_coef, jnp.float32)
    if not control.target_nats:
        return kl_coef
    error = jnp.clip(kl_nats / control.target_nats - 1, -control.clip, control.clip)
    new = kl_coef * (1 + error * num_answers / control.horizon)
    return jnp.where(jnp.isnan(new), kl_coef, new)
