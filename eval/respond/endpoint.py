"""A server with OpenAI's chat-completions API, as a `Responder`."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple
from urllib.parse import urlsplit

from core.artifacts import digest
from core.errors import UserError
from data.chat import Conversation
from eval.respond.responder import Prompt, Reply, as_conversation
from model.generation.sampling import Sampling

MAX_REPLY_BYTES = 16 << 20
MAX_PAUSE_SECS = 60.0
REJECTED = (400, 413, 422)      # errors of this prompt only, e.g. too long
TRANSIENT = (408, 425, 429)     # retried, as are all from 500 on
UNREACHABLE = "unreachable"     # fault of a reply that did not come


class Retries(NamedTuple):
    """What follows a transient failure of a request (429, 5xx, time-out, broken connection or
    reply).

    Attributes:
        timeout_secs: time without data after which a request has failed.
        max_retries: further attempts, after pauses of `backoff_secs`, twice that, and so on.
        fails: whether the last of them ends the run; otherwise the reply is empty, with a fault.
    """

    timeout_secs: float
    max_retries: int
    backoff_secs: float
    fails: bool = True


class EndpointResponder:
    """A server with OpenAI's chat-completions API, used over several connections at once.

    Args:
        url: up to the version, e.g. ``http://127.0.0.1:8000/v1``.
        model: the server's name of the model.
        key_variable: environment variable that holds the key; "" if the server needs none.

    Raises:
        UserError: the URL is invalid, or the variable holds no key.
    """

    def __init__(self, url: str, model: str, sampling: Sampling, *, key_variable: str,
                 num_connections: int, retries: Retries):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise UserError(f"endpoint={url!r}, endpoint_model={model!r}",
                            "is no URL of a server with the name of a model",
                            "write http://host:port/v1, and the server's name of the model")
        self._url, self._model, self._sampling = url.rstrip("/"), model, sampling
        self._key = _read_key(key_variable)
        self._num_connections, self._retries = num_connections, retries
        self._open = urllib.request.build_opener(_NoRedirect).open
        self.name = model

    def respond(self, prompts: Sequence[Prompt], seed: int,
                keep: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """Sends all prompts; see `Responder`.

        Raises:
            UserError: a request failed for good.
        """
        with ThreadPoolExecutor(self._num_connections) as pool:
            numbers = {pool.submit(self._send, as_conversation(prompt), seed): number
                       for number, prompt in enumerate(prompts)}
            try:
                for future in as_completed(numbers):
                    if keep is not None:
                        keep(numbers[future], future.result())
                return [future.result() for future in numbers]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _send(self, prompt: Conversation, seed: int) -> Reply:
        messages = prompt.to_dict()["messages"]
        body = json.dumps({
            "model": self._model, "messages": messages,
            "max_tokens": self._sampling.max_new_tokens, "top_p": self._sampling.top_p,
            "temperature": self._sampling.temperature,
            "seed": int(digest([seed, messages]), 16) >> 33}).encode()
        for attempt in itertools.count():
            try:
                return self._request(body)
            except _TransientError as error:
                if attempt == self._retries.max_retries:
                    if not self._retries.fails:
                        return Reply("", UNREACHABLE)
                    raise self._failure(f"{error}, attempt {attempt + 1} of {attempt + 1}",
                                        "check the server and run again to go on") from None
                pause_secs = max(self._retries.backoff_secs * 2 ** attempt, error.retry_after_secs)
                time.sleep(min(pause_secs, MAX_PAUSE_SECS))

    def _request(self, body: bytes) -> Reply:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self._url}/chat/completions", body, headers)
        try:
            with self._open(request, timeout=self._retries.timeout_secs) as response:
                return _parse(response.read(MAX_REPLY_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                return self._judge_status(error)
        except TimeoutError:
            raise _TransientError(f"is silent for {self._retries.timeout_secs} s") from None
        except urllib.error.URLError as error:
            raise _TransientError(f"cannot be reached ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(f"broke off ({error!r})") from None

    def _judge_status(self, error: urllib.error.HTTPError) -> Reply:
        if error.code in REJECTED:
            return Reply("", f"rejected_{error.code}")
        body = " ".join(error.read(2000).decode(errors="replace").split())[:200]
        message = f"answers {error.code}: {body}" if body else f"answers {error.code}"
        if error.code in TRANSIENT or error.code >= 500:
            retry_after = error.headers.get("Retry-After", "")
            raise _TransientError(message, float(retry_after) if retry_after.isdigit() else 0.0)
        raise self._failure(message, "check endpoint, endpoint_model and the key")

    def _failure(self, message: str, remedy: str) -> UserError:
        if self._key:   # some servers echo it
            message = message.replace(self._key, "<key>")
        return UserError(f"endpoint={self._url!r}", message, remedy)


class _TransientError(Exception):
    """A failure after which another attempt may succeed."""

    def __init__(self, message: str, retry_after_secs: float = 0.0):
        super().__init__(message)
        self.retry_after_secs = retry_after_secs


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would send the key to a host of the server's choice."""

    def redirect_request(self, *arguments):
        return None


def _read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise UserError(f"key_variable={variable!r}", "this environment variable holds "
                        "no key", f"export {variable}=..., or leave key_variable empty")
    return key


def _parse(body: bytes) -> Reply:
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, LookupError, TypeError):
        raise _TransientError(f"sends no chat completion ({body[:80]!r})") from None
    return Reply(text, "truncated" if choice.get("finish_reason") == "length" else "",
                 _usage(answer.get("usage")))


def _usage(usage: object) -> tuple[int, int] | None:
    """Tokens of the prompt and of the answer, where the server counts them."""
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] \
        if isinstance(usage, dict) else [None]
    return tuple(counts) if all(type(count) is int for count in counts) else None
