"""Units of scripts without spaces, and the words that they make."""

import pytest

from data.dedup.shingles import shingle
from data.dedup.substrings import Tokens
from data.dedup.words import normalise_words
from data.writing import (
    PARTS,
    UNSPACED,
    count_words,
    is_mostly_unspaced,
    longest_word,
    separate,
    word_parts,
)


@pytest.mark.parametrize("text, units", [
    ("渡轮ABC。九点", "渡 轮 ABC。 九 点"),
    ("カメラで撮る", "カ メ ラ で 撮 る"),
    ("ที่นี่เปิด", "ที่ นี่ เ ปิ ด"),
    ("ດີໃຈ", "ດີ ໃ ຈ"),
    ("ក្រុងស្ងាត់", "ក្រុ ង ស្ងា ត់"),             # a subscript consonant stays with its letter
    ("မြန်မာ", "မြ န် မာ"),
    ("བོད་སྐད་ཡིན།", "བོད སྐད ཡིན །"),
    ("ꦗꦮꦶ", "ꦗ ꦮꦶ"),
    ("ሰላም፡ለሁሉ", "ሰላም ለሁሉ"),                     # the wordspace divides words
    ("ក\u200bខ", "ក ខ"),
    ("서울 시내", "서울 시내"), ("Straße 5", "Straße 5"), ("क्षमा करें", "क्षमा करें"),
    ("ｆｕｌｌ　ｗｉｄｔｈ", "ｆｕｌｌ ｗｉｄｔｈ")])
def test_units(text, units):
    assert separate(text).split() == units.split()
    assert "".join(separate(text).split()) == "".join(units.split())


def test_text_of_other_scripts_is_returned_as_it_is():
    for text in ("plain", "Größe – “quoted” …", "слово", "كلمة", "शब्द", "단어"):
        assert separate(text) is text
        assert not is_mostly_unspaced(text)
    assert is_mostly_unspaced("see 渡轮九点离开港口")
    assert not is_mostly_unspaced("a page in English with a link to 中文 in its footer")


def test_words_are_counted_by_script():
    assert count_words("three plain words") == 3
    assert count_words("- a – b") == 4            # as ever: runs of non-space characters
    assert count_words("渡" * 30) == round(30 / UNSPACED["Han"][1])
    assert count_words("渡轮。渡轮，") == count_words("渡轮渡轮")      # marks are no words
    assert count_words("渡轮 leaves at 9") == 5
    assert count_words("ก" * 40) == round(40 / UNSPACED["Thai"][1])
    assert count_words("渡") == 1 and count_words("") == 0
    assert word_parts("word") == word_parts("слово") == PARTS > word_parts("渡")


def test_the_longest_word_of_a_paragraph_without_spaces_is_short():
    assert longest_word("渡轮" * 2000 + " ABCDEF") == 6
    assert longest_word("x" * 1200) == 1200


# A translation of a text has as many words as the original, so these numbers are near each other.
SAME = {
    "en": "The old ferry leaves the small harbour every morning at nine and comes back before the "
          "sun goes down behind the hills.",
    "zh": "那艘旧渡轮每天早上九点离开小港口，在太阳落到山后之前返回。",
    "ja": "古い渡し船は毎朝九時に小さな港を出て、太陽が丘の向こうに沈む前に戻ってきます。",
    "th": "เรือข้ามฟากลำเก่าออกจากท่าเรือเล็กทุกเช้าตอนเก้าโมงและกลับมาก่อนที่ดวงอาทิตย์จะลับเนินเขา"}


@pytest.mark.parametrize("language", SAME)
def test_translations_have_about_as_many_words(language):
    assert 15 <= count_words(SAME[language]) <= 27


@pytest.mark.parametrize("language", ["zh", "ja", "th"])
def test_deduplication_compares_units(language):
    text = SAME[language]
    words = normalise_words(text)
    assert len(words) > 25
    assert len(shingle(text, 5)) > 20
    tokens = Tokens.of(f"{text}\n{text}")
    half = len(tokens) // 2
    assert len(tokens) == 2 * half and half > 25
    assert tokens.hashes[:half].tolist() == tokens.hashes[half:].tolist()
    # An insertion changes the shingles around it and no others.
    place = text.index(words[len(words) // 2])
    changed = text[:place] + "ก" + text[place:]
    assert len(set(shingle(changed, 5)) & set(shingle(text, 5))) > len(shingle(text, 5)) - 8
