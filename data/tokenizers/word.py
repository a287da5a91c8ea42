"""Words: the most frequent ones are tokens, and every other one is unknown.

A word is a run of letters and digits, or a mark of punctuation, each with the space before it;
further white space is a word too, so that what is known is decoded unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable

from data.tokenizers.huggingface import HuggingFaceTokenizer, require_library
from data.tokenizers.library import Steps, by_id, check_room, finish, isolate, train_model
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import UNKNOWN

PATTERN = r" ?[\p{L}\p{M}\p{N}_]+| ?[^\s\p{L}\p{M}\p{N}_]|\s+(?!\S)|\s"
MODEL = {"type": "WordLevel", "unk_token": UNKNOWN}


def train(texts: Iterable[str], recipe: Recipe) -> HuggingFaceTokenizer:
    """Counts the words of texts; fewer than `num_ordinary` become tokens where there are fewer.

    Raises:
        UserError: the vocabulary is too small, or the library is not installed.
    """
    return train_units(texts, recipe, PATTERN)


def train_units(texts: Iterable[str], recipe: Recipe, pattern: str) -> HuggingFaceTokenizer:
    """A tokenizer whose tokens are the most frequent matches of a pattern, equal ones by name."""
    steps = Steps(isolate(pattern), {"type": "Fuse"})
    room = check_room(recipe, 1, "a token needs one")
    trainer = require_library().trainers.WordLevelTrainer(
        vocab_size=room + 1, special_tokens=[UNKNOWN], show_progress=False)
    model = train_model(texts, MODEL | {"vocab": {UNKNOWN: 0}}, trainer, steps,
                        recipe.normalization)
    tokens = [token for token in by_id(model["vocab"]) if token != UNKNOWN]
    vocabulary = {token: i for i, token in enumerate([*tokens, UNKNOWN])}
    return finish(MODEL | {"vocab": vocabulary}, steps, recipe, len(tokens))
