"""Muon (arXiv 2502.16982): momentum made orthogonal, matrix by matrix, on any mesh.

Blocks are stacked along N and experts along E, so nothing here goes by rank: the usual rule, "every
2-D leaf", would pick the embedding and leave out every block. A parameter's name says what it is.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.parallel.sharding import PARAM_RULES, Rules, constrain, letters_of, param_name

# The weights that are matrices, with the letters they sum over. N and E count matrices; the other
# letters are the output.
MATRICES = {"wq_DHK": "D", "wk_DGK": "D", "wv_DGK": "D", "wo_HKD": "HK",
            "w_gate_DF": "D", "w_up_DF": "D", "w_down_FD": "F",
            "w_gate_EDF": "D", "w_up_EDF": "D", "w_down_EFD": "F"}

# (a, b, c) of the quintic x <- a x + b (x x^T) x + c (x x^T)^2 x
# (kellerjordan.github.io/posts/muon): steep at 0 rather than convergent, so five steps do.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
UPDATE_RMS = 0.2  # of an update's entries, about AdamW's, so that rates carry over (section 2.2)

# Newton-Schulz needs whole matrices. Cut as the parameters are, each of its products would cross
# the mesh, and replicas would all do the same; instead layers are dealt out to the devices and back
# again. One mesh axis moves at a time, so that each hop is one all-to-all, and the last is none.
_WHOLE: Rules = {**dict.fromkeys("DHGKF"), "E": "expert"}
HOPS: tuple[Rules, ...] = (
    PARAM_RULES,
    {**PARAM_RULES, "D": None, "N": ("stage", "fsdp")},
    {**_WHOLE, "N": ("stage", "fsdp", "tensor")},
    {**_WHOLE, "N": ("stage", "fsdp", "tensor", "data", "context")})


def is_matrix(params: Any) -> Any:
    """Which parameters are matrices, or stacks of them."""
    return jax.tree_util.tree_map_with_path(lambda path, _: param_name(path) in MATRICES, params)


def matrix_shape(path: tuple[Any, ...], leaf: jax.Array) -> tuple[int, ...]:
    """A weight's shape as matrices [..., inputs, outputs]; that of other parameters as it is.

    Axes that count matrices stay apart, so that a mesh may go on cutting each of them.
    """
    reduced = MATRICES.get(param_name(path))
    if reduced is None:
        return leaf.shape
    letters = letters_of(path, leaf.ndim)
    sizes = dict(zip(letters, leaf.shape))
    counts = tuple(sizes.pop(letter) for letter in letters if letter in "NE")
    inputs = math.prod(sizes.pop(letter) for letter in reduced)
    return (*counts, inputs, math.prod(sizes.values()))


def orthogonalise() -> optax.GradientTransformation:
    """Replaces each matrix U S V^T by about U V^T, scaled to the RMS of `UPDATE_RMS`.

    Newton-Schulz runs in bfloat16, as in its reference implementation: it only has to bring
    singular values near 1, and in float32 it would cost several times as much. A CPU, which has no
    fast bfloat16, stays in float32.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16

    def orthogonalise_leaf(path, leaf):
        letters = letters_of(path, leaf.ndim)
        x, is_dealt = leaf.astype(dtype), _can_deal(letters, leaf.shape)
        for rules in HOPS[1:] if is_dealt else ():
            x = constrain(x, letters, rules)
        matrices = x.reshape(matrix_shape(path, leaf))
        scale = UPDATE_RMS * max(matrices.shape[-2:]) ** 0.5
        x = (scale * newton_schulz(matrices)).reshape(leaf.shape)
        for rules in HOPS[-2::-1] if is_dealt else ():
            x = constrain(x, letters, rules)
        return x.astype(leaf.dtype)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(orthogonalise_leaf, updates))


def _can_deal(letters: str, shape: tuple[int, ...]) -> bool:
    """Whether there are layers for each device along `fsdp`; else the partitioner finds its way."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or letters[0] != "N":
        return False
    return shape[0] % (mesh.shape["stage"] * mesh.shape["fsdp"]) == 0


def newton_schulz(x: jax.Array) -> jax.Array:
    """Brings the singular values of matrices [..., rows, columns] near 1, in their dtype."""
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)
    x = (x / (norm + 1e-7)).astype(x.dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:  # the shorter side makes the smaller products
        x = x.mT
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
