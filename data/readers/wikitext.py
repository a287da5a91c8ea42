"""Converts wikitext to plain text.

Templates, tables, files and references are dropped; prose, lists, code and maths are kept; headings
become Markdown. Brackets are matched in one pass with a stack, so unbalanced ones lose no text and
take linear time. Otherwise the same elements are dropped as by WikiExtractor
(attardi/wikiextractor), except maths.
"""

from __future__ import annotations

import html
import re
from collections.abc import Set

from data.readers.spans import replace_spans, strip_lines

FILE_NAMESPACES = frozenset({"file", "image", "media", "category"})     # valid in all wikis
MAX_DEPTH = 40      # deeper nesting would take quadratic time

_COMMENT, _COMMENT_END = re.compile("<!--"), re.compile("-->")
_KEPT = re.compile(r"<(math|syntaxhighlight|source|pre|nowiki|code)\b[^<>/]*>", re.I)
_DROPPED = re.compile(r"<(ref|gallery|timeline|score|imagemap|templatestyles|graph|mapframe)\b"
                      r"[^<>]*>", re.I)
_BREAK = re.compile(r"<(?:br|/?p|/?div|/?blockquote|/?li|/?poem)\b[^>]*>", re.I)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_BRACKET = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ \t:]*\{\||^[ \t]*\|\}(?!\})", re.M)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]\[]+[ \t]*([^\]\[\n]*)\]")
_QUOTES = re.compile(r"'{2,5}")
_MAGIC = re.compile(r"__[A-Z]{3,}__")
_HEADING = re.compile(r"^(={1,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.M)
_HEADING_LINE = re.compile(r"(#{1,6}) ")
_LIST = re.compile(r"^([*#]+)[ \t]*", re.M)
_INDENT = re.compile(r"^[:;]+[ \t]*", re.M)
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*:[^|]*$")
_REDIRECT = re.compile(r"\s*#\s*redirect\b", re.I)
_PLACE = re.compile("\ue000(\\d+)\ue001")

# Templates that represent text, with the number of the argument that contains it.
_TEXT_TEMPLATES = {"lang": 2, "nowrap": 1, "small": 1, "big": 1, "nobold": 1, "quote": 1,
                   "blockquote": 1, "abbr": 1, "lang-en": 1, "ipa": 1, "math": 1, "mvar": 1}


def is_redirect(text: str) -> bool:
    """Whether a page's text is ``#REDIRECT``, as in old dumps without the element."""
    return bool(_REDIRECT.match(text))


def to_plain_text(text: str, namespaces: Set[str] = frozenset()) -> str:
    """The prose of a page.

    Args:
        namespaces: local names of the namespaces of files and categories, in lower case; the
            English ones are always included.
    """
    kept: list[str] = []

    def keep(opening: re.Match[str], body: str) -> str:
        kept.append({"math": f"${body.strip()}$", "nowiki": body, "code": body}.get(
            opening[1].lower(), body.strip("\n")))
        return f"\ue000{len(kept) - 1}\ue001"

    text = text.replace("\ue000", "").replace("\ue001", "")
    text = replace_spans(text, _COMMENT, lambda _: _COMMENT_END, lambda *_: "")
    text = replace_spans(text, _KEPT, _closing_tag, keep)   # their contents are not wikitext
    text = replace_spans(text, _DROPPED, _closing_tag, lambda *_: "")
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _resolve_brackets(text, FILE_NAMESPACES | namespaces)
    text = _MAGIC.sub("", _QUOTES.sub("", _EXTERNAL.sub(r"\1", text)))
    text = _LIST.sub(lambda match: "  " * (len(match[1]) - 1) + "- ", text)
    text = _HEADING.sub(lambda match: f"\n{'#' * len(match[1])} {match[2]}\n", text)
    text = html.unescape(_INDENT.sub("", text)).replace("\xa0", " ")
    text = _drop_empty_sections(strip_lines(text))
    return _PLACE.sub(lambda match: kept[int(match[1])], text).strip()


def _closing_tag(opening: re.Match[str]) -> re.Pattern[str] | None:
    if opening[0].endswith("/>"):
        return None
    return re.compile(rf"</{opening[1]}\s*>", re.I)


def _resolve_brackets(text: str, namespaces: Set[str]) -> str:
    frames: list[tuple[str, list[str]]] = [("", [])]
    position = 0
    for match in _BRACKET.finditer(text):
        frames[-1][1].append(text[position:match.start()])
        position = match.end()
        bracket = match[0].strip(" \t:")
        if bracket in ("{{", "[[", "{|"):
            if len(frames) <= MAX_DEPTH:
                frames.append((bracket, []))
        elif frames[-1][0] == {"}}": "{{", "]]": "[[", "|}": "{|"}[bracket]:
            opening, parts = frames.pop()
            frames[-1][1].append(_resolve(opening, "".join(parts), namespaces))
    return "".join(part for _, parts in frames for part in parts) + text[position:]


def _resolve(opening: str, inner: str, namespaces: Set[str]) -> str:
    if opening == "{|":
        return ""
    if opening == "{{":
        return _template_text(inner)
    target, _, label = inner.partition("|")
    is_linked = target.startswith(":")      # [[:File:x]] links to the page of the file
    prefix, colon, _ = target.lstrip(":").partition(":")
    if colon and not is_linked and (prefix.strip().lower() in namespaces
                                    or (not label and _LANGUAGE_LINK.match(target))):
        return ""
    return label.rpartition("|")[2] if label else target.lstrip(":")


def _template_text(inner: str) -> str:
    name, *arguments = inner.split("|")
    name = name.strip().lower()
    if name in ("convert", "cvt") and len(arguments) >= 2:
        return f"{arguments[0].strip()} {arguments[1].strip()}"
    index = _TEXT_TEMPLATES.get(name, 0)
    if not 0 < index <= len(arguments):
        return ""
    return arguments[index - 1].removeprefix("text=").removeprefix("1=").strip()


def _drop_empty_sections(text: str) -> str:
    """Drops headings without text before the next heading of the same or a higher level."""
    kept: list[str] = []
    below: int | None = 0       # level of the next heading, 0 at the end; None: text
    for line in reversed(text.split("\n")):
        if heading := _HEADING_LINE.match(line):
            level = len(heading[1])
            if below is not None and below <= level:
                continue
            below = level
        elif line.strip():
            below = None
        kept.append(line)
    return "\n".join(reversed(kept))
