"""Corruption of rows: what is hidden, how much of it, and that nothing else changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.common import make_pretrain
from core.errors import UserError
from data.batch import Batch
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.tokenizer import MASK, SENTINEL, SPECIAL_TOKENS
from data.tokens.corruption import SpanCorruption, make_corruption, span_sizes
from data.tokens.rows import lay_out

BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)}, specials=(
    *SPECIAL_TOKENS, MASK, *map(SENTINEL.format, range(14))))
FIRST_SENTINEL = BYTES.special("<|extra_0|>")
ROW_LENGTH = 256


def corruption_of(objective, row_length=ROW_LENGTH, **fields):
    fields = make_pretrain().corruption.to_dict() | fields
    return make_corruption(objective, fields, BYTES, row_length)


def row_of(sizes, length, seed=0) -> Batch:
    """A row of documents of so many tokens, <|bos|> and <|end|> included; the rest is padding."""
    rng = np.random.default_rng(seed)
    documents = [[BYTES.bos, *rng.integers(0, 256, size - 2), BYTES.end] for size in sizes]
    tokens = np.concatenate(documents)
    begins = np.cumsum([0, *sizes[:-1]]).tolist()
    return lay_out(tokens, tokens, begins, length)


def fields_of(row):
    source = row.source
    return [row.tokens_BL, row.targets_BL, row.loss_weights_BL, row.segment_ids_BL,
            row.positions_BL, *([] if source is None else
                                [source.tokens_BM, source.segment_ids_BM, source.positions_BM])]


def same(one, other):
    return all(map(np.array_equal, fields_of(one), fields_of(other)))


# Masked.


def test_masking_hides_the_stated_shares():
    masking = corruption_of("masked")
    rng, counts, num_ordinary = np.random.default_rng(0), np.zeros(3), 0
    for seed in range(200):
        row = row_of([100, 60, 80], ROW_LENGTH, seed)
        masked = masking(row, rng)
        hidden = masked.loss_weights_BL > 0
        num_ordinary += 240 - 6
        assert hidden.sum() == round(0.15 * (240 - 6))
        tokens, targets = masked.tokens_BL[hidden], masked.targets_BL[hidden]
        counts += [(tokens == BYTES.special(MASK)).sum(), (tokens == targets).sum(), hidden.sum()]
        assert (tokens[tokens != BYTES.special(MASK)] < 256).all()
    assert counts[2] / num_ordinary == pytest.approx(0.15, abs=0.001)
    # 7,000 targets: standard errors of 0.005 and 0.004.
    assert counts[0] / counts[2] == pytest.approx(0.8, abs=0.015)
    assert counts[1] / counts[2] == pytest.approx(0.1 + 0.1 / 256, abs=0.012)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_masking_changes_only_what_it_scores(sizes, seed):
    row = row_of(sizes, ROW_LENGTH, seed)
    before = [np.array(field) for field in fields_of(row)]
    masked = corruption_of("masked")(row, np.random.default_rng(seed))
    assert all(map(np.array_equal, fields_of(row), before)), "the row itself stays"
    assert np.array_equal(masked.targets_BL, row.tokens_BL), "targets are not shifted"
    hidden = masked.loss_weights_BL > 0
    assert np.array_equal(masked.tokens_BL[~hidden], row.tokens_BL[~hidden])
    assert set(np.unique(masked.loss_weights_BL)) <= {0.0, 1.0}
    assert (row.tokens_BL[hidden] < 256).all() and (row.segment_ids_BL[hidden] > 0).all()
    assert hidden.any() == (max(sizes) > 2), "a target wherever there is an ordinary token"
    assert np.array_equal(masked.segment_ids_BL, row.segment_ids_BL)
    assert np.array_equal(masked.positions_BL, row.positions_BL)


# Spans.


def reference_sizes(inputs_length):
    """`random_spans_helper` by its definition, for a density of 0.15 and a mean of 3."""
    def lengths(tokens):
        noise = round(tokens * 0.15)
        spans = round(noise / 3.0)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = max(n for n in range(inputs_length, 2 * inputs_length)
                 if lengths(n)[0] <= inputs_length)
    return tokens, lengths(tokens)[1]


@pytest.mark.parametrize("inputs_length", [64, 128, 512, 513, 1024])
def test_sizes_are_those_of_the_reference(inputs_length):
    # Ours adds no end to the encoder's input, and as many ends as spans at most to the targets.
    sizes = span_sizes(inputs_length - 1, 0.15, 3.0)
    expected = sizes.text_length, sizes.num_noise + sizes.num_spans + 1
    assert expected == reference_sizes(inputs_length)
    assert 0 <= sizes.target_length - (sizes.num_noise + 2 * sizes.num_spans) < 8
    assert sizes.target_length % 8 == 0
    if inputs_length == 512:
        assert expected == (568, 114)       # arXiv 1910.10683, section 3.1.4 and the code


def test_spans_have_the_properties_of_the_references_mask():
    corruption = corruption_of("span")
    length, rng = corruption.text_length, np.random.default_rng(0)
    text = np.zeros(length, np.int64)
    ones, first = np.ones(length, np.int64), []
    hidden = np.zeros(length)
    for _ in range(500):
        span_of = corruption.draw_spans(text, ones, rng)
        assert (span_of > 0).sum() == corruption.sizes.num_noise == round(0.15 * length)
        begins = (span_of > 0) & (span_of != np.r_[0, span_of[:-1]])
        assert begins.sum() == span_of.max() == corruption.sizes.num_spans
        assert (span_of[np.flatnonzero(begins) - 1] == 0).all(), "a kept token before each span"
        assert span_of[0] == 0 and span_of[-1] > 0
        first.append(begins.argmax())
        hidden += span_of > 0
    # Gaps are a random composition: 242 kept tokens in 14 parts.
    assert np.mean(first) == pytest.approx((length - 43) / 14, rel=0.1)
    assert hidden[20:-20].mean() / 500 == pytest.approx(0.15, abs=0.01)


def restore(row: Batch, number: int) -> list[int]:
    """The text of a document, from its source and its target alone."""
    source = row.source.tokens_BM[row.source.segment_ids_BM == number].tolist()
    target = row.targets_BL[row.segment_ids_BL == number].tolist()
    spans, text = {}, []
    assert not target or target.pop() == BYTES.end
    for token in target:
        if token >= FIRST_SENTINEL:
            assert token == FIRST_SENTINEL + len(spans), "sentinels are in order"
            spans[token] = []
        else:
            [*spans.values()][-1].append(token)
    for token in source:
        text += spans.pop(token) if token >= FIRST_SENTINEL else [token]
    assert not spans
    return text


@given(st.lists(st.integers(20, 120), min_size=1, max_size=12), st.integers(0, 1000),
       st.sampled_from([1.0, 2.0, 3.0]))
def test_source_and_target_together_are_the_row(sizes, seed, span_tokens):
    corruption = corruption_of("span", 64, span_tokens=span_tokens)
    length = corruption.text_length
    sizes = [size for size, end in zip(sizes, np.cumsum(sizes)) if end <= length]
    sizes = sizes or [length]
    row = row_of(sizes, length, seed)
    made = corruption(row, np.random.default_rng(seed))
    assert len(made.targets_BL) == corruption.sizes.target_length
    assert len(made.source.tokens_BM) == 64
    for number in range(1, len(sizes) + 1):
        assert restore(made, number) == row.tokens_BL[row.segment_ids_BL == number].tolist()
        here = made.segment_ids_BL == number
        assert made.positions_BL[here].tolist() == [*range(here.sum())]
        if here.any():
            shifted = [BYTES.bos, *made.targets_BL[here][:-1]]
            assert made.tokens_BL[here].tolist() == shifted
        there = made.source.segment_ids_BM == number
        assert made.source.positions_BM[there].tolist() == [*range(there.sum())]
    assert np.array_equal(made.loss_weights_BL, made.segment_ids_BL > 0)
    hidden = (made.targets_BL < 256) & (made.segment_ids_BL > 0)
    num_noise = max(round(0.15 * sum(sizes)), 1)
    assert hidden.sum() == num_noise
    if sum(sizes) == length:
        assert (made.source.segment_ids_BM > 0).all(), "a full row fills the encoder's"


def test_short_documents_cut_spans_and_fill_the_row_all_the_same():
    corruption = corruption_of("span")
    sizes = [10] * 28 + [5]
    row = row_of(sizes, corruption.text_length)
    for seed in range(50):
        made = corruption(row, np.random.default_rng(seed))
        assert (made.source.segment_ids_BM > 0).all()
        for number in range(1, 30):
            assert restore(made, number) == row.tokens_BL[row.segment_ids_BL == number].tolist()


def test_documents_too_short_for_spans_are_refused_or_stay_whole():
    corruption = corruption_of("span")
    with pytest.raises(UserError, match=r"a row of 95 documents with 285 tokens has no room for 14 "
                                        r"spans of 3\.0 tokens between others: lower --config"):
        corruption(row_of([3] * 95, corruption.text_length), np.random.default_rng(0))
    made = corruption(row_of([3] * 5, corruption.text_length), np.random.default_rng(0))
    assert not made.loss_weights_BL.any() and (made.source.segment_ids_BM > 0).sum() == 15


@pytest.mark.parametrize("begins", [[0], [0, 90, 120, 121, 200]])
def test_pieces_of_documents_stay_apart_without_tokens_that_begin_or_end_them(begins):
    corruption = corruption_of("span")
    tokens = np.arange(corruption.text_length) % 256
    row = lay_out(tokens, tokens, begins, len(tokens))
    for seed in range(20):
        made = corruption(row, np.random.default_rng(seed))
        for number in range(1, len(begins) + 1):
            here = row.segment_ids_BL == number
            assert restore(made, number) == tokens[here].tolist()
        firsts = made.source.tokens_BM[made.source.positions_BM == 0]
        assert firsts.tolist() == tokens[begins].tolist(), "no span comes over a border"


@pytest.mark.parametrize("objective", ["masked", "span"])
def test_the_generator_alone_decides(objective):
    corruption = corruption_of(objective)
    row = row_of([100, 60], corruption.text_length)
    one, again, other = (corruption(row, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)


def test_what_the_tokenizer_lacks_is_named_with_its_remedy():
    plain = BytePairTokenizer(BYTES.ranks)
    fields = make_pretrain().corruption
    with pytest.raises(UserError, match=r"objective='masked': needs the special token <\|mask\|>, "
                                        r"which .*: train one with --config\.tokenizer\.mask_token"
                                        r"=True, and pack"):
        make_corruption("masked", fields, plain, 64)
    with pytest.raises(UserError, match=r"<\|extra_14\|>.*--config\.tokenizer\.num_sentinels=28"):
        make_corruption("span", fields, BYTES, 512)
    assert isinstance(make_corruption("span", fields, BYTES, 256), SpanCorruption)


@pytest.mark.parametrize("objective, fields, message", [
    ("masked", dict(random_frac=0.6, kept_frac=0.5), r"random_frac=0\.6: and kept_frac=0\.5 ex"),
    ("span", dict(frac=0.6, span_tokens=1.0), r"corruption\.frac=0\.6: hides 38 of 64 tokens in"),
])
def test_fields_that_do_not_fit_each_other_are_refused(objective, fields, message):
    with pytest.raises(UserError, match=message):
        corruption_of(objective, 64, **fields)
