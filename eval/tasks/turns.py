"""Verifiable questions in one conversation: what is scored is the answer to the last of them."""

from __future__ import annotations

import dataclasses
import random

from data.chat import Conversation, Message
from eval.tasks.task import Task
from eval.tasks.verifiable import Verifiable

SYSTEMS = ("You are a helpful assistant.", "Answer briefly.", "Answer each question by itself.")
MOST_TRAINED = 4    # questions of a conversation of the training split


@dataclasses.dataclass(frozen=True)
class Turns:
    """Conversations of several solved questions, half of them behind a system message; a `Task`.

    Those of the test split have two questions each, so that the score is that of a second turn.

    Attributes:
        inner: whose questions they are.
    """

    inner: Task = dataclasses.field(default_factory=Verifiable)
    name: str = "turns"

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """Up to `num` solved conversations of questions of `split`."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        sizes = [rng.randint(2, MOST_TRAINED) if split == "train" else 2 for _ in range(num)]
        # Another seed than of single questions: training on both sees more of them.
        solved = self.inner.conversations(split, sum(sizes), seed + 1000)
        made, first = [], 0
        for size in sizes:
            picked, first = solved[first:first + size], first + size
            if len(picked) < size:
                break
            system = [Message("system", rng.choice(SYSTEMS))] if rng.random() < 0.5 else []
            turns = [message for c in picked for message in c.messages]
            made.append(Conversation((*system, *turns), picked[-1].meta | {"task": self.name}))
        return made

    def score(self, conversation: Conversation, completion: str) -> float:
        """The inner task's score of `completion` as the answer to the last question."""
        last = Conversation(conversation.messages[-2:], conversation.meta)
        return self.inner.score(last, completion)
