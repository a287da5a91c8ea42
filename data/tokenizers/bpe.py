"""Our own kind, byte-level BPE: trained by rustbpe, run by tiktoken, stored as plain text.

Its folder holds `ranks.tiktoken` (base64 of each token's bytes and its rank, one per line) and
`tokenizer.json` (split pattern, names of the special tokens; and, for a vocabulary of another
program, their ids and which of them begin and end texts); and `chat_template.jinja` where a model
was taught with another template than the tokens of turns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import regex
import rustbpe
import tiktoken

from core.artifacts import write_json
from core.errors import UserError, first_line
from data.tokenizers.marks import MARK, mark, without_look_ahead
from data.tokenizers.patterns import HEARTWOOD, NORMALIZATIONS, SPLITS, check_split, splitting
from data.tokenizers.ranks import check_bytes, find_encoding, format_ranks, read_ranks
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import BOS, END, SPECIAL_TOKENS, TEMPLATE, Tokenizer

KIND = "bpe"
RANKS = "ranks.tiktoken"

# A run of a million spaces overflows the stack of tiktoken's splitter, so such a text is encoded
# in pieces, which decode to the same text.
LONG_SPACE, MAX_PIECE = re.compile(r"\s{100000}"), 100_000

MAX_GAP = 1 << 16                   # of ids without a token


@dataclasses.dataclass(frozen=True)
class BytePairTokenizer(Tokenizer):
    """Byte-level BPE with special tokens.

    Attributes:
        ranks: id of each ordinary token, by its bytes.
        pattern: regular expression that splits text before merging.
        specials: names of the special tokens, in the order of their ids.
        chat_template: Jinja template of conversations; "" writes turns with their tokens.
        ids: of the special tokens; () if they follow the ordinary ones. Some ids up to the largest
            may have no token.
        bos_name, end_name: the tokens that begin and end a document.
        stop_names: further tokens after which generation stops.
        normalization: of text before it is encoded, a name in `NORMALIZATIONS`.
    """

    ranks: dict[bytes, int]
    pattern: str = HEARTWOOD
    specials: tuple[str, ...] = SPECIAL_TOKENS
    chat_template: str = ""
    ids: tuple[int, ...] = ()
    bos_name: str = BOS
    end_name: str = END
    stop_names: tuple[str, ...] = ()
    normalization: str = "none"

    @cached_property
    def _is_marked(self) -> bool:
        """Whether texts are marked and split without look-ahead, see `data.tokenizers.marks`."""
        return self.pattern in SPLITS.values()

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return self._make_encoding(
            without_look_ahead(self.pattern) if self._is_marked else self.pattern)

    @cached_property
    def _unmarked(self) -> tiktoken.Encoding:
        """The encoding of texts that contain the mark themselves."""
        return self._make_encoding(self.pattern)

    def _make_encoding(self, pattern: str) -> tiktoken.Encoding:
        return tiktoken.Encoding("heartwood", pat_str=pattern, mergeable_ranks=self.ranks,
                                 special_tokens=self._numbers)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Ids of the special tokens, by their names."""
        return dict(zip(self.specials, self.ids or count(len(self.ranks))))

    @cached_property
    def _known(self) -> frozenset[int]:
        """Ids that have a token."""
        return frozenset(chain(self.ranks.values(), self._numbers.values()))

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids: the largest one plus 1."""
        return max(self._known) + 1

    def special(self, name: str) -> int:
        """Id of a special token, e.g. ``special("<|end|>")``."""
        return self._numbers[name]

    @property
    def bos(self) -> int:
        """Id of the token that begins every document and conversation."""
        return self.special(self.bos_name)

    @property
    def adds_bos(self) -> bool:
        """Whether its model was trained with `bos` before every text: not if it only ends texts."""
        return self.bos_name != self.end_name

    @property
    def end(self) -> int:
        """Id of the token that ends a document or a turn."""
        return self.special(self.end_name)

    @property
    def end_names(self) -> tuple[str, ...]:
        """Names of the tokens that end a turn: `end_name` and `stop_names`."""
        return self.end_name, *self.stop_names

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids after which generation stops."""
        return (*map(self.special, self.end_names), *self.turn_tokens.values())

    def encode(self, text: str) -> list[int]:
        """Encodes text; names of special tokens in it are encoded as ordinary text."""
        encoding, pieces = self._prepare(text)
        with splitting():
            return [*chain.from_iterable(map(encoding.encode_ordinary, pieces))]

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, without a list of Python integers."""
        encoding, pieces = self._prepare(text)
        try:
            with splitting():
                return np.concatenate([encoding.encode_to_numpy(piece, disallowed_special=())
                                       for piece in pieces])
        except UnicodeEncodeError:      # a surrogate that stands alone
            return super().encode_array(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts on all cores."""
        prepared = [*map(self._prepare, texts)]
        usual = [*chain.from_iterable(pieces for encoding, pieces in prepared
                                      if encoding is self._encoding)]
        with splitting():
            encoded = iter(self._encoding.encode_ordinary_batch(usual))
        return [[*chain.from_iterable(islice(encoded, len(pieces)))]
                if encoding is self._encoding else self.encode(text)
                for text, (encoding, pieces) in zip(texts, prepared)]

    def _prepare(self, text: str) -> tuple[tiktoken.Encoding, list[str]]:
        """The pieces of a text that are encoded one by one, and the encoding for them."""
        text = NORMALIZATIONS[self.normalization](text)
        pieces = [text]
        if len(text) >= MAX_PIECE and LONG_SPACE.search(text):
            pieces = [text[i:i + MAX_PIECE] for i in range(0, len(text), MAX_PIECE)]
        if not self._is_marked:
            return self._encoding, pieces
        if MARK in text:
            return self._unmarked, pieces
        return self._encoding, [mark(piece, self.pattern) for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids; special tokens become their names, invalid UTF-8 becomes U+FFFD."""
        return self._encoding.decode([int(i) for i in ids if i in self._known])

    def stream(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The UTF-8 bytes of each token as it comes."""
        to_bytes = self._encoding.decode_single_token_bytes
        return (to_bytes(int(i)) if i in self._known else b"" for i in ids)

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each token, shape [vocab_size]; 0 for special tokens."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for token, rank in self.ranks.items():
            sizes[rank] = len(token)
        return sizes

    @property
    def losses(self) -> tuple[str, ...]:
        """What of a text decoding does not give back: what its normalisation changed."""
        return () if self.normalization == "none" else (f"normalisation: {self.normalization}",)

    @cached_property
    def _further(self) -> dict[str, Any]:
        """What decides ids and is not as in most vocabularies that are trained here."""
        found: dict[str, Any] = {}
        if (self.ids, self.bos_name, self.end_name) != ((), BOS, END):
            found |= {"ids": list(self.ids), "bos": self.bos_name, "end": self.end_name}
        if self.normalization != "none":
            found["normalization"] = self.normalization
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the vocabulary, 16 hex digits, which models store."""
        digest = hashlib.sha256(self.pattern.encode() + "\0".join(self.specials).encode())
        if self._further:
            digest.update(json.dumps(self._further).encode())
        for token, _ in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RANKS).write_bytes(format_ranks(self.ranks))
        if self.chat_template:
            (folder / TEMPLATE).write_bytes(self.chat_template.encode())
        stops = {"stops": list(self.stop_names)} if self.stop_names else {}
        write_json(folder / "tokenizer.json", {
            "kind": KIND, "pattern": self.pattern, "specials": list(self.specials),
            **self._further, **stops,
            "vocab_size": self.vocab_size, "fingerprint": self.fingerprint})


def load(folder: Path, described: Mapping[str, Any]) -> BytePairTokenizer:
    """Reads a tokenizer of this kind.

    Args:
        described: contents of its `tokenizer.json`.

    Raises:
        UserError: a file is missing, damaged, or changed since it was written.
    """
    remedy = "train the tokenizer anew"
    ranks = read_ranks(folder / RANKS, remedy)
    template = folder / TEMPLATE
    try:
        tokenizer = BytePairTokenizer(
            ranks, described["pattern"], tuple(described["specials"]),
            template.read_bytes().decode() if template.exists() else "",
            tuple(described.get("ids", ())), described.get("bos", BOS), described.get("end", END),
            tuple(described.get("stops", ())), described.get("normalization", "none"))
        _check_pattern(tokenizer.pattern)
        _check_ids(tokenizer, str(folder), remedy)
    except (OSError, ValueError, KeyError, TypeError, regex.error) as error:
        raise UserError(str(folder), f"is no readable tokenizer ({first_line(error)})", remedy) \
            from None
    if tokenizer.fingerprint != described.get("fingerprint"):
        raise UserError(str(folder), f"tokenizer.json and {RANKS} do not belong together", remedy)
    return tokenizer


def import_ranks(file: Path) -> BytePairTokenizer:
    """Reads a rank file of another program: one of the field's encodings, see `ranks.py`.

    Raises:
        UserError: the file is missing or damaged, lacks a byte, or is no known encoding.
    """
    ranks = read_ranks(file, "fetch it anew")
    check_bytes(file, ranks)
    encoding = find_encoding(file, ranks)
    names = tuple(sorted(encoding.specials, key=encoding.specials.get))
    tokenizer = BytePairTokenizer(
        ranks, SPLITS[encoding.split], names, ids=tuple(encoding.specials[name] for name in names),
        bos_name=encoding.bos, end_name=encoding.end, stop_names=encoding.stops)
    _check_ids(tokenizer, str(file), "fetch it anew")
    return tokenizer


def _check_pattern(pattern: str) -> None:
    """Raises `ValueError` or `regex.error` for a split of other people that cannot be used."""
    if pattern not in SPLITS.values():
        check_split(pattern)
        tiktoken.Encoding("split", pat_str=pattern, special_tokens={},     # it may know less
                          mergeable_ranks={bytes([byte]): byte for byte in range(256)})


def _check_ids(tokenizer: BytePairTokenizer, where: str, remedy: str) -> None:
    """Raises `UserError` if two tokens have one id, or an id below the last rank has no token."""
    ranks, names = tokenizer.ranks, tokenizer.specials
    ids = tokenizer.ids or tuple(range(len(ranks), len(ranks) + len(names)))
    if len({*names}) != len(ids) or list(ids) != sorted({*ids}) or min(ids, default=0) < 0:
        raise UserError(where, f"gives {len({*names})} special tokens the ids {ids[:8]}", remedy)
    if missing := [name for name in (tokenizer.bos_name, *tokenizer.end_names)
                   if name not in names]:
        raise UserError(where, f"has no special token {missing[0]!r}", remedy)
    by_id = {rank: token for token, rank in ranks.items()}
    if taken := [(name, i) for name, i in zip(names, ids) if i in by_id]:
        name, i = taken[0]
        raise UserError(where, f"the special token {name!r} has the id {i}, which is that of the "
                        f"ordinary token {by_id[i]!r}", remedy)
    last = max(by_id)
    if last + 1 - len(ranks) != sum(i < last for i in ids):
        gap = next(i for i in count() if i not in by_id and i not in ids)
        raise UserError(where, f"has no token of the rank {gap}, and ranks up to {last}", remedy)
    if tokenizer.vocab_size > 2 * len(ranks) + MAX_GAP:
        raise UserError(where, f"has {len(ranks)} ranks, and ids up to {tokenizer.vocab_size - 1}",
                        remedy)


def train(texts: Iterable[str], recipe: Recipe) -> BytePairTokenizer:
    """Trains byte-level BPE (arXiv 1508.07909) on texts.

    U+FFFF, which is no character, ends a piece and is in none.

    Raises:
        UserError: `vocab_size` is below the number of bytes (256) and special tokens, or the text
        has too few distinct pairs to merge.
    """
    trainer = rustbpe.Tokenizer()
    marked = (mark(recipe.normalize(text), recipe.pattern) for text in texts)
    trainer.train_from_iterator(marked, check_room(recipe),
                                pattern=without_look_ahead(recipe.pattern))
    return make_tokenizer([bytes(token) for token, _ in trainer.get_mergeable_ranks()], recipe)


def check_room(recipe: Recipe) -> int:
    """The number of ordinary tokens; raises `UserError` if it is below the number of bytes, 256."""
    if recipe.num_ordinary < 256:
        raise UserError(f"tokenizer.vocab_size={recipe.vocab_size}",
                        f"must be at least {256 + len(recipe.specials)}",
                        "set --config.tokenizer.vocab_size")
    return recipe.num_ordinary


def make_tokenizer(tokens: Sequence[bytes], recipe: Recipe) -> BytePairTokenizer:
    """The tokenizer with these ordinary tokens, in the order of their ids.

    Raises:
        UserError: they are fewer than `recipe` wants.
    """
    if len(tokens) < recipe.num_ordinary:
        raise UserError(f"tokenizer.vocab_size={recipe.vocab_size}",
                        f"the text yields only {len(tokens) + len(recipe.specials)} tokens",
                        "give more text or set a smaller --config.tokenizer.vocab_size")
    return BytePairTokenizer({token: i for i, token in enumerate(tokens)}, recipe.pattern,
                             recipe.specials, normalization=recipe.normalization)
