"""HumanEval (arXiv 2107.03374): functions written from their docstrings, run against unit tests.

Data and tests: openai/human-eval at 6d43fb9. There the program, its tests and the verdict share a
process; here the tests run in another one (`eval.sandbox`), to which values go as literals. The
modules that a program may import are those of the standard library.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from core.errors import UserError
from data.chat import Conversation, ask
from eval.benchmarks.source import Source
from eval.sandbox.confine import Limits
from eval.sandbox.run import Outcome, Program, run_programs
from eval.sandbox.sides import FAILED, PASSED, VERDICTS
from eval.tasks.task import Grade

NAME = "humaneval"
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
FORMS = ("completion", "chat")
LIMITS = Limits(wall_secs=15.0, cpu_secs=3)
LIMITED = tuple(verdict for verdict in VERDICTS if verdict not in (PASSED, FAILED))
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# Of openai/simple-evals at ee3b031, humaneval_eval.py.
INSTRUCTION = ("Read the following function signature and docstring, and fully implement the "
               "function described. Your response should only contain the code for this "
               "function.\n")
FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class HumanEval:
    """The problems, as a task whose answers are programs.

    Attributes:
        rows: of the file, each with `FIELDS`.
        form: "completion" of the literal prompt, ended by `STOPS`, or "chat": an instruction
            before the prompt and no stops, as they would cut an answer that repeats the signature.
        limits: of each program. The published time is 3 s of a machine that does nothing else:
            here of the processor, so that a busy machine changes no score.
    """

    rows: tuple[dict[str, Any], ...]
    form: str = FORMS[0]
    limits: Limits = LIMITS
    name: str = NAME

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        return STOPS if self.form == "completion" else ()

    @property
    def max_new_tokens(self) -> int:
        """Of an answer; one in a chat repeats the prompt."""
        return 512 if self.form == "completion" else 1024

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """The first `num` problems in the file's order, all if 0 or less; nothing is drawn.

        Raises:
            UserError: of the split "train", which HumanEval does not have.
        """
        if split != "test":
            raise UserError(f"{NAME}: split={split!r}", "has problems for tests alone",
                            "choose the split test")
        return [self._ask(row) for row in self.rows[:num if num > 0 else None]]

    def _ask(self, row: dict[str, Any]) -> Conversation:
        prompt = row["prompt"] if self.form == "completion" else INSTRUCTION + row["prompt"]
        return ask(prompt, row["canonical_solution"], task=NAME, family=NAME, id=row["task_id"],
                   prompt=prompt, stub=row["prompt"], entry_point=row["entry_point"],
                   test=row["test"])

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 if the program passes the problem's tests, else 0."""
        return self.grade(conversation, completion).score

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """Runs the program.

        Of the measures, `literal` is the score of prompt and answer as they are, without what
        `extract_program` repairs; the others say which limit the program met.
        """
        return self.grade_all([(conversation, completion)])[0]

    def grade_all(self, answers: Sequence[tuple[Conversation, str]], *,
                  num_workers: int = 0) -> list[Grade]:
        """The grades of many answers, several at a time.

        Raises:
            UserError: nothing here confines programs; see `eval.sandbox.run.run_programs`.
        """
        outcomes = self.run_all(answers, num_workers=num_workers)
        return [Grade(float(outcome.passed), code if answer.strip() else None,
                      {"literal": float(literal.passed)}
                      | {verdict: float(outcome.verdict == verdict) for verdict in LIMITED})
                for (_, answer), (code, outcome, literal) in zip(answers, outcomes)]

    def run_all(self, answers: Sequence[tuple[Conversation, str]], *,
                num_workers: int = 0) -> list[tuple[str, Outcome, Outcome]]:
        """Of each answer, its program, how it ended, and how prompt + answer ends as it is."""
        metas = [conversation.meta for conversation, _ in answers]
        texts = [(extract_program(meta["stub"], meta["entry_point"], answer),
                  meta["stub"] + cut(answer))
                 for meta, (_, answer) in zip(metas, answers)]
        wanted = list({(code, self._check(meta)): None for meta, pair in zip(metas, texts)
                       for code in pair})
        ended = dict(zip(wanted, run_programs([Program(*each) for each in wanted], self.limits,
                                              num_workers=num_workers)))
        return [(code, ended[code, self._check(meta)], ended[literal, self._check(meta)])
                for meta, (code, literal) in zip(metas, texts)]

    @staticmethod
    def _check(meta: Any) -> str:
        """The published test, after the prompt's own functions, some of which tests call.

        The test of HumanEval/33 compares the function with itself, by its name.
        """
        name = meta["entry_point"]
        return (f"{_preamble(meta['stub'], name)}\n{name} = submitted({name!r})\n"
                f"{meta['test']}\ncheck({name})\n")


