"""cuDNN's fused attention for packed rows.

`jax.nn.dot_product_attention` does not pass segments to cuDNN, so this calls the private functions
that it is built on. `load` is the only place that uses private names of JAX, and checks them first.
"""

from __future__ import annotations

import inspect
from functools import cache

import jax
import jax.numpy as jnp

from core.errors import UserError
from model.attention.packed import Documents, Kernel, attend_packed
from model.attention.placement import fill_blocks

FORWARD = ("query", "key", "value", "bias", "q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets",
           "page_table_k", "page_table_v", "scale", "seed", "dropout_rate", "variadic_args",
           "mask_type", "layout", "sliding_window_length", "cudnn_version", "return_residual")
BACKWARD = ("scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout",
            "sliding_window_length", "is_training", "return_residual", "res", "grad_output")
OLDEST_CUDNN = 90600  # the first with packed rows


def attend(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array, segment_ids_BL: jax.Array,
           positions_BL: jax.Array) -> jax.Array:
    """`attend_documents` by cuDNN, on one device.

    Raises:
        UserError: the rows of this device are too large for cuDNN.
    """
    del positions_BL
    if q_BLHK.size >= 2**31:
        raise UserError(f"{q_BLHK.shape[0]} rows of {q_BLHK.shape[1]} tokens on one device",
                        f"are {q_BLHK.size} numbers a layer; cuDNN counts them in 32 bits",
                        "use a smaller batch, more microbatches or another mesh")
    length = q_BLHK.shape[1]
    args = (fill_blocks(x, 2) for x in (q_BLHK, k_BLGK, v_BLGK, segment_ids_BL))  # L must be even
    return attend_packed(load(), *args)[:, :length]


@cache
def load() -> Kernel:
    """cuDNN's attention and its gradient, as JAX's own custom gradient calls them.

    Raises:
        RuntimeError: the installed JAX or cuDNN lacks them; names what is missing.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as fused

        forward = fused._dot_product_attention_fwd_rule
        backward = fused._dot_product_attention_bwd_rule
        masks, layout = fused.MaskType, fused.AttentionLayout.BTNH.value
        version = fused.check_cudnn_version()
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"needs functions that jax {jax.__version__} lacks: {error}") from None
    except RuntimeError:
        raise RuntimeError("needs cuDNN, which JAX does not find") from None
    for rule, expected in ((forward, FORWARD), (backward, BACKWARD)):
        if tuple(inspect.signature(rule).parameters) != expected:
            raise RuntimeError(f"does not support the {rule.__name__} of jax {jax.__version__}")
    if version < OLDEST_CUDNN:
        raise RuntimeError(f"needs cuDNN {OLDEST_CUDNN}, not {version}")
    def settings(mask):
        # seed, dropout, (bias, gradient of bias), mask, layout, window, version, statistics wanted
        return 0, 0.0, (False, False), mask, layout, None, version, False

    return Kernel(*_make_packed(forward, backward, settings(masks.PADDING_CAUSAL)),
                  *_make_whole(forward, backward, settings(masks.CAUSAL)))


def _make_packed(forward_rule, backward_rule, settings):
    """The kernel of packed rows; residuals are (operands..., statistics [B * P, H, L], output)."""
    def operands(q_BLHK, k_BLGK, v_BLGK, documents: Documents):
        # JAX 0.10 computes the offsets of keys with the number of query heads
        # (github.com/jax-ml/jax/pull/39521): right only if both are the same.
        num_repeats = q_BLHK.shape[2] // k_BLGK.shape[2]
        k_BLHK, v_BLHK = (jnp.repeat(x, num_repeats, axis=2) for x in (k_BLGK, v_BLGK))
        unused, lengths_BP, offsets_BP = jnp.zeros(0, q_BLHK.dtype), *documents
        return (q_BLHK, k_BLHK, v_BLHK, unused, lengths_BP, lengths_BP, offsets_BP, offsets_BP,
                unused, unused)

    def forward(q_BLHK, k_BLGK, v_BLGK, documents):
        out_BLHK, residuals = forward_rule(*operands(q_BLHK, k_BLGK, v_BLGK, documents),
                                           q_BLHK.shape[-1]**-0.5, *settings)
        stats = residuals[-2]
        return out_BLHK, stats.reshape(q_BLHK.shape[0], -1, *stats.shape[1:])

    def backward(q_BLHK, k_BLGK, v_BLGK, documents, stats_BPHL, out_BLHK, dout_BLHK):
        residuals = (*operands(q_BLHK, k_BLGK, v_BLGK, documents),
                     stats_BPHL.reshape(-1, *stats_BPHL.shape[2:]), out_BLHK)
        dq_BLHK, *dkv_BLHK = backward_rule(q_BLHK.shape[-1]**-0.5, *settings, residuals,
                                           dout_BLHK)[:3]
        return dq_BLHK, *(x.reshape(*k_BLGK.shape[:3], -1, x.shape[-1]).sum(3) for x in dkv_BLHK)

    return forward, backward


def _make_whole(forward_rule, backward_rule, settings):
    """The kernel of rows that are one document each: no lengths, no offsets."""
    def forward(q_BLHK, k_BLGK, v_BLGK):
        unused = (jnp.zeros(0, q_BLHK.dtype),) * 7
        out_BLHK, residuals = forward_rule(q_BLHK, k_BLGK, v_BLGK, *unused,
                                           q_BLHK.shape[-1]**-0.5, *settings)
        return out_BLHK, residuals[-2]

    def backward(q_BLHK, k_BLGK, v_BLGK, stats_BHL, out_BLHK, dout_BLHK):
        unused = (jnp.zeros(0, q_BLHK.dtype),) * 7
        residuals = (q_BLHK, k_BLGK, v_BLGK, *unused, stats_BHL, out_BLHK)
        return tuple(backward_rule(q_BLHK.shape[-1]**-0.5, *settings, residuals, dout_BLHK)[:3])

    return forward, backward
