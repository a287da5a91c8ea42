"""Jinja as `transformers` offers it to chat templates, in a sandbox; used by the child alone."""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.templates.frames import MAX_CHARS, MAX_MEMORY_BYTES


class Generation(jinja2.ext.Extension):
    """The tags `generation` and `endgeneration`, which mark answers: their contents as they are."""

    tags = {"generation"}   # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Any) -> Any:
        """Parses the tag; see `jinja2.ext.Extension`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def make_template(source: str) -> jinja2.Template:
    """Compiles a template in a sandbox, with what `transformers` offers to templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    return environment.from_string(source)


def render(template: jinja2.Template, **values: Any) -> str:
    """Renders a template; raises `TooLong` when it writes too much."""
    pieces, size = [], 0
    for piece in template.generate(**values):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_CHARS:
            raise TooLong
    return "".join(pieces)


def describe(error: Exception) -> str:
    """Says in one line what went wrong in a template."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"reaches for what no template may use ({message})"
    if isinstance(error, jinja2.exceptions.TemplateSyntaxError):
        return f"is no Jinja template ({message})"
    if isinstance(error, MemoryError):
        return f"needs more than {MAX_MEMORY_BYTES >> 20} MiB of memory"
    if isinstance(error, TooLong):
        return f"writes more than {MAX_CHARS:,} characters"
    if isinstance(error, Refused):
        return f"refuses this conversation ({message})"
    return f"fails ({type(error).__name__}: {message})"


class TooLong(Exception):
    """A rendering has more characters than any conversation needs."""


class Refused(jinja2.exceptions.TemplateError):
    """Raised by a template itself."""


def _raise(message: str) -> None:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)
