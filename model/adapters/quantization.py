"""Weight-only quantisation: weights in 8 or 4 bits, activations in the compute dtype.

    int8    symmetric, one float32 scale for each output channel: 8 bits a weight
    int4    groups of 32 along the summed axes, each with a bfloat16 scale and offset (as GGUF's
            Q4_1): 5 bits a weight. Tables of tokens and the head are int8: they are a logit's last
            matmul, and 4 bits there cost more than in all layers.

A quantised weight takes the place of a float32 leaf in the parameters, alone or stacked over layers
along a leading axis N; `model.layers.matmul.project` calls its `project`. Norms, biases, routers
and small tables stay float32.

On a CPU a matmul reads few rows and waits for memory, so XLA's int8 matmul is the fastest: each row
of activations is written as two int8 digits, `x = scale (254 high + low)`, about 16 bits, and both
are multiplied with the int8 weight in one call. Otherwise weights are converted where they are
used, which XLA fuses into the matmul on a GPU or TPU.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from model.execution import Execution
from model.layers.matmul import (
    SMALLEST_AMAX,
    largest_magnitude,
    letters_of_equation,
    round_to_int8,
)
from model.parallel.sharding import is_weight, letters_of, param_name

KINDS = ("int8", "int4")
GROUP = 32              # weights of int4 that share a scale and an offset
DIGIT_BASE = 254        # both digits of an activation lie within +-127
LARGEST_DIGITS = 127 * DIGIT_BASE + 126
# Positions of a row up to which activations are written as digits. Above about 64 rows of
# activations converting the weight costs less than multiplying with two digits. The number of rows
# of the batch plays no part, as a row's result must not depend on it.
DIGIT_POSITIONS = 8


@flax.struct.dataclass
class Int8Weight:
    """A weight in int8: `values * scale`.

    Attributes:
        values: int8, of the weight's shape.
        scale: float32, of the same rank; 1 along the axes that are summed over.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.values.shape

    def astype(self, dtype: Any) -> jax.Array:
        """The weight as an array."""
        return (self.values.astype(jnp.float32) * self.scale).astype(dtype)

    def __getitem__(self, indices: jax.Array) -> jax.Array:
        """Rows of a table, in float32."""
        return self.values[indices].astype(jnp.float32) * self.scale[indices]

    def project(self, equation: str, x: jax.Array, execution: Execution) -> jax.Array:
        """`einsum(equation, x, weight)` in the dtype of `x`; see `model.layers.matmul.project`.

        Args:
            x: activations, [B, L, ...].

        Raises:
            ValueError: the equation sums over an axis with more than one scale.
        """
        in_x, in_weight, _ = letters_of_equation(equation)
        if any(c in in_x and size > 1 for c, size in zip(in_weight, self.scale.shape)):
            raise ValueError(f"{equation!r} sums over an axis of scales {self.scale.shape}")
        convert = partial(_multiply_floats, equation, execution.compute_dtype)
        if x.shape[1] > DIGIT_POSITIONS:
            return convert(x, self)
        return jax.lax.platform_dependent(x, self, cpu=partial(_multiply_digits, equation),
                                          default=convert)


