"""Signals against values worked out by hand and plain code, rules at their bounds, presets."""

from collections import Counter

import numpy as np
import pytest

from core.errors import UserError
from data.filters import presets, rules, signals, vocabulary
from data.filters.code import CODE_SIGNALS
from data.filters.repetition import count_repeated_chars
from data.filters.signals import measure_batch
from data.passes import check


def _measure(text, kind="prose", language="en", score=1.0):
    return measure_batch([text], [kind], [(language, score)])[0]


def test_gopher_signals_follow_their_definitions():
    text = "- the cat of the house ...\n# see it\n\n- the cat of the house ...\n42 dogs…"
    measured = _measure(text)
    # Words: lone symbols are words, but not counted among them; "…" is cut off "dogs".
    words = text.replace("dogs…", "dogs …").split()
    counted = [word for word in words if word not in ("-", "...", "#", "…")]
    assert measured["gopher_words"] == len(counted)
    assert measured["gopher_mean_word_chars"] == pytest.approx(
        sum(map(len, counted)) / len(counted))
    assert measured["gopher_hash_word_ratio"] == pytest.approx(1 / len(words))
    assert measured["gopher_ellipsis_word_ratio"] == pytest.approx(3 / len(words))
    assert measured["gopher_bullet_line_frac"] == 2 / 5
    assert measured["gopher_ellipsis_line_frac"] == 3 / 5
    assert measured["gopher_alphabetic_word_frac"] == pytest.approx(13 / len(words))
    assert measured["gopher_stop_words"] == 2
    assert measured["gopher_dup_line_frac"] == 1 / 4
    assert measured["gopher_dup_line_char_frac"] == pytest.approx(26 / len(text))
    assert measured["gopher_dup_paragraph_frac"] == 0


def test_stop_words_are_those_of_the_language():
    text = "der Hund und die Katze; the cat and of Der"
    assert _measure(text)["gopher_stop_words"] == 3
    assert _measure(text, language="de")["gopher_stop_words"] == 3  # der, und, die; not "Der"
    assert _measure(text, language="de")["technical_stop_words"] == 3  # in any case
    assert "gopher_stop_words" not in _measure(text, language="xx")


def test_fineweb_signals_follow_their_definitions():
    text = "A line that is long enough to count here.\nshort one\n \nshort one\nEnd”"
    measured = _measure(text)
    assert measured["fineweb2_lines"] == 4
    assert measured["fineweb2_terminal_line_frac"] == 1 / 4
    assert measured["fineweb2_short_line_frac"] == 3 / 4
    assert measured["fineweb2_dup_line_char_frac"] == pytest.approx(9 / len(text.replace("\n", "")))
    assert measured["fineweb2_newline_word_ratio"] == pytest.approx(4 / 16)


def test_fineweb_measures_the_text_after_line_rules():
    kept = "This line of five words stays. So does its second sentence. " * 3
    measured = _measure(f"{kept}\ntwo words\nWe use cookies on this site\n{kept.lower()}")
    assert measured["fineweb_lines"] == 2
    assert measured["fineweb2_lines"] == 4
    assert measured["fineweb_newline_word_ratio"] < measured["fineweb2_newline_word_ratio"]


def test_technical_signals_follow_their_definitions():
    text = "- the cat of The house ...\n# see it\n\n- the cat of The house ...\n42 dogs…"
    measured = _measure(text)
    words = [token for token in text.split() if token not in ("-", "#", "...")]
    assert measured["words"] == measured["technical_words"] == len(words)
    assert measured["technical_mean_word_chars"] == pytest.approx(
        sum(map(len, words)) / len(words))
    assert measured["technical_symbol_word_ratio"] == pytest.approx(3 / len(words))
    assert measured["technical_bullet_line_frac"] == 2 / 4
    assert measured["technical_ellipsis_line_frac"] == 3 / 4
    assert measured["technical_alphabetic_word_frac"] == pytest.approx(13 / 19)
    assert measured["technical_stop_words"] == 2
    assert measured["technical_duplicate_line_frac"] == 1 / 4
    assert _measure("every word here differs")["technical_top_2gram_char_frac"] == 0
    assert _measure("ab cd one ab cd two")["technical_top_2gram_char_frac"] == pytest.approx(8 / 14)
    assert _measure("a a a a a a")["technical_top_2gram_char_frac"] == 1


