"""A task of solved questions from a user's file.

Each row is a conversation that ends with the assistant's answer, or a question with its answer, in
any layout of conversations that `data.layouts.table` names; all rows of a file are in one layout:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"question": "...", "answer": "..."}
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import NoReturn

from core.errors import UserError
from data.chat import Conversation
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.layouts.rows import name_of
from eval.tasks.task import answer_of


@dataclasses.dataclass(frozen=True)
class FileTask:
    """Conversations of a file; a `Task`. The user decides which files are for training and testing.

    Attributes:
        name: the file's name without its ending, or the folder's.
        solved: the conversations, each with its answer.
    """

    name: str
    solved: tuple[Conversation, ...]

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """Up to `num` of them, shuffled by `seed`; both splits are the whole file."""
        del split
        picked = list(self.solved)
        random.Random(seed).shuffle(picked)
        return picked[:num]

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 if the completion equals the answer up to outer white space."""
        return float(completion.strip() == answer_of(conversation).strip())


class _Refused(Faults):
    """Ends the run at the first row that is no solved question: a score over others would mislead.
    """

    def add(self, reason: str, place: str, what: str) -> NoReturn:
        raise UserError(place, what, "correct this row, or remove it")


def load_file_task(path: str | Path) -> FileTask:
    """Reads a file or folder of solved questions.

    Raises:
        UserError: there is no such file, its layout is unknown, or a row is no solved question.
    """
    path, solved = Path(path), []
    meta = {"task": name_of(path), "family": name_of(path)}
    for found in read_examples(path, "conversations", faults=_Refused("inputs", "fail")):
        if not found.messages[-1].content.strip():
            raise UserError(found.meta["place"], "its answer is a call of a tool, which is no text "
                            "to compare with", "remove it")
        solved.append(Conversation(found.messages, meta))
    return FileTask(meta["task"], tuple(solved))
