"""Points: stages with settings of their own, each in a workdir of its own, and running them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core import artifacts
from core.artifacts import digest, read_json, write_json
from core.errors import UserError
from core.progress import log
from core.stages import StageModule

MAX_NAME_CHARS = 120

# Settings of a point: config field -> value, as the text of --config.FIELD=.
Settings = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of the swept fields.

    Attributes:
        settings: the fields' values.
        folder: its workdir.
        modules: stages to run, in order.
        shared: arguments of the config that all points have.
    """

    settings: Settings
    folder: Path
    modules: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The config's arguments, the same for each stage."""
        return *self.shared, *(f"--config.{f}={value}" for f, value in self.settings.items())

    def describe(self) -> dict[str, Any]:
        """What its result records of it."""
        return {"point": self.folder.name, "settings": self.settings,
                "stages": list(self.modules), "shared": list(self.shared)}


def plan_points(stages: Sequence[StageModule], points: Sequence[Settings], config: ConfigDict,
                given: Sequence[str], *, workdir: Path, parents: Path | None) -> list[Point]:
    """Makes the points, with folders and command lines.

    Args:
        config: the config without a point's settings.
        given: the arguments that define it.
        parents: workdir of artifacts that stages read and none of them builds.

    Raises:
        UserError: such an artifact is missing.
    """
    shared = (*given, *shared_parents(stages, config, list(points[0]), parents))
    modules = tuple(stage.module for stage in stages)
    return [Point(settings, workdir / point_name(settings), modules, shared)
            for settings in points]


def shared_parents(stages: Sequence[StageModule], config: ConfigDict, swept: Sequence[str],
                   parents: Path | None) -> list[str]:
    """Arguments that set the paths of the artifacts that all points share."""
    arguments, built = [], set()
    for _, stage in stages:
        for field in stage.parents:
            name, path = config[stage.section][field], f"{stage.section}.{field}"
            if not name or os.sep in name or name in built or path in swept:
                continue
            if parents is None:
                raise UserError("--parents", "is missing, and none of the stages builds "
                                f"{path}={name!r}", "name the workdir that holds it")
            folder, _ = artifacts.parent(parents, path, name, unfinished=field in stage.unfinished)
            arguments.append(f"--config.{path}={folder}")
        built.add(config[stage.section].out)
    return arguments


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each field's name, or all of it if two would be equal."""
    last = [field.rpartition(".")[2] for field in fields]
    return {field: name if last.count(name) == 1 else field for field, name in zip(fields, last)}


def point_name(settings: Settings) -> str:
    """A folder's name from settings; a digest is added if characters are replaced or cut."""
    names = short_names(list(settings))
    whole = ",".join(f"{names[field]}={value}" for field, value in settings.items())
    name = re.sub(r"[^\w.+=,-]", "_", whole)
    if name == whole and len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[:MAX_NAME_CHARS]},{digest(settings)[:8]}"


class Runner:
    """Runs points, several at once; each stage is a process of its own.

    Args:
        label: what the points are, at the start of each line of the log.
    """

    def __init__(self, label: str):
        self._label = label
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, points: Sequence[Point], parallel: int) -> None:
        """Runs all points; an interrupt ends the running ones and starts no more."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ThreadPoolExecutor(parallel) as pool:
            try:
                futures = [pool.submit(self._run_point, point) for point in points]
                for number, future in enumerate(as_completed(futures), start=1):
                    row = future.result()
                    log(f"{self._label} {number}/{len(points)}: {row['point']} {row['status']}"
                        + (f": {row['error']}" if row["status"] == "failed" else ""))
            except KeyboardInterrupt:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _run_point(self, point: Point) -> dict[str, Any]:
        """Runs the stages until one fails; returns the result, saved as `result.json`."""
        point.folder.mkdir(parents=True, exist_ok=True)
        row: dict[str, Any] = point.describe() | {"status": "finished"}
        for module in point.modules:
            code, printed, stderr = self._run_stage(point, module)
            if code:
                row |= {"status": "failed", "stage": module, "error": _reason(code, stderr)}
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
            self._running.add(process)
        printed, stderr = process.communicate()
        with self._lock:
            self._running.remove(process)
        with open(point.folder / "log.txt", "a") as file:
            file.write(stderr)
        return process.returncode, printed, stderr


def run_in_order(label: str, points: Sequence[Point]) -> None:
    """Runs points one after the other, as each reads what those before it made.

    Raises:
        UserError: a stage failed; the points after it are not run.
    """
    for point in points:
        Runner(label).run([point], parallel=1)
        result = read_json(point.folder / "result.json")
        if result["status"] != "finished":
            raise UserError(result["stage"], f"failed: {result['error']}",
                            f"see {point.folder / 'log.txt'}, and run the same command again")


def _reason(code: int, stderr: str) -> str:
    """The most informative line about a stage's failure: its `error:` line, or the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    status = f"killed by signal {-code}" if code < 0 else f"exit {code}"
    return (errors or lines[-1:] or [status])[-1]


def read_results(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The results of all points, in order."""
    return [read_json(point.folder / "result.json") if (point.folder / "result.json").exists()
            else point.describe() | {"status": "missing"} for point in points]


def read_earlier_results(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The results of other points in the sweep's folder, from earlier calls."""
    own, workdir = {point.folder for point in points}, points[0].folder.parent
    return [read_json(path) for path in sorted(workdir.glob("*/result.json"))
            if path.parent not in own]


def are_comparable(row: Mapping[str, Any], point: Point) -> bool:
    """Whether a result is of the same stages and the same config, settings aside."""
    return all(row.get(name) == point.describe()[name] for name in ("stages", "shared"))
