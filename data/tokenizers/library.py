"""Trains the kinds that the library `tokenizers` runs, and describes them as the hub does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from core.errors import UserError
from core.progress import log
from data.tokenizers.huggingface import HuggingFaceTokenizer, require_library
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import BOS, END, UNKNOWN

NORMALIZERS = {"none": None, "nfc": {"type": "NFC"}, "nfkc": {"type": "NFKC"},
               "lower": {"type": "Lowercase"}}

Described = dict[str, Any]


class Steps(NamedTuple):
    """What stands around a model, as in a `tokenizer.json`."""

    pre_tokenizer: Described
    decoder: Described


def isolate(pattern: str) -> Described:
    """The step that splits text into the matches of a regular expression."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": False}


def describe(model: Described, steps: Steps, normalization: str, ids: Mapping[str, int]) -> \
        Described:
    """A `tokenizer.json` of the hub, which begins texts with <|bos|>.

    Args:
        ids: of the special tokens.
    """
    added = [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for name, i in ids.items()]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": NORMALIZERS[normalization], "pre_tokenizer": steps.pre_tokenizer,
        "post_processor": begin_with(BOS, ids[BOS]) if BOS in ids else None,
        "decoder": steps.decoder, "model": model}


def begin_with(name: str, number: int) -> Described:
    """The step that puts a special token before a text, with its name and its id."""
    bos = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": i}} for i, part in enumerate("AB"))
    return {"type": "TemplateProcessing", "single": [bos, first],
            "pair": [bos, first, bos, second],
            "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}}}


def train_model(texts: Iterable[str], model: Described, trainer: Any, steps: Steps,
                normalization: str) -> Described:
    """The model of a `tokenizer.json` that the library's trainer makes of texts.

    Args:
        model: without a vocabulary.
        trainer: of `tokenizers.trainers`.
    """
    backend = require_library().Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": NORMALIZERS[normalization], "pre_tokenizer": steps.pre_tokenizer,
        "post_processor": None, "decoder": steps.decoder, "model": model}))
    backend.train_from_iterator(texts, trainer)
    return json.loads(backend.to_str())["model"]


def by_id(vocabulary: Mapping[str, int]) -> list[str]:
    """Tokens in the order of their ids."""
    return sorted(vocabulary, key=vocabulary.__getitem__)


def finish(model: Described, steps: Steps, recipe: Recipe, num_ordinary: int) -> \
        HuggingFaceTokenizer:
    """The tokenizer of a trained model, whose id `num_ordinary` is the unknown token."""
    vocab_size = num_ordinary + 1 + len(recipe.specials)
    if vocab_size < recipe.vocab_size:
        log(f"tokenizer: the text yields only {vocab_size} of {recipe.vocab_size} tokens")
    ids = {name: num_ordinary + i for i, name in enumerate((UNKNOWN, *recipe.specials))}
    described = describe(model, steps, recipe.normalization, ids)
    return HuggingFaceTokenizer(json.dumps(described, ensure_ascii=False), BOS, END,
                                named={"bos_token": BOS, "eos_token": END, "unk_token": UNKNOWN})


def check_room(recipe: Recipe, needed: int, what: str) -> int:
    """The number of ordinary tokens beside the special ones, the unknown token among these.

    Raises:
        UserError: it is below `needed`.
    """
    room = recipe.num_ordinary - 1
    if room < needed:
        raise UserError(f"tokenizer.vocab_size={recipe.vocab_size}", f"leaves {room} ids beside "
                        f"the special tokens, and {what}",
                        "set a larger --config.tokenizer.vocab_size")
    return room
