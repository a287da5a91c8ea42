"""What is judged: answers of several candidates to the same prompts, one against another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.artifacts import digest
from core.errors import UserError
from data.chat import Conversation, Message
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import Preference

FIRST_NAME, SECOND_NAME = "first", "second"     # of answers in a file of votes, sorted by text

Messages = tuple[Message, ...]
Answers = dict[str, Conversation]       # conversations that end with an answer, by their question


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two candidates' answers to one prompt.

    Attributes:
        question: marks what was asked.
        names: of the candidates.
        prompt: the messages that both conversations begin with.
        answers: the messages that follow: an answer, or several turns that end with one.
        reference: right answers to all questions of the conversation; none if it is not known.
    """

    question: str
    names: tuple[str, str]
    prompt: Messages
    answers: tuple[Messages, Messages]
    reference: tuple[str, ...] = ()

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of what each candidate wrote."""
        return tuple(sum(len(message.content) for message in answer if message.role == "assistant")
                     for answer in self.answers)

    def swapped(self) -> Pair:
        """The same with the second candidate first."""
        return dataclasses.replace(self, names=self.names[::-1], answers=self.answers[::-1])


def read_answers(path: Path, faults: Faults) -> Answers:
    """The conversations of a file or folder that end with an answer, in any of `data.layouts`.

    Args:
        faults: counts rows that are damaged, end with no answer (`no_answer`), or ask what another
            one of the file asks (`repeated`).

    Raises:
        UserError: none is left, or see `read_examples`.
    """
    found: Answers = {}
    for conversation in read_examples(path, "conversations", faults=faults):
        place, last = str(conversation.meta.get("place", path)), conversation.messages[-1]
        if last.role != "assistant" or not last.content.strip():
            faults.add("no_answer", place, "does not end with an answer")
        elif (mark := mark_question(conversation.messages)) in found:
            faults.add("repeated", place, "asks what another row asks")
        else:
            found[mark] = conversation
    if not found:
        raise UserError(str(path), "holds no conversation that ends with an answer",
                        "name a file of answers")
    return found


def mark_question(messages: Sequence[Message]) -> str:
    """The digest of all that was asked: what the assistant wrote in between may differ."""
    return digest([[message.role, message.content] for message in messages
                   if message.role != "assistant"])


def pair_up(candidates: Mapping[str, Answers], baseline: str, references: Answers,
            faults: Faults) -> list[Pair]:
    """Each candidate's answers against the baseline's, the candidate's first.

    Args:
        references: conversations that end with a right answer.
        faults: counts questions that only one of two answered as `unmatched`, and answers that are
            equal to the baseline's as `equal`, which nobody is asked about.

    Raises:
        UserError: the baseline is no candidate, or there is no pair.
    """
    if baseline not in candidates or len(candidates) < 2:
        raise UserError(f"judge.answers: {', '.join(candidates) or 'none'}", f"has no baseline "
                        f"{baseline!r} with another candidate beside it" if baseline else
                        "names no two candidates", "write NAME=FILE,NAME=FILE")
    pairs = []
    for name in candidates:
        if name == baseline:
            continue
        own, theirs = candidates[name], candidates[baseline]
        for mark in dict.fromkeys([*own, *theirs]):
            if mark not in own or mark not in theirs:
                missing = baseline if mark in own else name
                faults.add("unmatched", str((own.get(mark) or theirs[mark]).meta.get("place", "")),
                           f"asks what {missing} did not answer")
                continue
            pair = make_pair(mark, (name, baseline), (own[mark].messages, theirs[mark].messages),
                             reference_of(references, mark))
            if pair.answers[0] == pair.answers[1]:
                faults.add("equal", str(own[mark].meta.get("place", "")),
                           f"is answered as {baseline} answers it")
            else:
                pairs.append(pair)
    if not pairs:
        raise UserError("judge.answers", f"no question has two different answers (left out: "
                        f"{dict(faults.counts)})", "let all candidates answer the same questions")
    return pairs


def make_pair(mark: str, names: tuple[str, str], both: tuple[Messages, Messages],
              reference: tuple[str, ...] = ()) -> Pair:
    """A pair of conversations, which is split where they begin to differ, or before the last."""
    shortest = min(map(len, both)) - 1
    num = next((at for at in range(shortest) if both[0][at] != both[1][at]), shortest)
    return Pair(mark, names, both[0][:num], (both[0][num:], both[1][num:]), reference)


def reference_of(references: Answers, mark: str) -> tuple[str, ...]:
    """The right answers to a question and those before it; none where they are not known."""
    messages = references[mark].messages if mark in references else ()
    return tuple(message.content for message in messages if message.role == "assistant")


def read_voted(path: Path, faults: Faults) -> list[Pair]:
    """Every two responses that people compared, each once, in the order of their texts.

    Args:
        faults: counts responses that are equal.

    Raises:
        UserError: there is none, or see `read_examples`.
    """
    found: dict[str, Pair] = {}
    for preference in read_examples(path, "preferences", faults=faults):
        for pair in _pairs_of(preference, faults):
            found.setdefault(digest([pair.question, *(answer[0].content for answer in
                                                      pair.answers)]), pair)
    if not found:
        raise UserError(str(path), "holds no two different responses to a prompt",
                        "name a file of preferences")
    return list(found.values())


def _pairs_of(preference: Preference, faults: Faults) -> list[Pair]:
    pairs = []
    for both in itertools.combinations(preference.responses, 2):
        if both[0] == both[1]:
            faults.add("equal", str(preference.meta.get("place", "")),
                       "has the same response twice")
            continue
        answers = tuple((Message("assistant", text),) for text in sorted(both))
        pairs.append(Pair(mark_question(preference.prompt.messages), (FIRST_NAME, SECOND_NAME),
                          preference.prompt.messages, answers))
    return pairs
