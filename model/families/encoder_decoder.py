"""The encoder-decoder: a decoder whose layers also attend to an encoder's states.

The layout is that of T5 (arXiv 1910.10683). Rows may be packed: the tokens of document s see those
of the source that have the same segment s.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.kind import NO_EXTRAS, Extras, kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import (
    Block,
    Params,
    apply_final_norm,
    cached_extras,
    init_blocks,
    init_head,
    init_stack_ends,
    layer_inputs,
    layer_of,
    score_bias,
    without_capacity,
)
from model.families.encoder import run_both_ways
from model.generation.cache import PIECE, Cache, Place, empty_cache
from model.layers.attention import attention, cross_attention, project_source
from model.layers.embed import check_length, embed, init_embeddings
from model.layers.experts import summarise
from model.parallel.sharding import HEAD_RULES, constrain
from model.parallel.stack import run_layers


class CrossBlock(Block):
    """One layer of the decoder: attention, attention to the source, then an MLP."""

    @nn.compact
    def __call__(self, x_BLD, positions_BL, segment_ids_BL=None, source=None, cached=None,
                 extras=NO_EXTRAS):
        """As `Block.__call__`.

        Args:
            source: (source_BMD, mask_BLM): the encoder's states and which of them a token sees;
                given a cache, (k_BMGK, v_BMGK, mask_BLM) of `project_source`.
        """
        out_BLD, cached = attention(self, self.read("attn", x_BLD), positions_BL, segment_ids_BL,
                                    cached, extras)
        x_BLD = self.add("attn", x_BLD, out_BLD)
        *keys, mask_BLM = source
        k_BMGK, v_BMGK = keys if len(keys) == 2 else project_source(self, *keys)
        out_BLD = cross_attention(self, self.read("cross", x_BLD), k_BMGK, v_BMGK, mask_BLM)
        x_BLD = checkpoint_name(self.add("cross", x_BLD, out_BLD), "residual")
        out_BLD, stats = self.mlp(self.read("mlp", x_BLD), segment_ids_BL)
        return self.add("mlp", x_BLD, out_BLD), cached, stats


class SourceKeys(Block):
    """The part of `CrossBlock` that depends on the source alone, to be cached."""

    @nn.compact
    def __call__(self, source_BMD):
        """Keys and values of the source, (k_BMGK, v_BMGK)."""
        return project_source(self, source_BMD)


def encoder_config(config: ModelConfig) -> ModelConfig:
    """The architecture of the encoder alone."""
    return dataclasses.replace(config, family="encoder", N=config.encoder_layers, encoder_layers=0)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters: those of a decoder, and under `encoder` its stack."""
    embed_key, encoder_key, decoder_key, head_key = jax.random.split(key, 4)
    encoder = encoder_config(config)
    source = jnp.zeros((1, 1, config.D)), jnp.ones((1, 1, 1), bool)
    return (init_embeddings(config, embed_key, embed_key)
            | {"encoder": {"blocks": init_blocks(
                  Block(encoder, Execution(), kind_of(encoder, is_causal=False)), encoder.N,
                  encoder_key)} | init_stack_ends(encoder, encoder_key),
               "blocks": init_blocks(CrossBlock(config, Execution(), kind_of(config)), config.N,
                                     decoder_key, source)}
            | init_stack_ends(config, decoder_key) | init_head(config, head_key))


