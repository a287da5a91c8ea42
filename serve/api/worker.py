"""The thread that owns a model's engine: takes answers to draw from a queue, hands out pieces."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from core.progress import log
from eval.respond.loaded import LoadedModel
from eval.respond.local import make_engine
from model.generation.requests import (
    CANCELLED,
    FAILED,
    REFUSED,
    Budget,
    Completion,
    Request,
    RequestFailed,
)
from serve.api.calls import find_form
from serve.api.grammar import Grammars
from serve.api.metrics import ModelMetrics
from serve.api.scoring import Echo, Scorer
from serve.api.streaming import Piece, TextWriter
from serve.api.waiting import Waiting
from serve.web.errors import WebError

BUDGET = Budget(draw_tokens=4, prefill_tokens=512)
IDLE_SECS = 0.5     # after which a worker without work looks whether it should end


class Answer:
    """One answer that is drawn.

    Args:
        request: without stop texts, which the writer finds; None draws nothing.
        writer: of its text.
        emit: called on the worker's thread with each piece; the last has a finish or an error.
        deadline: by `time.monotonic`, at which it fails.
        echo: the prompt if the answer begins with it and its scores.
    """

    def __init__(self, request: Request | None, writer: TextWriter, emit: Callable[[Piece], None],
                 deadline: float, echo: Echo | None = None):
        self.request, self.writer, self.emit, self.deadline = request, writer, emit, deadline
        self.echo = echo
        self.began, self.num_seen = time.monotonic(), 0
        self.number: int | None = None      # in the engine
        self.is_over = self.is_cancelled = False


class Worker:
    """Answers requests to one model.

    Args:
        num_slots: answers that are drawn at once.
        capacity: tokens of prompt and answer.
        max_queue: answers that may wait for a slot.
        metrics: what is counted.
        mesh: that the model is sharded over.
        adapters: names of the model's adapters, in their order.

    Attributes:
        adapters: place of each adapter; see `Request.adapter`.
        grammars: compiled grammars of the model's tokens.
        call_form: how the model writes calls of tools; None if it is not known.
    """

    def __init__(self, model: LoadedModel, *, num_slots: int, capacity: int, max_queue: int,
                 metrics: ModelMetrics, mesh: Mesh | None = None, adapters: Sequence[str] = ()):
        self.model, self.capacity, self.most = model, capacity, num_slots + max_queue
        self._num_slots, self._metrics, self._mesh = num_slots, metrics, mesh
        self.adapters = {name: place for place, name in enumerate(adapters, start=1)}
        self.grammars, self._scorer = Grammars(model), Scorer(model, capacity)
        self.call_form = find_form(model.tokenizer, model.name) if model.chat else None
        self._waiting = Waiting()
        self._answers: dict[int, Answer] = {}
        self._counts: Counter[str] = Counter()
        self._change = threading.Condition()
        self._num_open, self._is_closing, self._limit = 0, False, float("inf")
        self._engine = self._open_engine()
        self._thread = threading.Thread(target=self._run, name=model.name, daemon=True)

    def fingerprint(self, name: str) -> str:
        """What tells the model from others, with the adapter of that name."""
        return f"{self.model.name}+{name}" if name in self.adapters else self.model.name

    def warm_up(self) -> None:
        """Compiles everything that requests may need; before `start`."""
        with self._on_mesh():
            self._engine.warm_up()
            self._scorer.warm_up()

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._is_closing

    @property
    def num_open(self) -> int:
        """Answers that wait or are drawn."""
        return self._num_open

    def check_room(self, count: int) -> None:
        """Raises `WebError` if `count` further answers exceed the queue."""
        if count > self.most:
            raise WebError(400, f"{count} answers are asked for at once, of at most {self.most}",
                           param="n", code="invalid_value")
        if self._num_open + count > self.most:
            raise WebError(429, "the queue is full: try again", code="queue_full")

    def submit(self, answers: list[Answer]) -> None:
        """Queues answers, all or none; raises `WebError` as `check_room`, and when it closes."""
        with self._change:
            if self._is_closing:
                raise WebError(503, "the server is closing", code="closing")
            self.check_room(len(answers))
            self._num_open += len(answers)
            self._waiting.add(answers)
            self._change.notify()

    def cancel(self, answers: list[Answer]) -> None:
        """Ends answers whose client is gone; those that are over are left."""
        with self._change:
            for answer in answers:
                answer.is_cancelled = True
            self._change.notify()

    def close(self, secs: float = 0.0) -> None:
        """Takes no more answers; returns when all are over. They have some seconds, then fail."""
        with self._change:
            self._is_closing, self._limit = True, time.monotonic() + secs
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _on_mesh(self) -> Any:
        """Makes the mesh that of this thread."""
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _open_engine(self) -> Any:
        with self._on_mesh():
            return make_engine(self.model, num_slots=self._num_slots, capacity=self.capacity,
                               budget=BUDGET)

    def _run(self) -> None:
        try:
            with self._on_mesh():
                self._loop()
        except Exception:
            traceback.print_exc()
            log(f"{self.model.name}: its engine cannot be opened anew, and answers no more")
            with self._change:
                self._is_closing = True     # nothing is submitted after it
            self._fail_all([*self._answers.values(), *self._scorer.waiting, *self._waiting])

    def _loop(self) -> None:
        while True:
            with self._change:
                while not (self._waiting or self._scorer.waiting or self._engine.is_running
                           or self._is_closing):
                    self._change.wait(IDLE_SECS)
                if self._is_closing and not self._num_open:
                    return
                self._end_late()
                # No more than slots wait in the engine, where the first comes first.
                new = self._waiting.take(self._num_slots - self._engine.num_waiting)
            for answer in self._scorer.step(new):
                self._admit(answer)
            try:
                changed = self._engine.step()
            except RequestFailed:
                traceback.print_exc()       # of the request's own code; it comes as failed
                continue
            except Exception:
                traceback.print_exc()
                self._restart()
                continue
            for number, completion in changed.items():
                if (answer := self._answers.get(number)) is not None:
                    self._hand_out(answer, completion)
                if completion.finish:
                    self._answers.pop(number, None)
            self._count()

    def _admit(self, answer: Answer) -> None:
        try:
            if answer.echo is not None:
                answer.emit(answer.echo.piece(self.model.tokenizer))
            if answer.request is None:
                self._finish(answer, Piece(finish="length"))
                return
            answer.number = self._engine.submit(answer.request)
            self._answers[answer.number] = answer
        except Exception as error:      # it was checked before: a fault of ours
            self._fail(answer, error)

    def _end_late(self) -> None:
        """Ends answers that take too long or that nobody waits for."""
        now = time.monotonic()
        for answer in (*self._answers.values(), *self._scorer.waiting, *self._waiting):
            if not answer.is_over and (answer.is_cancelled
                                       or now > min(answer.deadline, self._limit)):
                self._engine.cancel(answer.number)
                if answer.is_cancelled:
                    self._finish(answer, Piece(error=WebError(499, "the client is gone")))
                elif self._is_closing:
                    self._finish(answer, Piece(error=WebError(
                        503, "the server is closing", code="closing")))
                else:
                    self._finish(answer, Piece(error=WebError(
                        504, "the answer takes too long", code="timeout")))

    def _hand_out(self, answer: Answer, completion: Completion) -> None:
        """Emits what is new of an answer; a failure is that of this answer alone."""
        if answer.is_over:
            return
        try:
            seen, answer.num_seen = answer.num_seen, len(completion.tokens)
            if not seen and answer.num_seen:
                self._metrics.first_token.observe(time.monotonic() - answer.began)
            if completion.finish in (FAILED, REFUSED, CANCELLED):
                raise RuntimeError(f"the engine's answer is {completion.finish}")
            piece = self._write(answer, completion, seen)
            if piece.finish:
                self._engine.cancel(answer.number)      # one that a stop text ended
                self._finish(answer, piece)
            elif piece.text or piece.marks:
                answer.emit(piece)
        except Exception as error:
            traceback.print_exc()
            self._engine.cancel(answer.number)
            self._fail(answer, error)

    def _write(self, answer: Answer, completion: Completion, seen: int) -> Piece:
        text, marks = answer.writer.push(completion.tokens[seen:], completion.logps[seen:],
                                         completion.tops[seen:])
        finish = "stop" if answer.writer.is_stopped else completion.finish
        if finish:
            rest, more = answer.writer.end()
            text, marks = text + rest, marks + more
            finish = "stop" if answer.writer.is_stopped else finish
        return Piece(text, marks, finish, len(completion.tokens))

    def _fail(self, answer: Answer, error: Exception) -> None:
        self._finish(answer, Piece(error=WebError(
            500, f"the answer failed ({type(error).__name__})", code="internal_error")))

    def _finish(self, answer: Answer, piece: Piece) -> None:
        answer.is_over = True
        with self._change:
            self._num_open -= 1
        try:
            answer.emit(piece)
        except RuntimeError:    # its event loop is closed
            answer.is_cancelled = True

    def _restart(self) -> None:
        """Fails all answers and opens a new engine: the state of the old one is unknown."""
        log(f"{self.model.name}: the engine failed and is opened anew")
        del self._engine    # first, as memory may not hold both
        self._engine = self._open_engine()
        self._counts.clear()
        self._fail_all([*self._answers.values()])
        self._answers.clear()

    def _fail_all(self, answers: list[Answer]) -> None:
        for answer in answers:
            if not answer.is_over:
                self._fail(answer, RuntimeError())

    def _count(self) -> None:
        """Passes the engine's counts on to the metrics."""
        counts = self._engine.counts
        for name in ("read", "reused", "drawn"):
            self._metrics.tokens[name].add(counts[name] - self._counts[name])
        self._counts = counts.copy()
        self._metrics.busy.set(self._engine.num_busy)
        self._metrics.waiting.set(max(0, self._num_open - self._engine.num_busy))
