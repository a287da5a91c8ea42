"""Near-duplicate search against exact oracles over all pairs."""

import itertools

import numpy as np
import pytest

from data import dedup


def _edited(words, num_edits, key):
    words = list(words)
    for at in key.choice(len(words), num_edits, replace=False):
        words[at] = f"edit{key.integers(10**9)}"
    return words


@pytest.fixture(scope="module")
def texts():
    """Thirty families of a text and its edited copies, from identical to unlike."""
    key = np.random.default_rng(0)
    found = []
    for _ in range(30):
        words = [f"w{number}" for number in key.integers(0, 5000, 300)]
        found += [" ".join(_edited(words, edits, key)) for edits in (0, 1, 2, 3, 6, 30)]
    return found


@pytest.fixture(scope="module")
def shingles(texts):
    return [dedup.shingle(text, 5) for text in texts]


def test_exact_key_ignores_case_and_space_only():
    assert dedup.exact_key("A  b\nC") == dedup.exact_key("a B c")
    assert dedup.exact_key("a b c") != dedup.exact_key("a b, c")


def test_normalised_words():
    assert dedup.normalise_words("Café №12, don't_stop") == ["cafe", "no00", "don", "t", "stop"]


def test_shingles_are_the_set_of_word_5grams():
    assert len(dedup.shingle("a b c d e f", 5)) == 2
    assert len(dedup.shingle("a b c d e a b c d e", 5)) == 5
    assert len(dedup.shingle("a b", 5)) == 1
    assert len(dedup.shingle("... !", 5)) == 0
    one, other = dedup.shingle("a b c d e x", 5), dedup.shingle("y a b c d e", 5)
    assert dedup.jaccard(one, other) == pytest.approx(1 / 3)


def test_minhash_estimates_jaccard(shingles):
    pairs = [pair for first in range(0, len(shingles), 6)
             for pair in itertools.combinations(range(first, first + 6), 2)]
    true = np.array([dedup.jaccard(shingles[one], shingles[other]) for one, other in pairs])
    errors = []
    for seed in range(8):
        signatures = np.stack([dedup.minhash(grams, 256, seed) for grams in shingles])
        one, other = np.transpose(pairs)
        errors.append((signatures[one] == signatures[other]).mean(1) - true)
    assert np.sqrt(np.mean(np.square(errors))) < 0.5 / np.sqrt(256) * 1.2
    assert abs(np.mean(errors)) < 0.01


def test_clusters_equal_those_of_all_pairs(shingles):
    everything = dedup.cluster(iter([np.arange(len(shingles))]), len(shingles),
                               lambda at: shingles[at], 0.8)
    signatures = np.stack([dedup.minhash(grams, 112, 0) for grams in shingles])
    found = dedup.cluster(dedup.candidate_groups(signatures, 14, 8), len(shingles),
                          lambda at: shingles[at], 0.8)
    similar = [pair for pair in itertools.combinations(range(len(shingles)), 2)
               if dedup.jaccard(shingles[pair[0]], shingles[pair[1]]) >= 0.8]
    assert len(similar) > 50
    assert all(everything.root[one] == everything.root[other] for one, other in similar)
    missed = sum(found.root[one] != found.root[other] for one, other in similar)
    assert missed / len(similar) < 0.05
    joined = {(one, other) for one, other in itertools.combinations(range(len(shingles)), 2)
              if found.root[one] == found.root[other]}
    assert all(everything.root[one] == everything.root[other] for one, other in joined)
    assert 0 < found.num_accepted <= found.num_candidates


def test_candidates_that_are_not_similar_are_not_joined():
    sets = [np.arange(0, 100, dtype=np.uint64), np.arange(50, 150, dtype=np.uint64)]
    found = dedup.cluster(iter([np.arange(2)]), 2, lambda at: sets[at], 0.8)
    assert found.root.tolist() == [0, 1]
    assert (found.num_candidates, found.num_accepted) == (1, 0)


def test_what_goes_is_similar_to_what_stays():
    chain = [np.arange(start, start + 100, dtype=np.uint64) for start in range(0, 50, 5)]
    gone = list(dedup.choose_representatives(range(10), lambda at: chain[at], 0.8))
    staying = sorted(set(range(10)) - {member for member, _, _ in gone})
    assert len(staying) > 1
    for member, kept, similarity in gone:
        assert kept in staying
        assert similarity == dedup.jaccard(chain[member], chain[kept]) >= 0.8
    for one, other in itertools.combinations(staying, 2):
        assert dedup.jaccard(chain[one], chain[other]) < 0.8


def test_heldout_index_equals_all_pairs(shingles):
    heldout, training = shingles[::7], shingles[1::2]
    index = dedup.HeldoutIndex(heldout)
    for grams in training:
        _, similarity, contained = index.overlap(grams)
        assert similarity == pytest.approx(max(dedup.jaccard(grams, page) for page in heldout))
        assert contained == pytest.approx(max(np.isin(page, grams).mean() for page in heldout))


def test_heldout_index_finds_a_page_inside_a_long_document(texts):
    index = dedup.HeldoutIndex([dedup.shingle(texts[0], 5)])
    nearest, similarity, contained = index.overlap(dedup.shingle(" ".join(texts[:60]), 5))
    assert nearest == 0 and similarity < 0.2 and contained == 1
    assert index.overlap(dedup.shingle("nothing of it is here", 5)) == (-1, 0.0, 0.0)
