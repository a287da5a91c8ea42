"""Stage: reinforcement learning, by PPO, GRPO and its variants, RLOO, REINFORCE++ or online DPO.

    python -m align.rl --config=configs/rl.py:ppo --workdir=runs/quickstart-cpu
    python -m align.rl --config=configs/rl.py:grpo --workdir=runs/quickstart-cpu

Each iteration samples answers with the parameters that are trained, scores them by the rewards of
`align.rl.rewards`, and updates the parameters on them; `rollouts/answers.jsonl` of the artifact
shows those of the last one. The reference, from which the KL is measured, is the model that the
stage starts from. With `ptx_coef` every update learns from pretraining text of `tokens` as well.
`run.tasks` are questions of the tasks' test split, asked before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from align.finetune import (
    UNTOUCHED,
    evaluated_values,
    freeze,
    make_adapter,
    note_untouched,
    open_setup,
    open_tokenizer,
    save_tuned,
)
from align.heldout import Evaluate
from align.rl.algorithms import Algorithm, LossSettings, num_examples, read_algorithm
from align.rl.experience import Gatherer
from align.rl.judge import fingerprint_judge
from align.rl.loop import OnPolicyLoop
from align.rl.pretraining import open_pretraining, with_pretraining
from align.rl.rewards import Resources, Rewards
from align.rl.rollouts import open_prompts
from align.rl.update import (
    Tree,
    make_pair_loss,
    make_update_loss,
    make_value_head,
    whole_params,
)
from align.sources import fingerprint_inputs
from core.entry import Stage, run_stage
from core.errors import UserError
from data.tokenizers.tokenizer import Tokenizer
from eval.measures.generation import answer_task
from eval.records import summarise_answers
from eval.respond.loaded import LoadedModel
from eval.tasks.registry import open_tasks
from model.adapters.lora import read_lora
from model.directory import load_params, read_description
from model.families.registry import abstract_params
from model.generation.sampling import Sampling
from model.parallel.sharding import param_shardings
from train.distributed import initialize
from train.setup import Setup
from train.signals import leave_if_stopping
from train.trainer import Frozen, Trained, make_step, trained_params


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains a chat model on rewards of its own answers."""
    initialize()
    section, source = config.rl, parents["model"]
    algorithm, settings, control = read_algorithm(section)
    _check(section, source, algorithm)
    setup = open_setup(source, section, config.mesh)
    tokenizer = open_tokenizer(source, section)
    tasks, prompts, left_out = open_prompts(
        section, parents.get("corpus"), tokenizer,
        num_needed=section.num_prompts * section.oversampling)
    num_answers = section.num_prompts * section.num_samples
    rewards = Rewards(Resources(
        section, tasks, parents.get("reward"), tokenizer, setup.execution, setup.mesh,
        num_answers // section.num_minibatches, section.row_length + 1, parents.get("judge")))
    pretraining = open_pretraining(section, parents.get("tokens"), tokenizer, algorithm, settings)
    make_first, train_step = _make_step(setup, section, algorithm, settings)

    load, lora = partial(load_params, source, setup.config, setup.mesh), read_lora(section.lora)
    frozen = freeze(setup, section, load() if lora is not None else None)
    reference = load() if frozen is None else frozen.params
    if frozen is not None:
        train_step = partial(train_step, frozen=frozen.params)
    evaluate = make_evaluate(section, setup, parents.get("corpus"), tokenizer, source)
    gatherer = Gatherer(prompts, rewards, algorithm, reference, lora, setup, section, tokenizer)
    loop = OnPolicyLoop(
        train_step, gatherer, setup=setup, section=section, folder=folder, control=control,
        pretraining=pretraining,
        evaluate=evaluate and (lambda tree: evaluate(whole_params(tree, reference, lora))))

    def begin() -> Any:
        note_untouched(evaluate, folder / UNTOUCHED, reference)
        model = load() if lora is None else make_adapter(setup, section)
        return make_first(_with_head(model, setup, algorithm))

    state = loop.run(make_first(_trained_shapes(setup, section, algorithm)), begin)
    trained = Trained(*(tree and tree["model"] for tree in trained_params(state)))
    save_tuned(trained, source, setup=setup, section=section, folder=folder)
    return {"steps": int(state.step), "iterations": section.num_iterations,
            "prompts": len(prompts), "left_out": left_out, **evaluated_values(folder, None)}


def _check(section: ConfigDict, source: Path, algorithm: Algorithm) -> None:
    """Raises `UserError` for a model or sizes that do not fit each other."""
    if not read_description(source).chat:
        raise UserError(f"{section.out}.model={section.model!r}", "is a base model, which knows no "
                        "end of an answer", "name a model that align.sft wrote")
    found = num_examples(section, algorithm)
    if found % section.num_minibatches:
        kind, remedy = (("pairs", "change it or num_prompts") if algorithm.has_pairs
                        else ("answers", "change it, num_prompts or num_samples"))
        raise UserError(f"{section.out}.num_minibatches={section.num_minibatches}",
                        f"does not divide the {found} {kind} of an iteration", remedy)
    if section.oversampling > 1 and section.num_samples == 1:
        raise UserError(f"{section.out}.oversampling={section.oversampling}", "compares no answers "
                        "with num_samples=1", "set it to 1, or num_samples to at least 2")
    if section.run.diagnostics:
        raise UserError(f"{section.out}.run.diagnostics=True", "is not measured here",
                        "set it to False")


def _make_step(setup: Setup, section: ConfigDict, algorithm: Algorithm,
               settings: LossSettings) -> Any:
    """As `train.trainer.make_step`, of the answers of an update."""
    lora = read_lora(section.lora)
    loss_fn = (make_pair_loss(settings, lora) if algorithm.has_pairs
               else make_update_loss(settings, section.temperature, lora))
    if section.ptx_coef:
        loss_fn = with_pretraining(loss_fn, section.ptx_coef, lora)
    num_updates = section.num_epochs * section.num_minibatches
    batch_size = num_examples(section, algorithm) // section.num_minibatches
    return make_step(loss_fn, setup, ConfigDict(section.to_dict() | {"batch_size": batch_size}),
                     num_steps=section.num_iterations * num_updates,
                     rows_per_example=1 + algorithm.has_pairs,
                     frozen=Frozen(None, _trained_shapes(setup, section, algorithm)))


def _trained_shapes(setup: Setup, section: ConfigDict, algorithm: Algorithm) -> Tree:
    """Shapes of what is trained."""
    frozen = freeze(setup, section)
    tree = {"model": abstract_params(setup.config) if frozen is None else frozen.trained}
    if algorithm.has_values:
        tree["value"] = jax.eval_shape(partial(make_value_head, setup.config))
    return tree


def _with_head(model: Any, setup: Setup, algorithm: Algorithm) -> Tree:
    """What is trained at first."""
    if not algorithm.has_values:
        return {"model": model}
    make = partial(make_value_head, setup.config)
    shardings = param_shardings(jax.eval_shape(make), setup.mesh)
    with jax.set_mesh(setup.mesh):
        return {"model": model, "value": jax.jit(make, out_shardings=shardings)()}


def make_evaluate(section: ConfigDict, setup: Setup, corpus: Path | None, tokenizer: Tokenizer,
                  source: Path) -> Evaluate | None:
    """An evaluation: the tasks' scores of greedy answers to their test questions, as `TASK`, with
    their 95 % intervals; None without such questions."""
    asked = [(task, task.conversations("test", count, section.seed))
             for task, count in open_tasks(section.run.tasks, corpus)]
    if not asked:
        return None
    context_tokens = read_description(source).context_tokens

    def evaluate(params: Any) -> dict[str, float]:
        model = LoadedModel(params, setup.config, setup.execution, tokenizer, True, context_tokens,
                            section.out, between_batches=leave_if_stopping)
        values = {}
        with jax.set_mesh(setup.mesh):
            for task, solved in asked:
                found = summarise_answers(answer_task(
                    model, task, solved, Sampling(section.max_new_tokens, temperature=0.0),
                    seed=section.seed, batch_size=section.run.num_slots))
                values |= {f"heldout_{task.name}": found["acc"],
                           f"heldout_{task.name}_low": found["low"],
                           f"heldout_{task.name}_high": found["high"],
                           f"heldout_{task.name}_items": found["items"]}
        return values

    return evaluate


def _fingerprint(config: ConfigDict) -> dict[str, str]:
    """What decides the result beside the config and the parents: the contents of files."""
    return fingerprint_inputs(config.rl) | fingerprint_judge(config.rl)


STAGE = Stage("rl", build, parents=("model", "corpus", "reward", "judge", "tokens"),
              every_process=True, inputs=_fingerprint)


if __name__ == "__main__":
    run_stage(STAGE)
