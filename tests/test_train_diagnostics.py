"""Metrics by parameter and layer: against loops, and the bound against real attention logits."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.layers.norms import rms_norm
from model.layers.positions import rope_frequencies, rotate
from train.watch.diagnostics import diagnose


@pytest.fixture(scope="module")
def trees(params):
    """Parameters, and a random gradient and update of their shapes, the update ten times less."""
    def random_like(seed, scale):
        rng = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape),
                                                     jnp.float32), params)

    return params, random_like(0, 1.0), random_like(1, 0.1)


def test_norms_and_ratios_are_those_of_each_layer(trees, config):
    metrics = jax.device_get(jax.jit(partial(diagnose, config))(*trees))
    params, gradient, update = jax.device_get(trees)
    assert all(value.shape == () for value in metrics.values())
    for name, weight_NX in params["blocks"].items():
        for n, weight in enumerate(weight_NX):
            label = f"blocks/{name}/{n}"
            norm = np.linalg.norm(weight.ravel())
            assert metrics[f"weight_norm/{label}"] == pytest.approx(norm, rel=1e-5)
            assert metrics[f"gradient_norm/{label}"] == pytest.approx(
                np.linalg.norm(gradient["blocks"][name][n].ravel()), rel=1e-5)
            rms_of_update = np.sqrt(np.mean(update["blocks"][name][n]**2))
            assert metrics[f"update_ratio/{label}"] == pytest.approx(
                rms_of_update / np.sqrt(np.mean(weight**2)), rel=1e-5)
    assert metrics["weight_norm/head_DV"] == pytest.approx(np.linalg.norm(params["head_DV"]),
                                                           rel=1e-5)


def test_the_gradients_norms_add_up_to_the_whole(trees, config):
    metrics = jax.jit(partial(diagnose, config))(*trees)
    squares = sum(value**2 for name, value in metrics.items() if name.startswith("gradient_norm/"))
    np.testing.assert_allclose(jnp.sqrt(squares), optax.tree.norm(trees[1]), rtol=1e-5)


def test_no_attention_logit_exceeds_the_bound_and_some_come_near(trees, config):
    params = trees[0]
    rng = np.random.default_rng(0)
    scales = {name: jnp.asarray(rng.uniform(0.5, 3, (config.N, config.K)), jnp.float32)
              .at[:, 5].set(jnp.array([3.5, 4.5])) for name in ("q_norm_K", "k_norm_K")}
    metrics = jax.jit(partial(diagnose, config))(
        params | {"blocks": params["blocks"] | scales}, *trees[1:])
    positions_BL, frequency_K = jnp.arange(64)[None], jnp.asarray(rope_frequencies(config))
    for n in range(config.N):
        bound = metrics[f"attention_logit_bound/{n}"]
        normed = []
        for name in ("q_norm_K", "k_norm_K"):  # the longest: all in the largest scale's direction
            x_BLHK = rng.normal(size=(1, 64, 1, config.K))
            x_BLHK[..., 5] += 30
            normed.append(rms_norm(jnp.asarray(x_BLHK, jnp.float32), scales[name][n], 1e-6))
        q_BLHK, k_BLHK = (rotate(x_BLHK, positions_BL, frequency_K) for x_BLHK in normed)
        logits_BHLM = jnp.einsum("BLHK,BMHK->BHLM", q_BLHK, k_BLHK) * config.K**-0.5
        assert 0.95 * bound < jnp.abs(logits_BHLM).max() <= bound


def test_without_normed_queries_no_bound_is_claimed(trees, config):
    bare = [tree | {"blocks": {name: leaf for name, leaf in tree["blocks"].items()
                               if name not in ("q_norm_K", "k_norm_K")}} for tree in trees]
    without = dataclasses.replace(config, qk_norm=False)
    assert not any(name.startswith("attention_logit_bound") for name in diagnose(without, *bare))
