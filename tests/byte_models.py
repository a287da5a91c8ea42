"""A tiny model of bytes, which can be asked anything, and knows nothing."""

import dataclasses
import functools

import jax
from conftest import TINY

from data.tokenizers.bpe import BytePairTokenizer
from eval.respond.loaded import LoadedModel
from model.execution import Execution
from model.families.registry import init

# No merges: 256 bytes and the special tokens.
BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})


@functools.cache
def byte_model(chat: bool, context_tokens: int = 512) -> LoadedModel:
    """An untrained model of bytes."""
    config = dataclasses.replace(TINY, V=BYTES.vocab_size)
    return LoadedModel(jax.jit(functools.partial(init, config))(jax.random.key(0)), config,
                       Execution(), BYTES, chat, context_tokens, "tiny")
