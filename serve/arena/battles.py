"""Battles that are not over: two models, their sides, and what was asked and answered."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from core.page.markup import visible
from data.chat import Conversation, Message
from data.layouts.orders import VOTES
from data.preferences import Preference
from serve.web.errors import WebError

VERDICTS = ("a", "b", "tie", "both_bad")
DRAWING, READY, OVER, VOTING, VOTED = "drawing", "ready", "over", "voting", "voted"
SOURCE = "person"           # of the preferences
MAX_BATTLES = 256           # in memory
KEEP_SECS = 3600.0          # since somebody last did anything about a battle


@dataclasses.dataclass
class Turn:
    """What a person asked, and both answers once they are shown whole.

    Attributes:
        prompt: what was asked.
        texts, finishes: of both sides; see `data.preferences`.
        settings: how both were drawn.
    """

    prompt: str
    texts: tuple[str, str] = ("", "")
    finishes: tuple[str, str] = ("", "")
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Battle:
    """Two models that answer the same person, each with a history of its own.

    Attributes:
        id: what the person's browser knows of it.
        names: of the models, in the order of their sides.
        state: `DRAWING` answers, `READY` for a vote, `OVER` without one, `VOTING` while a vote is
            stored, or `VOTED`.
        touched: when somebody did anything about it, by the clock of `Battles`.
        ready_at: when both answers were shown.
        verdict: of `VERDICTS`.
    """

    names: tuple[str, str]
    touched: float
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    turns: list[Turn] = dataclasses.field(default_factory=list)
    state: str = DRAWING
    verdict: str = ""
    ready_at: float = 0.0

    def finish(self, texts: tuple[str, str], finishes: tuple[str, str], now: float) -> None:
        """Ends a turn with both answers."""
        last = self.turns[-1]
        last.texts, last.finishes = texts, finishes
        self.state, self.touched, self.ready_at = READY, now, now

    def conversation(self, side: int) -> Conversation:
        """What a side's model has to answer."""
        messages = []
        for turn in self.turns[:-1]:
            messages += [Message("user", turn.prompt), Message("assistant", turn.texts[side])]
        return Conversation((*messages, Message("user", self.turns[-1].prompt)))

    def describe(self) -> dict[str, Any]:
        """What a browser may know: of the models nothing before the vote."""
        turns = [{"prompt": visible(turn.prompt), "texts": [*map(visible, turn.texts)],
                  "finishes": [*turn.finishes]} for turn in self.turns]
        shown = {"battle": self.id, "state": self.state, "turns": turns}
        if self.state == VOTED:
            shown |= {"verdict": self.verdict, "models": [*map(visible, self.names)]}
        return shown

    def preference(self, verdict: str, meta: Mapping[str, Any]) -> Preference:
        """The vote.

        Of histories that differ the messages have what was asked alone, which no stage takes for a
        conversation, and `meta` has both as `conversations`.
        """
        both = [self.conversation(side) for side in range(2)]
        meta = {"id": self.id, "models": [*self.names], **meta,
                "category": "one turn" if len(self.turns) == 1 else "several turns",
                "settings": dict(self.turns[-1].settings)}
        if verdict == "both_bad":
            meta["both_bad"] = True
        prompt = both[0]
        if both[0] != both[1]:
            prompt = Conversation(tuple(Message("user", turn.prompt) for turn in self.turns))
            meta["conversations"] = [one.to_dict()["messages"] for one in both]
        last = self.turns[-1]
        return Preference(prompt, last.texts, VOTES[verdict], SOURCE, meta, last.finishes)


class Battles:
    """The battles in memory, bounded in number and time.

    Args:
        clock: gives seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        self.clock = clock
        self._battles: dict[str, Battle] = {}

    def begin(self, names: tuple[str, str]) -> Battle:
        """A new battle; raises `WebError` where there are too many."""
        self._forget()
        if len(self._battles) >= MAX_BATTLES:
            raise WebError(429, "too many battles are open: try again later", "too_many_battles")
        battle = Battle(names, self.clock())
        self._battles[battle.id] = battle
        return battle

    def find(self, mark: str) -> Battle | None:
        """A battle by its id; None where it is unknown or forgotten."""
        self._forget()
        if battle := self._battles.get(mark):
            battle.touched = self.clock()
        return battle

    def drop(self, battle: Battle) -> None:
        """Forgets a battle."""
        self._battles.pop(battle.id, None)

    def _forget(self) -> None:
        """Forgets what is old and, where room is needed, what no vote can come of any more."""
        oldest = self.clock() - KEEP_SECS
        is_full = len(self._battles) >= MAX_BATTLES
        for battle in [*self._battles.values()]:
            is_done = battle.state in (OVER, VOTED)
            if (battle.touched < oldest and battle.state != DRAWING) or (is_full and is_done):
                self.drop(battle)
