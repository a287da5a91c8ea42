"""Writes the formulas of a page as LaTeX, before its main text is extracted.

Extractors drop the elements that carry formulas, or keep the glyphs without their arrangement:
10<sup>-6</sup> becomes 10-6. LaTeX is taken from where pages carry it: annotations and ``alttext``
of MathML, MathJax's scripts, KaTeX, the ``alt`` of images (the same places as in OpenWebMath,
arXiv:2310.06786). MathML without it is translated. Formulas are delimited as in LaTeX, by ``\\(``
and ``\\)``, displayed ones by ``\\[`` and ``\\]``; outside formulas it is 10^-6 and H_2O.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from urllib.parse import unquote

from data.extraction.mathml import to_latex

# Tags end before the next one begins, so that many that are never closed take linear time.
# One search, which few pages pass.
_SIGN = re.compile(
    r"<(?:(?:\w+:)?math\b|su[pb]\b|script\b[^<>]*\bmath/|img\b[^<>]*(?:tex|math))", re.I)
_SCRIPT = re.compile(r"<script\b[^<>]*\btype\s*=\s*[\"']?math/(tex|latex|mml)\b([^<>]*)>", re.I)
_SCRIPT_END = re.compile(r"</script\s*>", re.I)
# A quoted value may hold a >.
_ATTRIBUTES = r"""[^<>"']*(?:(?:"[^"]{0,9999}"|'[^']{0,9999}')[^<>"']*){0,50}"""
_MATH = re.compile(rf"<(?:\w+:)?math\b({_ATTRIBUTES})>", re.I)
_MATH_END = re.compile(r"</(?:\w+:)?math\s*>", re.I)
_TEX = re.compile(
    r"<(?:\w+:)?annotation\b[^<>]*\bencoding\s*=\s*[\"']?(?:application/x-tex|(?:la)?tex)\b[^<>]*>"
    r"(.*?)</(?:\w+:)?annotation\s*>", re.I | re.S)
_DISPLAYED = re.compile(r"\bdisplay\s*=\s*[\"']?(?:block|true)|\bmode\s*=\s*[\"']?display")
_ATTRIBUTE = r"""\b{}\s*=\s*(?:"([^"]*)"|'([^']*)')"""
_ALT_TEXT = re.compile(_ATTRIBUTE.format("alttext"), re.I)
_ALT = re.compile(_ATTRIBUTE.format("alt"), re.I)
_SRC = re.compile(_ATTRIBUTE.format("src"), re.I)
# Images of formulas by their class (MediaWiki, WordPress, QuickLaTeX) or the address that draws
# them, whose query is the source.
_IMAGE = re.compile(
    r"<img\b(?=[^<>]*(?:\bclass\s*=\s*[\"']?(?:[^\"'>]* )?(?:tex|latex\w*|"
    rf"(?:ql-img|mwe-math)-[\w-]+)[\"'\s>]|latex\.php|codecogs\.com|/equation\?tex=|(?:mime|math)tex\.cgi)){_ATTRIBUTES}>",
    re.I)
_DRAWN = re.compile(r"(?:codecogs\.com/[^?]*|tex\.cgi)\?(?:\\dpi\{\d+\}|\\inline\b|\s)*(.*)", re.S)
# The glyphs beside the source.
_KATEX_GLYPHS = re.compile(r"<(span)\b[^<>]*\bclass\s*=\s*[\"']?katex-html\b[^<>]*>")
_MATHJAX_GLYPHS = re.compile(
    r"<(span|div)\b[^<>]*\bclass\s*=\s*[\"']?(?:MathJax\w*|MJX\w*|mjx-chtml)\b[^<>]*>")
_HIDDEN_SOURCE = re.compile(r"<span\b[^<>]*\bclass\s*=\s*[\"']?mwe-math-mathml[^<>]*>")
_WRAPPED = re.compile(r"\{\\(?:display|text)style\s(.*)\}", re.S)
_CDATA = re.compile(r"%?\s*<!\[CDATA\[|%?\s*\]\]>")
_TAG = re.compile(r"<[^<>]*>")

_RAISED = re.compile(r"<(su)([pb])\b[^<>]*>((?:[^<]|<(?!/?su[pb]\b|/?a\b)[^<>]*>){1,80})</su\2\s*>",
                     re.I)
