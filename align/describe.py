"""What a set of preferences is like: lengths, positions, margins: what a loss may learn instead."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.progress import log
from data.preferences import Labelled, Preference
from data.tokens.examples import Example


class Description:
    """Statistics of the rows of a preference set, added up as they are rendered."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._tokens = {side: array("l") for side in ("chosen", "rejected", "good", "bad")}
        self._margins = array("d")

    def add_pair(self, item: Preference, better: int, worse: int,
                 rows: Sequence[Example]) -> None:
        """Adds a pair: the preference that it is of, the places of its answers, and its rows."""
        lengths = [int(np.count_nonzero(row.weights)) for row in rows]
        self._tokens["chosen"].append(lengths[0])
        self._tokens["rejected"].append(lengths[1])
        self._counts.update(pairs=1, several_turns=_has_several_turns(item),
                            longer_chosen=lengths[0] > lengths[1],
                            same_length=lengths[0] == lengths[1],
                            first_chosen=better < worse,
                            empty_rejected=not item.responses[worse].strip())
        if item.scores:
            self._margins.append(item.scores[better] - item.scores[worse])

    def add_labelled(self, item: Labelled, num_tokens: int) -> None:
        """Adds a labelled answer of so many tokens."""
        self._tokens["good" if item.is_good else "bad"].append(num_tokens)
        self._counts.update(answers=1, several_turns=_has_several_turns(item))

    def summary(self) -> dict[str, Any]:
        """The statistics, logged in a few lines.

        Returns:
            `pairs` (or `answers`), `several_turns_frac`; of each side `SIDE_tokens_mean` and
            `_median`, the last token included; `longer_chosen_frac` and `same_length_frac`;
            `first_chosen_frac`, the share of pairs whose preferred answer stands first, where that
            varies: else the answers are written in order of preference; `score_margin_mean`,
            `_median` and `not_positive_frac` of them, where scores are known.
        """
        counts = self._counts
        kind = "pairs" if counts["pairs"] else "answers"
        number = max(counts[kind], 1)
        found: dict[str, Any] = {kind: counts[kind],
                                 "several_turns_frac": counts["several_turns"] / number}
        for side, lengths in self._tokens.items():
            if lengths:
                found |= {f"{side}_tokens_mean": float(np.mean(lengths)),
                          f"{side}_tokens_median": float(np.median(lengths))}
        if counts["pairs"]:
            found |= {f"{name}_frac": counts[name] / number
                      for name in ("longer_chosen", "same_length")}
            found["empty_rejected"] = counts["empty_rejected"]
            if 0 < counts["first_chosen"] < number:
                found["first_chosen_frac"] = counts["first_chosen"] / number
        if self._margins:
            margins = np.asarray(self._margins)
            found |= {"score_margin_mean": float(margins.mean()),
                      "score_margin_median": float(np.median(margins)),
                      "score_margin_not_positive_frac": float(np.mean(margins <= 0))}
        return found


def log_statistics(stage: str, statistics: dict[str, Any]) -> None:
    """Logs the statistics of a preference set, a line for lengths and one for the rest."""
    texts = [f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}"
             for name, value in statistics.items()]
    lengths = [text for text in texts if "_tokens_" in text or "length" in text or "long" in text]
    log(f"{stage}: " + ", ".join(text for text in texts if text not in lengths))
    if lengths:
        log(f"{stage}: " + ", ".join(lengths))


def _has_several_turns(item: Preference | Labelled) -> bool:
    return any(message.role == "assistant" for message in item.prompt.messages)
