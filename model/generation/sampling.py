"""Sampling of the next token, with settings for each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError

# Temperatures below this one take the likeliest token: two logits that float32 tells apart differ
# by more, and dividing by numbers near float32's smallest gives no numbers.
GREEDY_BELOW = 1e-6
FILTERED = -jnp.inf


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: longest completion.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the smallest set of tokens whose probability reaches p (arXiv 1904.09751);
            1 keeps all.
        min_p: keeps tokens of at least p times the largest probability (arXiv 2407.01082); 0 keeps
            all.
        repetition_penalty: divides positive logits of tokens that prompt or answer hold already,
            and multiplies negative ones (arXiv 1909.05858, section 4.1); 1 changes nothing.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        top_p, penalty = _single(self.top_p), _single(self.repetition_penalty)
        rules = {"max_new_tokens": (is_whole(self.max_new_tokens) and self.max_new_tokens >= 1,
                                    "must be a whole number from 1 on"),
                 "temperature": (self.temperature >= 0 and _single(self.temperature) < np.inf,
                                 "must be a number from 0 on"),
                 "top_k": (is_whole(self.top_k) and 0 <= self.top_k < 2**31,
                           "must be a whole number from 0 to 2^31 - 1"),
                 "top_p": (0 < top_p <= 1, "must be in (0, 1]"),
                 "min_p": (0 <= self.min_p < 1, "must be in [0, 1)"),
                 "repetition_penalty": (0 < penalty < np.inf, "must be a number above 0")}
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name}={getattr(self, name)}", rule, f"choose another {name}")


def _single(number: float) -> float:
    """The float32 that is computed with: infinite or 0 where the number is too large or small."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(number))


def is_whole(number: int) -> bool:
    """Whether a number is an integer, of Python or numpy."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


@flax.struct.dataclass
class RowSampling:
    """Settings of sampling for each row; see `Sampling`."""

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array
    min_p_B: jax.Array
    repetition_penalty_B: jax.Array


def stack_sampling(rows: Sequence[Sampling]) -> RowSampling:
    """The settings of several rows."""
    def column(name, dtype=np.float32):
        return np.array([getattr(row, name) for row in rows], dtype)

    return RowSampling(column("temperature"), column("top_k", np.int32), column("top_p"),
                       column("min_p"), column("repetition_penalty"))


def sample(logits_BV: jax.Array, rows: RowSampling, keys_B: jax.Array,
           seen_BV: jax.Array | None = None) -> jax.Array:
    """Draws token_B; what one row draws depends on no other row.

    Args:
        keys_B: a key for each row.
        seen_BV: tokens that each row holds already; None where no row penalises them.
    """
    return draw(adjust(logits_BV, rows, seen_BV), rows, keys_B)


def draw(adjusted_BV: jax.Array, rows: RowSampling, keys_B: jax.Array) -> jax.Array:
    """Draws token_B from logits that are adjusted already; see `sample`."""
    likeliest_B = jnp.argmax(adjusted_BV, axis=-1).astype(jnp.int32)
    is_greedy_B = rows.temperature_B < GREEDY_BELOW

    def draw_all():
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, adjusted_BV).astype(jnp.int32)
        return jnp.where(is_greedy_B, likeliest_B, drawn_B)

    return jax.lax.cond(jnp.all(is_greedy_B), lambda: likeliest_B, draw_all)


def adjust(logits_BV: jax.Array, rows: RowSampling, seen_BV: jax.Array | None) -> jax.Array:
    """Logits of the distribution that is drawn from: minus infinity at tokens that are left out.

    In the order of `transformers`: penalty, temperature, top-k, top-p, min-p. The largest becomes
    0, so that no temperature makes one infinite and the noise of a draw is not rounded away. A
    greedy row's are only penalised.
    """
    if seen_BV is not None:
        logits_BV = jax.lax.cond(jnp.any(rows.repetition_penalty_B != 1), _penalise,
                                 lambda logits_BV, *_: logits_BV, logits_BV, rows, seen_BV)
    is_greedy_B = rows.temperature_B < GREEDY_BELOW
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    tempered_BV = (jnp.where(logits_BV == top_B1, 0, logits_BV - top_B1)
                   / jnp.where(is_greedy_B, 1, rows.temperature_B)[:, None])
    filters_B = (rows.top_k_B > 0) | (rows.top_p_B < 1) | (rows.min_p_B > 0)
    tempered_BV = jax.lax.cond(jnp.any(filters_B & ~is_greedy_B), _filter,
                               lambda tempered_BV, *_: tempered_BV, tempered_BV, logits_BV, rows)
    return jnp.where(is_greedy_B[:, None], logits_BV, tempered_BV)


def _penalise(logits_BV, rows, seen_BV):
    penalty_B1 = rows.repetition_penalty_B[:, None]
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV, penalised_BV, logits_BV)


def _filter(tempered_BV: jax.Array, logits_BV: jax.Array, rows: RowSampling) -> jax.Array:
    order_BV = _sortable(logits_BV)     # that of the tempered ones, before they are rounded
    ones_BV = jnp.ones_like(logits_BV)
    num_kept_B = jnp.where(rows.top_k_B > 0, rows.top_k_B, logits_BV.shape[-1])
    kept_BV = _smallest_top_set(order_BV, ones_BV, num_kept_B.astype(jnp.float32))
    p_BV = jax.nn.softmax(jnp.where(kept_BV, tempered_BV, FILTERED), axis=-1)
    top_BV = _smallest_top_set(order_BV, p_BV, rows.top_p_B)
    kept_BV &= top_BV | (rows.top_p_B >= 1)[:, None]
    kept_BV &= p_BV >= rows.min_p_B[:, None] * jnp.max(p_BV, axis=-1, keepdims=True)
    return jnp.where(kept_BV, tempered_BV, FILTERED)


def _sortable(x: jax.Array) -> jax.Array:
    """Integers in the order of float32 numbers."""
    x = jnp.where(x == 0, 0, x.astype(jnp.float32))     # -0 is 0
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _smallest_top_set(order_BV: jax.Array, weights_BV: jax.Array, total_B: jax.Array) -> jax.Array:
    """Mask of each row's smallest set of highest tokens whose weights sum up to `total_B`; all if
    they do not. Of equal tokens those with smaller ids come first.

    Bisects the order of the lowest token, which takes 32 sums instead of sorting the vocabulary.
    """
    def narrow(step, lowest_B):
        # The bits of an offset from the smallest integer, from the highest one on.
        tried_B = lowest_B + (jnp.uint32(1) << (31 - step).astype(jnp.uint32)).astype(jnp.int32)
        reached_B = jnp.sum(jnp.where(order_BV >= tried_B[:, None], weights_BV, 0), axis=-1)
        return jnp.where(reached_B >= total_B, tried_B, lowest_B)

    start_B = jnp.full(order_BV.shape[0], jnp.iinfo(jnp.int32).min)
    lowest_B1 = jax.lax.fori_loop(0, 32, narrow, start_B)[:, None]
    above_BV, equal_BV = order_BV > lowest_B1, order_BV == lowest_B1
    before_BV = (jnp.sum(jnp.where(above_BV, weights_BV, 0), axis=-1, keepdims=True)
                 + jnp.cumsum(jnp.where(equal_BV, weights_BV, 0), axis=-1)
                 - jnp.where(equal_BV, weights_BV, 0))
    return above_BV | (equal_BV & (before_BV < total_B[:, None]))
