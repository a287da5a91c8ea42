"""Points of a sweep: where each runs, what it reads, how it is run, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core import artifacts
from core.artifacts import digest, read_json, write_json
from core.errors import UserError
from core.progress import log
from scripts.stages import StageModule
from scripts.sweep.axes import Settings

MAX_NAME_CHARS = 120


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of the swept fields.

    Attributes:
        settings: the fields' values.
        folder: its workdir.
        modules: what it runs, in order.
        arguments: the config, as each of them gets it.
    """

    settings: Settings
    folder: Path
    modules: tuple[str, ...]
    arguments: tuple[str, ...]


def plan_points(stages: Sequence[StageModule], points: Sequence[Settings], config: ConfigDict,
                given: Sequence[str], *, workdir: Path, parents: Path | None) -> list[Point]:
    """Gives every point its folder and its command line.

    Args:
        config: the config before a point's settings.
        given: the arguments that made it.
        parents: workdir of what stages read and none of them builds.

    Raises:
        UserError: such a parent is missing.
    """
    fields = list(points[0])
    shared = shared_parents(stages, config, fields, parents)
    modules = tuple(stage.module for stage in stages)
    return [Point(settings, workdir / point_name(settings), modules,
                  (*given, *shared, *(f"--config.{f}={v}" for f, v in settings.items())))
            for settings in points]


def shared_parents(stages: Sequence[StageModule], config: ConfigDict, swept: Sequence[str],
                   parents: Path | None) -> list[str]:
    """Arguments that point stages at the artifacts that all points share."""
    arguments, built = [], set()
    for _, stage in stages:
        for field in stage.parents:
            name, path = config[stage.section][field], f"{stage.section}.{field}"
            if not name or os.sep in name or name in built or path in swept:
                continue
            if parents is None:
                raise UserError("--parents", f"is missing, and none of --stages builds "
                                f"{path}={name!r}", "name the workdir that holds it")
            folder, _ = artifacts.parent(parents, path, name)
            arguments.append(f"--config.{path}={folder}")
        built.add(config[stage.section].out)
    return arguments


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each field's name, or all of it where two would be the same."""
    last = [field.rpartition(".")[2] for field in fields]
    return {field: name if last.count(name) == 1 else field for field, name in zip(fields, last)}


def point_name(settings: Settings) -> str:
    """A folder's name; a digest stands in for what a name cannot hold."""
    names = short_names(list(settings))
    whole = ",".join(f"{names[field]}={value}" for field, value in settings.items())
    name = re.sub(r"[^\w.+=,-]", "_", whole)
    if name == whole and len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[:MAX_NAME_CHARS]},{digest(settings)[:8]}"


class Runner:
    """Runs points, several at once; each stage is a process of its own."""

    def __init__(self):
        self._live: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, points: Sequence[Point], parallel: int) -> None:
        """Runs all points; an interrupt ends those under way and starts no more."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ThreadPoolExecutor(parallel) as pool:
            try:
                futures = [pool.submit(self._run_point, point) for point in points]
                for number, future in enumerate(as_completed(futures), start=1):
                    row = future.result()
                    log(f"sweep {number}/{len(points)}: {row['point']} {row['status']}"
                        + (f": {row['error']}" if row["status"] == "failed" else ""))
            except KeyboardInterrupt:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._live:
                process.terminate()

    def _run_point(self, point: Point) -> dict[str, Any]:
        """Runs the stages until one fails; what the last one printed, kept as `result.json`."""
        point.folder.mkdir(parents=True, exist_ok=True)
        row: dict[str, Any] = {"point": point.folder.name, "settings": point.settings,
                               "status": "finished"}
        for module in point.modules:
            code, printed, said = self._run_stage(point, module)
            if code:
                row |= {"status": "failed", "stage": module, "error": _reason(code, said)}
                break
            row["metrics"] = json.loads(printed.splitlines()[-1])
        write_json(point.folder / "result.json", row)
        return row

    def _run_stage(self, point: Point, module: str) -> tuple[int, str, str]:
        with self._lock:
            if self._stopped:
                return 130, "", "interrupted"
            process = subprocess.Popen(
                [sys.executable, "-m", module, *point.arguments, f"--workdir={point.folder}"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._live.add(process)
        printed, said = process.communicate()
        with self._lock:
            self._live.remove(process)
        with open(point.folder / "log.txt", "a") as file:
            file.write(said)
        return process.returncode, printed, said


def _reason(code: int, said: str) -> str:
    """The line that tells best why a stage failed: our own, or the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    died = f"killed by signal {-code}" if code < 0 else f"exit {code}"
    return (ours or lines[-1:] or [died])[-1]


def read_results(points: Sequence[Point], path: Path) -> list[dict[str, Any]]:
    """What is known of every point, in order; written to `path`, one JSON line each."""
    rows = []
    for point in points:
        kept = point.folder / "result.json"
        rows.append(read_json(kept) if kept.exists() else
                    {"point": point.folder.name, "settings": point.settings, "status": "missing"})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)
    return rows
