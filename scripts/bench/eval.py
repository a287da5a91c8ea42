"""Benchmark of evaluation: multiple choice next to lm-evaluation-harness, item by item.

    python -m scripts.bench.eval --model=runs/smollm2 --data=BENCHMARKS \\
        --peer_python=.venv-peers/bin/python [--items=100]

Both sides score the same literal contexts and options with the same weights, exported to a folder
of the hub, in float32 on a CPU and in bfloat16 on a GPU, task by task in turns, each in a process
of its own. A time is that of a whole task, encoding included; the first request of either side,
which compiles or warms up, is not counted, but ours compiles again for new lengths of rows. `ratio`
is the peer's seconds of all tasks over ours. `largest_difference` is that of the log-probabilities
of an option; accuracies are compared by the sum (`acc`) and per character (`acc_norm`).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from eval.benchmarks.registry import open_benchmark
from eval.benchmarks.source import Source
from eval.tasks.task import Choice
from model.hf.export_model import export_model
from scripts.bench.generate_process import EngineProcess

TASKS = ("hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "openbookqa", "boolq",
         "lambada_openai", "mmlu", "mmlu_continuation", "copa", "wsc273")
OURS, PEER = "ours", "lm_eval"


def list_pairs(questions: Sequence[Choice]) -> list[tuple[str, str]]:
    """Context and option of every option."""
    return [(context, choice) for question in questions for context, choice in zip(
        question.contexts * (len(question.choices) if len(question.contexts) == 1 else 1),
        question.choices, strict=True)]


def measure(given: Any, tasks: Mapping[str, Sequence[Choice]],
            folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """By task what both sides answer, and the versions of packages."""
    num_threads = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        engines = {}
        for name, python, module, args in (
                (OURS, sys.executable, "eval_ours",
                 dict(folder=given.model, batch_tokens=given.batch_tokens)),
                (PEER, given.peer_python, "peer_lm_eval",
                 dict(folder=str(folder / "hub"), num_threads=num_threads,
                      batch_size=given.peer_batch_size))):
            log(f"loading {name}")
            engines[name] = EngineProcess([python, "-m", f"scripts.bench.{module}"],
                                          folder / f"{name}.log")
            stack.callback(engines[name].close)
            engines[name] = (engines[name], engines[name].ask("load", **args)["versions"])
        found: dict[str, dict[str, Any]] = {}
        warm = list_pairs(next(iter(tasks.values())))[:8]
        for engine, _ in engines.values():
            engine.ask("score", pairs=warm)
        for task, questions in tasks.items():
            pairs = list_pairs(questions)
            found[task] = {name: engine.ask("score", pairs=pairs)
                           for name, (engine, _) in engines.items()}
            log(f"{task}: " + ", ".join(f"{name} {row['secs']:.1f} s"
                                        for name, row in found[task].items()))
        versions = {key: value for _, own in engines.values() for key, value in own.items()}
    return found, versions


def compare(questions: Sequence[Choice], ours: Mapping[str, Any],
            theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies of both sides, items that they answer differently, the largest difference."""
    logps = np.asarray([ours["logps_nats"], theirs["logps_nats"]])
    greedy = np.asarray([ours["is_greedy"], theirs["is_greedy"]])
    right: dict[str, list[np.ndarray]] = {"acc": [], "acc_norm": []}
    first = 0
    for question in questions:
        part = slice(first, first + len(question.choices))
        first = part.stop
        chars = np.asarray([max(len(text.removeprefix(" ")), 1) for text in question.choices])
        if len(question.choices) == 1:
            right["acc"].append(greedy[:, part].all(axis=1))
            continue
        for name, by in (("acc", np.ones(len(chars))), ("acc_norm", chars)):
            right[name].append(np.argmax(logps[:, part] / by, axis=1) == question.answer)
    rows: dict[str, Any] = {}
    for name, answers in right.items():
        if answers:
            means = np.mean(answers, axis=0)
            rows |= {f"{name}_ours": float(means[0]), f"{name}_lm_eval": float(means[1])}
    return rows | {"items": len(questions), "secs_ours": ours["secs"],
                   "secs_lm_eval": theirs["secs"],
                   "largest_difference": float(np.abs(logps[0] - logps[1]).max())}


def main() -> dict[str, Any]:
    """Reads the flags, measures, prints a table."""
    given = flags.FLAGS
    for name in ("model", "data"):
        if not given[name].value:
            raise UserError(f"--{name}", "is missing", f"name a folder: --{name}=DIR")
    tasks = {name: open_benchmark(name, Source(Path(given.data))).choices("test", given.items, 0)
             for name in given.tasks}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_model(Path(given.model), folder / "hub")
        found, versions = measure(given, tasks, folder)
    rows = {task: compare(tasks[task], own[OURS], own[PEER]) for task, own in found.items()}
    print("| task | items | ours, s | lm-eval, s | acc | lm-eval | acc_norm | lm-eval | largest "
          "difference, nats |\n|---|---|---|---|---|---|---|---|---|")
    for task, row in rows.items():
        cells = [f"{row[key]:.4f}" if key in row else "" for key in (
            "acc_ours", "acc_lm_eval", "acc_norm_ours", "acc_norm_lm_eval")]
        print(f"| {task} | {row['items']} | {row['secs_ours']:.1f} | {row['secs_lm_eval']:.1f} | "
              f"{' | '.join(cells)} | {row['largest_difference']:.1e} |", flush=True)
    total = {side: sum(row[f"secs_{side}"] for row in rows.values()) for side in (OURS, PEER)}
    identical = [task for task, row in rows.items() if all(
        row[f"{name}_ours"] == row[f"{name}_lm_eval"] for name in ("acc", "acc_norm")
        if f"{name}_ours" in row)]
    return {"tasks": rows, "versions": versions, "device": jax.devices()[0].device_kind,
            "identical": identical, "secs": total, "ratio": round(total[PEER] / total[OURS], 3),
            "largest_difference": max(row["largest_difference"] for row in rows.values())}


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Directory of the model.")
    flags.DEFINE_string("data", None, "Folder of benchmarks' files.")
    flags.DEFINE_string("peer_python", ".venv-peers/bin/python", "A Python that has lm_eval.")
    flags.DEFINE_list("tasks", list(TASKS), "Benchmarks of multiple choice.")
    flags.DEFINE_integer("items", 100, "Items of each; 0 is all.", lower_bound=0)
    flags.DEFINE_integer("batch_tokens", 4096, "Tokens of a batch on our side.", lower_bound=1)
    flags.DEFINE_string("peer_batch_size", "16", "Rows of a batch of lm-eval; auto finds the most.")
    entry.run(main)
