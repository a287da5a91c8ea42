"""A finished run's artifacts, and the numbers of its report."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.artifacts import read_json, read_jsonl, read_lineage
from data.corpus import Corpus
from eval.statistics import mean_and_stderr, wilson_interval

ARTIFACTS = ("corpus", "tokenizer", "tokens", "base", "eval_base", "sft", "eval_sft", "pairs",
             "reward", "dpo", "eval_dpo", "rl", "eval_rl")
MODELS = ("base", "sft", "dpo", "rl")
NUM_QUESTIONS = {"verifiable": 3, "open": 2}  # shown with every model's answer


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished artifact: folder, lineage and metrics."""

    name: str
    folder: Path
    lineage: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; nan if nothing was measured."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """One question and every model's row for it: prompt, completion, score."""

    source: str
    question: str
    reference: str
    rows: Mapping[str, Mapping[str, Any]]


class Run:
    """All artifacts of one run.

    Args:
        folders: for each of `ARTIFACTS` its folder.

    Raises:
        UserError: a file of an artifact is missing or damaged.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self.artifacts = {name: Artifact(name, folders[name],
                                         read_lineage(folders[name]),
                                         read_json(folders[name] / "metrics.json"))
                          for name in ARTIFACTS}
        self.corpus = Corpus(folders["corpus"])
        self.shape = read_json(folders["base"] / "model.json")["config"]
        #: Metrics of each model's evaluation; nan stands for what was not measured.
        self.evals = {model: _with_nans(self.artifacts[f"eval_{model}"].metrics)
                      for model in MODELS}
        self._rows = {(model, source): read_jsonl(folders[f"eval_{model}"] / f"{source}.jsonl")
                      for model in MODELS for source in NUM_QUESTIONS}

    def secs(self) -> float:
        """Total seconds of all stages."""
        return math.fsum(artifact.metrics["secs"] for artifact in self.artifacts.values())

    def curve(self, name: str, metric: str) -> list[tuple[float, float]]:
        """A training's metric over its steps, without values that are not finite."""
        rows = read_jsonl(self.artifacts[name].folder / "metrics.jsonl")
        return [(row["step"], row[metric]) for row in rows
                if row.get(metric) is not None and math.isfinite(row[metric])]

    def tokens_per_sec(self, name: str) -> float:
        """Speed of a training at its last logged step; nan if none was logged."""
        rows = read_jsonl(self.artifacts[name].folder / "speed.jsonl")
        return rows[-1]["tokens_per_sec"] if rows else math.nan

    def families(self) -> dict[str, dict[str, Estimate]]:
        """Accuracy of every family of verifiable questions, by model."""
        estimates: dict[str, dict[str, Estimate]] = defaultdict(dict)
        for model in MODELS:
            scores = defaultdict(list)
            for row in self._rows[model, "verifiable"]:
                scores[row["family"]].append(row["score"])
            for family, values in scores.items():
                estimates[family][model] = proportion(mean_and_stderr(values)[0], len(values))
        return dict(sorted(estimates.items()))

    def answers(self) -> list[Answers]:
        """Questions that every model answered: the first by SHA-256 of their text."""
        picked = []
        for source, number in NUM_QUESTIONS.items():
            by_question = [{row["question"]: row for row in self._rows[model, source]
                            if source == "verifiable" or row["task"] != "verifiable"}
                           for model in MODELS]
            shared = set.intersection(*map(set, by_question))
            for question in sorted(shared, key=_sha256)[:number]:
                rows = {model: rows[question] for model, rows in zip(MODELS, by_question)}
                picked.append(Answers(source, question, rows["base"]["reference"], rows))
        return picked

    def edges(self) -> list[tuple[str, str]]:
        """(parent, child) for every input that is one of the artifacts shown."""
        owner = {artifact.lineage["build"]: artifact.name
                 for artifact in self.artifacts.values()}
        return [(owner[mark], artifact.name) for artifact in self.artifacts.values()
                for mark in artifact.lineage["inputs"].values() if mark in owner]

    def foreign_parents(self) -> list[tuple[str, str]]:
        """(artifact, field) for every parent artifact that is not the one shown here."""
        marks = {artifact.lineage["build"] for artifact in self.artifacts.values()}
        return [(artifact.name, field) for artifact in self.artifacts.values()
                if artifact.name != "corpus"  # its inputs are files, not artifacts
                for field, mark in artifact.lineage["inputs"].items() if mark not in marks]


def _with_nans(value: Any) -> Any:
    """What was read from JSON, with NaN for null: a number that was not finite."""
    if isinstance(value, dict):
        return {name: _with_nans(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_nans(part) for part in value]
    return math.nan if value is None else value


def proportion(mean: float, num_items: int) -> Estimate:
    """A share of right answers with its Wilson interval; nan if nothing was measured."""
    if not num_items or not math.isfinite(mean):
        return Estimate(math.nan, math.nan, math.nan)
    return Estimate(mean, *wilson_interval(mean, num_items))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
