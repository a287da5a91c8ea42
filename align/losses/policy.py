"""Losses of a policy on answers that it sampled: PPO, GRPO and its variants, RLOO, GSPO.

They are made of parts by name: a ratio of probabilities, new to old, whose clipped product with the
advantage is the surrogate; a term for the KL from the reference; an aggregation of tokens.

    PPO             ratio="token", aggregation="token", vf_coef=0.1 (arXiv 1707.06347, equation 7)
    GRPO            ratio="token", aggregation="grpo" (arXiv 2402.03300, equation 3)
    DAPO            ratio="token", aggregation="token", eps_high=0.28 (arXiv 2503.14476, section 3)
    Dr. GRPO        ratio="token", aggregation="dr_grpo" (arXiv 2503.20783, section 3.2)
    RLOO            ratio="answer", aggregation="grpo" (arXiv 2402.14740; TRL)
    GSPO            ratio="answer_mean", aggregation="grpo" (arXiv 2507.18071, equations 5 and 7)

Arrays [B, L] and masks are as in `align.rl.advantages`. Log-probabilities come in with the logits
already divided by the temperature at which the answers were sampled, in old, new and reference
alike: `align.losses.preference.at_temperature` does it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from align.rl.advantages import KL_ESTIMATORS, MAX_LOG_RATIO, estimate_kl, masked_difference
from core.errors import UserError
from train.loss import Metrics

RATIOS = ("token", "answer", "answer_mean")
AGGREGATIONS = ("grpo", "token", "dr_grpo")
KL_LOSSES = ("k2", "k3", "k3_corrected")


class Settings(NamedTuple):
    """What a loss of a policy depends on beside its batch; static in a compiled step.

    Attributes:
        ratio: `token`, pi / old of each token; `answer`, their product over the answer;
            `answer_mean`, its geometric mean.
        aggregation: `token`, the mean over all tokens; `grpo`, the mean over answers of the mean
            over their tokens; `dr_grpo`, the mean over answers of their sum over `max_tokens`.
        eps_low, eps_high: the ratio is clipped to 1 - eps_low and 1 + eps_high.
        max_tokens: by which `dr_grpo` divides: the limit of an answer's length; else 0.
        kl_coef: of the KL term; 0 if the KL is in the rewards.
        kl_loss: that term. `k2`: of answers of this very policy its gradient is that of KL(pi ||
            ref). `k3`: that of KL(ref || pi), as in the paper of GRPO. `k3_corrected`: k3 times the
            ratio, whose gradient is that of KL(pi || ref) for answers of the old policy as well
            (`use_bias_correction_kl` of TRL 1.16). k1 is not among them: its mean gradient is 0.
        vf_coef: of the value loss; 0 without a value head.
        value_clip: how far a value may go from that of the rollout; 0 does not clip.
    """

    ratio: str = "token"
    aggregation: str = "token"
    eps_low: float = 0.2
    eps_high: float = 0.2
    max_tokens: int = 0
    kl_coef: float = 0.0
    kl_loss: str = "k3"
    vf_coef: float = 0.0
    value_clip: float = 0.2


def check_settings(settings: Settings, section: str) -> Settings:
    """The settings, once their names exist and fit together.

    Args:
        section: of the config that they come from, for the message.

    Raises:
        UserError: there is no such ratio, aggregation or KL term, or `dr_grpo` has no constant.
    """
    for field, names in (("ratio", RATIOS), ("aggregation", AGGREGATIONS), ("kl_loss", KL_LOSSES)):
        value = getattr(settings, field)
        if value not in names:
            rule = ("as a loss it has a mean gradient of 0" if (field, value) == ("kl_loss", "k1")
                    else "there is no such choice")
            raise UserError(f"{section}.{field}={value!r}", rule,
                            f"choose one of {', '.join(names)}")
    if (settings.aggregation == "dr_grpo") != (settings.max_tokens > 0):
        raise UserError(f"{section}.max_tokens={settings.max_tokens}",
                        f"does not fit aggregation={settings.aggregation!r}",
                        "give the limit of an answer's length with aggregation=dr_grpo")
    return settings


@flax.struct.dataclass
class PolicyBatch:
    """What is known of sampled answers before an update of the policy.

    Attributes:
        mask_BL: 1 at tokens that the policy wrote, the one that ends an answer included, else 0; a
            row of 0 fills the batch up, and counts as no answer.
        old_BL: log-probabilities under the policy that sampled, computed as the new ones are.
        advantages_BL: float32; see `align.rl.advantages`, and `spread` there for one an answer.
        reference_BL: log-probabilities under the reference; None without a KL term.
        returns_BL: what values should be; None without a value head.
        values_BL: values at the time of the rollout; None without a value head.
    """

    mask_BL: Any
    old_BL: Any
    advantages_BL: Any
    reference_BL: Any = None
    returns_BL: Any = None
    values_BL: Any = None


def policy_loss(logps_BL: jax.Array, batch: PolicyBatch, *, settings: Settings,
                values_BL: jax.Array | None = None,
                entropy_BL: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
    """The clipped surrogate with its further terms, summed; see `train.loss`.

    Old log-probabilities, advantages, reference and returns are constants. Log-ratios beyond 20 are
    cut there, as OpenRLHF does: no ratio is infinite.

    Args:
        logps_BL: of the answers' tokens under the policy to be updated.
        values_BL: values that the value head gives now.
        entropy_BL: of the policy's distribution at each token, in nats; only reported.

    Returns:
        The sum to differentiate, and the metrics. `loss` is the surrogate alone, and its weight,
        tokens or answers according to the aggregation, divides the whole gradient. `kl_loss` and
        `value_loss` do not include their coefficients. Means over tokens, or over answers where
        the ratio is of answers: `ratio`, `clip_frac` (where the clipped surrogate is the smaller
        one, and no gradient passes) and `approx_kl`, half the mean square of log pi - log old. Over
        tokens: `entropy`, `value_clip_frac`. Over answers: `ratio_max`, the mean of each one's
        largest ratio, and `kl`, the sum of k1 from the reference, in nats: the KL while the answers
        are the policy's own, before its first update.

    Raises:
        UserError: a term lacks the arrays that it needs.
    """
    _check_arrays(batch, settings, values_BL)
    mask_BL, is_real_BL = batch.mask_BL, batch.mask_BL > 0
    log_ratio_BL = _log_ratio(logps_BL, batch, settings.ratio)
    ratio_BL = jnp.exp(log_ratio_BL)
    surrogate_BL, is_clipped_BL = _surrogate(ratio_BL, batch, settings)
    weights_BL, weight = weigh(mask_BL, settings)
    metrics = {"loss": (_sum(surrogate_BL, weights_BL), weight)}
    loss_sum = metrics["loss"][0]
    if batch.reference_BL is not None:
        kl_BL = _kl_term(logps_BL, ratio_BL, batch, settings)
        metrics["kl_loss"] = _sum(kl_BL, weights_BL), weight
        loss_sum += settings.kl_coef * metrics["kl_loss"][0]
    if settings.vf_coef:
        error_BL, is_value_clipped_BL = _value_errors(values_BL, batch, settings)
        metrics["value_loss"] = _sum(error_BL, weights_BL), weight
        loss_sum += settings.vf_coef * metrics["value_loss"][0]
        metrics["value_clip_frac"] = _mean(is_value_clipped_BL, is_real_BL)
    # Of what is the same in a whole answer, the answer counts once.
    once_BL = is_real_BL if settings.ratio == "token" else _weigh_answers(mask_BL)
    metrics |= {"ratio": _mean(ratio_BL, once_BL), "clip_frac": _mean(is_clipped_BL, once_BL),
                "approx_kl": _mean(KL_ESTIMATORS["k2"](log_ratio_BL), once_BL),
                "ratio_max": _largest(ratio_BL, mask_BL)}
    if batch.reference_BL is not None:
        k1_BL = estimate_kl(logps_BL, batch.reference_BL, mask_BL, "k1")
        metrics["kl"] = jnp.sum(k1_BL), _num_answers(mask_BL)
    if entropy_BL is not None:
        metrics["entropy"] = _mean(entropy_BL, is_real_BL)
    return loss_sum, metrics


def _check_arrays(batch: PolicyBatch, settings: Settings, values_BL: jax.Array | None) -> None:
    if settings.kl_coef and batch.reference_BL is None:
        raise UserError(f"kl_coef={settings.kl_coef}", "the batch has no reference_BL",
                        "score the answers with the reference, or set it to 0")
    if settings.vf_coef and any(array is None for array in
                                (values_BL, batch.values_BL, batch.returns_BL)):
        raise UserError(f"vf_coef={settings.vf_coef}", "there are no values, or no returns",
                        "give those of the value head and of the rollout, or set it to 0")


def _log_ratio(logps_BL: jax.Array, batch: PolicyBatch, ratio: str) -> jax.Array:
    """log pi - log old of each token, or of its whole answer; 0 where masked."""
    mask_BL = batch.mask_BL
    log_ratio_BL = masked_difference(logps_BL, batch.old_BL, mask_BL)
    if ratio != "token":
        log_ratio_B = jnp.sum(log_ratio_BL, axis=1, keepdims=True)
        if ratio == "answer_mean":
            log_ratio_B /= jnp.maximum(_num_tokens(mask_BL), 1)
        log_ratio_BL = jnp.where(mask_BL > 0, log_ratio_B, 0.0)
    return jnp.clip(log_ratio_BL, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _surrogate(ratio_BL: jax.Array, batch: PolicyBatch,
               settings: Settings) -> tuple[jax.Array, jax.Array]:
    """-min(ratio A, clip(ratio) A), and where the second is the smaller."""
    advantages_BL = jnp.where(batch.mask_BL > 0, batch.advantages_BL, 0).astype(jnp.float32)
    plain_BL = ratio_BL * advantages_BL
    clipped_BL = advantages_BL * jnp.clip(ratio_BL, 1 - settings.eps_low, 1 + settings.eps_high)
    return -jnp.minimum(plain_BL, clipped_BL), clipped_BL < plain_BL


def _kl_term(logps_BL: jax.Array, ratio_BL: jax.Array, batch: PolicyBatch,
             settings: Settings) -> jax.Array:
    """The KL term of each token."""
    estimator, _, corrected = settings.kl_loss.partition("_")
    kl_BL = estimate_kl(logps_BL, batch.reference_BL, batch.mask_BL, estimator)
    return kl_BL * ratio_BL if corrected else kl_BL


def _value_errors(values_BL: jax.Array, batch: PolicyBatch,
                  settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Half the larger square of two errors, of the value and of the clipped one, and where clipped.

    The value is clipped around that of the rollout (`PPOTrainer.loss` of lm-human-preferences at
    cbfd210).
    """
    error_BL = masked_difference(values_BL, batch.returns_BL, batch.mask_BL)
    if not settings.value_clip:
        return 0.5 * error_BL**2, jnp.zeros_like(error_BL)
    step_BL = masked_difference(values_BL, batch.values_BL, batch.mask_BL)
    near_BL = jnp.clip(step_BL, -settings.value_clip, settings.value_clip)
    near_error_BL = masked_difference(batch.values_BL, batch.returns_BL, batch.mask_BL) + near_BL
    larger_BL = jnp.maximum(error_BL**2, near_error_BL**2)
    return 0.5 * larger_BL, near_error_BL**2 > error_BL**2


