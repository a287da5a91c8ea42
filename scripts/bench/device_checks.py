"""Correctness on the device at hand: what it computes against float32, or against the CPU.

Every check returns a relative error |x - reference| / |reference|, the largest over the arrays that
it compares, and the limit that the precision explains. Inputs are random and the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data.batch import Batch
from model.attention.backends import FASTEST_FIRST, attend_documents
from model.attention.kind import NO_EXTRAS, Kind
from model.attention.reference import attend, document_mask
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import abstract_params, extend, forward, make_cache
from model.heads.language import logits, score_targets
from model.layers.experts import mix_experts
from model.layers.matmul import project
from model.parallel.sharding import make_mesh
from scripts.bench.train_step import OPTIMIZER
from train.loss import next_token_loss
from train.optimizer.optimizers import FIELDS, make_optimizer
from train.step import make_state, make_train_step

MODEL = ModelConfig(V=4096, D=256, N=4, H=4, G=2, K=64, F=512)
ROWS, LENGTH = 4, 256

# Largest relative errors by what rounds: a float32 sum in another order; operands of bfloat16
# (8 bits of significand), once or through a model; int8 and fp8 with one scale.
FLOAT32, BFLOAT16, THROUGH_MODEL, INT8, FP8 = 1e-5, 1e-2, 5e-2, 2e-2, 8e-2

Check = Callable[[], tuple[float, float]]   # -> error, limit


def relative_error(tree: Any, reference: Any) -> float:
    """The largest |x - reference| / |reference| over the leaves of two trees."""
    pairs = zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(jax.device_get(reference)),
                strict=True)
    errors = []
    for x, expected in pairs:
        x, expected = np.asarray(x, np.float64), np.asarray(expected, np.float64)
        errors.append(np.linalg.norm(x - expected) / max(np.linalg.norm(expected), 1e-30))
    return float(max(errors)) if np.all(np.isfinite(errors)) else float("inf")


def on_cpu(function: Callable, *args: Any) -> Any:
    """The function's result in float32 on the CPU of this host."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        return jax.jit(function)(*jax.device_put(args, cpu))


def random(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    """Normal numbers, the same on every device."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def documents(num_rows: int, length: int, num_documents: int) -> tuple[jax.Array, jax.Array]:
    """Segments and positions of rows of documents of uneven length.

    Every row ends its documents elsewhere; most have some padding at the end, unless a row is to be
    a single document, for which backends have kernels of their own.
    """
    rng = np.random.default_rng(num_documents)
    segments_BL = np.zeros((num_rows, length), np.int32)
    positions_BL = np.zeros((num_rows, length), np.int32)
    for row in range(num_rows):
        cuts = np.sort(rng.choice(np.arange(1, length - 8), num_documents - 1, replace=False))
        ends = np.r_[0, cuts, length - (row % 8 if num_documents > 1 else 0)]
        for number, (start, end) in enumerate(pairwise(ends), start=1):
            segments_BL[row, start:end] = number
            positions_BL[row, start:end] = np.arange(end - start)
    return jnp.asarray(segments_BL), jnp.asarray(positions_BL)


def make_params(config: ModelConfig) -> Any:
    """Random parameters, on the host: made without compiling a model's own `init`."""
    shapes = abstract_params(config)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 1 / 16 * rng.standard_normal(leaf.shape, np.float32), shapes)


def make_batch(num_documents: int = 3) -> Batch:
    """Packed rows of random tokens."""
    tokens_BM = np.random.default_rng(0).integers(0, MODEL.V, (ROWS, LENGTH + 1), np.int32)
    segments_BL, positions_BL = documents(ROWS, LENGTH, num_documents)
    weights_BL = (segments_BL > 0).astype(jnp.float32)
    return Batch(jnp.asarray(tokens_BM[:, :-1]), jnp.asarray(tokens_BM[:, 1:]), weights_BL,
                 segments_BL, positions_BL)


