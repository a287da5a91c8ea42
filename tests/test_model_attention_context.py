"""Attention over rows that are sharded over the mesh: equal to that on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import blockwise
from model.attention.backends import attend_documents
from model.attention.blockwise import Keys, attend_blocks, attend_ring
from model.attention.kind import NO_EXTRAS, kind_of
from model.attention.placement import attend_in_place
from model.attention.reference import attend, document_mask
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import forward
from model.parallel.remat import remat
from model.parallel.sharding import make_mesh

B, L, H, G, K = 4, 32, 4, 2, 8
KINDS = ["ring", "all_gather"]
MESHES = [{"context": 2, "data": 2, "expert": 2}, {"context": 4, "tensor": 2},
          {"context": 4, "fsdp": 2}]


def _row(sizes):
    """Segment ids and positions of documents of these sizes, then padding."""
    sizes = [*sizes, L - sum(sizes)]
    segments = [*range(1, len(sizes)), 0]
    return np.repeat(segments, sizes), np.concatenate([np.arange(n) for n in sizes])


# One document over all shards, uneven ones with padding, one-token documents, two half rows.
ROWS = [_row(sizes) for sizes in ([32], [5, 9, 11], [1] * 32, [16, 16])]
SEGMENT_IDS_BL, POSITIONS_BL = (np.array(x, np.int32) for x in zip(*ROWS))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A shard's keys come as several blocks."""
    monkeypatch.setattr(blockwise, "KEYS_PER_BLOCK", 4)


@pytest.fixture(scope="module")
def inputs():
    """q_BLHK, k_BLGK, v_BLGK and a weight for each output."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, L, heads, K)).astype(np.float32) for heads in (H, G, G, H)]


def _with_gradients(attention, q_BLHK, k_BLGK, v_BLGK, weight_BLHK):
    out_BLHK, pull = jax.vjp(attention, q_BLHK, k_BLGK, v_BLGK)
    return out_BLHK, *pull(weight_BLHK)


@pytest.fixture(scope="module")
def expected(inputs):
    """The reference's output, and gradients of queries, keys and values."""
    def reference(*qkv):
        return _reference(*qkv, SEGMENT_IDS_BL)

    return jax.device_get(jax.jit(partial(_with_gradients, reference))(*inputs))


@jax.jit
def _reference(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL):
    return attend(q_BLHK, k_BLGK, v_BLGK, document_mask(segment_ids_BL))


def _assert_close(actual, expected, atol=5e-6):
    for name, a, b in zip(("out", "dq", "dk", "dv"), actual, expected):
        np.testing.assert_allclose(a, b, atol=atol, err_msg=name)


def _attend_documents(kind, **changes):
    """Attention across shards of this kind."""
    config = ModelConfig(V=98, D=32, N=2, H=H, G=G, K=K, F=64)
    execution = Execution(context_attention=kind, **changes)
    return partial(attend_documents, kind=kind_of(config), extras=NO_EXTRAS,
                   execution=execution)


