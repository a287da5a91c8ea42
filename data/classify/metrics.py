"""Metrics of a classifier on held-out documents: ranking, decisions, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.classify.classifier import scores_of, to_probabilities
from data.classify.roc import area_interval, area_under_curve

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MIN_PRECISIONS = (0.9, 0.95)
KEPT_FRACS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
NUM_BINS = 10


def evaluate_classes(outputs: np.ndarray, targets: np.ndarray, labels: Sequence[str],
                     positive: str, negative: str = "") -> dict[str, Any]:
    """Measures a classifier with labels.

    Args:
        outputs: [num_documents, num_labels - 1], see `data.classify.classifier.Classifier`.
        targets: [num_documents] index of the true label.
        positive, negative: the label that the score is of, see there; without either the
            confidence is measured.

    Returns:
        `metrics` (numbers), `labels` (documents, precision, recall and F1 of each), `confusion`
        (documents by true and by predicted label), `calibration` (see `reliability`) and
        `thresholds` (see `percentile_thresholds`). With a scored label, precision, recall, F1, AUC,
        Brier score and calibration are those of the decision whether a document is positive, the
        thresholds keep shares of the other documents, a random sample of the pool to be filtered
        (percentile thresholds as in arXiv:2406.11794), `decisions` has the measures at several
        thresholds (see `decision_table`), and `labels` the share of each at or above 0.5.
    """
    probabilities = to_probabilities(outputs)
    predicted = probabilities.argmax(axis=1)
    by_label = {label: {"documents": int((targets == i).sum()),
                        **decisions(predicted == i, targets == i)}
                for i, label in enumerate(labels)}
    metrics = {"accuracy": float((predicted == targets).mean()),
               "log_loss": float(-np.log(np.maximum(
                   probabilities[np.arange(len(targets)), targets], 1e-12)).mean())}
    scores = scores_of(probabilities, labels, positive, negative)
    if positive or negative:
        place = list(labels).index(positive or negative)
        hits = (targets == place) == bool(positive)
        for i, label in enumerate(labels):
            by_label[label]["flagged_frac"] = _mean(scores[targets == i] >= 0.5)
        metrics |= _measure_scores(scores, hits)
        pool, at = scores[~hits], {"decisions": decision_table(scores, hits)}
    else:
        hits, pool, at = predicted == targets, scores, {}
        metrics |= {f"macro_{name}": float(np.mean([one[name] for one in by_label.values()]))
                    for name in ("precision", "recall", "f1")}
    table = reliability(scores, hits, 0.0, 1.0)
    metrics |= {"calibration_error": calibration_error(table), "calibration_bins": NUM_BINS}
    return {"metrics": metrics, "labels": by_label,
            "confusion": confusion(targets, predicted, labels), "calibration": table,
            "thresholds": percentile_thresholds(pool), **at}


def _measure_scores(scores: np.ndarray, hits: np.ndarray) -> dict[str, float | None]:
    """Decisions at 0.5, the area under the curve with its 95 % interval, and the Brier score."""
    low, high = area_interval(scores, hits) or (None, None)
    return {**decisions(scores >= 0.5, hits), "auc": area_under_curve(scores, hits),
            "auc_low": low, "auc_high": high, "brier": float(((scores - hits) ** 2).mean())}


def evaluate_regression(values: np.ndarray, targets: np.ndarray,
                        min_positive: float) -> dict[str, Any]:
    """Measures a regression, and the decision whether a score is at least `min_positive`.

    Args:
        values, targets: [num_documents].

    Returns:
        As `evaluate_classes`; the thresholds keep shares of all documents.
    """
    errors, hits = values - targets, targets >= min_positive
    low, high = float(targets.min()), float(targets.max())
    table = reliability(values, targets, low, high)
    metrics = {"rmse": float(np.sqrt((errors ** 2).mean())), "mae": float(np.abs(errors).mean()),
               "r2": float(1 - (errors ** 2).mean() / max(targets.var(), 1e-12)),
               **decisions(values >= min_positive, hits), "auc": area_under_curve(values, hits),
               "accuracy": float(((values >= min_positive) == hits).mean()),
               "calibration_error": calibration_error(table)}
    return {"metrics": metrics, "labels": {}, "calibration": table,
            "thresholds": percentile_thresholds(values)}


def decisions(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of binary decisions; 0 where a denominator is 0."""
    hits = float((predicted & actual).sum())
    precision, recall = hits / max(predicted.sum(), 1), hits / max(actual.sum(), 1)
    return {"precision": float(precision), "recall": float(recall),
            "f1": float(2 * precision * recall / max(precision + recall, 1e-12))}


