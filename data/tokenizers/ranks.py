"""Rank files, the format of tiktoken: which tokens there are, and in which order they are merged.

A line is the base64 of a token's bytes, a space, and its rank, which is its id. How text is split
and which special tokens there are stands in the program that reads the file. For the encodings of
the field these are facts in `tiktoken_ext/openai_public.py` of openai/tiktoken and, for Llama 3, in
`llama/tokenizer.py` of meta-llama/llama3.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError, first_line
from core.progress import log

SUFFIXES = (".tiktoken", ".tiktoken.gz")
MAX_BYTES = 100_000_000     # of a file; that of 200,000 tokens has 3,600,000


class Encoding(NamedTuple):
    """What a rank file leaves out.

    Attributes:
        sha256: of the plain file, in the order of ranks.
        split: a name of `patterns.SPLITS`.
        specials: ids of the special tokens.
        bos, end: the special tokens that begin and end a document.
        stops: further ones after which generation stops.
    """

    sha256: str
    split: str
    specials: Mapping[str, int]
    bos: str = "<|endoftext|>"
    end: str = "<|endoftext|>"
    stops: tuple[str, ...] = ()


def _count_up(first: int, *names: str) -> dict[str, int]:
    return {name: first + place for place, name in enumerate(names)}


_R50K = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_P50K = "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"
_CL100K = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_O200K = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_LLAMA3 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
_FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_HARMONY = (
    "<|startoftext|>", "<|endoftext|>", "<|reserved_200000|>", "<|reserved_200001|>", "<|return|>",
    "<|constrain|>", "<|reserved_200004|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>",
    *(f"<|reserved_{i}|>" for i in range(200009, 200012)), "<|call|>",
    *(f"<|reserved_{i}|>" for i in range(200013, 200018)), "<|endofprompt|>",
    *(f"<|reserved_{i}|>" for i in range(200019, 201088)))
_LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)))

# By the names of tiktoken. Of encodings with the same ranks the first is meant by any file name.
ENCODINGS: Mapping[str, Encoding] = {
    "r50k_base": Encoding(_R50K, "gpt2", {"<|endoftext|>": 50256}),
    "gpt2": Encoding(_R50K, "gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": Encoding(_P50K, "gpt2", {"<|endoftext|>": 50256}),
    "p50k_edit": Encoding(_P50K, "gpt2", {"<|endoftext|>": 50256, **_count_up(50281, *_FIM)}),
    "cl100k_base": Encoding(_CL100K, "cl100k", {
        **_count_up(100257, "<|endoftext|>", *_FIM), "<|endofprompt|>": 100276}),
    "o200k_base": Encoding(_O200K, "o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "o200k_harmony": Encoding(_O200K, "o200k", _count_up(199998, *_HARMONY),
                              stops=("<|return|>", "<|call|>")),
    "llama3": Encoding(_LLAMA3, "llama3", _count_up(128000, *_LLAMA3_TOKENS),
                       "<|begin_of_text|>", "<|end_of_text|>", ("<|eot_id|>",))}


def find_encoding(file: Path, ranks: Mapping[bytes, int]) -> Encoding:
    """The encoding of a rank file: the one with these ranks, else the one that the file is named.

    Of several with these ranks, as `p50k_base` and `p50k_edit`, the file's name decides.

    Raises:
        UserError: there is none.
    """
    name = file.name.removesuffix(".gz").removesuffix(".tiktoken")
    digest = hashlib.sha256(format_ranks(ranks)).hexdigest()
    known = [encoding for encoding in ENCODINGS if ENCODINGS[encoding].sha256 == digest]
    if name in known or (not known and name in ENCODINGS):
        if not known:
            log(f"{file}: its {len(ranks)} ranks are not those of the published {name}: split and "
                "special tokens are taken by its name")
        return ENCODINGS[name]
    if known:
        return ENCODINGS[known[0]]
    raise UserError(str(file), f"holds {len(ranks)} ranks of no encoding that is known here "
                    f"({', '.join(ENCODINGS)})", "fetch one of these; or name the file by the one "
                    "whose split and special tokens it has, e.g. cl100k_base.tiktoken")


def read_ranks(file: Path, remedy: str) -> dict[bytes, int]:
    """Reads a rank file, which may be gzipped.

    Args:
        remedy: for a file that is refused.

    Raises:
        UserError: it is missing or damaged, or names a token or a rank twice.
    """
    ranks: dict[bytes, int] = {}
    used: set[int] = set()
    for number, line in enumerate(_read_plain(file, remedy).splitlines(), 1):
        fault = ""
        try:
            text, written = line.split()
            token, rank = base64.b64decode(text, validate=True), int(written)
        except ValueError as error:
            fault = f"is no token in base64 and its rank ({first_line(error)})"
        else:
            if rank < 0 or token in ranks or rank in used:
                fault = (f"has the rank {rank}" if rank < 0 else
                         f"names the rank {rank} again" if rank in used else
                         f"names the token {token!r} again")
        if fault:
            raise UserError(f"{file}, line {number}", fault, remedy)
        ranks[token] = rank
        used.add(rank)
    return ranks


def check_bytes(file: Path, ranks: Mapping[bytes, int]) -> None:
    """Raises `UserError` where a single byte is no token, so that not every text can be encoded."""
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(str(file), f"lacks the tokens of {len(missing)} single bytes, the first "
                        f"{missing[0]:#04x}", "fetch it anew")


def format_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """The contents of a rank file, in the order of ranks."""
    return b"".join(b"%b %d\n" % (base64.b64encode(token), rank)
                    for token, rank in sorted(ranks.items(), key=lambda item: item[1]))


def _read_plain(file: Path, remedy: str) -> bytes:
    """The contents of a file, unpacked if it is gzipped; a longer one than MAX_BYTES is refused."""
    try:
        with open(file, "rb") as opened:
            is_packed = opened.read(2) == b"\x1f\x8b"
        with (gzip.open if is_packed else open)(file, "rb") as opened:
            contents = opened.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(str(file), f"is not a readable rank file ({first_line(error)})", remedy) \
            from None
    if len(contents) > MAX_BYTES:
        raise UserError(str(file), f"has more than {MAX_BYTES:,} bytes", remedy)
    return contents
