"""Terminal chat: streaming, with a KV cache for the whole conversation.

    python -m serve.chat --model=runs/quickstart/rl
    echo "What is 3 + 4?" | python -m serve.chat --model=runs/quickstart/rl

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
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.chat import Conversation, Message, ask, render_prompt
from eval.respond.loaded import LoadedModel, load_model
from eval.respond.local import make_engine
from model.adapters.quantization import KINDS
from model.execution import COMPUTE_DTYPES, KV_CACHES, Execution
from model.generation.requests import Request
from model.generation.sampling import Sampling
from model.generation.speculative import MAX_DRAFT_TOKENS, PromptLookup, Speculation

CHUNK_TOKENS = 4    # that are shown at once


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
        speculation: see `Engine`.

    Attributes:
        tokens: all tokens of the conversation so far.
        num_turns: answers given.
        num_tokens: tokens drawn in these.
        num_timed: those of them that `decode_secs` measures: all but the first few of each answer.
        decode_secs: time of these.
        weight_bytes: of the model.

    Raises:
        UserError: the system message and one answer exceed `capacity`, or the model's chat template
            refuses it.
    """

    def __init__(self, model: LoadedModel, sampling: Sampling, *, system: str = "",
                 capacity: int = 1024, seed: int = 0, speculation: Speculation | None = None):
        self._model, self._tokenizer = model, model.tokenizer
        self._sampling, self._capacity, self._seed = sampling, capacity, seed
        self._system = (Message("system", system),) if system else ()
        self._engine = make_engine(model, num_slots=1, capacity=capacity,
                                   chunk_tokens=CHUNK_TOKENS, speculation=speculation)
        self.num_turns = self.num_tokens = self.num_timed = 0
        self.decode_secs, self.weight_bytes = 0.0, model.weight_bytes
        self.reset()
        self._check_fits(self._render(""))

    def reset(self) -> None:
        """Removes every turn; the system message stays."""
        self._turns: list[tuple[str, list[int]]] = []   # a message, and its answer's tokens
        self.tokens: list[int] = []

    def answer(self, text: str) -> Iterator[str]:
        """Runs a turn: yields the pieces of the answer to `text` as they are sampled.

        If the caller stops early, the answer ends there and the conversation stays usable.

        Raises:
            UserError: the message is too long for the context.
        """
        if not self._model.chat:
            self.reset()
        self.tokens, drawn = self._make_room(text), []
        self._turns.append((text, drawn))
        self.num_turns += 1
        try:
            yield from stream_text(self._tokenizer.stream(self._draw_answer(drawn)))
        finally:
            # However it ended: an answer that was cut short is read with its end.
            self.tokens += [*drawn, self._tokenizer.end]

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
        """Draws the answer; yields and adds to `drawn` each token of its text."""
        number = self._engine.submit(Request(
            tuple(self.tokens), self._sampling, self._tokenizer.stops, seed=self._seed,
            sample=self.num_turns))
        num_seen = 0
        try:
            while self._engine.is_running:
                began = time.monotonic()
                completion = self._engine.step()[number]
                new, num_seen = completion.tokens[num_seen:], len(completion.tokens)
                self.num_tokens += len(new)
                if num_seen > len(new):     # the first tokens' time has that of the prompt in it
                    self.decode_secs += time.monotonic() - began
                    self.num_timed += len(new)
                for token in new:
                    if token not in self._tokenizer.special_ids:
                        drawn.append(token)
                        yield token
        finally:
            self._engine.cancel(number)
            while self._engine.is_running:
                self._engine.step()

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
        raise UserError("--model", "is missing", "try --model=runs/quickstart/rl")
    sampling = Sampling(values.max_new_tokens, values.temperature, values.top_k, values.top_p)
    dtype = values.compute_dtype or (
        "float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = load_model(Path(values.model), Execution(dtype, kv_cache=values.kv_cache),
                       weights=values.weights,
                       adapter=None if values.adapter is None else Path(values.adapter))
    if not model.chat:
        log(f"{values.model} is a base model: it continues each text instead of answering")
        if values.system:
            raise UserError("--system", "a base model takes no system message", "leave it out")
    if (values.context_tokens or 0) > model.context_tokens:
        log(f"warning: --context_tokens={values.context_tokens}: {values.model} was trained on "
            f"rows of {model.context_tokens}")
    speculation = PromptLookup(values.draft_tokens) if values.draft_tokens else None
    return Session(model, sampling, system=values.system, seed=values.seed,
                   capacity=values.context_tokens or model.context_tokens, speculation=speculation)


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
    rate = session.num_timed / session.decode_secs if session.num_timed else 0.0
    return {"turns": session.num_turns, "tokens": session.num_tokens,
            "weight_bytes": session.weight_bytes, "tokens_per_sec": round(rate, 1)}


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
    flags.DEFINE_enum("weights", "float32", ("float32", *KINDS), "What weights are held in.")
    flags.DEFINE_enum("kv_cache", "compute", KV_CACHES, "What keys and values are held in: the "
                      "compute dtype or int8.")
    flags.DEFINE_string("adapter", None, "Folder of an adapter of the model, which is added to it.")
    flags.DEFINE_integer("draft_tokens", 0, "Tokens that are drafted from what was said before and "
                         "checked at once, by the same distribution; 0 drafts none.",
                         lower_bound=0, upper_bound=MAX_DRAFT_TOKENS)
    flags.DEFINE_integer("seed", 0, "Seed of the random draws.")
    flags.DEFINE_string("system", "", "System message of the conversation.")


if __name__ == "__main__":
    _define_flags()
    entry.run(chat)
