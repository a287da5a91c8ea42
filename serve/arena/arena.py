"""The arena: begins battles, draws both answers, takes votes."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence

from core.errors import UserError
from serve.api.job import Asked, ClientGone, Job, ask_worker, render_chat
from serve.api.schema import Settings, parse_chat
from serve.api.worker import Worker
from serve.arena.battles import (
    DRAWING,
    OVER,
    READY,
    VOTED,
    VOTING,
    Battle,
    Battles,
    Turn,
)
from serve.arena.pairs import Pairs
from serve.arena.steps import Change, Steps
from serve.arena.store import VoteStore
from serve.web.errors import WebError

DRAWS = {"temperature": 0.7, "top_p": 0.95}     # of both sides, as `serve.chat` has them
MIN_TOKENS, MAX_TOKENS = 16, 1024               # of an answer
MAX_TURNS = 8
TICK_SECS = 0.1     # between two looks at what may be shown

Draft = tuple[Worker, list[Asked], Settings]      # an answer that is not submitted yet


def check_models(num_chat: int) -> None:
    """Raises `UserError` for so many chat models that no two can meet."""
    if num_chat < 2:
        raise UserError("--votes", "needs at least two chat models",
                        "name another --model, or leave --votes out")


class Arena:
    """Battles between the chat models that are served.

    Args:
        workers: those that write text, by the names of models and of adapters.
        rng: of pairs and sides.

    Raises:
        UserError: fewer than two of them are chat models.
    """

    def __init__(self, workers: Mapping[str, Worker], store: VoteStore, request_secs: float, *,
                 rng: random.Random | None = None):
        self.store, self.battles = store, Battles()
        self._workers = {name: worker for name, worker in workers.items() if worker.model.chat}
        check_models(len(self._workers))
        self._pairs = Pairs(self.names, rng or random.SystemRandom())
        self._request_secs = request_secs
        least = min(worker.capacity for worker in self._workers.values())
        self._max_tokens = min(MAX_TOKENS, least // 2)  # the same whoever the two are

    @property
    def names(self) -> list[str]:
        """The models that may meet."""
        return [*self._workers]

    async def ask(self, mark: str, prompt: str) -> tuple[Battle, list[Job]]:
        """Begins both answers to a prompt, in a battle or, where `mark` is "", in a new one.

        Raises:
            WebError: in words that are the same whichever side is the reason.
        """
        battle = self.find(mark) if mark else await self._begin()
        if battle.turns and battle.state != READY:
            raise WebError(409, "this battle takes no prompt now", "not_ready")
        if len(battle.turns) >= MAX_TURNS:
            raise WebError(409, f"a battle has at most {MAX_TURNS} turns: vote", "too_many_turns")
        battle.turns.append(Turn(prompt))
        battle.state = DRAWING
        try:
            return battle, self._submit(await asyncio.to_thread(self._prepare, battle))
        except WebError as error:
            if error.status not in (429, 503):
                battle.state = OVER
                raise _refusal(error) from None
            battle.turns.pop()
            battle.state = READY
            if not battle.turns:
                self.battles.drop(battle)
            raise
        except BaseException:
            battle.state = OVER
            raise

    async def answer(self, battle: Battle, jobs: Sequence[Job], gone: asyncio.Task[None],
                     send: Callable[[Change], Awaitable[None]]) -> None:
        """Sends both answers in step, and makes the battle ready for a vote at their end.

        Args:
            gone: is done once nobody reads any more.

        Raises:
            WebError: a side failed.
            ClientGone: see `gone`.
        """
        steps, failures = Steps(), []

        async def read(side: int, job: Job) -> None:
            try:
                async for _, piece in job.pieces():
                    steps.push(side, piece.text, piece.finish)
            except WebError as error:
                failures.append(error)

        readers = [asyncio.create_task(read(side, job)) for side, job in enumerate(jobs)]
        try:
            while not steps.is_over:
                await asyncio.wait([gone], timeout=TICK_SECS)
                if gone.done():
                    raise ClientGone
                if failures:
                    raise _refusal(failures[0])
                change = steps.release()
                if steps.is_over:   # before a browser can read it, and vote
                    battle.finish(steps.texts, steps.finishes, self.battles.clock())
                if change:
                    await send(change)
        except ClientGone:
            if all(steps.finishes):     # a page that is loaded again finds both answers
                battle.finish(steps.texts, steps.finishes, self.battles.clock())
            raise
        finally:
            if battle.state == DRAWING:
                battle.state = OVER
            for reader, job in zip(readers, jobs):
                reader.cancel()
                job.cancel()

    async def vote(self, mark: str, verdict: str, annotator: str) -> Battle:
        """Stores a vote; raises `WebError` where there is nothing to vote on."""
        battle = self.find(mark)
        if battle.state in (VOTING, VOTED):
            raise _voted()
        if battle.state == DRAWING:
            raise WebError(409, "the answers are not finished", "unfinished")
        if battle.state == OVER:
            raise WebError(409, "this battle ended without both answers, and counts no vote",
                           "no_vote")
        now = self.battles.clock()
        meta = {"time": round(now, 3), "secs": round(now - battle.ready_at, 3),
                "fingerprints": [self._workers[name].fingerprint(name) for name in battle.names]}
        if annotator:
            meta["annotator"] = annotator
        battle.state = VOTING   # so that no second vote comes between
        try:
            await asyncio.to_thread(self.store.add, battle.preference(verdict, meta))
        except OSError as error:
            battle.state = READY
            raise WebError(507, f"the vote could not be stored ({error.strerror or error}): free "
                           "space, then vote again", "not_stored") from None
        battle.state, battle.verdict = VOTED, verdict
        return battle

    def find(self, mark: str) -> Battle:
        """A battle by its id; raises `WebError` if it is unknown."""
        battle = self.battles.find(mark)
        if battle is None and mark in self.store:
            raise _voted()
        if battle is None:
            raise WebError(404, "there is no such battle, or not any more", "unknown_battle")
        return battle

    async def _begin(self) -> Battle:
        names = await asyncio.to_thread(self._pairs.draw, [*self.store.outcomes])
        return self.battles.begin(names)

    def _prepare(self, battle: Battle) -> list[Draft]:
        """What is drawn for both sides: by the same settings, but independently."""
        asked = [parse_chat({
            "model": name, "messages": battle.conversation(side).to_dict()["messages"],
            "seed": secrets.randbits(32), **DRAWS}) for side, name in enumerate(battle.names)]
        workers = [self._workers[name] for name in battle.names]
        prompts = [render_chat(worker.model, one, worker.call_form)
                   for worker, one in zip(workers, asked)]
        room = min(worker.capacity - len(prompt) for worker, prompt in zip(workers, prompts))
        if room < MIN_TOKENS:
            raise WebError(400, "too long", "context_length_exceeded")
        limit = min(self._max_tokens, room)
        battle.turns[-1].settings = {**DRAWS, "max_tokens": limit,
                                     "seeds": [one.settings.seed for one in asked]}
        settings = [dataclasses.replace(one.settings, max_tokens=limit) for one in asked]
        return [(worker, ask_worker(worker, name, prompt, own, "messages"), own)
                for worker, name, prompt, own in zip(workers, battle.names, prompts, settings)]

    def _submit(self, drafts: Sequence[Draft]) -> list[Job]:
        jobs: list[Job] = []
        try:
            for draft in drafts:
                jobs.append(Job(*draft, self._request_secs))
        except WebError:
            for job in jobs:
                job.cancel()
            raise
        return jobs


def _refusal(error: WebError) -> WebError:
    """An error of one side, without what would tell which model it is."""
    if error.code == "context_length_exceeded":
        return WebError(400, "this is too long for one of the two models: the battle counts no "
                        "vote; begin one with less text", error.code)
    if error.code == "closing":
        return error
    return WebError(502, "one of the two answers failed: the battle counts no vote", "failed")


def _voted() -> WebError:
    return WebError(409, "this battle has its vote", "voted")
