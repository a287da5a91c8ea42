"""What other programs compute from votes, written out vote by vote from their definitions."""

import math

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit


def fastchat_ratings(first, second, scores, num_models, styles=None, reg=0.0):
    """Of `lm-sys/FastChat` at 0e6d3e4, rating_systems.py: 1000 + 400 r, and coefficients.

    The least sum of losses in base 10, by L-BFGS from zero, with reg / 2 times all squares.
    """
    styles = np.zeros((len(first), 0)) if styles is None else styles

    def loss(values):
        ratings, coefficients = values[:num_models], values[num_models:]
        p = expit(math.log(10) * (ratings[first] - ratings[second]) + styles @ coefficients)
        error = p - scores
        slope = np.concatenate([
            math.log(10) * (np.bincount(first, error, num_models)
                            - np.bincount(second, error, num_models)), styles.T @ error])
        return (-(scores * np.log(p) + (1 - scores) * np.log1p(-p)).sum()
                + reg / 2 * values @ values, slope + reg * values)

    found = minimize(loss, np.zeros(num_models + styles.shape[1]), jac=True, method="L-BFGS-B",
                     options={"gtol": 1e-6, "ftol": 0.0, "maxiter": 500}).x
    return 1000 + 400 * found[:num_models], found[num_models:]


def arena_rank_variances(first, second, scores, strengths):
    """Of `lmarena/arena-rank` at 3900eae: of the strengths, by the sandwich of the mean loss.

    The Hessian has 1e-5 on its diagonal.
    """
    num = len(first)
    x = np.zeros((num, len(strengths)))
    x[np.arange(num), first], x[np.arange(num), second] = 1.0, -1.0
    p = expit(strengths[first] - strengths[second])
    inverse = np.linalg.inv((x.T * (p * (1 - p))) @ x / num + 1e-5 * np.eye(len(strengths)))
    gradients = x * (scores - p)[:, None]
    return np.diag(inverse @ (gradients.T @ gradients / num) @ inverse) / num
