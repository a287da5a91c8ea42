"""Adds tokens to a tokenizer; all ids that it had stay as they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import count, islice

from core.errors import UserError
from core.json_text import parse_json
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.huggingface import HuggingFaceTokenizer, make_backend
from data.tokenizers.tokenizer import Tokenizer

REMEDY = "leave it out"


def extend(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with further ordinary tokens; their ids, in this order, had no token before.

    A text that contains none of them is encoded as it was. A tokenizer of the hub finds them
    wherever they stand, also within words, as `add_tokens` of its library does. One of byte-level
    BPE finds them where they are a whole piece of its split, e.g. a word with the space before it,
    and where two neighbours within a piece make one, after all other merges.

    Raises:
        UserError: there are no tokens; or one is empty, named twice or known already, is never
            found in a text, or is not decoded as it is written; or the ids cannot be given.
    """
    if not tokens:
        raise UserError("the new tokens", "are none", "name at least one")
    seen: set[str] = set()
    for token in tokens:
        fault = ("is empty" if not token else "is named twice" if token in seen else
                 "is a special token" if token in tokenizer.specials else
                 "is a token already" if _is_one(tokenizer, token) else "")
        if fault:
            raise UserError(f"the token {token!r}", fault, REMEDY)
        seen.add(token)
    is_bpe = isinstance(tokenizer, BytePairTokenizer)
    extended = (_extend_bpe if is_bpe else _extend_hub)(tokenizer, tokens)
    for token in tokens:
        _check_found(extended, token)
    return extended


def _is_one(tokenizer: Tokenizer, token: str) -> bool:
    """Whether a text is encoded as one token, which is decoded as that text."""
    ids = tokenizer.encode_continuing(token)     # the first of a text may lose the space before it
    return len(ids) == 1 and tokenizer.decode(ids * 2).endswith(token)


def _extend_bpe(tokenizer: BytePairTokenizer, tokens: Sequence[str]) -> BytePairTokenizer:
    """Further ranks, the lowest that are free, so that no gap stays below the last one."""
    ids = tuple(map(tokenizer.special, tokenizer.specials))
    taken = {*tokenizer.ranks.values(), *ids}
    free = islice((i for i in count() if i not in taken), len(tokens))
    return dataclasses.replace(
        tokenizer, ids=ids, ranks=tokenizer.ranks | dict(zip(map(str.encode, tokens), free)))


def _extend_hub(tokenizer: HuggingFaceTokenizer, tokens: Sequence[str]) -> HuggingFaceTokenizer:
    """Further `added_tokens`, to which the library itself gives ids as it reads them."""
    described, first = parse_json(tokenizer.text), tokenizer.vocab_size
    backend = make_backend(tokenizer.text)
    if written := [token for token in tokens if backend.token_to_id(token) is not None]:
        raise UserError(f"the token {written[0]!r}", "is how the vocabulary writes one that it "
                        "has", REMEDY)
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": False} for i, token in enumerate(tokens, first)]
    described["added_tokens"] = [*(described.get("added_tokens") or []), *added]
    return dataclasses.replace(tokenizer, text=json.dumps(described, ensure_ascii=False))


def _check_found(extended: Tokenizer, token: str) -> None:
    if _is_one(extended, token):
        return
    ids = extended.encode_continuing(token)
    if len(ids) == 1:
        raise UserError(f"the token {token!r}", f"would be decoded as {extended.decode(ids)!r}",
                        f"{REMEDY}, or begin it with a space")
    pieces = [piece.decode(errors="replace") for piece in extended.list_bytes(ids[:9])]
    raise UserError(f"the token {token!r}", "would never be found: texts are normalised or split "
                    f"before, and it begins with {pieces}", REMEDY)
