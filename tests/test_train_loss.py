"""The next-token loss: sums and weights, and the terms that keep logits and routers in bounds."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.measures.likelihood import batch_logps
from model.families import decoder
from model.families.registry import forward
from model.heads.language import logits
from train.loss import Coefficients, next_token_loss


@pytest.fixture(scope="module")
def loss_fn(config, execution):
    """The loss with the tiny model bound."""
    return jax.jit(partial(next_token_loss, config=config, execution=execution,
                           key=jax.random.key(0)), static_argnames="coefs")


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(loss_fn, params, batch, config):
    uniform = params | {"head_DV": np.zeros_like(params["head_DV"])}
    loss_sum, metrics = loss_fn(uniform, batch)
    total, weight = metrics["loss"]
    np.testing.assert_allclose(total / weight, math.log(config.V), rtol=1e-5)
    assert loss_sum == total and weight == batch.loss_weights_BL.sum()


def test_targets_count_by_their_weight(loss_fn, params, batch, config, execution):
    logp_BL = np.asarray(batch_logps(params, batch, config=config, execution=execution), np.float64)
    loss_sum, _ = loss_fn(params, batch)
    np.testing.assert_allclose(loss_sum, -(logp_BL * batch.loss_weights_BL).sum(), rtol=1e-5)
    moved = batch.replace(targets_BL=np.where(batch.loss_weights_BL > 0, batch.targets_BL, 0))
    assert (moved.targets_BL != batch.targets_BL).any()
    loss_of_moved, _ = loss_fn(params, moved)
    assert loss_of_moved == loss_sum, "targets of weight 0 are not scored"


def _naive_loss(params, batch, z_loss_coef, *, config, execution):
    """PaLM's loss (arXiv 2204.02311, section 5) from whole logits."""
    x_BLD = forward(params, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL,
                    config=config, execution=execution)
    logits_BLV = logits(params, x_BLD, config=config, execution=execution)
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_BL = jnp.take_along_axis(logits_BLV, batch.targets_BL[:, :, None], axis=-1)[:, :, 0]
    return jnp.sum((log_z_BL - target_BL + z_loss_coef * log_z_BL**2) * batch.loss_weights_BL)


def test_z_loss_and_its_gradient_equal_the_formula(loss_fn, params, batch, config, execution):
    @jax.jit
    def both(params):
        ours = partial(loss_fn, batch=batch, coefs=Coefficients(z_loss=0.1))
        naive_loss = partial(_naive_loss, config=config, execution=execution)
        return (jax.value_and_grad(ours, has_aux=True)(params),
                jax.value_and_grad(naive_loss)(params, batch, 0.1))

    ((loss_sum, metrics), gradient), (expected, expected_gradient) = both(params)
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0] + 0.1 * metrics["z_loss"][0], loss_sum, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), gradient,
                 expected_gradient)


def test_top_logit_is_the_mean_of_the_rows_largest(loss_fn, params, batch, config, execution):
    batch = batch.replace(loss_weights_BL=np.array(batch.loss_weights_BL))
    batch.loss_weights_BL[3] = 0  # a row that counts nowhere
    @jax.jit
    def all_logits(params):
        x_BLD = forward(params, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL,
                        config=config, execution=execution)
        return logits(params, x_BLD, config=config, execution=execution)

    top_BL = np.asarray(all_logits(params)).max(-1)
    rows = [top[weights > 0].max() for top, weights in zip(top_BL, batch.loss_weights_BL)
            if weights.any()]
    assert len(rows) == 7
    total, weight = loss_fn(params, batch)[1]["top_logit"]
    np.testing.assert_allclose([total, weight], [sum(rows), 7], rtol=1e-5)


def test_router_terms_are_means_over_layers_times_the_weight(params, batch, config, execution,
                                                             monkeypatch):
    def forward_with_stats(params, tokens_BL, *_, config, execution):
        scale = params["final_norm_D"][0]
        return jnp.ones((*tokens_BL.shape, config.D)), {
            "balance": scale * jnp.array([1.0, 2.0]), "router_z": scale * jnp.array([5.0, 7.0]),
            "max_load": jnp.array([0.5, 0.25]), "min_load": jnp.array([0.1, 0.2]),
            "dropped": jnp.array([0.0, 0.1]), "load_E": jnp.array([[0.5, 0.5], [0.25, 0.75]])}

    monkeypatch.setattr(decoder, "forward_with_stats", forward_with_stats)

    def ours(**coefs):
        loss_fn = partial(next_token_loss, batch=batch, config=config, execution=execution,
                          key=jax.random.key(0), **coefs)
        return jax.device_get(jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params))

    (plain, _), plain_gradient = ours()
    (loss_sum, metrics), gradient = ours(coefs=Coefficients(balance=0.01, router_z=0.001))
    weight, extra = batch.loss_weights_BL.sum(), 0.01 * 1.5 + 0.001 * 6
    np.testing.assert_allclose(loss_sum - plain, weight * extra, rtol=1e-3)
    np.testing.assert_allclose(gradient["final_norm_D"] - plain_gradient["final_norm_D"],
                               np.eye(config.D)[0] * weight * extra, rtol=1e-3)
    means = {name: float(total / weight) for name, (total, _) in metrics.items()}
    assert means["loss"] == pytest.approx(float(plain / weight))
    expected = {"balance": 1.5, "router_z": 6, "max_load": 0.5, "min_load": 0.1, "dropped": 0.05,
                "load/0": 0.375, "load/1": 0.625}
    assert {name: means[name] for name in expected} == pytest.approx(expected)


def test_all_sums_are_the_same_however_the_batch_is_cut(loss_fn, params, batch):
    loss_fn = partial(loss_fn, coefs=Coefficients(z_loss=0.1))
    loss_sum, sums = loss_fn(params, batch)
    pieces = [jax.device_get(loss_fn(params, jax.tree.map(lambda leaf, n=n: leaf[n:n + 2], batch)))
              for n in range(0, 8, 2)]
    assert set(sums) == {"loss", "top_logit", "z_loss"}
    added = jax.tree.map(lambda *parts: sum(parts), *pieces)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (loss_sum, sums), added)
