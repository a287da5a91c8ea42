"""What is comparable of several runs, and what is not and why.

Artifacts of one stage belong together when they have the same name, or when each run has just one
of that stage whose name no other run has. A measure is compared with that of the first run that has
it; where a setting that the measure depends on differs, it is left out, with the setting and both
values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.page.charts import Line
from serve.report.evaluations import (
    OPEN,
    Difference,
    Estimate,
    Evaluation,
    all_tasks,
    difference,
    has,
    read_evaluations,
    unlike_bits,
    unlike_task,
    unpaired,
)
from serve.report.runs import Artifact, Run
from serve.report.settings import Unlike, unlike_training
from serve.report.training import Chart, charts_of, final_measures, is_training, make_line

UNBOUNDED = ("bpb", "loss", "nats")     # measures that are no shares, and lower where better
Each = tuple[Artifact | None, ...]      # of each run, in their order


@dataclasses.dataclass(frozen=True)
class Match:
    """Artifacts that belong together, None for a run that has none."""

    name: str
    artifacts: Each


@dataclasses.dataclass(frozen=True)
class Row:
    """A measure of several runs.

    Attributes:
        is_share: whether it is from 0 to 1.
        estimates: of each run; None where it has none, or none that is comparable.
        differences: from the first run that has one; None for that one itself.
    """

    artifact: str
    measure: str
    is_share: bool
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A chart with a line for each run, in the place of that run; None where it has none."""

    artifact: str
    chart: Chart
    lines: tuple[Line | None, ...]


class Comparison:
    """What several runs have in common.

    Attributes:
        rows: measures of at least two runs.
        overlays: curves of at least two runs.
        left_out: (artifact, measure, reason) of what is not compared; for a whole artifact the
            measure is empty.
    """

    def __init__(self, runs: Sequence[Run], styles: Sequence[str]):
        self.runs, self.styles = runs, styles
        self.left_out: list[tuple[str, str, str]] = []
        self.rows: list[Row] = []
        self.overlays: list[Overlay] = []
        self.matches = match(runs)
        evaluations = [{one.artifact.name: one for one in read_evaluations(run)} for run in runs]
        for pair in self.matches:
            if sum(artifact is not None for artifact in pair.artifacts) < 2:
                continue
            found = tuple(of_run.get(artifact.name) if artifact is not None else None
                          for of_run, artifact in zip(evaluations, pair.artifacts))
            if any(found):
                self._compare_evaluations(pair.name, found)
            else:
                self._compare_trainings(pair)
        self.left_out += [(f"{run.name}: {name}", "", reason.removeprefix(f"{name}: "))
                          for run in runs for name, reason in run.left_out]

    def alone(self) -> dict[str, list[str]]:
        """Of each run the artifacts that no other has."""
        found: dict[str, list[str]] = {}
        for pair in self.matches:
            owners = [run.name for run, artifact in zip(self.runs, pair.artifacts)
                      if artifact is not None]
            if len(owners) == 1:
                found.setdefault(owners[0], []).append(pair.name)
        return found

    def numbers(self) -> dict[str, Any]:
        """Figures for a script: each measure by run, and what was left out."""
        return {"measures": {f"{row.artifact}: {row.measure}": {
                    run.name: None if one is None else one.value
                    for run, one in zip(self.runs, row.estimates)} for row in self.rows},
                "curves": len(self.overlays), "left_out": self.reasons()}

    def reasons(self) -> list[str]:
        """A line for each reason of what is not compared."""
        measures: dict[tuple[str, str], list[str]] = {}
        for artifact, measure, reason in self.left_out:
            measures.setdefault((artifact, reason), []).append(measure)
        return [f"{artifact}{'' if found == [''] else ' '}{', '.join(found)}: {reason}"
                for (artifact, reason), found in measures.items()]

    def check(self) -> None:
        """Raises `UserError` where nothing is comparable."""
        if self.rows or self.overlays:
            return
        reasons = self.reasons()[:3]
        raise UserError(" ".join(run.name for run in self.runs), "nothing is comparable"
                        + (f" ({'; '.join(reasons)})" if reasons else ", as no two of them hold an "
                           "artifact of the same stage"),
                        "name runs that measured the same in the same way")

    def _compare_evaluations(self, name: str, found: Sequence[Evaluation | None]) -> None:
        present = [one for one in found if one is not None]
        for task in (*all_tasks(present), OPEN):
            self._add(name, "open answers" if task == OPEN else task, True,
                      [one if one is not None and has(one, task) else None for one in found],
                      lambda ours, theirs, task=task: unlike_task(task, ours, theirs),
                      lambda one, task=task: one.estimate(task),
                      lambda ours, theirs, task=task: difference(task, ours, theirs))
        self._add(name, "bits per byte", False,
                  [one if one is not None and math.isfinite(one.number("bpb")) else None
                   for one in found], unlike_bits, lambda one: Estimate(one.number("bpb")))

    def _compare_trainings(self, pair: Match) -> None:
        runs = dict(zip(map(id, pair.artifacts), self.runs))

        def unlike(key: str) -> Callable[[Artifact, Artifact], Unlike | None]:
            return lambda ours, theirs: unlike_training(
                (runs[id(ours)], runs[id(theirs)]), ours, theirs, key)

        keys = dict.fromkeys(key for one in pair.artifacts if one is not None
                             for key in final_measures(one))
        for key in keys:
            self._add(pair.name, key.replace("_", " "), not key.endswith(UNBOUNDED),
                [one if one is not None and math.isfinite(one.number(key)) else None
                 for one in pair.artifacts], unlike(key),
                lambda one, key=key: final_estimate(one, key))
        self._overlay(pair, unlike)

    def _overlay(self, pair: Match,
                 unlike: Callable[[str], Callable[[Artifact, Artifact], Unlike | None]]) -> None:
        """Adds the charts of trainings that belong together, a line for each run."""
        logs: list[Sequence[Mapping[str, Any]]] = []
        for run, artifact in zip(self.runs, pair.artifacts):
            try:
                logs.append(artifact.log() if artifact is not None and is_training(artifact)
                            else [])
            except UserError as error:
                logs.append([])
                self.left_out.append((f"{run.name}: {artifact.name}", "", str(error)))
        charts = charts_of(_first(pair.artifacts).stage, [row for rows in logs for row in rows])
        for chart, name, key in [(one, *line) for one in charts for line in one.lines]:
            lines = [make_line("", key, rows, style) for rows, style in zip(logs, self.styles)]
            present = [artifact if line.points else None
                       for artifact, line in zip(pair.artifacts, lines)]
            kept = self._alike((pair.name, f"curve of {key}"), present, unlike(key))
            if sum(one is not None for one in kept) > 1:
                own = dataclasses.replace(chart, title=chart.title if len(chart.lines) == 1
                                          else f"{chart.title}, {name}", lines=((name, key),))
                self.overlays.append(Overlay(pair.name, own, tuple(
                    line if one is not None else None for line, one in zip(lines, kept))))

    def _add(self, artifact: str, measure: str, is_share: bool, items: Sequence[Any],
             unlike: Callable[[Any, Any], Unlike | None], estimate: Callable[[Any], Estimate],
             differ: Callable[[Any, Any], Difference] | None = None) -> None:
        """Adds a row for what is comparable of a measure."""
        kept = self._alike((artifact, measure), items, unlike)
        if sum(one is not None for one in kept) < 2:
            return
        first = _first(kept)
        differ = differ or (lambda ours, theirs: unpaired(estimate(ours), estimate(theirs)))
        try:
            self.rows.append(Row(
                artifact, measure, is_share,
                tuple(None if one is None else estimate(one) for one in kept),
                tuple(None if one is None or one is first else differ(first, one)
                      for one in kept)))
        except UserError as error:
            self.left_out.append((artifact, measure, str(error)))

    def _alike(self, name: tuple[str, str], items: Sequence[Any],
               unlike: Callable[[Any, Any], Unlike | None]) -> list[Any]:
        """The items that are comparable with the first one; the others are left out."""
        kept: list[Any] = []
        first = None
        for run, item in zip(self.runs, items):
            reason = unlike(first[1], item) if first and item is not None else None
            if reason is not None:
                self.left_out.append((*name, f"{first[0].name} and {run.name}: {reason}"))
            elif item is not None and first is None:
                first = run, item
            kept.append(None if reason is not None else item)
        return kept


