"""Clean text out of pages: layout of documentation and code is kept, junk is not."""

import importlib
import pydoc
import unicodedata

import pytest

from data.extraction import clean, extract

PLANTED = '''"""First line.

Usage::

    if a < b and c:
        f()
"""

class Base:
    """The base."""
    def inherited(self):
        """Said by the base class."""

class Child(Base):
    """The child."""
    def own(self, x=1):
        """Says hello.

        Args:
            x: how often.
        """

def f(a, b=2):
    """Adds a & b.

        indented more
    """

LIMIT = 3
'''


@pytest.fixture
def pydoc_page(tmp_path, monkeypatch) -> str:
    """A pydoc page of a module with a class, a subclass, a function and a constant."""
    (tmp_path / "planted_module.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("planted_module")
    return pydoc.html.page("planted_module", pydoc.html.document(module, "planted_module"))


def test_pydoc_page_reads_like_documentation(pydoc_page):
    text = extract(pydoc_page.encode(), "text/html; charset=utf-8")
    assert text.startswith("planted_module\n\nFirst line.\n\nUsage::\n\n"
                           "    if a < b and c:\n        f()\n\nclass Base\n\nThe base.\n")
    assert "own(self, x=1)\n    Says hello.\n\n    Args:\n        x: how often.\n" in text
    assert "f(a, b=2)\n    Adds a & b.\n\n    indented more\n" in text
    assert "LIMIT = 3" in text


def test_pydoc_navigation_and_inherited_members_are_dropped(pydoc_page):
    text = extract(pydoc_page, "text/html")
    for junk in ("index", "builtins.object", "Method resolution order", "inherited from",
                 "list of weak references", "<", "&nbsp;", "\xa0", "file:"):
        assert junk not in text.replace("a < b", ""), junk
    assert text.count("Said by the base class.") == 1


def test_web_page_keeps_its_article_alone():
    page = ("<html><body><nav><a href='/'>Home</a><a href='/x'>Other</a></nav><article><h1>Title"
            "</h1><p>" + "A long paragraph of an article. " * 20 + "</p></article><footer>"
            "<a href='/t'>Terms</a></footer><script>var x = 1;</script></body></html>")
    text = extract(page, "text/html")
    assert "A long paragraph" in text
    assert not any(junk in text for junk in ("Other", "Terms", "var x"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "windows-1252"])
def test_encodings_are_found(encoding):
    sentence = "Der Fluss führt zur Straße, über die Brücke und zurück zum größten Café der Stadt. "
    page = f"<html><body><article><p>{sentence * 10}</p></article></body></html>"
    assert "größten Café" in extract(page.encode(encoding), "text/html")


def test_clean_keeps_the_layout_of_code():
    code = "def f(x):\n\tif x:\n\n\n        return 1  # two\n"
    assert clean(code) == code.rstrip("\n")


def test_clean_takes_out_what_is_not_text():
    assert clean("a\x00b\x07\ufeff  \r\n\r\n\r\n\r\n\r\n\r\nc \u00a0d\t\n") == "ab\n\n\nc  d"
    assert clean(unicodedata.normalize("NFD", "é")) == "é"
    assert clean("It doesnâ€™t matter, dÃ©jÃ  vu") == "It doesn’t matter, déjà vu"
    assert clean("naïve Ärzte – “quoted” 日本") == "naïve Ärzte – “quoted” 日本"


@pytest.mark.parametrize("text", ["", " \n\t\n", "a\n\n\n\n\nb\x0c", "dÃ©jÃ\xa0vu", "x\u2003y\r"])
def test_clean_is_idempotent(text):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"<", b"<html>" * 5000, b"\x00" * 100,
                                     b"<title>Python: module x</title><body>"])
def test_no_bytes_raise(content):
    assert isinstance(extract(content, "text/html"), str)
