"""The process that renders a chat template: requests on stdin, answers on stdout.

Each is a JSON value behind its length in bytes. The first request holds the template and the names
of special tokens, each further one a list of renderings: messages, and whether the start of an
answer follows them. An answer is ``{"texts": [...]}`` or ``{"error": "..."}``. What exceeds its CPU
time ends the process (SIGPROF).
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from typing import Any

import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.templates.frames import LENGTH, MAX_CHARS, MAX_MEMORY_BYTES, MAX_SECS


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
    """Renders a template; raises `ValueError` when it writes too much."""
    pieces, size = [], 0
    for piece in template.generate(**values):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_CHARS:
            raise ValueError(f"writes more than {MAX_CHARS:,} characters")
    return "".join(pieces)


def main() -> None:
    """Serves requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for limit, most in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_FSIZE, 0)):        # it has no file to write
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    template, named = None, {}
    while header := sys.stdin.buffer.read(LENGTH.size):
        request = json.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))
        signal.setitimer(signal.ITIMER_PROF, MAX_SECS)
        try:
            if template is None:
                template, named = make_template(request["template"]), request["named"]
                answer = {"texts": []}
            else:
                answer = {"texts": [
                    render(template, messages=messages, add_generation_prompt=starts_answer,
                           tools=None, documents=None, **named)
                    for messages, starts_answer in request]}
        except Exception as error:      # whatever the template did
            answer = {"error": _describe(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = json.dumps(answer).encode()
        sys.stdout.buffer.write(LENGTH.pack(len(text)) + text)
        sys.stdout.buffer.flush()


def _describe(error: Exception) -> str:
    message = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"reaches for what no template may use ({message})"
    if isinstance(error, jinja2.exceptions.TemplateSyntaxError):
        return f"is no Jinja template ({message})"
    if isinstance(error, MemoryError):
        return f"needs more than {MAX_MEMORY_BYTES >> 20} MiB of memory"
    if isinstance(error, Refused):
        return f"refuses this conversation ({message})"
    return f"fails ({type(error).__name__}: {message})"


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


if __name__ == "__main__":
    main()
