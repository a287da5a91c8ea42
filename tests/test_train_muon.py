"""Muon's matrices: which they are, how precisely they are treated, and that no mesh matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.families.registry import abstract_params
from model.parallel.sharding import make_mesh, param_name, param_shardings
from train.optimizer.muon import is_matrix, newton_schulz, orthogonalise
from train.optimizer.optimizers import decayed

N, E, D, H, K, F = 4, 2, 8, 4, 2, 12
SHAPES = {"wq_DHK": (N, D, H, K), "wo_HKD": (N, H, K, D), "w_up_EDF": (N, E, D, F),
          "w_down_EFD": (N, E, F, D), "w_down_FD": (N, F, D)}


@pytest.mark.parametrize("num_experts", [0, 4])
def test_every_block_weight_but_the_router_is_a_matrix(config, num_experts):
    config = dataclasses.replace(config, E=num_experts)
    params = abstract_params(config)
    blocks = is_matrix(params)["blocks"]
    assert {name for name, value in blocks.items() if value} == {
        name for name, leaf in params["blocks"].items() if leaf.ndim > 2} - {"router_DE"}
    assert not any(jax.tree.leaves(is_matrix(params) | {"blocks": {}}))


def test_newton_schulz_in_bfloat16_serves_as_well():
    matrices = jax.random.normal(jax.random.key(0), (3, 24, 40))
    exact, rough = (newton_schulz(matrices.astype(dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    exact, rough = np.asarray(exact, np.float64), np.asarray(rough, np.float64)
    values = np.linalg.svd(rough)[1]
    assert values.min() > 0.6 and values.max() < 1.3
    assert np.sum(exact * rough) > 0.995 * np.linalg.norm(exact) * np.linalg.norm(rough)


def test_a_matrix_of_zeros_stays_zero():
    np.testing.assert_array_equal(newton_schulz(jnp.zeros((2, 3, 5))), 0)


@pytest.fixture(scope="module")
def gradient():
    """Random blocks; N is divided by some of the meshes below, D by all."""
    rng = np.random.default_rng(0)
    return {"blocks": {name: jnp.asarray(rng.normal(size=shape), jnp.float32)
                       for name, shape in SHAPES.items()}}


def _update(gradient):
    return orthogonalise().update(gradient, ())[0]


@pytest.mark.parametrize("shape", [
    {"data": 2, "fsdp": 2, "tensor": 2}, {"stage": 2, "fsdp": 2, "expert": 2},
    {"fsdp": 4, "context": 2}, {"fsdp": 8}, {"data": 8},
], ids=str)
def test_the_update_is_the_same_on_every_mesh(gradient, shape):
    mesh = make_mesh(shape)
    shardings = param_shardings(gradient, mesh)
    with jax.set_mesh(mesh):
        found = jax.jit(_update, in_shardings=(shardings,), out_shardings=shardings)(
            jax.device_put(gradient, shardings))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(found),
                 jax.device_get(_update(gradient)))


def test_layers_are_dealt_out_instead_of_gathering_matrices(gradient):
    mesh = make_mesh({"fsdp": 4, "data": 2})
    shardings = param_shardings(gradient, mesh)
    with jax.set_mesh(mesh):
        text = jax.jit(_update, in_shardings=(shardings,), out_shardings=shardings).lower(
            gradient).compile().as_text()
    assert "all-to-all" in text and "all-gather" not in text and "all-reduce" not in text


@pytest.mark.parametrize("changes", [
    {}, {"E": 4, "shared_experts": 2}, {"family": "lstm"},
    {"family": "encoder_decoder", "encoder_layers": 2, "positions": "relative"},
    {"family": "encoder", "masked_head": True, "positions": "learned", "max_positions": 9,
     "norm": "layer", "token_types": 2, "attention_bias": True, "mlp": "gelu", "mlp_bias": True},
], ids=str)
def test_every_matrix_of_every_family_is_one_to_muon(config, changes):
    params = abstract_params(dataclasses.replace(config, embed_previous=False, **changes))
    is_decayed, is_muon = (jax.tree_util.tree_leaves_with_path(tree(params))
                           for tree in (decayed, is_matrix))
    others = {param_name(path) for (path, is_one), (_, muon) in zip(is_decayed, is_muon)
              if is_one != muon}
    assert others <= {"router_DE"}, "a matrix that is decayed is orthogonalised, and no other is"
