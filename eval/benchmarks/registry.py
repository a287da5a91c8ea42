"""Benchmarks by name, and the hash of what one asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from core.artifacts import digest
from core.errors import UserError
from eval.benchmarks import commonsense, mmlu, reading, science, sciq, truthfulqa
from eval.benchmarks.core import CORE, core_task
from eval.benchmarks.gsm8k import open_gsm8k
from eval.benchmarks.humaneval import open_humaneval
from eval.benchmarks.ifeval import open_ifeval
from eval.benchmarks.qa import DEFINITIONS, open_short_answers
from eval.benchmarks.source import Source
from eval.tasks.task import AnswerTask, ChoiceTask, Task

_TABLES = (commonsense, mmlu, reading, science, sciq, truthfulqa)
_OWN = {benchmark.name: benchmark for table in _TABLES
        for name, benchmark in vars(table).items() if name.startswith("open_")}

# Benchmarks by the names that the field has for them; tasks that only CORE asks by CORE's.
BENCHMARKS: dict[str, Callable[[Source], Task | ChoiceTask]] = {
    **{name: core_task(name) for name in CORE}, **_OWN,
    **{f"{name}_generated" if name in CORE else name: partial(open_short_answers, name)
       for name in DEFINITIONS},
    "gsm8k": open_gsm8k, "humaneval": open_humaneval, "ifeval": open_ifeval}


def open_benchmark(name: str, source: Source) -> Task:
    """Opens a benchmark by its name, or by its name and that of a form: `mmlu_original`.

    Raises:
        UserError: there is no such benchmark or form, or its files are missing or damaged.
    """
    for known in sorted(BENCHMARKS, key=len, reverse=True):
        if name == known or name.startswith(f"{known}_"):
            form = name[len(known) + 1:]
            task = BENCHMARKS[known](dataclasses.replace(source, form=form))
            if any(field.name == "name" for field in dataclasses.fields(task)):
                task = dataclasses.replace(task, name=name)
            return task
    raise UserError(f"tasks.{name}", "is no task", "choose among "
                    f"{', '.join(sorted(BENCHMARKS))}, with the name of a form behind it if it is "
                    "to be another than the first")


def core_name(task: str) -> str | None:
    """CORE's name of a task that is asked as CORE asks it; None for any other."""
    name = task.removesuffix("_core")
    return name if name in CORE and (name != task or name not in _OWN) else None


def definition(task: Task | ChoiceTask) -> str:
    """16 hex digits of what decides a benchmark's questions: of every prompt, option and answer.

    The files' contents, the form, the examples and the way they are drawn show in the prompts;
    the hash changes with any of them, and not with a file's compression or place.
    """
    asked: list[object] = [task.name]
    if isinstance(task, ChoiceTask):
        asked += [[choice.contexts, choice.choices, choice.answer, choice.answers, choice.baseline,
                   choice.question.to_dict()] for choice in task.choices("test", 0, 0)]
    if isinstance(task, AnswerTask):
        asked += [task.stops, task.max_new_tokens,
                  *(one.to_dict() for one in task.conversations("test", 0, 0))]
    if dataclasses.is_dataclass(task) and hasattr(task, "source"):
        source = dataclasses.asdict(task.source)
        asked.append({name: source[name] for name in sorted(source) if name != "folder"})
    return digest(asked)
