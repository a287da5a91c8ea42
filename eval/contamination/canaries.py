"""Canaries: marked texts that no corpus should hold, and what a model remembers of them.

A canary has a part that was drawn at random: a GUID, as in BIG-bench's files, or else its digits,
as in the canaries of The Secret Sharer (arXiv 1802.08232). A model that was trained on it prefers
this part to other ones drawn in the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from eval.contamination.corpus import Page
from eval.contamination.membership import score_tokens
from eval.respond.loaded import LoadedModel

GUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.I)
HEX, DIGITS = "0123456789abcdef", "0123456789"


class Canaries:
    """Searches documents for canaries: for the GUID, or the whole text of one without, case aside.

    Attributes:
        found: of each canary, the number of documents that have it, and the first of them.

    Raises:
        UserError: a canary has neither a GUID nor a digit.
    """

    def __init__(self, texts: Sequence[str]):
        for text in texts:
            random_places(text)
        self.texts = texts
        self._needles = [(match[0] if (match := GUID.search(text)) else text).lower()
                         for text in texts]
        self.found: list[tuple[int, str]] = [(0, "")] * len(texts)

    def add(self, page: Page) -> None:
        """Takes a document."""
        lower = page.text.lower() if self.texts else ""
        for number, needle in enumerate(self._needles):
            if needle in lower:
                count, first = self.found[number]
                self.found[number] = count + 1, first or page.source

    def report(self, model: LoadedModel | None, *, num: int, seed: int,
               batch_size: int) -> list[dict[str, Any]]:
        """Of each canary where it was found, and with a model its `exposure`."""
        rows: list[dict[str, Any]] = [
            {"canary": text, "documents": count, "first": first}
            for text, (count, first) in zip(self.texts, self.found)]
        if model is not None:
            rng = np.random.default_rng(seed)
            for row in rows:
                drawn = [row["canary"], *draw_candidates(row["canary"], num, rng)]
                logps = [float(tokens.logp.sum(dtype=np.float64)) for tokens in
                         score_tokens(model, drawn, batch_size=batch_size)]
                row["model"] = exposure(logps[0], logps[1:])
        return rows


def random_places(text: str) -> tuple[list[int], str]:
    """The characters of a canary that were drawn, and the alphabet.

    Raises:
        UserError: there are none.
    """
    if match := GUID.search(text):
        return [place for place in range(*match.span()) if text[place] != "-"], HEX
    if places := [place for place, char in enumerate(text) if char in DIGITS]:
        return places, DIGITS
    raise UserError(f"--canary={text[:60]!r}", "has no part that was drawn at random",
                    "give it a GUID, or digits")


def draw_candidates(text: str, num: int, rng: np.random.Generator) -> list[str]:
    """Other canaries, with another random part."""
    places, alphabet = random_places(text)
    found = []
    for row in rng.integers(len(alphabet), size=(num, len(places))):
        chars = list(text)
        for place, number in zip(places, row.tolist()):
            chars[place] = alphabet[number]
        found.append("".join(chars))
    return found


def exposure(logp: float, candidates: Sequence[float]) -> dict[str, Any]:
    """How much more likely a canary is than others, in bits (arXiv 1802.08232, section 4).

    log2 |R| - log2 rank, where R are the candidates and the canary itself, and its rank is the
    number of them that are at least as likely as it. The largest possible value is log2 |R|; a
    canary that was never seen has 1.44 bits on average.

    Args:
        logp: log-probability of the canary.
        candidates: those of candidates.
    """
    rank = 1 + int(np.sum(np.asarray(candidates) >= logp))
    size = len(candidates) + 1
    return {"exposure_bits": math.log2(size) - math.log2(rank), "rank": rank, "candidates": size,
            "max_bits": math.log2(size), "logp_nats": logp}
