"""The page of a search for contamination: what was found, by which method, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, percent, size, tag

MAX_ITEMS = 60
TITLES = {
    "ngram_8": "8-gram", "ngram_13": "13-gram", "near": "rare words",
    "chars_50": "50 characters", "chars_50_drawn": "50 characters, 3 drawn",
    "overlap_20": "words in 8-grams ≥ 20 %", "overlap_80": "words in 8-grams ≥ 80 %",
    "longest": "longest run", "edit": "edit similarity", "embedding": "embedding"}
STYLE = """
.range { color: var(--quiet); font-size: .85em; white-space: nowrap; }
.passage { max-width: 34em; overflow-wrap: anywhere; }
"""
Report = Mapping[str, Any]


def render_contamination(report: Report, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML; see `eval.contamination.report.make_report`."""
    corpus, tasks = report["corpus"], report["tasks"]
    num = sum(task["items"] for task in tasks.values())
    found = sum(task["any"] for task in tasks.values())
    exact = sum(task["rules"]["ngram_13"] for task in tasks.values())
    tiles = [
        ("Items", count(num), f"of {count(len(tasks))} tasks; "
         f"{count(num - sum(task['searched'] for task in tasks.values()))} too short to search"),
        ("Found by any method", count(found), f"{percent(found / num)} of the items"),
        ("Found by 13-grams", count(exact), f"{percent(exact / num)} of the items"),
        ("Corpus", size(corpus["bytes"]), f"{count(corpus['documents'])} documents, "
         f"{decimal(corpus['lexical_mb_per_sec'], 2)} MB/s of text search; "
         f"{count(sum(corpus['left_out'].values()))} left out")]
    return render_page(
        "Heartwood: contamination", headline(
            "Heartwood · contamination", "Contamination",
            "Which items of benchmarks a training corpus holds, by several methods, and what that "
            "changes. Methods differ in what they miss: none is a verdict alone.", tiles),
        _tasks(report), _scores(report), _model(report), _canaries(report), _items(rows),
        style=STYLE)


def _rule_name(report: Report, name: str) -> str:
    at_least = report["rules"][name]["at_least"]
    return TITLES[name] + (f" ≥ {at_least:g}" if at_least and "≥" not in TITLES[name] else "")


def _tasks(report: Report) -> Markup:
    names = list(report["rules"])
    rows = [[task, count(one["items"]),
             *(f"{count(one['rules'][name])} · {percent(one['rules'][name] / one['items'])}"
               for name in names),
             *(count(one["classes"].get(kind, 0)) for kind in ("clean", "partly", "dirty"))]
            for task, one in report["tasks"].items()]
    return section(
        "Items found", "Counts and shares of a task's items. Classes are by the share of an item's "
        "words that lie in 8-grams found in the corpus: clean below 20 %, dirty from 80 % on.",
        table(["task", "items", *(_rule_name(report, name) for name in names),
               "clean", "partly", "dirty"], rows, "numbers"))


def _scores(report: Report) -> Markup | None:
    if not report["scores"]:
        return None
    parts = []
    for task, one in report["scores"].items():
        rows = [[_rule_name(report, name), _share(split["clean"]), _share(split["dirty"]),
                 _difference(split["difference"])] for name, split in one["rules"].items()]
        note = f" {count(one['unmatched'])} records are no items searched for." \
            if one["unmatched"] else ""
        parts.append(join(tag("h3", task), tag("p", "All items: ", _share(one["all"]), note),
                          table(["rule", "clean", "dirty", "dirty less clean"], rows, "numbers")))
    return section(
        "Scores", "Of the same evaluation on items that a rule calls clean and dirty, with 95 % "
        "intervals. Dirty items may be easier for other reasons: a difference is no proof of "
        "memory, and none within its interval is no proof of its absence.", *parts)


def _share(found: Mapping[str, Any] | None) -> Any:
    if found is None:
        return "–"
    return join(percent(found["value"]), " ", tag(
        "span", f"{percent(found['low'])} to {percent(found['high'])}, {count(found['items'])}",
        class_="range"))


def _difference(found: Mapping[str, float] | None) -> Any:
    if found is None:
        return "–"
    return join(decimal(100 * found["value"], 1), " ", tag(
        "span", f"{decimal(100 * found['low'], 1)} to {decimal(100 * found['high'], 1)} points",
        class_="range"))


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else decimal(value, digits)


def _model(report: Report) -> Markup | None:
    model = report["model"]
    if not model:
        return None
    rows = [[name, count(one["items"]), *(_number(one[measure])
                                          for measure in ("loss", "min_k", "min_k_pp"))]
            for name, one in model["means"].items()]
    areas = [[name, join(decimal(one["value"]), " ", tag(
        "span", f"{_number(one['low'])} to {_number(one['high'])}", class_="range")),
        count(one["positives"]), count(one["negatives"]), count(one["too_short"])]
        for name, one in (model["auroc"] or {}).items()]
    return section(
        "What the model says", f"{model['name']}: means over texts of the mean log-probability "
        "(loss), Min-K % and Min-K %++, K = 20 %, in nats; higher is more familiar. Common texts "
        "are familiar as well, and sets differ in more than membership: never a verdict alone.",
        table(["texts", "scored", "loss", "Min-K %", "Min-K %++"], rows, "numbers"),
        table(["members against others", "area under ROC", "members", "others", "too short"],
              areas, "numbers") if areas else None)


def _canaries(report: Report) -> Markup | None:
    if not report["canaries"]:
        return None
    rows = []
    for one in report["canaries"]:
        found = one.get("model")
        rows.append([tag("span", one["canary"], class_="passage"), count(one["documents"]),
                     one["first"] or "–", f"{decimal(found['exposure_bits'], 2)} of at most "
                     f"{decimal(found['max_bits'], 2)}" if found else "–"])
    return section("Canaries", "Marked texts in the corpus, and how much more likely the model "
                   "finds them than others drawn in the same way; one that was never seen has 1.4 "
                   "bits on average.",
                   table(["canary", "documents", "first", "exposure in bits"], rows, "plain"))


def _items(rows: Sequence[Mapping[str, Any]]) -> Markup:
    found = sorted((row for row in rows if row["found_by"]),
                   key=lambda row: -len(row["found_by"]))[:MAX_ITEMS]
    cells = []
    for row in found:
        method, best = _best_passage(row)
        cells.append([f"{row['task']} {row['item']}", count(row["documents"]),
                      ", ".join(TITLES[name] for name in row["found_by"]),
                      tag("div", row["text"], class_="passage"),
                      tag("div", best["text"], class_="passage"),
                      f"{best['source']}, words {best['start']} to {best['stop']}, by {method}"])
    return section(
        "Items", f"Those that most rules found, {count(len(cells))} of "
        f"{count(sum(bool(row['found_by']) for row in rows))}; items.jsonl has all.",
        table(["item", "documents", "found by", "item's text", "passage", "where"], cells, "plain"))


def _best_passage(row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The method that shows most of the item, and what it found."""
    order = ("ngram_13", "ngram_8", "chars_50", "near", "embedding", "longest", "edit")
    method = next((name for name in order if name in row["found"]), next(iter(row["found"])))
    return method, row["found"][method]