def check_attention(backend: str, head_size: int, num_documents: int) -> tuple[float, float]:
    """A backend's output and gradients on packed rows, two query heads to a group."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    execution = Execution(compute_dtype=dtype, attention=backend)
    q, dout = (random(seed, 4, 512, 4, head_size, dtype=dtype) for seed in (0, 3))
    k, v = (random(seed, 4, 512, 2, head_size, dtype=dtype) for seed in (1, 2))
    segments_BL, positions_BL = documents(4, 512, num_documents)

    def run(q, k, v, dout, attention):
        out, pull = jax.vjp(attention, q, k, v)
        is_token = (segments_BL > 0)[:, :, None, None]
        return jnp.where(is_token, out, 0), pull(jnp.where(is_token, dout, 0))

    ours = jax.jit(partial(run, attention=lambda q, k, v: attend_documents(
        q, k, v, segments_BL, positions_BL, kind=Kind(head_size), extras=NO_EXTRAS,
        execution=execution)))(q, k, v, dout)
    mask_BLM = np.asarray(document_mask(segments_BL))
    segments_BL = np.asarray(segments_BL)   # so that the reference is free of the device
    wide = [x.astype(jnp.float32) for x in (q, k, v, dout)]
    reference = on_cpu(partial(run, attention=lambda q, k, v: attend(q, k, v, mask_BLM)), *wide)
    return relative_error(ours, reference), FLOAT32 if dtype == "float32" else BFLOAT16


def _loss_and_gradient(execution: Execution, params: Any, batch: Batch) -> Any:
    loss = partial(next_token_loss, config=MODEL, execution=execution, key=jax.random.key(0))
    (loss_sum, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
    return loss_sum / metrics["loss"][1], gradient


def check_loss(dtype: str) -> tuple[float, float]:
    """A model's loss and gradient in a dtype, with the fastest attention, against float32."""
    params, batch = make_params(MODEL), make_batch()
    ours = jax.jit(partial(_loss_and_gradient, Execution(compute_dtype=dtype)))(params, batch)
    reference = on_cpu(partial(_loss_and_gradient, Execution(attention="xla")), params, batch)
    whole = [relative_error(ours[0], reference[0]),
             relative_error(*(_flat(gradient) for gradient in (ours[1], reference[1])))]
    return max(whole), THROUGH_MODEL if dtype == "bfloat16" else 1e-3    # 1e-3: TF32's rounding


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel()
                           for leaf in jax.tree.leaves(jax.device_get(tree))])


def check_optimizer(name: str) -> tuple[float, float]:
    """The second update of an optimizer from random gradients, against the CPU's."""
    optimizer = make_optimizer(ConfigDict(OPTIMIZER | {"name": name}), num_steps=10)
    config = ModelConfig(V=512, D=64, N=2, H=4, G=2, K=16, F=192)
    params = make_params(config)
    gradients = [jax.tree.map(lambda leaf, seed=seed: np.random.default_rng(
        seed + leaf.size).standard_normal(leaf.shape, np.float32), params) for seed in (0, 1)]

    def two_updates(params, gradients):
        state = optimizer.init(params)
        for gradient in gradients:
            update, state = optimizer.update(gradient, state, params)
        return update

    ours = jax.jit(two_updates)(params, gradients)
    error = relative_error(ours, on_cpu(two_updates, params, gradients))
    return error, THROUGH_MODEL if name == "muon" else FLOAT32   # Muon multiplies in bfloat16


def check_head(dtype: str) -> tuple[float, float]:
    """The chunked head's scores and gradients against a plain softmax over all logits."""
    x_BLD, weight_DV = random(0, 4, 96, MODEL.D), random(1, MODEL.D, MODEL.V) / MODEL.D**0.5
    targets_BL = make_batch().targets_BL[:, :96]
    execution = Execution(compute_dtype=dtype, loss_chunks=5)

    def chunked(x_BLD, weight_DV):
        return score_targets({"head_DV": weight_DV}, x_BLD, targets_BL, config=MODEL,
                             execution=execution).logp_BL

    def naive(x_BLD, weight_DV):
        logp_BLV = jax.nn.log_softmax(jnp.einsum("BLD,DV->BLV", x_BLD, weight_DV))
        return jnp.take_along_axis(logp_BLV, np.asarray(targets_BL)[..., None], -1)[..., 0]

    def run(function, x_BLD, weight_DV):
        logp_BL, pull = jax.vjp(function, x_BLD, weight_DV)
        return logp_BL, pull(jnp.ones_like(logp_BL))

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(partial(run, chunked))(x_BLD, weight_DV)
    reference = on_cpu(partial(run, naive), x_BLD, weight_DV)
    return relative_error(ours, reference), BFLOAT16 if dtype == "bfloat16" else FLOAT32


def check_product(matmul: str) -> tuple[float, float]:
    """A quantised product and its gradients against float32."""
    x_BLD, weight_DF = random(0, 2, 64, 256), random(1, 256, 128)
    dout_BLF = random(2, 2, 64, 128)

    def run(matmul, x_BLD, weight_DF, dout_BLF):
        out_BLF, pull = jax.vjp(lambda x, w: project("BLD,DF->BLF", x, w, Execution(matmul=matmul)),
                                x_BLD, weight_DF)
        return out_BLF, pull(dout_BLF)

    ours = jax.jit(partial(run, matmul))(x_BLD, weight_DF, dout_BLF)
    reference = on_cpu(partial(run, "compute"), x_BLD, weight_DF, dout_BLF)
    return relative_error(ours, reference), {"int8": INT8, "fp8": FP8}[matmul]


