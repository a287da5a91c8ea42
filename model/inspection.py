"""What happens inside a model: the stream after each layer, attention weights, the logit lens."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.attention.kind import NO_EXTRAS, Extras, kind_of
from model.attention.reference import attention_weights, document_mask
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import Block, Params, apply_final_norm, layer_inputs, score_bias
from model.heads.language import logits
from model.layers.attention import project_tokens, with_sinks
from model.layers.embed import check_length, embed


class Inside(NamedTuple):
    """The inside of a decoder or an encoder over rows of tokens.

    Attributes:
        stream_NBLD: the residual stream as it enters the first layer, and after each; N + 1.
        weights_NBHLM: attention weights of each layer, float32; they are zero between documents.
    """

    stream_NBLD: jax.Array
    weights_NBHLM: jax.Array


class AttentionMap(Block):
    """The attention weights of one layer, by the parameters of its block."""

    @nn.compact
    def __call__(self, x_BLD, positions_BL, segment_ids_BL, extras=NO_EXTRAS):
        """weights_BHLM over packed rows; see `Block.__call__`."""
        h_BLD = self.read("attn", x_BLD)
        q_BLHK, k_BLGK, _ = project_tokens(self, h_BLD, positions_BL, extras)
        mask_BLM = document_mask(segment_ids_BL, self.kind, extras.is_global)
        weights_BGRLM = attention_weights(q_BLHK, k_BLGK, mask_BLM, self.kind,
                                          with_sinks(self, extras))
        batch, *_, length, _ = weights_BGRLM.shape
        return weights_BGRLM.reshape(batch, self.config.H, length, length)


@partial(jax.jit, static_argnames=("config", "execution"))
def look_inside(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                segment_ids_BL: jax.Array, *, config: ModelConfig,
                execution: Execution) -> Inside:
    """Runs rows through a decoder or an encoder and keeps what is between the layers.

    It holds N of everything, so a row of a few hundred tokens is enough at a time.

    Raises:
        UserError: the rows are longer than the table of positions.
    """
    check_length(config, tokens_BL.shape[1])
    previous_BL = jnp.where(positions_BL > 0, jnp.roll(tokens_BL, 1, axis=1), -1)
    x_BLD = embed(params, tokens_BL, previous_BL, positions_BL, config=config, execution=execution)
    kind = kind_of(config, is_causal=config.family != "encoder")
    block, attention_map = Block(config, execution, kind), AttentionMap(config, execution, kind)
    index_L = jnp.arange(tokens_BL.shape[1])
    bias_BHLM = score_bias(params, (index_L[:, None] - index_L[None])[None], config,
                           is_causal=kind.is_causal)

    def layer(x_BLD, own):
        arguments = {"params": own["params"]}, x_BLD, positions_BL, segment_ids_BL
        extras = Extras(own.get("is_global_N"), bias_BHLM)
        weights_BHLM = attention_map.apply(*arguments, extras=extras)
        x_BLD, *_ = block.apply(*arguments, extras=extras)
        return x_BLD, (x_BLD, weights_BHLM)

    _, (after_NBLD, weights_NBHLM) = jax.lax.scan(layer, x_BLD, layer_inputs(params, config))
    return Inside(jnp.concatenate([x_BLD[None], after_NBLD]), weights_NBHLM)


@partial(jax.jit, static_argnames=("config", "execution"))
def logit_lens(params: Params, stream_NBLD: jax.Array, *, config: ModelConfig,
               execution: Execution) -> jax.Array:
    """logits_NBLV that the head gives to the stream between layers, as if it ended there.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
    """
    return jax.lax.map(lambda x_BLD: logits(params, apply_final_norm(params, x_BLD, config),
                                            config=config, execution=execution), stream_NBLD)
