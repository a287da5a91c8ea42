"""Rows and packing: every token once, documents separate, no example cut."""

import numpy as np
import pytest

from data.batch import Source, make_row, pack_examples, stack


def test_a_row_is_shifted_and_no_document_predicts_the_next():
    row = make_row(np.array([10, 11, 12, 20, 21, 30]), np.array([1, 1, 2, 3, 4, 5]),
                   np.array([1, 1, 1, 2, 2, 0]))
    assert row.tokens_BL.tolist() == [10, 11, 12, 20, 21]
    assert row.targets_BL.tolist() == [11, 12, 20, 21, 30]
    assert row.loss_weights_BL.tolist() == [1, 2, 0, 4, 0]  # 12 -> 20 and 21 -> padding
    assert row.segment_ids_BL.tolist() == [1, 1, 1, 2, 2]
    assert row.positions_BL.tolist() == [0, 1, 2, 0, 1]


def test_what_a_forward_takes_has_the_source_of_an_encoder_decoder_alone():
    row = make_row(np.arange(5), np.ones(5), np.ones(5, int))
    tokens_BL, positions_BL, segment_ids_BL = row.inputs
    assert tokens_BL is row.tokens_BL and positions_BL is row.positions_BL
    assert segment_ids_BL is row.segment_ids_BL
    source = Source(*np.arange(18).reshape(3, 6))
    both = stack([row.replace(source=source)] * 2)
    assert both.inputs[3] is both.source and both.source.tokens_BM.shape == (2, 6)
    assert stack([row, row]).source is None


def test_padding_has_weight_zero():
    row = make_row(np.array([1, 2, 0, 0]), np.ones(4), np.array([1, 1, 0, 0]))
    assert row.loss_weights_BL.tolist() == [1, 0, 0]


def _segments(row):
    """The documents of a row as lists of input tokens."""
    return [row.tokens_BL[row.segment_ids_BL == s].tolist()
            for s in np.unique(row.segment_ids_BL) if s > 0]


@pytest.mark.parametrize("seed", range(3))
def test_packing_keeps_examples_whole_and_counts_those_too_long(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 40, 300)  # more rows than are kept open
    examples = [([100 * i + j for j in range(n)], [1.0] * int(n)) for i, n in enumerate(sizes)]
    rows, num_too_long = pack_examples(examples, row_length=24)
    assert num_too_long == (sizes > 25).sum() > 0
    # The last token of a row's last example may be its target alone.
    segments = [tokens for row in rows for tokens in _segments(row)]
    fitting = [tokens for tokens, _ in examples if len(tokens) <= 25]
    assert sorted(t[0] for t in segments) == sorted(t[0] for t in fitting)
    for tokens in segments:
        whole = examples[tokens[0] // 100][0]
        assert tokens in (whole, whole[:-1])
    scored = sum(row.loss_weights_BL.sum() for row in rows)
    assert scored == sum(len(tokens) - 1 for tokens in fitting), "all but first tokens are targets"
    assert {row.tokens_BL.shape for row in rows} == {(24,)}


def test_weights_stay_with_their_targets():
    row, = pack_examples([([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 1])], row_length=8)[0]
    assert row.targets_BL[row.loss_weights_BL > 0].tolist() == [3, 5]


def test_stack_puts_rows_along_a_new_axis():
    rows, _ = pack_examples([([1, 2, 3], [1, 1, 1])] * 2, row_length=2)
    batch = stack(rows)
    assert batch.tokens_BL.tolist() == [[1, 2], [1, 2]]
    assert batch.loss_weights_BL.dtype == np.float32 and batch.positions_BL.dtype == np.int32
