"""Rows of trees: every text keeps its tokens, its positions and what it sees."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.tokens.trees import pack_trees
from model.attention.reference import document_mask, tree_mask

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12)


@given(TEXTS)
def test_each_text_reads_as_if_it_stood_by_itself(texts):
    """Its path holds its tokens and their positions, and each token sees its path alone."""
    trees = pack_trees(texts, 8)
    mask_RLM = np.asarray(tree_mask(trees.ends_RL, trees.positions_RL))
    for text, row, path in zip(texts, trees.row_of, trees.paths):
        assert trees.tokens_RL[row, path].tolist() == text
        assert trees.positions_RL[row, path].tolist() == list(range(len(text)))
        for depth, index in enumerate(path):
            assert np.flatnonzero(mask_RLM[row, index]).tolist() == path[:depth + 1].tolist()
    num_tokens = np.sum(trees.ends_RL > 0)
    assert num_tokens <= sum(map(len, texts))
    if len(trees.tokens_RL) == 1:       # no beginning stands twice
        assert num_tokens == len({tuple(text[:n + 1]) for text in texts for n in range(len(text))})


@given(TEXTS)
def test_texts_that_share_nothing_are_segments(texts):
    trees = pack_trees(texts, 8, shares=False)
    mask_RLM = np.asarray(document_mask(trees.ends_RL))
    assert np.sum(trees.ends_RL > 0) == sum(map(len, texts))
    for text, row, path in zip(texts, trees.row_of, trees.paths):
        assert trees.tokens_RL[row, path].tolist() == text
        assert np.flatnonzero(mask_RLM[row, path[-1]]).tolist() == path.tolist()


def test_examples_before_many_questions_stand_once_a_row():
    examples, questions = [7] * 20, [[n, n + 1] for n in range(10, 20)]
    trees = pack_trees([[*examples, *question, option] for question in questions
                        for option in (1, 2)], 64)
    assert trees.tokens_RL.shape == (1, 64)
    assert np.sum(trees.ends_RL > 0) == 20 + 10 * (2 + 2)
