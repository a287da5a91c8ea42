"""The families by name, and what holds for the parameters of any of them.

Each family has `init(config, key)` and `forward_with_stats(params, tokens_BL, positions_BL,
segment_ids_BL, ...)`; those that generate have `make_cache` and `extend`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.families import decoder, encoder, encoder_decoder, lstm
from model.families.decoder import Params
from model.generation.cache import PIECE

FAMILIES = {"decoder": decoder, "encoder": encoder, "encoder_decoder": encoder_decoder,
            "lstm": lstm}
GENERATES = ("decoder", "lstm")     # continue the text that they read


def check_generates(config: ModelConfig, name: str) -> None:
    """Raises `UserError` if a model, named `name`, does not continue text."""
    if config.score_head:
        raise UserError(name, "is a reward model, which gives scores and no text",
                        "name the model that writes the answers; python -m eval.reward scores them")
    if config.family not in GENERATES:
        raise UserError(name, f"is an {config.family.replace('_', '-')}, which does not continue "
                        "text", f"name a model of the family {' or '.join(GENERATES)}")


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters."""
    return FAMILIES[config.family].init(config, key)


def forward(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
            segment_ids_BL: jax.Array, *source: Any, config: ModelConfig,
            execution: Execution) -> jax.Array:
    """The hidden states x_BLD of `forward_with_stats` alone.

    Args:
        source: of an encoder-decoder, the encoder's rows.
    """
    return FAMILIES[config.family].forward_with_stats(
        params, tokens_BL, positions_BL, segment_ids_BL, *source, config=config,
        execution=execution)[0]


def forward_tree(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                 ends_BL: jax.Array, *, config: ModelConfig, execution: Execution) -> jax.Array:
    """The hidden states x_BLD of trees of tokens; see `model.attention.reference.tree_mask`."""
    return decoder.forward_with_stats(params, tokens_BL, positions_BL, ends_BL, config=config,
                                      execution=execution, is_tree=True)[0]


def can_read_trees(config: ModelConfig) -> bool:
    """Whether `forward_tree` is exact: the model reads earlier tokens by their positions alone."""
    return config.family == "decoder" and config.positions != "relative"


def make_cache(config: ModelConfig, execution: Execution, batch_size: int, capacity: int, *,
               piece: int = PIECE) -> Any:
    """An empty cache of a family that generates; see `model.families.decoder.make_cache`."""
    return FAMILIES[config.family].make_cache(config, execution, batch_size, capacity, piece=piece)


def extend(params: Params, tokens_BL: jax.Array, count_B: jax.Array, cache: Any, *,
           config: ModelConfig, execution: Execution,
           rows_B: jax.Array | None = None) -> tuple[jax.Array, Any]:
    """x_BLD of the tokens that follow those in the cache, and the cache, not yet advanced; see
    `model.families.decoder.extend`."""
    return FAMILIES[config.family].extend(params, tokens_BL, count_B, cache, config=config,
                                          execution=execution, rows_B=rows_B)


@lru_cache
def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init`'s parameters; one tree for all callers, who leave it as it is."""
    return jax.eval_shape(partial(init, config), jax.random.key(0))


def num_params(config: ModelConfig) -> int:
    """Counts the parameters without making them."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
