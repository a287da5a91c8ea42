"""A language model of LSTM layers with a projection (arXiv 1402.1128) on a residual stream.

Its state of F numbers, projected to the width D, takes the place of attention and MLP. A document
begins with an empty state.
"""

from __future__ import annotations

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from model.attention.kind import kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import (
    Block,
    Params,
    apply_final_norm,
    init_head,
    init_stack_ends,
    layer_of,
)
from model.generation.cache import PIECE, pick, put_rows
from model.layers.embed import embed, init_embeddings
from model.layers.matmul import project
from model.parallel.sharding import HEAD_RULES, constrain
from model.parallel.stack import run_layers

NUM_GATES = 4       # input, forget, candidate, output; letter Q

# (h_BD, c_BF): the projected output and the cell of the token before.
State = tuple[jax.Array, jax.Array]


class RecurrentBlock(Block):
    """One layer: the stream, plus an LSTM over it."""

    @nn.compact
    def __call__(self, x_BLD, starts_BL, state: State | None = None):
        """Runs the layer over rows.

        Args:
            starts_BL: whether a token begins a document, and so finds an empty state.
            state: of the token before the first; None for an empty one.

        Returns:
            x_BLD, and the states (h_BLD, c_BLF) after each token.
        """
        out_BLD, states = lstm(self, self.read("lstm", x_BLD), starts_BL, state)
        return self.add("lstm", x_BLD, out_BLD), states


def lstm(block: Block, x_BLD: jax.Array, starts_BL: jax.Array,
         state: State | None) -> tuple[jax.Array, State]:
    """The recurrence, with gates in the order of `torch.nn.LSTM(proj_size=D)`.

    The forget gate's bias begins at 1 (Jozefowicz and others, ICML 2015).

    Returns:
        out_BLD, and the states (h_BLD, c_BLF) after each token.
    """
    c, dtype = block.config, block.execution.compute_dtype
    w_in_DQF = block.weight("w_in_DQF", (c.D, NUM_GATES, c.F), c.D)
    w_state_OQF = block.weight("w_state_OQF", (c.D, NUM_GATES, c.F), c.D).astype(dtype)
    w_out_FD = block.weight("w_out_FD", (c.F, c.D), c.F).astype(dtype)
    bias_QF = block.param("gates_bias_QF", lambda _: jnp.zeros((NUM_GATES, c.F)).at[1].set(1.0))
    gates_BLQF = project("BLD,DQF->BLQF", x_BLD, w_in_DQF, block.execution)
    gates_BLQF += bias_QF[None, None].astype(gates_BLQF.dtype)
    if state is None:
        batch = x_BLD.shape[0]
        state = jnp.zeros((batch, c.D), x_BLD.dtype), jnp.zeros((batch, c.F))

    def step(state, inputs):
        gates_BQF, starts_B = inputs
        h_BD, c_BF = (jnp.where(starts_B[:, None], 0, leaf) for leaf in state)
        gates_BQF += jnp.einsum("BO,OQF->BQF", h_BD, w_state_OQF)
        enter_BF, forget_BF, candidate_BF, leave_BF = jnp.moveaxis(
            gates_BQF.astype(jnp.float32), 1, 0)
        c_BF = (jax.nn.sigmoid(forget_BF) * c_BF
                + jax.nn.sigmoid(enter_BF) * jnp.tanh(candidate_BF))
        out_BF = (jax.nn.sigmoid(leave_BF) * jnp.tanh(c_BF)).astype(x_BLD.dtype)
        h_BD = jnp.einsum("BF,FD->BD", out_BF, w_out_FD)
        return (h_BD, c_BF), (h_BD, c_BF)

    _, (h_LBD, c_LBF) = jax.lax.scan(
        step, state, (jnp.swapaxes(gates_BLQF, 0, 1), jnp.swapaxes(starts_BL, 0, 1)))
    h_BLD, c_BLF = jnp.swapaxes(h_LBD, 0, 1), jnp.swapaxes(c_LBF, 0, 1)
    return h_BLD, (h_BLD, c_BLF)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters; blocks are stacked along a leading axis N."""
    embed_key, blocks_key, head_key = jax.random.split(key, 3)
    block = RecurrentBlock(config, Execution(), kind_of(config))

    def init_block(block_key):
        return block.init(block_key, jnp.zeros((1, 1, config.D)), jnp.ones((1, 1), bool))["params"]

    return (init_embeddings(config, embed_key, embed_key)
            | {"blocks": jax.vmap(init_block)(jax.random.split(blocks_key, config.N))}
            | init_stack_ends(config, key) | init_head(config, head_key))


def forward_with_stats(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                       segment_ids_BL: jax.Array, *, config: ModelConfig,
                       execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The full forward pass; see `model.families.decoder.forward_with_stats`. No statistics."""
    block = RecurrentBlock(config, execution, kind_of(config))
    x_BLD = embed(params, tokens_BL, tokens_BL, positions_BL, config=config, execution=execution)

    def layer(x_BLD, own, positions_BL, segment_ids_BL):
        del segment_ids_BL      # a document's first token has position 0
        return block.apply({"params": own}, x_BLD, positions_BL == 0)[0], {}

    x_BLD, _ = run_layers(layer, params["blocks"], x_BLD, positions_BL, segment_ids_BL,
                          execution=execution)
    return constrain(apply_final_norm(params, x_BLD, config), "BLD", HEAD_RULES), {}


