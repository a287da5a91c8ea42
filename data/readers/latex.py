"""Converts LaTeX to plain text: prose under Markdown headings, maths unchanged.

Drops comments, preamble, figures, tables, bibliography, citations and layout commands. The author's
macros are not expanded; their arguments are kept.
"""

from __future__ import annotations

import re
import unicodedata

from data.readers.records import Item, RawRecord, Skipped
from data.readers.spans import replace_spans

LEVELS = {"title": 1, "part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4,
          "paragraph": 5, "subparagraph": 6}

_COMMENT = re.compile(r"(\\.)|%[^\n]*(?:\n[ \t]*(?=\S))?")
_BEGIN_DOCUMENT = re.compile(r"\\begin\s*\{document\}")
_END_DOCUMENT = re.compile(r"\\end\s*\{document\}")
_ARGUMENT = r"\{((?:[^{}\\]|\\.|\{(?:[^{}\\]|\\.|\{(?:[^{}\\]|\\.){0,500}\}){0,500}\}){0,4000})\}"
_OPTION = r"(?:\s*\[[^\]\n]{0,300}\])*"
_TITLE = re.compile(rf"\\title{_OPTION}\s*{_ARGUMENT}", re.S)
_MATHS = "equation|align|alignat|gather|multline|eqnarray|displaymath|math|flalign"
_VERBATIM = re.compile(r"\\begin\{((?:verbatim|lstlisting|minted|Verbatim)\*?)\}"
                       r"(?:\[[^\]\n]*\]|\{[^}\n]*\})*\n?")
_MATH = re.compile(rf"\\begin\{{((?:{_MATHS})\*?)\}}|\\\[|\\\(|(?<!\\)\$\$?")
_MATH_ENDS = {"\\[": re.compile(r"\\\]"), "\\(": re.compile(r"\\\)"),
              "$$": re.compile(r"(?<!\\)\$\$"), "$": re.compile(r"(?<!\\)\$")}
_CLOSINGS = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
_DROPPED = re.compile(
    r"\\begin\{((?:figure|table|tabular|tikzpicture|thebibliography|wrapfigure|longtable|algorithm"
    r"|algorithmic|picture|comment|filecontents)\*?)\}")
_HEADING = re.compile(rf"\\({'|'.join(LEVELS)})\*?{_OPTION}\s*{_ARGUMENT}", re.S)
_ABSTRACT = re.compile(r"\\begin\{abstract\}")
_SILENT = re.compile(   # commands that are dropped with all their arguments
    r"\\(?:[a-zA-Z]*cite[a-zA-Z]*|label|ref|eqref|autoref|[cC]ref|pageref|vspace|hspace|input"
    r"|include|includegraphics|bibliography|bibliographystyle|usepackage|documentclass|author"
    r"|date|thanks|affiliation|email|institute|address|newcommand|renewcommand|providecommand"
    r"|def|newtheorem|setlength|addtolength|setcounter|pagestyle|thispagestyle|thanks|footnotemark"
    r"|index|nocite|hypersetup|color)"
    rf"(?![a-zA-Z])\*?(?:\\[a-zA-Z]+)?(?:{_OPTION}\s*{_ARGUMENT})?(?:{_OPTION}{_ARGUMENT})?", re.S)
_COLOUR = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}\n]*\}")
_LINK = re.compile(rf"\\href\s*{_ARGUMENT}\s*{_ARGUMENT}", re.S)
_FOOTNOTE = re.compile(rf"\\footnote{_OPTION}\s*{_ARGUMENT}", re.S)
_ITEM = re.compile(r"\n?\\item\b\s*(?:\[([^\]\n]*)\])?[ \t]*")
_ENVIRONMENT = re.compile(rf"\\(?:begin|end)\s*\{{[^{{}}\n]*\}}{_OPTION}")
_ACCENT = re.compile(
    r"\\([`'^\"~=.]|[Hcuvkr](?![a-zA-Z]))\s*(?:\{\s*\\?([a-zA-Z])\s*\}|\\?([a-zA-Z]))")
_COMMAND = re.compile(r"\\[a-zA-Z@]+\*?(?:\[[^\]\n]{0,300}\])?[ \t]*(?:\n(?=\S))?")
_PARAGRAPH_WRAP = re.compile(r"(?<!\n)\n(?!\n|- |#)")
_BLANK_BEFORE_SIGN = re.compile(r" ([,.;:)])")
_PLACE = re.compile("\ue000(\\d+)\ue001")

_MARKS = {"`": "\u0300", "'": "\u0301", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304",
          ".": "\u0307", "H": "\u030b", "c": "\u0327", "u": "\u0306", "v": "\u030c",
          "k": "\u0328", "r": "\u030a"}
