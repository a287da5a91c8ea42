"""Attention by a kernel that takes packed documents as lengths and offsets.

The number of documents in a row is fixed when such a kernel is compiled, and its memory grows with
that number. So the first call processes the first documents of every row and further calls the
next ones, as many as the row with most documents needs: exact for any row, one call for most.
Where every row is a single document, the kernel's plain causal form runs instead, which is two to
three times as fast on an H200 (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap

# Of a row; letter P. Memory is float32 per token, head and document, and each costs time even where
# a row has fewer: with 8 documents a call takes 1.4 ms at 32, 0.9 at 16, 0.65 at 8
# (docs/benchmarks.md). Most rows of 2,048 tokens hold at most 16.
DOCUMENTS_PER_CALL = 16


class Documents(NamedTuple):
    """Some consecutive documents of each row; -1 where a row has no more."""

    lengths_BP: jax.Array
    offsets_BP: jax.Array  # [B, P+1], the last always -1


class Kernel(NamedTuple):
    """A kernel and its gradient, for packed rows and for rows of one document each.

    Results outside of the documents are ignored.

    forward(q, k, v, documents) -> out_BLHK, stats_BPHL
    backward(q, k, v, documents, stats_BPHL, out_BLHK, dout_BLHK) -> dq_BLHK, dk_BLGK, dv_BLGK
    forward_whole(q, k, v) -> out_BLHK, stats_BHL
    backward_whole(q, k, v, stats_BHL, out_BLHK, dout_BLHK) -> dq_BLHK, dk_BLGK, dv_BLGK
    """

    forward: Callable
    backward: Callable
    forward_whole: Callable
    backward_whole: Callable


def number_documents(segment_ids_BL: jax.Array) -> jax.Array:
    """Number of each token's document in its row, from 0: a document is a run of one segment id.

    Padding counts as one too, so every token is in some document, and what the kernel leaves
    unwritten is never read.
    """
    before_BL = jnp.pad(segment_ids_BL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return jnp.cumsum(segment_ids_BL != before_BL, axis=1) - 1


def list_documents(number_BL: jax.Array, call: int | jax.Array) -> Documents:
    """The documents of the `call`-th call: those numbered from call * P on."""
    num_p = _num_per_call(number_BL)
    number_P = call * num_p + jnp.arange(num_p)
    is_in_BLP = number_BL[:, :, None] == number_P[None, None]
    lengths_BP = is_in_BLP.sum(1, dtype=jnp.int32)
    offsets_BP = jnp.argmax(is_in_BLP, axis=1).astype(jnp.int32)
    lengths_BP, offsets_BP = (jnp.where(lengths_BP > 0, x, -1) for x in (lengths_BP, offsets_BP))
    return Documents(lengths_BP, jnp.pad(offsets_BP, ((0, 0), (0, 1)), constant_values=-1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_packed(kernel: Kernel, q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                  segment_ids_BL: jax.Array) -> jax.Array:
    """Causal attention inside each document; returns out_BLHK."""
    return _forward(kernel, q_BLHK, k_BLGK, v_BLGK, segment_ids_BL)[0]


def _forward(kernel, q_BLHK, k_BLGK, v_BLGK, segment_ids_BL):
    number_BL = number_documents(segment_ids_BL)
    out_BLHK, stats_BPHL = _as_rows(partial(_run_forward, kernel))(
        q_BLHK, k_BLGK, v_BLGK, number_BL)
    # Rematerialisation that saves both does not call the kernel again.
    out_BLHK, stats_BPHL = checkpoint_name((out_BLHK, stats_BPHL), "attention")
    return out_BLHK, (q_BLHK, k_BLGK, v_BLGK, number_BL, stats_BPHL, out_BLHK)


def _run_forward(kernel, q_BLHK, k_BLGK, v_BLGK, number_BL):
    """The output, and the statistics of the first call; those of whole rows are at P = 0."""
    run = partial(kernel.forward, q_BLHK, k_BLGK, v_BLGK)

    def whole():
        out_BLHK, stats_BHL = kernel.forward_whole(q_BLHK, k_BLGK, v_BLGK)
        unused = (0, _num_per_call(number_BL) - 1)
        return out_BLHK, jnp.pad(stats_BHL[:, None], ((0, 0), unused, (0, 0), (0, 0)))

    def packed():
        def call(n, out_BLHK):
            return _take(number_BL, n, run(list_documents(number_BL, n))[0], out_BLHK)

        out_BLHK, stats_BPHL = run(list_documents(number_BL, 0))
        return jax.lax.fori_loop(1, _num_calls(number_BL), call, out_BLHK), stats_BPHL

    return jax.lax.cond(number_BL.max() == 0, whole, packed)


def _backward(kernel, residuals, dout_BLHK):
    return *_as_rows(partial(_run_backward, kernel))(*residuals, dout_BLHK), None


def _run_backward(kernel, q_BLHK, k_BLGK, v_BLGK, number_BL, stats_BPHL, out_BLHK, dout_BLHK):
    qkv = q_BLHK, k_BLGK, v_BLGK

    def whole():
        return kernel.backward_whole(*qkv, stats_BPHL[:, 0], out_BLHK, dout_BLHK)

    def packed():
        def call(n, gradients):  # only the first call's statistics are saved
            documents = list_documents(number_BL, n)
            _, stats_BPHL = kernel.forward(*qkv, documents)
            new = kernel.backward(*qkv, documents, stats_BPHL, out_BLHK, dout_BLHK)
            return tuple(_take(number_BL, n, *pair) for pair in zip(new, gradients))

        gradients = kernel.backward(*qkv, list_documents(number_BL, 0), stats_BPHL, out_BLHK,
                                    dout_BLHK)
        return jax.lax.fori_loop(1, _num_calls(number_BL), call, tuple(gradients))

    return jax.lax.cond(number_BL.max() == 0, whole, packed)


attend_packed.defvjp(_forward, _backward)


def _num_per_call(number_BL):
    return min(DOCUMENTS_PER_CALL, number_BL.shape[1])


def _num_calls(number_BL):
    """Number of calls that the row with most documents needs."""
    return number_BL.max() // _num_per_call(number_BL) + 1


def _take(number_BL, call, new_BLHK, old_BLHK):
    """Replaces `old_BLHK` by the result of the `call`-th call for the tokens of its documents."""
    is_new_BL = number_BL // _num_per_call(number_BL) == call
    return jnp.where(is_new_BL[:, :, None, None], new_BLHK, old_BLHK)


def _as_rows(function):
    """Makes `vmap` of a function over rows add rows, as kernels support no further batch axis."""
    wrapped = custom_vmap(function)

    @wrapped.def_vmap
    def fold(size, is_mapped, *args):
        args = jax.tree.map(lambda x, mapped: x if mapped else jnp.broadcast_to(
            x[None], (size, *x.shape)), args, tuple(is_mapped))
        out = wrapped(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), args))
        out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return wrapped
