"""The evaluations of a run: their models, the records of their items, estimates and settings."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from core.artifacts import read_jsonl
from core.errors import UserError
from eval.records import verdict
from eval.statistics import Z_95, estimate_share, mean_and_stderr, paired_difference
from serve.report.runs import Artifact, Run
from serve.report.settings import Unlike, find_unlike, unlike_heldout, value_of

OPEN = "open"       # the sampled answers of an evaluation, beside its tasks
ASKED = ("eval.seed", "eval.prompts", "eval.num_shots", "eval.examples", "eval.examples_seed")
ANSWERED = ("eval.max_new_tokens",)
SAMPLED = ("eval.open_tasks", "eval.seed", "eval.max_new_tokens", "eval.temperature")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; nan if nothing was measured."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference of two estimates, and whether its items were paired."""

    value: float
    low: float
    high: float
    kind: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of one model.

    Attributes:
        model: the name to show.
        style: CSS classes of its colour and its mark.
        records: of each task, and of `OPEN`; None where there is no file.
    """

    run: Run
    artifact: Artifact
    model: str
    style: str
    records: Mapping[str, list[Mapping[str, Any]] | None]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The numbers that `eval.run` wrote."""
        return self.artifact.metrics

    def number(self, name: str) -> float:
        """One of its numbers; nan where it was not measured."""
        return self.artifact.number(name)

    def estimate(self, task: str) -> Estimate:
        """The accuracy of a task, or the mean score of the sampled answers."""
        if task != OPEN:
            return Estimate(*(self.number(f"{task}_{part}") for part in ("acc", "low", "high")))
        mean, stderr = self.number("open_score"), self.number("open_stderr")
        return Estimate(mean, max(mean - Z_95 * stderr, 0.0) if stderr == stderr else math.nan,
                        min(mean + Z_95 * stderr, 1.0) if stderr == stderr else math.nan)

    def families(self, task: str) -> dict[str, Estimate]:
        """The accuracy of each family of a task's questions, where they have one."""
        scores = defaultdict(list)
        for record in self.records.get(task) or ():
            if record.get("family"):
                scores[record["family"]].append(verdict(record))
        return {family: share(values) for family, values in sorted(scores.items())}

    def answers(self, task: str) -> list[Mapping[str, Any]]:
        """The records of a task that hold an answer in words."""
        return [record for record in self.records.get(task) or () if "completion" in record]


def share(scores: Sequence[float]) -> Estimate:
    """A mean of scores from 0 to 1 with Wilson's interval."""
    found = estimate_share(scores)
    return Estimate(found.value, found.low, found.high)


def is_evaluation(artifact: Artifact) -> bool:
    """Whether an artifact is one that `eval.run` wrote."""
    return isinstance(artifact.metrics.get("tasks"), list)


def read_evaluations(run: Run) -> list[Evaluation]:
    """The evaluations of a run; damaged ones are left out, and the run records why."""
    found = []
    artifacts = [artifact for artifact in run.artifacts if is_evaluation(artifact)]
    names = [_model_name(run, artifact) for artifact in artifacts]
    for artifact, name in zip(artifacts, names):
        if names.count(name) > 1:       # one model, evaluated in several ways
            name = f"{name} ({artifact.name})"
        try:
            records = {task: _read_records(artifact, task)
                       for task in (*artifact.metrics["tasks"], OPEN)}
        except UserError as error:
            run.leave_out(artifact.name, str(error).replace(str(artifact.folder), artifact.name))
            continue
        found.append(Evaluation(run, artifact, name, series(len(found)), records))
    return found


def series(number: int) -> str:
    """CSS classes of the colour and mark of one of several models or runs."""
    return f"s{number % 8} m{number % 4} d{number // 8 % 3}"


def all_tasks(evaluations: Sequence[Evaluation]) -> list[str]:
    """The tasks of any of them, in order."""
    return list(dict.fromkeys(task for one in evaluations for task in one.metrics["tasks"]))


def has(evaluation: Evaluation, task: str) -> bool:
    """Whether an evaluation measured a task, or `OPEN`."""
    return math.isfinite(evaluation.estimate(task).value)


