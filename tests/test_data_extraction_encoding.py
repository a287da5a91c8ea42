"""Decoding of bytes, with right, wrong and missing declarations of the encoding."""

import os
import random
import zipfile
from pathlib import Path

import pytest

from data.extraction import encoding
from data.extraction.encoding import decode

# Encodings of the web (Python's codec, label) and languages that were written in them.
LEGACY = {
    ("cp1252", "windows-1252"): ["fra", "spa", "por_PT", "ita", "swe", "dan", "fin", "eng"],
    ("cp1252", "iso-8859-1"): ["deu_1901"],
    ("iso8859-2", "iso-8859-2"): ["pol", "ces", "hun", "hrv", "slk", "slv"],
    ("cp1250", "windows-1250"): ["pol", "ces", "hrv", "slk"],
    ("cp1251", "windows-1251"): ["rus", "ukr", "bul", "bel"],
    ("koi8-r", "koi8-r"): ["rus"],
    ("koi8-u", "koi8-u"): ["ukr"],
    ("cp866", "ibm866"): ["rus"],
    ("iso8859-5", "iso-8859-5"): ["rus"],
    ("iso8859-7", "iso-8859-7"): ["ell_monotonic"],
    ("cp1253", "windows-1253"): ["ell_monotonic"],
    ("cp1254", "iso-8859-9"): ["tur"],
    ("cp1255", "windows-1255"): ["heb"],
    ("cp1256", "windows-1256"): ["arb"],
    ("cp1257", "windows-1257"): ["lit", "lav", "est"],
    ("cp1258", "windows-1258"): ["vie"],
    ("cp874", "windows-874"): ["tha"],
    ("cp932", "shift_jis"): ["jpn"],
    ("euc_jp", "euc-jp"): ["jpn"],
    ("iso2022_jp", "iso-2022-jp"): ["jpn"],
    ("gb18030", "gb18030"): ["cmn_hans"],
    ("gbk", "gb2312"): ["cmn_hans"],
    ("big5", "big5"): ["cmn_hant"],
    ("cp949", "euc-kr"): ["kor"],
}
CASES = [(codec, label, language) for (codec, label), languages in LEGACY.items()
         for language in languages]


@pytest.fixture(scope="module")
def texts():
    """The Universal Declaration of Human Rights, by language."""
    if "HEARTWOOD_DATASETS" not in os.environ:
        pytest.skip("needs HEARTWOOD_DATASETS")
    with zipfile.ZipFile(Path(os.environ["HEARTWOOD_DATASETS"]) / "udhr" / "udhr2.zip") as archive:
        return {Path(name).stem: archive.read(name).decode() for name in archive.namelist()
                if name.endswith(".txt")}


def test_declared_legacy_encodings_are_read_without_a_loss(texts):
    for codec, label, language in CASES:
        content = texts[language].encode(codec, "ignore")
        text = content.decode(codec)
        assert len(text) > 0.99 * len(texts[language]), (codec, language)
        assert decode(content, f"text/html; charset={label}") == text, (label, language)
        head = f'<html><head><meta http-equiv="Content-Type" content="text/html; charset={label}">'
        for header in ("text/html", "text/html; charset=utf-8", "text/html; charset=ISO-8859-1"):
            assert decode(head.encode() + content, header) == head + text, (label, language)


def test_a_default_of_the_server_gives_way_to_the_bytes(texts):
    for codec, label, language in CASES:
        content = texts[language].encode(codec, "ignore")
        if encoding._is_foreign(content):
            assert decode(content, "text/html; charset=iso-8859-1") == content.decode(codec), label
    foreign = {language for codec, _, language in CASES
               if encoding._is_foreign(texts[language].encode(codec, "ignore"))}
    assert {"rus", "ell_monotonic", "heb", "arb", "tha", "jpn", "cmn_hans", "kor"} <= foreign
    assert not {"fra", "deu_1901", "pol", "ces", "tur", "vie", "eng", "lit"} & foreign


def test_of_two_declarations_the_bytes_choose(texts):
    page = b"<meta charset=windows-1251>" + texts["rus"].encode("cp1251")
    assert decode(page, "text/html; charset=koi8-r") == page.decode("cp1251")
    page = b"<meta charset=windows-1251>" + texts["rus"].encode("koi8-r")
    assert decode(page, "text/html; charset=koi8-r") == page.decode("koi8-r")


def test_a_few_broken_bytes_do_not_make_a_declared_encoding_another(texts):
    for codec, label, language in CASES:
        text = texts[language].encode(codec, "ignore").decode(codec)
        head = f"<meta charset={label}>".encode()
        content = head + text.encode(codec) + b"\xff" * (codec not in ("cp1252", "iso2022_jp"))
        read = decode(content, "text/html; charset=iso-8859-1")
        assert read.removeprefix(head.decode())[:len(text) - 1] == text[:-1], (label, language)


def test_legacy_encodings_are_detected_without_a_declaration(texts):
    wrong = [(codec, language) for codec, _, language in CASES
             if decode(texts[language].encode(codec, "ignore"))
             != texts[language].encode(codec, "ignore").decode(codec)]
    assert not wrong


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_in_every_language(texts, codec):
    for language, text in texts.items():
        assert decode(text.encode(codec), "text/html; charset=windows-1252") == text, language


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_detected_by_zeros_or_the_header(codec):
    page = "<html><body><p>Grüße und schöne Tage, 日本</p></body></html>"
    assert decode(page.encode(codec)) == page
    assert decode("日本語です".encode(codec), f"text/html; charset={codec}") == "日本語です"


def test_an_ascii_page_that_declares_utf_16_is_not_utf_16():
    for end in ("", " "):       # an even number of bytes is never refused
        page = f'<meta charset="utf-16"><p>café</p>{end}'
        assert decode(page.encode("cp1252")) == page


def test_a_few_broken_bytes_do_not_make_utf_8_another_encoding():
    text = "Žluťoučký kůň úpěl ďábelské ódy. " * 3
    content = text.encode()
    assert decode(content[:45] + b"\xff" + content[45:]).replace("\ufffd", "") == text
    assert decode((text + "é").encode()[:-1], "text/html; charset=iso-8859-1") == text + "\ufffd"


def test_an_encoding_unknown_to_python_is_read_as_the_default(monkeypatch):
    monkeypatch.setattr(encoding, "detect_encoding", lambda sample, **options: "georgian-ps")
    assert decode(b"caf\xe9") == "café"


def test_no_bytes_raise():
    source = random.Random(0)
    labels = ["", "utf-7", "utf-16be", "hz-gb-2312", "x-user-defined", "base64", "rot13", "idna",
              "iso-2022-kr", "nonsense", "\u20ac", "shift_jis", "gb18030"]
    for number in range(3000):
        label = labels[number % len(labels)]
        head = f"<meta charset={label}>".encode() if number % 2 else b""
        content = head + source.randbytes(number % 70) + source.choice(
            [b"", b"\x1b$B", b"\x1b$)C", b"\0" * 40, b"~{", b"\xff\xfe"]) + source.randbytes(9)
        assert isinstance(decode(content, f'text/html; charset="{label}"'), str)
