"""Objectives of pretraining: which family learns by which, and the rows that it learns from.

`causal` predicts each next token; `masked` restores hidden tokens at their own positions, `span`
writes hidden spans behind a decoder's start. All have one loss, `train.loss.next_token_loss`.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from ml_collections import ConfigDict

from core.errors import UserError
from data.batch import Batch, Source
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.corruption import Corruption, SpanSizes, make_corruption, span_sizes
from model.parallel.sharding import STREAM_RULES
from train.setup import Setup

#: The families of `model.config` that each objective trains.
OBJECTIVES = {"causal": ("decoder", "lstm"), "masked": ("encoder",), "span": ("encoder_decoder",)}


def check_objective(section: ConfigDict, setup: Setup) -> None:
    """Raises `UserError` where objective, model, mesh and what is measured do not fit each other.

    It compiles nothing.
    """
    objective, family = section.objective, setup.config.family
    if objective not in OBJECTIVES:
        raise UserError(f"pretrain.objective={objective!r}", "there is no such objective",
                        f"choose one of {', '.join(OBJECTIVES)}")
    if family not in OBJECTIVES[objective]:
        fitting = next((name for name, families in OBJECTIVES.items() if family in families), None)
        raise UserError(
            f"pretrain.objective={objective!r}", f"does not train the family {family!r}",
            f"set --config.model.family={' or '.join(OBJECTIVES[objective])}"
            + f", or --config.pretrain.objective={fitting}" * bool(fitting))
    asked = [name for name, count in section.run.tasks.items() if count]
    if asked and objective != "causal":
        raise UserError(f"pretrain.run.tasks.{asked[0]}={section.run.tasks[asked[0]]}",
                        f"asks a model that continues text, and pretrain.objective={objective!r} "
                        "trains none", f"set --config.pretrain.run.tasks.{asked[0]}=0")
    parts = math.prod(setup.mesh.shape[axis] for axis in STREAM_RULES["L"])
    if objective == "span" and _span_sizes(section).target_length % parts:
        raise UserError(f"mesh.context x mesh.tensor = {parts}",
                        f"does not divide the {_span_sizes(section).target_length} inputs of the "
                        "decoder", "change --config.mesh or --config.pretrain.row_length")


def open_corruption(section: ConfigDict, tokenizer: Tokenizer) -> Corruption | None:
    """What the objective does to rows of text; None for the causal one.

    Raises:
        UserError: as `data.tokens.corruption.make_corruption`.
    """
    if section.objective == "causal":
        return None
    return make_corruption(section.objective, section.corruption, tokenizer, section.row_length)


def text_length(section: ConfigDict) -> int:
    """Tokens of text that a row takes: its inputs or, with hidden spans, more."""
    return _span_sizes(section).text_length if section.objective == "span" else section.row_length


def target_length(section: ConfigDict) -> int | None:
    """Inputs of a decoder beside those of an encoder, `row_length`; None where there is one row."""
    is_span = section.get("objective") == "span"
    return _span_sizes(section).target_length if is_span else None


def batch_shapes(section: ConfigDict, sharding: Sharding | None = None) -> Batch:
    """The shapes of a batch: what a step is compiled for."""
    def rows(length: int, dtype: jnp.dtype = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((section.batch_size, length), dtype, sharding=sharding)

    row, source = partial(rows, section.row_length), None
    if section.objective == "span":
        source = Source(row(), row(), row())
        row = partial(rows, _span_sizes(section).target_length)
    return Batch(row(), row(), row(jnp.float32), row(), row(), source)


def _span_sizes(section: ConfigDict) -> SpanSizes:
    return span_sizes(section.row_length, section.corruption.frac, section.corruption.span_tokens)
