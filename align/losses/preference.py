"""Preference losses by name, and the batches that they take.

A loss is a function of two numbers a pair, the log-ratios of policy to reference of the preferred
and of the other answer, a = log pi(y_w|x) - log ref(y_w|x) and r likewise, in nats; `Loss.measure`
is how the tokens of an answer are added up. Answer tokens include the one that ends the turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from core.errors import UserError
from data.batch import Batch
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params
from train.loss import Metrics


class Settings(NamedTuple):
    """What a preference loss depends on beside its batch; static in a compiled step.

    Attributes:
        loss: a name of `LOSSES`.
        beta: strength: larger stays closer to the reference; of ORPO the weight of the odds ratio.
        label_smoothing: share of pairs whose order is taken to be wrong (cdpo, robust).
        gamma: margin that SimPO asks for.
        ld_alpha: weight of tokens beyond the length of the shorter answer (ld_dpo).
        nll_coef: weight of the preferred answer's loss per token.
        temperature: at which the answers were sampled; it divides all logits.
        reference_free: takes the reference's log-probabilities as 0.
        desirable_weight, undesirable_weight: of good and of bad answers (kto).
    """

    loss: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    ld_alpha: float = 0.5
    nll_coef: float = 0.0
    temperature: float = 1.0
    reference_free: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss depends on the reference's log-probabilities."""
        return LOSSES[self.loss].has_reference and not self.reference_free