@flax.struct.dataclass
class Int4Weight:
    """A weight in groups of 4-bit numbers: `scale * number + offset`.

    The summed axes are one here, padded with zeros to pairs of groups. A byte holds a number of
    each group of a pair: of the first, -8 to 7, in its high bits, of the second, 0 to 15, in its
    low ones.

    Attributes:
        packed: int8, [..., pairs, 32, ...].
        scale, offset: bfloat16, [..., pairs, 2, ...].
        summed: sizes of the axes that are summed over.
        num_after: axes behind them.
    """

    packed: jax.Array
    scale: jax.Array
    offset: jax.Array
    summed: tuple[int, ...] = flax.struct.field(pytree_node=False)
    num_after: int = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        place = self.packed.ndim - self.num_after
        return (*self.packed.shape[:place - 2], *self.summed, *self.packed.shape[place:])

    def astype(self, dtype: Any) -> jax.Array:
        """The weight as an array."""
        return self._convert(dtype, jnp.int8(-16), jnp.int8(15))

    def project(self, equation: str, x: jax.Array, execution: Execution) -> jax.Array:
        """`einsum(equation, x, weight)` in the dtype of `x`; see `model.layers.matmul.project`."""
        dtype = execution.compute_dtype
        weight = self._convert(dtype, _when_known(x, -16), _when_known(x, 15))
        return jnp.einsum(equation, x.astype(dtype), weight,
                          preferred_element_type=jnp.float32).astype(x.dtype)

    def _convert(self, dtype: Any, high: jax.Array, low: jax.Array) -> jax.Array:
        """The weight as an array, given the masks of a byte's high and low bits."""
        place = self.packed.ndim - self.num_after - 1
        numbers = [(self.packed & high).astype(jnp.float32) / 16,
                   (self.packed & low).astype(jnp.float32)]
        groups = [numbers[i] * jax.lax.slice_in_dim(self.scale, i, i + 1, axis=place)
                  + jax.lax.slice_in_dim(self.offset, i, i + 1, axis=place) for i in range(2)]
        # In this order the groups of each pair lie one behind the other.
        weight = jnp.stack(groups, axis=place).astype(dtype)
        shape = self.packed.shape
        weight = weight.reshape(*shape[:place - 1], -1, *shape[place + 1:])
        weight = jax.lax.slice_in_dim(weight, 0, math.prod(self.summed), axis=place - 1)
        return weight.reshape(self.shape)


def quantize(params: Any, kind: str) -> Any:
    """Quantises the weights of a tree of float32 parameters.

    Sharded parameters stay sharded: shards are rounded where they are.

    Args:
        kind: one of `KINDS`.

    Raises:
        UserError: the kind is unknown.
    """
    if kind not in KINDS:
        raise UserError(f"weights={kind!r}", f"is none of {', '.join(KINDS)}", "choose one of them")
    return _quantize(params, kind)


@partial(jax.jit, static_argnames="kind")
def _quantize(params: Any, kind: str) -> Any:
    """`quantize` as one program: by itself every operation on every weight would be compiled."""
    def convert(path, leaf):
        axes = summed_axes(path, leaf.ndim)
        if not axes:
            return leaf
        if kind == "int8" or "V" in letters_of(path, leaf.ndim):
            return quantize_int8(leaf, axes)
        return quantize_int4(leaf, axes)

    return jax.tree_util.tree_map_with_path(convert, params)


def summed_axes(path: tuple[Any, ...], rank: int) -> tuple[int, ...]:
    """The axes that a matmul with the parameter at `path` sums over; none if it is no such weight.

    They lie side by side. A weight back to the stream ends in D and sums all its axes but that of
    experts; other weights sum their first axis, that of experts aside; tables of tokens, which may
    be the head too, sum D.
    """
    letters, name = letters_of(path, rank), param_name(path)
    if letters == "VD":
        return (1,)
    if (not is_weight(path, rank) and letters != "DV") or name.startswith("router"):
        return ()
    first = len(letters) - len(letters.lstrip("NE"))
    if letters[-1] == "D":
        return tuple(range(first, rank - 1))
    return (first + letters[first:].startswith("Z"),)


@partial(jax.jit, static_argnums=1)
def quantize_int8(weight: jax.Array, axes: tuple[int, ...]) -> Int8Weight:
    """Rounds a weight to int8, with a scale for each channel.

    Args:
        axes: those that matmuls sum over.
    """
    return Int8Weight(*round_to_int8(weight, axes))


@partial(jax.jit, static_argnums=1)
def quantize_int4(weight: jax.Array, axes: tuple[int, ...]) -> Int4Weight:
    """Rounds a weight to 4 bits, with a scale and an offset for each group.

    The range of a group is divided evenly, from its smallest to its largest weight.

    Args:
        axes: those that matmuls sum over, side by side.
    """
    place, num_after = axes[0], weight.ndim - axes[-1] - 1
    summed, shape = tuple(weight.shape[axis] for axis in axes), weight.shape
    size = math.prod(summed)
    flat = weight.reshape(*shape[:place], size, *shape[axes[-1] + 1:])
    padding = [(0, 0)] * flat.ndim
    padding[place] = (0, -size % (2 * GROUP))
    pairs = jnp.pad(flat, padding).reshape(*shape[:place], -1, 2, GROUP, *flat.shape[place + 1:])
    smallest, largest = (reduce(pairs, axis=place + 2) for reduce in (jnp.min, jnp.max))
    scale = ((largest - smallest) / 15).astype(jnp.bfloat16)
    # XLA's minimum and maximum may drop NaN on a CPU.
    scale = jnp.where(jnp.any(jnp.isnan(pairs), axis=place + 2), jnp.nan, scale)
    # The number that each group begins at.
    start = jnp.expand_dims(jnp.array([-8, 0]), [axis for axis in range(scale.ndim)
                                                 if axis != place + 1])
    offset = (smallest - start * scale.astype(jnp.float32)).astype(jnp.bfloat16)
    step, zero, low = (jnp.expand_dims(leaf.astype(jnp.float32), place + 2)
                       for leaf in (scale, offset, jnp.broadcast_to(start, scale.shape)))
    numbers = jnp.clip(jnp.round((pairs - zero) / jnp.maximum(step, SMALLEST_AMAX)), low, low + 15)
    high, low = jnp.moveaxis(numbers.astype(jnp.int8), place + 1, 0)
    return Int4Weight(16 * high + low, scale, offset, summed, num_after)