@flax.struct.dataclass
class StateCache:
    """The states after the newest token of each row.

    Attributes:
        h_BND, c_BNF: see `State`, for all layers.
        length_B: tokens read.
        states: after each token of the newest piece, (h_BNLD, c_BNLF), until `advance` takes
            those of the last real one.
    """

    h_BND: jax.Array
    c_BNF: jax.Array
    length_B: jax.Array
    states: tuple[jax.Array, jax.Array] | None = None

    def advance(self, tokens_BL: jax.Array, count_B: jax.Array,
                rows_B: jax.Array | None = None) -> StateCache:
        """Keeps the states after the first `count_B` of each row's tokens; see `Cache.advance`."""
        del tokens_BL
        index_B111 = jnp.maximum(count_B, 1)[:, None, None, None] - 1

        def take(old, new_BNLX):
            new_BNX = jnp.take_along_axis(new_BNLX, index_B111, axis=2)[:, :, 0]
            kept_BNX = jnp.where(count_B[:, None, None] > 0, new_BNX, pick(old, rows_B))
            return put_rows(old, kept_BNX, rows_B)

        h_BND, c_BNF = map(take, (self.h_BND, self.c_BNF), self.states)
        length_B = pick(self.length_B, rows_B) + count_B
        return StateCache(h_BND, c_BNF, put_rows(self.length_B, length_B, rows_B))

    def resize(self, config: ModelConfig, capacity: int, piece: int = PIECE) -> StateCache:
        """The same: any number of tokens fits."""
        del config, capacity, piece
        return self

    def copy(self, source: jax.Array, target: jax.Array) -> StateCache:
        """Copies row `source` to row `target`."""
        return jax.tree.map(lambda leaf: leaf.at[target].set(leaf[source]), self)

    def rewind(self, rows_B: jax.Array, length_B: jax.Array, last_B: jax.Array) -> StateCache:
        """Empties rows, whose `length_B` is 0; states after earlier tokens are not held."""
        del last_B
        return self.replace(length_B=put_rows(self.length_B, length_B, rows_B))


def make_cache(config: ModelConfig, execution: Execution, batch_size: int, capacity: int, *,
               piece: int = PIECE) -> StateCache:
    """Empty states of `batch_size` rows; any number of tokens fits. They are not quantised."""
    del capacity, piece
    return StateCache(jnp.zeros((batch_size, config.N, config.D), execution.compute_dtype),
                      jnp.zeros((batch_size, config.N, config.F)), jnp.zeros(batch_size, jnp.int32))


def extend(params: Params, tokens_BL: jax.Array, count_B: jax.Array, cache: StateCache, *,
           config: ModelConfig, execution: Execution,
           rows_B: jax.Array | None = None) -> tuple[jax.Array, StateCache]:
    """Runs the tokens that follow those read; see `model.families.decoder.extend`."""
    del count_B     # `advance` chooses the states
    block = RecurrentBlock(config, execution, kind_of(config))
    positions_BL = pick(cache.length_B, rows_B)[:, None] + jnp.arange(tokens_BL.shape[1])[None]
    x_BLD = embed(params, tokens_BL, tokens_BL, positions_BL, config=config, execution=execution)
    h_BND, c_BNF = pick(cache.h_BND, rows_B), pick(cache.c_BNF, rows_B)
    states = []
    for n in range(config.N):
        x_BLD, state = block.apply({"params": layer_of(params["blocks"], n)}, x_BLD,
                                   positions_BL == 0, (h_BND[:, n], c_BNF[:, n]))
        states.append(state)
    h_BNLD, c_BNLF = (jnp.stack(leaf, axis=1) for leaf in zip(*states))
    return (apply_final_norm(params, x_BLD, config),
            cache.replace(states=(h_BNLD, c_BNLF)))
