"""Adds tokens to a tokenizer; all ids that it had stay as they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import regex

from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.tokenizer import Tokenizer


def extend(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with further ordinary tokens, whose ids follow all others.

    A text that contains none of them has the ids that it had. A tokenizer of the hub finds them
    wherever they stand; one of byte-level BPE where they are a whole piece of its split, e.g. a
    word with the space before it.

    Raises:
        UserError: a token is empty, named twice or known already, or no piece of the split.
    """
    seen: set[str] = set()
    for token in tokens:
        fault = ("is empty" if not token else "is named twice" if token in seen else
                 "is the name of a special token" if token in tokenizer.specials else
                 "is a token already" if len(tokenizer.encode(token)) == 1 else "")
        if fault:
            raise UserError(f"the token {token!r}", fault, "leave it out")
        seen.add(token)
    if not tokens:
        raise UserError("the new tokens", "are none", "name a file with a token in each line")
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _extend_hub(tokenizer, tokens)
    assert isinstance(tokenizer, BytePairTokenizer), type(tokenizer)
    for token in tokens:
        if regex.findall(tokenizer.pattern, token) != [token]:
            raise UserError(f"the token {token!r}", "is no single piece of the tokenizer's split",
                            f"name its pieces: {regex.findall(tokenizer.pattern, token)}")
    first = tokenizer.vocab_size
    return dataclasses.replace(
        tokenizer, ids=tuple(map(tokenizer.special, tokenizer.specials)),
        ranks=tokenizer.ranks | {token.encode(): first + i for i, token in enumerate(tokens)})


def _extend_hub(tokenizer: HuggingFaceTokenizer, tokens: Sequence[str]) -> Tokenizer:
    described = json.loads(tokenizer.text)
    described["added_tokens"] += [
        {"id": tokenizer.vocab_size + i, "content": token, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": False}
        for i, token in enumerate(tokens)]
    return dataclasses.replace(tokenizer, text=json.dumps(described, ensure_ascii=False))
