"""Our own kind, byte-level BPE: trained by rustbpe, run by tiktoken, stored as plain text.

Its folder holds `ranks.tiktoken` (base64 of each token's bytes and its rank, one per line) and
`tokenizer.json` (split pattern, names of the special tokens); and `chat_template.jinja` where a
model was taught with another template than the tokens of turns.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import rustbpe
import tiktoken

from core.artifacts import write_json
from core.errors import UserError
from data.tokenizers.patterns import HEARTWOOD, NORMALIZATIONS
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import BOS, END, SPECIAL_TOKENS, TEMPLATE, Tokenizer

KIND = "bpe"

# A run of a million spaces overflows the stack of tiktoken's splitter, so such a text is encoded
# in pieces, which decode to the same text.
LONG_SPACE, MAX_PIECE = re.compile(r"\s{100000}"), 100_000


@dataclasses.dataclass(frozen=True)
class BytePairTokenizer(Tokenizer):
    """Byte-level BPE, whose special tokens follow the ordinary ones.

    Attributes:
        ranks: id of each ordinary token, by its bytes.
        pattern: regular expression that splits text before merging.
        specials: names of the special tokens; their ids follow the ordinary ones.
        chat_template: Jinja template of conversations; "" writes turns with their tokens.
        normalization: of text before it is encoded, a name in `NORMALIZATIONS`.
    """

    ranks: dict[bytes, int]
    pattern: str = HEARTWOOD
    specials: tuple[str, ...] = SPECIAL_TOKENS
    chat_template: str = ""
    normalization: str = "none"

    @cached_property
    def encoding(self) -> tiktoken.Encoding:
        """The tiktoken encoding of this tokenizer."""
        special_ids = {name: len(self.ranks) + i for i, name in enumerate(self.specials)}
        return tiktoken.Encoding("heartwood", pat_str=self.pattern, mergeable_ranks=self.ranks,
                                 special_tokens=special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ordinary and special tokens."""
        return len(self.ranks) + len(self.specials)

    def special(self, name: str) -> int:
        """Id of a special token, e.g. ``special("<|end|>")``."""
        return len(self.ranks) + self.specials.index(name)

    @property
    def bos(self) -> int:
        """Id of the token that begins every document and conversation."""
        return self.special(BOS)

    @property
    def end(self) -> int:
        """Id of the token that ends a document or a turn: the stop token."""
        return self.special(END)

    @property
    def end_names(self) -> tuple[str, ...]:
        """Names of the tokens that end a turn: one."""
        return (END,)

    def encode(self, text: str) -> list[int]:
        """Encodes text; names of special tokens in it are encoded as ordinary text."""
        return [*chain.from_iterable(map(self.encoding.encode_ordinary, self._pieces(text)))]

    def encode_array(self, text: str) -> np.ndarray:
        """As `encode`, without a list of Python integers."""
        return np.concatenate([self.encoding.encode_to_numpy(piece, disallowed_special=())
                               for piece in self._pieces(text)])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes many texts on all cores."""
        return self.encoding.encode_ordinary_batch([*map(self._normalize, texts)])

    @property
    def _normalize(self) -> Callable[[str], str]:
        return NORMALIZATIONS[self.normalization]

    def _pieces(self, text: str) -> list[str]:
        text = self._normalize(text)
        if len(text) < MAX_PIECE or not LONG_SPACE.search(text):
            return [text]
        return [text[i:i + MAX_PIECE] for i in range(0, len(text), MAX_PIECE)]

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes ids; special tokens become their names, invalid UTF-8 becomes U+FFFD."""
        return self.encoding.decode([int(i) for i in ids if i < self.vocab_size])

    def stream(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The UTF-8 bytes of each token as it comes."""
        to_bytes = self.encoding.decode_single_token_bytes
        return (to_bytes(int(i)) if i < self.vocab_size else b"" for i in ids)

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
    def fingerprint(self) -> str:
        """Fingerprint of the vocabulary, 16 hex digits, which models store."""
        digest = hashlib.sha256(self.pattern.encode() + "\0".join(self.specials).encode())
        for token, _ in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(len(token).to_bytes(4, "little") + token)
        if self.normalization != "none":
            digest.update(self.normalization.encode())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{base64.b64encode(token).decode()} {rank}\n"
                 for token, rank in sorted(self.ranks.items(), key=lambda item: item[1])]
        (folder / "ranks.tiktoken").write_text("".join(lines))
        if self.chat_template:
            (folder / TEMPLATE).write_bytes(self.chat_template.encode())
        write_json(folder / "tokenizer.json",
                   {"kind": KIND, "pattern": self.pattern, "specials": list(self.specials),
                    "normalization": self.normalization,
                    "vocab_size": self.vocab_size, "fingerprint": self.fingerprint})


def load(folder: Path, described: Mapping[str, Any]) -> BytePairTokenizer:
    """Reads a tokenizer of this kind.

    Args:
        described: contents of its `tokenizer.json`.

    Raises:
        UserError: a file is missing, damaged, or changed since it was written.
    """
    ranks_file = folder / "ranks.tiktoken"
    try:
        ranks = {base64.b64decode(token): int(rank) for token, rank in
                 (line.split() for line in ranks_file.read_text().splitlines())}
    except (OSError, ValueError) as error:
        raise UserError(str(ranks_file), f"is not a readable rank file ({error})",
                        "train the tokenizer anew") from None
    template = folder / TEMPLATE
    tokenizer = BytePairTokenizer(ranks, described["pattern"], tuple(described["specials"]),
                                  template.read_bytes().decode() if template.exists() else "",
                                  described.get("normalization", "none"))
    if tokenizer.fingerprint != described["fingerprint"]:
        raise UserError(str(folder), "tokenizer.json and ranks.tiktoken do not belong together",
                        "train the tokenizer anew")
    return tokenizer


def train(texts: Iterable[str], recipe: Recipe) -> BytePairTokenizer:
    """Trains byte-level BPE (arXiv 1508.07909) on texts.

    Raises:
        UserError: `vocab_size` is below the number of bytes (256) and special tokens, or the text
        has too few distinct pairs to merge.
    """
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(map(recipe.normalize, texts), check_room(recipe),
                                pattern=recipe.pattern)
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
