"""Responses in OpenAI's form: whole, and as events of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from core.json_text import format_json
from data.tokenizers.tokenizer import Tokenizer
from serve.api.job import Whole
from serve.api.schema import Settings
from serve.api.streaming import Mark, Piece, Top


def count_usage(num_prompt: int, num_drawn: int) -> dict[str, int]:
    """Tokens of prompts and answers."""
    return {"prompt_tokens": num_prompt, "completion_tokens": num_drawn,
            "total_tokens": num_prompt + num_drawn}


def event(data: Any) -> bytes:
    """An event of a stream (server-sent events)."""
    return b"data: " + format_json(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Reply:
    """The response to one request for completions.

    Args:
        model: its name for clients.
        fingerprint: what tells its weights from others'.
        echoes: text that stands before each choice, whose pieces do not begin with it.
    """

    prefix, kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, fingerprint: str, tokenizer: Tokenizer, settings: Settings,
                 echoes: Sequence[str]):
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()),
                      "model": model, "system_fingerprint": fingerprint}
        self._tokenizer, self._settings, self._echoes = tokenizer, settings, echoes
        self._num_drawn, self._num_calls = [0] * len(echoes), [0] * len(echoes)
        self._num_prompt = 0

    def whole(self, wholes: Sequence[Whole], num_prompt: int) -> dict[str, Any]:
        """The response with all choices."""
        choices = [self._choice(index, whole) for index, whole in enumerate(wholes)]
        usage = count_usage(num_prompt, sum(whole.num_tokens for whole in wholes))
        return self._head | {"object": self.kind, "choices": choices, "usage": usage}

    def begin(self, num_prompt: int) -> list[bytes]:
        """The events before the first piece; all that follow count the tokens of the prompts."""
        self._num_prompt = num_prompt
        return [event(self._chunk({"index": index, "text": echo, "logprobs": None,
                                   "finish_reason": None}))
                for index, echo in enumerate(self._echoes) if echo]

    def piece(self, index: int, piece: Piece) -> bytes:
        """The events of a piece."""
        self._num_drawn[index] = piece.num_tokens
        return event(self._chunk({
            "index": index, "text": piece.text, "logprobs": self._logprobs(piece.marks),
            "finish_reason": piece.finish or None}))

    def end(self) -> bytes:
        """The last events."""
        if not self._settings.with_usage:
            return DONE
        return event(self._chunk() | {"usage": self._count()}) + DONE

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        so_far = self._count() if self._settings.with_usage_so_far else None
        usage = {"usage": so_far} if self._settings.with_usage else {}
        return self._head | {"object": self.piece_kind, "choices": choices} | usage

    def _count(self) -> dict[str, int]:
        return count_usage(self._num_prompt, sum(self._num_drawn))

    def _choice(self, index: int, whole: Whole) -> dict[str, Any]:
        return {"index": index, "text": self._echoes[index] + whole.text,
                "logprobs": self._logprobs(whole.marks), "finish_reason": whole.finish}

    def _logprobs(self, marks: Sequence[Mark]) -> dict[str, Any] | None:
        if not self._settings.with_logps:
            return None
        tops = [None if mark.logp is None else self._by_name(mark.top) for mark in marks]
        return {"tokens": [self._name(mark.token) for mark in marks],
                "token_logprobs": [mark.logp for mark in marks],
                "top_logprobs": tops if self._settings.num_top else None,
                "text_offset": [mark.offset for mark in marks]}

    def _by_name(self, top: Top) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logp in top:     # of several tokens with one name the likeliest
            found.setdefault(self._name(token), logp)
        return found

    def _name(self, token: int) -> str:
        """Its text; of a part of a character its bytes, as OpenAI names it."""
        found = self._bytes(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _bytes(self, token: int) -> bytes:
        if token in self._tokenizer.special_ids:
            return self._tokenizer.decode([token]).encode()
        known = token < self._tokenizer.vocab_size      # a model may have further rows
        return self._tokenizer.list_bytes([token])[0] if known else b""


class ChatReply(Reply):
    """The response to one request for chat completions."""

    prefix, kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def begin(self, num_prompt: int) -> list[bytes]:
        """See `Reply`: the role of each choice."""
        self._num_prompt = num_prompt
        return [event(self._chunk(self._delta(index, {"role": "assistant", "content": ""})))
                for index in range(len(self._echoes))]

    def piece(self, index: int, piece: Piece) -> bytes:
        """See `Reply`."""
        self._num_drawn[index] = piece.num_tokens
        events = b""
        if piece.text or piece.marks:
            events = event(self._chunk(self._delta(index, {"content": piece.text}, piece.marks)))
        for call in piece.calls:
            written = {"index": self._num_calls[index]} | call.to_dict()
            events += event(self._chunk(self._delta(index, {"tool_calls": [written]})))
            self._num_calls[index] += 1
        if piece.finish:
            events += event(self._chunk(
                self._delta(index, {}) | {"finish_reason": piece.finish}))
        return events

    def _delta(self, index: int, delta: dict[str, Any],
               marks: Sequence[Mark] = ()) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": None,
                "logprobs": self._logprobs(marks) if marks else None}

    def _choice(self, index: int, whole: Whole) -> dict[str, Any]:
        message = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message |= {"content": whole.text or None,
                        "tool_calls": [call.to_dict() for call in whole.calls]}
        return {"index": index, "message": message, "logprobs": self._logprobs(whole.marks),
                "finish_reason": whole.finish}

    def _logprobs(self, marks: Sequence[Mark]) -> dict[str, Any] | None:
        if not self._settings.with_logps:
            return None
        return {"content": [self._entry(mark.token, mark.logp) | {
            "top_logprobs": [self._entry(token, logp) for token, logp in mark.top]}
            for mark in marks], "refusal": None}

    def _entry(self, token: int, logp: float) -> dict[str, Any]:
        return {"token": self._name(token), "logprob": logp, "bytes": [*self._bytes(token)]}
