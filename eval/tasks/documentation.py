"""Documentation questions: "What does this function do?", split by package to avoid leakage."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from core.errors import UserError
from data.chat import Conversation, ask
from eval.tasks.task import Choice, answer_of, split_of

NUM_CHOICES = 4
TEST_PARTS = 4  # one package in four is in the test split


@dataclasses.dataclass(frozen=True)
class Documentation:
    """Questions for the first sentence of a docstring, by qualified name; a `Task`.

    Attributes:
        rows: (name, module, package, summary) of each documented object.
    """

    rows: tuple[tuple[str, str, str, str], ...]
    name: str = "documentation"

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """Up to `num` solved questions about the packages of `split`."""
        rows = self._rows(split)
        random.Random(f"{split}/{seed}").shuffle(rows)
        return [ask(_question(name), summary, task=self.name, family=package)
                for name, _, package, summary in rows[:num]]

    def score(self, conversation: Conversation, completion: str) -> float:
        """F1 of the words shared with the reference (SQuAD's measure, arXiv 1606.05250)."""
        expected = Counter(_words(answer_of(conversation)))
        given = Counter(_words(completion))
        shared = sum((expected & given).values())
        return 2 * shared / max(sum(expected.values()) + sum(given.values()), 1)

    def choices(self, split: str, num: int, seed: int) -> list[Choice]:
        """Up to `num` multiple-choice questions with distractors from the same module."""
        rng = random.Random(f"choices/{split}/{seed}")
        by_module = defaultdict(list)
        for row in self._rows(split):
            by_module[row[1]].append(row)
        made = []
        for rows in by_module.values():
            for name, _, package, summary in rows:
                others = sorted({row[3] for row in rows} - {summary})
                if len(others) >= NUM_CHOICES - 1:
                    options = [summary, *rng.sample(others, NUM_CHOICES - 1)]
                    rng.shuffle(options)
                    question = ask(_question(name), task=self.name, family=package)
                    made.append(Choice(question, tuple(options), options.index(summary)))
        rng.shuffle(made)
        return made[:num]

    def _rows(self, split: str) -> list[tuple[str, str, str, str]]:
        return [row for row in self.rows if split_of(row[2], TEST_PARTS) == split]


def load_documentation(corpus: Path | None) -> Documentation:
    """Reads the questions of the embedded corpus.

    Raises:
        UserError: there is no corpus, or it has no questions.
    """
    if corpus is None:
        raise UserError("tasks.documentation", "is drawn from a corpus, and none is given",
                        "set the stage's field `corpus`, or tasks.documentation to 0")
    path = Path(corpus) / "questions.parquet"
    if not path.exists():
        raise UserError(str(path), "no such file: this corpus came without questions",
                        "set tasks.documentation to 0, or curate with "
                        "--config.curate.inputs=embedded")
    table = pq.read_table(path, columns=["name", "module", "package", "summary"]).to_pylist()
    return Documentation(tuple(tuple(row.values()) for row in table))


def _question(name: str) -> str:
    return f"What does `{name}` do?"


def _words(text: str) -> Sequence[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
