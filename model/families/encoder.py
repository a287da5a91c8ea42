"""The encoder: the decoder's blocks, each token seeing its whole document (arXiv 1810.04805)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.attention.kind import Extras, kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import (
    Block,
    Params,
    apply_final_norm,
    init_blocks,
    init_head,
    init_stack_ends,
    layer_inputs,
    score_bias,
)
from model.heads.embedding import init_pooler
from model.heads.masked import init_masked_head, masked_head
from model.layers.embed import check_length, embed, init_embeddings
from model.layers.experts import summarise
from model.parallel.sharding import HEAD_RULES, constrain
from model.parallel.stack import run_layers


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters; see `model.families.decoder.init`."""
    embed_key, blocks_key, head_key = jax.random.split(key, 3)
    block = Block(config, Execution(), kind_of(config, is_causal=False))
    return (init_embeddings(config, embed_key, embed_key)
            | {"blocks": init_blocks(block, config.N, blocks_key)}
            | init_stack_ends(config, key)
            | (init_masked_head(config, head_key) if config.masked_head else {})
            | (init_pooler(config, jax.random.fold_in(head_key, 2)) if config.pooler else {})
            | init_head(config, jax.random.fold_in(head_key, 1)))


def encode(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
           segment_ids_BL: jax.Array, *, config: ModelConfig,
           execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """States of all tokens, [B, L, D], e.g. for embeddings of texts; and the layers' statistics.

    Args:
        positions_BL, segment_ids_BL: as in `model.families.decoder.forward_with_stats`.

    Raises:
        UserError: the rows are longer than the table of positions.
    """
    check_length(config, tokens_BL.shape[1])
    x_BLD = embed(params, tokens_BL, tokens_BL, positions_BL, config=config, execution=execution)
    x_BLD, stats = run_both_ways(params, x_BLD, positions_BL, segment_ids_BL, config=config,
                                 execution=execution)
    return constrain(x_BLD, "BLD", HEAD_RULES), summarise(stats) if config.E else {}


def run_both_ways(params: Params, x_BLD: jax.Array, positions_BL: jax.Array,
                  segment_ids_BL: jax.Array, *, config: ModelConfig,
                  execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The layers over embedded tokens, each seeing its whole document, up to the last norm."""
    block = Block(config, execution, kind_of(config, is_causal=False))
    index_L = jnp.arange(x_BLD.shape[1])
    bias_BHLM = score_bias(params, (index_L[:, None] - index_L[None])[None], config,
                           is_causal=False)

    def layer(x_BLD, own, positions_BL, segment_ids_BL):
        extras = Extras(own.get("is_global_N"), bias_BHLM)
        x_BLD, _, stats = block.apply({"params": own["params"]}, x_BLD, positions_BL,
                                      segment_ids_BL, extras=extras)
        return x_BLD, stats

    x_BLD, stats = run_layers(layer, layer_inputs(params, config), x_BLD, positions_BL,
                              segment_ids_BL, execution=execution)
    return apply_final_norm(params, x_BLD, config), stats


def forward_with_stats(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                       segment_ids_BL: jax.Array, *, config: ModelConfig,
                       execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`encode`, and the transform of the masked-language-model head: the head's input."""
    x_BLD, stats = encode(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                          execution=execution)
    return masked_head(params, x_BLD, config, execution) if config.masked_head else x_BLD, stats
