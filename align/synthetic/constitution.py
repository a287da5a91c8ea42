"""Prompts of Constitutional AI, and what is read from the answers (arXiv 2212.08073).

A critique and a revision are requested as further turns of the conversation (section 3.1), behind
solved examples in the same turns. A choice between two answers is a question with the options (A)
and (B) (section 4.1). The wording is our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from align.synthetic.filters import is_refusal, without_preface
from align.synthetic.principles import Example, Principle
from core.artifacts import digest
from data.chat import Conversation, Message, write_dialogue
from data.preferences import Preference
from eval.respond.responder import Reply

LETTERS = ("(A)", "(B)")
BARE = "Write the new answer only, as the person who asked shall read it."

# What a model writes before its text, and where it goes on with turns that nobody asked for.
_LABEL = re.compile(r"(?i)^(?:critique|revision|revised (?:answer|response)|new answer|assistant)"
                    r"\s*:\s*")
_NEXT_TURN = re.compile(r"(?:\A|\n+\s*)(?:Human|Assistant|CritiqueRequest|Critique|RevisionRequest"
                        r"|Revision):")
_MARKED = re.compile(r"\(([AB])\)")
# A bare letter, which is no article: "A.", "B", "Answer: A", "**B**".
_BARE_LETTER = re.compile(r"(?i:^\W*(?:(?:the |my )?(?:best |better |correct |final )?"
                          r"(?:answer|option|choice|response)(?: is)?\W*)?)"
                          r"([AB])(?=[\W_]*$|[.):,*\n])")
_SAID = re.compile(r"(?i)\b(?:answer|option|choice|response)(?: is|:)\W*\(?([AB])\)")

Option = TypeVar("Option")


def draw(options: Sequence[Option], *mark: object) -> Option:
    """One of the options, by the digest of `mark`: seed, content and number of the draw."""
    return options[int(digest(mark), 16) % len(options)]


def critique_prompt(prompt: Conversation, answer: str, principle: Principle,
                    examples: Sequence[Example]) -> Conversation:
    """Asks what is wrong with an answer.

    Args:
        prompt: messages up to the user's last.
        examples: solved, shown before the conversation, after its system message.
    """
    shown = [message for example in examples for message in _turns(
        example.messages, Principle("", example.critique_request, example.revision_request),
        example.critique, example.revision)]
    first = 1 if prompt.messages[0].role == "system" else 0
    asked = (*prompt.messages[first:], Message("assistant", answer))
    return Conversation((*prompt.messages[:first], *shown, *_turns(asked, principle)))


def revision_prompt(prompt: Conversation, answer: str, principle: Principle, critique: str,
                    examples: Sequence[Example]) -> Conversation:
    """Asks for a better answer after a critique; arguments are those of `critique_prompt`."""
    asked = critique_prompt(prompt, answer, principle, examples)
    return Conversation((*asked.messages, Message("assistant", critique), _request(principle)))


def _turns(messages: Sequence[Message], principle: Principle, critique: str = "",
           revision: str = "") -> list[Message]:
    """A conversation with its critique and revision; without them, up to the first request."""
    turns = [*messages, Message("user", principle.critique)]
    if revision:
        turns += [Message("assistant", critique), _request(principle),
                  Message("assistant", revision)]
    return turns


def _request(principle: Principle) -> Message:
    return Message("user", f"{principle.revision} {BARE}")


def choice_prompt(prompt: Conversation, answers: Sequence[str], preference: str,
                  choices: Sequence[Preference]) -> Conversation:
    """Asks which of two answers is to be preferred, as (A) or (B).

    Args:
        answers: two, in the order in which they are shown.
        preference: by what to choose.
        choices: solved examples; the letter of the preferred one is A and B in turn.
    """
    turns = []
    for number, choice in enumerate(choices):
        better, worse = choice.pairs()[0]
        order = (better, worse) if number % 2 == 0 else (worse, better)
        shown = [choice.responses[index] for index in order]
        turns += [Message("user", _question(choice.prompt, shown, preference)),
                  Message("assistant", LETTERS[order.index(better)])]
    return Conversation((*turns, Message("user", _question(prompt, answers, preference))))


def _question(prompt: Conversation, answers: Sequence[str], preference: str) -> str:
    options = "\n\n".join(f"{letter} {answer}" for letter, answer in zip(LETTERS, answers))
    return (f"Below is a conversation between a human and an assistant, and two answers with which "
            f"the assistant could go on.\n\n{write_dialogue(prompt.messages)}\n\n{preference}\n\n"
            f"Options:\n\n{options}\n\n"
            f"Reply with {LETTERS[0]} or {LETTERS[1]}, and nothing else.")


def read_text(text: str) -> str:
    """A critique or a revision without its label, a preface, and turns that follow it."""
    text = _LABEL.sub("", without_preface(text))
    found = _NEXT_TURN.search(text)
    return without_preface(text[:found.start()] if found else text)


def read_letter(text: str) -> int | None:
    """The option that a judge names: 0 for A, 1 for B; None where it names none, or both."""
    marked = set(_MARKED.findall(text))
    if len(marked) == 2:    # "(A) is kinder than (B). The answer is (A)"
        marked = set(_SAID.findall(text))
    elif not marked and (bare := _BARE_LETTER.match(text)):
        marked = {bare[1]}
    return "AB".index(marked.pop()) if len(marked) == 1 else None


def fault_of(reply: Reply, text: str, before: str | None = None) -> str:
    """Why a reply may be of no use; "" where nothing is wrong with it.

    Reasons:
        unanswered: there is no answer: the prompt is too long, or was rejected.
        empty: only white space.
        truncated: cut at the limit of tokens.
        unchanged: equal to `before`, up to white space.
        refusal: begins with an apology or a reference to itself as a model.

    Args:
        text: of the reply, as `read_text` cleans it.
        before: the answer that was to be revised.
    """
    if reply.fault not in ("", "truncated"):
        return "unanswered"
    if not text.strip():
        return "empty"
    if reply.fault:
        return "truncated"
    if before is not None and text.split() == before.split():
        return "unchanged"
    return "refusal" if is_refusal(text) else ""

