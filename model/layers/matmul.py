"""Matmuls of a block, in the compute dtype, int8 or fp8.

Values are quantised in every call by their current largest magnitude, with a straight-through
gradient: that of the matmul, as if nothing had been rounded.

    compute  the compute dtype, forward and backward
    int8     forward int8 x int8 -> int32, one scale for each row of `x` and each output channel
             (arXiv 2208.07339, section 3); backward the compute dtype
    fp8      e4m3 x e4m3 forward, e5m2 x e4m3 backward (arXiv 2209.05433), accumulated in float32,
             one scale for each tensor
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from core.errors import UserError
from model.execution import Execution

# Letters of the blocks' dense projections, with those that are summed over.
PROJECTIONS = {"DHK": "D", "DGK": "D", "HKD": "HK", "DF": "D", "FD": "F"}
SMALLEST_AMAX = 1e-30  # instead of 0, so that zeros stay zeros; NaN stays NaN
FP8_MULTIPLE = 16      # that sizes of the tensor cores' fp8 matmul must be divisible by


def project(equation: str, x: jax.Array, weight: Any, execution: Execution) -> jax.Array:
    """`einsum(equation, x, weight)`, in the precision that `execution.matmul` names.

    Args:
        equation: letters that `x` and `weight` share are summed over.
        x: activations in the compute dtype.
        weight: a float32 master weight; or a weight of `model.adapters`, which has its own
            `project(equation, x, execution)`.

    Returns:
        The product in the dtype of `x`.

    Raises:
        UserError: fp8 does not support a weight of this shape.
    """
    if hasattr(weight, "project"):
        return weight.project(equation, x, execution)
    if execution.matmul == "compute":
        return jnp.einsum(equation, x, weight.astype(execution.compute_dtype))
    if execution.matmul == "int8":
        return _project_int8(equation, x, weight)
    _check_fp8(equation, weight)
    return _project_fp8(equation, x, weight)


def letters_of_equation(equation: str) -> tuple[str, str, str]:
    """Letters of the two operands and of the result."""
    operands, out = equation.split("->")
    return *operands.split(","), out


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project_int8(equation, x, weight):
    in_x, in_weight, out = letters_of_equation(equation)
    x_int8, x_scale = _quantise_int8(x, in_x, in_weight)
    weight_int8, weight_scale = _quantise_int8(weight, in_weight, in_x)
    # 127**2 fits 133,000 times into int32: more than any width.
    total = jnp.einsum(equation, x_int8, weight_int8, preferred_element_type=jnp.int32)
    scale = [jnp.expand_dims(scale, [i for i, c in enumerate(out) if c not in letters])
             for scale, letters in ((x_scale, in_x), (weight_scale, in_weight))]
    return (total.astype(jnp.float32) * scale[0] * scale[1]).astype(x.dtype)


def _quantise_int8(x: jax.Array, letters: str, others: str) -> tuple[jax.Array, jax.Array]:
    """Returns int8 `x` and its scales over the letters of `x` that are not among `others`."""
    summed = [i for i, c in enumerate(letters) if c in others]
    rounded, scale = round_to_int8(x, summed)
    return rounded, jnp.squeeze(scale, summed)


def round_to_int8(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns int8 `x` and its float32 scale, by the largest magnitude along `axes`, which are kept
    with size 1."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(largest_magnitude(x, axes), SMALLEST_AMAX) / 127
    return jnp.round(x / scale).astype(jnp.int8), scale


def largest_magnitude(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The largest magnitude of float32 `x` along `axes`, which are kept; NaN if there is one.

    Magnitudes have the order of their bits as integers, where NaN is the largest; XLA's maximum of
    floats may drop it on a CPU.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.max(bits, axis=axes, keepdims=True), jnp.float32)


def _int8_backward(equation, residuals, dout):
    x, weight = residuals
    in_x, in_weight, out = letters_of_equation(equation)
    dx = jnp.einsum(f"{out},{in_weight}->{in_x}", dout, weight.astype(x.dtype))
    dweight = jnp.einsum(f"{in_x},{out}->{in_weight}", x, dout,
                         preferred_element_type=jnp.float32)
    return dx, dweight.astype(weight.dtype)


_project_int8.defvjp(lambda equation, x, weight: (_project_int8(equation, x, weight), (x, weight)),
                     _int8_backward)


def _check_fp8(equation: str, weight: jax.Array) -> None:
    in_x, in_weight, _ = letters_of_equation(equation)
    for summed in (True, False):
        letters = [c for c in in_weight if (c in in_x) == summed]
        size = math.prod(weight.shape[in_weight.index(c)] for c in letters)
        if size % FP8_MULTIPLE:
            raise UserError("matmul='fp8'",
                            f"{' x '.join(letters)} = {size} is no multiple of {FP8_MULTIPLE}",
                            "change --config.model." + " or --config.model.".join(letters))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project_fp8(equation, x, weight):
    return _einsum_fp8(equation, _quantise_fp8(x, jnp.float8_e4m3fn),
                       _quantise_fp8(weight, jnp.float8_e4m3fn)).astype(x.dtype)


def _quantise_fp8(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Returns `x` in `dtype` and the scalar scale that maps its largest magnitude to `dtype`'s."""
    x, largest = x.astype(jnp.float32), float(jnp.finfo(dtype).max)
    scale = jnp.maximum(jnp.max(jnp.abs(x)), SMALLEST_AMAX) / largest
    return (x / scale).astype(dtype), scale


def _einsum_fp8(equation: str, a: tuple[jax.Array, jax.Array],
                b: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Einsum of quantised operands in float32; `jnp.einsum` does not mix e4m3 and e5m2."""
    in_a, in_b, out = letters_of_equation(equation)
    summed = [c for c in in_a if c in in_b]
    contract = [[letters.index(c) for c in summed] for letters in (in_a, in_b)]
    assert out == "".join(c for c in in_a + in_b if c not in summed), equation
    total = jax.lax.dot_general(a[0], b[0], (contract, ([], [])),
                                preferred_element_type=jnp.float32)
    return total * (a[1] * b[1])


def _fp8_backward(equation, residuals, dout):
    x, weight = residuals
    in_x, in_weight, out = letters_of_equation(equation)
    dout_fp8 = _quantise_fp8(dout, jnp.float8_e5m2)
    dx = _einsum_fp8(f"{out},{in_weight}->{in_x}", dout_fp8,
                     _quantise_fp8(weight, jnp.float8_e4m3fn))
    dweight = _einsum_fp8(f"{in_x},{out}->{in_weight}", _quantise_fp8(x, jnp.float8_e4m3fn),
                          dout_fp8)
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


_project_fp8.defvjp(lambda equation, x, weight: (_project_fp8(equation, x, weight), (x, weight)),
                    _fp8_backward)
