"""What an evaluation writes about each item, and the scores that follow from it without a model.

A record of a multiple-choice question holds its literal contexts and the log-probability of every
option; one of a generated answer its literal prompt, the answer, and what was extracted from it.
Every score of `metrics.json` is computed from these alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from eval.measures.calibration import (
    brier_scores,
    expected_calibration_error,
    option_probabilities,
)
from eval.measures.choices import NORMALISATIONS, ChoiceScore
from eval.statistics import Estimate, estimate_share, macro_mean, mean_and_stderr
from eval.tasks.task import Choice
from model.generation.requests import LENGTH, REFUSED

Record = Mapping[str, Any]
MASS = "mass"       # judged by the probability of all right options together
METRICS = dict(zip(NORMALISATIONS, ("acc_raw", "acc_norm", "acc_bytes", "acc_tokens", "acc_pmi")))


def choice_record(question: Choice, score: ChoiceScore, number: int, normalisation: str,
                  in_turns: bool = False) -> dict[str, Any]:
    """The record of a multiple-choice question.

    Args:
        number: its place in the task, which names it where it has no `id`.
        normalisation: the one by which it is judged.
        in_turns: whether its contexts are turns of a conversation.
    """
    right = {name: is_right for name in NORMALISATIONS
             if (is_right := score.is_right(name)) is not None}
    return {"id": question.question.meta.get("id", str(number)),
            "group": question.question.meta.get("group", ""),
            "question": question.question.messages[-1].content, "contexts": score.contexts,
            "is_literal": bool(question.contexts) and not in_turns, "baseline": question.baseline,
            "choices": question.choices, "answers": score.answers, "logps_nats": score.logps_nats,
            "baseline_nats": score.baseline_nats, "num_tokens": score.num_tokens,
            "is_greedy": score.is_greedy, "is_cut": score.is_cut, "right": right,
            "judged_by": normalisation}


def verdict(record: Record) -> float:
    """The score of an item, from 0 to 1: of a multiple-choice question the one that `acc` is of."""
    if "score" in record:
        return record["score"]
    way = record["judged_by"]
    return _right_mass(record) if way == MASS else float(record["right"][way])


def summarise_choices(records: Sequence[Record]) -> dict[str, Any]:
    """Scores of multiple-choice questions.

    Returns:
        `acc` with its standard error (clustered by group, where there are groups) and its 95 %
        interval, the accuracy under every normalisation, `chance`, `brier`, `ece` (of ten bins of
        equal mass), `items` and how many contexts were `cut`; of single options `ppl`, the
        perplexity of a token; of groups `macro`.
    """
    scores = [verdict(record) for record in records]
    grouped = defaultdict(list)
    for record, score in zip(records, scores):
        grouped[record["group"]].append(score)
    groups = [record["group"] for record in records] if len(grouped) > 1 else None
    metrics = share_metrics(estimate_share(scores, groups), grouped)
    for name, metric in METRICS.items():
        values = [record["right"][name] for record in records if name in record["right"]]
        if len(values) == len(records):
            metrics[metric] = mean_and_stderr(values)[0]
    several = [record for record in records if len(record["choices"]) > 1]
    metrics["chance"] = math.fsum(1 / len(record["choices"]) for record in several) / len(records)
    if several:
        logps = [record["logps_nats"] for record in several]
        answers = [record["answers"][0] for record in several]
        metrics["brier"] = mean_and_stderr(brier_scores(logps, answers))[0]
        confidences = [max(option_probabilities(options)) for options in logps]
        right = [float(record["right"]["raw"]) for record in several]
        metrics["ece"] = expected_calibration_error(confidences, right, binning="mass").error
    else:
        nats = -math.fsum(record["logps_nats"][0] for record in records)
        metrics["ppl"] = math.exp(nats / sum(record["num_tokens"][0] for record in records))
    return metrics | {"cut": sum(record["is_cut"] for record in records)}


def share_metrics(estimate: Estimate,
                  grouped: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The numbers of an accuracy, and its mean over groups where there are several."""
    metrics = {"acc": estimate.value, "stderr": estimate.stderr, "low": estimate.low,
               "high": estimate.high, "items": estimate.items}
    if len(grouped) > 1:
        metrics |= {"macro": macro_mean(grouped).value, "groups": len(grouped)}
    return metrics


def _right_mass(record: Record) -> float:
    """Probability of all right options together (TruthfulQA's MC2, arXiv 2109.07958)."""
    return float(option_probabilities(record["logps_nats"])[list(record["answers"])].sum())


def summarise_answers(records: Sequence[Record]) -> dict[str, Any]:
    """Scores of generated answers: `acc` with error and interval, the means of further measures,
    `by_family`, and how many were `unfinished` at the limit, `refused` as too long or `unparsed`,
    without anything to compare, which count as wrong."""
    by_family = defaultdict(list)
    for record in records:
        by_family[record["family"]].append(record["score"])
    metrics = share_metrics(estimate_share([record["score"] for record in records]), {})
    measured = defaultdict(list)
    for record in records:
        for name, value in record["measures"].items():
            measured[name].append(value)
    for name, values in measured.items():
        metrics[name] = mean_and_stderr(values, name)[0]
    return metrics | count_unfinished(records) | {
        "unparsed": sum(record["extracted"] is None for record in records),
        "by_family": {name: mean_and_stderr(scores)[0]
                      for name, scores in sorted(by_family.items())}}


def count_unfinished(records: Sequence[Record]) -> dict[str, int]:
    """How many answers ran into the limit, and how many prompts were refused as too long."""
    return {"unfinished": sum(record["finish"] == LENGTH for record in records),
            "refused": sum(record["finish"] == REFUSED for record in records)}
