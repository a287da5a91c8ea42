"""Units of work on Daft: one row per unit, resumed where a killed run stopped.

A unit's work function writes its output under a temporary name, renames it into place and returns
counters; the counters become the unit's completion record. What has a record with the same key is
not done again, whatever the number of workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import digest, read_json, write_json
from core.errors import UserError
from core.progress import Progress, log

Work = Callable[..., Mapping[str, Any]]


def run_units(work: Work, tasks: Sequence[Mapping[str, Any]], folder: Path, *, key: Any,
              num_workers: int | None = None) -> list[dict[str, Any]]:
    """Calls ``work(output=folder / "00000", **task)`` for every task, in worker processes.

    Args:
        work: a function of an importable module. It may write ``output`` with any suffixes, each
            renamed into place, and returns plain data.
        tasks: keyword arguments per unit, plain data.
        folder: where outputs and completion records go.
        key: what else decides the result, e.g. the stage's config.
        num_workers: processes; the number of usable cores when None. The outputs do not depend
            on it.

    Returns:
        What `work` returned, in the order of `tasks`.

    Raises:
        UserError, OSError: as raised by `work`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = [digest([key, task]) for task in tasks]
    todo = [unit for unit in range(len(tasks)) if not _is_done(folder, unit, keys[unit])]
    if len(todo) < len(tasks):
        log(f"{folder.name}: {len(tasks) - len(todo)} of {len(tasks)} units are done already")
    if todo:
        num_workers = min(num_workers or len(os.sched_getaffinity(0)), len(todo))
        with Progress(folder.name, len(tasks), "units", start=len(tasks) - len(todo)) as progress:
            done = len(tasks) - len(todo)
            for result in _run_on_daft(work, tasks, todo, keys, folder, num_workers):
                _raise_again(result)
                done += 1
                progress.update(done)
    return [read_json(_record(folder, unit))["result"] for unit in range(len(tasks))]


def _run_on_daft(work: Work, tasks, todo, keys, folder: Path, num_workers: int):
    os.environ["DO_NOT_TRACK"] = "1"  # read when daft is imported
    import daft

    @daft.cls(use_process=True, max_concurrency=num_workers)
    class Worker:
        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        def run(self, unit, task, key):
            return [_do(work, folder, *row) for row in
                    zip(unit.to_pylist(), task.to_pylist(), key.to_pylist())]

    rows = daft.from_pydict({"unit": todo, "task": [json.dumps(tasks[unit]) for unit in todo],
                             "key": [keys[unit] for unit in todo]})
    worker = Worker()
    rows = rows.select(worker.run(rows["unit"], rows["task"], rows["key"]).alias("result"))
    for row in rows.iter_rows():
        yield json.loads(row["result"])


def _do(work: Work, folder: Path, unit: int, task: str, key: str) -> str:
    """Does one unit in a worker; an expected failure travels back as data."""
    try:
        result = work(output=folder / f"{unit:05d}", **json.loads(task))
        write_json(_record(folder, unit), {"key": key, "result": result})
    except UserError as error:
        return json.dumps({"user_error": str(error)})
    except OSError as error:
        if error.errno is None:
            raise
        where = str(error.filename or folder)
        return json.dumps({"os_error": [error.errno, error.strerror, where]})
    return "{}"


def _raise_again(result: Mapping[str, Any]) -> None:
    if "user_error" in result:
        raise UserError(*result["user_error"].split(": ", 2))
    if "os_error" in result:
        raise OSError(*result["os_error"])


def _record(folder: Path, unit: int) -> Path:
    return folder / f"{unit:05d}.done.json"


def _is_done(folder: Path, unit: int, key: str) -> bool:
    record = _record(folder, unit)
    return record.exists() and read_json(record)["key"] == key
