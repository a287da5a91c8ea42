"""What a search writes: `plan.json` before its runs, `mixture.json` after them; and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import read_json, read_lineage, write_json
from core.errors import UserError
from core.progress import format_count, log
from train.mixture.runs import ProxyRun, Search
from train.mixture.shares import Shares, share_flags

MISSING = "not there"


def open_folder(search: Search) -> None:
    """Makes the folder of a search, or goes on in it.

    Raises:
        UserError: it holds the plan of other settings.
    """
    path = search.out / "plan.json"
    plan = {"command": search.name, "settings": settings_of(search)}
    if path.exists():
        found = read_json(path)
        change = _first_change(found, plan)
        if change:
            raise UserError(f"--out={search.out}", f"holds another plan: {change}",
                            "name another folder, or remove this one")
    search.out.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)


def settings_of(search: Search) -> dict[str, Any]:
    """What decides the runs: fields of the config by their names, and the mark of the tokens."""
    sections = {name: search.config[name].to_dict() for name in (search.name, "pretrain", "model")}
    fields = {"tokens": read_lineage(search.tokens)["build"]}
    for name, section in sections.items():
        section.pop("run", None)
        fields |= _flatten(name, section)
    return json.loads(json.dumps(fields))


def write_mixture(search: Search, field: str, shares: Shares,
                  found: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `mixture.json` and returns what the command prints.

    Args:
        field: of the config, to which the shares belong.
        shares: those found.
        found: what else is known of them; its `warnings` are logged.
    """
    flags = share_flags(field, shares)
    result = {"command": search.name, "metric": search.metric, "weights": shares, **found,
              "flags": flags, "path": str(search.out / "mixture.json")}
    write_json(search.out / "mixture.json", result | {
        "config": settings_of(search), "parents": {"tokens": str(search.tokens)}})
    for warning in found["warnings"]:
        log(f"{search.name}: {warning}")
    log(f"{search.name}: {flags}")
    return result


def show_plan(runs: Sequence[ProxyRun]) -> str:
    """The table of runs: the domains' shares, the passes over the one that is read most."""
    domains = sorted({name for run in runs for name in run.shares})
    rows = [run.describe() for run in runs]
    cells = [["run", *domains, "epochs", ""]]
    cells += [[row["run"], *(f"{row['shares'].get(name, 0.0):.4f}" for name in domains),
               f"{row['epochs']:.2f}", "finished" * row["is_finished"]] for row in rows]
    return "\n".join([show_table(cells), f"{len(runs)} runs of "
                      f"{format_count(max(row['tokens'] for row in rows))} tokens, "
                      f"{sum(row['flops'] for row in rows):.3g} FLOPs (6ND); "
                      f"{sum(not row['is_finished'] for row in rows)} are left"])


def show_table(cells: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
                     for line in cells)


def _flatten(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping | ConfigDict):
        return {path: value}
    fields: dict[str, Any] = {}
    for name, inner in value.items():
        fields |= _flatten(f"{path}.{name}", inner)
    return fields


def _first_change(found: Any, plan: Mapping[str, Any]) -> str:
    """The first way in which a plan differs from that of a folder; empty if it is the same."""
    if not isinstance(found, dict) or found.get("command") != plan["command"]:
        return f"it is none of {plan['command']}"
    old, new = found.get("settings", {}), plan["settings"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name, MISSING) != new.get(name, MISSING):
            return (f"its {name} is {old.get(name, MISSING)!r}, and here it is "
                    f"{new.get(name, MISSING)!r}")
    return ""