def match(runs: Sequence[Run]) -> list[Match]:
    """Finds the artifacts of several runs that belong together."""
    by_name = [{(artifact.name, artifact.stage): artifact for artifact in run.artifacts}
               for run in runs]
    keys = list(dict.fromkeys(key for own in by_name for key in own))
    shared = {key for key in keys if sum(key in own for own in by_name) > 1}
    rest = [{key: artifact for key, artifact in own.items() if key not in shared}
            for own in by_name]
    stages = {stage for _, stage in keys if len(_owners(rest, stage)) > 1
              and all(len(found) == 1 for found in _owners(rest, stage))}
    matches, done = [], set()
    for key in keys:
        if key in shared or key[1] not in stages:
            matches.append(Match(key[0], tuple(own.get(key) for own in by_name)))
        elif key[1] not in done:
            done.add(key[1])
            each = tuple(next((one for one in own.values() if one.stage == key[1]), None)
                         for own in rest)
            names = dict.fromkeys(one.name for one in each if one is not None)
            matches.append(Match(" / ".join(names), each))
    return matches


def _owners(rest: Sequence[Mapping[tuple[str, str], Artifact]],
            stage: str) -> list[list[Artifact]]:
    """Of each run that has some, its artifacts of a stage."""
    found = [[one for one in own.values() if one.stage == stage] for own in rest]
    return [owned for owned in found if owned]


def final_estimate(artifact: Artifact, key: str) -> Estimate:
    """The last number of a training's held-out measure, with its interval where there is one."""
    return Estimate(*(artifact.number(f"{key}{end}") for end in ("", "_low", "_high")))


def config_differences(pair: Match) -> list[tuple[str, list[str]]]:
    """The fields in which artifacts that belong together differ, with the value of each run."""
    flat = [None if one is None else dict(_flatten("", one.lineage["config"]))
            | {f"inputs.{name}": mark for name, mark in one.lineage["inputs"].items()}
            | {"commit": (one.lineage["commit"] or "unknown")[:12]}
            | {f"version of {name}": text for name, text in one.lineage["versions"].items()}
            for one in pair.artifacts]
    present = [own for own in flat if own is not None]
    fields = dict.fromkeys(field for own in present for field in own)
    return [(field, ["–" if own is None else _text(own.get(field)) for own in flat])
            for field in fields
            if any(own.get(field) != present[0].get(field) for own in present[1:])]


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [leaf for name, part in value.items()
            for leaf in _flatten(f"{prefix}.{name}" if prefix else name, part)]


def _text(value: Any) -> str:
    return "not there" if value is None else '""' if value == "" else str(value)


def _first(items: Sequence[Any]) -> Any:
    return next(item for item in items if item is not None)
