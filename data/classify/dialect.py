"""How often harmless texts that are written in a dialect are flagged, next to other harmless ones.

Which texts those are is estimated from words that are spelt as the dialect is spoken. That is a
proxy: most texts of a dialect hold no such word, and others write these words too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from data.dedup.words import normalise_words

NOTE = ("A proxy: texts that hold a word of the list stand for the dialect, although most of its "
        "texts hold none and other people write these words too.")


def compare_false_positives(texts: Sequence[str], flagged: np.ndarray,
                            markers: Sequence[str]) -> dict[str, Any]:
    """False positives among texts with markers of a dialect, and among the others.

    Args:
        texts: harmless ones only.
        flagged: [num_texts] whether the classifier calls each harmful.
        markers: words in lower case; a text has them if one is among its normalised words.

    Returns:
        `markers`, `note`, and for `with_markers` and `without_markers` the `documents`, how many
        are `flagged`, and their share `false_positive_frac` with its 95 % interval `low` to `high`
        (Wilson, 1927), which are None without documents. `difference`, of the shares, with the
        interval of Newcombe (Statistics in Medicine 17, 1998, method 10); None unless both are
        known.
    """
    wanted = set(markers)
    marked = np.array([not wanted.isdisjoint(normalise_words(text)) for text in texts], bool)
    groups = [_share(flagged[marked]), _share(flagged[~marked])]
    return {"note": NOTE, "markers": list(markers), "with_markers": groups[0],
            "without_markers": groups[1], "difference": _difference(*groups)}


def _share(flagged: np.ndarray) -> dict[str, Any]:
    num_flagged, num_texts = int(flagged.sum()), len(flagged)
    found = {"documents": num_texts, "flagged": num_flagged}
    if not num_texts:
        return found | {"false_positive_frac": None, "low": None, "high": None}
    low, high = stats.binomtest(num_flagged, num_texts).proportion_ci(method="wilson")
    return found | {"false_positive_frac": num_flagged / num_texts, "low": float(low),
                    "high": float(high)}


def _difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float] | None:
    if not first["documents"] or not second["documents"]:
        return None
    p, q = first["false_positive_frac"], second["false_positive_frac"]
    below = math.hypot(p - first["low"], second["high"] - q)
    above = math.hypot(first["high"] - p, q - second["low"])
    return {"value": p - q, "low": p - q - below, "high": p - q + above}
