"""The kind of attention that an architecture asks for, beyond queries, keys and values."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax

from model.config import ModelConfig


class Kind(NamedTuple):
    """A kind of attention; the default is that of Llama, which every backend computes.

    Attributes:
        head_size: K; 0 where nothing depends on it.
        is_causal: whether a query sees the keys up to its own position, or all of its document.
        window: number of keys that it sees at most, its own included; 0 is all.
        scale: of the scores; 0 is one over the root of the head size.
        softcap: c in c tanh(score / c); 0 is none.
        has_bias: whether scores get a bias.
        has_sinks: whether each head has a score of no key.
        is_tree: whether rows hold trees of tokens; see `model.attention.reference.tree_mask`.
    """

    head_size: int = 0
    is_causal: bool = True
    window: int = 0
    scale: float = 0.0
    softcap: float = 0.0
    has_bias: bool = False
    has_sinks: bool = False
    is_tree: bool = False


CAUSAL = Kind()


class Extras(NamedTuple):
    """Arrays that some kinds of attention take.

    Attributes:
        is_global: bool scalar: whether this layer ignores the window; None where all layers agree.
        bias_BHLM: added to the scores; B may be 1.
        sinks_H: each head's score of no key, which takes its share of the weights.
    """

    is_global: jax.Array | None = None
    bias_BHLM: jax.Array | None = None
    sinks_H: jax.Array | None = None


NO_EXTRAS = Extras()


@lru_cache
def kind_of(config: ModelConfig, *, is_causal: bool = True) -> Kind:
    """The kind of a model's self-attention."""
    c = config
    return Kind(c.K, is_causal, c.window, c.attention_scale, c.attention_softcap,
                c.positions == "relative", c.sinks)


def only_of_xla(kind: Kind) -> str | None:
    """What the kernels lack for a kind of attention, in words; None if they compute it."""
    parts = {"both directions": not kind.is_causal, "a window": kind.window,
             "a cap of scores": kind.softcap, "a bias of scores": kind.has_bias,
             "sinks": kind.has_sinks, "trees of tokens": kind.is_tree}
    return next((part for part, asked in parts.items() if asked), None)
