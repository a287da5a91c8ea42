"""How well scores order answers: accuracy with intervals, calibration, and what length explains."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.measures.calibration import NUM_BINS, expected_calibration_error
from eval.statistics import mean_interval


class RankedPrompt(NamedTuple):
    """Answers to one prompt, with scores and what orders them.

    Attributes:
        source: of the ranking.
        scores: of each answer.
        values: larger for a better answer; equal ones are tied.
        lengths: tokens of each answer.
    """

    source: str
    scores: Sequence[float]
    values: Sequence[float]
    lengths: Sequence[int]


def pairs_of(values: Sequence[float]) -> list[tuple[int, int]]:
    """Numbers (better, worse) of every two answers that are not tied, by what orders them."""
    return [(i, j) for i, j in itertools.permutations(range(len(values)), 2)
            if values[i] > values[j]]


def measure_rankings(prompts: Sequence[RankedPrompt], *, scale: float = 1.0,
                     prefers_longer: bool = True) -> dict[str, Any]:
    """Measures scores on rankings, all of which have a pair.

    An accuracy is the mean over prompts of the share of right pairs, so that its 95 % interval is
    one of independent values; equal scores count as wrong, and so do equal lengths.

    Args:
        scale: makes of a difference of scores the log odds of being better.
        prefers_longer: which of the two answers the baseline of length takes, as training data
            have it.

    Returns:
        `accuracy`, `accuracy_low` and `_high`; the same of `longer_accuracy` and
        `shorter_accuracy`, which prefer by length alone; `over_length` and its interval: the
        accuracy less that of the baseline, prompt by prompt; `accuracy_by_margin`: of pairs by
        quartile of the difference of their scores, the smallest first; `calibration_error`, see
        the function; `length_correlation` of scores and lengths (None where one is
        constant); `accuracy_by_source`, with the number of prompts.
    """
    right = {name: np.array([_share(prompt, key, sign) for prompt in prompts])
             for name, key, sign in (("accuracy", "scores", 1), ("longer_accuracy", "lengths", 1),
                                     ("shorter_accuracy", "lengths", -1))}
    baseline = right["longer_accuracy" if prefers_longer else "shorter_accuracy"]
    found: dict[str, Any] = {"heldout_prompts": len(prompts)}
    for name, values in {**right, "over_length": right["accuracy"] - baseline}.items():
        found[name], (found[f"{name}_low"], found[f"{name}_high"]) = mean_interval(values)
    gaps = np.array([prompt.scores[i] - prompt.scores[j] for prompt in prompts
                     for i, j in pairs_of(prompt.values)])
    scores, lengths = (np.array([value for prompt in prompts for value in getattr(prompt, name)])
                       for name in ("scores", "lengths"))
    varies = scores.std() > 0 and lengths.std() > 0
    return found | {
        "heldout_pairs": len(gaps), "accuracy_by_margin": accuracy_by_margin(gaps),
        "calibration_error": calibration_error(scale * gaps),
        "length_correlation": float(np.corrcoef(scores, lengths)[0, 1]) if varies else None,
        "accuracy_by_source": _by_source(prompts, right["accuracy"])}


def accuracy_by_margin(gaps: np.ndarray) -> list[float | None]:
    """Share of positive gaps in each quartile of their sizes, the smallest first; None of none."""
    parts = np.array_split(gaps[np.argsort(np.abs(gaps), kind="stable")], 4)
    return [float(np.mean(part > 0)) if len(part) else None for part in parts]


def calibration_error(log_odds: np.ndarray) -> float:
    """Expected calibration error of sigmoid(|log odds|) as the probability of being right.

    Its bins are `NUM_BINS` of equal width from 1/2 to 1; see `expected_calibration_error`.

    Args:
        log_odds: of the better answer being the better one.
    """
    confidence = 1 / (1 + np.exp(-np.minimum(np.abs(log_odds), 700.0)))
    return expected_calibration_error(confidence, log_odds > 0, binning="width",
                                      num_bins=2 * NUM_BINS).error


def _share(prompt: RankedPrompt, name: str, sign: int) -> float:
    """Share of a prompt's pairs that a number of its answers orders rightly."""
    numbers = getattr(prompt, name)
    return float(np.mean([sign * (numbers[i] - numbers[j]) > 0
                          for i, j in pairs_of(prompt.values)]))


def _by_source(prompts: Sequence[RankedPrompt],
               accuracies: np.ndarray) -> dict[str, dict[str, float]]:
    found = defaultdict(list)
    for prompt, accuracy in zip(prompts, accuracies):
        found[prompt.source].append(accuracy)
    return {source: {"accuracy": float(np.mean(values)), "prompts": len(values)}
            for source, values in sorted(found.items())}
