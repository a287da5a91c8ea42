"""Normalisation of text, without changes to its layout."""

import os
import unicodedata
import zipfile
from pathlib import Path

import ftfy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data.extraction.normalise import _mend, normalise


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


@pytest.mark.parametrize("text", [
    "Корабль вышел из гавани на рассвете.", "Το πλοίο έφυγε από το λιμάνι.",
    "その船は夜明けに港を出た。", "那艘船在黎明时分离开了港口。", "배는 새벽에 항구를 떠났다.",
    "הספינה יצאה מהנמל עם שחר.", "غادرت السفينة الميناء عند الفجر.", "เรือออกจากท่าเรือตอนรุ่งสาง",
    "जहाज भोर में बंदरगाह से निकला।", "Նավը լքեց նավահանգիստը լուսաբացին։",
    "Statek wypłynął z portu o świcie, już żegnany.",
    "Gemi şafakta limandan ayrıldı, güneş doğdu."])
@pytest.mark.parametrize("page", ["{}", "A line above.\n{}\nБез ошибок: «да».\n日本"])
def test_mojibake_of_every_script_is_repaired_also_beside_true_text(text, page):
    misread = text.encode().decode("latin-1")
    assert normalise(page.format(misread)) == page.format(text)


@pytest.mark.parametrize(("text", "encoding"), [
    ("Корабль вышел из гавани – и вернулся.", "cp1251"), ("it’s “quoted”", "cp1251"),
    ("l’été, déjà “vu”", "mac-roman"), ("Statek wypłynął już o świcie.", "cp1250"),
    ("Statek wypłynął już o świcie.", "iso8859-2"), ("Žuvėdra skrenda ąžuolų link.", "cp1257"),
    ("Gemi şafakta limandan ayrıldı.", "cp1254"), ("déjà vu, garçon", "cp437")])
def test_mojibake_of_every_encoding_is_repaired(text, encoding):
    assert normalise(text.encode().decode(encoding)) == text


def test_once_a_line_is_mojibake_no_break_spaces_are_restored_everywhere():
    assert normalise("le cafÃ© du port\nvoilÃ le port") == "le café du port\nvoilà le port"


@pytest.mark.parametrize("text", [
    "Від її дії залежить, чи ВІН прийде: «Її мрії».", "L’été à «École» – ’été, ÉTÉ…",
    "CÂU HỎI: Ông Ấy ở đâu?", "Â – Ã", "Με Άρη, «Ώρα»", "SÃO PAULO – NÃO", "ÄÖÜ ß ÅÄ"])
def test_true_text_is_no_mojibake(text):
    assert normalise(text) == text


def test_true_text_of_every_language_is_no_mojibake(monkeypatch):
    if "HEARTWOOD_DATASETS" not in os.environ:
        pytest.skip("needs HEARTWOOD_DATASETS")
    repaired = []
    fix = ftfy.fix_encoding
    monkeypatch.setattr(ftfy, "fix_encoding", lambda line: (
        fixed := fix(line), fixed != line and repaired.append(line))[0])
    with zipfile.ZipFile(Path(os.environ["HEARTWOOD_DATASETS"]) / "udhr" / "udhr2.zip") as texts:
        names = [name for name in texts.namelist() if name.endswith(".txt")]
        for name in names:
            normalise(texts.read(name).decode())
    assert len(names) > 380 and not repaired


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
    assume(_mend(text) == text)     # repaired text may hold more: UTF-8 can be misread twice
    once = normalise(text, **options)
    assert normalise(once, **options) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode()       # no halves of surrogate pairs
    assert not any(unicodedata.category(char) == "Cc" and char not in "\t\n" for char in once)
