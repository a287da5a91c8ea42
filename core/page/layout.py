"""A self-contained page: no network, no script but its own, light and dark, reproducible bytes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import digest
from core.page.markup import Markup, join, tag

STYLE = Path(__file__).with_name("page.css")
# The pages show texts from the web, so browsers must not run or load anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render_page(title: str, *body: Any, style: str = "", script: str = "") -> str:
    """A whole page as HTML.

    Args:
        style: CSS for this page alone.
        script: JavaScript that runs when the body is there; the policy names its hash, so that
            browsers run no other.
    """
    policy = POLICY
    if script:
        script = script.replace("</", "<\\/")   # in a string, the same; a tag cannot end early
        digest_of_script = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest_of_script}'"
        body = (*body, tag("script", Markup(script)))
    head = join(tag("meta", charset="utf-8"),
                tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", http_equiv="Content-Security-Policy", content=policy),
                tag("meta", name="color-scheme", content="light dark"),
                tag("title", title), tag("style", Markup(STYLE.read_text() + style)))
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', *body), lang='en')}\n"


def fingerprint() -> str:
    """Digest of the page kit, for a stage whose result is a page."""
    return digest([path.read_text() for path in sorted(STYLE.parent.iterdir()) if path.is_file()])


def headline(eyebrow: str, title: str, lede: str, tiles: Sequence[tuple[str, Any, str]]) -> Markup:
    """The top of a page; a tile is a name, a number and a note."""
    return tag("header", tag("p", eyebrow, class_="eyebrow"), tag("h1", title),
               tag("p", lede, class_="lede"),
               tag("dl", [tag("div", tag("dt", name), tag("dd", value, class_="number"),
                              tag("dd", note)) for name, value, note in tiles], class_="tiles"))


def section(title: str, lede: str, *body: Any) -> Markup:
    """A part of the page with a heading."""
    return tag("section", tag("h2", title), tag("p", lede, class_="lede"), *body)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], style: str) -> Markup:
    """A table that scrolls horizontally if it is wider than the page."""
    return tag("div", tag("table", tag("thead", tag("tr", [tag("th", name) for name in head])),
                          tag("tbody", [tag("tr", [tag("td", cell) for cell in row])
                                        for row in rows]), class_=style), class_="scroll")


def command(text: str) -> Markup:
    """A command that one click selects, with line breaks only between arguments."""
    words = [tag("span", word) for word in text.split(" ")]
    return tag("code", words[0], [join(" ", word) for word in words[1:]], class_="command")


def commit(lineage: Mapping[str, Any]) -> Markup:
    """The commit of an artifact's code; + marks uncommitted changes."""
    return join(tag("code", (lineage["commit"] or "unknown")[:8]),
                "+" if lineage["uncommitted_changes"] else "")


def versions(lineage: Mapping[str, Any]) -> str:
    """Interpreter, platform and library versions in one line."""
    libraries = " · ".join(f"{name} {version}" for name, version in lineage["versions"].items())
    return f"Python {lineage['python']} · {lineage['platform']} · {libraries}"
