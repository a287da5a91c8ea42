"""WordPiece as in BERT (arXiv 1810.04805), trained and run by the library `tokenizers`.

Words are cut at white space and beside punctuation, and from the left into the longest tokens, of
which those within a word begin with ##. White space is not kept: decoding puts one space between
words. A word with an unseen character is unknown as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from data.tokenizers.huggingface import HuggingFaceTokenizer, require_library
from data.tokenizers.library import Steps, by_id, check_room, finish, train_model
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import UNKNOWN

PREFIX = "##"
STEPS = Steps({"type": "BertPreTokenizer"},
              {"type": "WordPiece", "prefix": PREFIX, "cleanup": False})
MODEL = {"type": "WordPiece", "unk_token": UNKNOWN, "continuing_subword_prefix": PREFIX,
         "max_input_chars_per_word": 100}


def train(texts: Iterable[str], recipe: Recipe) -> HuggingFaceTokenizer:
    """Trains on texts; the most frequent characters take at most half of the vocabulary.

    Raises:
        UserError: the vocabulary is too small, or the library is not installed.
    """
    room = check_room(recipe, 2, "a character needs two")
    texts = [*texts]
    counts = Counter(chain.from_iterable(map(recipe.normalize, texts)))
    letters = sorted((letter for letter in counts if not letter.isspace()),
                     key=lambda letter: (-counts[letter], letter))[:room // 4]
    # The trainer gives ids to characters in the order in which it finds them, of which no two runs
    # have the same, and prefers smaller ids where counts are equal: these are named before.
    trainer = require_library().trainers.WordPieceTrainer(
        vocab_size=room + 1, special_tokens=[UNKNOWN, *(PREFIX + letter for letter in letters)],
        initial_alphabet=letters, limit_alphabet=len(letters), continuing_subword_prefix=PREFIX,
        min_frequency=0, show_progress=False)
    model = train_model(texts, MODEL | {"vocab": {UNKNOWN: 0}}, trainer, STEPS,
                        recipe.normalization)
    tokens = [token for token in by_id(model["vocab"]) if token != UNKNOWN]
    vocabulary = {token: i for i, token in enumerate([*tokens, UNKNOWN])}
    return finish(MODEL | {"vocab": vocabulary}, STEPS, recipe, len(tokens))
