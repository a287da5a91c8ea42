"""Language-model head fused with cross-entropy, without [B, L, V].

Rows are processed chunk by chunk, and the backward pass recomputes each chunk's logits. Inside, the
letters of a row of hidden states are

    Q chunks          X devices that rows are sharded over
    R rows of a device                T rows of a chunk on one device

so that every device has its own rows in every chunk, and only the head's weight and its gradient
are communicated. Where only some rows are scored, each device sorts these to the front, and chunks
without any are not computed: a prompt costs no logits. A weight that is padded to fit the mesh has
more columns than there are tokens; their logits are minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import Params
from model.parallel.sharding import (
    HEAD_RULES,
    PARAM_RULES,
    constrain,
    fitting_spec,
    pad_vocabulary,
)

# Float32 logits that one device holds at a time when `loss_chunks` is 0. At V=50k it is 5,000
# rows: enough that accumulating the weight's gradient, D x V numbers a chunk, costs little next to
# the matmuls, and about 1 % of the memory of an 80 GB device.
LOGITS_BYTES = 2**30

# Where only some rows are scored, the fewest chunks: what is computed without need is half of one.
SCORED_CHUNKS = 8


def head_weight(params: Params, config: ModelConfig) -> jax.Array:
    """The head's master weight_DV in float32; the embedding's transpose when tied."""
    weight = params["embed_VD" if config.tied else "head_DV"].astype(jnp.float32)
    return weight.T if config.tied else weight


def logits(params: Params, x_BLD: jax.Array, *, config: ModelConfig,
           execution: Execution) -> jax.Array:
    """logits_BLV in float32."""
    weight = params["embed_VD" if config.tied else "head_DV"]
    if hasattr(weight, "project"):
        return _cap(_project(params, x_BLD, weight, config, execution), config.logit_softcap)
    x_BLD, weight_DV = _with_bias(params, x_BLD, config)
    logits_BLV = jnp.einsum("BLD,DV->BLV", x_BLD, weight_DV.astype(execution.compute_dtype),
                            preferred_element_type=jnp.float32)
    return _cap(logits_BLV, config.logit_softcap)


def _project(params: Params, x_BLD: jax.Array, weight: Any, config: ModelConfig,
             execution: Execution) -> jax.Array:
    """logits_BLV, not yet capped, of a head that is no float32 array."""
    x_BLD = x_BLD.astype(jnp.float32)   # the dtype of the result
    logits_BLV = config.logit_scale * weight.project(
        "BLD,VD->BLV" if config.tied else "BLD,DV->BLV", x_BLD, execution)
    return logits_BLV + params["head_bias_V"][None, None] if config.head_bias else logits_BLV


def _with_bias(params: Params, x_BLD: jax.Array, config: ModelConfig) -> tuple[jax.Array, ...]:
    """The head's input and weight_DV, scaled; a bias is one more number of the input, 1."""
    weight_DV = head_weight(params, config)
    if config.logit_scale != 1:
        x_BLD = x_BLD * config.logit_scale
    if config.head_bias:
        x_BLD = jnp.concatenate([x_BLD, jnp.ones_like(x_BLD[..., :1])], axis=-1)
        weight_DV = jnp.concatenate([weight_DV, params["head_bias_V"][None]])
    return x_BLD, weight_DV


def _cap(logits: jax.Array, softcap: float) -> jax.Array:
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


class Head(NamedTuple):
    """What is static in `score_targets`.

    Attributes:
        num_chunks: of the rows.
        keeps_logits: whether the backward pass reads them instead of computing them again.
        dtype: of the matmuls.
        num_tokens: of the vocabulary.
        softcap: of the logits.
    """

    num_chunks: int
    keeps_logits: bool
    dtype: str
    num_tokens: int
    softcap: float


@flax.struct.dataclass
class Scores:
    """Scores of each target, in nats, float32.

    Attributes:
        logp_BL: log-probability of the target.
        log_z_BL: log of the softmax's normaliser, for z-loss.
        top_logit_BL: the largest logit; carries no gradient.
    """

    logp_BL: jax.Array
    log_z_BL: jax.Array
    top_logit_BL: jax.Array


