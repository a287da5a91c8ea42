"""Runs units of work on all cores, on a Ray cluster, or in the tasks of a job array.

A unit's work function writes its output under a temporary name, renames it into place and returns
counters; the counters become the unit's completion record. A unit with a record of
the same key is not run again. Outputs depend on the unit alone, so every executor writes the same
bytes:

    (no flag)             processes of this machine, one per core or --num_workers
    --executor=ray        the Ray cluster of RAY_ADDRESS, or a local one; needs a shared --workdir
    --task=3/16           task 3 of 16 that run the same command on a shared --workdir, for example
                          as a SLURM array: task 0 plans each pass, every task runs its share
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core.artifacts import OUR_PACKAGES, digest, read_json, write_json
from core.errors import PassingError, UserError
from core.progress import Progress, log

Work = Callable[..., Mapping[str, Any]]
POLL_SECS = 0.5             # between two checks of a shared folder
MAX_LOGGED = 20             # failed units that are named in the log
LEADERLESS_SECS = 120.0     # tasks 1.. stop when task 0 has been absent for this long

flags.DEFINE_enum("executor", "local", ["local", "ray"], "Where units of work run.")
flags.DEFINE_integer("num_workers", None, "Worker processes; one per usable core by default.",
                     lower_bound=1)
flags.DEFINE_string("task", None, "i/n: this process is task i of n on a shared workdir.")


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where and how units run.

    Attributes:
        kind: "local" or "ray".
        num_workers: processes at once; None: the usable cores (Ray: one per CPU of the cluster).
        task, num_tasks: the share of the units that this process runs.
    """

    kind: str = "local"
    num_workers: int | None = None
    task: int = 0
    num_tasks: int = 1

    @property
    def num_processes(self) -> int:
        """Worker processes of all tasks, assuming that all have the cores of this one."""
        return (self.num_workers or len(os.sched_getaffinity(0))) * self.num_tasks


def executor_from_flags() -> Executor:
    """The executor set by the flags; the default one when flags are not parsed.

    Raises:
        UserError: --task is not i/n with 0 <= i < n.
    """
    if not flags.FLAGS.is_parsed():
        return Executor()
    task, num_tasks = 0, 1
    if flags.FLAGS.task is not None:
        first, _, second = flags.FLAGS.task.partition("/")
        if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
            raise UserError(f"--task={flags.FLAGS.task}", "is not i/n with 0 <= i < n",
                            "write for example --task=0/4 to --task=3/4, one per process")
        task, num_tasks = int(first), int(second)
    return Executor(flags.FLAGS.executor, flags.FLAGS.num_workers, task, num_tasks)


def run_units(work: Work, tasks: Sequence[Mapping[str, Any]], folder: Path, *, key: Any = "",
              num_workers: int | None = None) -> list[dict[str, Any]]:
    """Calls ``work(output=folder / "00000", **task)`` for every task, each in a worker.

    Args:
        work: a function of an importable module. It may write ``output`` with any suffixes, each
            renamed into place, and returns plain data.
        tasks: keyword arguments per unit, plain data.
        folder: where outputs and completion records go.
        key: anything else that determines the result, e.g. a digest of the code.
        num_workers: processes; None takes the number from the flags.

    Returns:
        Results of `work`, in the order of `tasks`.

    Raises:
        UserError, OSError: as raised by `work`. A `PassingError` is raised when the other units of
            this process are done.
    """
    executor = executor_from_flags()
    if num_workers is not None:
        executor = dataclasses.replace(executor, num_workers=num_workers)
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"work": f"{work.__module__}:{work.__qualname__}", "tasks": list(tasks),
            "keys": [digest([key, task]) for task in tasks]}
    (folder / "failure.json").unlink(missing_ok=True)
    if executor.num_tasks > 1:
        write_json(folder / "plan.json", plan)
    share = _share(plan, folder, executor)
    num_done = sum(_is_done(folder, unit, mark) for unit, mark in enumerate(plan["keys"]))
    if num_done:
        log(f"{folder.name}: {num_done} of {len(tasks)} units are done already")
    with Progress(folder.name, len(tasks), "units", start=num_done) as progress:
        failures = []
        for result in _run(plan, share, folder, executor):
            if "passing_error" in result:
                failures.append(result)
                continue
            _raise_again(result)
            num_done += 1
            progress.update(num_done)
        _raise_first(failures)
        while any(missing := [unit for unit, mark in enumerate(plan["keys"])
                              if not _is_done(folder, unit, mark)]):
            progress.update(len(tasks) - len(missing))
            _raise_failure(folder)
            time.sleep(POLL_SECS)
        progress.update(len(tasks))
    return [read_json(_record(folder, unit))["result"] for unit in range(len(tasks))]


