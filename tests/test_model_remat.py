"""Rematerialisation: a policy changes what is saved, and not the result."""

import os
from collections import Counter

import jax
import numpy as np
import pytest

from core.errors import UserError
from model.execution import Execution
from model.parallel.remat import TAGS
from model.parallel.sharding import make_mesh, param_shardings
from train.loss import next_token_loss
from train.step import place_batch

# Sizes that each tag saves of a layer of the tiny model: H K = 4 8, G K = 2 8, F = 64.
SHAPES = {"qkv": [(4, 8), (2, 8), (2, 8)], "attention": [(4, 8)], "hidden": [(64,), (64,)],
          "residual": [(32,)]}


def _loss(config, execution, params, batch):
    return next_token_loss(params, batch, config=config, execution=execution,
                           key=jax.random.key(0))[0]


def _kept(config, execution, params, batch):
    """Shapes that the layers' scan saves for the backward pass, without [N, B, L]."""
    def pull_back(params):
        return jax.vjp(lambda p: _loss(config, execution, p, batch), params)[1]

    stacked = (config.N, *batch.tokens_BL.shape)
    return Counter(leaf.shape[3:] for leaf in jax.tree.leaves(jax.eval_shape(pull_back, params))
                   if leaf.shape[:3] == stacked)


@pytest.mark.parametrize("policy", ["full", *(f"names:{tag}" for tag in TAGS),
                                    "names:qkv,attention,hidden,residual", "offload:qkv,residual"])
def test_a_policy_saves_each_layers_input_and_what_it_names(params, batch, config, policy):
    named = [shape for tag in policy.partition(":")[2].split(",") if tag for shape in SHAPES[tag]]
    assert _kept(config, Execution(remat=policy), params, batch) == Counter([(config.D,), *named])


def test_none_saves_more_than_dots_and_dots_more_than_full(params, batch, config):
    size = {}
    for policy in ("none", "dots", "full"):
        kept = _kept(config, Execution(remat=policy), params, batch)
        size[policy] = sum(np.prod(shape) * count for shape, count in kept.items())
    assert size["none"] > 2 * size["dots"] > 2 * size["full"]


# XLA's older emitters, which tests use where they can, round by what surrounds an operation.
EMITTERS = ({"xla_cpu_use_fusion_emitters": True}
            if "fusion_emitters" in os.environ["XLA_FLAGS"] else None)


@pytest.fixture(scope="module")
def plain(params, batch, config, execution):
    run = jax.jit(jax.value_and_grad(lambda p: _loss(config, execution, p, batch)),
                  compiler_options=EMITTERS)
    return run(params)


# `dots` and `full` are compared in test_model_transformer.
@pytest.mark.parametrize("policy", ["names:qkv,hidden", "offload:attention,residual"])
def test_named_policies_change_no_bit(plain, params, batch, config, policy):
    execution = Execution(remat=policy)
    traced = jax.jit(jax.value_and_grad(lambda p: _loss(config, execution, p, batch)),
                     compiler_options=EMITTERS).trace(params)
    assert ("<host>" in str(traced.jaxpr)) == policy.startswith("offload")
    actual = traced.lower().compile()(params)
    # Bitwise equality holds as tests disable XLA's optimisations, under which fusions may differ.
    jax.tree.map(np.testing.assert_array_equal, actual, plain)


def test_offloading_works_on_a_mesh(plain, params, batch, config):
    execution = Execution(remat="offload:residual")
    mesh = make_mesh({"data": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, param_shardings(params, mesh))
        run = jax.jit(jax.value_and_grad(_loss, argnums=2), static_argnums=(0, 1))
        loss, gradient = run(config, execution, placed, place_batch(batch, mesh))
    np.testing.assert_allclose(loss, plain[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5),
                 jax.device_get(gradient), jax.device_get(plain[1]))


@pytest.mark.parametrize("policy, rule", [
    ("all", "is none of none, dots, full, names:TAG,..., offload:TAG,..."),
    ("full:qkv", "is none of none, dots, full"), ("names", "'' is no tag of a layer: name some of"),
    ("names:qkv, hidden", "' hidden' is no tag of a layer"), ("offload:mlp", "'mlp' is no tag")])
def test_an_unknown_policy_is_refused(policy, rule):
    with pytest.raises(UserError, match=f"^remat='{policy}': {rule}"):
        Execution(remat=policy)