def decision_table(scores: np.ndarray, actual: np.ndarray) -> list[dict[str, float | None]]:
    """Measures of "the score is at least the threshold", for each of `THRESHOLDS`, then for the
    lowest threshold whose precision is at least each of `MIN_PRECISIONS`.

    Returns:
        For each: `min_precision` (None in the first rows), `threshold` (None where none reaches
        that precision), and, with a threshold, precision, recall, f1, `flagged_frac` (share of the
        documents at or above it) and `false_positive_frac` (that share of the negatives).
    """
    rows = [{"min_precision": None, **_decide_at(threshold, scores, actual)}
            for threshold in THRESHOLDS]
    for least in MIN_PRECISIONS:
        threshold = _lowest_threshold(scores, actual, least)
        rows.append({"min_precision": least, **({"threshold": None} if threshold is None
                                                else _decide_at(threshold, scores, actual))})
    return rows


def _decide_at(threshold: float, scores: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    flagged = scores >= threshold
    return {"threshold": threshold, **decisions(flagged, actual), "flagged_frac": _mean(flagged),
            "false_positive_frac": _mean(flagged[~actual])}


def _lowest_threshold(scores: np.ndarray, actual: np.ndarray, least: float) -> float | None:
    """The lowest score from which on a share of `least` of the documents is positive, or None."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    precisions = np.cumsum(actual[order]) / np.arange(1, len(order) + 1)
    last = np.append(descending[1:] != descending[:-1], True)       # of documents of equal score
    reached = np.flatnonzero(last & (precisions >= least))
    return float(descending[reached[-1]]) if len(reached) else None


def _mean(values: np.ndarray) -> float:
    """Their share or mean; 0 of none."""
    return float(values.mean()) if len(values) else 0.0


def confusion(targets: np.ndarray, predicted: np.ndarray,
              labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Documents by true label, then by predicted label."""
    return {label: {other: int(((targets == i) & (predicted == j)).sum())
                    for j, other in enumerate(labels)} for i, label in enumerate(labels)}


def reliability(scores: np.ndarray, observed: np.ndarray, low: float,
                high: float) -> list[Mapping[str, float]]:
    """Compares scores with observations, in `NUM_BINS` bins of equal width.

    Args:
        scores: [num_documents]; one outside [low, high] is counted in the nearest bin.
        observed: [num_documents] truth values, or true scores.

    Returns:
        For each bin: `documents`, their mean score (`predicted`) and mean truth (`observed`); both
        are the middle of the bin when it is empty.
    """
    width = max(high - low, 1e-12) / NUM_BINS
    places = np.clip(((scores - low) / width).astype(np.int64), 0, NUM_BINS - 1)
    rows = []
    for place in range(NUM_BINS):
        here, middle = places == place, low + (place + 0.5) * width
        num_documents = int(here.sum())
        rows.append({"predicted": float(scores[here].mean()) if num_documents else middle,
                     "observed": float(observed[here].mean()) if num_documents else middle,
                     "documents": num_documents})
    return rows


def calibration_error(table: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error (arXiv:1706.04599, equation 3) of a reliability table."""
    total = sum(row["documents"] for row in table)
    return sum(row["documents"] * abs(row["predicted"] - row["observed"]) for row in table) / total


def percentile_thresholds(scores: np.ndarray) -> dict[str, float]:
    """For each of `KEPT_FRACS`, the minimum score that keeps this share of the documents."""
    if not len(scores):
        return {}
    descending = np.sort(scores)[::-1]
    return {f"{frac:g}": float(descending[max(int(np.ceil(frac * len(scores))) - 1, 0)])
            for frac in KEPT_FRACS}
