"""Tokenizers as other programs read them: files of the Hugging Face hub, metadata of GGUF files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from core.errors import UserError
from data.templates.named import make_source
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.gguf import CONTROL, NORMAL, USER_DEFINED
from data.tokenizers.huggingface import HuggingFaceTokenizer, byte_alphabet, steps_of
from data.tokenizers.library import Steps, begin_with, describe, isolate
from data.tokenizers.patterns import HEARTWOOD, LLAMA3, SPLITS
from data.tokenizers.tokenizer import END, TEMPLATE, Tokenizer

UNUSED = 5      # of `tokenizer.ggml.token_type`

_LETTERS = {byte: letter for letter, byte in byte_alphabet().items()}


def hub_files(tokenizer: Tokenizer, *, chat: bool, context_tokens: int) -> dict[str, str]:
    """Contents of the hub's files, by their names.

    A tokenizer that came from the hub goes back as it came.

    Args:
        chat: whether the model was fine-tuned on chats, so that its template belongs to it.
        context_tokens: its longest row.
    """
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_tokens,
              "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        text, template, named = tokenizer.text, _template_of(tokenizer), dict(tokenizer.named)
    else:
        assert isinstance(tokenizer, BytePairTokenizer), type(tokenizer)
        text = json.dumps(describe_bpe(tokenizer), ensure_ascii=False)
        template = _template_of(tokenizer)
        named = {"bos_token": tokenizer.bos_name, "eos_token": tokenizer.end_name}
    files = {"tokenizer.json": text, "tokenizer_config.json": json.dumps(
        config | named, ensure_ascii=False, indent=2) + "\n"}
    return files | ({TEMPLATE: template} if chat and template else {})


def _template_of(tokenizer: Tokenizer) -> str:
    """Jinja that renders as `data.chat` does: also of turns that it writes without a template."""
    if tokenizer.chat_template or not tokenizer.turn_tokens:
        return tokenizer.chat_template
    return make_source(tokenizer, "turns", END)


def bos_of(tokenizer: Tokenizer) -> int:
    """The id that other programs take to begin a text: the one that the hub's files name so."""
    named = tokenizer.named if isinstance(tokenizer, HuggingFaceTokenizer) else {}
    return tokenizer.special(named["bos_token"]) if "bos_token" in named else tokenizer.bos


def describe_bpe(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    """The `tokenizer.json` of the hub that gives the same ids, and begins texts as its model does.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    # Behind a number of times, the library reads a plus as "again" and not as "all at once".
    pattern = tokenizer.pattern.replace("{1,3}+", "{1,3}")
    steps = Steps({"type": "Sequence", "pretokenizers": [
        isolate(pattern), level | {"use_regex": False}]}, level | {"use_regex": True})
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": True, "vocab": _vocabulary(tokenizer), "merges": _merges(tokenizer)}
    described = describe(model, steps, tokenizer.normalization,
                         {name: tokenizer.special(name) for name in tokenizer.specials})
    begins = begin_with(tokenizer.bos_name, tokenizer.bos) if tokenizer.adds_bos else None
    return described | {"post_processor": begins}


def gguf_tokenizer(tokenizer: Tokenizer, *, num_rows: int, chat: bool) -> dict[str, Any]:
    """The metadata of a GGUF file that describe a tokenizer.

    Args:
        num_rows: of the model's embedding; those beyond the tokenizer's are named as unused.
        chat: see `hub_files`.

    Raises:
        UserError: llama.cpp has no such kind of tokenizer.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        pre, vocabulary, plain, merges = _byte_level(tokenizer)
        template = tokenizer.chat_template
        processor = json.dumps(json.loads(tokenizer.text).get("post_processor"))
        adds_bos = json.dumps(tokenizer.bos_name) in processor
    else:
        assert isinstance(tokenizer, BytePairTokenizer), type(tokenizer)
        if (tokenizer.pattern, tokenizer.normalization) != (HEARTWOOD, "none"):
            raise _no_split(tokenizer.pattern)
        # The split that llama.cpp has for Qwen2 cuts every text as ours does.
        pre, vocabulary, plain, merges = "qwen2", _vocabulary(tokenizer), (), _merges(tokenizer)
        template, adds_bos = _template_of(tokenizer), True
    tokens, types = [f"[PAD{i}]" for i in range(num_rows)], [UNUSED] * num_rows
    for token, i in vocabulary.items():
        tokens[i] = token
        types[i] = (CONTROL if token in tokenizer.specials else
                    USER_DEFINED if token in plain else NORMAL)
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types,
              "merges": [" ".join(merge) for merge in merges], "add_bos_token": adds_bos,
              "bos_token_id": bos_of(tokenizer), "eos_token_id": tokenizer.end}
    if not tokenizer.turn_tokens and len(tokenizer.stops) > 1:
        fields["eot_token_id"] = tokenizer.stops[1]
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items()} | (
        {"tokenizer.chat_template": template} if chat and template else {})


def _byte_level(tokenizer: HuggingFaceTokenizer) -> tuple[
        str, dict[str, int], Collection[str], Sequence[Sequence[str]]]:
    """Split, vocabulary, tokens that are added but not special, and merges of byte-level BPE."""
    described = json.loads(tokenizer.text)
    model, added = described["model"], described.get("added_tokens") or []
    pre = _split_name(described)
    if model.get("type") != "BPE" or pre is None:
        raise _no_split(described.get("pre_tokenizer"))
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    plain = {token["content"] for token in added if not token["special"]}
    return pre, model["vocab"] | {token["content"]: token["id"] for token in added}, plain, merges


def _split_name(described: Mapping[str, Any]) -> str | None:
    """The name that llama.cpp has for a split of byte-level BPE; None if it is unknown here."""
    match steps_of(described.get("pre_tokenizer")):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]:
            return {LLAMA3: "llama-bpe", SPLITS["qwen"]: "qwen2"}.get(regex)
    return None


def _no_split(split: Any) -> UserError:
    return UserError(f"the tokenizer's split {str(split)[:100]!r}", "has no name in llama.cpp that "
                     "is known here", "export to safetensors")


def _vocabulary(tokenizer: BytePairTokenizer) -> dict[str, int]:
    vocabulary = {_letters(token): rank for token, rank in tokenizer.ranks.items()}
    return vocabulary | {name: tokenizer.special(name) for name in tokenizer.specials}


def _merges(tokenizer: BytePairTokenizer) -> list[tuple[str, str]]:
    """Pairs in the order in which they are joined.

    tiktoken joins any two neighbours whose bytes are a token, those of the lowest rank first; so
    each way to cut a token into two tokens is a merge, in the order of ranks.
    """
    ranks, merges = tokenizer.ranks, []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return [(_letters(left), _letters(right)) for left, right in merges]


def _letters(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