@pytest.mark.parametrize("section", MESHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_rows_equal_whole_ones_forward_and_backward(kind, section, inputs, expected):
    def attention(*qkv):
        return _attend_documents(kind)(*qkv, SEGMENT_IDS_BL, POSITIONS_BL)

    with jax.set_mesh(make_mesh(section)):
        compiled = jax.jit(partial(_with_gradients, attention)).lower(*inputs).compile()
    assert ("collective-permute" in compiled.as_text()) == (kind == "ring")
    _assert_close(compiled(*inputs), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_stages_of_a_pipeline_each_shard_their_rows(kind, inputs, expected):
    def run(*stacked):  # [stages, B, ...], as `model.parallel.pipeline` has them
        stages = jax.vmap(_attend_documents(kind), spmd_axis_name="stage")
        out, pull = jax.vjp(lambda *qkv: stages(*qkv, *stacked[4:]), *stacked[:3])
        return out, *pull(stacked[3])

    def stack(x):  # the second stage has the rows in another order
        return np.stack([x, x[::-1]])

    with jax.set_mesh(make_mesh({"stage": 2, "context": 2, "data": 2})):
        actual = jax.jit(run)(*map(stack, (*inputs, SEGMENT_IDS_BL, POSITIONS_BL)))
    _assert_close(actual, map(stack, expected))


def test_the_order_of_keys_is_that_of_positions_and_not_of_row_indices(inputs, expected):
    order_L = np.random.default_rng(1).permutation(L)
    q_BLHK, k_BLGK, v_BLGK, _ = (x[:, order_L] for x in inputs)
    segment_ids_BL, positions_BL = SEGMENT_IDS_BL[:, order_L], POSITIONS_BL[:, order_L]
    keys = Keys(k_BLGK, v_BLGK, segment_ids_BL, positions_BL)
    run = jax.jit(partial(attend_blocks, num_hops=1))
    out_BLHK = run(q_BLHK, segment_ids_BL, positions_BL, keys)
    np.testing.assert_allclose(out_BLHK, expected[0][:, order_L], atol=5e-6)


def test_keys_that_are_masked_for_a_whole_shard_are_skipped(inputs):
    segment_ids_BL, positions_BL = (np.array(x, np.int32)[None] for x in ROWS[3])
    q_BLHK, k_BLGK, v_BLGK, weight_BLHK = (x[:1] for x in inputs)
    poisoned_BLGK = v_BLGK.copy()
    poisoned_BLGK[:, :L // 2] = np.nan  # 0 times NaN would be NaN

    def attention(*qkv):
        return attend_in_place(attend_ring, *qkv, segment_ids_BL, positions_BL)

    with jax.set_mesh(make_mesh({"context": 2}, jax.devices()[:2])):
        run = jax.jit(partial(_with_gradients, attention))
        clean = run(q_BLHK, k_BLGK, v_BLGK, weight_BLHK)
        actual = run(q_BLHK, k_BLGK, poisoned_BLGK, weight_BLHK)
    actual, clean = jax.device_get((actual, clean))
    assert np.isnan(actual[0][:, :L // 2]).all()
    _assert_close([x[:, L // 2:] for x in actual], [x[:, L // 2:] for x in clean], atol=0)


def test_softmax_stays_float32_when_the_model_is_bfloat16(inputs, expected):
    qkv = [x.astype(jnp.bfloat16) for x in inputs[:3]]
    run = jax.jit(_attend_documents("ring", compute_dtype="bfloat16"))
    with jax.set_mesh(make_mesh({"context": 2, "data": 4})):
        out_BLHK = run(*qkv, SEGMENT_IDS_BL, POSITIONS_BL)
    assert out_BLHK.dtype == jnp.bfloat16
    reference_BLHK = _reference(*qkv, SEGMENT_IDS_BL)
    error, reference_error = (np.abs(np.asarray(x, np.float32) - expected[0]).max()
                              for x in (out_BLHK, reference_BLHK))
    assert error < 1.5 * reference_error


def test_the_model_is_the_same_on_sharded_rows(config, execution, params, batch):
    run = jax.jit(partial(forward, config=config, execution=execution))
    args = (params, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL)
    expected_BLD = run(*args)
    with jax.set_mesh(make_mesh({"data": 2, "context": 4})):
        np.testing.assert_allclose(run(*args), expected_BLD, atol=1e-5)


def test_rematerialisation_that_saves_attention_does_not_repeat_the_ring(inputs):
    def count_hops(attention):
        def loss(*qkv):
            return attention(*qkv, SEGMENT_IDS_BL, POSITIONS_BL).sum()

        with jax.set_mesh(make_mesh({"context": 4, "data": 2})):
            text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*inputs[:3]).as_text()
        return text.count("collective_permute")

    not_wrapped = _attend_documents("ring")
    kept, computed_again = (remat(not_wrapped, policy) for policy in ("names:attention", "full"))
    assert count_hops(kept) == count_hops(not_wrapped) < count_hops(computed_again)


def test_a_row_that_no_context_divides_is_computed_whole(inputs):
    args = [x[:1, :L - 1] for x in (*inputs[:3], SEGMENT_IDS_BL, POSITIONS_BL)]
    expected_BLHK = _reference(*args[:4])
    with jax.set_mesh(make_mesh({"context": 4, "tensor": 2})):
        run = jax.jit(_attend_documents("ring")).lower(*args)
        out_BLHK = run.compile()(*args)
    assert "collective_permute" not in run.as_text()
    np.testing.assert_allclose(out_BLHK, expected_BLHK, atol=5e-6)
