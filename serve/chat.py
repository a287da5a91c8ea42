"""Terminal chat: streaming, with a KV cache for the whole conversation.

    python -m serve.chat --model=runs/quickstart/dpo
    echo "What is 3 + 4?" | python -m serve.chat --model=runs/quickstart/dpo

`/reset` clears the conversation, `/quit` or Ctrl-D exits, Ctrl-C stops an answer.
"""

from __future__ import annotations

import codecs
import contextlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.chat import Conversation, Message, ask, render_prompt
from eval.respond.loaded import LoadedModel, load_model
from model.execution import COMPUTE_DTYPES, Execution
from model.families.registry import make_cache
from model.generation.generate import decode, prefill
from model.generation.sampling import Sampling, sample

# New tokens are padded to one of these lengths, so that three compiled programs suffice.
READ_LENGTHS = (32, 128, 512)

_draw = jax.jit(sample, static_argnames="sampling")


def stream_text(chunks: Iterable[bytes]) -> Iterator[str]:
    """Decodes bytes incrementally; a character is yielded with the last of its bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


class Session:
    """A conversation with a model; a turn extends the KV cache of the turns before it.

    Args:
        model: if it is a base model, each message begins a new text, and the answer is its
            continuation.
        system: the system message; "" for none.
        capacity: tokens that the cache holds, answer included.
        seed: of the random draws.

    Attributes:
        tokens: all tokens of the conversation so far.
        num_turns: answers given.
        num_tokens: tokens drawn in these.
        decode_secs: their time, without the first of each answer.

    Raises:
        UserError: the system message and one answer exceed `capacity`, or the model's chat template
            refuses it.
    """

    def __init__(self, model: LoadedModel, sampling: Sampling, *, system: str = "",
                 capacity: int = 1024, seed: int = 0):
        self._model, self._tokenizer = model, model.tokenizer
        self._sampling, self._capacity = sampling, capacity
        self._system = (Message("system", system),) if system else ()
        self._key = jax.random.key(seed)
        self.num_turns, self.num_tokens, self.decode_secs = 0, 0, 0.0
        self.reset()
        self._check_fits(self._render(""))

    def reset(self) -> None:
        """Removes every turn; the system message stays."""
        self._turns: list[tuple[str, list[int]]] = []   # a message, and its answer's tokens
        self.tokens: list[int] = []
        self._empty_cache()

    def answer(self, text: str) -> Iterator[str]:
        """Runs a turn: yields the pieces of the answer to `text` as they are sampled.

        If the caller stops early, the answer ends there and the conversation stays usable.

        Raises:
            UserError: the message is too long for the context.
        """
        if not self._model.chat:
            self.reset()
        prompt = self._make_room(text)
        cached = self.tokens[:self._num_cached]
        if cached != prompt[:len(cached)] or len(cached) == len(prompt):
            self._empty_cache()     # a template may write earlier turns in another way than before
        self.tokens, drawn = prompt, []
        self._turns.append((text, drawn))
        self.num_turns += 1
        try:
            yield from stream_text(self._tokenizer.stream(self._draw_answer(drawn)))
        finally:
            if self.tokens[-1] not in self._tokenizer.stops:  # cut short: the end is read later
                self.tokens.append(self._tokenizer.end)

    def _render(self, text: str) -> list[int]:
        """The tokens of the conversation up to the start of the answer to `text`."""
        if not self._model.chat:
            return [self._tokenizer.bos, *self._tokenizer.encode(text)]
        messages = [*self._system]
        for question, drawn in self._turns:
            messages += ask(question, self._tokenizer.decode(drawn)).messages
        conversation = Conversation((*messages, Message("user", text)))
        return render_prompt(conversation, self._tokenizer, [drawn for _, drawn in self._turns])

    def _draw_answer(self, drawn: list[int]) -> Iterator[int]:
        """Samples tokens and adds them to the cache; yields and adds to `drawn` all but a stop."""
        logits_BV = self._read()
        for index in range(self._sampling.max_new_tokens):
            began = time.monotonic()
            key = jax.random.fold_in(self._key, self.num_tokens)
            token_B = _draw(logits_BV, sampling=self._sampling, keys_B=key[None])
            logits_BV, self._cache = decode(
                self._model.params, token_B, self._cache, config=self._model.config,
                execution=self._model.execution)
            token = int(token_B[0])
            self.tokens.append(token)
            self._num_cached += 1
            self.num_tokens += 1
            if index > 0:  # the first may include compilation
                self.decode_secs += time.monotonic() - began
            if token in self._tokenizer.stops:
                return
            drawn.append(token)
            yield token

    def _read(self) -> jax.Array:
        """Adds all tokens that are missing in the cache; returns the next logits_BV."""
        unread = self.tokens[self._num_cached:]
        for first in range(0, len(unread), READ_LENGTHS[-1]):
            piece = unread[first:first + READ_LENGTHS[-1]]
            length = next(n for n in READ_LENGTHS if n >= len(piece))
            prompt_BL = np.zeros((1, length), np.int32)
            prompt_BL[0, :len(piece)] = piece
            logits_BV, self._cache = prefill(
                self._model.params, prompt_BL, np.full(1, len(piece), np.int32), self._cache,
                config=self._model.config, execution=self._model.execution)
        self._num_cached += len(unread)
        return logits_BV

    def _make_room(self, text: str) -> list[int]:
        """The prompt of `text`, from which the oldest turns are dropped if they do not fit.

        The other turns must be read again, so half of the context is freed at once.
        """
        turns, answer = self._turns, self._sampling.max_new_tokens
        prompt = self._render(text)
        if len(prompt) + answer <= self._capacity:
            return prompt
        for first in range(1, len(turns) + 1):
            self._turns = turns[first:]
            prompt = self._render(text)
            if len(prompt) + answer <= self._capacity // 2:
                break
        if len(prompt) + answer > self._capacity:
            self._turns = turns
        self._check_fits(prompt)
        log(f"the context of {self._capacity} tokens is full: the oldest "
            f"{len(turns) - len(self._turns)} of {len(turns)} turns are dropped")
        return prompt

    def _check_fits(self, prompt: list[int]) -> None:
        given, answer = len(prompt), self._sampling.max_new_tokens
        if given + answer > self._capacity:
            raise UserError(f"--context_tokens={self._capacity}",
                            f"does not hold {given} tokens of message and {answer} of answer",
                            "raise it, lower --max_new_tokens or write less")

    def _empty_cache(self) -> None:
        self._cache = make_cache(self._model.config, self._model.execution, 1, self._capacity)
        self._num_cached = 0


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising, so that the cache stays consistent."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _print_answer(session: Session, text: str) -> None:
    with _interrupts() as interrupts, contextlib.closing(session.answer(text)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            if interrupts:
                break
    print(flush=True)
    if interrupts and not sys.stdin.isatty():
        raise KeyboardInterrupt


def _messages(on_terminal: bool) -> Iterator[str]:
    """The user's messages, up to the end of the input or `/quit`; skips blank lines."""
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    while True:
        try:
            text = input("> " if on_terminal else "").strip()
        except EOFError:
            print(end="\n" if on_terminal else "")  # ends the line of the prompt
            return
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            log("\nCtrl-D or /quit exits")
            continue
        if text == "/quit":
            return
        if text:
            yield text