_LINKED = re.compile(r"<a\b[^<>]*>\s*\Z", re.I)
_BARE = re.compile(r"[-+−–]?\d+|[^\W\d_]|[-+−*′]")
_ORDINAL = re.compile(r"[aeordh]|[^\W\d_]{2,}\.?|[®©™*†‡§¶]|[\[(].*[\])]")


def write_formulas(page: str) -> str:
    """The HTML page with formulas as text in LaTeX, and raised or lowered text marked."""
    if not _SIGN.search(page):
        return page
    if "katex-mathml" in page:
        page = _drop(page, _KATEX_GLYPHS)
    if _SCRIPT.search(page):
        page = _drop(page, _MATHJAX_GLYPHS)
        page = _replace(page, _SCRIPT, _SCRIPT_END, _of_script)
    page = _replace(_HIDDEN_SOURCE.sub("<span>", page), _MATH, _MATH_END, _of_math)
    return _RAISED.sub(_mark, _IMAGE.sub(_of_image, page))


def _of_script(start: re.Match[str], source: str) -> str:
    if start[1].lower() == "mml":
        return source           # replaced with the page's other MathML
    return _delimit(_CDATA.sub("", source), _DISPLAYED.search(start[2]))


def _of_math(start: re.Match[str], content: str) -> str:
    annotation, alternative = _TEX.search(content), _ALT_TEXT.search(start[1])
    if annotation:
        source = html.unescape(annotation[1])
    elif alternative:
        source = html.unescape(alternative[1] or alternative[2] or "")
    else:
        source = to_latex(content)
    before = start.string[max(0, start.start() - 100):start.start()]
    return _delimit(source, _DISPLAYED.search(start[1]) or "katex-display" in before)


def _of_image(image: re.Match[str]) -> str:
    address, alternative = _SRC.search(image[0]), _ALT.search(image[0])
    source = html.unescape(alternative[1] or alternative[2] or "") if alternative else ""
    drawn = address and _DRAWN.search(
        unquote(html.unescape(address[1] or address[2] or "")).replace("&space;", " "))
    written = _delimit(drawn[1] if drawn else source, None)
    before = _TAG.sub("", image.string[max(0, image.start() - len(written) - 300):image.start()])
    return "" if before.rstrip().endswith(written) else written     # beside its MathML


def _delimit(source: str, is_displayed: object) -> str:
    """LaTeX between delimiters, as HTML text; empty without a source."""
    source = " ".join(source.strip().strip("$").split())
    wrapped = _WRAPPED.fullmatch(source)
    source = (wrapped[1] if wrapped else source).strip()
    if not source:
        return ""
    if source.startswith(("\\(", "\\[", "\\begin{equation", "\\begin{align")):
        return html.escape(source, quote=False)
    opening, closing = ("\\[", "\\]") if is_displayed else ("\\(", "\\)")
    return html.escape(f"{opening}{source}{closing}", quote=False)


def _mark(raised: re.Match[str]) -> str:
    """``^`` or ``_`` and the text; endings of ordinals and marks of notes stay as they are."""
    text = html.unescape(_TAG.sub("", raised[3])).strip()
    sign = "^" if raised[2] in "pP" else "_"
    before = raised.string[max(0, raised.start() - 300):raised.start()]
    if not text or (sign == "^" and _ORDINAL.fullmatch(text)) or _LINKED.search(before):
        return raised[0]
    marked = text if _BARE.fullmatch(text) else f"{{{text}}}"
    return html.escape(f"{sign}{marked}", quote=False)


def _replace(page: str, start: re.Pattern[str], end: re.Pattern[str],
             write: Callable[[re.Match[str], str], str]) -> str:
    """Replaces elements; one that is never closed, and all that follows, is left."""
    parts, position = [], 0
    while (opening := start.search(page, position)) and (
            closing := end.search(page, opening.end())):
        parts += page[position:opening.start()], write(opening, page[opening.end():closing.start()])
        position = closing.end()
    return "".join(parts) + page[position:]


def _drop(page: str, start: re.Pattern[str]) -> str:
    """Drops elements with all that is nested in them; one that is never closed is left."""
    parts, position = [], 0
    while opening := start.search(page, position):
        depth, tags = 1, re.compile(rf"<(/?){opening[1]}\b", re.I).finditer(page, opening.end())
        for tag in tags:
            depth += -1 if tag[1] else 1
            if not depth:
                break
        if depth:
            break
        parts.append(page[position:opening.start()])
        position = page.find(">", tag.end()) + 1 or len(page)
    return "".join(parts) + page[position:]
