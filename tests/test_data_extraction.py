"""Extraction of text from pages: the article and its layout are kept, boilerplate is dropped."""

import gzip
import importlib
import json
import os
import pydoc
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from lxml import etree

from core.artifacts import ROOT
from data.extraction.boilerplate import drop_boilerplate, drop_head
from data.extraction.extract import MODES, extract
from data.extraction.layout import render
from data.extraction.paragraphs import restore

SENTENCE = "The parser reads one line at a time, and keeps the state of the line before it."

MANUAL = f"""<!doctype html><html><head><title>Reading lines - The manual</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/docs">Docs</a></li></ul></nav>
<main><h1>Reading lines</h1><p>{SENTENCE} {SENTENCE}</p><h2>Code</h2>
<pre><code class="language-python">def read(path):
    with open(path) as file:

        for line in file:
            if a &lt; b &amp;&amp; c:
\t\tyield line    # two
</code></pre><p>Call <code>read(path)</code> on any file. {SENTENCE}</p>
<h2>Table</h2><table><thead><tr><th>Name</th><th>Size</th></tr></thead>
<tbody><tr><td>one</td><td>1 kB</td></tr><tr><td>two words</td><td>22 kB</td></tr></tbody></table>
<h2>Lists</h2><ul><li>first item<ul><li>inner one</li><li>inner two</li></ul></li>
<li>second item</li></ul><p>Then:</p><ol><li>step one</li><li>step two</li></ol>
<p>{SENTENCE}</p></main>
<footer><p>Copyright 2020 Somebody. All rights reserved.</p></footer></body></html>"""

MANUAL_TEXT = f"""{SENTENCE} {SENTENCE}

Code

def read(path):
    with open(path) as file:

        for line in file:
            if a < b && c:
\t\tyield line    # two

Call read(path) on any file. {SENTENCE}

Table

Name\t\tSize
one\t\t1 kB
two words\t\t22 kB

Lists

  • first item
    • inner one
    • inner two
  • second item

Then:

  1. step one
  2. step two

{SENTENCE}"""