def assist(final: Path, is_finished: Callable[[], bool]) -> bool:
    """Runs this process's share of an artifact that task 0 builds.

    Args:
        final: the artifact's folder; plans are read from its ``.partial`` and ``.measured``.
        is_finished: whether the artifact is complete.

    Returns:
        False, at once, in task 0; True when the artifact is finished.

    Raises:
        UserError: a unit failed, or task 0 was absent for two minutes.
    """
    executor = executor_from_flags()
    if executor.task == 0:
        return False
    roots = [final.with_name(f"{final.name}.{part}") for part in ("partial", "measured")]
    last_seen = time.monotonic()
    log(f"task {executor.task} of {executor.num_tasks}: waiting for units of {final}")
    while not is_finished():
        if _has_leader(final):
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > LEADERLESS_SECS:
            raise UserError(f"--task={executor.task}/{executor.num_tasks}",
                            f"task 0 is not building {final}", "start or restart task 0")
        for plan_path in sorted(path for root in roots for path in root.rglob("plan.json")):
            _take_share(plan_path, executor)
        time.sleep(POLL_SECS)
    return True


def _take_share(plan_path: Path, executor: Executor) -> None:
    folder = plan_path.parent
    try:
        plan = json.loads(plan_path.read_text())
    except (OSError, ValueError):   # task 0 has removed it, or is writing it
        return
    if plan["work"].partition(".")[0] not in OUR_PACKAGES:
        raise UserError(str(plan_path), "names a function outside this repository",
                        "delete this folder")
    share = _share(plan, folder, executor)
    failures = []
    for result in _run(plan, share, folder, executor):
        if "passing_error" in result:
            failures.append(result)
            continue
        if result:
            write_json(folder / "failure.json", result)
        _raise_again(result)
    if failures:
        write_json(folder / "failure.json", failures[0])
    _raise_first(failures)
    if share:
        log(f"task {executor.task}: finished {len(share)} units of {folder.name}")


def _share(plan: Mapping[str, Any], folder: Path, executor: Executor) -> list[int]:
    """Units of this process that have no completion record yet."""
    return [unit for unit in range(executor.task, len(plan["tasks"]), executor.num_tasks)
            if not _is_done(folder, unit, plan["keys"][unit])]


def _has_leader(final: Path) -> bool:
    """Whether a process holds the artifact's lock (see `core.locks.locked`)."""
    try:
        with open(final.with_name(f".{final.name}.lock")) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _run(plan: Mapping[str, Any], units: Sequence[int], folder: Path,
         executor: Executor) -> Iterator[dict[str, Any]]:
    """Runs units; yields for each an empty mapping, or its failure as data; logs their messages."""
    logged = set()
    for result in map(json.loads, _run_all(plan, units, folder, executor)):
        for line in result.pop("messages", "").splitlines():
            if line not in logged:  # as units of one file may log the same
                log(line)
            logged.add(line)
        yield result


def _run_all(plan: Mapping[str, Any], units: Sequence[int], folder: Path,
             executor: Executor) -> Iterator[str]:
    rows = [(unit, json.dumps(plan["tasks"][unit]), plan["keys"][unit]) for unit in units]
    if executor.kind == "local" and len(rows) <= 1:     # saves starting a process
        for row in rows:
            yield _do(plan["work"], str(folder), *row)
    elif rows:
        yield from _run_on_daft(plan["work"], rows, str(folder), executor)


