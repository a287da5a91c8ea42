"""What the main process knows of reading: fields of rows, files left out, a limit of documents."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.progress import log
from data.readers.fields import from_config
from data.readers.units import LeftOut

MAX_SHOWN = 5       # suffixes and fields in a line of the log

Results = Sequence[Mapping[str, Any]]


def make_rules(section: Mapping[str, Any]) -> dict[str, Any]:
    """The argument `reading` of `data.passes.measure.measure`."""
    return {name: section[name] for name in ("domain", "code_domains", "limit")} | {
        "fields": dataclasses.asdict(from_config(section))}


def find_first(measure: Callable[[list[dict[str, Any]]], Results], tasks: list[dict[str, Any]],
               limit: int) -> list[dict[str, Any]]:
    """The tasks that read the first `limit` documents; of the last one, only so many.

    Args:
        measure: runs tasks and returns their results; those that have run already are cheap.
        tasks: of all units, in order, each with the whole limit. They are run in growing groups
            until the limit is reached, so that the rest of the inputs is not read.
    """
    num_tasks, before = 1, [0]
    while before[-1] < limit:
        results = measure(tasks[:num_tasks])
        before = [0, *itertools.accumulate(result["documents"] for result in results)]
        if num_tasks >= len(tasks):
            break
        num_tasks *= 2
    last = next((unit for unit, total in enumerate(before[1:]) if total >= limit), None)
    if last is None:
        return tasks
    reading = tasks[last]["reading"] | {"limit": limit - before[last]}
    return [*tasks[:last], tasks[last] | {"reading": reading}]


def sum_fields(measured: Results) -> dict[str, dict[str, int]]:
    """Rows by the field of their text, by a configured field that they lack, by a field cut."""
    return {name: dict(sum((Counter(result[name]) for result in measured), Counter()).most_common())
            for name in ("text_fields", "missing_fields", "cut_fields")}


def check_fields(section: Mapping[str, Any], measured: Results) -> dict[str, dict[str, int]]:
    """Logs which fields were used and which are not kept; returns `sum_fields`.

    Raises:
        UserError: too many rows have no text, or none has a field that the config names.
    """
    sums = sum_fields(measured)
    num_rows = sum(sums["text_fields"].values())
    textless = sum(result["textless"]["rows"] for result in measured)
    first = next((names for result in measured if (names := result["textless"]["fields"])), ())
    is_empty = first and not any(result["documents"] for result in measured)
    if is_empty or textless > section["max_corrupt_frac"] * (num_rows + textless):
        name = section["text_field"]
        raise UserError(f"curate.text_field={name!r}", f"{textless:,} of {num_rows + textless:,} "
                        f"rows have no {'such' if name else 'usual'} field (the first has "
                        f"{', '.join(first)})", "name the field with --config.curate.text_field")
    for name, count in sums["missing_fields"].items():
        if count == num_rows:
            raise UserError(_place(section, name), "has a value in no row of the inputs",
                            "name a field that they have")
        log(f"curate: {count:,} of {num_rows:,} rows have no field `{name}` "
            f"({_place(section, name)})")
    if not section["text_field"] and (others := {
            name: count for name, count in sums["text_fields"].items() if name != "text"}):
        log(f"curate: the text of rows is read from {_list(others)}; "
            "--config.curate.text_field chooses another field")
    if sums["cut_fields"]:
        log(f"curate: too large or without a form in JSON, so not kept in `meta`: "
            f"{_list(sums['cut_fields'])}; --config.curate.meta_fields names what is to be kept")
    return sums


def _place(section: Mapping[str, Any], name: str) -> str:
    """The field of the config that names a field of rows."""
    field = next((field for field in ("id_field", "url_field") if section[field] == name), None)
    if field is None and name in section["columns"].values():
        field = "columns"
    return f"curate.{field or 'meta_fields'}={name!r}"


def log_left_out(found: Sequence[LeftOut]) -> None:
    """One line on the files of the input folders that are not read."""
    for reason in dict.fromkeys(one.reason for one in found):
        groups = {one.suffix: one.files for one in found if one.reason == reason}
        log(f"inputs: {sum(groups.values()):,} files are left out, {reason} ({_list(groups)})")


def _list(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in itertools.islice(counts.items(), MAX_SHOWN)]
    return ", ".join(shown + (["..."] if len(counts) > MAX_SHOWN else []))
