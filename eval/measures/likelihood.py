"""Bits per byte on held-out pages, of a model and of two baselines.

Bits per byte allow comparison across tokenizers: the nats of all text tokens, over ln 2 and the
UTF-8 bytes of these tokens; both are summed over the corpus before the division. Special tokens are
not scored. Rows overlap by half, so that every token but the first of a document has at least half
a row of context, or all there is.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from core.artifacts import read_json
from core.progress import log
from data.batch import Batch, stack
from data.documents import read_documents
from data.domains import POOLS
from data.tokenizers.load import load_tokenizer
from data.tokens.rows import TokenRows
from eval.respond.loaded import LoadedModel
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, forward
from model.heads.language import token_logps


def batch_logps(params: Params, batch: Batch, *, config: ModelConfig, execution: Execution,
                scored_BL: jax.Array | None = None) -> jax.Array:
    """Log-probability of the targets of a batch, in nats: logp_BL.

    Args:
        scored_BL: the targets that count, which saves the logits of the others; theirs is 0.
    """
    x_BLD = forward(params, *batch.inputs, config=config, execution=execution)
    return token_logps(params, x_BLD, batch.targets_BL, config=config, execution=execution,
                       scored_BL=scored_BL)


@partial(jax.jit, static_argnames=("config", "execution"))
def _nats_and_bytes(params: Params, batch: Batch, bytes_V: jax.Array, *, config: ModelConfig,
                    execution: Execution) -> tuple[jax.Array, jax.Array]:
    logp_BL = batch_logps(params, batch, config=config, execution=execution)
    bytes_BL = bytes_V[batch.targets_BL] * batch.loss_weights_BL
    return -jnp.sum(logp_BL * (bytes_BL > 0)), jnp.sum(bytes_BL)


def heldout_batches(tokens: Path, row_length: int, batch_size: int) -> Iterator[Batch]:
    """The held-out rows of a token folder, overlapping by half, in batches of one shape.

    The last batch is padded with rows of weight 0.
    """
    rows = TokenRows(tokens, "heldout", row_length, stride=row_length // 2)
    for first in range(0, len(rows), batch_size):
        picked = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        empty = picked[0].replace(loss_weights_BL=np.zeros_like(picked[0].loss_weights_BL))
        yield stack(picked + [empty] * (batch_size - len(picked)))


def has_heldout(tokens: Path) -> bool:
    """Whether a token folder has held-out pages; the measures below need them."""
    return "heldout" in read_json(tokens / "tokens.json")["domains"]


def bits_per_byte(model: LoadedModel, tokens: Path, *, row_length: int,
                  batch_size: int) -> float:
    """Bits per byte of a model on the held-out pages of a token folder.

    Args:
        row_length: tokens of a row; at most the model's context, to which it is otherwise set, and
            a line says it: no later position was trained.
    """
    if row_length > model.context_tokens:
        log(f"bits per byte: rows of {model.context_tokens} tokens instead of {row_length}, as "
            f"{model.name or 'the model'} was trained on no longer ones")
        row_length = model.context_tokens
    bytes_V = jnp.asarray(model.tokenizer.token_bytes(), jnp.float32)
    sums: list[tuple[jax.Array, jax.Array]] = []
    for batch in heldout_batches(tokens, row_length, batch_size):
        model.between_batches()
        jax.block_until_ready(sums[-2:-1])  # else all of them would wait in the device's queue
        sums.append(_nats_and_bytes(model.params, batch, bytes_V, config=model.config,
                                    execution=model.execution))
    nats, num_bytes = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
    return float(nats / math.log(2) / num_bytes)


def unigram_bits_per_byte(tokens: Path) -> float:
    """Bits per byte of the training tokens' frequencies (add one) on the held-out pages."""
    sizes, logp_V = load_tokenizer(tokens / "tokenizer").token_bytes(), unigram_logps(tokens)
    heldout_V = np.bincount(_tokens(tokens, "heldout"), minlength=len(sizes))
    nats = -np.sum(heldout_V[sizes > 0] * logp_V[sizes > 0])
    return float(nats / math.log(2) / np.sum(heldout_V * sizes))


def unigram_logps(tokens: Path) -> np.ndarray:
    """Log-probabilities of a unigram model of the training tokens: logp_V, in nats.

    A token's probability is its count in all domains plus one; that of special tokens is 0.
    """
    sizes = load_tokenizer(tokens / "tokenizer").token_bytes()
    counts_V = np.ones(len(sizes))
    for name in read_json(tokens / "tokens.json")["domains"]:
        if name not in POOLS:       # `best` repeats other domains' documents
            counts_V += np.bincount(_tokens(tokens, name), minlength=len(sizes))
    counts_V[sizes == 0] = 0
    with np.errstate(divide="ignore"):
        return np.log(counts_V / counts_V.sum())


def xz_bits_per_byte(corpus: Path) -> float:
    """Bits per byte of ``xz -9e`` on all held-out pages, compressed as one stream."""
    text = "".join(document.text for document in read_documents(corpus / "heldout")).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def _tokens(folder: Path, domain: str) -> np.ndarray:
    rows = TokenRows(folder, domain, row_length=1)
    return rows.tokens[:]
