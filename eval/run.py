"""Stage: evaluates one model.

    python -m eval.run --model=DIR                  # any model directory, ours or imported
    python -m eval.run --model=DIR --config=configs/eval.py:suite --config.eval.data=BENCHMARKS
    python -m eval.run --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.eval.model=dpo --config.eval.out=eval_dpo --config.eval.against=eval_sft

`--model=DIR` stands for the config configs/eval.py, the workdir runs/eval and an artifact with the
name of the model's folder, unless these are given. What is measured are the tasks that have a
number of items in `tasks` (0: none; -1: all), built-in ones and benchmarks, whose files lie in
`data`; files of one's own in `inputs`; and bits per byte of `tokens` and of `texts`.

Writes for each task a file of its name with a record of every item: literal prompts, options with
their log-probabilities, answers, what was extracted, the verdict; and `open.jsonl` for the sampled
answers to `open_tasks`. With `against`, an earlier evaluation, it computes the win rate over that
model on the same open questions. Scores and answers are kept in WORKDIR/known: a run that was ended
goes on with what it lacks.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from core.artifacts import ROOT, read_jsonl, read_lineage, write_jsonl
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.layouts.faults import Faults
from data.tokens.rows import check_tokenizer
from eval.measures.generation import answer_and_score
from eval.measures.items import Asking, measure_task
from eval.measures.likelihood import (
    bits_per_byte,
    has_heldout,
    unigram_bits_per_byte,
    xz_bits_per_byte,
)
from eval.measures.perplexity import measure_encoded
from eval.measures.windows import WindowRule
from eval.perplexity import read_inputs
from eval.records import count_unfinished
from eval.respond.loaded import LoadedModel, keeping, load_model
from eval.statistics import mean_and_stderr, win_rate
from eval.tasks.registry import fingerprint_tasks, open_tasks, source_of
from model.directory import read_description
from model.execution import make_execution
from model.generation.sampling import Sampling

PROMPTS = ("literal", "turns")      # how a benchmark's are put
# What must be equal of two evaluations whose open answers are compared.
COMPARED = ("open_tasks", "max_new_tokens", "temperature", "seed")


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Runs all measurements, with numbers of items, standard errors and intervals.

    Bits per byte are None where the corpus holds no page out.
    """
    section = config.eval
    if section.prompts not in PROMPTS:
        raise UserError(f"eval.prompts={section.prompts!r}", f"is none of {', '.join(PROMPTS)}",
                        "choose one of them")
    tasks = open_tasks(section.tasks, parents.get("corpus"), section.inputs, source_of(section))
    tokenizer = read_description(parents["model"]).tokenizer
    if "tokens" in parents:
        check_tokenizer(parents["tokens"], tokenizer, "eval.tokens")
    if not (tasks or "tokens" in parents or section.texts):
        raise UserError("eval: tasks, inputs, tokens, texts", "name nothing to measure",
                        "set --config.eval.texts=FILE, or --config.eval.tasks.turns=100")
    model = load_model(parents["model"], make_execution(section, also=("batch_size",)),
                       weights=section.weights)
    model = keeping(model, folder.parent / "known")
    log(f"eval: {section.model}, a {'chat' if model.chat else 'base'} model; benchmarks' prompts "
        f"are {section.prompts}")
    metrics = {"weight_bytes": model.weight_bytes} | _measure_bits(model, section, parents)
    for task, count in tasks:
        records, scores = measure_task(model, task, count, Asking(
            section.seed, section.max_new_tokens, section.run.batch_size,
            section.row_length * section.run.batch_size, in_turns=section.prompts == "turns"))
        write_jsonl(folder / f"{task.name}.jsonl", records)
        log(f"eval: {task.name}: {scores['acc']:.4f} ({scores['low']:.4f} to {scores['high']:.4f}) "
            f"of {scores['items']:,}")
        metrics |= {f"{task.name}_{name}": value for name, value in scores.items()}
    metrics["tasks"] = [task.name for task, _ in tasks]
    return metrics | _measure_open(model, section, folder, parents)