def weigh(mask_BL: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """The weight of each token in the sum, float32 [B, L], and what divides the sum."""
    is_real_BL = mask_BL > 0
    if settings.aggregation == "token":
        return is_real_BL.astype(jnp.float32), jnp.sum(is_real_BL, dtype=jnp.float32)
    if settings.aggregation == "grpo":
        return _weigh_answers(mask_BL), _num_answers(mask_BL)
    return is_real_BL / settings.max_tokens, _num_answers(mask_BL)


def _weigh_answers(mask_BL: jax.Array) -> jax.Array:
    """Weights of tokens whose sum is 1 in every answer."""
    return (mask_BL > 0) / jnp.maximum(_num_tokens(mask_BL), 1)


def _num_tokens(mask_BL: jax.Array) -> jax.Array:
    """Tokens of each answer, [B, 1]."""
    return jnp.sum(mask_BL > 0, axis=1, dtype=jnp.float32, keepdims=True)


def _num_answers(mask_BL: jax.Array) -> jax.Array:
    return jnp.sum(jnp.any(mask_BL > 0, axis=1), dtype=jnp.float32)


def _sum(values_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
    """The weighted sum; what has weight 0 counts for nothing, whatever it is."""
    return jnp.sum(jnp.where(weights_BL > 0, values_BL.astype(jnp.float32) * weights_BL, 0.0))


def _mean(values_BL: jax.Array, weights_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum and its weight, of a mean."""
    return _sum(values_BL, weights_BL), jnp.sum(weights_BL, dtype=jnp.float32)


def _largest(values_BL: jax.Array, mask_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over answers of the largest value, and their number: a maximum that can be summed."""
    largest_B = jnp.max(values_BL, axis=1, where=mask_BL > 0, initial=0.0)
    return jnp.sum(largest_B), _num_answers(mask_BL)
