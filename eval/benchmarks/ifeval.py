"""IFEval (arXiv 2311.07911): prompts with instructions that a program can check."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from core.progress import log
from data.chat import Conversation, ask
from eval.benchmarks.source import Source
from eval.measures.instructions import KINDS, check_arguments, grade_instructions
from eval.tasks.task import Grade

FILES = ("input_data", "ifeval_input_data", "ifeval")
FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")


@dataclasses.dataclass(frozen=True)
class Ifeval:
    """Prompts of a file with their instructions; an `AnswerTask`. Both splits are the whole file.

    There are no reference answers: the last message of a conversation is empty.

    Attributes:
        prompts: the conversations, each with its `instructions`: (kind, arguments) of each.
        left_out: prompts by the kind of instruction, not among `KINDS`, for which they are left
            out.
    """

    prompts: tuple[Conversation, ...]
    left_out: Mapping[str, int]
    name: str = "ifeval"
    stops: tuple[str, ...] = ()
    max_new_tokens: int = 1280      # of lm-eval's task

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """The first `num` prompts, all of them if `num` is 0 or less."""
        del split, seed
        return list(self.prompts if num <= 0 else self.prompts[:num])

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """See `eval.measures.instructions.grade_instructions`."""
        return grade_instructions(conversation, completion)

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 if all instructions are followed strictly, else 0."""
        return self.grade(conversation, completion).score


def open_ifeval(source: Source) -> Ifeval:
    """Opens IFEval: a file with the published fields, the prompt in front of its answer as it is.

    Fields: `key`, `prompt`, `instruction_id_list`, and `kwargs`, the arguments of each
    instruction. Prompts with an instruction of an unknown kind are left out, counted and named.

    Raises:
        UserError: there is no such file or form, or a row is damaged, or none remains.
    """
    if source.form or source.num_shots > 0:
        raise UserError(f"form={source.form!r}, num_shots={source.num_shots}",
                        "IFEval has one form, without examples", "leave both as they are")
    path, rows = source.find(*FILES), source.rows(*FILES)
    prompts, left_out = [], Counter()
    for number, row in enumerate(rows, start=1):
        read = _read_row(row, f"{path}, row {number}")
        left_out.update(read if isinstance(read, set) else ())
        prompts += [] if isinstance(read, set) else [read]
    if left_out:
        log(f"warning: {len(rows) - len(prompts)} of {len(rows)} prompts of {path} are left out, "
            "for instructions of unknown kinds: "
            + ", ".join(f"{kind} ({num})" for kind, num in sorted(left_out.items())))
    if not prompts:
        raise UserError(str(path), "no prompt has instructions of known kinds alone",
                        f"give some of {', '.join(KINDS)}")
    return Ifeval(tuple(prompts), dict(left_out))


def _read_row(row: Mapping[str, Any], place: str) -> Conversation | set[str]:
    """The conversation of a row, or its unknown kinds of instructions."""
    key, prompt, kinds, arguments = map(row.get, FIELDS)
    if not (isinstance(prompt, str) and prompt.strip() and key is not None
            and isinstance(kinds, list) and kinds and all(isinstance(kind, str) for kind in kinds)
            and isinstance(arguments, list) and len(arguments) == len(kinds)
            and all(isinstance(part, Mapping) for part in arguments)):
        raise UserError(place, f"needs {', '.join(FIELDS)}, the last two lists of one length",
                        "correct this row, or remove it")
    if unknown := set(kinds) - set(KINDS):
        return unknown
    return ask(prompt, "", task="ifeval", family="ifeval", id=f"ifeval/{key}",
               prompt=prompt, instructions=[[kind, check_arguments(kind, given, place)]
                                            for kind, given in zip(kinds, arguments)])
