"""Muon (arXiv 2502.16982): orthogonalised momentum of each matrix, on any mesh.

Blocks are stacked along N and experts along E, so matrices are selected by name and not by rank:
the usual rule, "every 2-D leaf", would include the embedding and exclude every block.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from model.parallel.sharding import PARAM_RULES, Rules, constrain, letters_of, param_name

# The weights that are matrices, with the letters they sum over. N, E and Z are batch axes; the
# other letters are the output.
MATRICES = {"wq_DHK": "D", "wk_DGK": "D", "wv_DGK": "D", "wo_HKD": "HK",
            "w_gate_DF": "D", "w_up_DF": "D", "w_down_FD": "F",
            "w_gate_EDF": "D", "w_up_EDF": "D", "w_down_EFD": "F",
            "shared_w_gate_ZDF": "D", "shared_w_up_ZDF": "D", "shared_w_down_ZFD": "F",
            "cross_wq_DHK": "D", "cross_wk_DGK": "D", "cross_wv_DGK": "D", "cross_wo_HKD": "HK",
            "w_in_DQF": "D", "w_state_OQF": "O", "w_out_FD": "F", "transform_DO": "D"}

# (a, b, c) of the quintic x <- a x + b (x x^T) x + c (x x^T)^2 x
# (kellerjordan.github.io/posts/muon): steep at 0 rather than convergent, so five steps do.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
UPDATE_RMS = 0.2  # of an update's entries, about AdamW's, so that rates carry over (section 2.2)

# Newton-Schulz needs whole matrices. Sharded as the parameters are, each of its products would need
# communication, and replicas would repeat the work; instead layers are distributed over the devices
# and back. One mesh axis moves at a time: each hop is one all-to-all, the last needs none.
_WHOLE: Rules = {**dict.fromkeys("DHGKFZQO"), "E": "expert"}
HOPS: tuple[Rules, ...] = (
    PARAM_RULES,
    {**PARAM_RULES, "D": None, "N": ("stage", "fsdp")},
    {**_WHOLE, "N": ("stage", "fsdp", "tensor")},
    {**_WHOLE, "N": ("stage", "fsdp", "tensor", "data", "context")})


def is_matrix(params: Any) -> Any:
    """Which parameters are matrices, or stacks of them."""
    return jax.tree_util.tree_map_with_path(lambda path, _: param_name(path) in MATRICES, params)


def matrix_shape(path: tuple[Any, ...], leaf: jax.Array) -> tuple[int, ...]:
    """A weight's shape as matrices [..., inputs, outputs]; unchanged for other parameters.

    Batch axes are not merged, so that a mesh can still shard each of them.
    """
    reduced = MATRICES.get(param_name(path))
    if reduced is None:
        return leaf.shape
    letters = letters_of(path, leaf.ndim)
    sizes = dict(zip(letters, leaf.shape))
    counts = tuple(sizes.pop(letter) for letter in letters if letter in "NEZ")
    inputs = math.prod(sizes.pop(letter) for letter in reduced)
    return (*counts, inputs, math.prod(sizes.values()))


def orthogonalise() -> optax.GradientTransformation:
    """Replaces each matrix U S V^T by about U V^T, scaled to the RMS of `UPDATE_RMS`.

    Newton-Schulz runs in bfloat16, as in its reference implementation: singular values need only be
    near 1, and float32 would cost several times as much. CPUs use float32, as bfloat16 is slow.
    """
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16

    def orthogonalise_leaf(path, leaf):
        letters = letters_of(path, leaf.ndim)
        x, is_distributed = leaf.astype(dtype), _can_distribute(letters, leaf.shape)
        for rules in HOPS[1:] if is_distributed else ():
            x = constrain(x, letters, rules)
        matrices = x.reshape(matrix_shape(path, leaf))
        scale = UPDATE_RMS * max(matrices.shape[-2:]) ** 0.5
        x = (scale * newton_schulz(matrices)).reshape(leaf.shape)
        for rules in HOPS[-2::-1] if is_distributed else ():
            x = constrain(x, letters, rules)
        return x.astype(leaf.dtype)

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(orthogonalise_leaf, updates))


def _can_distribute(letters: str, shape: tuple[int, ...]) -> bool:
    """Whether layers divide among the devices along `fsdp`; else the partitioner decides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or letters[0] != "N":
        return False
    return shape[0] % (mesh.shape["stage"] * mesh.shape["fsdp"]) == 0


def newton_schulz(x: jax.Array) -> jax.Array:
    """Brings the singular values of matrices [..., rows, columns] near 1, in their dtype."""
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=(-2, -1), keepdims=True)
    x = (x / (norm + 1e-7)).astype(x.dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:  # products over the shorter side are smaller
        x = x.mT
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
