"""Renders Python modules as pydoc pages and collects questions; run as a subprocess.

    python -m data.embedded.render_pages JOB.json

Importing a module executes it, which may hang or crash the process. The name of every module is
therefore written to the results before it is imported, and a timer ends a process that hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import inspect
import io
import json
import os
import pydoc
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

MIN_SUMMARY_CHARS, MAX_SUMMARY_CHARS = 15, 160
ADDRESS = re.compile(r"\b(at|handle)( |&nbsp;)(?:0x)?[0-9a-f]{8,}")
# Constants that are objects: their reprs depend on addresses and on the order of sets.
OBJECT = re.compile(r"(<strong>\w+</strong> = )[^<\n]*&[lg]t;[^<\n]*")
HOME = re.compile(r"(?<![\w.])/(?:home|Users)/[\w.-]+")
FILE_LINK = re.compile(r'<a href="file:[^"]*">([^<]*)</a>')
SIGNATURE = re.compile(r"^[\w.]+\s*\(.*\)(\s*->.*)?$|->|^\w+\(", re.S)
SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)\.(?=\s|$)")
ROLE = re.compile(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`")
LINK = re.compile(r"`([^`<]+?)\s*<[^>]*>`_+")
PROSE = re.compile(r"[A-Z][\x20-\x7e]*[A-Za-z)\"'`]\.?$")
NOT_PROSE = re.compile(r"deprecat|\balias\b|>>>|::|\bTODO\b|\bsee help\b|https?:|[{}\\|=]|__", re.I)


class Pages(pydoc.HTMLDoc):
    """pydoc's renderer with a cache of escaped words: the same bytes in half the time."""

    @staticmethod
    @functools.lru_cache(1 << 16)
    def escape(text: str) -> str:
        """Text as HTML."""
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    @staticmethod
    @functools.lru_cache(1 << 16)
    def preformat(text: str) -> str:
        """Text as HTML that keeps its spaces and line ends."""
        text = Pages.escape(text.expandtabs())
        for old, new in (("\n\n", "\n \n"), ("\n\n", "\n \n"), (" ", "&nbsp;"), ("\n", "<br>\n")):
            text = text.replace(old, new)
        return text


def render(job: Mapping[str, Any], results: io.TextIOBase) -> None:
    """Renders each of `job["modules"]`; writes a JSON line before each and one with its result.

    Args:
        job: `modules` (names), `scrub` (pairs of a local path and its replacement) and
            `secs_per_module`, after which the process exits.
    """
    pages = Pages()
    for name in job["modules"]:
        _write(results, {"begin": name})
        faulthandler.dump_traceback_later(job["secs_per_module"], exit=True)
        try:
            module = importlib.import_module(name)
            html = pages.page(name, pages.document(module, name))
            result = {"html": scrub(html, job["scrub"]), "questions": list(ask(module))}
        except (Exception, SystemExit) as error:    # a module may raise any exception
            result = {"reason": type(error).__name__}
        _write(results, {"module": name} | result)
    faulthandler.cancel_dump_traceback_later()


def scrub(text: str, pairs: Iterable[Sequence[str]]) -> str:
    """Removes local paths, home folders, file links and object addresses from a text.

    Args:
        text: a page, or any text.
        pairs: absolute local paths and their replacements, longest first.
    """
    text = OBJECT.sub(r"\1...", FILE_LINK.sub(r"\1", text))
    for local, public in pairs:
        if local in text:
            text = re.sub(rf"(?<![\w.]){re.escape(local)}(?![\w-])", public, text)
    return HOME.sub("/home/user", ADDRESS.sub(r"\1\g<2>0x0", text))


def ask(module: Any) -> Iterator[dict[str, str]]:
    """Name, kind and summary of the public functions, classes and methods of a module."""
    name = module.__name__
    package = name.partition(".")[0]
    listed = getattr(module, "__all__", None) or [n for n in vars(module) if n[:1] != "_"]
    for member in sorted(n for n in set(listed) if isinstance(n, str) and n[:1] != "_"):
        thing = inspect.getattr_static(module, member, None)
        if not callable(thing) or inspect.ismodule(thing):
            continue
        origin = str(getattr(thing, "__module__", None) or name)
        if not origin.lstrip("_").startswith(package.lstrip("_")):     # _heapq belongs to heapq
            continue
        kind = "class" if inspect.isclass(thing) else "function"
        if summary := summarize(_docstring(thing)):
            yield {"name": f"{name}.{member}", "module": name, "package": package, "kind": kind,
                   "summary": summary}
        if kind == "class" and thing.__module__ == name:
            yield from _ask_methods(thing, module, package)


def _ask_methods(owner: type, module: Any, package: str) -> Iterator[dict[str, str]]:
    for member, thing in sorted(vars(owner).items()):
        if member.startswith("_") or not inspect.isroutine(thing):
            continue
        if summary := summarize(_docstring(thing)):
            yield {"name": f"{module.__name__}.{owner.__qualname__}.{member}",
                   "module": module.__name__, "package": package, "kind": "method",
                   "summary": summary}


def summarize(docstring: str | None) -> str | None:
    """First sentence of a docstring as one line of prose, or None."""
    for paragraph in inspect.cleandoc(docstring or "").split("\n\n")[:2]:
        text = LINK.sub(r"\1", ROLE.sub(r"\1", " ".join(paragraph.split()))).replace("`", "")
        if SIGNATURE.search(text):      # numpy's ufuncs begin with their signature
            continue
        end = SENTENCE_END.search(text)
        text = text[:end.start() + 1] if end else text
        fits = MIN_SUMMARY_CHARS <= len(text) <= MAX_SUMMARY_CHARS and len(text.split()) >= 3
        return text if fits and PROSE.match(text) and not NOT_PROSE.search(text) else None
    return None


def _docstring(thing: Any) -> str | None:
    thing = getattr(thing, "__func__", thing)
    doc = getattr(thing, "__doc__", None)
    return doc if isinstance(doc, str) else None


def _write(results: io.TextIOBase, line: Mapping[str, Any]) -> None:
    results.write(json.dumps(line) + "\n")
    results.flush()


def main() -> None:
    """Reads the job, cleans the environment (which the page of `os` shows), and renders."""
    with open(sys.argv[1]) as file:
        job = json.load(file)
    os.environ.pop("LD_LIBRARY_PATH", None)
    warnings.simplefilter("ignore")
    sys.argv = ["python"]
    with open(job["results"], "w") as results, contextlib.redirect_stdout(io.StringIO()):
        render(job, results)
    os._exit(0)     # threads started by a module would keep the process alive


if __name__ == "__main__":
    main()
