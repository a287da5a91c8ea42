"""Runs that follow a law of scaling, with or without noise, for the tests of its fits."""

import math

import numpy as np

from train.scaling.forms import HOFFMANN, optimal_sizes
from train.scaling.runs import Runs

# Hoffmann's constants as the paper's source has them, not rounded: ln A, ln B, ln E, alpha, beta.
UNROUNDED = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
ROUNDED = np.array([math.log(406.4), math.log(410.7), math.log(1.69), 0.34, 0.28])
KAPLANS = np.array([math.log(6.4e13), math.log(1.8e13), 0.076, 0.103])


def make(params, tokens, loss, **changes):
    params, tokens, loss = (np.asarray(values, np.float64) for values in (params, tokens, loss))
    return Runs(tuple(f"run{i}" for i in range(len(params))), params, tokens, 6 * params * tokens,
                loss, np.full(len(params), np.nan), "total", **changes)


def losses(form, theta, params, tokens):
    x = np.log(np.stack(np.broadcast_arrays(params, tokens), axis=1))
    return np.exp(form.evaluate(theta, x)[0])


def grid(form=HOFFMANN, theta=UNROUNDED, noise=0.0):
    """Five sizes, each with five numbers of tokens."""
    params, tokens = (values.ravel() for values in np.meshgrid(
        np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    scatter = np.exp(noise * np.random.default_rng(0).normal(size=25))
    return make(params, tokens, losses(form, theta, params, tokens) * scatter)


def valleys(theta, width, num=16, budgets=(1e17, 1e18, 1e19, 1e20, 1e21)):
    """At each budget, tokens from the best over `width` to the best times `width`."""
    flops = np.repeat(budgets, num)
    best = optimal_sizes(HOFFMANN, theta, flops)[1]
    tokens = best * np.tile(np.geomspace(1 / width, width, num), len(budgets))
    params = flops / 6 / tokens
    return make(params, tokens, losses(HOFFMANN, theta, params, tokens))