def encode(params: Params, source: Any, *, config: ModelConfig,
           execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The encoder's states, [B, M, D], and its layers' statistics.

    Args:
        source: tokens_BM, positions_BM and segment_ids_BM of the encoder's rows.
    """
    check_length(config, source.tokens_BM.shape[1])
    x_BMD = embed(params, source.tokens_BM, source.tokens_BM, source.positions_BM, config=config,
                  execution=execution)
    return run_both_ways(params["encoder"], x_BMD, source.positions_BM, source.segment_ids_BM,
                         config=encoder_config(config), execution=execution)


def forward_with_stats(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                       segment_ids_BL: jax.Array, source: Any, *, config: ModelConfig,
                       execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The full forward pass, up to the last norm; see `model.families.decoder.forward_with_stats`.

    Args:
        source: see `encode`.

    Returns:
        x_BLD of the decoder, and the statistics of its layers.

    Raises:
        UserError: rows are longer than the table of positions.
    """
    check_length(config, tokens_BL.shape[1])
    source_BMD, _ = encode(params, source, config=config, execution=execution)
    x_BLD = embed(params, tokens_BL, tokens_BL, positions_BL, config=config, execution=execution)
    block = CrossBlock(config, execution, kind_of(config))
    index_L = jnp.arange(tokens_BL.shape[1])
    bias_BHLM = score_bias(params, (index_L[:, None] - index_L[None])[None], config)
    mask_BLM = segment_ids_BL[:, :, None] == source.segment_ids_BM[:, None, :]

    def layer(x_BLD, own, positions_BL, segment_ids_BL):
        x_BLD, _, stats = block.apply(
            {"params": own["params"]}, x_BLD, positions_BL, segment_ids_BL, (source_BMD, mask_BLM),
            extras=Extras(own.get("is_global_N"), bias_BHLM))
        return x_BLD, stats

    x_BLD, stats = run_layers(layer, layer_inputs(params, config), x_BLD, positions_BL,
                              segment_ids_BL, execution=execution)
    x_BLD = apply_final_norm(params, x_BLD, config)
    return constrain(x_BLD, "BLD", HEAD_RULES), summarise(stats) if config.E else {}


@flax.struct.dataclass
class SourceCache:
    """The decoder's cache, and keys and values of the source.

    Attributes:
        own: of the decoder's tokens.
        source: keys and values (k_BMGK, v_BMGK) of each layer.
        is_token_BM: which of the source are tokens and not padding.
    """

    own: Cache
    source: tuple[tuple[jax.Array, jax.Array], ...]
    is_token_BM: jax.Array

    def advance(self, tokens_BL: jax.Array, count_B: jax.Array) -> SourceCache:
        """See `Cache.advance`."""
        return self.replace(own=self.own.advance(tokens_BL, count_B))


def make_cache(params: Params, source: Any, *, config: ModelConfig, execution: Execution,
               capacity: int) -> SourceCache:
    """Encodes one source a row, and makes an empty cache of `capacity` tokens for what follows.

    Raises:
        UserError: the capacity exceeds the table of positions.
    """
    check_length(config, capacity)
    source_BMD, _ = encode(params, source, config=config, execution=execution)
    block = SourceKeys(config, execution, kind_of(config))
    keys = tuple(block.apply({"params": layer_of(params["blocks"], n)}, source_BMD)
                 for n in range(config.N))
    own = empty_cache(config, source_BMD.shape[0], capacity, PIECE, execution.compute_dtype)
    return SourceCache(own, keys, source.segment_ids_BM > 0)


def extend(params: Params, tokens_BL: jax.Array, count_B: jax.Array, cache: SourceCache, *,
           config: ModelConfig, execution: Execution) -> tuple[jax.Array, SourceCache]:
    """Runs the tokens that follow those in the cache; see `model.families.decoder.extend`."""
    own = cache.own
    place = Place(own.length_B, count_B)
    positions_BL = own.length_B[:, None] + jnp.arange(tokens_BL.shape[1])[None]
    block = CrossBlock(without_capacity(config), execution, kind_of(config))
    mask_BLM = jnp.broadcast_to(cache.is_token_BM[:, None],
                                (*tokens_BL.shape, cache.is_token_BM.shape[1]))
    x_BLD = embed(params, tokens_BL, tokens_BL, positions_BL, config=config, execution=execution)
    layers, extras = [], cached_extras(params, positions_BL, own, place, config)
    for n, layer in enumerate(own.layers):
        x_BLD, layer, _ = block.apply(
            {"params": layer_of(params["blocks"], n)}, x_BLD, positions_BL, None,
            (*cache.source[n], mask_BLM), cached=(layer, place), extras=extras[n])
        layers.append(layer)
    own = own.replace(layers=tuple(layers))
    return apply_final_norm(params, x_BLD, config), cache.replace(own=own)
