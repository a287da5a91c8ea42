"""Multiple-choice benchmarks: a line of a table each, with files, layouts of rows, and forms."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from core.errors import UserError, first_line
from core.progress import log_once
from data.chat import ask
from data.layouts.rows import Damaged, read_rows
from eval.benchmarks.form import Form, Item, Layout
from eval.benchmarks.olmes import fixed_examples
from eval.benchmarks.source import Source
from eval.tasks.task import Choice

EXAMPLES = ("first", "seeded")
UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError)
CORE_ORDER_SEED = 1337      # of nanochat's base_eval.py
MAX_TWINS = 20              # of an item, among the examples drawn for it


@dataclasses.dataclass(frozen=True)
class Questions:
    """A benchmark that is opened in one form; a `ChoiceTask`.

    Attributes:
        name: the benchmark's name.
        source: with what it was opened.
        form: of the prompts.
        num_shots: solved examples before each question.
        items: by number of their row, from 0.
        pool: from which examples are taken; the items themselves where it is empty.
        left_out: rows that no score may count, by reason.
        noted: rows that count although something is odd with them, by reason.
    """

    name: str
    source: Source
    form: Form
    num_shots: int
    items: Mapping[int, Item]
    pool: Sequence[Item] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    noted: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def normalisation(self) -> str:
        """By which an item is judged; the other ones are reported beside it."""
        return self.form.normalisation

    def choices(self, split: str, num: int, seed: int) -> list[Choice]:
        """The first `num` questions, or all; a benchmark has one split.

        Raises:
            UserError: a question has too few examples.
        """
        del split, seed
        places = list(self.items)
        examples = _Examples(self)
        return [self._ask(row, examples.of(self.items[row], place))
                for place, row in enumerate(places[:num] if num > 0 else places)]

    def _ask(self, row: int, examples: Sequence[Item]) -> Choice:
        item, form = self.items[row], self.form
        shots = "".join(form.solved(example) + form.between for example in examples)
        before = form.header.format(**item.fields) + shots
        own = form.contexts(item)
        meta = {"task": self.name, "family": item.group or self.name, "id": f"{self.name}/{row}"}
        if item.group:
            meta["group"] = item.group
        return Choice(ask("\n".join(own), **meta), form.scored(item), item.answers[0],
                      tuple(before + context for context in own), form.baseline,
                      item.answers if len(item.answers) > 1 else ())


class _Examples:
    """The solved examples of each item; never the item itself."""

    def __init__(self, task: Questions):
        self._task, self._own = task, not task.pool
        self._pool = list(task.pool or task.items.values())
        self._shuffled = list(range(len(self._pool)))
        if task.form.is_core:
            random.Random(CORE_ORDER_SEED).shuffle(self._shuffled)
        self._rank = {place: rank for rank, place in enumerate(self._shuffled)}
        self._groups: dict[str, list[int]] = {}
        for place, item in enumerate(self._pool):
            self._groups.setdefault("" if self._own else item.group, []).append(place)

    def of(self, item: Item, place: int) -> list[Item]:
        """The examples of the item at this place of the task's items.

        Raises:
            UserError: there are too few.
        """
        task = self._task
        if not task.num_shots:
            return []
        if task.form.is_core:
            return self._draw_as_core(place)
        candidates = self._groups.get("" if "" in self._groups else item.group, [])
        if task.source.examples == "seeded":
            num = min(len(candidates), task.num_shots + MAX_TWINS)
            candidates = random.Random(task.source.seed + place).sample(candidates, num)
        others = (other for other in candidates if not self._is_item(other, item, place))
        found = [self._pool[other] for other in itertools.islice(others, task.num_shots)]
        self._check(len(found), item)
        return found

    def _is_item(self, other: int, item: Item, place: int) -> bool:
        """Whether it is the item, or its twin, which would give the answer away."""
        example = self._pool[other]
        return (self._own and other == place) or (
            example.fields == item.fields and example.choices == item.choices)

    def _check(self, num: int, item: Item) -> None:
        task = self._task
        if num < task.num_shots:
            of = f" of {item.group}" if item.group and not self._own else ""
            raise UserError(f"num_shots={task.num_shots}",
                            f"{task.name} has only {num} examples{of} besides the question",
                            "ask for fewer examples")

    def _draw_as_core(self, place: int) -> list[Item]:
        """As nanochat's core_eval.py draws: by rank in the shuffled file, among all others.

        Source: karpathy/nanochat@92d63d4, core_eval.py and base_eval.py.
        """
        task, own = self._task, self._rank[place]
        num_others = len(self._pool) - 1
        self._check(num_others, self._pool[place])
        ranks = random.Random(task.source.seed + own).sample(range(num_others), task.num_shots)
        return [self._pool[self._shuffled[rank + (rank >= own)]] for rank in ranks]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A published benchmark of multiple choice.

    Attributes:
        name: as in the field.
        stems: names that its file may have, endings aside.
        layouts: of its rows, the most particular first.
        forms: of its prompts by name; the first is the default.
    """

    name: str
    stems: tuple[str, ...]
    layouts: tuple[Layout, ...]
    forms: Mapping[str, Form]

    def __call__(self, source: Source) -> Questions:
        """Opens the benchmark.

        Rows that no score may count are left out, counted and logged by reason: one whose right
        option is none of the options, one with an empty option. Equal options are counted and
        stay, as published scores include them.

        Raises:
            UserError: there is no such form, file or rule of examples; a row is damaged or lacks a
                field; no row is left; or the form's file of examples is missing or has none.
        """
        form = self._form(source)
        num_shots = form.num_shots if source.num_shots < 0 else source.num_shots
        path, faults = source.find(*self.stems), Faulty(self.name)
        items = dict(self._read(read_rows(path), form, faults))
        faults.report()
        if not items:
            raise UserError(str(path), f"holds no question of {self.name}", "name another folder")
        pool: list[Item] = []
        if num_shots and (form.fixed or form.examples):
            rows = (fixed_examples(source, self.name) if form.fixed
                    else read_rows(source.find(form.examples)))
            beside = Faulty(f"examples of {self.name}")
            pool = [item for _, item in self._read(rows, form, beside)]
            beside.report()
            if not pool:
                raise UserError(f"num_shots={num_shots}", f"no example of {self.name} can be used",
                                "correct the file of examples, or ask for none")
        return Questions(self.name, source, form, num_shots, items, pool, faults.left_out,
                         faults.noted)

    def _form(self, source: Source) -> Form:
        name = source.form or next(iter(self.forms))
        if name not in self.forms:
            raise UserError(f"form={name!r}", f"is no form of {self.name}",
                            f"choose among {', '.join(self.forms)}")
        if source.examples not in EXAMPLES:
            raise UserError(f"examples={source.examples!r}", f"is none of {', '.join(EXAMPLES)}",
                            "choose one of them")
        return self.forms[name]

    def _read(self, rows: Iterable[tuple[str, Any]], form: Form,
              faults: Faulty) -> Iterator[tuple[int, Item]]:
        """The usable ones of a file's rows, by number."""
        for number, (place, row) in enumerate(rows):
            if isinstance(row, Damaged):
                raise UserError(place, row.what, "correct this row, or remove it")
            item = self._item(row, place, form)
            if not faults.refuses(item.choices, item.answers, place, bool(item.starts)):
                yield number, _ordered(item, form.order)

    def _item(self, row: Mapping[str, Any], place: str, form: Form) -> Item:
        """Reads a row by the first layout whose columns it has.

        Raises:
            UserError: there is none, a value cannot be read, or the form needs another layout.
        """
        for layout in self.layouts:
            if set(layout.columns) <= set(row):
                break
        else:
            known = "; or ".join(", ".join(layout.columns) for layout in self.layouts)
            raise UserError(place, f"has the fields {', '.join(row)}, which are no layout of "
                            f"{self.name}", f"give rows with the fields {known}")
        try:
            item = layout.read(row)
        except UNREADABLE as error:
            raise UserError(place, f"is no question of {self.name} ({type(error).__name__}: "
                            f"{first_line(error)})", "correct this row, or remove it") from None
        lacking = form.fields() - set(item.fields)
        if lacking or (form.needs_starts() and not item.starts):
            name = next(name for name, one in self.forms.items() if one is form)
            other = "; or ".join(", ".join(one.columns) for one in self.layouts if one != layout)
            raise UserError(place, f"has not what the form {name} of {self.name} is made of "
                            f"({', '.join(sorted(lacking)) or 'options with texts before them'})",
                            "choose another form" + (other and f", or give rows with the fields "
                                                     f"{other}"))
        return item


