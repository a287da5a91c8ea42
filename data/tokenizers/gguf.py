"""Makes a tokenizer of the metadata of a GGUF file.

A GGUF file names its tokenizer's kind (`tokenizer.ggml.model`) and the way it splits text
(`tokenizer.ggml.pre`), and lists tokens, their types, and merges or scores. The names are those of
llama.cpp (src/llama-vocab.cpp). `gpt2` is byte-level BPE, `llama` the BPE of SentencePiece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError, first_line, quote
from data.tokenizers.gguf_header import Header, read_metadata
from data.tokenizers.hub import make_tokenizer
from data.tokenizers.huggingface import SPACE, HuggingFaceTokenizer, require_library
from data.tokenizers.patterns import LLAMA3, SPLITS
from data.tokenizers.sentencepiece import merges_by_score

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4        # of `tokenizer.ggml.token_type`
NORMAL = 1

# Splits before merging, by the names in `tokenizer.ggml.pre`. `None` is the split of GPT-2, which
# the library knows.
QWEN = SPLITS["qwen"]
DIGITS = "digits"       # every digit is a token, and the rest is split as by GPT-2
PRE_SPLITS = {"gpt-2": None, "phi-2": None,
              "smollm": DIGITS, "starcoder": DIGITS, "refact": DIGITS,
              "llama-bpe": LLAMA3, "llama3": LLAMA3, "llama-v3": LLAMA3,
              "qwen2": QWEN, "deepseek-r1-qwen": QWEN}
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
         "sep_token": "seperator", "cls_token": "cls", "mask_token": "mask"}    # spelled so
STOPS = ("eos", "eot", "eom")


def import_gguf(file: Path) -> HuggingFaceTokenizer:
    """Reads the tokenizer of a GGUF file; its tensors may be missing.

    Raises:
        UserError: the file is damaged; or see `tokenizer_from_gguf`.
    """
    with open(file, "rb") as opened:
        metadata, _ = read_metadata(Header(file, opened))
    try:
        return tokenizer_from_gguf(metadata)
    except UserError as error:
        raise UserError(str(file), *str(error).split(": ", 1)) from None


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> HuggingFaceTokenizer:
    """Makes a tokenizer of a GGUF file's metadata; its method `save` writes a tokenizer folder.

    Args:
        metadata: values by their full names, e.g. ``tokenizer.ggml.tokens``, as plain Python.

    Raises:
        UserError: the metadata is incomplete or contradicts itself; or the kind or the split is
            unknown.
    """
    model, pre = (metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if not isinstance(model, str) or model not in BUILDERS:
        raise _refuse("model", f"is {quote(model)}, which is none of {', '.join(BUILDERS)}")
    if not isinstance(pre, str | None):
        raise _refuse("pre", f"is {quote(pre)}, and no text")
    tokens = _strings(metadata, "tokens")
    if len(set(tokens)) < len(tokens):
        raise _refuse("tokens", "names a token twice")
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, Sequence) or len(types) != len(tokens):
        raise _refuse("token_type", "does not hold one value for each of the "
                      f"{len(tokens)} tokens")
    named = {role: _token(metadata, tokens, name) for role, name in NAMED.items()
             if f"tokenizer.ggml.{name}_token_id" in metadata}
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", model == "llama"
                            or PRE_SPLITS.get(pre) == LLAMA3)
    library = require_library()
    try:
        backend = BUILDERS[model](library, metadata, tokens)
        for kinds, special in (((UNKNOWN, CONTROL), True), ((USER_DEFINED,), False)):
            backend.add_tokens([library.AddedToken(token, special=special, normalized=False)
                                for token, kind in zip(tokens, types) if kind in kinds])
    except UserError:
        raise
    except Exception as error:      # the library raises no narrower one
        raise _refuse("tokens", f"and merges do not fit together ({first_line(error)})") from None
    template = metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise UserError("tokenizer.chat_template", "is no text", "convert the model anew")
    stops = [tokens.index(_token(metadata, tokens, name)) for name in STOPS
             if f"tokenizer.ggml.{name}_token_id" in metadata]
    return make_tokenizer(backend.to_str(), {**named, "add_bos_token": bool(adds_bos)},
                          template=template, stops=stops)


def _byte_level(library: Any, metadata: Mapping[str, Any], tokens: Sequence[str]) -> Any:
    """Byte-level BPE, with the merges and the split that the file names."""
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in PRE_SPLITS:
        raise _refuse("pre", f"is {quote(pre)}, which is none of {', '.join(PRE_SPLITS)}")
    merges = [tuple(merge.split(" ")) for merge in _strings(metadata, "merges")]
    if any(len(merge) != 2 for merge in merges):
        raise _refuse("merges", "holds one that is no pair of tokens")
    split, steps = PRE_SPLITS[pre], library.pre_tokenizers
    backend = library.Tokenizer(library.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges,
        ignore_merges=split == LLAMA3))   # a word that is a token needs no merges
    if split is None:
        backend.pre_tokenizer = steps.ByteLevel(add_prefix_space=False)
    elif split == DIGITS:
        backend.pre_tokenizer = steps.Sequence([steps.Digits(individual_digits=True),
                                                steps.ByteLevel(add_prefix_space=False)])
    else:
        backend.pre_tokenizer = steps.Sequence([
            steps.Split(library.Regex(split), behavior="isolated"),
            steps.ByteLevel(add_prefix_space=False, use_regex=False)])
    if split == QWEN:
        backend.normalizer = library.normalizers.NFC()
    backend.decoder = library.decoders.ByteLevel()
    return backend


def _sentence_piece(library: Any, metadata: Mapping[str, Any], tokens: Sequence[str]) -> Any:
    """The BPE of SentencePiece: of all pairs that make a token, the one of highest score first."""
    if str(metadata.get("general.architecture", "")).startswith("gemma"):
        raise _refuse("scores", "does not hold the order of Gemma's merges")
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, Sequence) or len(scores) != len(tokens) or not all(
            isinstance(score, float) and math.isfinite(score) for score in scores):
        raise _refuse("scores", "does not hold one number per token")
    unknown = _token(metadata, tokens, "unknown") \
        if "tokenizer.ggml.unknown_token_id" in metadata else None
    backend = library.Tokenizer(library.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges_by_score(dict(zip(tokens, scores))), unk_token=unknown, fuse_unk=True,
        byte_fallback=True))
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    backend.pre_tokenizer = library.pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if has_prefix else "never", split=False)
    steps = library.decoders
    backend.decoder = steps.Sequence([
        steps.Replace(SPACE, " "), steps.ByteFallback(), steps.Fuse(),
        *([steps.Strip(content=" ", left=1)] if has_prefix else [])])
    return backend


BUILDERS = {"gpt2": _byte_level, "llama": _sentence_piece}


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, Sequence) or not values or not all(
            isinstance(value, str) for value in values):
        raise _refuse(name, "is no list of texts")
    return list(values)


def _token(metadata: Mapping[str, Any], tokens: Sequence[str], name: str) -> str:
    value = metadata[f"tokenizer.ggml.{name}_token_id"]
    if not isinstance(value, int) or not 0 <= value < len(tokens):
        raise _refuse(f"{name}_token_id", f"is {quote(value)}, and there are {len(tokens)} tokens")
    return tokens[value]


def _refuse(name: str, rule: str) -> UserError:
    return UserError(f"tokenizer.ggml.{name}", rule,
                     "use the model's folder of the hub, or convert the model anew")
