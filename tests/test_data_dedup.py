"""Near-duplicate search against exact oracles over all pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dedup import clusters, shingles, words
from data.dedup.clusters import (
    MAX_LEADERS,
    Forest,
    choose_representatives,
    jaccard,
    similarities,
    verify_groups,
)
from data.dedup.groups import find_groups
from data.dedup.heldout import HeldoutIndex


def _edited(words, num_edits, key):
    words = list(words)
    for at in key.choice(len(words), num_edits, replace=False):
        words[at] = f"edit{key.integers(10**9)}"
    return words


@pytest.fixture(scope="module")
def texts():
    """Thirty families of a text and its edited copies, from identical to unlike."""
    key = np.random.default_rng(0)
    texts = []
    for _ in range(30):
        words = [f"w{number}" for number in key.integers(0, 5000, 300)]
        texts += [" ".join(_edited(words, edits, key)) for edits in (0, 1, 2, 3, 6, 30)]
    return texts


@pytest.fixture(scope="module")
def sets(texts):
    return [shingles.shingle(text, 5) for text in texts]


def test_exact_key_ignores_case_and_space_only():
    assert shingles.exact_key("A  b\nC") == shingles.exact_key("a B c")
    assert shingles.exact_key("a b c") != shingles.exact_key("a b, c")


def test_normalised_words():
    assert words.normalise_words("Café №12, don't_stop") == ["cafe", "no00", "don", "t", "stop"]
    assert words.normalise_words("soft\u00adhyphen ﬁn Größe ΑΒΓ ９") == \
        ["softhyphen", "fin", "große", "αβγ", "0"]
    assert words.normalise_words("日本語 in Tōkyō, カタ") == \
        ["日", "本", "語", "in", "tokyo", "カ", "タ"]
    assert words.normalise_words("हिन्दी 42", keep_digits=True)[-1] == "42"


def test_shingles_are_the_set_of_word_5grams():
    assert len(shingles.shingle("a b c d e f", 5)) == 2
    assert len(shingles.shingle("a b c d e a b c d e", 5)) == 5
    assert len(shingles.shingle("a b", 5)) == 1
    assert len(shingles.shingle("... !", 5)) == 0
    one, other = shingles.shingle("a b c d e x", 5), shingles.shingle("y a b c d e", 5)
    assert jaccard(one, other) == pytest.approx(1 / 3)


def _minhash(grams, num_hashes, seed):
    return shingles.minhash_batch(grams, np.array([0, len(grams)]), num_hashes, seed)[0]


def test_minhash_estimates_jaccard(sets):
    pairs = [pair for first in range(0, len(sets), 6)
             for pair in itertools.combinations(range(first, first + 6), 2)]
    true = np.array([jaccard(sets[one], sets[other]) for one, other in pairs])
    errors = []
    for seed in range(8):
        signatures = np.stack([_minhash(grams, 256, seed) for grams in sets])
        one, other = np.transpose(pairs)
        errors.append((signatures[one] == signatures[other]).mean(1) - true)
    assert np.sqrt(np.mean(np.square(errors))) < 0.5 / np.sqrt(256) * 1.2
    assert abs(np.mean(errors)) < 0.01


def test_signatures_of_a_batch_are_those_of_its_documents(texts):
    texts = ["", *texts, "...", " ".join(f"{a}{b}{c}" for a, b, c in itertools.product(
        "abcdefghijklmnopqrstuvwxyz", repeat=3)) + " naïve"]     # longer than a block
    grams, offsets = shingles.shingle_batch(texts, 5)
    signatures = shingles.minhash_batch(grams, offsets, 64, 3)
    assert offsets[1] == 0 and (signatures[0] == 0xFFFFFFFF).all()
    for place, text in enumerate(texts):
        alone = shingles.shingle(text, 5)
        assert np.array_equal(alone, grams[offsets[place]:offsets[place + 1]])
        assert np.array_equal(_minhash(alone, 64, 3), signatures[place])


@given(st.lists(st.text(st.one_of(
    st.sampled_from("aàéß 9٣ﬁ½İςk 日本ガกá\u00ad\u200d\u0301, _-½\U00020000"), st.characters()))))
def test_the_hash_of_a_word_does_not_depend_on_its_position(strings):
    hashes, offsets = words.hash_words(strings)
    for place, text in enumerate(strings):
        normalised = words.normalise_words(text)
        alone = [words.hash_words([word])[0] for word in normalised]
        assert [len(one) for one in alone] == [1] * len(normalised)
        assert np.array_equal(hashes[offsets[place]:offsets[place + 1]],
                              np.concatenate([np.zeros(0, np.uint64), *alone]))


def test_words_with_different_letters_have_different_hashes():
    text = " ".join(map("".join, itertools.product("abcdefghij", repeat=5)))
    hashes, _ = words.hash_words([text])
    assert len(hashes) == 10**5 > len(text) / words.BLOCK_CHARS
    assert len(np.unique(hashes)) == 10**5


def test_band_keys_are_equal_when_all_rows_of_the_band_are():
    signatures = np.array([[1, 2, 3, 4], [1, 2, 9, 4], [3, 4, 1, 2]], np.uint32)
    keys = shingles.band_keys(signatures, 2, 2)
    assert keys[0, 0] == keys[1, 0] and len(np.unique(keys)) == 5


def _find_groups(signatures, num_bands, rows_per_band, folder):
    np.save(folder / "keys.npy", shingles.band_keys(signatures, num_bands, rows_per_band))
    return [group.positions // num_bands
            for group in find_groups([folder / "keys.npy"], memory_bytes=1 << 24)]


def test_clusters_equal_those_of_all_pairs(sets, tmp_path):
    everything = verify_groups([np.arange(len(sets))], sets.__getitem__, 0.8).forest
    signatures = np.stack([_minhash(grams, 160, 0) for grams in sets])
    edges = verify_groups(_find_groups(signatures, 20, 8, tmp_path), sets.__getitem__, 0.8)
    pairs = list(itertools.combinations(range(len(sets)), 2))
    similar = [pair for pair in pairs if jaccard(sets[pair[0]], sets[pair[1]]) >= 0.8]
    assert len(similar) > 50
    assert all(everything.find(one) == everything.find(other) for one, other in similar)
    missed = sum(edges.forest.find(one) != edges.forest.find(other) for one, other in similar)
    assert missed / len(similar) < 0.05
    assert all(everything.find(one) == everything.find(other) for one, other in pairs
               if edges.forest.find(one) == edges.forest.find(other))
    assert 0 < edges.num_accepted <= edges.num_verified and not edges.num_unverified


def test_candidates_that_are_not_similar_are_not_joined():
    sets = [np.arange(0, 100, dtype=np.uint64), np.arange(50, 150, dtype=np.uint64)]
    edges = verify_groups([np.arange(2)] * 3, sets.__getitem__, 0.8)
    assert edges.forest.trees() == []
    assert (edges.num_verified, edges.num_accepted) == (1, 0)


def test_similarities_are_those_of_the_sets(sets, monkeypatch):
    monkeypatch.setattr(clusters, "BLOCK_SHINGLES", 500)
    for one in range(0, len(sets), 9):
        oracle = [len(set(sets[one]) & set(other)) / len(set(sets[one]) | set(other))
                  for other in sets]
        assert similarities(sets[one], sets) == pytest.approx(oracle)
    assert jaccard(sets[0][:0], sets[0]) == jaccard(sets[0], sets[0][:0]) == 0
    assert jaccard(sets[0][:0], sets[0][:0]) == 0


@pytest.mark.parametrize("shared", (190, 20), ids=("alike", "unlike"))
def test_work_is_linear_in_the_size_of_a_large_group(shared):
    size, key = 1500, np.random.default_rng(0)
    common = np.arange(shared, dtype=np.uint64)
    own = key.integers(1 << 32, 1 << 60, (size, 200 - shared)).astype(np.uint64)
    sets = [np.concatenate([common, np.sort(numbers)]) for numbers in own]
    edges = verify_groups([np.arange(size)], sets.__getitem__, 0.8)
    assert edges.num_verified <= MAX_LEADERS * size
    if shared == 190:
        assert edges.num_verified == size - 1 and not edges.num_unverified
        assert edges.forest.trees() == [list(range(size))]
        assert len(list(choose_representatives(range(size), sets.__getitem__, 0.8))) == size - 1
    else:
        assert edges.num_unverified == size - MAX_LEADERS and edges.forest.trees() == []


def test_removed_members_are_similar_to_kept_ones():
    chain = [np.arange(start, start + 100, dtype=np.uint64) for start in range(0, 50, 5)]
    gone = list(choose_representatives(range(10), chain.__getitem__, 0.8))
    staying = sorted(set(range(10)) - {member for member, _, _ in gone})
    assert len(staying) > 1
    for member, kept, similarity in gone:
        assert kept in staying
        assert similarity == jaccard(chain[member], chain[kept]) >= 0.8
    for one, other in itertools.combinations(staying, 2):
        assert jaccard(chain[one], chain[other]) < 0.8


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_trees_are_the_connected_components(pairs):
    forest = Forest()
    for pair in pairs:
        forest.unite(*pair)
    components = [{one, other} for one, other in pairs]
    for pair in pairs:
        joined = set().union(*(c for c in components if c & set(pair)))
        components = [c for c in components if not c & set(pair)] + [joined]
    assert forest.trees() == sorted(sorted(c) for c in components)


def test_heldout_index_equals_all_pairs(sets):
    heldout, training = sets[::7], sets[1::2]
    index = HeldoutIndex(heldout)
    for grams in training:
        _, similarity, contained = index.overlap(grams)
        assert similarity == pytest.approx(max(jaccard(grams, page) for page in heldout))
        assert contained == pytest.approx(max(np.isin(page, grams).mean() for page in heldout))


def test_heldout_index_finds_a_page_inside_a_long_document(texts):
    index = HeldoutIndex([shingles.shingle(texts[0], 5)])
    nearest, similarity, contained = index.overlap(shingles.shingle(" ".join(texts[:60]), 5))
    assert nearest == 0 and similarity < 0.2 and contained == 1
    assert index.overlap(shingles.shingle("nothing of it is here", 5)) == (-1, 0.0, 0.0)
