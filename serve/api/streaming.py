"""Text as it comes: whole characters, and nothing of a stop text."""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Collection, Iterator, Sequence

from data.tokenizers.tokenizer import Tokenizer
from serve.api.calls import Call

Top = Sequence[tuple[int, float]]       # the likeliest tokens with their log-probabilities


@dataclasses.dataclass(frozen=True)
class Mark:
    """A token of an answer.

    Attributes:
        token: its id.
        logp: its log-probability in nats; None of a prompt's first token.
        top: the likeliest tokens in its place.
        offset: characters of the text before it.
    """

    token: int
    logp: float | None
    top: Top
    offset: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: the new text.
        marks: the tokens whose text begins in it.
        finish: "stop", "length" or "tool_calls" if it is the last one.
        num_tokens: drawn so far, the stop token included.
        error: what ended the answer instead; see `WebError`.
        calls: of tools, which are no part of the text.
    """

    text: str = ""
    marks: tuple[Mark, ...] = ()
    finish: str = ""
    num_tokens: int = 0
    error: Exception | None = None
    calls: tuple[Call, ...] = ()


class TextWriter:
    """Writes the text of an answer from its tokens.

    A character is written with the last of its bytes, and what may begin a stop text once it is
    known not to: all pieces together are the text of all tokens, up to the first stop text.

    Args:
        stops: tokens that end the answer, and are no text.
        stop_texts: texts that end it.
        begin: characters of an echoed prompt before it.
        spoken: special tokens that are text here: their names.

    Attributes:
        is_stopped: whether a stop text was found; what follows it is not read.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[int], stop_texts: Sequence[str],
                 begin: int = 0, spoken: Collection[int] = ()):
        self._silent = tokenizer.special_ids | {*stops}
        self._names = {token: tokenizer.decode([token]) for token in spoken}
        self._stop_texts = tuple(stop_texts)
        self._fed: deque[int] = deque()
        self._bytes = tokenizer.stream(self._feed())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held, self._num_written, self.is_stopped = "", begin, False
        self._marks: deque[Mark] = deque()

    def push(self, tokens: Sequence[int], logps: Sequence[float | None],
             tops: Sequence[Top]) -> tuple[str, tuple[Mark, ...]]:
        """Reads tokens; returns the text that is certain now, and the tokens that begin in it.

        Args:
            tops: of each token, or nothing.
        """
        for place, (token, logp) in enumerate(zip(tokens, logps, strict=True)):
            if self.is_stopped:
                break
            offset = self._num_written + len(self._held)
            self._marks.append(Mark(token, logp, tops[place] if tops else (), offset))
            if token in self._names:
                self._held += self._decoder.decode(b"", final=True) + self._names[token]
                self._find_stop()
            elif token not in self._silent:
                self._fed.append(token)
                self._held += self._decoder.decode(next(self._bytes))
                self._find_stop()
        return self._write(len(self._held) if self.is_stopped else self._num_certain())

    def end(self) -> tuple[str, tuple[Mark, ...]]:
        """What is left once the answer has ended; half a character becomes U+FFFD."""
        if not self.is_stopped:
            self._held += self._decoder.decode(b"", final=True)
            self._find_stop()
        text, marks = self._write(len(self._held))
        if self.is_stopped:
            return text, marks
        marks, self._marks = (*marks, *self._marks), deque()
        return text, marks

    def _feed(self) -> Iterator[int]:
        while True:
            yield self._fed.popleft()

    def _find_stop(self) -> None:
        places = [self._held.find(stop) for stop in self._stop_texts]
        if found := [place for place in places if place >= 0]:
            self._held, self.is_stopped = self._held[:min(found)], True

    def _num_certain(self) -> int:
        """Characters before the first place in which a stop text may have begun."""
        longest = max(map(len, self._stop_texts), default=1) - 1
        for begin in range(max(0, len(self._held) - longest), len(self._held)):
            if any(stop.startswith(self._held[begin:]) for stop in self._stop_texts):
                return begin
        return len(self._held)

    def _write(self, count: int) -> tuple[str, tuple[Mark, ...]]:
        text, self._held = self._held[:count], self._held[count:]
        self._num_written += len(text)
        marks = []
        while self._marks and self._marks[0].offset < self._num_written:
            marks.append(self._marks.popleft())
        return text, tuple(marks)
