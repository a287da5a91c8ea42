"""A multiple-choice benchmark's literal prompts: rows become items, which a form writes out.

A form is text alone, filled in by `str.format` with an item's fields and with

    {options}       the options one below the other, each by `line`: {letter}, {choice}, {bare}
    {start}         of an option, where options differ before the text that is scored
    {letter}, {choice}      of an option

All requests of an item have the same solved examples before them: `header`, then each example with
its right option, then the item, separated by `between`. An example never is the item itself.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Mapping
from typing import Any

LETTERS = string.ascii_uppercase
OF_OPTIONS = frozenset(("options", "start", "letter", "choice", "bare"))


@dataclasses.dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
        fields: what prompts are made of, by name.
        choices: the options' texts, without the space before them.
        answers: indices of the right ones; the first is the one that examples show.
        starts: what stands before each option, where that is what options differ in: the scored
            texts `choices` are then equal (partial evaluation, arXiv 1806.02847).
        group: items that belong together, e.g. a subject; "" where there is none.
    """

    fields: Mapping[str, str]
    choices: tuple[str, ...]
    answers: tuple[int, ...]
    starts: tuple[str, ...] = ()
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows with these columns are read.

    Attributes:
        columns: by which a row is recognised.
        read: makes an item of a row; a row that it cannot read ends the run.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Item]


@dataclasses.dataclass(frozen=True)
class Form:
    """A benchmark's prompts as one evaluation suite writes them.

    Attributes:
        text: the context of an item.
        option: what is scored behind it, the space before it included.
        line: one of the options in ``{options}``.
        header: stands before the examples, or before the item where there is none.
        between: examples, and between them and the item.
        num_shots: the form's own number of examples.
        examples: where they come from: rows of the file of this name, of the item's own group;
            "" for the item's own file.
        fixed: whether examples are the benchmark's own of OLMES; see `eval.benchmarks.olmes`.
        order: places of the options in this form, e.g. ``(1, 0)``; () as they are.
        is_core: examples are drawn as the CORE metric does; see `_draw_as_core`.
        baseline: `Choice.baseline`.
        normalisation: by which the suite judges: a name of `eval.measures.choices`, or "mass", the
            probability of all right options together.
    """

    text: str
    option: str = " {choice}"
    line: str = "{letter}. {choice}\n"
    header: str = ""
    between: str = "\n\n"
    num_shots: int = 0
    examples: str = ""
    fixed: bool = False
    order: tuple[int, ...] = ()
    is_core: bool = False
    baseline: str = ""
    normalisation: str = "raw"

    def fields(self) -> set[str]:
        """Names of the fields that an item must have."""
        templates = (self.text, self.option, self.line, self.header)
        used = {name for template in templates
                for _, name, _, _ in string.Formatter().parse(template) if name}
        return used - OF_OPTIONS

    def needs_starts(self) -> bool:
        """Whether options differ before the scored text."""
        return "{start}" in self.text

    def contexts(self, item: Item) -> tuple[str, ...]:
        """The item's context, or one for each option, without examples."""
        options = "".join(self.line.format(letter=letter, choice=choice, bare=choice.strip())
                          for letter, choice in zip(LETTERS, item.choices))
        starts = item.starts if self.needs_starts() else ("",)
        return tuple(self.text.format(**item.fields, options=options, start=start)
                     for start in starts)

    def scored(self, item: Item) -> tuple[str, ...]:
        """The texts whose log-probabilities are compared."""
        return tuple(self.option.format(**item.fields, letter=letter, choice=choice)
                     for letter, choice in zip(LETTERS, item.choices))

    def solved(self, item: Item) -> str:
        """The item with its right option, as an example."""
        contexts, answer = self.contexts(item), item.answers[0]
        return contexts[answer if len(contexts) > 1 else 0] + self.scored(item)[answer]
