"""Attention backends: their choice, and equality with the reference.

No GPU or TPU is needed: Pallas kernels run interpreted, cuDNN is replaced by the reference behind
the same interface, and all of them are lowered for their platform.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, use_abstract_mesh

from core.errors import UserError
from model.attention import backends, cudnn, packed
from model.attention.backends import Machine, attend_documents, choose_backend, describe
from model.attention.kind import NO_EXTRAS, kind_of
from model.attention.packed import Kernel, attend_packed, list_documents, number_documents
from model.attention.pallas import attend_splash, attend_triton
from model.attention.placement import attend_in_place
from model.attention.reference import attend, document_mask
from model.config import ModelConfig
from model.execution import Execution
from model.parallel.remat import remat
from model.parallel.sharding import make_mesh

CPU = Machine("cpu", "cpu", (0, 0))
TPU = Machine("tpu", "TPU v5p", (0, 0))
A100, H200 = Machine("gpu", "NVIDIA A100", (8, 0)), Machine("gpu", "NVIDIA H200", (9, 0))
MI300 = Machine("gpu", "AMD Instinct MI300X", (0, 0))

B, L, H, G, K = 4, 32, 4, 2, 8


def _model(head_size=64, compute_dtype="bfloat16", **changes):
    """A config, and how it runs."""
    config = ModelConfig(V=98, D=32, N=2, H=H, G=G, K=head_size, F=64)
    return config, Execution(compute_dtype=compute_dtype, **changes)


def _kind(**changes):
    """Its kind of attention, and how it runs."""
    config, execution = _model(**changes)
    return kind_of(config), execution


def _row(sizes):
    """Segment ids and positions of documents of these sizes, then padding."""
    sizes = [*sizes, L - sum(sizes)]
    segments = [*range(1, len(sizes)), 0]
    return np.repeat(segments, sizes), np.concatenate([np.arange(n) for n in sizes])


ROWS = [_row(sizes) for sizes in ([32], [5, 9, 11], [1] * 32, [3, 20, 1, 1, 1, 4])]
SEGMENT_IDS_BL, POSITIONS_BL = (np.array(x, np.int32) for x in zip(*ROWS))


@pytest.fixture(scope="module")
def inputs():
    """q_BLHK, k_BLGK, v_BLGK and a weight for each output."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, L, heads, K)).astype(np.float32) for heads in (H, G, G, H)]


def _with_gradients(attention, q_BLHK, k_BLGK, v_BLGK, weight_BLHK):
    out_BLHK, pull = jax.vjp(attention, q_BLHK, k_BLGK, v_BLGK)
    return out_BLHK, *pull(weight_BLHK)


def _reference(*args):
    return attend(*args[:3], document_mask(args[3]))


@pytest.fixture(scope="module")
def expected(inputs):
    """The reference's output, and gradients of queries, keys and values."""
    run = jax.jit(partial(_with_gradients, lambda *qkv: _reference(*qkv, SEGMENT_IDS_BL)))
    return jax.device_get(run(*inputs))


def _assert_close(actual, expected):
    for name, a, b in zip(("out", "dq", "dk", "dv"), actual, expected):
        np.testing.assert_allclose(a, b, atol=5e-6, err_msg=name)


