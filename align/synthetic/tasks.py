"""Tasks that a model writes: the prompt that asks for them, their form, and filters.

The loop is that of Self-Instruct (arXiv 2212.10560, section 2), the form that of Alpaca, which asks
for instruction, input and output at once; the wording is our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from align.synthetic.filters import SHINGLE_WORDS, is_refusal
from align.synthetic.prompts import MARK
from core.artifacts import digest
from data.layouts.instructions import Instruction

NO_INPUT = "none"
_REQUEST = (
    "You write tasks with which an assistant is taught to follow instructions. Below are {shown} "
    "tasks as examples. Write {num} more.\n\n"
    "- No two tasks may ask for the same thing. Vary the subject, the verb, the length and the "
    "kind: questions, rewriting, classification, lists, reasoning, code, letters, advice.\n"
    "- Each can be done with text alone, without any picture, sound, file or website.\n"
    "- \"Instruction:\" is one or two sentences that say what to do, \"Input:\" the text to do it "
    f"with, made up and concrete, or \"{NO_INPUT}\", and \"Output:\" the complete answer.\n"
    "- Write them in the form and in the language of the examples, each after its heading, and "
    "nothing else. Begin with the heading of task {first}.")
PROMPT_ID = f"self_instruct-{digest(_REQUEST)[:8]}"

# "### Task 4", "**Task 4: A title**"; without marks a title would be a line of an output.
_HEADING = re.compile(r"(?im)^(?:[^\w\n]*[#*]+[^\w\n]*task[ \t]*\d+\b.*|task[ \t]*\d+[^\w\n]*)$")
_INSTRUCTION, _INPUT, _OUTPUT = (re.compile(MARK.format(word), re.M)
                                 for word in ("Instruction", "Input", "Output"))
_EMPTY = re.compile(r"(?i)\W*(?:none|no ?input|n/?a)?\W*")


class Judged(NamedTuple):
    """Why a task is removed, "" if it is not, and what was measured."""

    reason: str
    score: float = 0.0


def make_prompt(shown: Sequence[Instruction], num: int) -> str:
    """The prompt that shows some tasks and asks for `num` more."""
    request = _REQUEST.format(shown=len(shown), num=num, first=len(shown) + 1)
    return "\n\n".join([request, *(format_task(task, number)
                                   for number, task in enumerate(shown, start=1))])


def format_task(task: Instruction, number: int) -> str:
    """A task in the form that `parse_tasks` reads back."""
    return (f"### Task {number}\nInstruction: {task.instruction}\nInput: {task.input or NO_INPUT}\n"
            f"Output: {task.output}")


def parse_tasks(reply: str) -> list[Instruction]:
    """The tasks of a reply, in their order; what one lacks is empty.

    Headings separate them, or, where there are none, their instructions.
    """
    before, *blocks = _HEADING.split(reply)
    if _INSTRUCTION.search(before):     # the first one's heading, or all headings, are missing
        starts = [match.start() for match in _INSTRUCTION.finditer(before)]
        ends = [*starts[1:], len(before)] if not blocks else [len(before)]
        blocks = [before[start:end] for start, end in zip(starts, ends)] + blocks
    return [_parse_block(block) for block in blocks]


def _parse_block(block: str) -> Instruction:
    """A task; the first of each field counts, as an output may hold such words, too."""
    head, *rest = _OUTPUT.split(block, maxsplit=1)
    asked, *given = _INPUT.split(head, maxsplit=1)
    instruction = _clean("".join(_INSTRUCTION.split(asked, maxsplit=1)[1:]))
    text = _clean("".join(given))
    return Instruction(" ".join(instruction.split()), "" if _EMPTY.fullmatch(text) else text,
                       _clean("".join(rest)))


def _clean(field: str) -> str:
    """A field without white space and the end of bold face around it."""
    return field.strip().removeprefix("**").strip()


def judge_task(task: Instruction, bounds: Mapping[str, Any]) -> Judged:
    """Judges one task by itself; the first reason that applies is returned.

    Reasons:
        malformed: there is no instruction or no output.
        too_short, too_long: the words of the instruction, by ``min_words`` and ``max_words``.
        blocked_word: the instruction holds one of ``blocked_words``.
        bad_start: the instruction does not begin with a letter, a digit or a quotation mark.
        echo: the output is the instruction or the input.
        refusal: the output begins with an apology or a reference to itself as a model.
        output_too_long: more words than ``max_output_words``.
        repetition: a larger share of the output's word 5-grams than ``max_repeated_frac`` is
            repeated.

    Args:
        bounds: the bounds named above.
    """
    if not task.instruction or not task.output:
        return Judged("malformed")
    num_words, num_output = len(task.instruction.split()), len(task.output.split())
    if num_words < bounds["min_words"]:
        return Judged("too_short", num_words)
    if num_words > bounds["max_words"]:
        return Judged("too_long", num_words)
    if set(re.findall(r"\w+", task.instruction.lower())) & set(bounds["blocked_words"]):
        return Judged("blocked_word")
    if not (task.instruction[0].isalnum() or task.instruction[0] in "\"'“‘«¿¡"):
        return Judged("bad_start")
    if task.output in (task.instruction, task.input):
        return Judged("echo")
    if is_refusal(task.output):
        return Judged("refusal")
    if num_output > bounds["max_output_words"]:
        return Judged("output_too_long", num_output)
    repeated_frac = _repeated_frac(task.output)
    if repeated_frac > bounds["max_repeated_frac"]:
        return Judged("repetition", repeated_frac)
    return Judged("")


def _repeated_frac(text: str) -> float:
    """Share of word n-grams that repeat others; numbers count as they are, as answers have them."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(SHINGLE_WORDS))))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
