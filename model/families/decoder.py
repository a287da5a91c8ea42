"""The decoder: blocks of attention and MLP on a residual stream, each token seeing earlier ones.

The block is a linen module used as pure functions; the stack is plain JAX: `vmap` of `init` for
stacked parameters, `lax.scan` over `apply`. A KV cache is an argument and a result.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from core.errors import UserError
from model.attention.kind import NO_EXTRAS, Extras, Kind, kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.generation.cache import PIECE, Cache, Place, empty_cache, is_global, pick
from model.heads.scalar import init_scalar_head
from model.layers.attention import attention
from model.layers.embed import check_length, embed, init_embeddings
from model.layers.experts import experts, summarise
from model.layers.matmul import project
from model.layers.mlps import MLPS
from model.layers.norms import NORMS, apply_norm, init_norm
from model.layers.positions import relative_bias
from model.parallel.sharding import HEAD_RULES, STREAM_RULES, constrain
from model.parallel.stack import run_layers

# {"embed_VD" and further tables of `model.layers.embed`, "blocks": {name: [N, ...]},
#  "final_norm_D" unless norms follow the sums, "head_DV" unless tied, "head_bias_V" if it has one}
Params = Any


class Wiring(NamedTuple):
    """Where the norms of a layer stand, and whether its MLP reads what attention adds."""

    norms_input: bool = False       # of attention and MLP
    norms_output: bool = False      # before it is added to the stream
    norms_sum: bool = False         # the stream after the addition
    is_parallel: bool = False       # attention and MLP read the same stream


WIRINGS = {
    "pre": Wiring(norms_input=True),                            # GPT-2, Llama
    "post": Wiring(norms_sum=True),                             # arXiv 1706.03762, BERT
    "sandwich": Wiring(norms_input=True, norms_output=True),    # Gemma 2 and 3
    "parallel": Wiring(norms_input=True, is_parallel=True),     # GPT-NeoX (arXiv 2204.06745)
}


class Block(nn.Module):
    """One layer: attention, then an MLP or experts."""

    config: ModelConfig
    execution: Execution
    kind: Kind

    @property
    def depth_scale(self) -> float:
        """Scale of output projections that makes the stream's variance independent of depth."""
        return (2 * self.config.N) ** -0.5

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int,
               scale: float = 1.0) -> jax.Array:
        """A float32 master weight of standard deviation scale/sqrt(fan_in).

        Or, in its place among the parameters, a weight of `model.adapters`.
        """
        given = self.get_variable("params", name)
        if hasattr(given, "project"):   # flax compares the shape of arrays alone
            if given.shape != shape:
                raise UserError(name, f"has the shape {given.shape}, not {shape}",
                                "use weights of this model")
            return given
        init = nn.initializers.normal(scale * fan_in**-0.5)
        return self.param(name, init, shape, jnp.float32)

    def zeros(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        """A float32 weight that begins as zeros."""
        return self.param(name, nn.initializers.zeros_init(), shape)

    def linear(self, name: str, equation: str, x: jax.Array, *, bias: bool,
               scale: float = 1.0) -> jax.Array:
        """A projection; its weight's axes have the sizes of the config's letters.

        Args:
            name: of the weight, as ``w_up`` of ``w_up_DF``; the bias is then ``w_up_bias_F``.
            equation: as ``BLD,DF->BLF``.
            scale: of the first weight.
        """
        of_x, letters, out = equation.replace("->", ",").split(",")
        summed = [letter for letter in letters if letter in of_x]
        weight = self.weight(f"{name}_{letters}", self._sizes(letters),
                             math.prod(self._sizes(summed)), scale)
        y = project(equation, x, weight, self.execution)
        if not bias:
            return y
        own = out[2:]       # without the axes of rows and positions
        return y + self.zeros(f"{name}_bias_{own}", self._sizes(own))[None, None].astype(y.dtype)

    def _sizes(self, letters) -> tuple[int, ...]:
        return tuple(getattr(self.config, letter) for letter in letters)

    def norm(self, name: str, x: jax.Array, letter: str = "D") -> jax.Array:
        """A norm of the config's kind, over the last axis."""
        kind, size = self.config.norm, x.shape[-1]
        start = nn.initializers.constant(NORMS[kind].start)
        weights = {f"{name}_{letter}": self.param(f"{name}_{letter}", start, (size,))}
        if NORMS[kind].has_bias:
            weights[f"{name}_bias_{letter}"] = self.zeros(f"{name}_bias_{letter}", (size,))
        return apply_norm(kind, weights, name, x, self.config.norm_eps, letter)

    def read(self, name: str, x_BLD: jax.Array) -> jax.Array:
        """The stream as attention or MLP reads it."""
        if WIRINGS[self.config.residual].norms_input:
            x_BLD = self.norm(f"{name}_norm", x_BLD)
        return constrain(x_BLD, "BLD")  # gathers positions over `tensor`

    def add(self, name: str, x_BLD: jax.Array, out_BLD: jax.Array) -> jax.Array:
        """The stream after what attention or MLP adds."""
        wiring, scale = WIRINGS[self.config.residual], self.config.residual_scale
        if wiring.norms_output:
            out_BLD = self.norm(f"{name}_out_norm", out_BLD)
        x_BLD = x_BLD + (out_BLD if scale == 1 else scale * out_BLD)
        if wiring.norms_sum:
            x_BLD = self.norm(f"{name}_norm", x_BLD)
        return constrain(x_BLD, "BLD", STREAM_RULES)

    def mlp(self, h_BLD: jax.Array,
            segment_ids_BL: jax.Array | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The MLP or the experts, and their statistics."""
        if self.config.E:
            return experts(self, h_BLD, segment_ids_BL)
        return MLPS[self.config.mlp](self, h_BLD), {}

    @nn.compact
    def __call__(self, x_BLD, positions_BL, segment_ids_BL=None, cached=None, extras=NO_EXTRAS):
        """Runs the layer over packed rows or, given a cache, over the tokens that follow it.

        Args:
            segment_ids_BL: document of each token; a token attends inside its own document.
            cached, extras: see `model.layers.attention.attention`.

        Returns:
            x_BLD, the layer's cache with the new tokens or None, and the layer's statistics.
        """
        is_parallel = WIRINGS[self.config.residual].is_parallel
        out_BLD, cached = attention(self, self.read("attn", x_BLD), positions_BL, segment_ids_BL,
                                    cached, extras)
        added_BLD = checkpoint_name(self.add("attn", x_BLD, out_BLD), "residual")
        h_BLD = self.read("mlp", x_BLD if is_parallel else added_BLD)
        out_BLD, stats = self.mlp(h_BLD, segment_ids_BL)
        return self.add("mlp", added_BLD, out_BLD), cached, stats


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters; blocks are stacked along a leading axis N."""
    embed_key, previous_key, blocks_key, head_key = jax.random.split(key, 4)
    block = Block(config, Execution(), kind_of(config))
    return (init_embeddings(config, embed_key, previous_key)
            | {"blocks": init_blocks(block, config.N, blocks_key)}
            | init_stack_ends(config, key) | init_head(config, head_key))


def init_blocks(block: nn.Module, num_layers: int, key: jax.Array, *inputs: jax.Array) -> Params:
    """Parameters of equal blocks, stacked along a leading axis N.

    Args:
        inputs: further arguments of the block, of any length.
    """
    config = block.config
    x_BLD, zeros_BL = jnp.zeros((1, 1, config.D)), jnp.zeros((1, 1), jnp.int32)
    bias_BHLM = jnp.zeros((1, config.H, 1, 1)) if block.kind.has_bias else None

    def init_block(block_key):
        return block.init(block_key, x_BLD, zeros_BL, zeros_BL, *inputs,
                          extras=Extras(bias_BHLM=bias_BHLM))["params"]

    return jax.vmap(init_block)(jax.random.split(key, num_layers))


def init_stack_ends(config: ModelConfig, key: jax.Array) -> Params:
    """What a stack has beside its layers: the last norm, unless every layer ends in one, and the
    table of relative positions, if it has one."""
    is_normed = WIRINGS[config.residual].norms_sum
    ends = {} if is_normed else init_norm(config.norm, "final_norm", config.D)
    if config.positions == "relative":
        ends["relative_bias_WH"] = config.D**-0.5 * jax.random.normal(
            jax.random.fold_in(key, 2), (config.relative_buckets, config.H))
    return ends


def init_head(config: ModelConfig, key: jax.Array) -> Params:
    """The head's parameters: none if it is the embedding and has no bias."""
    if config.score_head:
        return init_scalar_head(config, key)
    head = {}
    if not config.tied:
        head["head_DV"] = 0.1 * config.D**-0.5 * jax.random.normal(key, (config.D, config.V))
    return head | ({"head_bias_V": jnp.zeros(config.V)} if config.head_bias else {})


def apply_final_norm(params: Params, x_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """The stream as the head reads it."""
    if not WIRINGS[config.residual].norms_sum:
        x_BLD = apply_norm(config.norm, params, "final_norm", x_BLD, config.norm_eps)
    return x_BLD


def score_bias(params: Params, distance_BLM: jax.Array, config: ModelConfig, *,
               is_causal: bool = True) -> jax.Array | None:
    """bias_BHLM of all layers from the positions of queries minus those of keys; None if the
    model has none."""
    if config.positions != "relative":
        return None
    return relative_bias(params["relative_bias_WH"], distance_BLM, is_causal=is_causal,
                         max_distance=config.relative_distance)


def layer_inputs(params: Params, config: ModelConfig) -> Params:
    """What each layer of the scan has of its own: parameters and, if some layers are global,
    whether it is one."""
    own = {"params": params["blocks"]}
    if config.global_every:
        own["is_global_N"] = jnp.arange(1, config.N + 1) % config.global_every == 0
    return own


def forward_with_stats(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                       segment_ids_BL: jax.Array, *, config: ModelConfig, execution: Execution,
                       is_tree: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The full forward pass over packed rows, up to the last norm.

    Args:
        positions_BL: position of each token in its document.
        segment_ids_BL: document of each token; a token attends inside its own document.
        is_tree: whether rows hold trees of tokens, and `segment_ids_BL` is `ends_BL` of
            `model.attention.reference.tree_mask`.

    Returns:
        x_BLD: hidden states, the input of `model.heads.language`.
        Statistics of the layers, each [N].

    Raises:
        UserError: the rows are longer than the table of positions.
    """
    check_length(config, tokens_BL.shape[1])
    previous_BL = parents(tokens_BL, positions_BL) if is_tree else jnp.roll(tokens_BL, 1, axis=1)
    previous_BL = jnp.where(positions_BL > 0, previous_BL, -1)
    x_BLD = embed(params, tokens_BL, previous_BL, positions_BL, config=config, execution=execution)
    block = Block(config, execution, kind_of(config)._replace(is_tree=is_tree))
    index_L = jnp.arange(tokens_BL.shape[1])    # inside a document, it differs as positions do
    bias_BHLM = score_bias(params, (index_L[:, None] - index_L[None])[None], config)

    def layer(x_BLD, own, positions_BL, segment_ids_BL):
        extras = Extras(own.get("is_global_N"), bias_BHLM)
        x_BLD, _, stats = block.apply({"params": own["params"]}, x_BLD, positions_BL,
                                      segment_ids_BL, extras=extras)
        return x_BLD, stats

    x_BLD, stats = run_layers(layer, layer_inputs(params, config), x_BLD, positions_BL,
                              segment_ids_BL, execution=execution)
    x_BLD = apply_final_norm(params, x_BLD, config)
    return constrain(x_BLD, "BLD", HEAD_RULES), summarise(stats) if config.E else {}


def parents(tokens_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """The token before each in its path of a tree: the newest one that is a step less deep."""
    index_L = jnp.arange(tokens_BL.shape[1])
    is_parent_BLM = (positions_BL[:, None, :] == positions_BL[:, :, None] - 1) & (
        index_L[None] < index_L[:, None])[None]
    newest_BL = jnp.max(jnp.where(is_parent_BLM, index_L[None, None], 0), axis=2)
    return jnp.take_along_axis(tokens_BL, newest_BL, axis=1)


def make_cache(config: ModelConfig, execution: Execution, batch_size: int, capacity: int, *,
               piece: int = PIECE) -> Cache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens.

    Args:
        piece: tokens that are written at once at most; see `empty_cache`.

    Raises:
        UserError: the capacity exceeds the table of positions.
    """
    check_length(config, capacity)
    dtype = execution.compute_dtype if execution.kv_cache == "compute" else execution.kv_cache
    return empty_cache(config, batch_size, capacity, piece, dtype)


def layer_of(blocks: Params, n: int) -> Params:
    """Parameters of layer `n`, of layers that are stacked or, as `model.generation.weights` makes
    them, apart."""
    if isinstance(blocks, dict):
        return jax.tree.map(lambda leaf: leaf[n], blocks)
    return blocks[n].open() if hasattr(blocks[n], "open") else blocks[n]


def without_capacity(config: ModelConfig) -> ModelConfig:
    """The config whose experts drop no choice: what is generated must not depend on other rows,
    nor on padding, which a capacity counts."""
    return dataclasses.replace(config, expert_capacity=0.0)


def extend(params: Params, tokens_BL: jax.Array, count_B: jax.Array, cache: Cache, *,
           config: ModelConfig, execution: Execution,
           rows_B: jax.Array | None = None) -> tuple[jax.Array, Cache]:
    """Runs the tokens that follow those in the cache; prefill and decode both call it.

    The layers are a loop and not a scan, which would copy each layer's weights and cache.

    Args:
        tokens_BL: the new tokens.
        count_B: how many of each row's are real; no other is written to the cache.
        rows_B: see `model.generation.cache.Place`.

    Returns:
        x_BLD of the new tokens, and the cache with their keys and values, for the caller to
        `advance`.
    """
    place = Place(pick(cache.length_B, rows_B), count_B, rows_B)
    positions_BL = place.length_B[:, None] + jnp.arange(tokens_BL.shape[1])[None]
    block = Block(without_capacity(config), execution, kind_of(config))
    previous_BL = jnp.concatenate([pick(cache.last_B, rows_B)[:, None], tokens_BL[:, :-1]], axis=1)
    x_BLD = embed(params, tokens_BL, previous_BL, positions_BL, config=config, execution=execution)
    layers, extras = [], cached_extras(params, positions_BL, cache, place, config)
    for n, layer in enumerate(cache.layers):
        x_BLD, layer, _ = block.apply({"params": layer_of(params["blocks"], n)}, x_BLD,
                                      positions_BL, cached=(layer, place), extras=extras[n])
        layers.append(layer)
    return apply_final_norm(params, x_BLD, config), cache.replace(layers=tuple(layers))


def cached_extras(params: Params, positions_BL: jax.Array, cache: Cache, place: Place,
                  config: ModelConfig) -> list[Extras]:
    """Of each layer over a cache; layers of one size share their bias."""
    def bias_of(layer):
        distance_BLM = positions_BL[:, :, None] - layer.positions(place)[:, None]
        return score_bias(params, distance_BLM, config)

    biases = {layer.k_BGMK.shape[2]: layer for layer in cache.layers}
    biases = {size: bias_of(layer) for size, layer in biases.items()}
    return [Extras(jnp.asarray(is_global(config, n)) if config.global_every else None,
                   biases[layer.k_BGMK.shape[2]]) for n, layer in enumerate(cache.layers)]
