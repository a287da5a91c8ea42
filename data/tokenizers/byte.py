"""Raw bytes, for models without a learned vocabulary: every byte is a token."""

from __future__ import annotations

from collections.abc import Iterable

from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer, make_tokenizer
from data.tokenizers.merging import spell_tokens
from data.tokenizers.recipe import Recipe


def train(texts: Iterable[str], recipe: Recipe) -> BytePairTokenizer:
    """Byte-level BPE without a merge; nothing is learned from the texts.

    Raises:
        UserError: the vocabulary is not the 256 bytes and the special tokens.
    """
    del texts
    tokens = spell_tokens([])
    if recipe.num_ordinary != len(tokens):
        raise UserError(f"tokenizer.vocab_size={recipe.vocab_size}", "is not the number of bytes "
                        "and special tokens",
                        f"set --config.tokenizer.vocab_size={len(tokens) + len(recipe.specials)}")
    return make_tokenizer(tokens, recipe)
