"""The peer of `scripts.bench.rl`: TRL's GRPOTrainer, with the generation of transformers.

    PYTHON -m scripts.bench.peer_trl_grpo     # requests of `scripts.bench.generate_engine` on stdin

An iteration is the trainer's own `training_step` for each update, the first of which samples and
scores the answers; each is followed by clipping and AdamW. The weights are those of `weights.npz`,
and so is the reference.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.bench.align_workload import read_work
from scripts.bench.generate_engine import serve
from scripts.bench.peer_trl import (
    make_optimizer,
    make_tokenizer,
    open_model,
    peak_memory_bytes,
    start,
    to_text,
    trainer_settings,
    update,
)
from scripts.bench.rl_workload import KL_COEF, NUM_CHECKED, give_answers, new_tokens, reward


class Grpo:
    """See `scripts.bench.align_turns.Trainer`."""

    def load(self, folder: str, task: str, num_threads: int, num_samples: int,
             num_minibatches: int) -> dict[str, Any]:
        """Makes the trainer; gives as `check` what it finds of the given answers."""
        del task    # there is but one
        versions, work = start(num_threads), read_work(folder)
        self._num_updates = num_minibatches
        self._trainer = _make_trainer(write_policy(folder, work), work, num_samples,
                                      num_minibatches)
        # What `train` would do.
        self._trainer.current_gradient_accumulation_steps = 1
        self._trainer.model_wrapped = self._trainer.accelerator.prepare(self._trainer.model)
        self._batches = itertools.cycle(list(self._trainer.get_train_dataloader()))
        self._optimizer = make_optimizer(self._trainer.model)
        return {"versions": versions, "check": self._check(work, num_samples)}

    def steps(self, count: int) -> dict[str, list[float]]:
        """Makes iterations; gives the seconds of each, by what they were spent on, the mean reward
        and the tokens of an answer."""
        rows = [self._iterate() for _ in range(count)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def peak_bytes(self) -> int:
        """See `scripts.bench.peer_trl.peak_memory_bytes`."""
        return peak_memory_bytes()

    def _iterate(self) -> dict[str, float]:
        trainer, began = self._trainer, time.perf_counter()
        model = trainer.model.train()
        for batch in itertools.islice(self._batches, self._num_updates):
            loss = trainer.training_step(model, batch, None)
            update(model, self._optimizer)
            float(loss.detach())    # waits for the device
        secs = time.perf_counter() - began
        metrics, rollout_secs = trainer._metrics["train"], trainer.rollout_secs
        row = {"secs": secs, "rollout_secs": rollout_secs,
               "score_secs": trainer.gather_secs - rollout_secs,
               "update_secs": secs - trainer.gather_secs, "rewards": metrics["reward"][-1],
               "answer_tokens": metrics["completions/mean_length"][-1]}
        metrics.clear()     # as logging would
        return row

    def _check(self, work: dict[str, Any], num_samples: int) -> dict[str, Any]:
        """See `scripts.bench.rl_ours`."""
        trainer, model = self._trainer, self._trainer.model.train()
        given = give_answers(work, len(work["pairs"]) // self._num_updates, num_samples)
        trainer.given = [answer for _, answer in given]
        batch = trainer._generate_and_score_completions(
            [{"prompt": to_text(prompt)} for prompt, _ in given])
        trainer.given = None
        logp_BL = batch["ref_per_token_logps"]      # which the policy still is
        batch["old_per_token_logps"] = logp_BL
        losses, norms = [], []
        for _ in range(NUM_CHECKED):
            loss = trainer.compute_loss(model, batch)
            trainer.accelerator.backward(loss)
            norms.append(float(update(model, self._optimizer)))
            losses.append(float(loss.detach()))
        mean_reward = trainer._metrics["train"]["reward"][-1]
        trainer._metrics["train"].clear()
        return {"logp": float(logp_BL[batch["completion_mask"].bool()].mean()),
                "reward": mean_reward, "gradient_norm": norms[0], "losses": losses}


def write_policy(folder: str, work: dict[str, Any]) -> str:
    """Writes the model in transformers' form, from which the trainer loads policy and reference."""
    model, path = open_model(folder, work), str(Path(folder) / "policy")
    model.config.use_cache = True           # of keys and values, in generation
    model.generation_config.use_cache = True
    # By default token 2 ends an answer; here none does.
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    return path


def _make_trainer(path: str, work: dict[str, Any], num_samples: int, num_minibatches: int) -> Any:
    """The loss is that of our `grpo`: TRL's default is `dapo`."""
    from datasets import Dataset
    from trl import GRPOConfig

    data = Dataset.from_dict({"prompt": [to_text(pair["prompt"]) for pair in work["pairs"]]})
    tokenizer = make_tokenizer(work["shape"]["V"])
    # The trainer needs an end: one that the model, which has a token less, cannot write.
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    num_answers = len(data) * num_samples
    args = GRPOConfig(
        **trainer_settings(num_answers // num_minibatches), generation_batch_size=num_answers,
        num_generations=num_samples, max_completion_length=new_tokens(work), beta=KL_COEF,
        loss_type="grpo", generation_kwargs=dict(use_cache=True),
        model_init_kwargs=dict(dtype="float32", attn_implementation="sdpa"))
    return _timed_trainer()(model=path, reward_funcs=_rewards, args=args, train_dataset=data,
                            processing_class=tokenizer)


def _timed_trainer() -> type:
    """GRPOTrainer with a clock, and with answers that are given, if there are some."""
    from trl import GRPOTrainer

    class TimedTrainer(GRPOTrainer):
        given: Sequence[Sequence[int]] | None = None
        rollout_secs = gather_secs = 0.0

        def _generate_single_turn(self, *args, **kwargs):
            if self.given is not None:
                return self.given, None
            began = time.perf_counter()
            found = super()._generate_single_turn(*args, **kwargs)
            self.rollout_secs = time.perf_counter() - began
            return found

        def _generate_and_score_completions(self, inputs):
            began = time.perf_counter()
            found = super()._generate_and_score_completions(inputs)
            self.gather_secs = time.perf_counter() - began
            return found

    return TimedTrainer


def _rewards(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [reward(tokens) for tokens in completion_ids]


if __name__ == "__main__":
    serve(Grpo())
