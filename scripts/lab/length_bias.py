"""Losses on pairs whose labels prefer long answers.

The last token of the vocabulary ends an answer. What the model would write after it belongs to no
answer: strings of L tokens that agree up to it are one answer, whose probability is their sum, so
that all expectations stay exact. The gold reward has the same mean and variance at every length.
Labels follow the gold reward plus the standardised length times a weight.

    C different answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from align.rl.exact import Task, draw_pairs, measure, normalise, optimum
from scripts.bench.frontier import Plan, World, place, prefer
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_results import Row
from scripts.bench.frontier_train import Answers
from scripts.lab.experiment import BASE, Experiment, draw_series, finish_chart


class Method(NamedTuple):
    """A loss of `align.losses.preference` and its strengths.

    Attributes:
        name: in tables and figures.
        loss: of `LOSSES` there.
        beta, gamma: of its settings.
    """

    name: str
    loss: str
    beta: float
    gamma: float = 0.0


class LengthPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        base: the task and how models are trained.
        weights: what a standard deviation of length adds to the reward that labels follow.
        methods: the losses.
        beta: of the optimum of the reward that labels follow.
    """

    base: Plan = BASE._replace(task=Task(P=4, V=5, L=5))
    weights: tuple[float, ...] = (0.0, 0.5, 1.0)
    methods: tuple[Method, ...] = (
        Method("DPO", "dpo", 1.0), Method("length-normalised DPO", "dpo_norm", 3.0),
        Method("SimPO", "simpo", 2.0, 0.5))
    beta: float = 1.0


class Ended(NamedTuple):
    """Answers that end.

    Attributes:
        tokens_CL: their tokens, filled up with the one that ends them.
        length_C: how many belong to each, the one that ends it included.
        class_A: of each string of L tokens the answer that it begins with.
    """

    tokens_CL: np.ndarray
    length_C: np.ndarray
    class_A: np.ndarray


@cache
def end_answers(task: Task) -> Ended:
    """The answers that the last token of the vocabulary, or their L-th token, ends."""
    tokens_AL, end = task.answers_AL, task.V - 1
    has_ended_AL = np.cumsum(tokens_AL == end, axis=1) > 0
    tokens_CL, class_A = np.unique(np.where(has_ended_AL, end, tokens_AL), axis=0,
                                   return_inverse=True)
    length_C = np.minimum(np.sum(tokens_CL != end, axis=1) + 1, task.L)
    return Ended(tokens_CL, length_C, class_A.reshape(-1))


def merge(p_PA: np.ndarray, ended: Ended) -> np.ndarray:
    """Sums over the strings of each answer, float64 [P, C]."""
    return np.stack([np.bincount(ended.class_A, p_A, len(ended.length_C)) for p_A in p_PA])


def make_gold(p_PA: np.ndarray, reward_PA: np.ndarray, ended: Ended) -> np.ndarray:
    """A reward of ended answers, the mean over their strings, that says nothing about length.

    Under the reference it has mean 0 and variance 1 at every length, but 0 at one with a single
    answer, and variance 1 over all.
    """
    p_PC = merge(p_PA, ended)
    gold_PC = merge(p_PA * reward_PA, ended) / p_PC
    for length in np.unique(ended.length_C):
        is_here_C = ended.length_C == length
        if np.sum(is_here_C) == 1:
            gold_PC[:, is_here_C] = 0.0
            continue
        logp_PC = log_softmax(np.log(p_PC[:, is_here_C]), axis=1)
        gold_PC[:, is_here_C] = normalise(gold_PC[:, is_here_C], logp_PC)
    return normalise(gold_PC, np.log(p_PC))


def list_rows(plan: LengthPlan, world: World, seed: int) -> dict[str, Any]:
    """The optimum and each loss for each weight of length; see `Experiment`."""
    ended, task = end_answers(plan.base.task), plan.base.task
    p_PA = np.exp(world.ref_PA)
    ref_PC = np.log(merge(p_PA, ended))
    length_PC = np.broadcast_to(ended.length_C.astype(float), ref_PC.shape)
    world = world._replace(ref_PA=ref_PC, reward_PA=make_gold(p_PA, world.reward_PA, ended))
    is_own_CL = np.arange(task.L)[None] < ended.length_C[:, None]
    answers = Answers(jnp.asarray(ended.tokens_CL), jnp.float32(is_own_CL), jnp.float32(ref_PC))

    def wanted(weight: float) -> np.ndarray:
        return world.reward_PA + weight * normalise(length_PC, ref_PC)

    def measured(name: str, logp_PC: np.ndarray) -> Row:
        return place(name, logp_PC, world) | mean_length(logp_PC)

    def mean_length(logp_PC: np.ndarray) -> Row:
        return {"length": measure(logp_PC, ref_PC, length_PC).reward}

    def train(method: Method, weight: float) -> Row:
        pairs = draw_pairs(ref_PC, wanted(weight), plan.base.num_pairs,
                           np.random.default_rng([seed, 6]))
        logp_PA = prefer(plan.base, world._replace(pairs=pairs), answers, seed, loss=method.loss,
                         strengths={"beta": method.beta, "gamma": method.gamma})
        with np.errstate(divide="ignore"):      # an answer may have the probability 0
            return measured(method.name, np.log(merge(np.exp(logp_PA), ended)))

    def best(weight: float) -> Row:
        return measured("optimum", optimum(ref_PC, wanted(weight), plan.beta))

    made = {row_name("optimum", weight): partial(best, weight) for weight in plan.weights} | {
        row_name(method.name, weight): partial(train, method, weight)
        for method in plan.methods for weight in plan.weights}
    return {"reference": partial(mean_length, ref_PC)} | made


def row_name(method: str, weight: float) -> str:
    """The name of a row."""
    return f"{method}, length weight {weight:g}"


def draw(path: Path, plan: LengthPlan, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws the mean length, and the gold reward, against the weight of length in the labels."""
    figure, charts = open_figure(path, 2)
    for chart, number, label in zip(charts, ("length", "reward"),
                                    ("mean length, tokens", "gold reward")):
        for name in ("optimum", *(method.name for method in plan.methods)):
            series = [[seed[row_name(name, weight)] for weight in plan.weights] for seed in rows]
            draw_series(chart, plan.weights, series, number, label=name, marker="o")
        finish_chart(chart, "weight of length in the labels", label)
    save_figure(figure, path)


EXPERIMENT = Experiment(LengthPlan(), list_rows, {
    "reward": "gold reward", "length": "mean length", "kl": "KL, nats",
    "share": "share of the frontier"}, draw)
