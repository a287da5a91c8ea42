"""Best-of-n: the best answer of each question, and what the best of n answers is worth.

Rows are those of `align.pairs.rate`: answers with their reward as `score` and the score of their
task as `task_score`, those to one question next to each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from align.rl.advantages import select_best
from align.rl.exact import best_of_n_bound
from core.errors import UserError
from core.progress import log
from data.chat import Conversation, Message, make_conversation
from eval.statistics import check_finite, estimate_mean
from model.generation.requests import REFUSED, STOP

_select_best = jax.jit(select_best, static_argnames="num_groups")


def pick_best(rows: Sequence[Mapping[str, Any]], num_samples: int,
              min_score: float) -> tuple[list[Conversation], dict[str, int]]:
    """The best answer of each question as a solved conversation, for rejection sampling.

    It is fine-tuning on them (arXiv 2307.09288, section 3.2.3). Only answers that ended by
    themselves are chosen among: to learn one that was cut at the limit is to learn a false end. Of
    equal scores the first is taken.

    Args:
        rows: each question's `num_samples` rows are contiguous, with finite scores.
        min_score: least score of an answer.

    Returns:
        The conversations; and the numbers of questions without one, as the prompt exceeds the
        context (`refused`), no answer ended (`none_ended`), the best is an empty text (`empty`), or
        its score is less than `min_score` (`below_min_score`).

    Raises:
        UserError: scores that are too low are why there is no conversation.
    """
    left_out = {"refused": 0, "none_ended": 0, "empty": 0, "below_min_score": 0}
    num_groups = len(rows) // num_samples
    chosen = _select_best(np.array([row["score"] for row in rows], np.float32),
                          np.arange(len(rows)) // num_samples,
                          np.array([row["finish"] == STOP for row in rows], np.float32),
                          num_groups=num_groups)
    solved = []
    for number, index in enumerate(np.asarray(chosen.best_G).tolist()):
        best = rows[index]
        if index < 0:
            is_refused = rows[number * num_samples]["finish"] == REFUSED
            left_out["refused" if is_refused else "none_ended"] += 1
        elif not best["completion"].strip():
            left_out["empty"] += 1
        elif best["score"] < min_score:
            left_out["below_min_score"] += 1
        else:
            solved.append(_as_solved(best))
    if not solved and left_out["below_min_score"]:
        raise UserError(f"pairs.min_score={min_score}", f"none of {num_groups} questions has a "
                        "best answer that reaches it", "set a smaller --config.pairs.min_score, or "
                        "draw more answers with a higher num_samples")
    return solved, left_out


def _as_solved(row: Mapping[str, Any]) -> Conversation:
    """A question with its answer, in the layout `messages` as a row."""
    prompt = make_conversation(row["messages"])
    meta = {"origin": row["task"], "family": row["family"], "score": row["score"],
            "task_score": row["task_score"]}
    return Conversation((*prompt.messages, Message("assistant", row["completion"])), meta)


def best_of_n(rewards_J: Sequence[float], n: int,
              values_J: Sequence[float] | None = None) -> float:
    """The unbiased estimate of a value of the best of n answers, from J >= n of them.

    It is the mean over all subsets of n answers of the value of the one that has the highest
    reward, where several have it the mean of theirs: with the rewards in ascending order the i-th
    is the highest of C(i - 1, n - 1) of the C(J, n) subsets. Of rewards that are 0 or 1 it is
    pass@n (arXiv 2107.03374, equation 1).

    Args:
        values_J: what is measured of the chosen answer; None measures its reward.

    Raises:
        UserError: there are fewer than n answers, n is below 1, or a reward or value is not finite.
    """
    rewards_J = check_finite(rewards_J, "rewards")
    values_J = rewards_J if values_J is None else check_finite(values_J, "values")
    num = len(rewards_J)
    if not 1 <= n <= num:
        raise UserError(f"best of {n}", f"cannot be estimated from {num} answers to a question",
                        f"draw at least {max(n, 1)} of each, or choose n from 1 on")
    subsets = math.comb(num, n)
    share_J = np.array([math.comb(below, n - 1) / subsets for below in range(num)])
    _, level_J, size_level = np.unique(rewards_J, return_inverse=True, return_counts=True)
    share_level = np.bincount(np.sort(level_J), share_J) / size_level
    return float(share_level[level_J] @ values_J)


def make_curve(rewards_PJ: np.ndarray,
               task_scores_PJ: np.ndarray | None = None) -> dict[str, dict[str, float | None]]:
    """What the best of n = 1, 2, 4, ... and of all J answers is worth, means over P prompts.

    Args:
        rewards_PJ: of J answers to each of P prompts.
        task_scores_PJ: their tasks' own scores. That of the answer which the reward chooses shows
            over-optimisation: it falls where the reward still rises (arXiv 2210.10760).

    Returns:
        By n, as a text: `reward`, and `task_score` where it is given, each with its standard error
        over prompts (`_stderr`; None of one prompt); and `kl_bound_nats`, log n - (n - 1) / n: the
        divergence from one answer is at most that (arXiv 2009.01325, appendix G.3).
    """
    num_samples = rewards_PJ.shape[1]
    curve = {}
    for n in sorted({2**power for power in range(num_samples.bit_length())} | {num_samples}):
        found = {"reward": [best_of_n(rewards_J, n) for rewards_J in rewards_PJ]}
        if task_scores_PJ is not None:
            found["task_score"] = [best_of_n(rewards_J, n, scores_J)
                                   for rewards_J, scores_J in zip(rewards_PJ, task_scores_PJ)]
        curve[str(n)] = {"kl_bound_nats": best_of_n_bound(n)}
        for name, values_P in found.items():
            mean = estimate_mean(values_P, name=name)
            curve[str(n)] |= {name: mean.value, f"{name}_stderr": mean.stderr}
    return curve


def log_curve(curve: Mapping[str, Mapping[str, float | None]]) -> None:
    """Logs a line for each n."""
    for n, at in curve.items():
        values = [f"{name.replace('_', ' ')} {at[name]:.4f}" + (
            "" if at[f"{name}_stderr"] is None else f" (standard error {at[f'{name}_stderr']:.4f})")
            for name in ("reward", "task_score") if name in at]
        log(f"pairs: best of {n}: {', '.join(values)}, KL at most {at['kl_bound_nats']:.3f} nats")