PLANTED = '''"""First line.

Usage::

    if a < b and c:
        f()
"""

class Base:
    """The base: writes `&lt;` for `<`, and &amp;amp; for &amp;."""
    def inherited(self):
        """Said by the base class."""

class Child(Base):
    """The child."""
    def __init__(self, sep="<br>", none="&lt;"):
        """Starts."""

    def own(self, x=1):
        """Says hello.

        Args:
            x: how often.
        """

def f(a, b=2, c="<&>"):
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


def test_pydoc_page_becomes_documentation(pydoc_page):
    text = extract(pydoc_page.encode(), "text/html; charset=utf-8")
    assert text.startswith("planted_module\n\nFirst line.\n\nUsage::\n\n"
                           "    if a < b and c:\n        f()\n\nclass Base\n\nThe base: ")
    assert "own(self, x=1)\n    Says hello.\n\n    Args:\n        x: how often.\n" in text
    assert "f(a, b=2, c='<&>')\n    Adds a & b.\n\n    indented more\n" in text
    assert "LIMIT = 3" in text


def test_pydoc_prose_keeps_its_entities_and_signatures_lose_both_levels(pydoc_page):
    text = extract(pydoc_page, "text/html")
    assert "writes `&lt;` for `<`, and &amp;amp; for &amp;." in text
    assert "Child(sep='<br>', none='&lt;')\n\nThe child." in text       # escaped twice by pydoc
    assert "__init__(self, sep='<br>', none='&lt;')" in text            # and once


def test_pydoc_navigation_and_inherited_members_are_dropped(pydoc_page):
    text = extract(pydoc_page, "text/html")
    for junk in ("index", "builtins.object", "Method resolution order", "inherited from",
                 "list of weak references", "<a ", "<dd>", "&nbsp;", "\xa0", "file:"):
        assert junk not in text, junk
    assert text.count("Said by the base class.") == 1


@pytest.mark.parametrize("mode", MODES)
def test_text_has_the_layout_of_the_page_without_the_title(mode):
    assert extract(MANUAL, "text/html", mode=mode) == MANUAL_TEXT


@pytest.mark.parametrize("mode", MODES)
def test_only_the_article_of_a_web_page_is_kept(mode):
    page = ("<html><body><nav><a href='/'>Home</a><a href='/x'>Other</a></nav><article><h1>Title"
            "</h1><p>" + "A long paragraph of an article. " * 20 + "</p></article><footer>"
            "<a href='/t'>Terms</a></footer><script>var x = 1;</script></body></html>")
    text = extract(page, "text/html", mode=mode)
    assert "A long paragraph" in text
    assert not any(junk in text for junk in ("Other", "Terms", "var x"))


def test_embedded_posts_are_text():
    post = "<blockquote class='twitter-tweet'><p>What the minister wrote.</p></blockquote>"
    page = f"<html><body><article><p>{SENTENCE}</p>{post}<p>{SENTENCE}</p></article></body></html>"
    assert "What the minister wrote." in extract(page, "text/html")


def _page(main: str, title: str = "The long way north") -> str:
    """A page of a site whose template has many elements."""
    return (f"<html><head><title>{title} - Site</title></head><body>{'<div></div>' * 12}"
            f"<div><div><div><div class='wrap'>{main}</div></div></div></div></body></html>")


def _prose(number: int) -> str:
    return (f"In the year {1900 + number} the party crossed the river at mile {number}, and wrote "
            f"down what it saw of the {number} islands, their people and their birds.")


@pytest.mark.parametrize("mode", MODES)
def test_what_precedes_the_title_is_dropped_with_it_but_no_prose(mode):
    article = "".join(f"<p>{_prose(number)}</p>" for number in range(1, 12))
    page = _page(f"<article><p>Section: travel</p><p>{_prose(0)}</p><h1>The long way north</h1>"
                 f"{article}</article>")
    text = extract(page, "text/html", mode=mode)
    assert text.startswith(f"{_prose(0)}\n") and text.endswith(_prose(11))
    assert "Section" not in text and "The long way north" not in text


def test_a_title_far_down_is_text():
    text = "\n".join([SENTENCE] * 9)
    page = "<title>Reading of lines</title>"
    assert drop_head(f"Monday\nReading of lines\n{text}", page) == text
    assert drop_head(f"{text}\nReading of lines\n", page) == f"{text}\nReading of lines\n"
    assert drop_head(f"Reading\n{text}", page) == f"Reading\n{text}"       # too short to tell


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("markup", [
    "<figure><figcaption>{}</figcaption></figure>", "<p class='photo-caption'>{}</p>",
    "<div class='site-footer'><p>{}</p></div>", "<div class='related-stories'><p>{}</p></div>"])
def test_captions_footers_and_teasers_are_no_main_text(markup, mode):
    article = "".join(f"<p>{_prose(number)}</p>" for number in range(9))
    other = "A view of the old harbour from the hill above it, taken in spring."
    text = extract(_page(f"<article>{article}</article>{markup.format(other)}"), "text/html",
                   mode=mode)
    assert _prose(8) in text and other not in text


def test_a_footer_by_name_that_holds_the_article_is_kept():
    article = "".join(f"<p>{_prose(number)}</p>" for number in range(9))
    page = _page(f"<div class='has-footer'><h1>The long way north</h1>{article}<ul><li>Rope</li>"
                 "<li>Oil</li></ul></div>")
    assert extract(page, "text/html").endswith(f"{_prose(8)}\n\n  • Rope\n  • Oil")


def test_fast_falls_back_to_the_prose_of_the_page():
    article = "".join(f"<p>{_prose(number)}</p>" for number in range(9))
    page = _page(f"<nav><a href='/'>Home</a></nav><div class='sidebar'><p>Menu</p>{article}"
                 "<h2>On the way</h2>" + f"<p>{_prose(9)}</p></div>")
    text = extract(page, "text/html")
    assert text == "\n\n".join([*map(_prose, range(9)), "On the way", _prose(9)])


def test_quality_falls_back_where_trafilatura_takes_the_wrong_part(monkeypatch):
    import trafilatura

    monkeypatch.setattr(trafilatura, "bare_extraction", lambda *args, **options: None)
    assert extract(MANUAL, "text/html", mode="quality") == extract(MANUAL, "text/html")


def test_quality_falls_back_to_balance_where_both_texts_are_short(monkeypatch):
    import trafilatura

    body = etree.fromstring(f"<body><p>{SENTENCE}</p></body>")
    monkeypatch.setattr(trafilatura, "bare_extraction", lambda *args, **options: (
        None if "favor_precision" in options else SimpleNamespace(body=body)))
    assert extract("<p>Hi</p>", "text/html", mode="quality") == SENTENCE


def test_paragraphs_of_the_kind_of_those_in_the_text_are_restored_in_place():
    parts = [f"<div class='part p{number}'><p class='body'>{_prose(number)}</p></div>"
             for number in range(6)]
    page = _page("<div class='ad'></div>".join(parts)
                 + "".join(f"<div class='comment'><p>{_prose(number)}</p></div>"
                           for number in (7, 8)))
    other = "\n\n".join(map(_prose, range(9)))
    text = "\n\n".join(map(_prose, (1, 2, 4)))
    restored = [line for line in restore(text, other, page).split("\n") if line]
    assert restored == [_prose(number) for number in (0, 1, 2, 3, 4, 5)]


def test_long_paragraphs_above_the_last_one_of_the_text_are_restored():
    intro = " ".join(map(_prose, (20, 21)))
    text = "\n\n".join(map(_prose, range(9)))
    other = f"{intro}\n{_prose(30)}\n{text}\n{intro.replace('crossed', 'left')}"
    assert restore(text, other, "<p>").strip().startswith(f"{intro}\n")
    assert restore(text, other, "<p>").strip().endswith(text)
    assert restore(text, text, "<p>") == text == restore(text, "Other words.", "<p>")


def test_text_other_than_html_keeps_its_layout():
    code = "def f(x):\n\tif x:\n\n\n        return '<p>'  # share\nshare\n"
    assert extract(code.encode(), "text/x-python") == code.rstrip("\n")


def test_boilerplate_lines_are_dropped_in_any_position():
    text = "\n".join(["Share on Facebook", SENTENCE, "ADVERTISEMENT", "Read more: Another story",
                      SENTENCE, "Sign up for our daily newsletter.", "Follow us on Twitter"])
    assert drop_boilerplate(text) == f"{SENTENCE}\n{SENTENCE}"


@pytest.mark.parametrize("mode", MODES)
def test_lines_of_code_are_not_boilerplate(mode):
    def page(button: str) -> str:
        return (f"<html><body><article><p>{SENTENCE} {SENTENCE}</p>{button}<p>{SENTENCE} {SENTENCE}"
                "</p></article></body></html>")
    assert "Read more" not in extract(page("<p>Read more: Another story</p>"), "text/html",
                                      mode=mode)
    assert "tags: a b\nnext\n" in extract(page("<pre>tags: a b\nnext\nend\n</pre>"), "text/html",
                                         mode=mode)


CODE = "def f():\n    x = 1\n\n    return x"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("markup", [
    "<pre>{}</pre>", "<pre>\n{}\n</pre>", "<pre><code>{}</code></pre>",
    "<table><tr><td>f</td><td><pre>{}</pre></td></tr></table>",
    "<table><tr><td><pre><code>{}</code></pre></td><td>f</td></tr></table>",
    "<table><tr><td class='linenos'><pre>1\n2\n3\n4</pre></td><td class='code'><pre>{}</pre></td>"
    "</tr></table>",
    "<ol><li>Write:<pre><code>{}</code></pre>and run.</li></ol>",
    "<blockquote><pre>{}</pre></blockquote>"])
@pytest.mark.parametrize("write", [
    lambda code: code, lambda code: code.replace("\n", "<br>"),
    lambda code: "\n".join(f"<span class='line'><b>{line}</b></span>" for line in code.split("\n")),
    lambda code: "\n".join(f"<span class='lineno'>{number}</span>{line}"
                           for number, line in enumerate(code.split("\n")))],
    ids=["plain", "br", "span", "numbered"])
def test_code_keeps_its_lines_and_indentation(markup, write, mode):
    page = (f"<html><body><article><p>{SENTENCE} {SENTENCE}</p>{markup.format(write(CODE))}"
            f"<p>{SENTENCE} {SENTENCE}</p></article></body></html>")
    text = extract(page, "text/html", mode=mode)
    indents = {line.index("def") for line in text.split("\n") if "def f()" in line}
    assert len(indents) == 1
    assert "\n".join(line[indents.copy().pop():] for line in text.split("\n")).count(CODE) == 1
    assert not re.search(r"^\s*\d", text, re.M) or "<ol>" in markup


@pytest.mark.parametrize("mode", MODES)
def test_lines_of_a_cell_are_lines(mode):
    table = ("<table><tr><th>Place</th><th>Address</th><th>Town</th></tr><tr><td>Museum</td>"
             "<td>Mill Lane 2<br>Back yard</td><td>Ely</td></tr></table>")
    page = f"<html><body><article><p>{SENTENCE}</p>{table}<p>{SENTENCE}</p></article></body></html>"
    assert "Place\t\tAddress\t\tTown\nMuseum\t\tMill Lane 2\nBack yard\t\tEly\n" in extract(
        page, "text/html", mode=mode)


@pytest.mark.parametrize("line", [
    "Share prices fell on Facebook's results.", "Comments were made on both sides of the aisle.",
    "Related work is discussed in section 2.", "print(next)", "Copyright law is old.",
    "Click here to get more information or download this game.", "    share", "return;"])
def test_text_that_begins_like_boilerplate_is_kept(line):
    assert drop_boilerplate(f"{SENTENCE}\n{line}\n{SENTENCE}").split("\n")[1] == line


def test_lists_of_other_pages_are_cut_below_the_text_only():
    links = "Related Articles\nAnother story\nAnd a third one"
    body = "\n".join([SENTENCE] * 6)
    assert drop_boilerplate(f"{body}\n{links}") == body
    assert "Another story" in drop_boilerplate(f"{links}\n{body}")


def test_tables_have_a_line_per_row_and_per_block_of_a_cell():
    tree = etree.fromstring(
        "<body><p>a\n  <hi>b</hi> \t c<lb/>d</p>"
        "<table><row><cell><p>x</p><p>w</p></cell><cell>y <list><item>z</item></list></cell></row>"
        "<row><cell>1</cell><cell>2</cell></row></table>"
        "<list rend='ol'><item><p>one</p></item><item>two<list><item>in</item></list></item></list>"
        "<quote><p>said</p></quote><p>use <code>z  z</code></p></body>")
    assert render(tree).rstrip() == (
        "a b c\nd\n\nx\nw\t\ty\nz\n1\t\t2\n\n  1. one\n  2. two\n    • in\n\nsaid\n\nuse z  z")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("content", [
    b"", b"\xff\xfe\x00", b"<", b"<html>" * 5000, b"\x00" * 100, bytes(range(256)) * 40,
    b"<title>Python: module x</title><body>", b"<p>open <b>and <i>never </p>closed <table><tr>",
    b"<p>a\x00b</p>" * 30, b"<div>" * 400 + b"deep", b"<!--", b"<script>", b"&#xD800;&#0;&bogus;"])
def test_no_bytes_raise(content, mode):
    assert isinstance(extract(content, "text/html", mode=mode), str)


def test_fast_mode_imports_no_slow_library():
    script = ("import sys; from data.extraction.extract import extract;"
              "extract('<p>x', 'text/html');"
              "print({'trafilatura', 'lxml', 'ftfy', 'numpy', 'pyarrow'} & set(sys.modules))")
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                           check=True)
    assert shown.stdout == "set()\n"


def _shingles(text: str) -> Counter:
    words = re.findall(r"\w+", text)
    return Counter(tuple(words[i:i + 4]) for i in range(max(1, len(words) - 3)) if words)


def _f1(texts: dict[str, str], gold: dict[str, str]) -> float:
    """The benchmark's F1: of the means of precision and recall over pages."""
    precisions, recalls = [], []
    for name, text in texts.items():
        extracted, wanted = _shingles(text), _shingles(gold[name])
        shared = (extracted & wanted).total()
        if extracted:       # as in the benchmark, pages without text have no precision
            precisions.append(shared / extracted.total())
        recalls.append(shared / wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall)


@pytest.fixture(scope="module")
def benchmark():
    """Pages of the article extraction benchmark, and their gold texts."""
    if "HEARTWOOD_DATASETS" not in os.environ:
        pytest.skip("needs HEARTWOOD_DATASETS")
    root = Path(os.environ["HEARTWOOD_DATASETS"]) / "web_extraction"
    gold = json.loads(gzip.decompress((root / "ground_truth.json.gz").read_bytes()))
    names = sorted(gold)
    pages = {name: gzip.decompress((root / "html" / f"{name}.html.gz").read_bytes())
             for name in names}
    outputs = {path.name.split(".")[0]: json.loads(gzip.decompress(path.read_bytes()))
               for path in (root / "outputs").glob("*.json.gz")}
    return pages, {name: gold[name]["articleBody"] for name in names}, outputs


@pytest.mark.parametrize(("system", "f1"), [("trafilatura", 0.9635), ("boilerpipe", 0.8727),
                                            ("newspaper", 0.9593)])
def test_metric_is_the_benchmarks(benchmark, system, f1):
    _, gold, outputs = benchmark
    assert _f1(outputs[system], gold) == pytest.approx(f1, abs=2e-4)


def test_fast_mode_on_real_pages(benchmark):
    pages, gold, _ = benchmark
    assert _f1({name: extract(page, "text/html") for name, page in pages.items()}, gold) > 0.96


@pytest.mark.full
def test_quality_mode_on_real_pages_is_above_the_best_setting_of_trafilatura(benchmark):
    import trafilatura

    pages, gold, _ = benchmark
    ours = {name: extract(page, "text/html", mode="quality") for name, page in pages.items()}
    theirs = {name: trafilatura.extract(page, favor_precision=True, include_comments=False)
              for name, page in pages.items()}
    assert _f1(ours, gold) > max(0.975, _f1(theirs, gold))