def weight_bytes(params: Any) -> int:
    """Bytes that parameters hold, over all devices, without copies."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _when_known(x: jax.Array, mask: int) -> jax.Array:
    """The int8 mask, as a value that XLA has only once it has `x`.

    XLA for CPUs would otherwise convert the weights of all layers first, into memory that is new in
    every step and many times slower than a cache that the next weight uses again.
    """
    first = jax.lax.stop_gradient(x).ravel()[0].astype(jnp.float32)
    # Never 0, which XLA does not see; it would see that a magnitude is not negative.
    is_zero = (jax.lax.bitcast_convert_type(first, jnp.int32) | 1) == 0
    return jnp.where(is_zero, 0, mask).astype(jnp.int8)


def _multiply_floats(equation: str, dtype: str, x: jax.Array, weight: Int8Weight) -> jax.Array:
    """Converts the weight where it is used, and applies its scale to the product."""
    values = (weight.values & _when_known(x, -1)).astype(dtype)
    product = jnp.einsum(equation, x.astype(dtype), values, preferred_element_type=jnp.float32)
    return (product * _scale_of_result(equation, weight)).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply_digits(equation: str, x: jax.Array, weight: Int8Weight) -> jax.Array:
    """Multiplies both int8 digits of each row of `x`; exact but for the rounding of `x`.

    127**2 fits 133,000 times into int32: more than any width. There are always two rows or more:
    XLA's int8 matmul of a single one is thirty times slower.
    """
    in_x, in_weight, out = letters_of_equation(equation)
    summed = [i for i, c in enumerate(in_x) if c in in_weight]
    rows = x.astype(jnp.float32)
    scale = jnp.maximum(largest_magnitude(rows, summed), SMALLEST_AMAX) / LARGEST_DIGITS
    number = jnp.round(rows / scale)
    high = jnp.round(number / DIGIT_BASE)
    digits = jnp.stack([high, number - DIGIT_BASE * high]).astype(jnp.int8)
    high, low = jnp.einsum(f"X{in_x},{in_weight}->X{out}", digits, weight.values,
                           preferred_element_type=jnp.int32).astype(jnp.float32)
    row_scale = jnp.expand_dims(jnp.squeeze(scale, summed),
                                [i for i, c in enumerate(out) if c not in in_x])
    product = (DIGIT_BASE * high + low) * row_scale * _scale_of_result(equation, weight)
    return product.astype(x.dtype)


def _digits_backward(equation, weight, dout):
    """The gradient of the matmul, as if `x` had not been rounded; none for the weight."""
    in_x, in_weight, out = letters_of_equation(equation)
    dx = jnp.einsum(f"{out},{in_weight}->{in_x}", dout, weight.astype(dout.dtype))
    return dx, Int8Weight(np.zeros(weight.shape, jax.dtypes.float0), jnp.zeros_like(weight.scale))


_multiply_digits.defvjp(lambda equation, x, weight: (_multiply_digits(equation, x, weight), weight),
                        _digits_backward)


def _scale_of_result(equation: str, weight: Int8Weight) -> jax.Array:
    """The weight's scale along the axes of the result."""
    in_x, in_weight, out = letters_of_equation(equation)
    scale = jnp.squeeze(weight.scale, [i for i, c in enumerate(in_weight) if c in in_x])
    return jnp.expand_dims(scale, [i for i, c in enumerate(out) if c not in in_weight])
