"""A task whose answers can all be enumerated, so that every expectation is an exact sum.

Reinforcement learning with a KL penalty maximises E_pi[r] - beta KL(pi || ref). Its optimum is
known, pi* = ref exp(r / beta) / Z (arXiv 2305.18290, equation 4), and over all beta it gives the
frontier: the largest reward that any policy has at a divergence from the reference. On a task with
few answers both numbers of a trained model are sums over all of them, so the distance to the
frontier grades an algorithm, and a policy above it would prove an error.

Prompts are single tokens, 0 to P - 1, and answers have exactly L tokens. Beside the letters of
`model.config`,

    P prompts      A answers, V^L, in the lexicographic order of their tokens

and arrays over all answers are float64; rewards and divergences are means over prompts.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax

from core.errors import UserError
from data.batch import Batch
from eval.respond.reward import answer_scores
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, forward
from model.heads.language import logits

MAX_ANSWERS = 2**20     # of all prompts: what a forward pass and sums over them can hold
MIN_KL = 1e-12          # smaller sums are rounding errors


@dataclasses.dataclass(frozen=True)
class Task:
    """The sizes of a task.

    Attributes:
        P: prompts, at most V.
        V: tokens.
        L: tokens of an answer.
    """

    P: int = 4
    V: int = 8
    L: int = 5

    def __post_init__(self):
        if not (1 <= self.P <= self.V and self.V >= 2 and self.L >= 1):
            raise UserError(f"{self}", "has no answers, or more prompts than tokens",
                            "choose 1 <= P <= V, V >= 2 and L >= 1")
        if self.P * self.A > MAX_ANSWERS:
            raise UserError(f"{self}", f"has {self.P * self.A:,} answers, more than "
                            f"{MAX_ANSWERS:,} to enumerate", "lower P, V or L")

    @property
    def A(self) -> int:
        """Answers to each prompt."""
        return self.V**self.L

    @property
    def answers_AL(self) -> np.ndarray:
        """Tokens of all answers, int32."""
        digits_LA = np.unravel_index(np.arange(self.A), (self.V,) * self.L)
        return np.stack(digits_LA, axis=1).astype(np.int32)


def make_rows(prompt_B: Any, answer_BL: Any) -> Batch:
    """Rows of a prompt and its answer, whose tokens are scored; of numpy's or JAX's arrays."""
    numpy = np if isinstance(answer_BL, np.ndarray) else jax.numpy
    tokens_BL = numpy.concatenate([prompt_B[:, None], answer_BL[:, :-1]], axis=1)
    positions_BL = numpy.broadcast_to(numpy.arange(answer_BL.shape[1], dtype="int32")[None],
                                      answer_BL.shape)
    ones_BL = numpy.ones_like(answer_BL)
    return Batch(tokens_BL=tokens_BL, targets_BL=answer_BL,
                 loss_weights_BL=ones_BL.astype("float32"), segment_ids_BL=ones_BL,
                 positions_BL=positions_BL)


# Models -------------------------------------------------------------------------------------------

@partial(jax.jit, static_argnames=("config", "execution"))
def _logits(params: Params, inputs: Any, *, config: ModelConfig,
            execution: Execution) -> jax.Array:
    x_BLD = forward(params, *inputs, config=config, execution=execution)
    return logits(params, x_BLD, config=config, execution=execution)


def answer_logps(params: Params, task: Task, *, config: ModelConfig,
                 execution: Execution) -> np.ndarray:
    """Log-probabilities of all answers under a model, in nats: logp_PA.

    One forward pass over all beginnings of L - 1 tokens gives the logits of every beginning. They
    are normalised in float64, so that the probabilities sum to one to its precision.

    Raises:
        UserError: the model has another vocabulary than the task.
    """
    _check_vocabulary(config, task)
    beginnings_BL = np.tile(task.answers_AL[::task.V], (task.P, 1))
    prompt_B = np.repeat(np.arange(task.P, dtype=np.int32), len(beginnings_BL) // task.P)
    logits_BLV = np.asarray(_logits(params, make_rows(prompt_B, beginnings_BL).inputs,
                                    config=config, execution=execution), np.float64)
    logp = np.zeros(task.P)
    for place in range(task.L):     # here [P V^place], of each beginning of that many tokens
        logits_BV = logits_BLV[::task.V**(task.L - 1 - place), place]
        logp = (logp[:, None] + log_softmax(logits_BV, axis=1)).reshape(-1)
    return logp.reshape(task.P, task.A)


@partial(jax.jit, static_argnames=("config", "execution"))
def _scores(params: Params, texts: Any, *, config: ModelConfig,
            execution: Execution) -> jax.Array:
    return answer_scores(params, *texts, config=config, execution=execution)


def make_texts(tokens_BL: Any) -> tuple[Any, Any, Any]:
    """Tokens, positions and segments of rows without padding, as a reward model reads them; of
    numpy's or JAX's arrays."""
    numpy = np if isinstance(tokens_BL, np.ndarray) else jax.numpy
    positions_BL = numpy.broadcast_to(numpy.arange(tokens_BL.shape[1], dtype="int32")[None],
                                      tokens_BL.shape)
    return tokens_BL, positions_BL, numpy.ones_like(tokens_BL)


def answer_rewards(params: Params, task: Task, *, config: ModelConfig,
                   execution: Execution) -> np.ndarray:
    """Scores of all answers, each read with its prompt by a reward model: reward_PA.

    Raises:
        UserError: the model has another vocabulary than the task.
    """
    _check_vocabulary(config, task)
    texts = [make_texts(np.insert(task.answers_AL, 0, prompt, axis=1)) for prompt in range(task.P)]
    return np.stack([np.asarray(_scores(params, rows, config=config, execution=execution),
                                np.float64) for rows in texts])


def _check_vocabulary(config: ModelConfig, task: Task) -> None:
    if config.V != task.V:
        raise UserError(f"model.V={config.V}", f"is not the task's vocabulary of {task.V} tokens",
                        "make the model with that vocabulary")


# Sums over all answers ----------------------------------------------------------------------------

class Point(NamedTuple):
    """Where a policy is.

    Attributes:
        reward: its expected reward.
        kl: its divergence KL(pi || ref), in nats of an answer.
    """

    reward: float
    kl: float


def measure(logp_PA: np.ndarray, ref_PA: np.ndarray, reward_PA: np.ndarray) -> Point:
    """The expected reward of a policy and its divergence from the reference."""
    p_PA = np.exp(logp_PA)
    # A policy may give an answer the probability 0; it then adds nothing.
    ratio_PA = np.where(p_PA > 0, logp_PA - ref_PA, 0.0)
    return Point(float(np.sum(p_PA * reward_PA, axis=1).mean()),
                 float(np.sum(p_PA * ratio_PA, axis=1).mean()))


def optimum(ref_PA: np.ndarray, reward_PA: np.ndarray, beta: float) -> np.ndarray:
    """logp_PA of the policy that maximises E[r] - beta KL(pi || ref) (arXiv 2305.18290, eq. 4)."""
    return log_softmax(ref_PA + reward_PA / beta, axis=1)


def frontier(ref_PA: np.ndarray, reward_PA: np.ndarray, betas: Any) -> list[Point]:
    """The points of the optimal policies, one for each beta."""
    return [measure(optimum(ref_PA, reward_PA, beta), ref_PA, reward_PA) for beta in betas]


def frontier_reward(ref_PA: np.ndarray, reward_PA: np.ndarray, kl: float) -> float:
    """The largest expected reward of any policy whose mean divergence from the reference is `kl`.

    The beta of the optimum with that divergence is found by bisection, and the value is that of
    the frontier's tangent there. As every tangent lies above the concave frontier, what is left of
    the search's error can only raise the value, and by its square.

    Args:
        kl: in nats; one above 0 is taken to be at least `MIN_KL`. From where the optimum is the
            best answers alone, the value is their reward.
    """
    best_P1 = np.max(reward_PA, axis=1, keepdims=True)
    best_mass_P = np.sum(np.exp(ref_PA), axis=1, where=reward_PA == best_P1)
    if kl >= -np.log(best_mass_P).mean() - 1e-9:
        return float(best_P1.mean())

    def point(log_beta: float) -> Point:
        return measure(optimum(ref_PA, reward_PA, math.exp(log_beta)), ref_PA, reward_PA)

    if kl <= 0:
        return measure(ref_PA, ref_PA, reward_PA).reward
    kl = max(kl, MIN_KL)
    low = high = math.log(np.std(reward_PA))
    while point(low).kl < kl:
        low -= 1
    while point(high).kl > kl:
        high += 1
    log_beta = brentq(lambda value: point(value).kl - kl, low, high) if low < high else low
    found = point(log_beta)
    return found.reward + math.exp(log_beta) * (kl - found.kl)


def best_of_n(ref_PA: np.ndarray, score_PA: np.ndarray, num: int) -> np.ndarray:
    """logp_PA of the best of `num` answers of the reference by a score, a tie broken by chance.

    With F and F- the reference's probability of a score that is at most, or below, that of an
    answer, the best of n has a score of that value with probability F^n - (F-)^n, which its
    answers share in the proportion of the reference: ref (F^n - (F-)^n) / (F - F-).
    """
    return np.stack([ref_A + _log_gain(ref_A, score_A, num)
                     for ref_A, score_A in zip(ref_PA, score_PA)])


def _log_gain(ref_A: np.ndarray, score_A: np.ndarray, num: int) -> np.ndarray:
    """log((F^n - (F-)^n) / (F - F-)) of each answer; no difference of near numbers is taken."""
    _, value_A = np.unique(score_A, return_inverse=True)
    mass = np.bincount(value_A, np.exp(ref_A))
    log_f = np.log(np.minimum(np.cumsum(mass), 1.0))
    share = np.minimum(mass / np.exp(log_f), 1.0)       # (F - F-) / F; 1 of the lowest score
    with np.errstate(divide="ignore"):      # log 0 of the lowest score
        log_gain = ((num - 1) * log_f - np.log(share)
                    + np.log(-np.expm1(num * np.log1p(-share))))
    return log_gain[value_A]


def best_of_n_bound(num: int) -> float:
    """The divergence of the best of `num` answers without ties, with which it is at most as large.

    Source: arXiv 2401.01879, theorem 3.1.
    """
    return math.log(num) - (num - 1) / num


# What is drawn ------------------------------------------------------------------------------------

def draw_source(task: Task, rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    """logp_PA of a random Markov source: each token depends on the one before it, at first the
    prompt.

    Args:
        scale: standard deviation of the logits.
    """
    start_PV, step_VV = (log_softmax(scale * rng.standard_normal((size, task.V)), axis=1)
                         for size in (task.P, task.V))
    answers_AL = task.answers_AL
    steps_A = step_VV[answers_AL[:, :-1], answers_AL[:, 1:]].sum(axis=1)
    return start_PV[:, answers_AL[:, 0]] + steps_A[None]


def draw_reward(task: Task, ref_PA: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """reward_PA: sums of a random weight of each token, given the prompt, and of each pair of
    neighbours; of each prompt with mean 0 and variance 1 under the reference."""
    token_PV, pair_VV = rng.standard_normal((task.P, task.V)), rng.standard_normal((task.V,) * 2)
    answers_AL = task.answers_AL
    pairs_A = pair_VV[answers_AL[:, :-1], answers_AL[:, 1:]].sum(axis=1)
    return normalise(token_PV[:, answers_AL].sum(axis=2) + pairs_A[None], ref_PA)


def normalise(reward_PA: np.ndarray, ref_PA: np.ndarray) -> np.ndarray:
    """The rewards of each prompt with mean 0 and variance 1 under the reference."""
    p_PA = np.exp(ref_PA)
    centred_PA = reward_PA - np.sum(p_PA * reward_PA, axis=1, keepdims=True)
    return centred_PA / np.sqrt(np.sum(p_PA * centred_PA**2, axis=1, keepdims=True))


class Pairs(NamedTuple):
    """Preferences between two answers.

    Attributes:
        prompt_B: the prompts.
        chosen_B: numbers of the preferred answers.
        rejected_B: those of the other ones.
    """

    prompt_B: np.ndarray
    chosen_B: np.ndarray
    rejected_B: np.ndarray


class Rankings(NamedTuple):
    """Answers to prompts in order.

    Attributes:
        prompt_B: the prompts.
        answer_BJ: numbers of J answers to each, the best first.
    """

    prompt_B: np.ndarray
    answer_BJ: np.ndarray

    @classmethod
    def of_pairs(cls, pairs: Pairs) -> Rankings:
        """Preferences as rankings of two answers."""
        return cls(pairs.prompt_B, np.stack([pairs.chosen_B, pairs.rejected_B], axis=1))


def draw_answers(logp_PA: np.ndarray, prompt_B: np.ndarray,
                 rng: np.random.Generator) -> np.ndarray:
    """Numbers of answers to these prompts, drawn from a policy: answer_B."""
    cdf_PA = np.cumsum(np.exp(logp_PA), axis=1)
    answer_B = np.empty(len(prompt_B), np.int64)
    for prompt, cdf_A in enumerate(cdf_PA):
        is_here_B = prompt_B == prompt
        answer_B[is_here_B] = np.searchsorted(
            cdf_A[:-1], cdf_A[-1] * rng.random(is_here_B.sum()), side="right")
    return answer_B


def draw_pairs(ref_PA: np.ndarray, reward_PA: np.ndarray, num: int,
               rng: np.random.Generator) -> Pairs:
    """Pairs of answers of the reference, ordered by the model of Bradley and Terry.

    The first is preferred with probability sigmoid(r_1 - r_2). Both may be the same answer.
    """
    prompt_B = np.arange(num) % len(ref_PA)
    first_B, second_B = (draw_answers(ref_PA, prompt_B, rng) for _ in range(2))
    gap_B = reward_PA[prompt_B, first_B] - reward_PA[prompt_B, second_B]
    is_first_B = rng.random(num) < 1 / (1 + np.exp(-gap_B))
    return Pairs(prompt_B, np.where(is_first_B, first_B, second_B),
                 np.where(is_first_B, second_B, first_B))


def draw_rankings(ref_PA: np.ndarray, reward_PA: np.ndarray, num: int, size: int,
                  rng: np.random.Generator) -> Rankings:
    """Rankings of `size` answers of the reference, ordered by the model of Plackett and Luce.

    The first is an answer with its share of exp(r) among all, the next likewise among the others:
    the order of rewards with Gumbel noise. Of two answers it is the model of Bradley and Terry.
    """
    prompt_B = np.arange(num) % len(ref_PA)
    answer_BJ = np.stack([draw_answers(ref_PA, prompt_B, rng) for _ in range(size)], axis=1)
    noisy_BJ = reward_PA[prompt_B[:, None], answer_BJ] + rng.gumbel(size=answer_BJ.shape)
    return Rankings(prompt_B, np.take_along_axis(answer_BJ, np.argsort(-noisy_BJ, axis=1), axis=1))
