"""Rankings as rows: every answer of a prompt rendered once, streamed from disk in groups."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align.losses.reward import RankingBatch
from align.sources import is_heldout
from core.errors import UserError
from core.progress import log
from data.answers import Answer, cut_prompt, lay_out_answers, render_answer
from data.batch import stack
from data.chat import Conversation, Message
from data.layouts.faults import Faults
from data.preferences import Preference
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.examples import HELDOUT, TRAIN, Example, Examples, write_examples
from eval.measures.ranked import pairs_of

OVERLONG = ("drop", "cut", "fail")


class RankingWriter:
    """Renders preferences, and writes those that can be learned from.

    Args:
        section: the stage's; `row_length`, `overlong`, `faulty`, `margin` and `heldout_frac` are
            read.
        is_encoder: see `data.answers.render_answer`.

    Raises:
        UserError: there is no such rule for what is too long.
    """

    def __init__(self, section: ConfigDict, tokenizer: Tokenizer, *, is_encoder: bool):
        if section.overlong not in OVERLONG:
            raise UserError(f"{section.out}.overlong={section.overlong!r}",
                            f"is none of {', '.join(OVERLONG)}", "choose one of them")
        self._section, self._tokenizer, self._is_encoder = section, tokenizer, is_encoder
        self.faults = Faults(section.out, section.faulty)
        self._counts: Counter[str] = Counter()
        self._longer: list[float] = []      # of the training prompts
        self._heldout: list[str] = []       # sources of the held-out prompts

    def write(self, folder: Path, preferences: Iterable[Preference]) -> dict[str, Any]:
        """Writes the groups of `data.tokens.examples`, one a prompt; a finished folder stays.

        An example's value orders the answers, larger is better: minus the rank, or with the
        margin `scores` the score.

        Returns:
            `parts` (see `write_examples`), `left_out` by reason, `cut` (prompts that lost their
            oldest part), `max_answers` of a prompt, `pairs`, `longer_accuracy` (of preferring the
            longer answer, over training prompts), and `heldout_sources`: [source, prompts] in the
            order of the held-out prompts.
        """
        return write_examples(folder, self._groups(preferences), self._describe)

    def _describe(self) -> dict[str, Any]:
        sources = [[source, len(list(run))] for source, run in itertools.groupby(self._heldout)]
        return {"left_out": dict(self.faults.counts), "cut": self._counts["cut"],
                "max_answers": self._counts["max_answers"], "pairs": self._counts["pairs"],
                "longer_accuracy": float(np.mean(self._longer)) if self._longer else None,
                "heldout_sources": sources}

    def _groups(self, preferences: Iterable[Preference]) -> Iterator[tuple[str, list[Example]]]:
        for number, preference in enumerate(preferences, start=1):
            place = str(preference.meta.get("place", f"preference {number}"))
            group = self._render(preference, place)
            if not group:
                continue
            self._counts["max_answers"] = max(self._counts["max_answers"], len(group))
            values, lengths = ([example.value for example in group],
                               [sum(example.weights) for example in group])
            right = [lengths[i] > lengths[j] for i, j in pairs_of(values)]
            self._counts["pairs"] += len(right)
            if is_heldout(preference, self._section.heldout_frac):
                self._heldout.append(preference.source)
                yield HELDOUT, group
            else:
                self._longer.append(float(np.mean(right)))
                yield TRAIN, group

    def _render(self, preference: Preference, place: str) -> list[Example]:
        """The examples of a prompt; none, after counting why, where nothing can be learned."""
        values = self._values(preference, place)
        kept = self._distinct(preference, place) if values else []
        if not kept:
            return []
        if len(kept) < 2:
            if len(preference.responses) < 2:       # else the reason is counted
                self.faults.add("group_of_one", place, "has no second answer to compare with")
            return []
        values = [values[number] for number in kept]
        if not pairs_of(values):
            self.faults.add("tied", place, "orders no two answers: all are tied")
            return []
        try:
            answers = [self._render_answer(preference, number) for number in kept]
        except UserError as error:
            self.faults.add("not_rendered", place, f"cannot be rendered: {error}")
            return []
        answers = self._fit(answers, place)
        return [Example(tokens, [0.0] * start + [1.0] * (len(tokens) - start), value)
                for (tokens, start), value in zip(answers, values)]

    def _values(self, preference: Preference, place: str) -> list[float]:
        """What orders the answers; none where scores are needed and cannot be."""
        scores = preference.scores
        if not all(map(math.isfinite, scores)):
            self.faults.add("score_not_finite", place, f"has the scores {list(scores)}")
            return []
        if self._section.margin == "none":
            return [-float(rank) for rank in preference.ranks]
        if not scores:
            self.faults.add("no_scores", place, "has no scores, which the margin is made of")
            return []
        if any(scores[i] <= scores[j] for i, j in preference.pairs()):
            self.faults.add("scores_against_ranks", place,
                            "has scores in another order than its ranks")
            return []
        return list(scores)

    def _distinct(self, preference: Preference, place: str) -> list[int]:
        """Numbers of the answers that hold text, and of several equal ones the first."""
        kept: dict[str, int] = {}
        for number, response in enumerate(preference.responses):
            if not response.strip():
                self.faults.add("empty_answer", place, f"has an empty answer, its {number + 1}.")
            elif response in kept:
                self.faults.add("equal", place, "has the same answer twice")
            else:
                kept[response] = number
        return list(kept.values())

    def _render_answer(self, preference: Preference, number: int) -> Answer:
        response = Message("assistant", preference.responses[number])
        return render_answer(Conversation((*preference.prompt.messages, response)),
                             self._tokenizer, is_encoder=self._is_encoder,
                             is_cut="length" in preference.finishes[number:number + 1])

    def _fit(self, answers: list[Answer], place: str) -> list[Answer]:
        """The answers in at most `row_length` tokens each, by the rule; none if that cannot be."""
        length, rule = self._section.row_length, self._section.overlong
        longest = max(len(answer.tokens) for answer in answers)
        if longest <= length:
            return answers
        if rule == "fail":
            raise UserError(place, f"has {longest} tokens, a row {length}",
                            f"raise {self._section.out}.row_length, or set overlong to drop or cut")
        cut = cut_prompt(answers, length) if rule == "cut" else None
        if cut is None:
            self.faults.add("too_long", place, f"has {longest} tokens, a row {length}")
            return []
        self._counts["cut"] += 1
        return cut


class RankedRows:
    """Random access to prompts, each with as many rows as the data's most answers; a Grain source.

    Args:
        examples: groups that a `RankingWriter` wrote.
        num_answers: J of `RankingBatch`.
    """

    def __init__(self, examples: Examples, *, row_length: int, num_answers: int):
        self._examples, self._row_length, self._num_answers = examples, row_length, num_answers

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> RankingBatch:
        """A prompt's answers, without the axis B."""
        group = self._examples[index]
        num_missing = self._num_answers - len(group)
        rows = lay_out_answers([example.tokens for example in group] + [()] * num_missing,
                               self._row_length)
        return RankingBatch(
            *rows, np.array([example.value for example in group] + [0.0] * num_missing, np.float32),
            np.arange(self._num_answers) < len(group))

    def __repr__(self) -> str:      # Grain compares it on restore
        return f"RankedRows({len(self)}/{self._num_answers}/{self._row_length})"


