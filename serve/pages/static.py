"""The files that browsers may load, by path: nothing else is read from the disk for a request."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from core.page.layout import STYLE

HTML, CSS, SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))
LABELLING = {
    "/": (Path(__file__).with_name("label.html"), HTML),
    "/label.js": (Path(__file__).with_name("label.js"), SCRIPT),
    "/label.css": (Path(__file__).with_name("label.css"), CSS),
    "/page.css": (STYLE, CSS)}      # of all pages

ARENA = {
    "/arena": (Path(__file__).with_name("arena.html"), HTML),
    "/arena.js": (Path(__file__).with_name("arena.js"), SCRIPT),
    "/arena.css": (Path(__file__).with_name("arena.css"), CSS),
    "/page.css": (STYLE, CSS)}


class StaticFile(NamedTuple):
    """A file as it is sent."""

    body: bytes
    media_type: str


def load_files(table: dict[str, tuple[Path, str]]) -> dict[str, StaticFile]:
    """The files of a table, by the paths at which they are served."""
    return {path: StaticFile(file.read_bytes(), kind) for path, (file, kind) in table.items()}
