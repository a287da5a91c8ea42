"""The supervised half of Constitutional AI: answers, criticised and revised (arXiv 2212.08073, 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from align.synthetic.constitution import draw, fault_of, read_text
from align.synthetic.critics import Critic, Draft
from align.synthetic.outcomes import Outcomes
from align.synthetic.principles import Principle
from data.chat import Conversation, Message


@dataclasses.dataclass(frozen=True)
class Revised:
    """An answer with its history.

    Attributes:
        prompt: messages up to the user's last.
        initial: the first answer.
        answer: the latest.
        rounds: of each round the principle's name, the critique and the answer after it.
    """

    prompt: Conversation
    initial: str
    answer: str
    rounds: tuple[Mapping[str, str], ...] = ()

    def to_dict(self, model: str, critic: str) -> dict[str, Any]:
        """A row in the layout `messages`, which `align.sft` reads."""
        messages = (*self.prompt.messages, Message("assistant", self.answer))
        meta = {"initial": self.initial, "rounds": list(self.rounds), "model": model,
                "critic": critic, "origin": self.prompt.meta.get("source", "")}
        return Conversation(messages, meta).to_dict()


def revise(answers: Sequence[Revised], critic: Critic, principles: Sequence[Principle],
           outcomes: Outcomes, *, num_rounds: int, seed: int) -> list[Revised]:
    """Criticises and revises answers several times, each time by a principle that is drawn.

    A round reads the latest answer and knows nothing of earlier rounds, so that prompts stay short.
    Principles are drawn with the digest of seed, messages and number of the round.

    Args:
        principles: to draw from; of a rule, which reads none, there may be none.
    """
    principles = principles or (Principle(critic.name, "", ""),)
    for number in range(num_rounds):
        drafts = [Draft(one.prompt, one.answer, draw(
            principles, seed, one.prompt.to_dict()["messages"], number)) for one in answers]
        answers = _revise_once(answers, drafts, critic, outcomes, seed + number)
    return list(answers)


def _revise_once(answers: Sequence[Revised], drafts: Sequence[Draft], critic: Critic,
                 outcomes: Outcomes, seed: int) -> list[Revised]:
    """One round. A reply without a text that is kept leaves the answer as it is."""
    critiques: list[str | None] = []        # None: the conversation is left out
    for draft, reply in zip(drafts, critic.critique(drafts, seed), strict=True):
        text = read_text(reply.text)
        kept = outcomes.keeps("critique", fault_of(reply, text), draft.prompt, text)
        critiques.append(text if kept else None)
    asked = [number for number, critique in enumerate(critiques) if critique]
    replies = critic.revise([drafts[number] for number in asked],
                            [critiques[number] for number in asked], seed)
    revisions = dict(zip(asked, replies, strict=True))
    after = []
    for number, (one, draft, critique) in enumerate(zip(answers, drafts, critiques, strict=True)):
        if critique is None:
            continue
        text = one.answer
        if number in revisions:
            revised = read_text(revisions[number].text)
            fault = fault_of(revisions[number], revised, one.answer)
            if not outcomes.keeps("revision", fault, draft.prompt, revised):
                continue
            text = revised or text
        after.append(dataclasses.replace(one, answer=text, rounds=(*one.rounds, {
            "principle": draft.principle.name, "critique": critique, "answer": text})))
    return after