def _measure_bits(model: LoadedModel, section: ConfigDict,
                  parents: Mapping[str, Path]) -> dict[str, Any]:
    """Bits per byte of texts, and of held-out pages beside those of two baselines."""
    metrics: dict[str, Any] = {}
    if section.texts:
        faults = Faults("eval.texts")
        documents = read_inputs(model.tokenizer, section.texts, faults)
        rule = WindowRule(min(model.context_tokens, section.row_length),
                          bos=model.tokenizer.adds_bos)
        metrics["texts"] = measure_encoded(model, documents, rule=rule,
                                           batch_size=section.run.batch_size)
        faults.report()
    if "tokens" not in parents:
        return metrics
    tokens = parents["tokens"]
    if not has_heldout(tokens):
        log("eval: the corpus holds no page out: no bits per byte")
        return metrics | dict.fromkeys(("bpb", "unigram_bpb", "xz_bpb"))
    return metrics | {
        "bpb": bits_per_byte(model, tokens, row_length=section.row_length,
                             batch_size=section.run.batch_size),
        "unigram_bpb": unigram_bits_per_byte(tokens),
        "xz_bpb": xz_bits_per_byte(parents["corpus"]) if "corpus" in parents else None}


def _measure_open(model: LoadedModel, section: ConfigDict, folder: Path,
                  parents: Mapping[str, Path]) -> dict[str, Any]:
    """Sampled answers to unseen questions of `open_tasks`, with their tasks' scores."""
    opened = open_tasks(section.open_tasks, parents.get("corpus"))
    if not opened:
        return {}
    # Another seed than for greedy answers, so that the questions are independent.
    solved = [c for task, count in opened
              for c in task.conversations("test", count, section.seed + 1)]
    sampling = Sampling(section.max_new_tokens, temperature=section.temperature)
    rows = [one.row for one in answer_and_score(
        model, [task for task, _ in opened], solved, sampling, seed=section.seed,
        batch_size=section.run.batch_size)]
    write_jsonl(folder / "open.jsonl", rows)
    mean, stderr = mean_and_stderr([row["score"] for row in rows])
    metrics: dict[str, Any] = {"open_score": mean, "open_stderr": stderr, "open_items": len(rows)}
    metrics |= {f"open_{name}": count for name, count in count_unfinished(rows).items()}
    if "against" in parents:
        _check_settings(section, parents["against"])
        theirs = read_jsonl(parents["against"] / "open.jsonl")
        if [row["question"] for row in theirs] != [row["question"] for row in rows]:
            raise UserError(f"eval.against={section.against!r}", "answered other questions",
                            "evaluate it with the same corpus and eval section")
        rate, interval = win_rate([row["score"] for row in rows],
                                  [row["score"] for row in theirs])
        metrics |= {"against": section.against, "win_rate": rate, "win_rate_ci": interval}
    return metrics


def _check_settings(section: ConfigDict, against: Path) -> None:
    """Raises `UserError` where the other evaluation's answers were drawn in another way."""
    theirs = read_lineage(against)["config"]["eval"]
    for name in COMPARED:
        if theirs[name] != section.to_dict()[name]:
            raise UserError(f"eval.against={section.against!r}",
                            f"was evaluated with {name}={theirs[name]}, and this is with "
                            f"{section[name]}", "evaluate both with the same settings")


def complete_command(argv: Sequence[str]) -> list[str]:
    """A command line with what `--model=DIR` stands for where the flags are not given."""
    given = {word.lstrip("-").partition("=")[0] for word in argv[1:]}
    models = [word.partition("=")[2] for word in argv[1:] if word.startswith("--model=")]
    if not models:
        return list(argv)
    folder = Path(models[-1]).absolute()
    implied = {"workdir": "runs/eval", "config.eval.model": str(folder),
               "config.eval.out": folder.name}
    # A config's own fields must follow it.
    config = [] if "config" in given else [f"--config={ROOT / 'configs' / 'eval.py'}"]
    rest = [word for word in argv[1:] if not word.startswith("--model=")]
    return [argv[0], *config, *rest, *(f"--{name}={value}" for name, value in implied.items()
                                       if name not in given)]


STAGE = Stage("eval", build, parents=("model", "corpus", "tokens", "against"),
              inputs=lambda config: fingerprint_tasks(config.eval))

if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Directory of the model; see above.")
    sys.argv = complete_command(sys.argv)
    run_stage(STAGE)
