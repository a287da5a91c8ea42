"""The chunked head and its custom backward pass against the loss with all logits."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from model.execution import Execution
from model.heads import language as head
from model.heads.language import Scores, score_targets
from model.parallel.sharding import PARAM_RULES, make_mesh, spec

BATCH, LENGTH = 2, 15  # 30 rows: 1, 2 and 3 divide them, 8 does not


@pytest.fixture(scope="module")
def rows(config):
    """x_BLD, targets_BL and cotangents: uneven weights, some of them 0, for each of the scores."""
    rng = np.random.default_rng(0)
    x_BLD = rng.normal(size=(BATCH, LENGTH, config.D)).astype(np.float32)
    targets_BL = rng.integers(0, config.V, (BATCH, LENGTH)).astype(np.int32)
    logp_BL, log_z_BL = rng.integers(0, 4, (2, BATCH, LENGTH)) * rng.normal(size=(2, BATCH, LENGTH))
    return x_BLD, targets_BL, Scores(np.float32(logp_BL), np.float32(log_z_BL),
                                     np.zeros((BATCH, LENGTH), np.float32))


def _materialised(params, x_BLD, targets_BL, *, config, execution):
    """Reference scores in float32, from values rounded to the compute dtype."""
    def rounded(x):  # its gradient is not rounded
        narrow = x.astype(execution.compute_dtype)
        return x + jax.lax.stop_gradient(narrow.astype(jnp.float32) - x)

    weight_DV = params["embed_VD"].T if config.tied else params["head_DV"]
    logits_BLV = config.logit_scale * jnp.einsum("BLD,DV->BLV", rounded(x_BLD), rounded(weight_DV))
    if config.head_bias:
        logits_BLV += params["head_bias_V"][None, None]
    if config.logit_softcap:
        logits_BLV = config.logit_softcap * jnp.tanh(logits_BLV / config.logit_softcap)
    log_z_BL = jnp.log(jnp.sum(jnp.exp(logits_BLV), axis=-1))
    onehot_BLV = jax.nn.one_hot(targets_BL, config.V)
    return Scores(jnp.sum(onehot_BLV * logits_BLV, -1) - log_z_BL, log_z_BL,
                  jnp.max(logits_BLV, -1))


@partial(jax.jit, static_argnames=("score", "config", "execution"))
def _scores_and_gradients(score, params, x_BLD, targets_BL, cotangents, *, config, execution):
    score = partial(score, targets_BL=targets_BL, config=config, execution=execution)
    scores, pull_back = jax.vjp(score, params, x_BLD)
    return scores, pull_back(cotangents)


@pytest.mark.parametrize("is_tied, dtype, num_chunks", [
    (False, "float32", 1), (False, "float32", 2), (False, "float32", 3), (False, "float32", 8),
    (True, "float32", 1), (True, "float32", 8), (False, "bfloat16", 1), (True, "bfloat16", 8)])
def test_scores_and_gradients_equal_those_of_all_logits(params, rows, config, is_tied, dtype,
                                                        num_chunks):
    config = dataclasses.replace(config, tied=is_tied)
    x_BLD, targets_BL, cotangents = rows
    head_params = {"embed_VD": params["embed_VD"]} | (
        {} if is_tied else {"head_DV": 10 * np.asarray(params["head_DV"])})
    expected = _scores_and_gradients(_materialised, head_params, x_BLD, targets_BL, cotangents,
                                     config=config, execution=Execution(compute_dtype=dtype))
    actual = _scores_and_gradients(score_targets, head_params, x_BLD, targets_BL, cotangents,
                                  config=config, execution=Execution(compute_dtype=dtype,
                                                                     loss_chunks=num_chunks))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), actual[0], expected[0])
    # bfloat16 rounds the gradient of each logit to 8 bits; accumulation is in float32.
    tolerance = 1e-5 if dtype == "float32" else 2**-8
    for a, b in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1])):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("fields, num_chunks", [
    ({"logit_softcap": 3.0}, 1), ({"head_bias": True}, 3),
    ({"logit_softcap": 3.0, "head_bias": True, "logit_scale": 0.5, "tied": True}, 3)], ids=str)
def test_a_cap_a_scale_and_a_bias_have_their_gradients(params, rows, config, execution, fields,
                                                       num_chunks):
    """On one device, and on a mesh that pads the vocabulary."""
    config = dataclasses.replace(config, **fields)
    head_params = {"embed_VD" if config.tied else "head_DV":
                   params["embed_VD"] if config.tied else 10 * np.asarray(params["head_DV"])}
    if config.head_bias:
        head_params["head_bias_V"] = np.linspace(-2, 2, config.V, dtype=np.float32)
    x_BLD, targets_BL, cotangents = rows
    run = partial(_scores_and_gradients, params=head_params, x_BLD=x_BLD, targets_BL=targets_BL,
                  cotangents=cotangents, config=config)
    expected = run(_materialised, execution=execution)
    chunked = Execution(loss_chunks=num_chunks)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=3e-5)
    jax.tree.map(close, run(score_targets, execution=chunked), expected)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        jax.tree.map(close, run(score_targets, execution=chunked), expected)
    log_z_BL = jax.jit(lambda head_params: jax.nn.logsumexp(head.logits(
        head_params, x_BLD, config=config, execution=execution), axis=-1))(head_params)
    np.testing.assert_allclose(log_z_BL, expected[0].log_z_BL, rtol=1e-5)


def test_the_top_logit_carries_no_gradient(params, rows, config, execution):
    x_BLD, targets_BL, _ = rows
    nothing_BL = np.zeros((BATCH, LENGTH), np.float32)
    only_top = Scores(nothing_BL, nothing_BL, nothing_BL + 1)
    _, gradients = _scores_and_gradients(score_targets, params, x_BLD, targets_BL, only_top,
                                         config=config, execution=execution)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def _memory(config, execution, shape):
    """Bytes of temporaries of loss and gradient on one device."""
    params = {"head_DV": jax.ShapeDtypeStruct((config.D, config.V), jnp.float32)}
    x_BLD = jax.ShapeDtypeStruct((*shape, config.D), jnp.float32)
    targets_BL = jax.ShapeDtypeStruct(shape, jnp.int32)

    def loss(params, x_BLD, targets_BL):
        scores = score_targets(params, x_BLD, targets_BL, config=config, execution=execution)
        return jnp.sum(scores.logp_BL)

    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x_BLD, targets_BL)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_chunks_save_memory_and_zero_derives_their_number(config, monkeypatch):
    config = dataclasses.replace(config, V=2048)
    shape, whole = (8, 64), 4 * 8 * 64 * 2048  # bytes of all logits
    used = {n: _memory(config, Execution(loss_chunks=n), shape) for n in (1, 4, 8)}
    assert used[1] >= whole > used[4] > used[8]
    assert used[8] < whole / 2
    monkeypatch.setattr(head, "LOGITS_BYTES", whole // 8)
    assert head.chunks_of_budget(shape, config.V) == 8
    assert _memory(config, Execution(loss_chunks=0), shape) == used[8]
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        assert head.chunks_of_budget(shape, config.V) == 1, "eight devices share the logits"
        assert head.chunks_of_budget((1, 512), config.V) == 4, "one row is not sharded over four"


@pytest.mark.parametrize("mesh_section", [{"fsdp": 8}, {"stage": 2, "context": 2, "tensor": 2}],
                         ids=str)
def test_every_device_has_its_own_rows(config, mesh_section):
    """Equal results on eight devices, and no chunk communicates a matrix of the head."""
    config, execution = dataclasses.replace(config, V=512), Execution(loss_chunks=3)
    rng, shape = np.random.default_rng(1), (8, 20)
    params = {"head_DV": rng.normal(size=(config.D, config.V)).astype(np.float32)}
    x_BLD = rng.normal(size=(*shape, config.D)).astype(np.float32)
    targets_BL = rng.integers(0, config.V, shape).astype(np.int32)
    cotangents = Scores(*np.float32(rng.normal(size=(3, *shape))))
    run = partial(_scores_and_gradients, score_targets, config=config, execution=execution)
    expected = run(params, x_BLD, targets_BL, cotangents)
    mesh = make_mesh(mesh_section)

    def place(x, letters, rules):
        return jax.device_put(x, NamedSharding(mesh, spec(letters, rules)))

    with jax.set_mesh(mesh):
        placed = ({"head_DV": place(params["head_DV"], "DV", PARAM_RULES)},
                  *(jax.device_put(x, NamedSharding(mesh, spec("B"))) for x in (x_BLD, targets_BL)),
                  cotangents)
        compiled = _scores_and_gradients.lower(score_targets, *placed, config=config,
                                               execution=execution).compile()
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), jax.device_get(
            compiled(*placed)), expected)
    moved = re.findall(r"= .*?(f32\[[\d,]*\]).* all-(?:gather|reduce)\(.*while/body",
                       compiled.as_text())
    sizes = [np.prod([int(n) for n in shape[4:-1].split(",") if n]) for shape in moved]
    rows_per_chunk = -(-shape[0] * shape[1] * mesh.shape["tensor"] // (mesh.size * 3))
    assert max(sizes, default=0) <= rows_per_chunk * config.D
    assert bool(sizes) == (mesh.shape["tensor"] > 1)


@pytest.mark.parametrize("is_tied, num_chunks", [(False, 1), (True, 3)])
def test_a_padded_vocabulary_changes_neither_scores_nor_gradients(params, rows, config, is_tied,
                                                                  num_chunks):
    """All logits are negative: a padded one of 0 would be the largest."""
    config, execution = dataclasses.replace(config, tied=is_tied), Execution(loss_chunks=num_chunks)
    x_BLD, targets_BL, cotangents = rows
    x_BLD, weight_DV = x_BLD.copy(), np.array(params["head_DV"])
    x_BLD[:, :, 0], weight_DV[0] = -50, 1
    head_params = {"embed_VD": weight_DV.T} if is_tied else {"head_DV": weight_DV}
    run = partial(_scores_and_gradients, score_targets, head_params, x_BLD, targets_BL, cotangents,
                  config=config, execution=execution)
    expected = run()
    assert np.max(expected[0].top_logit_BL) < 0
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        found = run()
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found, expected)


@pytest.mark.parametrize("dtype, num_chunks", [("float32", 1), ("bfloat16", 3)])
def test_chunks_without_a_scored_row_are_not_computed(params, rows, config, dtype, num_chunks):
    """Scores and gradients equal those of all rows with the others' masked, on one device and on a
    mesh; and no number of an unscored row is read, where scored ones fill whole chunks."""
    x_BLD, targets_BL, cotangents = rows
    # 30 rows are eight chunks of 4: the scored ones fill two of them.
    scored_BL = np.zeros((BATCH, LENGTH), bool)
    scored_BL[0, 2:7] = scored_BL[1, 9:12] = True
    run = partial(_scores_and_gradients, params=params, targets_BL=targets_BL, config=config,
                  execution=Execution(compute_dtype=dtype, loss_chunks=num_chunks))
    masked = jax.tree.map(lambda leaf_BL: leaf_BL * scored_BL, cotangents)
    expected = jax.device_get(run(score_targets, x_BLD=x_BLD, cotangents=masked))
    expected = jax.tree.map(lambda leaf_BL: leaf_BL * scored_BL, expected[0]), expected[1]
    only_scored = partial(score_targets, scored_BL=scored_BL)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, run(only_scored, x_BLD=x_BLD, cotangents=cotangents), expected)
    faulty_BLD = np.where(scored_BL[..., None], x_BLD, np.float32(np.nan))
    jax.tree.map(close, run(only_scored, x_BLD=faulty_BLD, cotangents=cotangents), expected)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        jax.tree.map(close, run(only_scored, x_BLD=x_BLD, cotangents=cotangents), expected)
