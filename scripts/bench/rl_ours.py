"""Our side of `scripts.bench.rl`: the iterations of `align.rl`, and training's own step.

    python -m scripts.bench.rl_ours     # requests of `scripts.bench.generate_engine` on stdin
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align.rl.algorithms import Known, make_policy_batch, read_algorithm
from align.rl.answers import Answer
from align.rl.experience import Gatherer, write_experience
from align.rl.rollouts import Prompt, make_rows, pick_minibatch
from align.rl.update import UpdateBatch, make_update_loss, make_value_head, score_rows
from data.chat import ask
from model.families.registry import init
from model.generation.requests import LENGTH
from scripts.bench.align_ours import make_bench_setup
from scripts.bench.align_workload import read_work
from scripts.bench.generate_engine import serve
from scripts.bench.rl_workload import KL_COEF, NUM_CHECKED, give_answers, new_tokens, reward
from scripts.bench.train_step import make_optimizing_step
from train.step import place_batch
from train.watch.memory import peak_memory_bytes

QUESTION = ask("")      # prompts are tokens
# Of the section `rl`, what does not depend on the work: the defaults, but for TRL's KL term.
SECTION = dict(out="rl", kl_coef=KL_COEF, kl_loss="k3_corrected", kl_target=0.0,
               kl_horizon=10_000.0, eps_low=0.2, eps_high=0.2, gamma=1.0, lam=0.95, vf_coef=0.1,
               value_clip=0.2, temperature=1.0, seed=0)


class Words:
    """As much of a tokenizer as rollouts need: token n is the word wn, and none ends an answer."""

    stops = ()

    def text_of(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        return " ".join(f"w{token}" for token in tokens)


class Ours:
    """See `scripts.bench.align_turns.Trainer`."""

    def load(self, folder: str, task: str, num_threads: int, num_samples: int,
             num_minibatches: int) -> dict[str, Any]:
        """Makes the parts of an iteration of a task, which is an algorithm's name; gives as `check`
        what it finds of the given answers."""
        del num_threads     # XLA takes the cores that the process may use
        work = read_work(folder)
        setup = make_bench_setup(work["shape"])
        self._section = make_section(task, work, num_samples, num_minibatches)
        algorithm, self._settings, _ = read_algorithm(self._section)
        make_params = jax.jit(partial(init, setup.config))
        prompts = [Prompt(QUESTION, tuple(pair["prompt"])) for pair in work["pairs"]]
        # The reference has arrays of its own: a step donates those of the policy.
        self._gatherer = Gatherer(prompts, score_answers, algorithm, make_params(jax.random.key(0)),
                                  None, setup, self._section, Words())
        tree = {"model": make_params(jax.random.key(0))}
        if algorithm.has_values:
            tree["value"] = make_value_head(setup.config)
        loss_fn = partial(make_update_loss(self._settings, self._section.temperature, None),
                          config=setup.config, execution=setup.execution)
        self._mesh, self._folder, self._iteration = setup.mesh, Path(folder) / f"ours_{task}", 0
        with jax.set_mesh(self._mesh):
            self._state, self._step = make_optimizing_step(tree, loss_fn, self._mesh)
            return {"versions": {"jax": jax.__version__}, "check": self._check(work)}

    def steps(self, count: int) -> dict[str, list[float]]:
        """Makes iterations; gives the seconds of each, by what they were spent on, the mean reward
        and the tokens of an answer."""
        with jax.set_mesh(self._mesh):
            rows = [self._iterate() for _ in range(count)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def peak_bytes(self) -> int:
        """The most memory of the device so far; of the process on a CPU."""
        return peak_memory_bytes()

    def _iterate(self) -> dict[str, float]:
        """As `align.rl.loop`, which also writes what a run that was killed goes on with."""
        began, iteration = time.perf_counter(), self._iteration
        experience = self._gatherer.gather(self._state.params, iteration, KL_COEF)
        write_experience(self._folder, iteration, experience)
        written = time.perf_counter()
        num_answers = len(experience.batch.rows.tokens_BL)
        for number in range(self._section.num_minibatches):
            picked = pick_minibatch(num_answers, self._section, iteration, number)
            self._update(jax.tree.map(lambda leaf, at=picked: leaf[at], experience.batch))
        ended = time.perf_counter()
        self._iteration += 1
        return {"secs": ended - began, **experience.secs, "update_secs": ended - written,
                "rewards": experience.metrics["reward"],
                "answer_tokens": experience.metrics["answer_tokens"]}

    def _update(self, batch: UpdateBatch) -> dict[str, float]:
        """Takes a step; gives its metrics, for which it waits."""
        self._state, metrics = self._step(self._state, place_batch(batch, self._mesh))
        return {name: float(value) for name, value in jax.device_get(metrics).items()}

    def _check(self, work: dict[str, Any]) -> dict[str, Any]:
        """Of the given answers: means of their log-probabilities and rewards; and, of updates on
        them, losses and the norm of the first gradient. The policy is its reference at first."""
        section, gatherer, tree = self._section, self._gatherer, self._state.params
        given = give_answers(work, section.num_prompts // section.num_minibatches,
                             section.num_samples)
        answers = [Answer(QUESTION, tuple(prompt), answer, [], "", LENGTH)
                   for prompt, answer in given]
        rows = make_rows(answers, section.row_length)
        score = jax.jit(partial(
            score_rows, config=gatherer.setup.config, execution=gatherer.setup.execution,
            temperature=section.temperature))
        logp_BL, value_BL = score(tree["model"], tree.get("value"), rows)
        scores_B, _ = score_answers(answers)
        known = Known(scores_B, rows.loss_weights_BL, logp_BL, logp_BL, value_BL,
                      np.float32(KL_COEF))
        batch = make_policy_batch(known, algorithm=gatherer.algorithm, gamma=section.gamma,
                                  num_samples=section.num_samples, lam=section.lam)
        updates = [self._update(UpdateBatch(rows, batch)) for _ in range(NUM_CHECKED)]
        mask_BL = rows.loss_weights_BL > 0
        return {"logp": float(np.mean(np.asarray(logp_BL)[mask_BL])),
                "reward": float(scores_B.mean()), "gradient_norm": updates[0]["gradient_norm"],
                "losses": [self._whole_loss(metrics) for metrics in updates]}

    def _whole_loss(self, metrics: dict[str, float]) -> float:
        """The loss with its further terms, as it is differentiated."""
        return (metrics["loss"] + self._settings.kl_coef * metrics.get("kl_loss", 0.0)
                + self._settings.vf_coef * metrics.get("value_loss", 0.0))


def make_section(task: str, work: dict[str, Any], num_samples: int,
                 num_minibatches: int) -> ConfigDict:
    """The section `rl` of an algorithm: all answers are sampled at once."""
    num_prompts = len(work["pairs"])
    return ConfigDict(SECTION | dict(
        algorithm=task, num_prompts=num_prompts, num_samples=num_samples, oversampling=1,
        num_minibatches=num_minibatches, max_new_tokens=new_tokens(work),
        row_length=work["row_length"],
        run=dict(num_slots=num_prompts * num_samples, num_microbatches=1)))


def score_answers(answers: Sequence[Answer]) -> tuple[np.ndarray, dict[str, Any]]:
    """As `align.rl.rewards.Rewards`: rewards of answers, float32, and metrics, of which there are
    none."""
    return np.array([reward(answer.tokens) for answer in answers], np.float32), {}


if __name__ == "__main__":
    serve(Ours())
