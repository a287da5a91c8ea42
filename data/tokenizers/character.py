"""Characters: the most frequent ones are tokens, and every other one is unknown."""

from __future__ import annotations

from collections.abc import Iterable

from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.recipe import Recipe
from data.tokenizers.word import train_units


def train(texts: Iterable[str], recipe: Recipe) -> HuggingFaceTokenizer:
    """Counts the characters of texts; see `data.tokenizers.word.train`."""
    return train_units(texts, recipe, r"[\s\S]")
