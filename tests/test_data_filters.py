"""Signals against values worked out by hand, rules at their bounds, and repeated blocks."""

import numpy as np
import pytest

from core.errors import UserError
from data.filters import lines, rules, signals


def test_prose_signals_follow_their_definitions():
    text = "- the cat of the house ...\n# see it\n\n- the cat of the house ...\n42 dogs…"
    measured = signals.measure_prose(text)
    words = [token for token in text.split() if token not in ("-", "#", "...")]
    assert measured["words"] == len(words)
    assert measured["mean_word_chars"] == pytest.approx(sum(map(len, words)) / len(words))
    assert measured["symbol_word_ratio"] == pytest.approx(3 / len(words))
    assert measured["bullet_line_frac"] == 2 / 4
    assert measured["ellipsis_line_frac"] == 3 / 4
    assert measured["alphabetic_word_frac"] == pytest.approx(13 / 19)  # not: - ... # 42 - ...
    assert measured["stop_words"] == 2
    assert measured["duplicate_line_frac"] == 1 / 4


def test_top_2gram_counts_only_repeated_pairs():
    assert signals.measure_prose("every word here differs")["top_2gram_char_frac"] == 0
    measured = signals.measure_prose("ab cd one ab cd two")
    assert measured["top_2gram_char_frac"] == pytest.approx(8 / 14)
    assert signals.measure_prose("a a a a a a")["top_2gram_char_frac"] == 1


@pytest.mark.parametrize("text", ["", "\n \n", "...", "###"])
def test_texts_without_words_have_finite_signals(text):
    assert all(np.isfinite(value) for value in signals.measure_prose(text).values())
    assert all(np.isfinite(value) for value in signals.measure_code(text).values())


def test_code_signals():
    measured = signals.measure_code("ab = 1\n" + "x" * 20)
    assert measured["line_chars"] == 20
    assert measured["mean_line_chars"] == 13
    assert measured["alphanumeric_frac"] == pytest.approx(23 / 27)


def test_prose_frac_separates_sentences_from_listings():
    sentence = "this function returns the mean of the values and of their weights"
    assert signals.prose_frac(sentence) == 1
    assert signals.prose_frac("a, b, c\nd(e: int) -> f") == 0
    assert 0 < signals.prose_frac(f"{sentence}\nd(e: int) -> f") < 1


def test_rules_are_inclusive_and_keep_the_score():
    thresholds = {"max_stop_words": 5, "min_words": 3}
    assert rules.decide({"words": 3, "stop_words": 5}, thresholds, "gopher") is None
    removal = rules.decide({"words": 2, "stop_words": 9}, thresholds, "gopher")
    assert removal == rules.Removal("gopher_min_words", 2.0)
    removal = rules.decide({"words": 3, "stop_words": 6}, thresholds, "gopher")
    assert removal == rules.Removal("gopher_max_stop_words", 6.0)


@pytest.mark.parametrize("rule", ["min_wrods", "words", "most_words"])
def test_a_threshold_without_a_signal_is_refused(rule):
    with pytest.raises(UserError, match=f"curate.gopher.{rule}: names no signal"):
        rules.check_thresholds("curate.gopher", {rule: 1}, ["words"])


def test_bad_lines():
    text = "We use cookies on this site\nkeep me\n" + "y" * 50 + "\n" + "word " * 30 + "use cookies"
    kept, dropped = lines.drop_bad_lines(text, max_word_chars=40, max_policy_line_words=10)
    assert kept == "keep me\n" + "word " * 30 + "use cookies"
    assert dropped == {"policy_line": 28, "max_word_chars": 51}


def _mark(texts, num_lines=3):
    marks = lines.find_repeated_blocks([lines.hash_lines(text) for text in texts], num_lines)
    return [lines.drop_lines(text, mark) for text, mark in zip(texts, marks)]


def test_a_block_stays_where_it_is_seen_first():
    block = "Methods inherited\n\n  one()\ntwo()\n  three()"
    kept = _mark([f"first page\n{block}\nend", f"second page\n{block}\nits own end"])
    assert kept == [f"first page\n{block}\nend", "second page\n\nits own end"]


def test_a_block_repeated_within_one_document_stays_once():
    assert _mark(["a\nb\nc\nown\na\nb\nc"]) == ["a\nb\nc\nown"]
    assert _mark(["a\nb\nc\na\nb\nc"]) == ["a\nb\nc"]


def test_short_repeats_stay():
    texts = ["Parameters\n----------\nx", "Parameters\n----------\ny"]
    assert _mark(texts) == texts


def test_what_is_marked_equals_a_plain_search():
    key = np.random.default_rng(0)
    texts = ["\n".join(key.choice(list("abcde "), 40)) for _ in range(12)]
    marks = lines.find_repeated_blocks([lines.hash_lines(text) for text in texts], 3)
    seen: dict[tuple, int] = {}
    position = 0
    for text, mark in zip(texts, marks):
        rows = text.split("\n")
        filled = [at for at, row in enumerate(rows) if row.strip()]
        expected = np.zeros(len(rows), bool)
        for start in range(len(filled) - 2):
            block = tuple(rows[at] for at in filled[start:start + 3])
            if seen.setdefault(block, position) + 3 <= position:
                expected[filled[start:start + 3]] = True
            position += 1
        np.testing.assert_array_equal(mark, expected)
