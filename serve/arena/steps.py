"""Two answers shown in step, so that neither its speed nor its bursts tell which model writes."""

from __future__ import annotations

import dataclasses

from core.page.markup import visible

STEP_CHARS = 16                 # of which what is shown is made, whatever the tokens of a model are
MIN_CHARS, MAX_CHARS = 2, 64    # that a side grows by between two releases


@dataclasses.dataclass(frozen=True)
class Change:
    """What is new in both columns.

    Attributes:
        texts: to be added to each.
        finishes: of each, "" while it is not shown to its end.
    """

    texts: tuple[str, str]
    finishes: tuple[str, str]


class Steps:
    """Takes text of both sides as it is drawn, and gives it out in step.

    Both columns always show as many characters as the other, or their whole answer. The slower
    side thus sets the pace. Once the shorter answer ends, the longer goes on at the mean pace so
    far: a text that was drawn long ago does not appear at once.
    """

    def __init__(self) -> None:
        self._texts, self._finishes = ["", ""], ["", ""]
        self._shown, self._num_releases = 0, 0
        self._sent = ("", "")
        self._credit, self._pace = 0.0, float(MAX_CHARS)    # characters, and those of a release

    def push(self, side: int, text: str, finish: str = "") -> None:
        """Takes text of a side; with a finish, its last."""
        self._texts[side] += text
        self._finishes[side] = finish

    @property
    def is_over(self) -> bool:
        """Whether both answers were given out whole."""
        return all(self._sent)

    @property
    def texts(self) -> tuple[str, str]:
        """All that was taken."""
        return self._texts[0], self._texts[1]

    @property
    def finishes(self) -> tuple[str, str]:
        """See `Change`; of what was taken."""
        return self._finishes[0], self._finishes[1]

    def release(self) -> Change | None:
        """What is shown next, to be called at even intervals; None where that is nothing."""
        before, lengths = self._shown, [*map(len, self._texts)]
        if any(self._shown_finishes()):
            end, is_end = max(lengths), all(self._finishes)
            self._credit = min(self._credit + self._pace, MAX_CHARS)
            num = int(min(end - before, self._credit))
        else:
            end = min(lengths)
            is_end = any(finish and length == end
                         for finish, length in zip(self._finishes, lengths))
            num = min(end - before, MAX_CHARS)
            if before:
                self._num_releases += 1
                self._pace = max(before / self._num_releases, MIN_CHARS)
        if before + num < end or not is_end:
            num -= num % STEP_CHARS
        self._credit = max(self._credit - num, 0.0)
        self._shown += num
        finishes = self._shown_finishes()
        if not num and finishes == self._sent:
            return None
        self._sent = finishes
        first, second = (visible(text[before:self._shown]) for text in self._texts)
        return Change((first, second), finishes)

    def _shown_finishes(self) -> tuple[str, str]:
        first, second = (finish if self._shown >= len(text) else ""
                         for text, finish in zip(self._texts, self._finishes))
        return first, second
