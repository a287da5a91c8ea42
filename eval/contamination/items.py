"""The items of tasks that are searched for: of task files, or of tasks of the registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from data.chat import Conversation
from data.contamination.task_files import Item, find_files, read_items
from eval.benchmarks.source import Source
from eval.tasks.registry import TASKS, open_tasks
from eval.tasks.task import Choice, ChoiceTask, Task, answer_of

EVERY = 1 << 40             # more items than any task has
DRAWN = ("verifiable", "arithmetic", "turns")       # whose questions are made when they are asked


def read_tasks(names: Sequence[str], *, fields: Sequence[str] = (), corpus: Path | None = None,
               data: Path | None = None) -> tuple[list[Item], Counter[str]]:
    """The items of all tasks, and the counts of rows that hold none, by reason.

    Args:
        names: task files or folders of them, as curation takes them, or names of
            `eval.tasks.registry`; a path that exists is meant as a path.
        fields: of task files; see `data.contamination.task_files.read_items`.
        corpus: from which the task `documentation` is drawn.
        data: folder of the benchmarks' files.

    Raises:
        UserError: there is no such file or task, or it has no item to search for.
    """
    skipped: Counter[str] = Counter()
    items: dict[str, list[Item]] = {}
    for name in names:
        if Path(name).exists() or "/" in name:
            found = [list(read_items(path, fields, skipped)) for path in find_files([name])]
        else:
            found = [_open(name, corpus, data)]
        for task in found:
            if task[0].task in items:
                raise UserError(f"--tasks={name}", f"a second task is called {task[0].task}",
                                "name each once, and rename one of two files of one name")
            items[task[0].task] = task
    if not items:
        raise UserError("--tasks", "names no task", "name a task file, or a task: --tasks=gsm8k")
    return [item for task in items.values() for item in task], skipped


def _open(name: str, corpus: Path | None, data: Path | None) -> list[Item]:
    if name in DRAWN:
        raise UserError(f"--tasks={name}", "makes its questions anew for each run, so that there "
                        "is none to search for", "name a task with items of its own")
    if data is None and name not in TASKS:
        raise UserError(f"--tasks={name}", "is no file, and no folder of benchmarks is given",
                        "name a file that exists, or set --data to the folder of its files")
    (task, _), = open_tasks({name: EVERY}, corpus, source=data and Source(data))
    items = [Item(name, number, texts, ("question", "answer"))
             for number, texts in enumerate(_texts(task))]
    if not items:
        raise UserError(f"--tasks={name}", "has no item in its test split", "name another task")
    return items


def _texts(task: Task) -> list[tuple[str, ...]]:
    """Question and right answers of each item: what a corpus must not hold together."""
    if isinstance(task, ChoiceTask):
        return [_choice_texts(choice) for choice in task.choices("test", EVERY, 0)]
    return [_strip(_question(solved), answer_of(solved))
            for solved in task.conversations("test", EVERY, 0)]


def _choice_texts(choice: Choice) -> tuple[str, ...]:
    right = choice.answers or (choice.answer,)
    return _strip(choice.question.messages[-1].content,
                  *(choice.choices[index] for index in right))


def _question(solved: Conversation) -> str:
    return solved.messages[-2].content


def _strip(*texts: str) -> tuple[str, ...]:
    return tuple(stripped for text in texts if (stripped := text.strip()))