def test_code_signals():
    measured = _measure("ab = 1  # why\n" + "x" * 20, kind="code")
    assert tuple(measured) == CODE_SIGNALS
    assert measured["code_line_chars"] == 20
    assert measured["code_mean_line_chars"] == 16.5
    assert measured["code_alphanumeric_frac"] == pytest.approx(26 / 34)
    assert measured["code_comment_frac"] == pytest.approx(len(" # why") / 34)


@pytest.mark.parametrize("code, comment", [
    ("/* one\ntwo */ x = 1;", "/* one\ntwo */"), ("x = 1; // note", " // note"),
    ('def f():\n  """Says.\n\n  More."""\n  pass', '  """Says.\n\n  More."""'),
    ("url = 'http://a.b'", ""), ("/* # one\n # two */", "/* # one\n # two */"),
    ("a/* # never closed", " # never closed"), ("-- note\nselect 1", "-- note"), ("a['#x']", "")])
def test_comments(code, comment):
    assert _measure(code, kind="code")["code_comment_frac"] == pytest.approx(
        len(comment) / len(code))


@pytest.mark.parametrize("text", ["", "\n \n", "...", "###", "\n\n", "a", "�\0"])
@pytest.mark.parametrize("kind", ["prose", "code"])
def test_texts_without_words_have_finite_signals(text, kind):
    assert all(np.isfinite(value) for value in _measure(text, kind).values())


def _repeated_chars_plainly(words):
    """A literal implementation of the definitions in data/filters/repetition.py."""
    expected = {}
    for n in (2, 3, 4):
        grams = [" ".join(words[at:at + n]) for at in range(len(words) - n + 1)]
        top = Counter(grams).most_common(1)
        expected[f"top_{n}gram"] = len(top[0][0]) * top[0][1] if top else 0
    for n in range(5, 11):
        seen, chars, at = set(), 0, 0
        while at + n <= len(words):
            gram = tuple(words[at:at + n])
            if gram in seen:
                chars += sum(map(len, gram))
                at += n
            else:
                seen.add(gram)
                at += 1
        expected[f"dup_{n}gram"] = chars
    return expected


def test_repeated_ngrams_equal_a_plain_count():
    key = np.random.default_rng(0)
    vocabulary = ["a", "bc", "def", "ghij", "klmno"]
    documents = [key.choice(5, size).tolist() for size in (0, 1, 2, 3, 9, 40, 0, 200, 10, 5)]
    documents += [[0] * 30, [0, 1, 2] * 12, (key.choice(5, 15).tolist()) * 4, []]
    words = np.concatenate([np.array(document, np.int32) for document in documents])
    chars = np.array(list(map(len, vocabulary)))[words]
    counted = count_repeated_chars(words, chars, np.cumsum(list(map(len, documents))))
    for place, document in enumerate(documents):
        expected = _repeated_chars_plainly([vocabulary[word] for word in document])
        assert {name: counts[place] for name, counts in counted.items()} == expected


def test_signals_do_not_depend_on_the_batch(monkeypatch):
    key = np.random.default_rng(1)
    pool = ["the", "of", "a", "cat's", "don't", "runs.", "(well)", "Über", "和平", "—", "…", "x1",
            "#", "•", "\n", "\n\n"]
    texts = [" ".join(key.choice(pool, key.integers(0, 80))) for _ in range(60)]
    languages = [(("en", 1.0), ("de", 0.5), ("zh", 0.9), ("xx", 0.9))[place % 4]
                 for place in range(60)]
    kinds = ["code" if place % 7 == 0 else "prose" for place in range(60)]
    together = measure_batch(texts, kinds, languages)
    monkeypatch.setattr(signals, "BATCH_CHARS", 300)
    monkeypatch.setattr(vocabulary, "MAX_REMEMBERED_CHUNKS", 10)
    assert measure_batch(texts, kinds, languages) == together
    assert [_measure(text, kind, *language) for text, kind, language in
            zip(texts, kinds, languages)] == together


