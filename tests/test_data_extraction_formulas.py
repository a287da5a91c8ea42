"""Formulas of web pages are written as LaTeX, once, whatever element carries them."""

import pytest

from data.extraction.extract import MODES, extract
from data.extraction.formulas import write_formulas
from data.extraction.mathml import MAX_DEPTH, to_latex

SENTENCE = "The length of the path is measured along its curve, and depends on where it starts."
SQUARE = "<msup><mi>x</mi><mn>2</mn></msup>"
ANNOTATED = (f'<math xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow>{SQUARE}</mrow>'
             '<annotation encoding="application/x-tex">{}</annotation></semantics></math>')
GLYPHS = ('<span class="katex-html" aria-hidden="true"><span class="base"><span>x</span>'
          '<span>2</span></span></span>')

SOURCES = {
    "annotation": (ANNOTATED.format("x^2 &lt; y"), r"\(x^2 < y\)"),
    "alttext": (f'<math alttext="x^2">{SQUARE}</math>', r"\(x^2\)"),
    "displayed": (f'<math display="block" alttext="x^2">{SQUARE}</math>', r"\[x^2\]"),
    "MathML alone": (f"<math><mi>k</mi><mo>=</mo>{SQUARE}</math>", r"\(k=x^{2}\)"),
    "prefixed": ("<m:math><m:mfrac><m:mi>a</m:mi><m:mi>b</m:mi></m:mfrac></m:math>",
                 r"\(\frac{a}{b}\)"),
    "MathJax": ('<script type="math/tex">a<b</script>', r"\(a<b\)"),
    "MathJax displayed": ('<script type="math/tex; mode=display">a\n= b</script>', r"\[a = b\]"),
    "MathJax rendered": (
        '<span class="MathJax_Preview">[x2]</span><span class="MathJax" id="m1"><nobr><span>x'
        '<span>2</span></span></nobr></span><script type="math/tex" id="m">x^2</script>',
        r"\(x^2\)"),
    "MathJax CDATA": ('<script type="math/tex">% <![CDATA[\nx^2 %]]></script>', r"\(x^2\)"),
    "MathJax MathML": (f'<script type="math/mml"><math>{SQUARE}</math></script>', r"\(x^{2}\)"),
    "MathJax 3": ('<mjx-container><mjx-math></mjx-math><mjx-assistive-mml><math>'
                  f"{SQUARE}</math></mjx-assistive-mml></mjx-container>", r"\(x^{2}\)"),
    "KaTeX": ('<span class="katex"><span class="katex-mathml">' + ANNOTATED.format("x^2")
              + f"</span>{GLYPHS}</span>", r"\(x^2\)"),
    "KaTeX displayed": (
        '<span class="katex-display"><span class="katex"><span class="katex-mathml">'
        + ANNOTATED.format("x^2") + f"</span>{GLYPHS}</span></span>", r"\[x^2\]"),
    "MediaWiki": ('<span class="mwe-math-element"><span class="mwe-math-mathml-inline" '
                  'style="display: none;">' + ANNOTATED.format(r"{\displaystyle x^{2}}")
                  + '</span><img class="mwe-math-fallback-image-inline" src="/svg/1" '
                  r'alt="{\displaystyle x^{2}}"></span>', r"\(x^{2}\)"),
    "MediaWiki image": (r'<img class="tex" alt="\frac{a}{b}" src="a.png">', r"\(\frac{a}{b}\)"),
    "quoted >": ('<math alttext="x>0"><mi>x</mi></math>', r"\(x>0\)"),
    "WordPress": ('<img src="/latex.php?latex=x%5E2" alt="x^2" class="latex" />', r"\(x^2\)"),
    "CodeCogs": (r'<img src="https://latex.codecogs.com/gif.latex?\inline&space;x^2&plus;1">',
                 r"\(x^2+1\)"),
    "in the text": (r"\(x^2\) or $x^2$", r"\(x^2\) or $x^2$"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("markup", "latex"), SOURCES.values(), ids=SOURCES)
def test_formulas_are_latex_once(markup, latex, mode):
    page = (f"<html><body><article><p>{SENTENCE} {SENTENCE}</p><p>Its square, {markup}, is here. "
            f"{SENTENCE}</p><p>{SENTENCE} {SENTENCE}</p></article></body></html>")
    line = extract(page, "text/html", mode=mode).split("\n\n")[1]
    assert line == f"Its square, {latex}, is here. {SENTENCE}"


@pytest.mark.parametrize(("markup", "text"), [
    ("10<sup>-6</sup>", "10^-6"), ("10<sup>&minus;6</sup>", "10^−6"),
    ("H<sub>2</sub>O", "H_2O"), ("SO<sub>4</sub><sup>2-</sup>", "SO_4^{2-}"),
    ("<i>x</i><SUP><i>n</i>+1</SUP>", "<i>x</i>^{n+1}"), ("v<sub>max</sub>", "v_{max}"),
    ("x<sup>&lt;</sup>", "x^{&lt;}")])
def test_raised_and_lowered_text_is_marked(markup, text):
    assert write_formulas(markup) == text


@pytest.mark.parametrize("markup", [
    "the 1<sup>st</sup>", "n<sup>o</sup> 5", "Brand<sup>TM</sup>", "said<sup>[3]</sup>",
    'said<sup class="reference"><a href="#n3">3</a></sup>', 'said<a href="#n3"><sup>3</sup></a>',
    "<sup></sup>", "<sup>never closed", "<subject>x</subject>", "<p>1 < 2</p>"])
def test_ordinals_and_notes_are_as_they_were(markup):
    assert write_formulas(markup) == markup


@pytest.mark.parametrize("markup", [
    "<math><mi>x", '<script type="math/tex">x', '<span class="katex-html"><span>x</span>',
    '<img class="texture" alt="wood">', '<i class="katex-html"><i>x</i></i><sup></sup>',
    "<mathematics>x</mathematics>"])
def test_elements_that_are_not_closed_or_no_formulas_are_left(markup):
    assert write_formulas(markup) == markup


@pytest.mark.parametrize(("content", "latex"), [
    ("<mn>2.71</mn><mo>&times;</mo><msup><mn>10</mn><mrow><mo>-</mo><mn>6</mn></mrow></msup>",
     "2.71×10^{-6}"),
    ("<msup><mrow><mo>(</mo><mi>a</mi><mo>)</mo></mrow><mn>2</mn></msup>", "{(a)}^{2}"),
    ("<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>0</mn></mrow><mi>n</mi></munderover>",
     "∑_{i=0}^{n}"),
    ("<mroot><mi>x</mi><mn>3</mn></mroot><msqrt><mi>a</mi><mi>b</mi></msqrt>",
     "\\sqrt[3]{x}\\sqrt{ab}"),
    ("<mover><mi>v</mi><mo>→</mo></mover><mtext> if </mtext><mo>{</mo>", "\\vec{v}\\text{if}\\{"),
    ("<mfenced><mi>a</mi><mi>b</mi></mfenced>", "(a, b)"),
    ("<mtable><mtr><mtd>1</mtd><mtd>2</mtd></mtr><mtr><mtd>3</mtd><mtd>4</mtd></mtr></mtable>",
     "\\begin{matrix}1 & 2 \\\\ 3 & 4\\end{matrix}"),
    ("<msup><mi>x</mi></msup><mi>f</mi><mo>\u2061</mo><mi>y</mi>", "xfy")])
def test_mathml_becomes_latex(content, latex):
    assert to_latex(content) == latex


def test_deeply_nested_mathml_is_written_without_arrangement():
    assert to_latex("<mrow>" * 3 * MAX_DEPTH + "<mi>x</mi>") == "x"


@pytest.mark.parametrize("opening", [
    "<math>", "<math ", "<sup>", "<img ", '<img alt="', "<script type='math/tex'>",
    "<script type='math/tex' ", "<span class='katex-html katex-mathml'>"])
def test_many_elements_that_are_never_closed_take_linear_time(opening):
    page = "<math></math>" + opening * 20_000       # minutes if it were quadratic
    assert write_formulas(page) == opening * 20_000
