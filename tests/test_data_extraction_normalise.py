"""Normalisation of text, without changes to its layout."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.extraction.normalise import normalise


def test_the_layout_of_code_is_kept():
    code = "def f(x):\n\tif x:\n\n\n        return 1  # two\n"
    assert normalise(code) == code.rstrip("\n")


def test_control_characters_are_removed():
    assert normalise("a\x00b\x07\ufeff  \r\n\r\n\r\n\r\n\r\n\r\nc \u00a0d\t\n") == "ab\n\n\nc  d"
    assert normalise("soft\u00adly, \ud83dhalf\u2028new line") == "softly, half\nnew line"
    assert normalise(unicodedata.normalize("NFD", "é")) == "é"


def test_what_divides_text_becomes_a_line_end_or_a_space():
    assert normalise("the harbour\x0cSecond page\x0bitem\x85next\x1crecord\x1funit") == (
        "the harbour\nSecond page\nitem\nnext\nrecord unit")
    assert normalise("ភាសា\u200bខ្មែរ zero\u200bwidth نمی\u200cخواهم") == (
        "ភាសា\u200bខ្មែរ zerowidth نمی\u200cخواهم")


def test_quotes_of_windows_that_became_control_characters_are_quotes():
    assert normalise("\x93Yes\x94 \x96 it\x92s \x805\x85 at \x81last") == "“Yes” – it’s €5… at last"


def test_mojibake_is_repaired_and_true_text_is_not():
    assert normalise("It doesnâ€™t matter, dÃ©jÃ  vu") == "It doesn’t matter, déjà vu"
    assert normalise("Ã\x9cberraschung, StraÃ\x9fe") == "Überraschung, Straße"
    assert normalise("naïve Ärzte – “quoted” 日本 âme Ã") == "naïve Ärzte – “quoted” 日本 âme Ã"


def test_typographic_punctuation_becomes_ascii_on_request_only():
    text = "“It’s 3–4 °C…” — «so»"
    assert normalise(text) == text
    assert normalise(text, punctuation=True) == "\"It's 3-4 °C...\" -- \"so\""


def test_emoji_become_names_on_request_only():
    text = "fine 👍🏽 sun ☀️ family 👩‍👧 日本"
    assert normalise(text) == text
    assert normalise(text, emoji_names=True) == (
        "fine :thumbs_up_sign::emoji_modifier_fitzpatrick_type-4: sun :black_sun_with_rays: "
        "family :woman::girl: 日本")


@given(st.text())
@pytest.mark.parametrize("options", [{}, {"emoji_names": True, "punctuation": True}])
def test_normalisation_is_idempotent_and_complete(options, text):
    once = normalise(text, **options)
    assert normalise(once, **options) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode()       # no halves of surrogate pairs
    assert not any(unicodedata.category(char) == "Cc" and char not in "\t\n" for char in once)
