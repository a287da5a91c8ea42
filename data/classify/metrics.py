"""Metrics of a classifier on held-out documents: ranking, decisions, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.classify.classifier import to_probabilities

KEPT_FRACS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
NUM_BINS = 10


def evaluate_classes(outputs: np.ndarray, targets: np.ndarray, labels: Sequence[str],
                     positive: str) -> dict[str, Any]:
    """Measures a classifier with labels.

    Args:
        outputs: [num_documents, num_labels - 1], see `data.classify.classifier.Classifier`.
        targets: [num_documents] index of the true label.
        positive: the label whose probability is the score; "" measures the confidence instead.

    Returns:
        `metrics` (numbers), `labels` (documents, precision, recall and F1 of each), `calibration`
        (see `reliability`) and `thresholds` (see `percentile_thresholds`). With a positive label,
        precision, recall, F1, AUC and calibration are those of that label, and the thresholds keep
        shares of the other documents, a random sample of the pool to be filtered (percentile
        thresholds as in arXiv:2406.11794).
    """
    probabilities = to_probabilities(outputs)
    predicted = probabilities.argmax(axis=1)
    by_label = {label: {"documents": int((targets == i).sum()),
                        **decisions(predicted == i, targets == i)}
                for i, label in enumerate(labels)}
    metrics = {"accuracy": float((predicted == targets).mean()),
               "log_loss": float(-np.log(np.maximum(
                   probabilities[np.arange(len(targets)), targets], 1e-12)).mean())}
    if positive:
        place = list(labels).index(positive)
        scores, hits = probabilities[:, place], targets == place
        pool = scores[~hits]
        metrics |= decisions(scores >= 0.5, hits) | {"auc": area_under_curve(scores, hits)}
    else:
        pool = scores = probabilities.max(axis=1)
        hits = predicted == targets
        metrics |= {f"macro_{name}": float(np.mean([one[name] for one in by_label.values()]))
                    for name in ("precision", "recall", "f1")}
    table = reliability(scores, hits, 0.0, 1.0)
    metrics["calibration_error"] = calibration_error(table)
    return {"metrics": metrics, "labels": by_label, "calibration": table,
            "thresholds": percentile_thresholds(pool)}


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


def area_under_curve(scores: np.ndarray, actual: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counted half; None without both."""
    num_positive, num_negative = int(actual.sum()), int((~actual).sum())
    if not num_positive or not num_negative:
        return None
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]      # equal scores share a rank
    above = ranks[actual].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


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
