"""Mixture weights learned from small runs: DoReMi's update, and RegMix's regression.

Pure functions; the caller does the training runs. DoReMi needs the excess losses of one proxy run
at each step, RegMix the final losses of many proxy runs with different mixtures.
"""

from __future__ import annotations

import dataclasses

import numpy as np

RIDGES = np.logspace(-6, 2, 33)
NUM_STRENGTHS = 15
MAX_ROUNDS = 1000       # of sampling, before the bounds are reported as too strict


def doremi_update(log_weights: np.ndarray, excess_losses: np.ndarray, *, step_size: float = 1.0,
                  smoothing: float = 1e-3) -> np.ndarray:
    """One step of the adversary: raises the weight of domains with a large excess loss.

    Source: arXiv:2305.10429, algorithm 1; doremi/trainer.py in sangmichaelxie/doremi.

    Args:
        log_weights: [num_domains], of the previous step; need not be normalised. An array of NumPy
            or of JAX, as then is the result.
        excess_losses: [num_domains] mean over a domain's tokens of max(proxy loss - reference
            loss, 0), in nats. For a domain without tokens in the batch, the previous value.
        smoothing: share of the uniform mixture in the result, so that all weights are positive.

    Returns:
        [num_domains] normalised log-weights.
    """
    xp = log_weights.__array_namespace__()
    logits = log_weights + step_size * xp.maximum(excess_losses, 0.0)
    weights = xp.exp(logits - logits.max())
    weights = weights / weights.sum()
    return xp.log((1 - smoothing) * weights + smoothing / len(weights))


def doremi_average(log_weights: np.ndarray) -> np.ndarray:
    """The mixture to train on: weights averaged over all steps, [steps, domains] -> [domains]."""
    return np.exp(log_weights).mean(axis=0)


def sample_mixtures(prior: np.ndarray, num_mixtures: int, *, seed: int,
                    strengths: tuple[float, float] = (0.1, 5.0), temperature: float = 0.5,
                    max_ratio: float = 15.0, min_weight: float = 2e-4) -> np.ndarray:
    """Samples mixtures around a prior, for proxy runs.

    Each is drawn from a Dirichlet distribution whose strength is one of `NUM_STRENGTHS` spaced
    evenly in the logarithm: a low one gives sparse mixtures, a high one mixtures near the prior.
    Source: arXiv:2407.01492, section 3.1; mixture_config/synthesize_mixture.py in sail-sg/regmix.

    Args:
        prior: [num_domains] natural shares, of any scale.
        temperature: exponent that flattens the prior.
        max_ratio: maximum ratio of a weight to its natural share, in place of a cap on epochs.
        min_weight: weights are multiples of it, so that no positive weight is negligible.

    Returns:
        [num_mixtures, num_domains], rows that sum to 1.

    Raises:
        ValueError: almost no mixture satisfies the bounds.
    """
    key = np.random.default_rng(seed)
    prior = prior / prior.sum()
    center = prior ** temperature / (prior ** temperature).sum()
    scale = np.logspace(*np.log10(strengths), NUM_STRENGTHS)
    batches, num_sampled = [], 0
    for _ in range(MAX_ROUNDS):
        shapes = center * key.choice(scale, num_mixtures)[:, None]
        gammas = np.maximum(key.standard_gamma(shapes), 1e-300)
        drawn = gammas / gammas.sum(axis=1, keepdims=True)
        drawn = drawn[(drawn <= prior * max_ratio).all(axis=1)]
        units = np.round(np.where(drawn < min_weight, 0.0, drawn) / min_weight)
        units = units[units.sum(axis=1) > 0]
        batches.append(units / units.sum(axis=1, keepdims=True))
        num_sampled += len(units)
        if num_sampled >= num_mixtures:
            return np.concatenate(batches)[:num_mixtures]
    raise ValueError(f"max_ratio={max_ratio} allows {num_sampled} mixtures of {num_mixtures}: "
                     "raise it, or the temperature towards 1")


@dataclasses.dataclass(frozen=True)
class LossModel:
    """Predicts a proxy run's loss from its mixture.

    The logarithm of the loss is linear in the weights and in their square roots, which models
    diminishing returns.

    Attributes:
        coefficients: [2 * num_domains].
        intercept: of the log-loss.
        ridge: strength of the least leave-one-out error.
        relative_error: that error, the root mean square over the runs of the log-loss. As the ridge
            is chosen by it, it is slightly too small.
        rank_correlation: Spearman's, between the losses of runs and their leave-one-out
            predictions.
    """

    coefficients: np.ndarray
    intercept: float
    ridge: float
    relative_error: float
    rank_correlation: float

    def predict(self, mixtures: np.ndarray) -> np.ndarray:
        """Losses of mixtures: [n, num_domains] -> [n]."""
        return np.exp(_features(mixtures) @ self.coefficients + self.intercept)


def fit_losses(mixtures: np.ndarray, losses: np.ndarray) -> LossModel:
    """Ridge regression of log-losses; its strength minimises the leave-one-out error.

    RegMix (arXiv:2407.01492, section 3.2) fits a linear model and gradient-boosted trees.

    Args:
        mixtures: [num_runs, num_domains], rows that sum to 1.
        losses: [num_runs] on the target of the mixture, positive.
    """
    features, logs = _features(mixtures), np.log(losses)
    center, mean = features.mean(axis=0), logs.mean()
    left, spectrum, right = np.linalg.svd(features - center, full_matrices=False)
    best = None
    for ridge in RIDGES:
        shrink = spectrum**2 / (spectrum**2 + ridge)
        fitted = left @ (shrink * (left.T @ (logs - mean))) + mean
        influence = (left**2 * shrink).sum(axis=1) + 1 / len(logs)
        residuals = (logs - fitted) / np.maximum(1 - influence, 1e-9)
        if best is None or (residuals**2).mean() < best[0]:
            best = (residuals**2).mean(), ridge, logs - residuals
    error, ridge, predicted = best
    inverse = spectrum / (spectrum**2 + ridge)
    coefficients = right.T @ (inverse * (left.T @ (logs - mean)))
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (logs, predicted)]
    return LossModel(coefficients, float(mean - center @ coefficients), float(ridge),
                     float(np.sqrt(error)), float(np.corrcoef(*ranks)[0, 1]))


def best_mixture(model: LossModel, prior: np.ndarray, *, seed: int, num_simulated: int = 100_000,
                 num_best: int = 100, max_ratio: float = 15.0) -> np.ndarray:
    """The mean of the simulated mixtures with the lowest predicted losses: [num_domains].

    The mean reduces the effect of prediction errors on a single mixture.
    Source: arXiv:2407.01492, section 3.3.

    Args:
        prior, max_ratio: as for `sample_mixtures`.
    """
    simulated = sample_mixtures(prior, num_simulated, seed=seed, max_ratio=max_ratio)
    order = np.argsort(model.predict(simulated), kind="stable")
    return simulated[order[:num_best]].mean(axis=0)


def _features(mixtures: np.ndarray) -> np.ndarray:
    return np.concatenate([mixtures, np.sqrt(mixtures)], axis=1)