def score_targets(params: Params, x_BLD: jax.Array, targets_BL: jax.Array, *,
                  config: ModelConfig, execution: Execution,
                  scored_BL: jax.Array | None = None) -> Scores:
    """Scores each target: used by pretraining, SFT, DPO and evaluation alike.

    Matmuls run in the compute dtype and accumulate in float32, as does the weight's gradient over
    chunks; softmax and loss are float32. The logits of a single chunk are saved for the backward
    pass, which saves a quarter of the head's work.

    Args:
        x_BLD: hidden states; position l scores `targets_BL[:, l]` (already shifted).
        scored_BL: the targets that count; the scores of others are 0. None scores all of them.
    """
    num_chunks = execution.loss_chunks or chunks_of_budget(x_BLD.shape, config.V)
    x_BLD, weight_DV = _with_bias(params, x_BLD, config)
    head = Head(num_chunks if scored_BL is None else max(num_chunks, SCORED_CHUNKS),
                num_chunks == 1, execution.compute_dtype, config.V, config.logit_softcap)
    scores = _score(head, x_BLD, pad_vocabulary(weight_DV, axis=1), targets_BL, scored_BL)
    if scored_BL is None:
        return scores
    return jax.tree.map(lambda score_BL: jnp.where(scored_BL, score_BL, 0.0), scores)


def token_logps(params: Params, x_BLD: jax.Array, targets_BL: jax.Array, *,
                config: ModelConfig, execution: Execution,
                scored_BL: jax.Array | None = None) -> jax.Array:
    """Log-probability of each target, in nats, float32: logp_BL of `score_targets`."""
    return score_targets(params, x_BLD, targets_BL, config=config, execution=execution,
                         scored_BL=scored_BL).logp_BL