@pytest.fixture
def with_cudnn(monkeypatch):
    """Simulates cuDNN 9.10 and a Hopper GPU for JAX's Python code."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    cudnn.load.cache_clear()
    yield
    cudnn.load.cache_clear()


@pytest.mark.parametrize("machine, changes, num_shards, backend", [
    (CPU, {}, 1, "xla"),
    (H200, {}, 1, "cudnn"),
    (H200, {"compute_dtype": "float32"}, 1, "xla"),
    (H200, {}, 2, "xla"),
    (H200, {"head_size": 20}, 1, "xla"),
    (H200, {"attention": "pallas"}, 1, "pallas"),
    (A100, {}, 1, "pallas"),
    (MI300, {}, 1, "xla"),
    (TPU, {}, 1, "splash"),
    (TPU, {"head_size": 80}, 1, "xla"),
    (TPU, {"attention": "xla"}, 1, "xla"),
])
def test_auto_chooses_the_fastest_that_can_run(with_cudnn, machine, changes, num_shards, backend):
    assert choose_backend(*_kind(**changes), num_shards, machine) == backend


@pytest.mark.parametrize("machine, changes, num_shards, rule", [
    (CPU, {"attention": "cudnn"}, 1, "needs an NVIDIA GPU of compute capability 9.0, not cpu"),
    (A100, {"attention": "cudnn"}, 1, "compute capability 9.0, not NVIDIA A100"),
    (H200, {"attention": "splash"}, 1, "needs a TPU, not NVIDIA H200"),
    (TPU, {"attention": "pallas"}, 1, "compute capability 8.0, not TPU v5p"),
    (H200, {"attention": "cudnn", "compute_dtype": "float32"}, 1,
     "needs compute_dtype=bfloat16, not float32"),
    (H200, {"attention": "cudnn", "head_size": 20}, 1,
     "needs model.K divisible by 8 from 8 to 256"),
    (H200, {"attention": "pallas", "head_size": 8}, 1,
     "needs model.K divisible by 8 from 16 to 128"),
    (H200, {"attention": "cudnn"}, 4, "does not cross mesh.context=4"),
])
def test_an_explicit_request_never_falls_back(with_cudnn, machine, changes, num_shards, rule):
    with pytest.raises(UserError) as raised:
        choose_backend(*_kind(**changes), num_shards, machine)
    assert str(raised.value).startswith(f"attention={changes['attention']!r}: ")
    assert rule in str(raised.value) and "set run.attention to auto" in str(raised.value)


def test_attention_itself_refuses_what_cannot_run_here(inputs):
    kind, execution = _kind(attention="splash")
    with pytest.raises(UserError, match=r"^attention='splash': needs a TPU, not cpu"):
        attend_documents(*inputs[:3], SEGMENT_IDS_BL, POSITIONS_BL, kind=kind, extras=NO_EXTRAS,
                         execution=execution)


def test_the_log_names_the_backend_and_why_it_is_not_the_fastest(with_cudnn):
    whole, cut = make_mesh({"data": 8}), make_mesh({"data": 2, "context": 4})
    assert describe(*_model(), whole) == "xla attention"
    assert describe(*_model(), whole, H200) == "cudnn attention"
    assert describe(*_model(compute_dtype="float32"), whole, H200) == (
        "xla attention (cudnn needs compute_dtype=bfloat16, not float32)")
    assert describe(*_model(), cut, H200) == (
        "xla attention, ring over 4 context shards (cudnn does not cross mesh.context=4)")
    assert describe(*_model(context_attention="all_gather"), cut) == (
        "xla attention, all_gather over 4 context shards")


def test_cudnn_is_refused_if_jax_changed_its_signature(with_cudnn, monkeypatch):
    assert choose_backend(*_kind(attention="cudnn"), 1, H200) == "cudnn"
    monkeypatch.setattr(cudnn, "FORWARD", cudnn.FORWARD[1:])
    cudnn.load.cache_clear()
    with pytest.raises(UserError, match="does not support the _dot_product_attention_fwd_rule"):
        choose_backend(*_kind(attention="cudnn"), 1, H200)
    assert choose_backend(*_kind(), 1, H200) == "pallas"


def test_cudnn_is_refused_where_it_is_not_installed(with_cudnn, monkeypatch):
    def find_none():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", find_none)
    with pytest.raises(UserError, match="needs cuDNN, which JAX does not find"):
        choose_backend(*_kind(attention="cudnn"), 1, H200)


def _masks(documents):
    """Mask of a call with these documents, mask_BLM, and the tokens in them, is_in_BL."""
    lengths_BP, offsets_BP = documents.lengths_BP, documents.offsets_BP[:, :-1]
    index_BLP = jnp.arange(L)[None, :, None] - offsets_BP[:, None]
    is_in_BLP = (index_BLP >= 0) & (index_BLP < lengths_BP[:, None]) & (lengths_BP[:, None] > 0)
    causal_LM = jnp.tril(jnp.ones((L, L), bool))
    return jnp.einsum("BLP,BMP->BLM", is_in_BLP, is_in_BLP) & causal_LM[None], is_in_BLP.any(-1)


@pytest.mark.parametrize("per_call", [2, 5, 64])
def test_lengths_and_offsets_give_the_mask_of_the_documents(monkeypatch, per_call):
    monkeypatch.setattr(packed, "DOCUMENTS_PER_CALL", per_call)
    rng = np.random.default_rng(0)
    rows = [_row(sizes[:np.searchsorted(np.cumsum(sizes), L, side="right")])
            for sizes in rng.geometric(0.3, (20, L))]
    padded_first = np.repeat([0, 1, 2], [3, 10, L - 13])
    segment_ids_BL = np.array([row[0] for row in rows + ROWS] + [padded_first], np.int32)
    number_BL = jax.jit(number_documents)(segment_ids_BL)
    total_BLM = np.zeros((len(segment_ids_BL), L, L), int)

    @jax.jit
    def take(call):
        documents = list_documents(number_BL, call)
        return documents, _masks(documents)[0]

    for call in range(-(-L // per_call)):
        documents, mask_BLM = jax.device_get(take(call))
        assert documents.offsets_BP.shape[1] == documents.lengths_BP.shape[1] + 1
        num_B = (documents.lengths_BP > 0).sum(1)  # cuDNN takes those of all rows in one list
        np.testing.assert_array_equal(num_B, (documents.offsets_BP >= 0).sum(1))
        assert (np.diff((documents.lengths_BP > 0).astype(int)) <= 0).all(), "a gap in the list"
        total_BLM += mask_BLM
    np.testing.assert_array_equal(total_BLM, jax.jit(document_mask)(segment_ids_BL))


def _simulated_forward(q_BLHK, k_BLGK, v_BLGK, documents):
    mask_BLM, is_in_BL = _masks(documents)
    out_BLHK = attend(q_BLHK, k_BLGK, v_BLGK, mask_BLM)
    stats = documents.lengths_BP[:, :, None, None] * jnp.ones((1, 1, H, L))
    return jnp.where(is_in_BL[:, :, None, None], out_BLHK, jnp.nan), stats


def _simulated_backward(q_BLHK, k_BLGK, v_BLGK, documents, stats, out_BLHK, dout_BLHK):
    mask_BLM, is_in_BL = _masks(documents)
    is_in_BLHK = is_in_BL[:, :, None, None]
    is_own = (stats == documents.lengths_BP[:, :, None, None]).all()
    _, pull = jax.vjp(lambda *qkv: attend(*qkv, mask_BLM), q_BLHK, k_BLGK, v_BLGK)
    gradients = pull(jnp.where(is_in_BLHK & is_own, dout_BLHK, 0))
    return tuple(jnp.where(is_in_BLHK, x, jnp.nan) for x in gradients)


def _simulated_forward_whole(*qkv):
    num_rows = len(qkv[0])
    causal_BLM = document_mask(jnp.ones((num_rows, L)))
    return attend(*qkv, causal_BLM), jnp.full((num_rows, H, L), 7.0)


def _simulated_backward_whole(q_BLHK, k_BLGK, v_BLGK, stats_BHL, out_BLHK, dout_BLHK):
    def attention(*qkv):
        return _simulated_forward_whole(*qkv)[0]

    gradients = jax.vjp(attention, q_BLHK, k_BLGK, v_BLGK)[1](dout_BLHK)
    return tuple(jnp.where((stats_BHL == 7).all(), x, jnp.nan) for x in gradients)


# As in cuDNN, values outside of the documents are undefined.
SIMULATED = Kernel(_simulated_forward, _simulated_backward, _simulated_forward_whole,
                   _simulated_backward_whole)


def test_rows_of_one_document_take_the_causal_kernel(inputs):
    def refuse(*_):
        return jnp.full((B, L, H, K), jnp.nan), jnp.zeros((B, packed.DOCUMENTS_PER_CALL, H, L))

    kernel = SIMULATED._replace(forward=refuse)

    def run(segment_ids_BL):
        return jax.jit(partial(_with_gradients, lambda *qkv: attend_packed(
            kernel, *qkv, segment_ids_BL)))(*inputs)

    ones_BL = np.ones((B, L), np.int32)
    reference = jax.jit(partial(_with_gradients, lambda *qkv: _reference(*qkv, ones_BL)))(*inputs)
    _assert_close(run(ones_BL), reference)
    two_in_one_row_BL = ones_BL.copy()
    two_in_one_row_BL[1, 20:] = 2
    assert np.isnan(run(two_in_one_row_BL)[0]).all(), "the packed kernel did not run"


@pytest.mark.parametrize("per_call", [4, 64])
def test_packed_calls_equal_the_reference_for_any_number_of_documents(monkeypatch, inputs, expected,
                                                                      per_call):
    monkeypatch.setattr(packed, "DOCUMENTS_PER_CALL", per_call)

    def attention(*qkv):
        return attend_packed(SIMULATED, *qkv, SEGMENT_IDS_BL)

    _assert_close(jax.jit(partial(_with_gradients, attention))(*inputs), expected)


@pytest.mark.parametrize("attention", [attend_triton, attend_splash])
def test_pallas_kernels_equal_the_reference(attention, inputs, expected):
    def attention_here(*qkv):
        return attention(*qkv, SEGMENT_IDS_BL, POSITIONS_BL, interpret=True)

    _assert_close(jax.jit(partial(_with_gradients, attention_here))(*inputs), expected)


def _attend_simulated(*args):
    return attend_packed(SIMULATED, *args[:4])


@pytest.mark.parametrize("attention", [_reference, _attend_simulated])
def test_a_mesh_runs_each_shard_on_its_device(attention, inputs, expected):
    def attention_here(*qkv):
        return attend_in_place(attention, *qkv, SEGMENT_IDS_BL, POSITIONS_BL)

    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        run = jax.jit(partial(_with_gradients, attention_here))
        _assert_close(run(*inputs), expected)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):  # which divides H, but not G
        _assert_close(run(*inputs), expected)


def _with_stages(attention):
    """Output and gradients of `attention` in two stages of a pipeline, on tensors [stages, ...]."""
    def run(*stacked):
        stages = jax.vmap(partial(attend_in_place, attention), spmd_axis_name="stage")
        out, pull = jax.vjp(lambda *qkv: stages(*qkv, *stacked[4:]), *stacked[:3])
        return out, *pull(stacked[3])

    return jax.jit(run)


def _stack(x):
    return np.stack([x, x])


def test_a_packed_kernel_takes_the_stages_of_a_pipeline_as_more_rows(inputs, expected):
    with jax.set_mesh(make_mesh({"stage": 2, "data": 2, "tensor": 2})):
        actual = _with_stages(_attend_simulated)(
            *map(_stack, (*inputs, SEGMENT_IDS_BL, POSITIONS_BL)))
    for s in range(2):
        _assert_close([np.asarray(x)[s] for x in actual], expected)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")    # jax 0.11
@pytest.mark.parametrize("backend, platform, call", [
    ("cudnn", "cuda", "__cudnn$fmhaSoftmaxBackward"),
    ("pallas", "cuda", "mha_backward"),
    ("splash", "tpu", "tpu_custom_call"),
])
def test_kernels_lower_for_their_platform(with_cudnn, inputs, backend, platform, call):
    half = [_stack(x.astype(jnp.bfloat16)) for x in inputs]
    mesh = make_mesh({"stage": 2, "data": 2, "tensor": 2}).abstract_mesh
    device = AbstractDevice("NVIDIA A100-SXM4-80GB", None, "gpu")   # Triton compiles for a kind
    with use_abstract_mesh(mesh.update(abstract_device=device)):
        traced = _with_stages(backends.KERNELS[backend]).trace(
            *half, _stack(SEGMENT_IDS_BL), _stack(POSITIONS_BL))
        assert call in traced.lower(lowering_platforms=(platform,)).as_text()


def test_rematerialisation_that_keeps_attention_does_not_call_cudnn_again(with_cudnn, inputs):
    def count_calls(attention):
        run = jax.jit(jax.value_and_grad(lambda *qkv: attention(*qkv).astype(jnp.float32).sum(),
                                         (0, 1, 2)))
        traced = run.trace(*(x.astype(jnp.bfloat16) for x in inputs[:3]))
        return traced.lower(lowering_platforms=("cuda",)).as_text().count("@__cudnn$fmhaSoftmax(")

    def attend_here(*qkv):
        return cudnn.attend(*qkv, SEGMENT_IDS_BL, None)

    kept, computed_again = (remat(attend_here, policy) for policy in ("names:attention", "full"))
    assert count_calls(kept) == count_calls(attend_here) < count_calls(computed_again)


def test_cudnn_takes_rows_of_odd_length(with_cudnn, inputs):
    odd = [x[:, :L - 1] for x in (*inputs[:3], SEGMENT_IDS_BL)]
    odd[:3] = [x.astype(jnp.bfloat16) for x in odd[:3]]
    assert jax.eval_shape(cudnn.attend, *odd, None).shape == (B, L - 1, H, K)


def test_rows_too_large_for_cudnn_are_refused():
    q_BLHK, k_BLGK = (jax.ShapeDtypeStruct((64, 8192, heads, 128), jnp.bfloat16)
                      for heads in (32, 8))
    segment_ids_BL = jax.ShapeDtypeStruct((64, 8192), jnp.int32)
    with pytest.raises(UserError, match="64 rows of 8192 tokens on one device: are 2147483648"):
        jax.eval_shape(cudnn.attend, q_BLHK, k_BLGK, k_BLGK, segment_ids_BL, segment_ids_BL)
