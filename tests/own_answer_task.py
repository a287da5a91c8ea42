"""A user's own task: dates out of letters, asked with examples, compared as dates."""

from __future__ import annotations

import dataclasses
import re

from data.chat import Conversation, ask
from eval.benchmarks.shots import pick_shots
from eval.benchmarks.source import Source
from eval.tasks.task import Grade, answer_of

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclasses.dataclass(frozen=True)
class Dates:
    """Letters with their dates, from the user's file; an `AnswerTask`."""

    source: Source
    rows: tuple[tuple[str, str], ...]
    name: str = "dates"
    stops: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 16

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """The first `num` letters, all of them if `num` is 0 or less."""
        picked = self.rows if num <= 0 else self.rows[:num]
        return [ask(letter, date, task=self.name, family=self.name, id=f"dates/{number}",
                    prompt=self._prompt(letter)) for number, (letter, date) in enumerate(picked)]

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """Right is the same day, in whatever form it is written."""
        day = _day(completion)
        return Grade(float(day is not None and day == _day(answer_of(conversation))),
                     None if day is None else "-".join(map(str, day)))

    def score(self, conversation: Conversation, completion: str) -> float:
        """See `grade`."""
        return self.grade(conversation, completion).score

    def _prompt(self, letter: str) -> str:
        shots = pick_shots(self.source, self.rows, max(self.source.num_shots, 0),
                           lambda row: row[0], letter)
        return "".join(f"{text}\nDate: {date}\n\n" for text, date in shots) + f"{letter}\nDate:"


def open_dates(source: Source) -> Dates:
    """Opens the letters of a file `letters`, with the fields `letter` and `date`."""
    return Dates(source, tuple((row["letter"], row["date"]) for row in source.rows("letters")))


def _day(text: str) -> tuple[int, int] | None:
    month = next((n for n, name in enumerate(MONTHS, start=1) if name in text.lower()), None)
    day = re.search(r"\d{1,2}", text)
    return (month, int(day[0])) if month and day else None