def check_experts() -> tuple[float, float]:
    """Experts by ragged products, with their gradients, against the CPU's."""
    sizes = {"router_DE": (64, 8), "w_gate_EDF": (8, 64, 96), "w_up_EDF": (8, 64, 96),
             "w_down_EFD": (8, 96, 64)}
    config = ModelConfig(V=2, D=64, N=1, H=1, G=1, K=2, F=96, E=8)
    weights = {name: random(seed, *shape) / 8 for seed, (name, shape) in enumerate(sizes.items())}

    def run(h_BLD, weights):
        is_token_BL = jnp.ones(h_BLD.shape[:2], bool)
        out_BLD, pull = jax.vjp(lambda h, w: mix_experts(
            h, is_token_BL, w, config=config, dtype="float32")[0], h_BLD, weights)
        return out_BLD, pull(jnp.ones_like(out_BLD))

    h_BLD = random(9, 2, 64, 64)
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(run)(h_BLD, weights)
    return relative_error(ours, on_cpu(run, h_BLD, weights)), 10 * FLOAT32


def check_cache() -> tuple[float, float]:
    """Logits of a prefill and a decode step against those of the full forward pass."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    params, execution = make_params(MODEL), Execution(dtype)
    bind = dict(config=MODEL, execution=execution)
    tokens_BL = make_batch().tokens_BL[:, :65]
    positions_BL = jnp.broadcast_to(jnp.arange(65, dtype=jnp.int32), tokens_BL.shape)

    def stepwise(params, tokens_BL):
        cache = make_cache(MODEL, execution, ROWS, 80)
        count_B = jnp.full(ROWS, 64, jnp.int32)
        first_BLD, cache = extend(params, tokens_BL[:, :64], count_B, cache, **bind)
        cache = cache.advance(tokens_BL[:, :64], count_B)
        last_BLD, _ = extend(params, tokens_BL[:, 64:], jnp.ones(ROWS, jnp.int32), cache, **bind)
        return logits(params, jnp.concatenate([first_BLD, last_BLD], axis=1), **bind)

    def whole(params, tokens_BL):
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(positions_BL), **bind)
        return logits(params, x_BLD, **bind)

    error = relative_error(jax.jit(stepwise)(params, tokens_BL), jax.jit(whole)(params, tokens_BL))
    return error, FLOAT32 if dtype == "float32" else THROUGH_MODEL


def check_repetition() -> tuple[float, float]:
    """The parameters after a step that runs twice from one state; 0 if they are equal to the bit.

    Resuming to the bit needs it. On a GPU, cuDNN adds gradients of attention in any order.
    """
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    optimizer = make_optimizer(ConfigDict(OPTIMIZER), num_steps=10)
    loss = partial(next_token_loss, config=MODEL, execution=Execution(dtype))
    results = []
    for _ in range(2):
        params = jax.tree.map(jnp.asarray, make_params(MODEL))
        state = make_state(params, optimizer, jax.random.key(1), mesh)
        step = make_train_step(loss, optimizer, state, mesh)
        with jax.set_mesh(mesh):
            results.append(_flat(step(state, make_batch())[0].params))
    return relative_error(*results), 0.0 if dtype == "float32" else BFLOAT16


def list_checks() -> dict[str, Check]:
    """The checks by name, the most telling first."""
    backends = FASTEST_FIRST.get(jax.default_backend(), ("xla",))
    checks: dict[str, Check] = {
        f"{backend} attention, heads of {head_size}, {num_documents} documents a row":
            partial(check_attention, backend, head_size, num_documents)
        for backend in backends for head_size, num_documents in ((64, 3), (128, 40), (128, 1))}
    checks |= {f"loss and gradient in {dtype}": partial(check_loss, dtype)
               for dtype in ("bfloat16", "float32")}
    checks |= {f"chunked head in {dtype}": partial(check_head, dtype)
               for dtype in ("bfloat16", "float32")}
    checks |= {f"{name} update": partial(check_optimizer, name) for name in FIELDS}
    checks |= {f"{matmul} product": partial(check_product, matmul) for matmul in ("int8", "fp8")}
    return checks | {"experts": check_experts, "cached decode": check_cache,
                     "the same step twice": check_repetition}
