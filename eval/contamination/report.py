"""One pass over a corpus, and all figures that follow."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from core.progress import log
from data.contamination.index import searched_texts
from data.contamination.task_files import Item
from data.layouts.faults import Faults
from eval.contamination.canaries import Canaries
from eval.contamination.corpus import read_corpus
from eval.contamination.detect import Detector
from eval.contamination.embed import Encoder, Nearby
from eval.contamination.membership import MEASURES, compare_sets, score_texts
from eval.contamination.scores import join_results, split_scores
from eval.contamination.tally import Rule, Tally, item_row
from eval.records import Record
from eval.respond.loaded import LoadedModel

MAX_REFERENCES = 1000       # texts of a side that items are compared with
LOG_SECS = 30.0


class Searched(NamedTuple):
    """What a pass over a corpus found, and its figures."""

    tally: Tally
    corpus: dict[str, Any]


class Evidence(NamedTuple):
    """What is asked beside the search; each part may be missing.

    Attributes:
        model: whose probabilities are measured.
        members, nonmembers: inputs of texts that it was trained on, and of others like them.
        num_candidates: that a canary is compared with.
        batch_size: rows of the model's context in a forward pass.
        seed: of canaries' candidates.
        results: records of an evaluation, by task.
    """

    model: LoadedModel | None = None
    members: str = ""
    nonmembers: str = ""
    num_candidates: int = 1000
    batch_size: int = 1
    seed: int = 0
    results: Mapping[str, Sequence[Record]] | None = None


def search(detector: Detector, inputs: str, *, encoder: Encoder | None = None,
           canaries: Canaries | None = None, num: int = 0) -> Searched:
    """Reads a corpus once; what is held of it is the best find of each item.

    Args:
        inputs, num: see `read_corpus`.
    """
    tally, faults, began = Tally(detector), Faults("contamination"), time.perf_counter()
    nearby = Nearby(encoder, detector.items) if encoder else None
    counts: Counter[str] = Counter()
    lexical_secs, logged = 0.0, began
    for page in read_corpus(inputs, faults, num):
        start = time.perf_counter()
        tally.add(page, detector.find(page.text))
        now = time.perf_counter()
        lexical_secs += now - start
        counts.update(documents=1, bytes=len(page.text.encode("utf-8", "replace")))
        if canaries:
            canaries.add(page)
        if nearby:
            nearby.add(page.source, page.text)
        if now - logged > LOG_SECS:
            logged = now
            log(f"contamination: {counts['documents']:,} documents, {counts['bytes'] / 1e6:.1f} MB")
    if nearby:
        nearby.finish()
        tally.add_nearest(nearby.nearest)
    faults.report()
    return Searched(tally, dict(counts) | {
        "inputs": inputs, "left_out": dict(faults.counts), "secs": time.perf_counter() - began,
        "lexical_mb_per_sec": counts["bytes"] / 1e6 / lexical_secs,
        "windows": nearby.num_windows if nearby else None})


def make_report(detector: Detector, searched: Searched, rules: Mapping[str, Rule],
                canaries: Canaries, evidence: Evidence) -> tuple[dict[str, Any], list[dict]]:
    """All figures, and a row for each item.

    Returns:
        The report: `corpus`, `index`, `rules`, `tasks` with counts of items by rule, `scores` on
        clean and dirty items, `model`, `canaries`. The rows: see `item_row`, with the `membership`
        scores by a model.

    Raises:
        UserError: the results are of other tasks, or reference texts are too short.
    """
    items, tally = detector.items, searched.tally
    dirty = tally.is_dirty(rules)
    if searched.corpus["windows"] is None:
        dirty.pop("embedding")
    rules = {name: rules[name] for name in dirty}
    rows = [item_row(item, best, documents, rules)
            for item, best, documents in zip(items, tally.best, tally.documents)]
    report = {"corpus": searched.corpus, "index": detector.report(),
              "rules": {name: rule._asdict() for name, rule in rules.items()},
              "tasks": _count_items(items, rows, dirty), "scores": None, "model": None}
    if evidence.results is not None:
        report["scores"] = split_scores(join_results(evidence.results, items), dirty)
    if evidence.model is not None:
        report["model"] = _measure(evidence.model, items, rows, evidence)
    report["canaries"] = canaries.report(evidence.model, num=evidence.num_candidates,
                                         seed=evidence.seed, batch_size=evidence.batch_size)
    return report, rows


def _count_items(items: Sequence[Item], rows: Sequence[Mapping[str, Any]],
                 dirty: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    tasks = np.array([item.task for item in items])
    found = {}
    for task in dict.fromkeys(tasks.tolist()):
        mine = tasks == task
        numbers = np.flatnonzero(mine)
        found[task] = {
            "items": len(numbers), "searched": sum(bool(searched_texts(items[n])) for n in numbers),
            "rules": {name: int(mask[mine].sum()) for name, mask in dirty.items()},
            "any": int(np.any([mask[mine] for mask in dirty.values()], axis=0).sum()),
            "classes": dict(Counter(rows[n]["overlap_class"] for n in numbers))}
    return found


def _measure(model: LoadedModel, items: Sequence[Item], rows: Sequence[dict[str, Any]],
             evidence: Evidence) -> dict[str, Any]:
    """The model's scores of all items, and of reference texts where they are given."""
    scored = score_texts(model, ["\n".join(item.fields) for item in items],
                         batch_size=evidence.batch_size)
    for row, scores in zip(rows, scored):
        row["membership"] = scores
    by_task = {task: [row["membership"] for row in rows if row["task"] == task]
               for task in dict.fromkeys(item.task for item in items)}
    found: dict[str, Any] = {"name": model.name, "means": {
        task: _average(scores) for task, scores in by_task.items()}, "auroc": None}
    if evidence.members:
        sides = {name: score_texts(model, _read(getattr(evidence, name)),
                                   batch_size=evidence.batch_size)
                 for name in ("members", "nonmembers")}
        found["auroc"] = compare_sets(sides["members"], sides["nonmembers"])
        found["means"] |= {name: _average(scores) for name, scores in sides.items()}
    return found


def _read(inputs: str) -> list[str]:
    faults = Faults("contamination")
    texts = [page.text for page in read_corpus(inputs, faults, MAX_REFERENCES)]
    faults.report()
    return texts


def _average(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Means of the measures; `items` are those that have them all."""
    found: dict[str, Any] = {"items": sum(None not in row.values() for row in scores)}
    for name in MEASURES:
        values = [row[name] for row in scores if row[name] is not None]
        found[name] = math.fsum(values) / len(values) if values else None
    return found