def test_prose_frac_separates_sentences_from_listings():
    sentence = "this function returns the mean of the values and of their weights"
    assert signals.prose_frac(sentence, "en") == 1
    assert signals.prose_frac("a, b, c\nd(e: int) -> f", "en") == 0
    assert 0 < signals.prose_frac(f"{sentence}\nd(e: int) -> f", "en") < 1


def test_rules_are_inclusive_ordered_and_keep_the_score():
    thresholds = {"gopher_max_stop_words": 5, "gopher_min_words": 3, "code_max_line_chars": 1}
    assert rules.decide({"gopher_words": 3, "gopher_stop_words": 5}, thresholds) is None
    removal = rules.decide({"gopher_words": 2, "gopher_stop_words": 9}, thresholds)
    assert removal == rules.BrokenRule("gopher_max_stop_words", 9.0)
    removal = rules.decide({"gopher_words": 2, "gopher_stop_words": 5}, thresholds)
    assert removal == rules.BrokenRule("gopher_min_words", 2.0)


@pytest.mark.parametrize("rule, message", [
    ("gopher_min_wrods", "curate.rules.gopher_min_wrods: names no signal"),
    ("gopher_words", "gopher_words: is not the name of a rule"),
    ("gopher_most_words", "gopher_most_words: is not the name of a rule")])
def test_a_threshold_without_a_signal_is_refused(rule, message):
    with pytest.raises(UserError, match=message):
        check.check_thresholds("curate.rules", {rule: 1})


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_names_signals_and_line_rules(name):
    language = "de" if name == "fineweb2" else "en"
    check.check_thresholds(name, presets.thresholds(name, language))
    assert presets.thresholds(name, language) or presets.line_rules(name)


def test_presets_join_in_order_and_later_bounds_win():
    joined = presets.thresholds(["gopher", "fineweb2"], "ru")
    assert joined["gopher_max_dup_line_frac"] == 0.322
    assert joined["gopher_max_dup_paragraph_frac"] == 0.3
    assert next(iter(joined)) == "gopher_max_dup_paragraph_frac"
    assert list(presets.thresholds("fineweb", "en"))[-1] == "fineweb_max_newline_word_ratio"
    assert presets.thresholds("fineweb", "en")["fineweb_max_dup_line_char_frac"] == 0.01


def test_fineweb2_takes_the_bounds_of_the_language():
    bounds = presets.thresholds("fineweb2", "de")
    assert bounds["gopher_max_top_3gram_char_frac"] == 0.153
    assert bounds["gopher_max_dup_10gram_char_frac"] == 0.098
    assert bounds["gopher_max_mean_word_chars"] == 15
    assert bounds["gopher_min_alphabetic_word_frac"] == 0.774
    assert bounds["fineweb2_max_newline_word_ratio"] == 0.152
    assert bounds["fineweb2_max_dup_line_char_frac"] == 0.1
    assert bounds["gopher_min_words"] == 50 and bounds["gopher_min_stop_words"] == 2
    # Its pipeline does not have these.
    assert not {"gopher_max_dup_line_char_frac", "gopher_max_dup_paragraph_frac",
                "fineweb2_max_short_line_frac"} & bounds.keys()


def test_unknown_presets_and_languages_are_refused():
    with pytest.raises(UserError, match=r"preset='gophre'.*choose among gopher, c4-paper"):
        presets.thresholds("gophre", "en")
    with pytest.raises(UserError, match="preset='gophre'"):
        presets.line_rules(["gopher", "gophre"])
    with pytest.raises(UserError, match=r"language='en'.*fineweb2.*choose one of af, am, ar"):
        presets.thresholds(["fineweb2"], "en")
