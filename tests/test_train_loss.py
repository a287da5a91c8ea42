"""The next-token loss: sums and weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from train.loss import batch_logps, next_token_loss


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(params, batch, config):
    uniform = params | {"head_DV": jnp.zeros_like(params["head_DV"])}
    loss_sum, metrics = next_token_loss(uniform, batch, config=config, key=jax.random.key(0))
    total, weight = metrics["loss"]
    np.testing.assert_allclose(total / weight, math.log(config.V), rtol=1e-5)
    assert loss_sum == total and weight == batch.loss_weights_BL.sum()


def test_targets_count_by_their_weight(params, batch, config):
    logp_BL = np.asarray(batch_logps(params, batch, config=config), np.float64)
    loss_sum, _ = next_token_loss(params, batch, config=config, key=jax.random.key(0))
    np.testing.assert_allclose(loss_sum, -(logp_BL * batch.loss_weights_BL).sum(), rtol=1e-5)
    moved = batch.replace(targets_BL=np.where(batch.loss_weights_BL > 0, batch.targets_BL, 0))
    assert (moved.targets_BL != batch.targets_BL).any()
    loss_of_moved, _ = next_token_loss(params, moved, config=config, key=jax.random.key(0))
    assert loss_of_moved == loss_sum, "targets of weight 0 are not scored"
