"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from core.errors import UserError
from eval.tasks.documentation import load_documentation
from eval.tasks.file import load_file_task
from eval.tasks.task import Task
from eval.tasks.turns import Turns
from eval.tasks.verifiable import Verifiable

# Factories of the tasks, given the corpus that some are drawn from.
TASKS: dict[str, Callable[[Path | None], Task]] = {
    "documentation": load_documentation,
    "verifiable": lambda corpus: Verifiable(),
    "turns": lambda corpus: Turns(),
}


def open_tasks(counts: Mapping[str, int], corpus: Path | None,
               inputs: str = "") -> list[tuple[Task, int]]:
    """Opens tasks, each with its number of questions.

    Args:
        counts: number of questions by name of the task; tasks with 0 are skipped.
        corpus: folder of the corpus, for the tasks that are drawn from it.
        inputs: files of the user's own questions, separated by commas; all are used.

    Raises:
        UserError: a name is unknown, or a task cannot be opened.
    """
    opened = []
    for name, count in counts.items():
        if name not in TASKS:
            raise UserError(f"tasks.{name}", "is no task", f"choose among {', '.join(TASKS)}, or "
                            "name a file of your own in `inputs`")
        if count:
            opened.append((TASKS[name](corpus), count))
    for path in filter(None, (part.strip() for part in inputs.split(","))):
        task = load_file_task(path)
        opened.append((task, len(task.solved)))
    names = [task.name for task, _ in opened]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"inputs={inputs!r}", f"two tasks are called {min(repeated)!r}",
                        "rename a file")
    return opened
