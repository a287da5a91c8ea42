"""Corruption of rows, for objectives beside the causal one: masking, and hidden spans.

A corruption is a function of a row in causal layout (`data.tokens.rows`), of which it reads the
inputs alone, and of a random generator; see `corrupt`. Only ordinary tokens are hidden. Documents
of a row stay apart: each has its own segment, and nothing hidden reaches over its ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from core.errors import UserError
from data.batch import Batch, Source
from data.tokenizers.tokenizer import MASK, SENTINEL, Tokenizer

TARGET_MULTIPLE = 8     # so that a mesh can cut the decoder's positions too


class Corruption(Protocol):
    """What an objective does to a row.

    Attributes:
        text_length: tokens of a row before.
    """

    text_length: int

    def __call__(self, row: Batch, rng: np.random.Generator) -> Batch:
        """Corrupts a row of `text_length` inputs, without a B axis."""


def corrupt(rows: grain.MapDataset, corruption: Corruption, seed: int) -> grain.MapDataset:
    """Corrupts rows; what is hidden in row i depends on the seed and i alone.

    A text that comes again in another epoch has another number, so something else of it is hidden.
    """
    return rows.random_map(corruption, seed=seed)


def make_corruption(objective: str, fields: Mapping[str, Any], tokenizer: Tokenizer,
                    row_length: int) -> Corruption:
    """The corruption of an objective.

    Args:
        objective: ``masked`` or ``span``.
        fields: `configs.common.make_pretrain` lists them as `corruption`.
        row_length: inputs of the encoder in a row.

    Raises:
        UserError: the tokenizer lacks the special tokens, or the fields do not fit each other.
    """
    is_ordinary_V = tokenizer.token_bytes() > 0
    if objective == "masked":
        _check_specials(tokenizer, [MASK], objective, "mask_token=True")
        if fields["random_frac"] + fields["kept_frac"] > 1:
            raise UserError(f"pretrain.corruption.random_frac={fields['random_frac']}",
                            f"and kept_frac={fields['kept_frac']} exceed 1 together",
                            "lower one of them")
        return Masking(row_length, is_ordinary_V, tokenizer.special(MASK), fields["frac"],
                       fields["random_frac"], fields["kept_frac"])
    sizes = span_sizes(row_length, fields["frac"], fields["span_tokens"])
    names = [SENTINEL.format(i) for i in range(sizes.num_spans)]
    _check_specials(tokenizer, names, objective, f"num_sentinels={sizes.num_spans}")
    return SpanCorruption(row_length, sizes, is_ordinary_V,
                          np.asarray([tokenizer.special(name) for name in names]),
                          tokenizer.bos, tokenizer.end, fields["frac"], fields["span_tokens"])


@dataclasses.dataclass(frozen=True, eq=False)
class Masking:
    """Masked language modelling: hides tokens at their own positions (arXiv 1810.04805, 3.1).

    Of the hidden tokens most become the mask, some a random token, and some stay, so that a model
    cannot tell by the input which tokens count. The target of a position is its original token;
    only hidden ones weigh. A row with any ordinary token has at least one target.

    Attributes:
        text_length: of a row, which keeps its length.
        is_ordinary_V: which tokens may be hidden, or put in place of others.
        mask: id of the mask.
        frac: hidden share of a row's ordinary tokens.
        random_frac: of these, replaced by a random ordinary token, which may be the same.
        kept_frac: of these, left as they are.
    """

    text_length: int
    is_ordinary_V: np.ndarray
    mask: int
    frac: float = 0.15
    random_frac: float = 0.1
    kept_frac: float = 0.1

    def __call__(self, row: Batch, rng: np.random.Generator) -> Batch:
        tokens = np.array(row.tokens_BL)
        places = np.flatnonzero(self.is_ordinary_V[tokens] & (row.segment_ids_BL > 0))
        num_hidden = min(max(round(self.frac * len(places)), 1), len(places))
        hidden = rng.choice(places, num_hidden, replace=False)
        fate = rng.random(num_hidden)
        random = rng.choice(np.flatnonzero(self.is_ordinary_V), num_hidden)
        tokens[hidden] = np.select(
            [fate < self.kept_frac, fate < self.kept_frac + self.random_frac],
            [tokens[hidden], random], self.mask)
        weights = np.zeros_like(row.loss_weights_BL)
        weights[hidden] = 1
        return row.replace(tokens_BL=tokens, targets_BL=np.array(row.tokens_BL),
                           loss_weights_BL=weights)


class SpanSizes(NamedTuple):
    """Sizes of span corruption that follow from the encoder's row.

    Attributes:
        text_length: tokens of a row of text.
        num_noise, num_spans: of these, how many are hidden, in how many spans.
        target_length: inputs of the decoder: the hidden tokens, a sentinel for each span, and an
            end for each document that has one, of which there are at most as many as spans; a
            multiple of `TARGET_MULTIPLE`.
    """

    text_length: int
    num_noise: int
    num_spans: int
    target_length: int


def span_sizes(row_length: int, frac: float, span_tokens: float) -> SpanSizes:
    """The longest rows of text whose corruption fits the encoder's row.

    As `random_spans_helper` of t5/data/preprocessors.py (google-research/
    text-to-text-transfer-transformer), but that no end is added to the encoder's input: documents
    bring their own.

    Raises:
        UserError: so many spans do not fit beside each other.
    """
    length = row_length
    while _encoder_tokens(length + 1, frac, span_tokens) <= row_length:
        length += 1
    num_noise, num_spans = _num_hidden(length, frac, span_tokens)
    if num_noise + num_spans > length:
        raise UserError(f"pretrain.corruption.frac={frac}",
                        f"hides {num_noise} of {length} tokens in {num_spans} spans, which leaves "
                        "too few between them", "lower it, or raise span_tokens")
    target_length = math.ceil((num_noise + 2 * num_spans) / TARGET_MULTIPLE) * TARGET_MULTIPLE
    return SpanSizes(length, num_noise, num_spans, target_length)


@dataclasses.dataclass(frozen=True, eq=False)
class SpanCorruption:
    """Span corruption: hides runs of tokens, which the decoder writes (arXiv 1910.10683, 3.1.4).

    In the encoder's input each span is replaced by a sentinel. The decoder's targets are, for each
    document with spans: each sentinel and the tokens it stands for, then the end; its inputs are
    these, one later, from the start token on. Sentinels are numbered from 0 in each document, and
    source and target of a document have the same segment id.

    The numbers of hidden tokens and spans are those of the reference's `random_spans_noise_mask`
    for the whole row, so that a full row fills the encoder's exactly. Spans are drawn as there and
    then dealt out to the documents by their lengths; in a row of one document the distribution is
    the reference's. So a token of each document comes before its first span, and its last token is
    hidden.

    Attributes:
        row_length: inputs of the encoder, M; what a shorter text leaves is padding.
        sizes: see `span_sizes`.
        is_ordinary_V: which tokens may be hidden.
        sentinels: ids, in order.
        start, end: ids that begin the decoder's input and end its targets.
        frac: hidden share of a row.
        span_tokens: mean length of a span.
    """

    row_length: int
    sizes: SpanSizes
    is_ordinary_V: np.ndarray
    sentinels: np.ndarray
    start: int
    end: int
    frac: float = 0.15
    span_tokens: float = 3.0

    @property
    def text_length(self) -> int:
        """Tokens of a row of text; longer than the encoder's input."""
        return self.sizes.text_length

    def __call__(self, row: Batch, rng: np.random.Generator) -> Batch:
        segments = row.segment_ids_BL[row.segment_ids_BL > 0]
        tokens = row.tokens_BL[:len(segments)]
        span_of = self.draw_spans(tokens, segments, rng)
        sources, targets = [], []
        for segment in range(1, segments.max(initial=0) + 1):
            here = segments == segment
            source, target = self._document(tokens[here], span_of[here])
            sources.append(source)
            targets.append(target)
        num_source = sum(map(len, sources))
        if num_source > self.row_length:
            raise UserError(
                "pretrain.objective='span'", f"a row of {len(sources)} documents with {len(tokens)}"
                f" tokens has no room for {self.sizes.num_spans} spans of {self.span_tokens} "
                "tokens between others", "lower --config.pretrain.corruption.span_tokens or frac, "
                "or leave documents of a few tokens out of the corpus")
        targets_BL, segment_ids_BL, positions_BL = _lay_out(targets, self.sizes.target_length)
        begins = (positions_BL == 0) & (segment_ids_BL > 0)
        inputs = np.where(begins, self.start, np.r_[0, targets_BL[:-1]])
        return Batch(np.where(segment_ids_BL > 0, inputs, 0).astype(np.int32), targets_BL,
                     (segment_ids_BL > 0).astype(np.float32), segment_ids_BL, positions_BL,
                     Source(*_lay_out(sources, self.row_length)))

    def draw_spans(self, tokens: np.ndarray, segments: np.ndarray,
                   rng: np.random.Generator) -> np.ndarray:
        """The span of each token, numbered from 1 over the row; 0 is not hidden.

        Args:
            tokens, segments: of a row, without padding.
        """
        span_of = np.zeros(len(tokens), np.int64)
        pieces = [piece for piece in _runs(segments * self.is_ordinary_V[tokens])
                  if len(piece) > 1]
        if not pieces:
            return span_of
        num_noise, num_spans = _num_hidden(len(tokens), self.frac, self.span_tokens)
        lengths = _split(num_noise, num_spans, rng)
        dealt, next_span = _deal(lengths, [len(piece) for piece in pieces], rng), 1
        for piece, hidden in zip(pieces, dealt):
            if not hidden:
                continue
            kept = _split(len(piece) - sum(hidden), len(hidden), rng)
            numbers = np.arange(next_span, next_span + len(hidden))
            span_of[piece] = np.repeat(np.stack([np.zeros_like(numbers), numbers], 1).ravel(),
                                       np.stack([kept, hidden], 1).ravel())
            next_span += len(hidden)
        return span_of

    def _document(self, tokens: np.ndarray, span_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of a document; without a span the target is empty."""
        begins = (span_of > 0) & (span_of != np.r_[0, span_of[:-1]])
        sentinel_of = self.sentinels[np.cumsum(begins) - 1]     # where a span begins
        source = np.where(begins, sentinel_of, tokens)[begins | (span_of == 0)]
        if not begins.any():
            return source, np.empty(0, np.int64)
        pairs = np.stack([sentinel_of, tokens], 1)
        return source, np.r_[pairs[np.stack([begins, span_of > 0], 1)], self.end]


def _num_hidden(length: int, frac: float, span_tokens: float) -> tuple[int, int]:
    """Hidden tokens and spans of a text: at least one of each, and not all of it."""
    num_noise = max(min(round(length * frac), length - 1), 1)
    return num_noise, max(round(num_noise / span_tokens), 1)


def _encoder_tokens(length: int, frac: float, span_tokens: float) -> int:
    num_noise, num_spans = _num_hidden(length, frac, span_tokens)
    return length - num_noise + num_spans


def _split(count: int, num_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Splits `count` into so many positive parts, in order, all ways equally likely."""
    borders = 1 + np.sort(rng.choice(count - 1, num_parts - 1, replace=False))
    return np.diff(np.r_[0, borders, count])


def _deal(lengths: np.ndarray, sizes: Sequence[int],
          rng: np.random.Generator) -> list[list[int]]:
    """Deals spans out to pieces of a row; each also needs a kept token before it.

    Longest first, each goes to a piece with a probability proportional to what is free there, among
    those with room. Where none has it, the span is cut to what is free, and the rest prolongs
    others; what fits nowhere is left out.

    Returns:
        Lengths of the spans in each piece, in random order.
    """
    free, dealt, rest = np.array(sizes), [[] for _ in sizes], 0
    for length in sorted(lengths.tolist(), reverse=True):
        fitted = min(length, max(int(free.max()) - 1, 0))
        rest += length - fitted
        if not fitted:
            continue
        chances = np.where(free > fitted, free, 0)
        piece = rng.choice(len(free), p=chances / chances.sum())
        dealt[piece].append(fitted)
        free[piece] -= fitted + 1
    while rest and (open_ := [i for i, spans in enumerate(dealt) if spans and free[i]]):
        piece = rng.choice(open_)
        dealt[piece][rng.integers(len(dealt[piece]))] += 1
        free[piece] -= 1
        rest -= 1
    return [rng.permutation(spans).tolist() for spans in dealt]


def _runs(labels: np.ndarray) -> list[np.ndarray]:
    """Places of each maximal run of one label; 0 is no label."""
    borders = [0, *(1 + np.flatnonzero(np.diff(labels))).tolist(), len(labels)]
    return [np.arange(begin, end) for begin, end in itertools.pairwise(borders)
            if begin < end and labels[begin]]


def _lay_out(documents: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, ...]:
    """Tokens, segment ids and positions of documents one after another, padded; int32."""
    laid = np.zeros((3, length), np.int32)
    place = 0
    for segment, document in enumerate(documents, start=1):
        here = slice(place, place := place + len(document))
        laid[:, here] = document, np.full(len(document), segment), np.arange(len(document))
    return tuple(laid)


def _check_specials(tokenizer: Tokenizer, names: Sequence[str], objective: str,
                    remedy: str) -> None:
    """Raises `UserError` for the first special token that the tokenizer lacks."""
    if missing := [name for name in names if name not in tokenizer.specials]:
        raise UserError(f"pretrain.objective={objective!r}",
                        f"needs the special token {missing[0]}, which the tokenizer lacks",
                        f"train one with --config.tokenizer.{remedy}, and pack the tokens anew")
