"""Guides by grammars: answers that follow a JSON schema or a regular expression, by llguidance."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from data.tokenizers.tokenizer import Tokenizer
from eval.respond.loaded import LoadedModel
from serve.web.errors import WebError

FIELDS = {"json": "response_format", "regex": "guided_regex", "lark": "tool_choice"}


class GrammarGuide:
    """Allows the tokens that a grammar allows; see `model.generation.requests.Guide`.

    Args:
        matcher: of llguidance, at the beginning of the answer.
        num_tokens: V, of the model.
    """

    def __init__(self, matcher: Any, num_tokens: int):
        self._matcher, self._num_tokens = matcher, num_tokens

    def allowed(self) -> np.ndarray:
        """is_allowed_V of the next token.

        Raises:
            ValueError: the grammar exceeds a limit of llguidance.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise ValueError(self._matcher.get_error())
        is_allowed_V = np.zeros(self._num_tokens, bool)
        found = np.unpackbits(bits, bitorder="little")[:self._num_tokens].astype(bool)
        is_allowed_V[:len(found)] = found
        return is_allowed_V

    def take(self, token: int) -> None:
        """Adds a token to the answer."""
        self._matcher.consume_token(token)


class Grammars:
    """Makes guides for the answers of a model."""

    def __init__(self, model: LoadedModel):
        self._model = model

    def make_guide(self, constraint: tuple[str, str] | None) -> GrammarGuide | None:
        """A guide of one answer.

        Args:
            constraint: kind (json, regex or lark) and text of the grammar; None for none.

        Raises:
            WebError: llguidance is missing, or refuses the grammar.
        """
        if constraint is None:
            return None
        kind, text = constraint
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise WebError(400, f"{FIELDS[kind]} needs the package llguidance on the server: "
                           "pip install -e '.[serve]'", param=FIELDS[kind],
                           code="unsupported_field") from None
        make = {"json": LLMatcher.grammar_from_json_schema, "regex": LLMatcher.grammar_from_regex,
                "lark": LLMatcher.grammar_from_lark}
        try:
            matcher = LLMatcher(self._tokenizer, make[kind](text), log_level=0)
            fault = matcher.get_error()
        except ValueError as error:
            fault = str(error)
        if fault:
            raise WebError(400, f"{FIELDS[kind]} is refused ({fault.splitlines()[0][:200]})",
                           param=FIELDS[kind], code="invalid_value")
        return GrammarGuide(matcher, self._model.config.V)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        """The tokenizer as llguidance reads it: each token's bytes; special ones are no text."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Described(self._model.tokenizer)))


class _Described:
    """See `llguidance.TokenizerWrapper`."""

    def __init__(self, tokenizer: Tokenizer):
        self.eos_token_id, self.bos_token_id = tokenizer.end, tokenizer.bos
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = tokenizer.list_bytes(range(tokenizer.vocab_size))
        for token in self.special_token_ids:
            self.tokens[token] = tokenizer.decode([token]).encode()
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        """Encodes text, which llguidance gives as bytes."""
        return self._encode(text if isinstance(text, str) else text.decode(errors="replace"))
