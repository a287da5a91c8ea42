"""The process that renders a chat template: requests on stdin, answers on stdout.

Each is a JSON value behind its length in bytes. The first request holds the template, the names of
special tokens and the CPU time of a request; each further one a list of tools, or null, and one of
renderings: messages, and whether the start of an answer follows them. An answer is
``{"texts": [...]}`` or ``{"error": "..."}``. What exceeds its CPU time ends the process (SIGPROF).
"""

from __future__ import annotations

import json
import resource
import signal
import sys

from data.templates.frames import LENGTH, MAX_MEMORY_BYTES


def main() -> None:
    """Serves requests until stdin ends."""
    from data.templates import sandbox  # Jinja is an optional package

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for limit, most in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_FSIZE, 0)):        # it has no file to write
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    template, named, max_secs = None, {}, 0.0
    while header := sys.stdin.buffer.read(LENGTH.size):
        request = json.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))
        max_secs = max_secs or request["max_secs"]
        signal.setitimer(signal.ITIMER_PROF, max_secs)
        try:
            if template is None:
                template, named = sandbox.make_template(request["template"]), request["named"]
                answer = {"texts": []}
            else:
                answer = {"texts": [
                    sandbox.render(template, messages=messages, tools=request["tools"],
                                   documents=None, add_generation_prompt=starts_answer, **named)
                    for messages, starts_answer in request["renderings"]]}
        except Exception as error:      # whatever the template did
            answer = {"error": sandbox.describe(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = json.dumps(answer).encode()
        sys.stdout.buffer.write(LENGTH.pack(len(text)) + text)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