def chunks_of_budget(shape: tuple[int, ...], num_logits: int) -> int:
    """The fewest chunks whose logits fit into `LOGITS_BYTES` on each device of the mesh.

    Args:
        shape: B, L, ... over all devices.
        num_logits: logits of a row, V.
    """
    axes_B, axes_L = _row_axes(shape)
    num_devices = _num_devices((*axes_B, *axes_L, "tensor"))
    return max(1, -(-4 * shape[0] * shape[1] * num_logits // (num_devices * LOGITS_BYTES)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score(head, x_BLD, weight_DV, targets_BL, scored_BL) -> Scores:
    return _forward(head, x_BLD, weight_DV, targets_BL, scored_BL)[0]


def _forward(head, x_BLD, weight_DV, targets_BL, scored_BL):
    """The scores and the residuals: inputs, log_z and, where they are kept, the logits."""
    cast_DV = constrain(weight_DV.astype(head.dtype), "DV")

    def score(x_XTD, targets_XT):
        logits_XTV = _logits(head, x_XTD, cast_DV)
        top_XT = jnp.max(logits_XTV, axis=-1)
        log_z_XT = top_XT + jnp.log(jnp.sum(jnp.exp(logits_XTV - top_XT[..., None]), axis=-1))
        target_XT = jnp.take_along_axis(logits_XTV, targets_XT[..., None], axis=-1)[..., 0]
        scores = Scores(target_XT - log_z_XT, log_z_XT, top_XT)
        return scores, logits_XTV if head.keeps_logits else None

    order_XR, scored_QXT = _sort(head, scored_BL)
    rows = [_split(rows, head.num_chunks, order_XR)
            for rows in (x_BLD.astype(head.dtype), targets_BL)]
    _, (scores, kept_QXTV) = jax.lax.scan(
        lambda _, chunk: (None, _where_scored(chunk[0], score, *chunk[1:])), None,
        (scored_QXT, *rows))
    scores = jax.tree.map(lambda leaf_QXT: _join(leaf_QXT, x_BLD.shape[:2], order_XR), scores)
    return scores, (x_BLD, weight_DV, targets_BL, scored_BL, scores.log_z_BL, kept_QXTV)


def _backward(head, residuals, cotangents):
    """With p = softmax: dlogits = onehot dlogp + p (dlog_z - dlogp), as logp = logit - log_z."""
    x_BLD, weight_DV, targets_BL, scored_BL, log_z_BL, kept_QXTV = residuals
    cast_DV = constrain(weight_DV.astype(head.dtype), "DV")

    def differentiate(x_XTD, targets_XT, log_z_XT, dlogp_XT, dlog_z_XT, logits_XTV):
        if logits_XTV is None:
            logits_XTV = _logits(head, x_XTD, cast_DV)
        p_XTV = jnp.exp(logits_XTV - log_z_XT[..., None])
        # The comparison fuses with the sum around it: no one-hot array is materialised.
        tokens_XTV = jax.lax.broadcasted_iota(targets_XT.dtype, logits_XTV.shape, 2)
        onehot_XTV = jnp.where(tokens_XTV == targets_XT[..., None], dlogp_XT[..., None], 0)
        dlogits_XTV = onehot_XTV + p_XTV * (dlog_z_XT - dlogp_XT)[..., None]
        if head.softcap:    # of c tanh(z / c): 1 - tanh^2; the padding's logits are infinite
            ratio_XTV = jnp.clip(logits_XTV / head.softcap, -1, 1)
            dlogits_XTV *= 1 - ratio_XTV**2
        dlogits_XTV = dlogits_XTV.astype(head.dtype)
        dx_XTD = jnp.einsum("XTV,DV->XTD", dlogits_XTV, cast_DV, preferred_element_type=jnp.float32)
        return dx_XTD.astype(x_BLD.dtype), dlogits_XTV

    def accumulate(dweight_XDV, chunk):
        scored_XT, x_XTD, *rest = chunk

        def with_weight(dweight_XDV, x_XTD, *rest):
            dx_XTD, dlogits_XTV = differentiate(x_XTD, *rest)
            return dweight_XDV + jnp.einsum("XTD,XTV->XDV", x_XTD, dlogits_XTV,
                                            preferred_element_type=jnp.float32), dx_XTD

        if scored_XT is None:
            return with_weight(dweight_XDV, x_XTD, *rest)
        return jax.lax.cond(jnp.any(scored_XT), with_weight,
                            lambda dweight_XDV, x_XTD, *_: (dweight_XDV, jnp.zeros_like(
                                x_XTD, x_BLD.dtype)), dweight_XDV, x_XTD, *rest)

    order_XR, scored_QXT = _sort(head, scored_BL)
    per_row = targets_BL, log_z_BL, cotangents.logp_BL, cotangents.log_z_BL
    rows = [_split(rows, head.num_chunks, order_XR)
            for rows in (x_BLD.astype(head.dtype), *per_row)]
    # One sum per device, reduced over devices once instead of in every chunk.
    axes_B, axes_L = _row_axes(x_BLD.shape)
    zeros_XDV = _cut(jnp.zeros((rows[0].shape[1], *weight_DV.shape), jnp.float32),
                           P(axes_B + axes_L, None, "tensor"))
    dweight_XDV, dx_QXTD = jax.lax.scan(accumulate, zeros_XDV, (scored_QXT, *rows, kept_QXTV))
    dweight_DV = constrain(jnp.sum(dweight_XDV, axis=0), "DV", PARAM_RULES)
    dx_BLD = _join(dx_QXTD, x_BLD.shape[:2], order_XR)
    return dx_BLD, dweight_DV.astype(weight_DV.dtype), None, None


_score.defvjp(_forward, _backward)


def _logits(head: Head, x_XTD: jax.Array, cast_DV: jax.Array) -> jax.Array:
    logits_XTV = jnp.einsum("XTD,DV->XTV", x_XTD, cast_DV, preferred_element_type=jnp.float32)
    logits_XTV = _cap(logits_XTV, head.softcap)
    if cast_DV.shape[1] == head.num_tokens:
        return logits_XTV
    tokens_XTV = jax.lax.broadcasted_iota(jnp.int32, logits_XTV.shape, 2)
    return jnp.where(tokens_XTV < head.num_tokens, logits_XTV, -jnp.inf)


def _where_scored(scored_XT: jax.Array | None, score: Callable, *rows: jax.Array) -> Any:
    """`score(*rows)`; zeros in its place, at no cost, for a chunk without a scored row."""
    if scored_XT is None:
        return score(*rows)
    shapes = jax.eval_shape(score, *rows)
    return jax.lax.cond(jnp.any(scored_XT), score, lambda *_: jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), *rows)


def _sort(head: Head, scored_BL: jax.Array | None) -> tuple[jax.Array | None, ...]:
    """The order of each device's rows with the scored ones first, and which rows of each chunk
    are scored: order_XR, scored_QXT. None where all rows are."""
    if scored_BL is None:
        return None, None
    order_XR = jnp.argsort(~_by_device(scored_BL), axis=1, stable=True)
    return order_XR, _split(scored_BL, head.num_chunks, order_XR)


def _split(rows: jax.Array, num_chunks: int, order_XR: jax.Array | None) -> jax.Array:
    """[B, L, ...] to [Q, X, T, ...]; the last chunk is padded with zeros."""
    axes_B, axes_L = _row_axes(rows.shape)
    rows = _reorder(_by_device(rows), order_XR)
    num_devices, num_rows, *rest = rows.shape
    rows_per_chunk = -(-num_rows // num_chunks)
    missing = -num_rows % rows_per_chunk
    rows = jnp.pad(rows, [(0, 0), (0, missing), *[(0, 0)] * len(rest)])
    rows = rows.reshape(num_devices, -1, rows_per_chunk, *rest)
    return _cut(jnp.moveaxis(rows, 1, 0), P(None, axes_B + axes_L))


def _join(rows: jax.Array, shape: tuple[int, ...], order_XR: jax.Array | None) -> jax.Array:
    """Inverts `_split`: [Q, X, T, ...] to [B, L, ...], with B and L from `shape`."""
    (batch, length, *_), rest, (axes_B, axes_L) = shape, rows.shape[3:], _row_axes(shape)
    over_B, over_L = _num_devices(axes_B), _num_devices(axes_L)
    rows = jnp.moveaxis(rows, 0, 1).reshape(over_B * over_L, -1, *rest)
    rows = rows[:, :batch * length // (over_B * over_L)]
    rows = _reorder(rows, None if order_XR is None else jnp.argsort(order_XR, axis=1))
    rows = rows.reshape(over_B, over_L, batch // over_B, length // over_L, *rest)
    rows = _cut(jnp.moveaxis(rows, 1, 2), P(axes_B, None, axes_L))
    return rows.reshape(batch, length, *rest)


def _by_device(rows: jax.Array) -> jax.Array:
    """[B, L, ...] to [X, R, ...]."""
    (batch, length, *rest), (axes_B, axes_L) = rows.shape, _row_axes(rows.shape)
    over_B, over_L = _num_devices(axes_B), _num_devices(axes_L)
    rows = rows.reshape(over_B, batch // over_B, over_L, length // over_L, *rest)
    rows = _cut(jnp.moveaxis(rows, 2, 1), P(axes_B, axes_L))
    return rows.reshape(over_B * over_L, -1, *rest)


def _reorder(rows: jax.Array, order_XR: jax.Array | None) -> jax.Array:
    """The rows of each device, [X, R, ...], in another order."""
    if order_XR is None:
        return rows
    order = order_XR.reshape(*order_XR.shape, *[1] * (rows.ndim - 2))
    return jnp.take_along_axis(rows, order, axis=1, mode="promise_in_bounds")


def _row_axes(shape: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the current mesh that shard B and L, where they divide them."""
    if jax.sharding.get_abstract_mesh().empty:
        return (), ()
    axes = [(entry,) if isinstance(entry, str) else entry or ()
            for entry in fitting_spec("BL", shape, HEAD_RULES)]
    return axes[0], axes[1]


def _num_devices(axes: tuple[str, ...]) -> int:
    """Number of devices along axes of the current mesh; 1 without a mesh."""
    return math.prod(jax.sharding.get_abstract_mesh().shape.get(axis, 1) for axis in axes)


def _cut(x: jax.Array, spec: P) -> jax.Array:
    """Shards `x` over the current mesh; returns it unchanged without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
