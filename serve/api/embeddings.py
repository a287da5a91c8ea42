"""Embeddings of texts by an encoder."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core.artifacts import read_lineage
from core.errors import UserError
from data.tokenizers.load import load_tokenizer
from model.config import ModelConfig
from model.directory import load_params, read_description
from model.execution import Execution
from model.families.encoder import encode
from model.families.registry import Params
from model.heads.embedding import mean_embedding
from serve.api.schema import EmbeddingRequest
from serve.web.errors import WebError

BATCH_SIZE = 32         # texts that are read at once
SMALLEST_LENGTH = 16    # that rows are padded to; each further length is twice the one before it


class Encoder:
    """An encoder, whose embeddings are means of the states of a text's tokens.

    The first and last token of a text are those that begin and end documents, as in training.

    Args:
        folder: its model directory.

    Raises:
        UserError: it is no directory of an encoder.
    """

    def __init__(self, folder: Path, execution: Execution):
        described = read_description(folder)
        self._config, self._execution = described.config, execution
        if described.config.family != "encoder":
            raise UserError(str(folder), "is no encoder", "name another model")
        self._params = load_params(folder, described.config)
        self._tokenizer = load_tokenizer(folder / "tokenizer")
        self.context_tokens = described.context_tokens
        self.name = f"{folder.name}@{read_lineage(folder)['fingerprint']}"

    def warm_up(self) -> None:
        """Compiles every length of rows."""
        length = 0
        while length < self.context_tokens:
            length = self._round_up(length + 1)
            self._embed([[0] * length])

    def answer(self, request: EmbeddingRequest) -> dict[str, Any]:
        """The response to a request; raises `WebError` for an input that is too long or wrong."""
        texts = [self._read(one) for one in request.inputs]
        vectors_BD = self.embed(texts)
        values = vectors_BD.tolist() if request.encoding == "float" else [
            base64.b64encode(vector_D.astype("<f4").tobytes()).decode() for vector_D in vectors_BD]
        num_tokens = sum(map(len, texts))
        return {"object": "list", "model": request.model,
                "data": [{"object": "embedding", "index": index, "embedding": value}
                         for index, value in enumerate(values)],
                "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """embeddings_BD of texts, of length 1, in float32."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors_BD = np.zeros((len(texts), self._config.D), np.float32)
        for first in range(0, len(order), BATCH_SIZE):
            places = order[first:first + BATCH_SIZE]
            vectors_BD[places] = self._embed([texts[place] for place in places])
        return vectors_BD

    def _read(self, one: str | tuple[int, ...]) -> Sequence[int]:
        tokenizer = self._tokenizer
        tokens = one if not isinstance(one, str) else (
            tokenizer.bos, *tokenizer.encode(one), tokenizer.end)
        if max(tokens) >= self._config.V:
            raise WebError(400, "input has tokens outside the vocabulary", param="input",
                           code="invalid_value")
        if len(tokens) > self.context_tokens:
            raise WebError(400, f"the model's context is {self.context_tokens} tokens, and a text "
                           f"has {len(tokens)}", param="input", code="context_length_exceeded")
        return tokens

    def _embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        tokens_BL = np.zeros((BATCH_SIZE, self._round_up(max(map(len, texts)))), np.int32)
        segment_ids_BL = np.zeros_like(tokens_BL)
        for row, text in enumerate(texts):
            tokens_BL[row, :len(text)], segment_ids_BL[row, :len(text)] = text, 1
        found_BD = _embed_rows(self._params, tokens_BL, segment_ids_BL, config=self._config,
                               execution=self._execution)
        return np.asarray(found_BD)[:len(texts)]

    def _round_up(self, length: int) -> int:
        padded = SMALLEST_LENGTH
        while padded < length:
            padded *= 2
        return min(padded, self.context_tokens)


@partial(jax.jit, static_argnames=("config", "execution"))
def _embed_rows(params: Params, tokens_BL: jax.Array, segment_ids_BL: jax.Array, *,
                config: ModelConfig, execution: Execution) -> jax.Array:
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    x_BLD, _ = encode(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                      execution=execution)
    return mean_embedding(x_BLD, segment_ids_BL)