def dpo(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Direct preference optimization (arXiv 2305.18290, equation 7).

    Of means per token it is the length-normalised variant of Tulu 3 (arXiv 2411.15124, equation
    6), with the longer answer's tokens reduced it is LD-DPO (arXiv 2409.06411, equation 11).
    """
    return -jax.nn.log_sigmoid(settings.beta * (a_B - r_B))


def cdpo(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Conservative DPO: cross-entropy with labels that are wrong with a known probability.

    Source: https://ericmitchell.ai/cdpo.pdf, equation 3.
    """
    wrong = settings.label_smoothing
    return (1 - wrong) * dpo(a_B, r_B, settings) + wrong * dpo(r_B, a_B, settings)


def robust(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Robust DPO: its mean over flipped labels is the loss of the right ones (arXiv 2403.00409)."""
    wrong = settings.label_smoothing
    return ((1 - wrong) * dpo(a_B, r_B, settings) - wrong * dpo(r_B, a_B, settings)) / (
        1 - 2 * wrong)


def ipo(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Identity preference optimization (arXiv 2310.12036, equation 17)."""
    return (a_B - r_B - 1 / (2 * settings.beta))**2


def hinge(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Hinge loss on the normalised likelihood (SLiC, arXiv 2305.10425)."""
    return jax.nn.relu(1 - settings.beta * (a_B - r_B))


def apo_zero(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Anchored preference optimization: preferred answers up, others down (arXiv 2408.06266)."""
    return jax.nn.sigmoid(-settings.beta * a_B) + jax.nn.sigmoid(settings.beta * r_B)


def apo_down(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """Anchored preference optimization: both down, the other answer more (arXiv 2408.06266)."""
    return (jax.nn.sigmoid(settings.beta * a_B)
            + jax.nn.sigmoid(-settings.beta * (a_B - r_B)))


def simpo(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """SimPO, on mean log-probabilities without a reference (arXiv 2405.14734, equation 6)."""
    return -jax.nn.log_sigmoid(settings.beta * (a_B - r_B) - settings.gamma)


def orpo(a_B: jax.Array, r_B: jax.Array, settings: Settings) -> jax.Array:
    """The odds ratio of ORPO, on mean log-probabilities (arXiv 2403.07691, equations 4 and 7).

    The likelihood of prompt and answer, the loss's other term, is added by `preference_loss`.
    """
    log_odds_B = (a_B - log1mexp(a_B)) - (r_B - log1mexp(r_B))
    return -settings.beta * jax.nn.log_sigmoid(log_odds_B)


def kto(ratio_B: jax.Array, z0: jax.Array, is_good_B: jax.Array, settings: Settings) -> jax.Array:
    """Kahneman-Tversky optimization of labelled answers (arXiv 2402.01306, equation 8).

    Args:
        z0: the reference point, the log-ratio that answers to other prompts have on average.
    """
    good_B = settings.desirable_weight * jax.nn.sigmoid(settings.beta * (z0 - ratio_B))
    bad_B = settings.undesirable_weight * jax.nn.sigmoid(settings.beta * (ratio_B - z0))
    return jnp.where(is_good_B > 0, good_B, bad_B)


# Below it an answer's mean probability rounds to 1 in float32.
SURE = -1e-7


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) of x <= 0, finite with a finite gradient at 0.

    Source: Maechler, "Accurately computing log(1 - exp(-|a|))", equation 7.
    """
    x = jnp.minimum(x, SURE)
    is_near = x > -jnp.log(2.0)
    near = jnp.log(-jnp.expm1(jnp.where(is_near, x, -1.0)))
    return jnp.where(is_near, near, jnp.log1p(-jnp.exp(jnp.where(is_near, -1.0, x))))


class Loss(NamedTuple):
    """A line of `LOSSES`.

    Attributes:
        function: of two numbers a pair; `kto` alone is of one answer.
        measure: how an answer's tokens are added up: their sum, their mean, or with those past
            the length of the shorter answer reduced (common).
        has_reference: whether log-probabilities are taken relative to the reference.
        labels: whether it learns from labelled answers instead of pairs.
    """

    function: Callable[..., jax.Array]
    measure: str = "sum"
    has_reference: bool = True
    labels: bool = False


LOSSES = {
    "dpo": Loss(dpo), "cdpo": Loss(cdpo), "robust": Loss(robust), "hinge": Loss(hinge),
    "ipo": Loss(ipo, "mean"),       # the convention of TRL
    "ipo_sum": Loss(ipo),           # that of the authors of DPO
    "dpo_norm": Loss(dpo, "mean"), "ld_dpo": Loss(dpo, "common"),
    "apo_zero": Loss(apo_zero), "apo_down": Loss(apo_down),
    "simpo": Loss(simpo, "mean", has_reference=False),
    "orpo": Loss(orpo, "mean", has_reference=False),
    "kto": Loss(kto, labels=True)}


def read_settings(section: ConfigDict) -> Settings:
    """The settings of a stage's section.

    Raises:
        UserError: there is no such loss, or a field has no effect on it.
    """
    if section.loss not in LOSSES:
        raise UserError(f"{section.out}.loss={section.loss!r}", "there is no such loss",
                        f"choose one of {', '.join(LOSSES)}")
    if section.label_smoothing and section.loss not in ("cdpo", "robust"):
        raise UserError(f"{section.out}.label_smoothing={section.label_smoothing}",
                        f"has no effect on loss={section.loss!r}",
                        "set it to 0, or choose cdpo or robust")
    return Settings(*(section[name] for name in Settings._fields))


@flax.struct.dataclass
class PreferenceBatch:
    """Pairs of answers to the same questions, one row each.

    Attributes:
        chosen: rows of preferred answers; weights are 1 on answer tokens, the last included.
        rejected: rows of the other answers, in the same order.
        reference_chosen_B: summed log-probability of each chosen answer under the frozen
            reference, in nats; anything finite where the loss has none.
        reference_rejected_B: the same of the rejected ones.
        common_chosen_B: the same of its first tokens alone, as many as the shorter answer has.
        common_rejected_B: the same of the rejected ones.
        weights_B: 1; 0 fills a batch up.
        token_share_B: pairs of the whole batch over the tokens of their chosen rows, prompts
            included, the same number in each: what makes a mean over tokens of a sum over pairs.
    """

    chosen: Batch
    rejected: Batch
    reference_chosen_B: Any
    reference_rejected_B: Any
    common_chosen_B: Any
    common_rejected_B: Any
    weights_B: Any
    token_share_B: Any


@flax.struct.dataclass
class LabelledBatch:
    """Answers with labels, and each prompt with an answer to another one.

    Attributes:
        answers: rows of labelled answers.
        mismatched: rows of the same prompts with the answers of others.
        reference_B: summed log-probability of each answer under the reference, in nats.
        reference_mismatched_B: the same of the mismatched rows.
        is_good_B: 1 for an answer to imitate, 0 for one to avoid.
        weights_B: 1; 0 fills a batch up.
    """

    answers: Batch
    mismatched: Batch
    reference_B: Any
    reference_mismatched_B: Any
    is_good_B: Any
    weights_B: Any


class RowLogps(NamedTuple):
    """Log-probabilities of rows, in nats.

    Attributes:
        answer_B: sum over the answer's tokens.
        common_B: sum over its first tokens, as many as the shorter answer of the pair has.
        row_B: sum over prompt and answer, where that is asked for; else as `answer_B`.
        num_tokens_B: tokens of the answer, at least 1.
    """

    answer_B: jax.Array
    common_B: jax.Array
    row_B: jax.Array
    num_tokens_B: jax.Array


def score_pairs(params: Params, first: Batch, second: Batch, *, config: ModelConfig,
                execution: Execution, temperature: float = 1.0,
                scores_prompts: bool = False) -> list[RowLogps]:
    """Log-probabilities of two answers each, from one forward pass over both.

    Args:
        temperature: divides the logits.
        scores_prompts: whether the prompts' tokens are scored, too.
    """
    return _score_rows(params, [first, second], config=config, execution=execution,
                       temperature=temperature, scores_prompts=scores_prompts)


def _score_rows(params: Params, sides: list[Batch], *, config: ModelConfig, execution: Execution,
                temperature: float, scores_prompts: bool = False) -> list[RowLogps]:
    """`score_pairs` of any number of sides."""
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *sides)
    params, config = at_temperature(params, config, temperature)
    weights_BL = rows.loss_weights_BL
    scored_BL = rows.segment_ids_BL > 0 if scores_prompts else weights_BL > 0
    logp_BL = batch_logps(params, rows, config=config, execution=execution, scored_BL=scored_BL)
    num_tokens_B = jnp.sum(weights_BL, axis=1)
    shortest_B = jnp.min(num_tokens_B.reshape(len(sides), -1), axis=0)
    is_common_BL = jnp.cumsum(weights_BL, axis=1) <= jnp.tile(shortest_B, len(sides))[:, None]
    sums = RowLogps(jnp.sum(logp_BL * weights_BL, axis=1),
                    jnp.sum(logp_BL * weights_BL * is_common_BL, axis=1),
                    jnp.sum(logp_BL * scored_BL, axis=1),
                    jnp.maximum(num_tokens_B, 1))
    return [RowLogps(*parts) for parts in zip(*(jnp.split(sum_B, len(sides)) for sum_B in sums))]


def at_temperature(params: Params, config: ModelConfig,
                   temperature: float) -> tuple[Params, ModelConfig]:
    """Parameters and architecture of the same model with all logits divided by `temperature`.

    A cap c of the logits becomes c / T: c tanh(z / c) / T = (c / T) tanh((z / T) / (c / T)).
    """
    if temperature == 1.0:
        return params, config
    if config.head_bias:
        params = {**params, "head_bias_V": params["head_bias_V"] / temperature}
    return params, dataclasses.replace(
        config, logit_scale=config.logit_scale / temperature,
        logit_softcap=config.logit_softcap / temperature)


def preference_loss(params: Params, batch: PreferenceBatch | LabelledBatch, *, config: ModelConfig,
                    execution: Execution, key: jax.Array,
                    settings: Settings) -> tuple[jax.Array, Metrics]:
    """A loss of `LOSSES`, summed over pairs or labelled answers; see `train.loss`.

    The margin can also grow while both answers become less likely; `nll_coef` times the preferred
    answer's loss per token counteracts that (arXiv 2404.19733, equation 1). ORPO's loss contains
    the mean loss of all tokens of the preferred rows, those of prompts included, as in TRL.

    Metrics of pairs: `loss` (the preference part alone: of DPO ln 2 before the first step), `nll`
    (nats per token of preferred answers), `accuracy` (a tie counts as a loss), `margin` (difference
    of implicit rewards), `chosen_reward` and `rejected_reward` (beta times what the loss compares),
    `chosen_logp` and `rejected_logp` (nats of an answer). See `_labelled_loss` for those of KTO.
    """
    del key  # no dropout: the ratio to the reference must be exact
    if isinstance(batch, LabelledBatch):
        return _labelled_loss(params, batch, config=config, execution=execution, settings=settings)
    loss = LOSSES[settings.loss]
    chosen, rejected = score_pairs(params, batch.chosen, batch.rejected, config=config,
                                   execution=execution, temperature=settings.temperature,
                                   scores_prompts=settings.loss == "orpo")
    a_B = _measure(chosen, settings, batch.reference_chosen_B, batch.common_chosen_B)
    r_B = _measure(rejected, settings, batch.reference_rejected_B, batch.common_rejected_B)
    loss_B = loss.function(a_B, r_B, settings)
    if settings.loss == "orpo":
        loss_B -= chosen.row_B * batch.token_share_B
    values = {"loss": loss_B, "nll": -chosen.answer_B / chosen.num_tokens_B,
              "accuracy": a_B > r_B, "margin": settings.beta * (a_B - r_B),
              "chosen_reward": settings.beta * a_B, "rejected_reward": settings.beta * r_B,
              "chosen_logp": chosen.answer_B, "rejected_logp": rejected.answer_B}
    metrics = _weighted(values, batch.weights_B)
    return metrics["loss"][0] + settings.nll_coef * metrics["nll"][0], metrics


def _labelled_loss(params: Params, batch: LabelledBatch, *, config: ModelConfig,
                   execution: Execution, settings: Settings) -> tuple[jax.Array, Metrics]:
    """KTO, summed over answers.

    The reference point is max(0, mean of the mismatched log-ratios) over the batch, without a
    gradient: only a forward pass is made over the mismatched rows.

    Metrics: `loss`, `nll` (of good answers), `good_reward` and `bad_reward`, `accuracy` (rewards
    beyond the reference point on the right side), `z0`.
    """
    model = dict(config=config, execution=execution, temperature=settings.temperature)
    own, = _score_rows(params, [batch.answers], **model)
    other, = _score_rows(jax.lax.stop_gradient(params), [batch.mismatched], **model)
    ratio_B, mismatched_B = own.answer_B, other.answer_B
    if settings.needs_reference:
        ratio_B = ratio_B - batch.reference_B
        mismatched_B = mismatched_B - batch.reference_mismatched_B
    weights_B, is_good_B = batch.weights_B, batch.is_good_B
    z0 = jnp.maximum(jnp.sum(mismatched_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1e-9), 0)
    beyond_B = jnp.where(is_good_B > 0, ratio_B - z0, z0 - ratio_B)
    metrics = _weighted({"loss": kto(ratio_B, z0, is_good_B, settings), "accuracy": beyond_B > 0,
                         "z0": jnp.broadcast_to(z0, ratio_B.shape)}, weights_B)
    nll_B = -own.answer_B / own.num_tokens_B
    metrics |= _weighted({"nll": nll_B, "good_reward": settings.beta * ratio_B},
                         weights_B * is_good_B)
    metrics |= _weighted({"bad_reward": settings.beta * ratio_B}, weights_B * (1 - is_good_B))
    return metrics["loss"][0] + settings.nll_coef * metrics["nll"][0], metrics


def _weighted(values: dict[str, jax.Array], weights_B: jax.Array) -> Metrics:
    """Sums and weights; what has weight 0 counts for nothing, whatever it is."""
    weight = jnp.sum(weights_B)
    return {name: (jnp.sum(jnp.where(weights_B > 0, value_B.astype(jnp.float32) * weights_B, 0)),
                   weight) for name, value_B in values.items()}


def _measure(side: RowLogps, settings: Settings, reference_B: jax.Array,
             reference_common_B: jax.Array) -> jax.Array:
    """What a loss compares of an answer."""
    loss = LOSSES[settings.loss]
    answer_B, common_B = side.answer_B, side.common_B
    if settings.needs_reference:
        answer_B, common_B = answer_B - reference_B, common_B - reference_common_B
    if loss.measure == "mean":
        return answer_B / side.num_tokens_B
    if loss.measure == "common":
        return common_B + settings.ld_alpha * (answer_B - common_B)
    return answer_B
