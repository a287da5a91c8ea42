"""Common runs of words, and substrings without spaces: brute force, planted copies, templates."""

import numpy as np
import pytest

from data.contamination.index import TaskIndex
from data.contamination.runs import BORDER, MIN_RUN, common_runs, item_words
from data.contamination.substrings import SubstringIndex
from data.dedup.words import hash_unspaced, hash_words, normalise_words
from tests.contamination_texts import items_of, text_of


def maximal_runs(item, document):
    """All pairs of equal words that no equal pair precedes, with their lengths."""
    found = set()
    for i, j in np.argwhere(item[:, None] == document[None]):
        if item[i] == BORDER or (i and j and item[i - 1] == document[j - 1] != BORDER):
            continue
        length = 0
        while (i + length < len(item) and j + length < len(document)
               and item[i + length] == document[j + length] != BORDER):
            length += 1
        if length >= MIN_RUN:
            found.add((int(j), int(i), length))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_those_of_a_search_of_every_pair(seed):
    rng = np.random.default_rng(seed)
    item = rng.integers(1, 4, rng.integers(1, 30)).astype(np.uint64)
    item[rng.random(len(item)) < 0.1] = BORDER
    document = rng.integers(1, 4, rng.integers(1, 60)).astype(np.uint64)
    runs = common_runs(item, document)
    found = list(zip(runs.document.tolist(), runs.item.tolist(), runs.lengths.tolist()))
    assert len(found) == len(set(found)) and set(found) == maximal_runs(item, document)
    covered = np.zeros(len(item), bool)
    for _, start, length in found:
        covered[start:start + length] |= length >= 5
    np.testing.assert_array_equal(runs.cover(len(item), 5), covered)
    assert runs.longest()[1] == max((length for *_, length in found), default=0)


def test_a_run_does_not_lead_from_one_field_into_the_next():
    (item,) = items_of((text_of(0, 9), text_of(1, 9), "not searched"))
    document, _ = hash_words([f"{text_of(0, 9)} {text_of(1, 9)}"], keep_digits=True)
    assert common_runs(item_words(item), document).lengths.tolist() == [9, 9]


@pytest.mark.parametrize("text", ["It's 3 o'clock, Zoë!", "", "x", "東京は大きい", "a" * 300_000])
def test_characters_are_those_of_the_normalised_words(text):
    """And each belongs to the word that it is of."""
    words = normalise_words(text, keep_digits=True)
    values, places = hash_unspaced(text, keep_digits=True)
    spaced = hash_unspaced(" - ".join(words), keep_digits=True)
    np.testing.assert_array_equal(values, spaced[0])
    if len(text) < 1000:        # a longer one is cut, as there is no space
        assert places.tolist() == [n for n, word in enumerate(words) for _ in word]


def test_fifty_characters_are_found_whatever_spaces_and_symbols():
    items = items_of(text_of(0, 30), text_of(1, 30))
    index = SubstringIndex(items)
    letters = text_of(1, 30).replace(" ", "")
    for size, is_found in ((49, False), (50, True), (90, True)):
        part = letters[20:20 + size].upper()
        planted = f"{text_of(5, 9)}. {'-'.join(part[k:k + 7] for k in range(0, size, 7))}!?"
        hits = index.find(planted)
        assert [hit.item for hit in hits] == [1] * is_found
        if is_found:
            assert hits[0].share == pytest.approx((size - 49) / (180 - 49))
            words = normalise_words(planted, keep_digits=True)[hits[0].start:hits[0].stop]
            assert "".join(words) == part.lower()
    (whole,) = index.find(text_of(1, 30))
    assert whole.share == 1 and whole.is_drawn


def test_three_random_substrings_of_an_item_are_drawn():
    index = SubstringIndex(items_of(*[text_of(seed, 30) for seed in range(50)]), seed=3)
    num_found = 0
    for seed in range(50):
        letters = text_of(seed, 30).replace(" ", "")
        num_found += sum(index.find(letters[k:k + 50])[0].is_drawn for k in range(131))
    assert num_found == 150
    other = SubstringIndex(items_of(text_of(0, 30)), seed=4)
    letters = text_of(0, 30).replace(" ", "")
    assert [index.find(letters[k:k + 50])[0].is_drawn for k in range(131)] != [
        other.find(letters[k:k + 50])[0].is_drawn for k in range(131)]


def test_substrings_of_a_template_are_no_evidence():
    frame = text_of(99, 12)
    items = items_of(*[f"{frame} {text_of(seed, 12)}" for seed in range(40)], frame, "too short")
    index = SubstringIndex(items)
    assert not index.find(frame)
    assert index.num_short == 2
    assert [hit.item for hit in index.find(text_of(7, 12))] == [7]
    twice = items_of(text_of(1, 30), text_of(1, 30), text_of(2, 30))
    assert [hit.item for hit in SubstringIndex(twice).find(text_of(1, 30))] == [0, 1], \
        "equal items are no template"


def test_known_hashes_give_the_same_hits():
    text = f"{text_of(3, 20)} {text_of(0, 30)}"
    index = TaskIndex(items_of(text_of(0, 40), text_of(1, 40)))
    (hit,) = index.find(text, hash_words([text], keep_digits=True)[0])
    assert [hit] == index.find(text)
    assert text.split()[hit.start:hit.start + 30] == hit.text.split()