def unlike_task(task: str, ours: Evaluation, theirs: Evaluation) -> Unlike | None:
    """What makes two evaluations of a task incomparable; None where nothing does."""
    artifacts = ours.artifact, theirs.artifact
    if task == OPEN:
        fields: tuple[str, ...] = SAMPLED
    else:
        is_choice = math.isfinite(ours.number(f"{task}_chance"))
        fields = (f"eval.tasks.{task}", *ASKED, *(() if is_choice else ANSWERED))
    found = find_unlike(*artifacts, fields)
    if found is not None:
        return found
    items = [_items(one.records.get(task)) for one in (ours, theirs)]
    if None in items:
        return (find_unlike(*artifacts, (f"inputs.tasks.{task}", "inputs.corpus", "eval.inputs"))
                or _unlike_counts(task, ours, theirs))
    if items[0] != items[1]:
        shared = len(set(items[0]) & set(items[1]))
        return Unlike(f"{task}: the questions", f"{len(items[0]):,}",
                      f"{len(items[1]):,}, of which {shared:,} are the same")
    return None


def unlike_bits(ours: Evaluation, theirs: Evaluation) -> Unlike | None:
    """What makes bits per byte incomparable; None where nothing does."""
    artifacts = ours.artifact, theirs.artifact
    return (unlike_heldout((ours.run, theirs.run), *artifacts)
            or find_unlike(*artifacts, ("eval.row_length",)))


def difference(task: str, ours: Evaluation, theirs: Evaluation) -> Difference:
    """How much theirs is above ours: paired where both have their items, else unpaired.

    Raises:
        UserError: a score is not from 0 to 1.
    """
    records = [one.records.get(task) for one in (theirs, ours)]
    if None in records or not records[0]:
        return unpaired(ours.estimate(task), theirs.estimate(task))
    ordered = [sorted(rows, key=_item) for rows in records]
    groups = [row.get("group", "") for row in ordered[0]]
    found = paired_difference(*([verdict(row) for row in rows] for rows in ordered),
                              groups if len(set(groups)) > 1 else None)
    return Difference(found.value, _or_nan(found.low), _or_nan(found.high), "paired")


def unpaired(ours: Estimate, theirs: Estimate) -> Difference:
    """The difference of two independent shares, from their intervals (Newcombe 1998, method 10).

    Without intervals it has none.
    """
    value = theirs.value - ours.value
    low = value - math.hypot(theirs.value - theirs.low, ours.high - ours.value)
    high = value + math.hypot(theirs.high - theirs.value, ours.value - ours.low)
    return Difference(value, low, high, "unpaired" if math.isfinite(high - low) else "")


def mean_length(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean tokens and mean characters of answers."""
    return (mean_and_stderr([row.get("num_tokens", 0) for row in rows])[0],
            mean_and_stderr([len(row["completion"]) for row in rows])[0])


def _model_name(run: Run, artifact: Artifact) -> str:
    owner = run.owner(value_of(artifact, "inputs.model"))
    named = str(artifact.config.get("model") or "").rstrip("/").rpartition("/")[2]
    return owner.name if owner else named or artifact.name


def _read_records(artifact: Artifact, task: str) -> list[Mapping[str, Any]] | None:
    path = artifact.folder / f"{task}.jsonl"
    if not path.exists():
        return None
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or "question" not in row or not (
                "score" in row or "judged_by" in row):
            raise UserError(f"{path}, record {number}", "is no record of an item",
                            "build its artifact anew")
    return rows


def _items(records: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, ...]] | None:
    return None if records is None else sorted(map(_item, records))


def _item(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What identifies a question: its id, its text, and what is right."""
    choices = record.get("choices")
    right = record.get("reference", "") if choices is None else [choices, record["answers"]]
    return (str(record.get("task", "")), str(record.get("id", "")), str(record["question"]),
            str(right))


def _unlike_counts(task: str, ours: Evaluation, theirs: Evaluation) -> Unlike | None:
    counts = [one.metrics.get(f"{task}_items") for one in (ours, theirs)]
    return None if counts[0] == counts[1] else Unlike(f"{task}_items", *counts)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
