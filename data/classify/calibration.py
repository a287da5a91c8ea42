"""Calibration of a classifier: a score estimates the probability of the positive label."""

from __future__ import annotations

import dataclasses

import numpy as np

from data.classify.classifier import Classifier, to_probabilities

MAX_STEPS = 100
TOLERANCE_NATS = 1e-10


def calibrate(classifier: Classifier, outputs: np.ndarray, targets: np.ndarray) -> Classifier:
    """Multiplies the weights by a scale and shifts the biases, so that scores are calibrated.

    Platt scaling; for many labels temperature scaling with a bias per label (arXiv:1706.04599,
    section 4.2; arXiv:1901.06852). A regression is scaled by least squares.

    Args:
        outputs: [num_documents, num_outputs] of documents outside the training set.
        targets: [num_documents], see `data.classify.labelled.targets_of`.
    """
    if classifier.kind == "regression":
        values = outputs[:, 0]
        spread = values.var()
        scale = np.cov(values, targets, bias=True)[0, 1] / spread if spread else 0.0
        shift = np.array([targets.mean() - scale * values.mean()])
    else:
        scale, shift = _fit(outputs, _smooth(targets, len(classifier.labels)))
    return dataclasses.replace(
        classifier, weights=(classifier.weights * scale).astype(np.float32),
        bias=(classifier.bias * scale + shift).astype(np.float32))


def _smooth(targets: np.ndarray, num_labels: int) -> np.ndarray:
    """Platt's targets, (count + 1) / (count + 2) for the true label: they keep the scale finite
    when the classes are separable. [n] -> [n, num_labels]."""
    counts = np.bincount(targets, minlength=num_labels)[targets][:, None]
    truth = np.arange(num_labels) == targets[:, None]
    return np.where(truth, counts + 1, 1 / (num_labels - 1)) / (counts + 2)


def _fit(outputs: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Minimises the cross-entropy of scale * outputs + shift by Newton's method, halving steps.

    The problem is convex and has one more unknown than outputs.
    """
    num_outputs = outputs.shape[1]
    shifts = np.broadcast_to(np.eye(num_outputs), (len(outputs), num_outputs, num_outputs))
    slopes = np.concatenate([outputs[:, :, None], shifts], axis=2)  # of logits in the unknowns
    free = np.zeros(1 + num_outputs)

    def loss(free: np.ndarray) -> float:
        probabilities = to_probabilities(slopes @ free)
        return float(-(truth * np.log(np.maximum(probabilities, 1e-300))).sum(axis=1).mean())

    reached = loss(free)
    for _ in range(MAX_STEPS):
        probabilities = to_probabilities(slopes @ free)[:, 1:]
        gradient = np.einsum("nkd,nk->d", slopes, probabilities - truth[:, 1:])
        gradient /= len(outputs)
        weighted = slopes * probabilities[:, :, None]
        mean = weighted.sum(axis=1)
        hessian = (np.einsum("nkd,nke->de", slopes, weighted) - mean.T @ mean) / len(outputs)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        while (reachable := loss(free - step)) > reached and np.abs(step).max() > 1e-12:
            step /= 2
        if reached - reachable < TOLERANCE_NATS:
            break
        free, reached = free - step, reachable
    return float(free[0]), free[1:]