_LETTERS = {"ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "l": "ł",
            "L": "Ł", "aa": "å", "AA": "Å", "i": "ı", "S": "§", "P": "¶", "pounds": "£",
            "copyright": "©", "dots": "...", "ldots": "...", "textbackslash": "\\",
            "LaTeX": "LaTeX", "TeX": "TeX", "textendash": "–", "textemdash": "—",
            "quad": " ", "qquad": " ", "par": "\n\n", "newline": "\n", "linebreak": "\n"}
_LETTER = re.compile(rf"\\({'|'.join(sorted(_LETTERS, key=len, reverse=True))})(?![a-zA-Z])"
                     r"(?:\{\}|[ \t]+)?")
_SIGNS = (("\\\\", "\n"), ("---", "—"), ("--", "–"), ("``", "“"), ("''", "”"), ("~", " "),
          ("\\,", " "), ("\\;", " "), ("\\:", " "), ("\\!", ""), ("\\ ", " "), ("\\/", ""),
          ("\\-", ""), ("\\@", ""))


def read_paper(content: bytes, source: str) -> Item:
    """A LaTeX file as a record; a file without text is skipped."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")    # the usual encoding of papers without inputenc
    text = to_plain_text(text)
    if not text:
        return Skipped(source, "latex: holds no text")
    return RawRecord(source, text, "text/markdown", "papers")


def to_plain_text(text: str) -> str:
    """The text of a LaTeX document, or of a part without ``\\begin{document}``."""
    kept: list[str] = []

    def keep(part: str, is_block: bool) -> str:
        kept.append(part)
        place = f"\ue000{len(kept) - 1}\ue001"
        return f"\n\n{place}\n\n" if is_block else place

    def keep_maths(opening: re.Match[str], inner: str) -> str:
        end = _CLOSINGS.get(opening[0], f"\\end{{{opening[1]}}}")
        return keep(opening[0] + inner + end, is_block=opening[0] not in ("$", "\\("))

    text = text.replace("\r\n", "\n").replace("\ue000", "").replace("\ue001", "")
    text = replace_spans(text, _VERBATIM, _closing,
                         lambda _, inner: keep(inner.rstrip(), is_block=True))
    text = _body(_COMMENT.sub(lambda match: match[1] or "", text))
    text = replace_spans(text, _DROPPED, _closing, lambda *_: "")
    text = replace_spans(text, _MATH, _closing, keep_maths)
    text = _unwrap(_strip_commands(text))
    while _PLACE.search(text):      # kept parts may be nested: a listing within maths
        text = _PLACE.sub(lambda match: kept[int(match[1])], text)
    return text.strip()


def _closing(opening: re.Match[str]) -> re.Pattern[str]:
    return _MATH_ENDS.get(opening[0]) or re.compile(re.escape(f"\\end{{{opening[1]}}}"))


def _body(text: str) -> str:
    """The title, which may be in the preamble, and the text between begin and end."""
    begin = _BEGIN_DOCUMENT.search(text)
    if begin is None:
        return text
    end = _END_DOCUMENT.search(text, begin.end())
    title = _TITLE.search(text, 0, begin.start())
    body = text[begin.end():end.start() if end else len(text)]
    return f"{title[0]}\n\n{body}" if title else body


def _unwrap(text: str) -> str:
    """One line per paragraph, heading and list item."""
    text = _PARAGRAPH_WRAP.sub(" ", _squeeze(text))
    return _BLANK_BEFORE_SIGN.sub(r"\1", re.sub(r"\n{3,}", "\n\n", text))


def _squeeze(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))


def _strip_commands(text: str) -> str:
    text = _squeeze(text)
    text = _HEADING.sub(lambda m: f"\n\n{'#' * LEVELS[m[1]]} {' '.join(m[2].split())}\n\n", text)
    text = _ABSTRACT.sub("\n\n## Abstract\n\n", text)
    text = _SILENT.sub("", _COLOUR.sub("", text))
    text = _FOOTNOTE.sub(r" (\1)", _LINK.sub(r"\2", text))
    text = _ITEM.sub(lambda match: f"\n- {match[1] + ' ' if match[1] else ''}", text)
    text = _ENVIRONMENT.sub("\n\n", text)
    text = _ACCENT.sub(lambda match: unicodedata.normalize(
        "NFC", (match[2] or match[3]) + _MARKS[match[1]]), text)
    text = _LETTER.sub(lambda match: _LETTERS[match[1]], text)
    for sign, plain in _SIGNS:
        text = text.replace(sign, plain)
    text = _COMMAND.sub("", text)
    text = re.sub(r"(?<!\\)[{}]", "", text)
    return re.sub(r"\\([%&_#${}])", r"\1", text)