class Faulty:
    """What is odd with the rows of a benchmark's file, counted by reason.

    Attributes:
        left_out: rows that are not asked.
        noted: rows that are asked nevertheless.
    """

    def __init__(self, name: str):
        self._name = name
        self.left_out: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def refuses(self, choices: Sequence[str], answers: Sequence[int], place: str,
                may_repeat: bool = False) -> bool:
        """Counts what is odd with the options of a row; whether it may not be asked.

        Args:
            may_repeat: whether options may be equal, as they differ in what stands before them.
        """
        reason = ""
        if not answers or not all(0 <= answer < len(choices) for answer in answers):
            reason = "gold_out_of_range"
        elif not all(choice.strip() for choice in choices):
            reason = "empty_choice"
        elif not may_repeat and len(set(choices)) < len(choices):
            self.noted["equal_choices"] += 1
            self._first.setdefault("equal_choices", place)
        if reason:
            self.left_out[reason] += 1
            self._first.setdefault(reason, place)
        return bool(reason)

    def report(self) -> None:
        """Logs a line for each reason, with the first row of it; a file may be opened for several
        forms."""
        for counts, what in ((self.left_out, "left out"), (self.noted, "asked although odd")):
            for reason, num in counts.items():
                log_once(f"{self._name}: {what}: {num:,} rows ({reason}), the first: "
                         f"{self._first[reason]}")


def _ordered(item: Item, order: Sequence[int]) -> Item:
    """The item with its options in another order."""
    if not order:
        return item
    return dataclasses.replace(item, choices=tuple(item.choices[place] for place in order),
                               answers=tuple(order.index(answer) for answer in item.answers))
