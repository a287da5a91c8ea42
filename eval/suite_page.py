"""The page of evaluations: models by tasks, with intervals and chance, and every item behind it.

The table is one self-contained file; the items of each cell are a page of their own in a folder
beside it, so that a suite of ten thousands of items opens at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import read_json, read_jsonl, read_lineage
from core.errors import UserError
from core.page.layout import headline, render_page, section, table, versions
from core.page.markup import Markup, count, decimal, join, percent, tag
from eval.aggregate.table import name_evaluations
from eval.records import METRICS, Record, verdict

STYLE = """
td a { color: inherit; text-decoration-color: var(--rule); white-space: nowrap; }
td a.below { opacity: .5; } .range { color: var(--quiet); font-size: .85em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; }
details { border-top: 1px solid var(--rule); padding: .4em 0; } summary { cursor: pointer; }
.right::before { content: "✓ "; } .wrong::before { content: "✗ "; }
"""
MAX_ITEMS = 20_000      # of a page of items


def write_suite_page(folders: Sequence[Path], path: Path) -> dict[str, Any]:
    """Writes the table of evaluations, and a page of items for each of its cells.

    Returns:
        The page, the models, the tasks and the number of items that can be looked at.

    Raises:
        UserError: a folder holds no evaluation, or two have one name.
    """
    names = list(name_evaluations(folders))
    metrics = {folder: _metrics(folder) for folder in folders}
    tasks = list(dict.fromkeys(task for own in metrics.values() for task in own["tasks"]))
    beside = path.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    num_items = 0
    for folder in folders:
        for task in metrics[folder]["tasks"]:
            records = read_jsonl(folder / f"{task}.jsonl")
            (beside / f"{folder.name}-{task}.html").write_text(
                render_items(folder.name, task, records), encoding="utf-8")
            num_items += len(records)
    path.write_text(render_suite(metrics, tasks, beside.name, num_items), encoding="utf-8")
    return {"page": str(path), "models": names, "tasks": tasks, "items": num_items}


def _metrics(folder: Path) -> dict[str, Any]:
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    if "tasks" not in metrics:
        raise UserError(str(folder), "holds no evaluation", "name a folder that eval.run wrote")
    return metrics


def render_suite(metrics: Mapping[Path, Mapping[str, Any]], tasks: Sequence[str],
                 beside: str, num_items: int) -> str:
    """The table as HTML.

    Args:
        metrics: of each evaluation.
        beside: name of the folder with the pages of items.
        num_items: on all of these.
    """
    head = ["task", "chance", *(folder.name for folder in metrics)]
    rows = [[task, _chance(metrics.values(), task),
             *(_cell(folder.name, own, task, beside) for folder, own in metrics.items())]
            for task in tasks]
    detail = [[folder.name, task, *(_number(own.get(f"{task}_{name}"))
                                    for name in (*METRICS.values(), "macro", "brier", "ece",
                                                 "ppl", "strict", "flexible")),
               _left_out(own, task)]
              for task in tasks for folder, own in metrics.items() if task in own["tasks"]]
    settings = [tag("p", tag("strong", folder.name), " · ", _settings(folder))
                for folder in metrics]
    return render_page(
        "Evaluation", headline(
            "Evaluation", "Models by tasks", "Accuracy with its 95 % interval; a cell leads to "
            "every item behind it, with its literal prompt. What does not exceed chance by its "
            "interval is pale.",
            [("models", count(len(metrics)), ""), ("tasks", count(len(tasks)), ""),
             ("items", count(num_items), "of all models")]),
        section("Accuracy", "The first measure of each task.", table(head, rows, "grid")),
        section("All measures", "Options compared by their sum of log-probabilities (raw), per "
                "character (norm), per byte, per token, and against their own frequency (pmi).",
                table(["model", "task", *METRICS.values(), "macro", "brier", "ece", "ppl",
                       "strict", "flexible", "left out, cut, refused, unparsed"], detail, "grid")),
        section("Settings", "What decided the prompts and the numbers.", *settings), style=STYLE)


def _cell(name: str, own: Mapping[str, Any], task: str, beside: str) -> Markup:
    if task not in own["tasks"]:
        return tag("span", "–")
    accuracy, low, high = (own[f"{task}_{part}"] for part in ("acc", "low", "high"))
    chance = own.get(f"{task}_chance") or 0.0
    return tag("a", percent(accuracy), " ", tag("span", f"{percent(low)} to {percent(high)}",
                                                class_="range"),
               href=f"{beside}/{name}-{task}.html",
               class_="below" if low is not None and low <= chance else None)


def _chance(every: Sequence[Mapping[str, Any]], task: str) -> str:
    known = [own[f"{task}_chance"] for own in every if own.get(f"{task}_chance")]
    return percent(known[0]) if known else ""


def _number(value: float | None) -> str:
    return "" if value is None else decimal(value)


def _left_out(own: Mapping[str, Any], task: str) -> str:
    counts = [own.get(f"{task}_{name}", 0) for name in ("left_out", "cut", "refused", "unparsed")]
    return ", ".join(map(count, counts))


def _settings(folder: Path) -> str:
    lineage = read_lineage(folder)
    own = lineage["config"]["eval"]
    shown = {name: own[name] for name in ("weights", "compute_dtype", "num_shots", "examples",
                                          "max_new_tokens", "seed")}
    marks = {name: mark for name, mark in lineage["inputs"].items() if name.startswith("tasks.")}
    return (", ".join(f"{name}={value}" for name, value in shown.items())
            + "".join(f", {name} {mark}" for name, mark in marks.items())
            + f" · {versions(lineage)}")


def render_items(model: str, task: str, records: Sequence[Record]) -> str:
    """Every item of a task: question, verdict, and behind them prompt, options or answer."""
    shown = records[:MAX_ITEMS]
    note = "" if len(shown) == len(records) else f"; the first {count(len(shown))} are shown"
    return render_page(f"{task} · {model}", headline(
        model, task, f"{count(len(records))} items{note}.", []),
        tag("section", [_item(record) for record in shown]), style=STYLE)


def _item(record: Record) -> Markup:
    is_right = verdict(record) >= 0.5
    lines = _choice_lines(record) if "choices" in record else _answer_lines(record)
    return tag("details", tag("summary", record["id"], " · ", " ".join(
        record["question"].split())[:160], class_="right" if is_right else "wrong"), *lines,
               id=record["id"])


def _choice_lines(record: Record) -> Iterator[Markup]:
    for context in record["contexts"]:
        yield tag("pre", context)
    yield tag("pre", "\n".join(
        f"{'→' if number in record['answers'] else ' '} {logp:10.4f} nats, {num_tokens} tokens  "
        f"{choice}" for number, (choice, logp, num_tokens) in enumerate(zip(
            record["choices"], record["logps_nats"], record["num_tokens"]))))
    yield tag("p", join(*(f"{METRICS[name]}: {'right' if is_right else 'wrong'}  "
                          for name, is_right in record["right"].items())))


def _answer_lines(record: Record) -> Iterator[Markup]:
    yield tag("pre", record["prompt"])
    yield tag("pre", f"→ {record['completion']}")
    yield tag("p", f"extracted {record['extracted']!r} · reference {record['reference']!r} · "
              f"score {record['score']:.3g} · {record['finish']}")
