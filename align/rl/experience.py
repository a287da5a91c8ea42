"""What an iteration gathers before its updates: answers, their rewards, and what these are worth.

    <folder>/rollouts/batch.npz         the arrays of the updates
    <folder>/rollouts/answers.jsonl     prompts, answers and rewards, to be read
    <folder>/rollouts/iteration.json    its number and its metrics
    <folder>/rollouts/files.json        checksums, written last

The folder is of one iteration, and is complete before the first update: a run that was killed among
the updates goes on with the very same numbers.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from align.losses.policy import PolicyBatch
from align.losses.preference import PreferenceBatch
from align.rl.advantages import count_statuses, group_statuses, pick_groups
from align.rl.algorithms import Algorithm, Known, make_pair_batch, make_policy_batch
from align.rl.answers import Answer
from align.rl.rewards import Rewards
from align.rl.rollouts import (
    Prompt,
    make_rows,
    pick_prompts,
    sample_answers,
    sampled_logps,
)
from align.rl.update import Tree, UpdateBatch, score_rows, whole_params
from core.artifacts import read_json, write_json, write_jsonl
from core.errors import UserError
from core.file_sums import DamagedError, check_sums, write_sums
from core.progress import log
from data.batch import Batch
from data.tokenizers.tokenizer import Tokenizer
from eval.statistics import estimate_mean
from model.adapters.lora import Lora
from model.families.registry import Params
from model.generation.requests import STOP
from train.setup import Setup
from train.signals import leave_if_stopping
from train.step import place_batch

ROLLOUTS = "rollouts"
PARTS = {"rows": Batch, "known": PolicyBatch, "chosen": Batch, "rejected": Batch}   # of a batch


class Experience(NamedTuple):
    """What the updates of an iteration learn from.

    Attributes:
        batch: of numpy arrays; of pairs for an algorithm that learns from these.
        metrics: numbers by name, which no clock decides.
        is_usable: whether an update could learn anything.
        answers: rows to be read by people.
        secs: by what they were spent on.
    """

    batch: UpdateBatch | PreferenceBatch
    metrics: dict[str, float]
    is_usable: bool
    answers: Sequence[dict[str, Any]] = ()
    secs: Mapping[str, float] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Gatherer:
    """Gathers the experience of iterations.

    Attributes:
        prompts: all that there are.
        rewards: of answers.
        algorithm: decides the advantages.
        reference: the parameters that the KL is measured from; with an adapter the frozen ones,
            which the adapter is added to.
        lora: of the adapter that is trained; None trains all parameters.
    """

    prompts: Sequence[Prompt]
    rewards: Rewards
    algorithm: Algorithm
    reference: Params
    lora: Lora | None
    setup: Setup
    section: ConfigDict
    tokenizer: Tokenizer

    def __post_init__(self):
        bound = dict(config=self.setup.config, execution=self.setup.execution,
                     temperature=self.section.temperature)
        # Replicated: each process needs all of them.
        whole = NamedSharding(self.setup.mesh, PartitionSpec())

        def score(tree: Tree, frozen: Params | None, rows: Batch) -> Any:
            return score_rows(whole_params(tree, frozen, self.lora), tree.get("value"), rows,
                              **bound)

        def score_reference(params: Params, rows: Batch) -> jax.Array:
            return score_rows(params, None, rows, **bound)[0]

        judge = (partial(make_pair_batch, num_samples=self.section.num_samples)
                 if self.algorithm.has_pairs else
                 partial(make_policy_batch, algorithm=self.algorithm, gamma=self.section.gamma,
                         num_samples=self.section.num_samples, lam=self.section.lam))
        for name, function in (("_score", jax.jit(score, out_shardings=whole)),
                               ("_score_reference", jax.jit(score_reference, out_shardings=whole)),
                               ("_judge", jax.jit(judge)),
                               ("_find_statuses", jax.jit(partial(
                                   group_statuses, num_samples=self.section.num_samples)))):
            object.__setattr__(self, name, function)

    def gather(self, tree: Tree, iteration: int, kl_coef: float) -> Experience:
        """Samples answers with the parameters that are trained, and scores them.

        Raises:
            UserError: no group is usable, and not because its answers are scored alike.
            Interrupted: a signal asked the run to stop.
        """
        section, began = self.section, time.monotonic()
        frozen = self.reference if self.lora is not None else None
        asked = pick_prompts(self.prompts, section.num_prompts * section.oversampling, iteration,
                             section.seed)
        answers = sample_answers(whole_params(tree, frozen, self.lora), asked, iteration,
                                 setup=self.setup, section=section, tokenizer=self.tokenizer)
        sampled = time.monotonic()
        scores_B, metrics = self.rewards(answers)
        scores_B = scores_B.astype(np.float32)
        metrics |= describe_answers(answers, scores_B, section.num_samples)
        answers, scores_B, groups = self._keep(answers, scores_B)
        rows = make_rows(answers, section.row_length)
        old_BL, reference_BL, values_BL = self._score_all(tree, frozen, rows)
        known = Known(scores_B, rows.loss_weights_BL, old_BL, reference_BL, values_BL,
                      np.float32(kl_coef))
        batch = (jax.device_get(self._judge(known, rows)) if self.algorithm.has_pairs
                 else UpdateBatch(rows, jax.device_get(self._judge(known))))
        metrics |= _describe_logps(known, sampled_logps(answers, section.row_length))
        metrics |= groups | {"kl_coef": float(kl_coef)}
        is_usable = groups["groups/usable"] > 0 if self.algorithm.compares else bool(
            np.any(batch.known.mask_BL))
        secs = {"rollout_secs": sampled - began, "score_secs": time.monotonic() - sampled}
        return Experience(batch, metrics, is_usable, _as_records(answers, scores_B), secs)

    def _keep(self, answers: Sequence[Answer], scores_B: np.ndarray
              ) -> tuple[Sequence[Answer], np.ndarray, dict[str, float]]:
        """The answers to `num_prompts` of the prompts, their scores, and how many groups of all had
        which status."""
        num_samples = self.section.num_samples
        if num_samples == 1:
            return answers, scores_B, {}
        is_answer_B = np.array([len(answer.tokens) > 0 for answer in answers])
        status_G = jax.device_get(self._find_statuses(scores_B, is_answer_B))
        kept_B = np.isin(np.arange(len(answers)) // num_samples,
                         pick_groups(status_G, self.section.num_prompts))
        counts = {f"groups/{name}": count for name, count in count_statuses(status_G).items()}
        return ([answer for answer, kept in zip(answers, kept_B) if kept], scores_B[kept_B], counts)

    def _score_all(self, tree: Tree, frozen: Params | None,
                   rows: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Log-probabilities of policy and reference, and values, in pieces as an update's."""
        num_rows = len(rows.tokens_BL) // (
            self.section.num_minibatches * self.section.run.num_microbatches)
        pieces = []
        for first in range(0, len(rows.tokens_BL), num_rows):
            leave_if_stopping()
            piece = place_batch(jax.tree.map(lambda leaf, at=first: leaf[at:at + num_rows], rows),
                                self.setup.mesh)
            logp_BL, value_BL = self._score(tree, frozen, piece)
            pieces.append(jax.device_get(
                (logp_BL, self._score_reference(self.reference, piece), value_BL)))
        old, reference, values = zip(*pieces)
        return (np.concatenate(old), np.concatenate(reference),
                None if values[0] is None else np.concatenate(values))