def padded_rankings(rows: RankedRows, batch_size: int) -> Iterator[RankingBatch]:
    """All prompts in batches of one size; the last is filled with prompts of no answer."""
    for first in range(0, len(rows), batch_size):
        picked = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        empty = jax.tree.map(np.zeros_like, picked[0])
        yield stack(picked + [empty] * (batch_size - len(picked)))


def report_rankings(described: dict[str, Any], section: ConfigDict) -> dict[str, Any]:
    """Logs what was written, and gives it for the stage's JSON.

    Raises:
        UserError: there is nothing to train on.
    """
    parts, left_out = described["parts"], described["left_out"]
    if TRAIN not in parts:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UserError(f"{section.out}: inputs, pairs", "give no ranking to train on"
                        + f" (left out: {why})" * bool(why), "name files of preferences")
    counts = {f"{part}_{name}": parts.get(part, {}).get(name, 0)
              for part in (TRAIN, HELDOUT) for name in ("groups", "examples", "tokens")}
    longer = described["longer_accuracy"]
    log(f"{section.out}: {counts['train_groups']:,} prompts with {counts['train_examples']:,} "
        f"answers to train on, {counts['heldout_groups']:,} held out; the longer of two answers is "
        f"the better one in {longer:.1%}"
        + f"; {described['cut']:,} prompts cut to {section.row_length} tokens"
        * bool(described["cut"]))
    return counts | {"train_longer_accuracy": longer} | {
        name: described[name] for name in ("pairs", "cut", "left_out", "max_answers")}
