"""Tokenizers of the Hugging Face hub, run by its library `tokenizers`.

Its folder holds the hub's file as `huggingface.json`, `chat_template.jinja` if there is a template,
and `tokenizer.json`: which tokens begin and end texts, and the names that templates know.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import regex

from core.artifacts import write_json
from core.errors import UserError, first_line, quote
from core.json_text import parse_json
from data.tokenizers.patterns import check_split, splitting
from data.tokenizers.tokenizer import TEMPLATE, Tokenizer

KIND = "huggingface"
FILE = "huggingface.json"
SPACE = "\u2581"                                # as SentencePiece writes a space
BYTE = re.compile("<0x([0-9A-F]{2})>")          # as it writes a byte
MAX_GAP = 1 << 16                               # of ids without a token
DECODERS = ("ByteLevel", "Metaspace", "ByteFallback", "WordPiece", "Fuse")


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in vocabularies of GPT-2's kind.

    Printable characters of Latin-1 stand for themselves, the others are moved behind U+0100
    (`bytes_to_unicode` of openai/gpt-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)}


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the hub.

    Attributes:
        text: contents of its `tokenizer.json`.
        bos_name, end_name: the tokens that begin and end a document.
        stop_names: further tokens after which generation stops.
        named: special tokens by their names in templates, e.g. ``{"bos_token": "<s>"}``.
        chat_template: Jinja template of conversations; "" if there is none.

    Raises:
        UserError: the library is not installed, cannot read `text`, or decodes it in a way that is
            unknown here; or a token is not in the vocabulary.
    """

    text: str
    bos_name: str
    end_name: str
    stop_names: tuple[str, ...] = ()
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat_template: str = ""

    def __post_init__(self):
        for name in (self.bos_name, *self.end_names):
            if self._backend.token_to_id(name) is None:
                raise UserError("tokenizer.json", f"lacks the token {name!r}",
                                "put all files of one tokenizer together")
        num_tokens = self._backend.get_vocab_size(with_added_tokens=True)
        if self.vocab_size > 2 * num_tokens + MAX_GAP:
            raise UserError("tokenizer.json", f"has {num_tokens} tokens with ids up to "
                            f"{self.vocab_size - 1}", "fetch it anew")
        self._check_ids()
        if self._decoder is None:
            raise UserError("tokenizer.json", "has none of the decoders "
                            f"{', '.join(DECODERS)}", "use another tokenizer")
        for name in ("normalizer", "pre_tokenizer", "decoder"):
            for step in steps_of(self._described.get(name)):
                _check_pattern(step.get("pattern"))

    def _check_ids(self) -> None:
        """Raises `UserError` for what the library would renumber, or number twice, in silence."""
        for token in self._described.get("added_tokens") or ():
            name, i = token["content"], token["id"]
            if (found := self._backend.token_to_id(name)) != i:
                raise UserError("tokenizer.json", f"gives the added token {quote(name)} the id {i},"
                                f" and the library {found}, as a token or an id is there twice or "
                                "an id has no token", "fetch it anew")
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        by_id: dict[int, str] = {}
        if len({*vocabulary.values()}) < len(vocabulary):
            name, i = next((name, i) for name, i in vocabulary.items()
                           if by_id.setdefault(i, name) != name)
            raise UserError("tokenizer.json", f"gives the tokens {quote(by_id[i])} and "
                            f"{quote(name)} the id {i}", "fetch it anew")

    @cached_property
    def _described(self) -> dict[str, Any]:
        return parse_json(self.text)

    @cached_property
    def _backend(self) -> Any:
        return make_backend(self.text)

    @cached_property
    def _continuing(self) -> Any:
        """Encodes what follows other text: without the space that some put before a text."""
        described = parse_json(self.text)
        firsts = [step for step in steps_of(described.get("pre_tokenizer"))
                  if step.get("prepend_scheme") == "first"]
        for step in firsts:
            step["prepend_scheme"] = "never"
        return make_backend(json.dumps(described)) if firsts else self._backend

    @cached_property
    def _decoder(self) -> str | None:
        types = [step.get("type") for step in steps_of(self._described.get("decoder"))]
        return next((name for name in DECODERS if name in types), None)

    @cached_property
    def _added(self) -> dict[int, Any]:
        return self._backend.get_added_tokens_decoder()

    @cached_property
    def _specials(self) -> dict[str, int]:
        return {token.content: i for i, token in sorted(self._added.items()) if token.special}

    @cached_property
    def _never_text(self) -> frozenset[int]:
        """Ids that no text may become. The token for unknown text is flagged as special too."""
        model = self._described["model"]
        unknown = model.get("unk_token")
        if model.get("unk_id") is not None:     # of Unigram
            unknown = model["vocab"][model["unk_id"]][0]
        return frozenset(i for name, i in self._specials.items() if name != unknown)

    @cached_property
    def _pieces(self) -> list[bytes]:
        """UTF-8 bytes of each token."""
        to_bytes = {"ByteLevel": _byte_level, "WordPiece": self._word_piece,
                    "Fuse": str.encode}.get(self._decoder, _sentence_piece)
        pieces = [b""] * self.vocab_size
        for token, i in self._backend.get_vocab(with_added_tokens=True).items():
            is_text = i in self._added and self._decoder != "WordPiece"
            pieces[i] = token.encode() if is_text else to_bytes(token)
        return pieces

    @cached_property
    def _strips_first(self) -> bool:
        """Whether the decoder removes a space before the first word."""
        words = [i for i, piece in enumerate(self._pieces)
                 if piece.startswith(b" ") and piece.strip()]
        return bool(words) and not self._backend.decode(words[:1]).startswith(" ")

    def _word_piece(self, token: str) -> bytes:
        prefix = self._described["decoder"].get("prefix", "##")
        return (token[len(prefix):] if token.startswith(prefix) else f" {token}").encode()

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids: the largest one plus 1."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def specials(self) -> tuple[str, ...]:
        """Names of the special tokens, in the order of their ids."""
        return tuple(self._specials)

    def special(self, name: str) -> int:
        """Id of a special token."""
        return self._specials[name]

    @property
    def bos(self) -> int:
        """Id of the token that begins every document; see `data.tokenizers.hub`."""
        return self._backend.token_to_id(self.bos_name)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the hub's file puts `bos` before a text."""
        return self._backend.encode("a").ids[0] == self.bos

    @property
    def end(self) -> int:
        """Id of the token that ends a document or a turn."""
        return self._backend.token_to_id(self.end_name)

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids after which generation stops."""
        ids = map(self._backend.token_to_id, self.end_names)
        return tuple(dict.fromkeys([*ids, *self.turn_tokens.values()]))

    @property
    def end_names(self) -> tuple[str, ...]:
        """Names of the tokens that end a turn: `end_name` and `stop_names`."""
        return self.end_name, *self.stop_names

    def encode(self, text: str) -> list[int]:
        """Encodes text; names of special tokens in it are encoded as ordinary text.

        Tokens that the hub's file adds but does not flag as special belong to the ordinary
        vocabulary, as `<think>` of Qwen3 does.
        """
        return self._encode(self._backend, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts on all cores."""
        with splitting():
            found = self._backend.encode_batch_fast([_valid(text) for text in texts],
                                                    add_special_tokens=False)
        return [ids if self._never_text.isdisjoint(ids) else self.encode(text)
                for text, ids in zip(texts, (encoding.ids for encoding in found))]

    def encode_continuing(self, text: str) -> list[int]:
        """As `encode`, without the space that some tokenizers put before a text."""
        return self._encode(self._continuing, text) if text else []

    def encode_rendered(self, text: str, mark: str, *, begins: bool) -> list[int]:
        """As `Tokenizer.encode_rendered`, with the spaces that some tokens take in beside them."""
        ids: list[int] = []
        backend, before = self._backend if begins else self._continuing, None
        parts = self.special_pattern.split(text)
        for place, part in enumerate(parts):
            if place % 2:
                before = self._added[self._specials[part]]
                ids.append(self._specials[part])
                backend = self._continuing
                continue
            if before is not None and before.rstrip:
                part = part.lstrip()
            if place + 1 < len(parts) and self._added[self._specials[parts[place + 1]]].lstrip:
                part = part.rstrip()
            ids += self._encode(backend, part.replace(mark, "")) if part else []
        return ids

    def _encode(self, backend: Any, text: str) -> list[int]:
        text = _valid(text)
        with splitting():
            encoding = backend.encode(text, add_special_tokens=False)
        if self._never_text.isdisjoint(encoding.ids):
            return encoding.ids
        # Some models know the names of special tokens as pieces of text, e.g. `</s>` of T5: such a
        # name is encoded in two halves.
        place = next(i for i, token in enumerate(encoding.ids) if token in self._never_text)
        begin, end = encoding.offsets[place]
        cut = (begin + end) // 2
        if not begin < cut < end:
            raise UserError(f"text with {text[begin:end]!r}", "is encoded as the special token "
                            f"{encoding.tokens[place]!r}", "remove it from the text")
        return self._encode(backend, text[:cut]) + self._encode(self._continuing, text[cut:])

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids; special tokens become their names, invalid UTF-8 becomes U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The UTF-8 bytes of each token as it comes."""
        for place, i in enumerate(ids):
            piece = self._pieces[i] if i < len(self._pieces) else b""
            yield piece.removeprefix(b" ") if self._strips_first and not place else piece

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each token, shape [vocab_size]; 0 for special tokens.

        The space that some tokenizers put before a text counts as one of it.
        """
        sizes = np.array([len(piece) for piece in self._pieces], np.int32)
        sizes[list(self._specials.values())] = 0
        return sizes

    @cached_property
    def losses(self) -> tuple[str, ...]:
        """What of a text decoding does not give back."""
        model, found = self._described["model"], []
        if steps := steps_of(self._described.get("normalizer")):
            kinds = ", ".join(dict.fromkeys(step["type"] for step in steps))
            found.append(f"normalisation: {kinds}")
        if self._decoder == "WordPiece":
            found.append("white space: words are joined by single spaces")
        elif self._decoder in ("Metaspace", "ByteFallback"):
            found.append("the character U+2581, which becomes a space")
        has_bytes = self._decoder == "ByteLevel" or model.get("byte_fallback")
        if not has_bytes and (model.get("unk_token") or model.get("unk_id") is not None):
            found.append("what the vocabulary cannot spell, which becomes the unknown token")
        return tuple(found)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the vocabulary and of how text is split, 16 hex digits."""
        deciding = {name: value for name, value in self._described.items()
                    if name not in ("version", "truncation", "padding", "post_processor")}
        text = json.dumps([deciding, self.bos_name, self.end_name], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(self.text.encode())
        if self.chat_template:
            (folder / TEMPLATE).write_bytes(self.chat_template.encode())
        write_json(folder / "tokenizer.json",
                   {"kind": KIND, "bos": self.bos_name, "end": self.end_name,
                    "stops": list(self.stop_names), "named": dict(self.named),
                    "vocab_size": self.vocab_size, "fingerprint": self.fingerprint})


def load(folder: Path, described: Mapping[str, Any]) -> HuggingFaceTokenizer:
    """Reads a tokenizer of this kind.

    Args:
        described: contents of its `tokenizer.json`.

    Raises:
        UserError: a file is missing, damaged, or changed since it was written.
    """
    remedy = "import the tokenizer anew"
    try:
        template = folder / TEMPLATE
        tokenizer = HuggingFaceTokenizer(
            (folder / FILE).read_bytes().decode(), described["bos"], described["end"],
            tuple(described["stops"]), described["named"],
            template.read_bytes().decode() if template.exists() else "")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(str(folder), f"is no readable tokenizer ({first_line(error)})", remedy) \
            from None
    if tokenizer.fingerprint != described.get("fingerprint"):
        raise UserError(str(folder), f"tokenizer.json and {FILE} do not belong together", remedy)
    return tokenizer


def require_library() -> Any:
    """The library `tokenizers`; raises `UserError` where it is not installed."""
    try:
        return import_module("tokenizers")
    except ImportError:
        raise UserError("a tokenizer of the hub", "needs the package tokenizers",
                        "pip install -e '.[hf]'") from None


def make_backend(text: str) -> Any:
    """The library's tokenizer of a `tokenizer.json`, which encodes every text as data, in full."""
    library = require_library()
    try:
        backend = library.Tokenizer.from_str(text)
    except Exception as error:      # the library raises no narrower one
        raise UserError("tokenizer.json", f"is no tokenizer of the hub ({first_line(error)})",
                        "fetch it anew") from None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _check_pattern(pattern: Any) -> None:
    """Raises `UserError` for a regular expression of a `tokenizer.json` that `check_split` refuses.

    One that is in Oniguruma's dialect alone is left to the library, which gives up by itself.
    """
    expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    if not isinstance(expression, str):
        return
    try:
        check_split(expression)
    except regex.error:
        return
    except ValueError as error:
        raise UserError("tokenizer.json", str(error), "use another tokenizer") from None


def steps_of(part: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, which may be a sequence of them."""
    if not part:
        return []
    children = next((part[name] for name in ("decoders", "pretokenizers", "normalizers")
                     if name in part), None)
    return [part] if children is None else [step for child in children for step in steps_of(child)]


def _valid(text: str) -> str:
    """The text with a surrogate that stands alone replaced, as UTF-8 has none."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_ALPHABET = byte_alphabet()


def _byte_level(token: str) -> bytes:
    if not all(letter in _ALPHABET for letter in token):
        return token.encode()
    return bytes(_ALPHABET[letter] for letter in token)


def _sentence_piece(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
