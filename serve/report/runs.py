"""The artifacts of a run, as they lie below its folder, and who was made from whom."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import check_layout, is_set_aside, read_json, read_jsonl
from core.errors import UserError

FIELDS = {"stage": str, "fingerprint": str, "build": str, "inputs": dict, "config": dict,
          "command": str, "started": str, "versions": dict, "python": str, "platform": str}
SHOWN_BY = "report"     # the stage whose artifact is such a page


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished artifact.

    Attributes:
        name: its path below the run's folder.
        metrics: of `metrics.json`; nan stands for what was not measured.
    """

    name: str
    folder: Path
    lineage: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The name of the stage that built it."""
        return self.lineage["stage"]

    @property
    def config(self) -> Mapping[str, Any]:
        """Its stage's own section."""
        return self.lineage["config"].get(self.stage, {})

    def number(self, key: str) -> float:
        """One of its metrics; nan where it is not there, or not a number."""
        value = self.metrics.get(key)
        return value if is_number(value) else math.nan

    def log(self) -> list[Mapping[str, Any]]:
        """The rows of a training's `metrics.jsonl`; none where it is no training.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "metrics.jsonl"
        rows = read_jsonl(path) if path.exists() else []
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise UserError(str(path), "has a row without a step", "build its artifact anew")
        return rows


class Run:
    """Artifacts of one run, parents before their children.

    Attributes:
        name: the folder's.
        artifacts: finished ones.
        left_out: name and reason of each folder that is not among them.
    """

    def __init__(self, name: str, folders: Mapping[str, Path]):
        self.name, self.left_out = name, []
        found = []
        for own, folder in folders.items():
            try:
                found.append(read_artifact(own, folder))
            except (UserError, OSError) as error:
                self.leave_out(own, str(error).replace(str(folder), own))
        self._owners = {mark: artifact for artifact in reversed(found)
                        for mark in (artifact.lineage["fingerprint"], artifact.lineage["build"])}
        self.artifacts = [artifact for artifact in self._ordered(found)
                          if artifact.stage != SHOWN_BY]

    def leave_out(self, name: str, reason: str) -> None:
        """Records that something is not shown, and why."""
        if (name, reason) not in self.left_out:
            self.left_out.append((name, reason))

    def owner(self, mark: str | None) -> Artifact | None:
        """The artifact that has this mark of its build; None where it is not in this run."""
        return self._owners.get(mark)

    def parents(self, artifact: Artifact) -> dict[str, Artifact]:
        """The inputs of an artifact that are artifacts of this run, by their fields."""
        owners = {field: self.owner(mark) for field, mark in artifact.lineage["inputs"].items()
                  if isinstance(mark, str)}
        return {field: owner for field, owner in owners.items()
                if owner is not None and owner is not artifact}

    def edges(self) -> list[tuple[str, str]]:
        """(parent, child), by their names, without repetition."""
        return list(dict.fromkeys((parent.name, child.name) for child in self.artifacts
                                  for parent in self.parents(child).values()))

    def replaced_parents(self) -> list[tuple[str, str]]:
        """(artifact, field) for each parent whose name another artifact now has."""
        by_name = {artifact.name: artifact for artifact in self.artifacts}
        return [(child.name, field) for child in self.artifacts
                for field, mark in child.lineage["inputs"].items()
                if child.config.get(field) in by_name and self.owner(mark) is None]

    def root(self, artifact: Artifact) -> Artifact:
        """The first model of the chain of models from which one was trained."""
        seen = set()
        while artifact.name not in seen:
            seen.add(artifact.name)
            parents = self.parents(artifact)
            artifact = parents.get("model", parents.get("init_from", artifact))
        return artifact

    def _ordered(self, found: Sequence[Artifact]) -> list[Artifact]:
        """Parents first, else by their beginning."""
        ordered: dict[str, Artifact] = {}

        def add(artifact: Artifact, path: tuple[str, ...]) -> None:
            if artifact.name in ordered or artifact.name in path:
                return
            for parent in sorted(self.parents(artifact).values(), key=_began):
                add(parent, (*path, artifact.name))
            ordered[artifact.name] = artifact

        for artifact in sorted(found, key=_began):
            add(artifact, ())
        return list(ordered.values())


def find_run(folder: Path) -> Run:
    """The run in a folder: every artifact below it, or the artifact that it is.

    Raises:
        UserError: there is no finished artifact.
    """
    if not folder.is_dir():
        raise UserError(str(folder), "is no folder", "name the folder of a run")
    name = folder.resolve().name
    if (folder / "lineage.json").exists():
        run = Run(name, {name: folder})
    else:
        found = {str(path.relative_to(folder)): path for path in _walk(folder, set())}
        run = Run(name, found)
    if not run.artifacts:
        reasons = "; ".join(f"{own}: {reason}" for own, reason in run.left_out)
        raise UserError(str(folder), f"holds no finished artifact{reasons and f' ({reasons})'}",
                        "name a folder that was a --workdir, or an artifact")
    return run


def read_artifact(name: str, folder: Path) -> Artifact:
    """Reads lineage and metrics.

    Raises:
        UserError: it is unfinished, set aside, damaged or of an earlier layout.
    """
    if ".partial" in folder.name:
        raise UserError(name, "is not finished", "run the command again that builds it")
    lineage = _read_object(folder / "lineage.json")
    check_layout(folder, lineage)
    for field, kind in FIELDS.items():
        if not isinstance(lineage.get(field), kind):
            raise UserError(str(folder / "lineage.json"), f"has no {field}",
                            "build its artifact anew")
    if is_set_aside(folder, lineage):
        raise UserError(name, "was set aside for another artifact of its name",
                        "name its folder to see it")
    metrics = _with_nans(_read_object(folder / "metrics.json"))
    defaults = {"commit": None, "uncommitted_changes": False, "runs": []}
    return Artifact(name, folder, defaults | lineage, metrics)


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for num in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-num:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def total(values: Iterable[float]) -> float:
    """The sum of those that are finite."""
    return math.fsum(value for value in values if math.isfinite(value))


def finite(values: Iterable[tuple[float, Any]]) -> list[tuple[float, float]]:
    """The points whose values are finite numbers."""
    return [(x, y) for x, y in values if is_number(y) and math.isfinite(y)]


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """The folders with a lineage; none within another, and no hidden one."""
    if (place := os.path.realpath(folder)) in seen:
        return
    seen.add(place)
    if (folder / "lineage.json").exists():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _walk(path, seen)


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(str(path), "is no JSON object", "build its artifact anew")
    return value


def _began(artifact: Artifact) -> tuple[str, str]:
    return artifact.lineage["started"], artifact.name


def _with_nans(value: Any) -> Any:
    """What was read from JSON, with NaN for null: a number that was not finite."""
    if isinstance(value, dict):
        return {name: _with_nans(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_nans(part) for part in value]
    return math.nan if value is None else value
