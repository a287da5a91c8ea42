"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from core.errors import UserError
from eval.benchmarks.registry import definition, open_benchmark
from eval.benchmarks.source import Source
from eval.benchmarks.yaml_task import open_yaml
from eval.tasks.documentation import load_documentation
from eval.tasks.file import load_file_task
from eval.tasks.task import Task
from eval.tasks.turns import Turns
from eval.tasks.verifiable import ARITHMETIC, Verifiable

# Factories of the tasks, given the corpus that some are drawn from.
ALL = -1        # all questions of a task
TASKS: dict[str, Callable[[Path | None], Task]] = {
    "documentation": load_documentation,
    "verifiable": lambda corpus: Verifiable(),
    "arithmetic": lambda corpus: Verifiable("arithmetic", ARITHMETIC),
    "turns": lambda corpus: Turns(),
}


def open_tasks(counts: Mapping[str, int], corpus: Path | None, inputs: str = "",
               source: Source | None = None) -> list[tuple[Task, int]]:
    """Opens tasks, each with its number of questions.

    Args:
        counts: number of questions by name of the task; tasks with 0 are skipped. Benchmarks have
            the names of `eval.benchmarks.registry`, with the form of their prompts behind them
            where it is not the first: `mmlu_original`.
        corpus: folder of the corpus, for the tasks that are drawn from it.
        inputs: files of the user's own questions, separated by commas; all are used. A YAML file
            is a task of lm-evaluation-harness.
        source: of the benchmarks; None where there are none.

    Raises:
        UserError: a name is unknown, or a task cannot be opened.
    """
    opened = []
    for name, count in counts.items():
        if not count:
            continue
        if name in TASKS:
            opened.append((TASKS[name](corpus), count))
        elif source is not None:
            opened.append((open_benchmark(name, source), count))
        else:
            raise UserError(f"tasks.{name}", "is no task that can be asked here",
                            f"choose among {', '.join(TASKS)}")
    for path in filter(None, (part.strip() for part in inputs.split(","))):
        if path.endswith((".yaml", ".yml")):
            opened.append((open_yaml(Source(Path(path))), ALL))
        else:
            task = load_file_task(path)
            opened.append((task, len(task.solved)))
    names = [task.name for task, _ in opened]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"inputs={inputs!r}", f"two tasks are called {min(repeated)!r}",
                        "rename a file")
    return opened


def fingerprint_tasks(section: ConfigDict) -> dict[str, str]:
    """What decides the questions of a section's benchmarks and files, by name."""
    marks = {}
    for name, count in section.tasks.items():
        if count and name not in TASKS:
            marks[f"tasks.{name}"] = definition(open_benchmark(name, source_of(section)))
    return marks


def source_of(section: ConfigDict) -> Source:
    """Where a section's benchmarks have their files, and how they are presented."""
    return Source(Path(section.data), num_shots=section.num_shots, examples=section.examples,
                  seed=section.examples_seed)
