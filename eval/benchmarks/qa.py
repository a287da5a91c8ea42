"""Short answers, generated and compared with references: TriviaQA, Jeopardy, BIG-bench.

The files are those of mosaicml/llm-foundry@8c8dd48 (scripts/eval/local_data), and so are the number
of shots and what stands between a context and its answer; an answer ends with its line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from core.errors import UserError
from data.chat import Conversation, ask
from eval.benchmarks.shots import pick_shots
from eval.benchmarks.source import Source
from eval.measures.matching import NORMALISATIONS, matches, token_f1
from eval.tasks.task import Grade, answer_of

BETWEEN_EXAMPLES = "\n"     # llm-foundry's `example_delimiter`


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a task of short answers is.

    Attributes:
        file: name of its file without endings.
        num_shots: of the published form.
        delimiter: between a context and its answer. A prompt ends without its spaces, as a model's
            answer begins with one.
        max_new_tokens: of an answer; the longest reference takes a good half of it.
        score: the comparison that is the score, a name of `NORMALISATIONS`.
    """

    file: str
    num_shots: int
    delimiter: str = " "
    max_new_tokens: int = 24
    score: str = "normalised"


DEFINITIONS = {
    "triviaqa": Definition("triviaqa_sm_sub", 3),
    "jeopardy": Definition("jeopardy_all", 10, delimiter="\nAnswer: "),
    "bigbench_qa_wikidata": Definition("bigbench_qa_wikidata", 10),
    # Signs and their order are the answer.
    "bigbench_cs_algorithms": Definition("bigbench_cs_algorithms", 10, score="exact"),
    "bigbench_dyck_languages": Definition("bigbench_dyck_languages", 10, score="exact"),
    "bigbench_operators": Definition("bigbench_operators", 10, score="exact"),
    "bigbench_repeat_copy_logic": Definition("bigbench_repeat_copy_logic", 10, max_new_tokens=128,
                                             score="exact"),
}


@dataclasses.dataclass(frozen=True)
class ShortAnswers:
    """Contexts with their answers; an `AnswerTask`. Both splits are the whole file.

    Attributes:
        rows: (context, references, group) of each item; the first reference is the one shown.
    """

    name: str
    definition: Definition
    source: Source
    rows: tuple[tuple[str, tuple[str, ...], str], ...]
    stops: tuple[str, ...] = ("\n",)

    @property
    def max_new_tokens(self) -> int:
        """Of the definition."""
        return self.definition.max_new_tokens

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """The first `num` items, all of them if `num` is 0 or less."""
        del split, seed
        picked = self.rows if num <= 0 else self.rows[:num]
        return [ask(context, references[0], task=self.name, family=group or self.name,
                    id=f"{self.name}/{number}", references=list(references),
                    prompt=self._prompt(context), **({"group": group} if group else {}))
                for number, (context, references, group) in enumerate(picked)]

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """Compares an answer with all references.

        Its measures, from 0 to 1: `exact` up to outer white space, `normalised` and `squad` (see
        `NORMALISATIONS`), `f1` of words, and `unparsed`, 1 for an answer without text.
        """
        given = completion.strip()
        references = _references(conversation)
        measures = {name: float(matches(given, references, normalisation))
                    for name, normalisation in NORMALISATIONS.items()}
        measures["f1"] = token_f1(given, references)
        measures["unparsed"] = float(not given)
        return Grade(measures[self.definition.score], given or None, measures)

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 if the answer is a reference, by the definition's comparison; else 0."""
        return self.grade(conversation, completion).score

    def _prompt(self, context: str) -> str:
        num = self.source.num_shots
        shots = pick_shots(self.source, self.rows, self.definition.num_shots if num < 0 else num,
                           lambda row: row[0], context)
        delimiter = self.definition.delimiter
        solved = [f"{shown}{delimiter}{references[0]}{BETWEEN_EXAMPLES}"
                  for shown, references, _ in shots]
        return "".join(solved) + f"{context}{delimiter}".rstrip(" ")


def open_short_answers(name: str, source: Source) -> ShortAnswers:
    """Opens a task of `DEFINITIONS`.

    A row has a `context` and either a `continuation` or an `answer` with `aliases`; its `category`
    is the item's group.

    Raises:
        UserError: there is no such task, form or file, or a row lacks one of them.
    """
    if name not in DEFINITIONS:
        raise UserError(name, f"is none of {', '.join(DEFINITIONS)}", "choose one of them")
    if source.form:
        raise UserError(f"form={source.form!r}", f"{name} has one form only", "leave it empty")
    definition = DEFINITIONS[name]
    path, rows = source.find(definition.file), source.rows(definition.file)
    return ShortAnswers(name, definition, source, tuple(
        _read_row(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)))


open_triviaqa = partial(open_short_answers, "triviaqa")
open_jeopardy = partial(open_short_answers, "jeopardy")


def _read_row(row: dict[str, Any], place: str) -> tuple[str, tuple[str, ...], str]:
    answers = [row.get("answer", row.get("continuation")), *(row.get("aliases") or ())]
    if not (isinstance(row.get("context"), str) and row["context"].strip()
            and all(isinstance(answer, str) for answer in answers) and answers[0].strip()):
        raise UserError(place, "lacks a context or an answer",
                        "correct this row, or remove it")
    return (row["context"].rstrip(), tuple(answer.strip() for answer in answers if answer.strip()),
            str(row.get("category") or ""))


def _references(conversation: Conversation) -> Sequence[str]:
    found = conversation.meta.get("references")
    return found if isinstance(found, list) else [answer_of(conversation)]