def describe_answers(answers: Sequence[Answer], scores_B: np.ndarray,
                     num_samples: int) -> dict[str, float]:
    """Reward with its 95 % interval, clustered by prompts; lengths; and how answers ended."""
    is_finite_B = np.isfinite(scores_B)
    metrics = {"not_finite": float(np.sum(~is_finite_B)),
               "answer_tokens": float(np.mean([len(answer.tokens) for answer in answers])),
               "ended_frac": float(np.mean([answer.finish == STOP for answer in answers]))}
    if not is_finite_B.any():
        return metrics
    groups = np.arange(len(answers)) // num_samples
    found = estimate_mean(scores_B[is_finite_B], groups[is_finite_B].tolist(), "rewards")
    ends = {} if found.low is None else {"reward_low": found.low, "reward_high": found.high}
    return metrics | {"reward": found.value} | ends


def _describe_logps(known: Known, sampled_BL: np.ndarray) -> dict[str, float]:
    """KL of answers by k1, entropy of tokens, both estimated from the samples; and the largest
    difference of a log-probability between sampler and trainer."""
    mask_BL = known.mask_BL > 0
    k1_B = np.sum(np.where(mask_BL, known.old_BL - known.reference_BL, 0), axis=1, dtype=np.float64)
    gap_BL = np.where(mask_BL, np.abs(sampled_BL - known.old_BL), 0)
    return {"kl": float(k1_B.mean()), "entropy_nats": float(-known.old_BL[mask_BL].mean()),
            "sampler_gap": float(gap_BL.max())}


def _as_records(answers: Sequence[Answer], scores_B: np.ndarray) -> list[dict[str, Any]]:
    return [{"prompt": answer.question.to_dict()["messages"][:-1], "answer": answer.text,
             "reward": float(score) if np.isfinite(score) else None, "finish": answer.finish,
             "num_tokens": len(answer.tokens)} for answer, score in zip(answers, scores_B)]


def write_experience(folder: Path, iteration: int, experience: Experience) -> None:
    """Writes the folder `rollouts`, so that it is whole or not there."""
    final, made = folder / ROLLOUTS, folder / f".{ROLLOUTS}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(experience.batch).items():
        arrays |= ({f"{name}.{field}": array for field, array in vars(value).items()
                    if array is not None} if name in PARTS else {name: value})
    with open(made / "batch.npz", "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    write_jsonl(made / "answers.jsonl", experience.answers)
    write_json(made / "iteration.json", {"iteration": iteration, "metrics": experience.metrics,
                                         "is_usable": experience.is_usable})
    write_sums(made, made.iterdir())
    shutil.rmtree(final, ignore_errors=True)    # of the iteration before, which is over
    os.rename(made, final)


def read_experience(folder: Path, iteration: int) -> Experience | None:
    """The experience that was written for an iteration; None if there is none, or it is damaged."""
    place = folder / ROLLOUTS
    if not place.exists():
        return None
    try:
        check_sums(place)
        described = read_json(place / "iteration.json")
    except (DamagedError, UserError) as error:
        log(f"warning: {place}: {error}: not used")
        return None
    if described["iteration"] != iteration:
        return None
    with np.load(place / "batch.npz", allow_pickle=False) as arrays:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name in arrays.files:
            part, _, field = name.rpartition(".")
            parts.setdefault(part, {})[field] = arrays[name]
    fields = parts.pop("", {}) | {part: PARTS[part](**held) for part, held in parts.items()}
    batch = UpdateBatch(**fields) if "rows" in fields else PreferenceBatch(**fields)
    return Experience(batch, described["metrics"], described["is_usable"])
