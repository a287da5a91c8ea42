"""What decides a tokenizer that is trained here, apart from the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

from ml_collections import ConfigDict

from core.errors import UserError
from data.tokenizers.patterns import NORMALIZATIONS, SPLITS
from data.tokenizers.tokenizer import MASK, SENTINEL, SPECIAL_TOKENS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tokenizer is trained.

    Attributes:
        vocab_size: ids in all, special tokens included.
        split: how text is split into pieces, a name in `SPLITS`.
        normalization: of text before it is encoded, a name in `NORMALIZATIONS`.
        specials: names of the special tokens, whose ids follow the ordinary ones.

    Raises:
        UserError: a name is unknown.
    """

    vocab_size: int
    split: str = "heartwood"
    normalization: str = "none"
    specials: tuple[str, ...] = SPECIAL_TOKENS

    def __post_init__(self):
        for field, names in (("split", SPLITS), ("normalization", NORMALIZATIONS)):
            if (name := getattr(self, field)) not in names:
                raise UserError(f"tokenizer.{field}={name!r}", f"is none of {', '.join(names)}",
                                f"choose one of them with --config.tokenizer.{field}")

    @property
    def pattern(self) -> str:
        """The regular expression of `split`."""
        return SPLITS[self.split]

    @cached_property
    def normalize(self) -> Callable[[str], str]:
        """The function of `normalization`."""
        return NORMALIZATIONS[self.normalization]

    @property
    def num_ordinary(self) -> int:
        """Ids that are left for ordinary tokens."""
        return self.vocab_size - len(self.specials)


def make_recipe(section: ConfigDict) -> Recipe:
    """The recipe of a config's section `tokenizer`."""
    return Recipe(section.vocab_size, section.split, section.normalization,
                  (*SPECIAL_TOKENS, *[MASK] * section.mask_token,
                   *map(SENTINEL.format, range(section.num_sentinels))))
