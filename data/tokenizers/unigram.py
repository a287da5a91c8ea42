"""The unigram language model (arXiv 1804.10959), trained and run by the library `tokenizers`.

A piece of text is cut where the product of its tokens' probabilities is largest. As in
SentencePiece a space is written as U+2581, and what no token spells is written byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from data.tokenizers.huggingface import SPACE, HuggingFaceTokenizer, require_library
from data.tokenizers.library import Steps, check_room, finish, isolate, train_model
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import UNKNOWN

DECODER = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}]}
BYTE_SCORE = -100.0     # log probability of a byte, far below that of any token
STEP = 1e-4             # between the characters that are kept in any case


def train(texts: Iterable[str], recipe: Recipe) -> HuggingFaceTokenizer:
    """Trains on texts; of them the tokens of highest likelihood are kept, at most `num_ordinary`.

    Raises:
        UserError: the vocabulary is too small, or the library is not installed.
    """
    steps = Steps({"type": "Sequence", "pretokenizers": [
        isolate(recipe.pattern), {"type": "Metaspace", "replacement": SPACE,
                                  "prepend_scheme": "never", "split": False}]}, DECODER)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    room = check_room(recipe, len(bytes_) + 1, "the bytes need 256")
    trainer = require_library().trainers.UnigramTrainer(
        vocab_size=room - len(bytes_) + 1, unk_token=UNKNOWN, special_tokens=[UNKNOWN],
        show_progress=False)
    model = train_model(texts, {"type": "Unigram", "unk_id": None, "vocab": [],
                                "byte_fallback": False}, trainer, steps, recipe.normalization)
    pieces = {piece: score for piece, score in model["vocab"] if piece != UNKNOWN}
    vocabulary = [*([byte, BYTE_SCORE] for byte in bytes_), *settle(pieces), [UNKNOWN, 0.0]]
    return finish({"type": "Unigram", "unk_id": len(vocabulary) - 1, "vocab": vocabulary,
                   "byte_fallback": True}, steps, recipe, len(vocabulary) - 1)


def settle(pieces: Mapping[str, float]) -> list[list[Any]]:
    """Pieces and scores without what differs between trainings on the same text.

    The library adds in an order of its own, so scores are rounded. To each character that it keeps
    although none of its cuts has it, it gives the lowest score and 0.0001 more than to the one
    before, in any order: all such have the lowest score here.
    """
    lowest = min(pieces.values(), default=0.0)
    highest = lowest + STEP * sum(len(piece) == 1 for piece in pieces)
    scores = {piece: round(lowest if len(piece) == 1 and score <= highest else score, 4)
              for piece, score in pieces.items()}
    return [[piece, scores[piece]] for piece in sorted(scores, key=lambda own: (-scores[own], own))]
