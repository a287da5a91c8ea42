"""Parts of reading rows: options that are listed with labels, and rows of LLM-Foundry.

LLM-Foundry's files have three kinds of rows, which the CORE metric reads (mosaicml/llm-foundry,
scripts/eval/local_data; arXiv 2406.11794):

    {"query": ..., "choices": [...], "gold": 0}                         multiple_choice
    {"context_options": [...], "continuation": ..., "gold": 0}          schema
    {"context": ..., "continuation": ...}                               language_modeling
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eval.benchmarks.form import Item, Layout

Row = Mapping[str, Any]


def text_of(value: Any) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text should be")
    return value


def texts_of(values: Any) -> tuple[str, ...]:
    """The values, which must be a list of texts."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"a {type(values).__name__} where a list of texts should be")
    return tuple(text_of(value) for value in values)


def index_of(value: Any) -> int:
    """The value as an index: an integer, or one written out; -1 stays what it is."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is no index")
    return int(value)


def read_labelled(row: Row, **fields: str) -> Item:
    """An item with the columns ``choices`` (``text`` and ``label``) and ``answerKey``."""
    choices, key = row["choices"], text_of(row["answerKey"]).strip()
    labels = texts_of(choices["label"])
    answer = labels.index(key) if key in labels else len(labels)    # counted as out of range
    return Item(fields, texts_of(choices["text"]), (answer,))


def read_choices(row: Row) -> Item:
    """An item of LLM-Foundry's multiple choice, or any with its columns."""
    gold = row["gold"]
    answers = tuple(map(index_of, gold if isinstance(gold, list) else [gold]))
    return Item({"query": text_of(row["query"])}, texts_of(row["choices"]), answers)


def read_schema(row: Row) -> Item:
    """An item of LLM-Foundry's schemas, whose options differ before the scored text."""
    starts = texts_of(row["context_options"])
    continuation = text_of(row["continuation"])
    return Item({"continuation": continuation}, (continuation,) * len(starts),
                (index_of(row["gold"]),), starts)


def read_language(row: Row) -> Item:
    """An item of LLM-Foundry's language modelling: one option, which is right."""
    return Item({"context": text_of(row["context"]).strip()}, (text_of(row["continuation"]),), (0,),
                group=text_of(row.get("category", "")))


def with_fields(make: Callable[[Row], dict[str, str]]) -> Callable[[Row], Item]:
    """`read_choices` with further fields, which `make` finds in the row."""
    def read(row: Row) -> Item:
        item = read_choices(row)
        return Item({**item.fields, **make(row)}, item.choices, item.answers)
    return read


def foundry(read: Callable[[Row], Item] = read_choices) -> Layout:
    """The layout of LLM-Foundry's multiple choice."""
    return Layout(("query", "choices", "gold"), read)


SCHEMA = Layout(("context_options", "continuation", "gold"), read_schema)
LANGUAGE = Layout(("context", "continuation"), read_language)
