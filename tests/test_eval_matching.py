"""Texts against references: every script, what is ignored, and what must not be."""

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.measures.matching import (
    NORMALISATIONS,
    matches,
    normalise,
    normalise_squad,
    split_words,
    token_f1,
)

ANSWERS = ["Лев Толстой", "القاهرة", "東京タワー", "กรุงเทพมหานคร", "Αθήνα", "서울", "नई दिल्ली",
           "ירושלים", "Straße", "São Paulo", "3.14", "C++", "The Who", "} ]", "A", "!?"]


@given(st.text())
@example("a.\u0301")     # composes once the point is gone
@example("the 'the")
def test_normalisation_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(min_size=1))
def test_a_text_matches_itself_if_it_is_any(text):
    assert matches(text, [text]) == bool(normalise(text))
    assert token_f1(text, [text]) == 1


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_perfect_answer_scores_1_in_any_script(answer, name):
    if name == "squad" and not normalise_squad(answer):
        pytest.skip("SQuAD's rules leave nothing of it")
    assert matches(f" {answer}\n", ["other", answer], NORMALISATIONS[name])
    assert token_f1(answer, ["other", answer], NORMALISATIONS[name]) == 1


@pytest.mark.parametrize("given_, reference", [
    ("the Eiffel Tower.", "Eiffel tower"), ("«Лев  Толстой»!", "лев толстой"),
    ("東京タワー。", "東京タワー"), ("ﾄｳｷｮｳ", "トウキョウ"), ("１９９０", "1990"),
    ("STRASSE", "Straße"), ("cafe\u0301", "café"), ("well-known", "well known"),
    ("U.S.", "US"), ("1,234,567", "1234567"),
    ("−5", "-5"), ("“don’t”", "don't"), ("\u200fالقاهرة؟", "القاهرة"), ("new_york", "New York"),
    ("cats,dogs", "cats, dogs"), ("(1,-5)", "1, -5"), ("「東京」タワー", "東京タワー"),
    ("3.5.", "3.5"), ("(2010-2012)", "2010–2012")])
def test_what_does_not_matter(given_, reference):
    assert matches(given_, [reference])
    assert not matches(given_, [reference], NORMALISATIONS["exact"])


@pytest.mark.parametrize("given_, reference", [
    ("3.5", "35"), ("-5", "5"), ("(1,-5)", "(1, 5)"), ("a+b", "+b"),
    ("C", "C++"), ("", ""), ("", "the"), ("} ]", "] }"), ("5", "5 €"),
    ("1.234", "1234"), ("Толстой", "Лев Толстой"), ("東京", "京東"), (" ", "x")])
def test_what_does(given_, reference):
    assert not matches(given_, [reference])


def test_no_reference_is_no_match():
    assert not matches("x", [])
    assert token_f1("x", []) == 0


def test_the_rules_of_squad():
    """Computed by hand from the evaluation script's four steps."""
    assert normalise_squad("The  cat, a dog & AN owl's nest.") == "cat dog owls nest"
    assert normalise_squad("3.5") == normalise_squad("35")
    assert normalise_squad("«кот»") == "«кот»"      # its punctuation is that of ASCII


@pytest.mark.parametrize("answer, references, f1", [
    ("the cat sat", ["cat sat down"], 4 / 5), ("cat", ["dog", "black cat"], 2 / 3),
    ("x x y", ["x y y"], 2 / 3), ("x", ["y"], 0), ("", ["y"], 0),
    ("東京都", ["東京"], 4 / 5), ("กา", ["กา"], 1), ("Толстой", ["Лев Толстой"], 2 / 3)])
def test_f1_of_words(answer, references, f1):
    assert token_f1(answer, references) == pytest.approx(f1)


@pytest.mark.parametrize("text, words", [
    ("Don't stop-it, 3.5!", ["don", "t", "stop", "it", "3", "5"]),
    ("Привет, мир", ["привет", "мир"]), ("東京へ行く", list("東京へ行く")),
    ("नई दिल्ली", ["नई", "दिल्ली"]), ("", []), ("…", [])])
def test_words(text, words):
    assert split_words(text) == words


@pytest.mark.skipif("HEARTWOOD_DATASETS" not in os.environ, reason="HEARTWOOD_DATASETS is not set")
def test_a_text_of_every_language_matches_itself_and_no_other():
    """The beginnings of the Universal Declaration of Human Rights."""
    file = Path(os.environ["HEARTWOOD_DATASETS"]) / "udhr" / "udhr2.zip"
    with zipfile.ZipFile(file) as archive:
        texts = [archive.read(name).decode()[:300] for name in archive.namelist()
                 if name.endswith(".txt") and archive.getinfo(name).file_size]
    assert len(texts) > 300
    for text in texts:
        assert matches(f"“{text}” ", [text]) and token_f1(text.upper(), [text]) > 0.5
    assert len({normalise(text) for text in texts}) >= 0.98 * len(set(texts))
