"""Critics: what criticises and revises answers, and chooses between two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import expit

from align.synthetic.constitution import (
    LETTERS,
    choice_prompt,
    critique_prompt,
    fault_of,
    read_letter,
    revision_prompt,
)
from align.synthetic.principles import Constitution, Principle
from align.synthetic.rules import Rule
from data.chat import Conversation
from eval.measures.choices import score_choices
from eval.respond.loaded import LoadedModel
from eval.respond.responder import Reply, Responder
from eval.tasks.task import Choice

TREE_TOKENS = 4096      # that a judge's options are scored in at once


class Draft(NamedTuple):
    """An answer that is to be criticised by a principle."""

    prompt: Conversation
    answer: str
    principle: Principle


class Pair(NamedTuple):
    """Two answers as they are shown, and by what to choose."""

    prompt: Conversation
    answers: tuple[str, str]
    preference: str


class Vote(NamedTuple):
    """A choice between two answers.

    Attributes:
        p_first: probability that the first shown one is better; None if there is no choice.
        fault: why there is none: no_letter, or a reason of `fault_of`.
    """

    p_first: float | None
    fault: str = ""


class Critic(Protocol):
    """Criticises, revises and chooses.

    Attributes:
        name: for records.
    """

    name: str

    def critique(self, drafts: Sequence[Draft], seed: int) -> list[Reply]:
        """What is wrong with each answer."""

    def revise(self, drafts: Sequence[Draft], critiques: Sequence[str], seed: int) -> list[Reply]:
        """A better answer for each."""

    def choose(self, pairs: Sequence[Pair], seed: int) -> list[Vote]:
        """A vote for each pair, in the order in which its answers are shown."""


class ModelCritic:
    """A critic that is a chat model.

    Args:
        responder: writes critiques and revisions.
        judge: names a letter; or a model in memory, whose probabilities of both are compared.
        constitution: whose examples are shown.
    """

    def __init__(self, responder: Responder, judge: Responder | LoadedModel,
                 constitution: Constitution):
        self._responder, self._judge = responder, judge
        self._examples, self._choices = constitution.examples, constitution.choices
        self.name = responder.name

    def critique(self, drafts: Sequence[Draft], seed: int) -> list[Reply]:
        """See `Critic`."""
        return self._responder.respond([
            critique_prompt(*draft, self._examples) for draft in drafts], seed)

    def revise(self, drafts: Sequence[Draft], critiques: Sequence[str], seed: int) -> list[Reply]:
        """See `Critic`."""
        return self._responder.respond([
            revision_prompt(*draft, critique, self._examples)
            for draft, critique in zip(drafts, critiques, strict=True)], seed)

    def choose(self, pairs: Sequence[Pair], seed: int) -> list[Vote]:
        """See `Critic`."""
        prompts = [choice_prompt(*pair, self._choices) for pair in pairs]
        if isinstance(self._judge, LoadedModel):
            scores = score_choices(self._judge, [Choice(prompt, LETTERS, 0) for prompt in prompts],
                                   batch_tokens=TREE_TOKENS)
            return [Vote(None, "unanswered") if score is None or score.is_cut
                    else Vote(softmax_first(*score.logps_nats)) for score in scores]
        return [_read_vote(reply) for reply in self._judge.respond(prompts, seed)]


def softmax_first(first_nats: float, second_nats: float) -> float:
    """The probability of the first of two options, normalised over both (section 4.1)."""
    return float(expit(first_nats - second_nats))


def _read_vote(reply: Reply) -> Vote:
    letter = read_letter(reply.text)
    if letter is not None and reply.fault in ("", "truncated"):
        return Vote(1.0 - letter)
    fault = fault_of(reply, reply.text)
    return Vote(None, fault if fault in ("unanswered", "empty", "refusal") else "no_letter")


class RuleCritic:
    """A critic that is a rule; it reads no principle.

    Args:
        name: of the rule.
    """

    def __init__(self, name: str, rule: Rule):
        self.name, self._rule = f"rule {name}", rule

    def critique(self, drafts: Sequence[Draft], seed: int) -> list[Reply]:
        """See `Critic`."""
        return [Reply(self._rule.critique(draft.answer)) for draft in drafts]

    def revise(self, drafts: Sequence[Draft], critiques: Sequence[str], seed: int) -> list[Reply]:
        """See `Critic`."""
        return [Reply(self._rule.revise(draft.answer)) for draft in drafts]

    def choose(self, pairs: Sequence[Pair], seed: int) -> list[Vote]:
        """See `Critic`. Equal scores are a half."""
        scores = [[self._rule.score(answer) for answer in pair.answers] for pair in pairs]
        return [Vote(0.5 + 0.5 * float(np.sign(first - second))) for first, second in scores]