def open_humaneval(source: Source) -> HumanEval:
    """Opens ``HumanEval.jsonl``, which may be compressed.

    Raises:
        UserError: a row lacks a field, or there is no such form of prompts.
    """
    form = source.form or FORMS[0]
    if form not in FORMS:
        raise UserError(f"{NAME}: form={form!r}", "is none of its forms",
                        f"choose among {', '.join(FORMS)}")
    if source.num_shots > 0:
        raise UserError(f"{NAME}: num_shots={source.num_shots}", "has no solved examples",
                        "leave the number of shots out")
    rows = source.rows("HumanEval")
    for index, row in enumerate(rows, start=1):
        if missing := [name for name in FIELDS if not isinstance(row.get(name), str)]:
            raise UserError(f"{source.folder}: HumanEval, row {index}",
                            f"has no text {', '.join(missing)}", "take the published file")
    return HumanEval(tuple(rows), form)


def cut(answer: str) -> str:
    """The answer up to the first of `STOPS`."""
    return answer[:min((place for stop in STOPS if (place := answer.find(stop)) >= 0),
                       default=len(answer))]


def extract_program(stub: str, entry_point: str, answer: str) -> str:
    """The program that an answer to the prompt `stub` stands for.

    An answer whose first line is indented goes on where the prompt ends; what follows a stop or a
    fence is cut. Otherwise: of Markdown, the first block that defines the function, else the first
    one. Code that repeats the signature is a program of its own, after the prompt's imports and
    functions. Any other is a body whose indentation was lost: that of its first line, which
    tokenizers and `strip` remove, or of all lines. lm-evaluation-harness #3126 and evalplus #54
    show what scores are without.
    """
    first = next((line for line in answer.split("\n") if line.strip()), "")
    if first[:1] in (" ", "\t") and not first.lstrip().startswith("```"):
        return stub + cut(answer).split("\n```")[0]
    blocks = FENCE.findall(answer)
    is_own = re.compile(rf"^(?:async +)?def +{re.escape(entry_point)}\b", re.MULTILINE)
    code = next((block for block in blocks if is_own.search(textwrap.dedent(block))),
                blocks[0] if blocks else answer)
    if is_own.search(dedented := textwrap.dedent(code)):
        return _preamble(stub, entry_point) + "\n" + dedented
    return stub + _indent(code if blocks else cut(code))


def _preamble(stub: str, entry_point: str) -> str:
    """What stands before the function in a prompt: imports, and functions that it may call."""
    return stub[:max(stub.rfind(f"def {entry_point}("), 0)]


def _indent(body: str) -> str:
    """The body of a function, with the indentation that all of it, or its first line, lost."""
    lines = body.split("\n")
    first = next((index for index, line in enumerate(lines) if line.strip()), None)
    if first is None or lines[first][0] in " \t":
        return body
    shifted = textwrap.indent(body, "    ")
    try:
        compile("def f():\n" + shifted, "<body>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines[first] = "    " + lines[first]
        return "\n".join(lines)
    return shifted
