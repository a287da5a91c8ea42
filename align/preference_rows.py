"""Pairs and labelled answers, rendered once to disk, and read back as the batches of their losses.

A group of `data.tokens.examples` is two rows: the preferred and the other answer of a pair; or a
labelled answer, with its label as its value, and the same prompt with another prompt's answer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from align.describe import Description
from align.losses.preference import LabelledBatch, PreferenceBatch
from align.sources import is_heldout
from core.errors import UserError
from core.progress import log
from data.batch import stack
from data.chat import Conversation, Message, render, render_prompt
from data.layouts.faults import Faults
from data.preferences import Labelled, Preference
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.examples import (
    HELDOUT,
    TRAIN,
    Example,
    Examples,
    lay_out_examples,
    write_examples,
)

OVERLONG = ("drop", "cut", "fail")
Item = Preference | Labelled
Rendered = tuple[list[int], list[float]]


@dataclasses.dataclass(frozen=True)
class Renderer:
    """How items become rows.

    Attributes:
        tokenizer: of the model.
        row_length: inputs of a row.
        overlong: drop, cut or fail: what is done with a pair of which a row is too long.
        faults: counts what is left out.
        stage: the stage's name, for messages.
        shortened: how many `items` were cut, by the rule.
    """

    tokenizer: Tokenizer
    row_length: int
    overlong: str
    faults: Faults
    stage: str
    shortened: Counter[str] = dataclasses.field(default_factory=Counter)


def write_rows(folder: Path, items: Callable[[], Iterable[Item]], renderer: Renderer, *,
               heldout_frac: float, labels: bool) -> dict[str, Any]:
    """Renders items into `folder`, unless that is done.

    Args:
        items: preferences; with `labels` labelled answers as well, and a preference's preferred
            answers are good ones, its others bad ones.
        heldout_frac: share of prompts whose rows are held out.

    Returns:
        `data.tokens.examples.write_examples`' counts, with `left_out` by reason and `statistics`.

    Raises:
        UserError: there is no such rule; or an item is at fault, where the rule says so.
    """
    if renderer.overlong not in OVERLONG:
        raise UserError(f"{renderer.stage}.overlong={renderer.overlong!r}",
                        f"is none of {', '.join(OVERLONG)}", "choose one of them")
    description = Description()
    make = _labelled_groups if labels else _pair_groups

    def describe() -> dict[str, Any]:
        renderer.faults.report()
        num_shortened = renderer.shortened["items"]
        if num_shortened:
            log(f"{renderer.stage}: cut {num_shortened:,} to rows of {renderer.row_length} tokens")
        return {"left_out": dict(renderer.faults.counts),
                "statistics": {**description.summary(), "shortened": num_shortened}}

    groups = make(items(), renderer, description,
                  lambda item: HELDOUT if is_heldout(item, heldout_frac) else TRAIN)
    return write_examples(folder, groups, describe)


def _pair_groups(items: Iterable[Preference], renderer: Renderer, description: Description,
                 part_of: Callable[[Item], str]) -> Iterator[tuple[str, list[Example]]]:
    for item in items:
        pairs = item.pairs()
        if not pairs:
            renderer.faults.add("tied", place_of(item), "has no pair: all ranks are equal")
        for better, worse in pairs:
            rows = render_pair(item, better, worse, renderer)
            if rows is not None:
                description.add_pair(item, better, worse, rows)
                yield part_of(item), rows


def _labelled_groups(items: Iterable[Item], renderer: Renderer, description: Description,
                     part_of: Callable[[Item], str]) -> Iterator[tuple[str, list[Example]]]:
    """Each labelled answer beside its prompt with the latest answer to another prompt.

    What comes before any other prompt waits for the last one of all: a rotation.
    """
    latest: dict[str, list[tuple[tuple[int, ...], list[int]]]] = {TRAIN: [], HELDOUT: []}
    waiting: dict[str, list[tuple[tuple[int, ...], list[int], float]]] = {TRAIN: [], HELDOUT: []}
    for item in items:
        for labelled in _labels_of(item):
            found = render_labelled(labelled, renderer)
            if found is None:
                continue
            prompt, answer = found
            description.add_labelled(labelled, len(answer))
            part, prompt = part_of(labelled), tuple(prompt)
            others = [tokens for other, tokens in latest[part] if other != prompt]
            if others:
                yield part, _labelled_group(prompt, answer, labelled.is_good, others[-1], renderer)
            else:
                waiting[part].append((prompt, answer, labelled.is_good))
            latest[part] = [kept for kept in latest[part] if kept[0] != prompt][-1:]
            latest[part].append((prompt, answer))
    for part, groups in waiting.items():
        for prompt, answer, is_good in groups:
            others = [tokens for other, tokens in latest[part] if other != prompt]
            if not others:
                raise UserError(f"{renderer.stage}.loss='kto'", f"all answers of {part} are to one "
                                "prompt, and it compares with answers to others",
                                "give answers to several prompts")
            yield part, _labelled_group(prompt, answer, is_good, others[-1], renderer)


def _labelled_group(prompt: Sequence[int], answer: Sequence[int], is_good: bool,
                    other: Sequence[int], renderer: Renderer) -> list[Example]:
    # A mismatched answer only gives a mean: what of it does not fit is left out.
    other = other[:renderer.row_length + 1 - len(prompt)]
    return [Example([*prompt, *tokens], [0.0] * len(prompt) + [1.0] * len(tokens), float(is_good))
            for tokens in (answer, other)]


def _labels_of(item: Item) -> Iterator[Labelled]:
    """A labelled answer as it is; of a preference the best are good and the others are bad."""
    if isinstance(item, Labelled):
        yield item
    elif len(set(item.ranks)) > 1:
        finishes = item.finishes or ("",) * len(item.responses)
        for response, rank, finish in zip(item.responses, item.ranks, finishes):
            yield Labelled(item.prompt, response, rank == min(item.ranks), item.source, item.meta,
                           finish)


def render_pair(item: Preference, better: int, worse: int,
                renderer: Renderer) -> list[Example] | None:
    """The rows of a pair, both answers after the same prompt; None if it is left out.

    Of an answer that was cut at a limit the end is not scored. Of a pair that is too long for a row
    the rule "cut" leaves out the prompt's oldest turns, its system message aside, or else its
    oldest tokens, <|bos|> aside, down to a quarter of the row; then the ends of the answers, which
    are not scored as ends.
    """
    faults, place = renderer.faults, place_of(item)
    texts = [item.responses[index] for index in (better, worse)]
    cut = ["length" in item.finishes[index:index + 1] for index in (better, worse)]
    if texts[0] == texts[1]:
        return faults.add("equal", place, "has a pair of equal answers")
    if not texts[0].strip():
        return faults.add("empty_chosen", place, "prefers an empty answer")
    return _fit(item.prompt, texts, cut, renderer, place)


def render_labelled(item: Labelled, renderer: Renderer) -> tuple[list[int], list[int]] | None:
    """Tokens of prompt and answer; None if the answer is left out."""
    place = place_of(item)
    if not item.response.strip():
        return renderer.faults.add("empty_answer", place, "has an empty answer")
    rows = _fit(item.prompt, [item.response], [item.finish == "length"], renderer, place)
    if rows is None:
        return None
    tokens, weights, _ = rows[0]
    first = next(at for at, weight in enumerate(weights) if weight)
    last = max(at for at, weight in enumerate(weights) if weight)
    return list(tokens[:first]), list(tokens[first:last + 1])


def _fit(prompt: Conversation, texts: Sequence[str], cut: Sequence[bool], renderer: Renderer,
         place: str) -> list[Example] | None:
    """Rows of answers after the same prompt, none longer than a row; None if left out."""
    rendered = _render(prompt, texts, cut, renderer, place)
    if rendered is None:
        return None
    size = renderer.row_length + 1
    if max(map(len, (tokens for tokens, _ in rendered[1]))) > size:
        if renderer.overlong == "fail":
            raise UserError(place, f"is longer than a row of {renderer.row_length} tokens",
                            f"raise {renderer.stage}.row_length, or set {renderer.stage}.overlong "
                            "to drop or cut")
        if renderer.overlong == "drop":
            return renderer.faults.add("too_long", place, "is longer than a row of "
                                       f"{renderer.row_length} tokens")
        rendered = _shorten(prompt, texts, cut, renderer, place)
        if len(texts) == 2 and rendered[1][0][0] == rendered[1][1][0]:
            return renderer.faults.add("equal", place, "has answers that begin alike, up to the "
                                       "length of a row")
        renderer.shortened["items"] += 1
    num_prompt, rows = rendered
    examples = [Example(tokens, [0.0] * num_prompt + weights[num_prompt:])
                for tokens, weights in rows]
    if not all(any(example.weights) for example in examples):
        return renderer.faults.add("empty_answer", place, "has an answer without a token to score")
    return examples


def _render(prompt: Conversation, texts: Sequence[str], cut: Sequence[bool], renderer: Renderer,
            place: str) -> tuple[int, list[Rendered]] | None:
    """The number of the prompt's tokens, and the rows; None if the rows do not begin with it."""
    begin = render_prompt(prompt, renderer.tokenizer)
    rows = [render(Conversation((*prompt.messages, Message("assistant", text))),
                   renderer.tokenizer, is_cut=is_cut) for text, is_cut in zip(texts, cut)]
    if any(list(tokens[:len(begin)]) != list(begin) for tokens, _ in rows):
        return renderer.faults.add("prompt_is_no_prefix", place, "has a prompt whose tokens are no "
                                   "prefix of those of prompt and answer")
    return len(begin), rows


