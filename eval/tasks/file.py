"""A task of solved questions from a user's file.

A line of the file is a conversation that ends with the assistant's answer, or a question with its
answer:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"question": "...", "answer": "..."}
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from core.errors import UserError
from core.json_text import read_lines
from data.chat import Conversation, ask, make_conversation
from eval.tasks.task import answer_of


@dataclasses.dataclass(frozen=True)
class FileTask:
    """Conversations of a file; a `Task`. The user decides which files are for training and testing.

    Attributes:
        name: the file's name without its ending.
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


def load_file_task(path: str | Path) -> FileTask:
    """Reads a file of solved questions.

    Raises:
        UserError: there is no such file, or a line is no solved question.
    """
    path, solved = Path(path), []
    for where, row in read_lines(path):
        if isinstance(row, dict) and isinstance(row.get("messages"), list):
            conversation = make_conversation(row["messages"], where)
        elif isinstance(row, dict) and all(isinstance(row.get(field), str)
                                           for field in ("question", "answer")):
            conversation = ask(row["question"], row["answer"])
        else:
            raise UserError(where, "is neither a conversation nor a question with its answer",
                            'write {"messages": [...]} or {"question": "...", "answer": "..."}')
        if len(conversation.messages) < 2 or conversation.messages[-1].role != "assistant":
            raise UserError(where, "does not end with an answer of the assistant",
                            "add the answer, or remove this line")
        meta = {"task": path.stem, "family": path.stem}
        solved.append(Conversation(conversation.messages, meta))
    if not solved:
        raise UserError(str(path), "holds no question", "give a file with at least one line")
    return FileTask(path.stem, tuple(solved))