def _open_session() -> Session:
    values = flags.FLAGS
    if values.model is None:
        raise UserError("--model", "is missing", "try --model=runs/quickstart/dpo")
    sampling = Sampling(values.max_new_tokens, values.temperature, values.top_k, values.top_p)
    dtype = values.compute_dtype or (
        "float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = load_model(Path(values.model), Execution(compute_dtype=dtype))
    if not model.chat:
        log(f"{values.model} is a base model: it continues each text instead of answering")
        if values.system:
            raise UserError("--system", "a base model takes no system message", "leave it out")
    if (values.context_tokens or 0) > model.context_tokens:
        log(f"warning: --context_tokens={values.context_tokens}: {values.model} was trained on "
            f"rows of {model.context_tokens}")
    return Session(model, sampling, system=values.system, seed=values.seed,
                   capacity=values.context_tokens or model.context_tokens)


def chat() -> dict[str, Any]:
    """Chats until the input ends; returns the command's result."""
    session = _open_session()
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        log("/reset clears the conversation, /quit exits, Ctrl-C stops an answer")
    for text in _messages(on_terminal):
        if text == "/reset":
            session.reset()
            log("the conversation is cleared")
            continue
        try:
            _print_answer(session, text)
        except UserError as error:
            if not on_terminal:
                raise
            log(str(error))
    num_later = session.num_tokens - session.num_turns  # without each answer's first token
    rate = num_later / session.decode_secs if num_later else 0.0
    return {"turns": session.num_turns, "tokens": session.num_tokens,
            "tokens_per_sec": round(rate, 1)}


def _define_flags() -> None:
    flags.DEFINE_string("model", None, "Model directory.")
    flags.DEFINE_float("temperature", 0.7, "Divides the logits; 0 takes the likeliest token.")
    flags.DEFINE_integer("top_k", 0, "Keeps the k likeliest tokens; 0 keeps all.")
    flags.DEFINE_float("top_p", 0.95, "Keeps the smallest set of this probability; 1 keeps all.")
    flags.DEFINE_integer("max_new_tokens", 128, "Tokens after which an answer ends at the latest.")
    flags.DEFINE_integer("context_tokens", None, "Context length in tokens; by "
                         "default that of the model's training rows.")
    flags.DEFINE_enum("compute_dtype", None, COMPUTE_DTYPES, "Dtype of matmuls; by default float32 "
                      "on a CPU and bfloat16 elsewhere.")
    flags.DEFINE_integer("seed", 0, "Seed of the random draws.")
    flags.DEFINE_string("system", "", "System message of the conversation.")


if __name__ == "__main__":
    _define_flags()
    entry.run(chat)
