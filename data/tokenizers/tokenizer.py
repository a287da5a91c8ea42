"""The interface of all tokenizers.

A folder of a tokenizer holds `tokenizer.json`, our description: its `kind`, `vocab_size`,
`fingerprint`, and what else its kind needs; and the files of its kind.
"""

from __future__ import annotations

import abc
import functools
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

TEMPLATE = "chat_template.jinja"    # in a folder of a tokenizer, as on the hub

# The special tokens of tokenizers that are trained here. A document is <|bos|> text <|end|>; a turn
# is <|role|> text <|end|>: one stop token for both.
BOS, END = "<|bos|>", "<|end|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL_TOKENS = (BOS, END, *TURNS)
UNKNOWN = "<|unknown|>"         # of kinds that cannot write every text
MASK = "<|mask|>"               # for objectives of pretraining: data/tokens/corruption.py
SENTINEL = "<|extra_{}|>"


class Tokenizer(abc.ABC):
    """Encodes text as token ids, and decodes them.

    Text is data: a special token that is named in it is encoded as ordinary text. A model may have
    more rows than its tokenizer has ids, e.g. for a size that divides well; such further ids stand
    for no text.

    Attributes:
        chat_template: Jinja template of conversations; "" if there is none, or turns are written
            with `turn_tokens`.
        named: special tokens by their names in templates, e.g. ``{"bos_token": "<s>"}``.
    """

    chat_template: str = ""
    named: Mapping[str, str] = types.MappingProxyType({})

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: the largest one plus 1."""

    @property
    @abc.abstractmethod
    def specials(self) -> tuple[str, ...]:
        """Names of the special tokens, in the order of their ids."""

    @abc.abstractmethod
    def special(self, name: str) -> int:
        """Id of the special token `name`."""

    @property
    @abc.abstractmethod
    def bos(self) -> int:
        """Id of the token that begins every document: context for its first token."""

    @property
    def adds_bos(self) -> bool:
        """Whether its model was trained with `bos` before every text: not all of the hub were."""
        return True

    @property
    @abc.abstractmethod
    def end(self) -> int:
        """Id of the token that ends a document or a turn."""

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids after which generation stops; `end` is the first of them, and the tokens that begin
        another turn are among them."""
        return (self.end, *self.turn_tokens.values())

    @property
    @abc.abstractmethod
    def end_names(self) -> tuple[str, ...]:
        """Names of the tokens that end a turn, first that of `end`."""

    @functools.cached_property
    def turn_tokens(self) -> Mapping[str, int]:
        """Ids of the tokens that begin a turn, by role; empty where a template writes turns."""
        if not {*SPECIAL_TOKENS} <= {*self.specials}:
            return {}
        return {name.strip("<|>"): self.special(name) for name in TURNS}

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encodes text, without special tokens."""

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, without a list of Python integers where that is possible."""
        return np.asarray(self.encode(text), np.uint32)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts, on several cores where that is possible."""
        return [self.encode(text) for text in texts]

    def encode_rendered(self, text: str, mark: str, *, begins: bool) -> list[int]:
        """Encodes text of a template, where the name of a special token stands for the token.

        Args:
            mark: removed wherever it stands; it sets names of tokens in contents apart.
            begins: whether nothing stands before the text.
        """
        ids: list[int] = []
        for place, part in enumerate(self.special_pattern.split(text)):
            ids += [self.special(part)] if place % 2 else self.encode(part.replace(mark, ""))
        return ids

    @functools.cached_property
    def variants(self) -> dict[str, Tokenizer]:
        """Tokenizers like it with other templates, once made; see `data.templates.named`."""
        return {}

    @functools.cached_property
    def special_pattern(self) -> re.Pattern:
        """Matches the name of a special token, as its one group."""
        longest_first = sorted(self.specials, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids; special tokens become their names, invalid UTF-8 becomes U+FFFD."""

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(self.special(name) for name in self.specials)

    def text_of(self, ids: Iterable[int]) -> str:
        """Decodes what a model has drawn: as `decode`, but special tokens are no part of it."""
        return self.decode(i for i in ids if i not in self.special_ids)

    @abc.abstractmethod
    def stream(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The UTF-8 bytes of each token as it comes; together they are the text of `decode`."""

    @abc.abstractmethod
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each token, shape [vocab_size]; 0 for special tokens."""

    @property
    def losses(self) -> tuple[str, ...]:
        """What of a text decoding does not give back, in words; () where nothing is lost."""
        return ()

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the vocabulary, 16 hex digits, which models store."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`."""