def _shorten(prompt: Conversation, texts: Sequence[str], cut: Sequence[bool], renderer: Renderer,
             place: str) -> tuple[int, list[Rendered]]:
    size = renderer.row_length + 1
    system = [message for message in prompt.messages[:1] if message.role == "system"]
    for first in range(len(system) + 1, len(prompt.messages)):
        if prompt.messages[first].role == "user":
            shorter = Conversation((*system, *prompt.messages[first:]))
            rendered = _render(shorter, texts, cut, renderer, place)
            if rendered and max(len(tokens) for tokens, _ in rendered[1]) <= size:
                return rendered
    num_prompt, rows = _render(prompt, texts, cut, renderer, place)
    longest = max(len(tokens) for tokens, _ in rows) - num_prompt
    kept = max(size - longest, min(num_prompt, size // 4))
    num_first = int(rows[0][0][0] == renderer.tokenizer.bos)
    rest = num_first + num_prompt - kept
    return kept, [((tokens[:num_first] + tokens[rest:])[:size],
                   (weights[:num_first] + weights[rest:])[:size]) for tokens, weights in rows]


def place_of(item: Item) -> str:
    """Where an item comes from, for messages."""
    return str(item.meta.get("place", item.source or "a preference"))


class PairRows:
    """Random access to pairs as a `PreferenceBatch` without its B axis; a Grain source.

    Args:
        examples: groups of two.
        row_length: inputs of a row.

    Attributes:
        reference: log-probabilities under the reference by pair, side and measure (the whole
            answer, its tokens common to both): [pairs, 2, 2]. To be set before rows are read for a
            loss that has one; None gives zeros.
    """

    def __init__(self, examples: Examples, row_length: int):
        self.examples, self._row_length = examples, row_length
        self.reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> PreferenceBatch | LabelledBatch:
        first, second = self.examples[index]
        rows = [lay_out_examples([example], self._row_length) for example in (first, second)]
        numbers = np.zeros((2, 2), np.float32) if self.reference is None else self.reference[index]
        return self._make(rows, numbers, first)

    def _make(self, rows: list, numbers: np.ndarray, first: Example) -> Any:
        one = np.float32(1)
        return PreferenceBatch(*rows, *numbers.T.reshape(-1), weights_B=one, token_share_B=one)

    def __repr__(self) -> str:      # Grain compares it on restore
        return f"{type(self).__name__}({len(self)}/{self._row_length})"


class LabelledRows(PairRows):
    """Random access to labelled answers as a `LabelledBatch` without its B axis."""

    def _make(self, rows: list, numbers: np.ndarray, first: Example) -> LabelledBatch:
        return LabelledBatch(*rows, *numbers[:, 0], np.float32(first.value), np.float32(1))


def share_tokens(batch: PreferenceBatch | LabelledBatch) -> Any:
    """Fills in `token_share_B`, which depends on all pairs of a batch.

    Raises:
        UserError: no pair of the batch counts.
    """
    weights_B = batch.weights_B
    if not np.sum(weights_B) > 0:
        raise UserError("a batch", "has no weight: there is nothing in it to learn from",
                        "give more data")
    if isinstance(batch, LabelledBatch):
        return batch
    num_tokens = np.sum(np.sum(batch.chosen.segment_ids_BL > 0, axis=1) * weights_B)
    return batch.replace(token_share_B=np.full_like(weights_B, np.sum(weights_B) / num_tokens))


def heldout_batches(rows: PairRows, batch_size: int) -> Iterator[Any]:
    """All rows in batches of one size; the last is filled with rows of weight 0."""
    for first in range(0, len(rows), batch_size):
        picked = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        empty = picked[0].replace(weights_B=np.float32(0))
        yield share_tokens(stack(picked + [empty] * (batch_size - len(picked))))


def with_token_shares(batches: grain.MapDataset) -> grain.MapDataset:
    """Batches of training with `share_tokens`."""
    return batches.map(share_tokens)


def check_batches(section: ConfigDict, labels: bool) -> None:
    """Raises `UserError` where a batch is too small for its loss, or is not whole."""
    if not labels:
        return
    remedy = "its reference point is a mean over the whole batch"
    if section.batch_size < 2:
        raise UserError(f"{section.out}.batch_size={section.batch_size}",
                        f"is too small for loss='kto': {remedy}", "set it to 2 or more")
    if section.run.num_microbatches > 1:
        raise UserError(f"{section.out}.run.num_microbatches={section.run.num_microbatches}",
                        f"cannot be had with loss='kto': {remedy}",
                        "set it to 1, and run.remat to save memory")


def longer_is_chosen(examples: Examples) -> float:
    """Accuracy of preferring the longer answer, in tokens; a tie counts a half."""
    correct = 0.0
    for chosen, rejected in (examples[i] for i in range(len(examples))):
        difference = np.count_nonzero(chosen.weights) - np.count_nonzero(rejected.weights)
        correct += 0.5 + 0.5 * np.sign(difference)
    return float(correct / len(examples))

