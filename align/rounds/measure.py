"""Stage of a round: rewards, KL and lengths of a model's answers to held-out prompts.

Writes `answers.jsonl`, an answer to each prompt with its reward and its log-probabilities under the
model and under the first model, in nats. With an earlier measurement as `against`, answers to the
same prompts are compared by their rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align.rl.rewards import Resources, Rewards
from align.rl.rollouts import make_rows
from align.rl.update import score_rows
from align.rounds.sampling import draw, open_model
from align.sources import fingerprint_inputs
from core.artifacts import read_jsonl, write_jsonl
from core.entry import Stage
from core.errors import UserError
from core.progress import log
from data.batch import Batch
from eval.statistics import estimate_mean, win_rate
from model.config import ModelConfig
from model.directory import load_params
from model.execution import Execution
from model.families.registry import Params
from model.generation.requests import STOP
from model.parallel.sharding import constrain
from train.distributed import initialize
from train.setup import Setup
from train.step import place_batch

FILE = "answers.jsonl"


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Measures the parent `model` against the parent `first`, from which its KL is.

    Returns:
        The means of `describe`; of each reward by name; left_out, prompts by reason; with the
        parent `against` `win_rate` over it, with its interval.

    Raises:
        UserError: prompts or rewards cannot be had, a reward is not finite, or `against` answered
            other prompts.
    """
    initialize()
    section = ConfigDict(config.measure.to_dict() | {"num_samples": 1})
    asked = open_model(section, config.mesh, parents, "test")
    rewards = Rewards(Resources(section, asked.tasks, parents.get("reward"), asked.tokenizer,
                                asked.setup.execution, asked.setup.mesh, section.run.num_slots,
                                section.row_length + 1))
    params, answers = draw(asked, section, 0)
    rewards_B, by_name = rewards(answers)
    texts, score = make_rows(answers, section.row_length), partial(
        _sum_logps, config=asked.setup.config, execution=asked.setup.execution,
        temperature=section.temperature)
    logps_B = _in_pieces(partial(score, params), texts, section.run.num_slots, asked.setup)
    params = load_params(parents["first"], asked.setup.config, asked.setup.mesh)
    first_B = _in_pieces(partial(score, params), texts, section.run.num_slots, asked.setup)
    rows = [{"prompt": answer.question.to_dict()["messages"][:-1], "answer": answer.text,
             "finish": answer.finish, "num_tokens": len(answer.tokens), "reward": float(reward),
             "logp_nats": float(logp), "first_logp_nats": float(first)}
            for answer, reward, logp, first in zip(answers, rewards_B, logps_B, first_B)]
    metrics = describe(rows) | by_name | {"left_out": dict(asked.left_out)}
    if "against" in parents:
        metrics |= compare(rows, read_jsonl(parents["against"] / FILE))
    if jax.process_index() == 0:
        write_jsonl(folder / FILE, rows)
    log(f"measure: reward {metrics['reward']:.3f}, KL {metrics['kl']:.3f} nats, "
        f"{metrics['answer_tokens']:.1f} tokens")
    return metrics


@partial(jax.jit, static_argnames=("config", "execution", "temperature"))
def _sum_logps(params: Params, rows: Batch, *, config: ModelConfig, execution: Execution,
               temperature: float) -> jax.Array:
    logp_BL, _ = score_rows(params, None, rows, config=config, execution=execution,
                            temperature=temperature)
    return constrain(logp_BL.sum(axis=1), "B", {"B": None})     # every process needs all


def _in_pieces(score: Callable[[Batch], jax.Array], rows: Batch, size: int,
               setup: Setup) -> np.ndarray:
    """Scores of all rows, so many at once; the last piece is filled with its first row."""
    num_rows = len(rows.tokens_BL)
    scores_B = np.empty(num_rows)
    with jax.set_mesh(setup.mesh):
        for first in range(0, num_rows, size):
            numbers = np.arange(first, first + size)
            numbers = np.where(numbers < num_rows, numbers, first)
            piece = jax.tree.map(lambda leaf, numbers=numbers: leaf[numbers], rows)
            found = jax.device_get(score(place_batch(piece, setup.mesh)))
            scores_B[first:first + size] = found[:num_rows - first]
    return scores_B


def describe(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means with their 95 % intervals, as `NAME`, `NAME_low` and `NAME_high`.

    `reward`; `kl`, the KL from the first model in nats an answer, estimated as the mean of
    log pi(y|x) - log ref(y|x) over answers that were drawn from pi (k1), at the sampling
    temperature; `answer_tokens`, the end included; and `ended_frac`, the share of answers that
    ended by themselves.
    """
    values = {"reward": [row["reward"] for row in rows],
              "kl": [row["logp_nats"] - row["first_logp_nats"] for row in rows],
              "answer_tokens": [row["num_tokens"] for row in rows]}
    metrics: dict[str, Any] = {"answers": len(rows)}
    for name, every in values.items():
        found = estimate_mean(every, name=f"measure: {name}")
        metrics |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return metrics | {"ended_frac": float(np.mean([row["finish"] == STOP for row in rows]))}


def compare(ours: Sequence[Mapping[str, Any]],
            theirs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Win rate by rewards over answers to the same prompts, ties counting half.

    Raises:
        UserError: they answer other prompts.
    """
    if [row["prompt"] for row in ours] != [row["prompt"] for row in theirs]:
        raise UserError("measure.against", "answered other prompts", "measure both with the same "
                        "config")
    rate, (low, high) = win_rate([row["reward"] for row in ours],
                                 [row["reward"] for row in theirs])
    return {"win_rate": rate, "win_rate_low": low, "win_rate_high": high}


STAGE = Stage("measure", build, parents=("model", "first", "against", "corpus", "reward"),
              every_process=True, inputs=lambda config: fingerprint_inputs(config.measure))
