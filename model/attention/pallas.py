"""Attention by the kernels that ship with Pallas: Triton on GPUs, splash attention on TPUs.

JAX 0.11 calls the Triton kernel deprecated. It stays for GPUs of compute capability 8, an A100 for
example, where cuDNN takes no packed rows; on Hopper it is slower than cuDNN (docs/benchmarks.md).

Both support segments and need rows of whole blocks: rows are padded with a segment of its own.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp

from model.attention.placement import fill_blocks

BLOCK = 128  # tokens; the lanes of a TPU, and the Triton kernel's default
SPLASH_BLOCKS = (512, 256, 128)  # the first that divides a row


def attend_triton(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                  segment_ids_BL: jax.Array, positions_BL: jax.Array, *,
                  interpret: bool = False) -> jax.Array:
    """`attend_documents` by the Triton kernel, on one device; `interpret` runs it on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu.attention import mha

    del positions_BL
    length, num_repeats = q_BLHK.shape[1], q_BLHK.shape[2] // k_BLGK.shape[2]
    k_BLHK, v_BLHK = (jnp.repeat(x, num_repeats, axis=2) for x in (k_BLGK, v_BLGK))
    qkv_BLHK = (fill_blocks(x, BLOCK) for x in (q_BLHK, k_BLHK, v_BLHK))
    segment_ids_BL = fill_blocks(segment_ids_BL, BLOCK, -1)
    out_BLHK = mha(*qkv_BLHK, segment_ids_BL, sm_scale=q_BLHK.shape[-1]**-0.5, causal=True,
                   interpret=interpret)
    return out_BLHK[:, :length]


def attend_splash(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                  segment_ids_BL: jax.Array, positions_BL: jax.Array, *,
                  interpret: bool = False) -> jax.Array:
    """`attend_documents` by splash attention, on one device; `interpret` runs it on a CPU."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    del positions_BL
    length, num_heads, head_size = q_BLHK.shape[1:]
    q_BHLK, k_BGLK, v_BGLK = (jnp.swapaxes(fill_blocks(x, BLOCK), 1, 2)
                              for x in (q_BLHK * head_size**-0.5, k_BLGK, v_BLGK))
    segment_ids_BL = fill_blocks(segment_ids_BL, BLOCK, -1)
    rows = segment_ids_BL.shape[1]
    block = next(size for size in SPLASH_BLOCKS if rows % size == 0)
    sizes = splash.BlockSizes(block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
                              block_q_dq=block, block_kv_dq=block)
    mask = splash.MultiHeadMask([splash.CausalMask((rows, rows))] * num_heads)
    kernel = splash.make_splash_mha_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name="attention", interpret=interpret)
    out_BHLK = jax.vmap(kernel)(q_BHLK, k_BGLK, v_BGLK,
                                splash.SegmentIds(segment_ids_BL, segment_ids_BL))
    return jnp.swapaxes(out_BHLK, 1, 2)[:, :length]