def _run_on_daft(work: str, rows: Sequence[tuple[int, str, str]], folder: str,
                 executor: Executor) -> Iterator[str]:
    os.environ["DO_NOT_TRACK"] = "1"    # read when daft is imported
    import daft

    num_workers = executor.num_workers or len(os.sched_getaffinity(0))
    if executor.kind == "ray":
        num_workers = executor.num_workers or _start_ray()

    @daft.cls(use_process=executor.kind == "local", max_concurrency=min(num_workers, len(rows)))
    class Worker:
        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        def run(self, unit, task, key):
            return [_do(work, folder, *row) for row in
                    zip(unit.to_pylist(), task.to_pylist(), key.to_pylist())]

    units, tasks, keys = zip(*rows)
    frame = daft.from_pydict({"unit": list(units), "task": list(tasks), "key": list(keys)})
    if executor.kind == "ray":
        frame = frame.into_partitions(len(rows))
    worker = Worker()
    frame = frame.select(worker.run(frame["unit"], frame["task"], frame["key"]).alias("result"))
    for row in frame.iter_rows():
        yield row["result"]


def _start_ray() -> int:
    """Connects Daft to Ray (the cluster of RAY_ADDRESS, or a new local one); returns its CPUs."""
    try:
        import ray
    except ImportError:
        raise UserError("--executor=ray", "the package `ray` is not installed",
                        "pip install -e .[ray]") from None
    import daft

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        daft.set_runner_ray()
    return int(ray.cluster_resources().get("CPU", 1))


def _do(work: str, folder: str, unit: int, task: str, key: str) -> str:
    """Runs one unit in a worker; returns what it logged, or an expected failure, as data."""
    module, _, name = work.partition(":")
    function = getattr(importlib.import_module(module), name)
    messages = io.StringIO()    # Daft does not pass a worker's streams on
    try:
        with contextlib.redirect_stderr(messages):
            result = function(output=Path(folder) / f"{unit:05d}", **json.loads(task))
        write_json(_record(Path(folder), unit), {"key": key, "result": result})
    except PassingError as error:
        return json.dumps({"passing_error": str(error)})
    except UserError as error:
        return json.dumps({"user_error": str(error)})
    except OSError as error:
        if error.errno is None:
            raise
        where = str(error.filename or folder)
        return json.dumps({"os_error": [error.errno, error.strerror, where]})
    return json.dumps({"messages": messages.getvalue()})


def _raise_failure(folder: Path) -> None:
    if (folder / "failure.json").exists():
        _raise_again(read_json(folder / "failure.json"))


def _raise_first(failures: Sequence[Mapping[str, Any]]) -> None:
    """Logs failures that may pass, one per unit, and raises the first."""
    for failure in failures[:MAX_LOGGED]:
        log(failure["passing_error"])
    if len(failures) > MAX_LOGGED:
        log(f"and {len(failures) - MAX_LOGGED} more units like these")
    if failures:
        what, rule, remedy = failures[0]["passing_error"].split(": ", 2)
        more = f", and {len(failures) - 1} units more" if len(failures) > 1 else ""
        raise PassingError(what, rule + more, remedy)


def _raise_again(result: Mapping[str, Any]) -> None:
    if "passing_error" in result:
        raise PassingError(*result["passing_error"].split(": ", 2))
    if "user_error" in result:
        raise UserError(*result["user_error"].split(": ", 2))
    if "os_error" in result:
        raise OSError(*result["os_error"])


def _record(folder: Path, unit: int) -> Path:
    return folder / f"{unit:05d}.done.json"


def _is_done(folder: Path, unit: int, key: str) -> bool:
    record = _record(folder, unit)
    return record.exists() and read_json(record)["key"] == key
