"""The trace of one document: the result of every stage, up to its verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from core.errors import UserError
from core.page.markup import count, size, visible
from data.corpus import Corpus

NUM_CHARS, NUM_LINES = 100, 6   # size of an excerpt
# Numbers of `meta` that are not signals of rules.
NOT_SIGNALS = ("quality", "cluster_size", "language_score")

Row = Mapping[str, Any]


def trace(corpus: Corpus, document_id: str) -> dict[str, Any]:
    """Prints the source of a document, the result of every stage, and the verdict.

    Args:
        document_id: an id or a prefix of one.

    Returns:
        Its columns without the text, its verdict, and the thresholds of its signals.

    Raises:
        UserError: no document, or more than one, has such an id.
    """
    matches = corpus.find(document_id)
    if len(matches) != 1:
        raise UserError(f"doc {document_id!r}", f"{len(matches)} documents have such an id",
                        "give the id as `python -m data.inspect rule NAME` prints it")
    ((full_id, places),) = matches.items()
    row = corpus.read_at(places[0])   # the kept one of several documents with one id
    meta = json.loads(row["meta"])
    verdict = {"documents": "kept", "heldout": "held out"}.get(places[0].kind, "removed")
    report = _Trace(corpus, row, meta, verdict)
    print(f"{full_id}  {report.verdict_line()}")
    print(f"  source    {visible(row['source'])}\n  domain    {row['domain']}\n"
          f"  language  {row['language']}\n{beginning(row['text'])}\n")
    for number, (stage, line) in enumerate(report.stages(), 1):
        print(f"  {number:>2}  {stage:<14} {line}")
    print(f"\n{report.signals_table()}")
    for other in places[1:]:
        print(f"  the same id also occurs in {other.kind}/")
    report.print_representative()
    return {"kind": places[0].kind, "verdict": verdict,
            **{name: value for name, value in row.items() if name not in ("text", "meta")},
            "meta": meta, "thresholds": report.bounds}


def beginning(text: str) -> str:
    """The first non-blank lines of a text, indented."""
    lines = [visible(line[:NUM_CHARS]) for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[:NUM_LINES])


class _Trace:
    def __init__(self, corpus: Corpus, row: Row, meta: Row, verdict: str):
        self._corpus, self._row, self._meta, self._verdict = corpus, row, meta, verdict
        self._cutoffs = {one["name"]: one["threshold"]
                         for one in corpus.manifest.get("classifiers", ())}
        self.signals = {name: value for name, value in meta.items()
                        if isinstance(value, int | float) and name not in NOT_SIGNALS}
        self.bounds = {
            histogram["signal"]: {"min": histogram["min"], "max": histogram["max"]}
            for histogram in corpus.manifest.get("histograms", ())
            if histogram["domain"] == row["domain"] and histogram["signal"] in self.signals}

    def verdict_line(self) -> str:
        """The verdict in one line."""
        if self._verdict != "removed":
            return {"kept": "kept for training", "held out": "held out"}[self._verdict]
        return f"removed in {self._row['stage']}: {self._removal()}"

    def stages(self) -> list[tuple[str, str]]:
        """(stage, result) for every stage that processed the document."""
        trimmed = self._meta.get("trimmed") or {}
        num_bytes = len(self._row["text"].encode()) + sum(trimmed.values())

        def cut(rules: Iterable[str]) -> str:
            return _list("cut", {rule: trimmed[rule] for rule in rules if rule in trimmed},
                         "bytes of ")

        describe: dict[str, Callable[[Row], str]] = {
            "extract": lambda _: f"about {size(num_bytes)} of text",
            "exact_dedup": lambda _: "no earlier document has the same text",
            "language": lambda _: f"{self._row['language']}, "
                                  f"score {self._meta.get('language_score', math.nan):.3f}",
            "rules": lambda _: f"within the bounds of {len(self.bounds)} signals",
            "harm": lambda _: "its URL is on no list",
            "harm_words": lambda _: "few or no words on the lists",
            "classifiers": lambda _: self._scores(),
            "filters": lambda _: "no function of your own removes it",
            "lines": lambda record: cut(record["trimmed_bytes"]),
            "privacy": lambda _: _list("redacted", self._meta.get("redacted") or {}, "× "),
            "near_dedup": lambda _: self._cluster(),
            "substrings": lambda record: cut(record["trimmed_bytes"]),
            "quality": lambda _: f"score {self._meta.get('quality', math.nan):.3f}, least "
                                 f"{self._corpus.manifest.get('min_quality', math.nan):.3f}",
            "contamination": lambda _: self._hits() or "holds no benchmark item",
            "split": lambda _: self.verdict_line(),
        }
        results = []
        for record in self._corpus.manifest.get("funnel", ()):
            stage = record["stage"]
            if self._verdict == "removed" and stage == self._row["stage"]:
                hits = f"; {self._hits()}" if stage == "contamination" else ""
                return [*results, (stage, f"REMOVED: {self._removal()}{hits}")]
            results.append((stage, describe[stage](record) if stage in describe else "passed"))
        return results

    def signals_table(self) -> str:
        """Every signal with its bounds; values out of bounds are marked."""
        lines = [f"      {'signal':<32}{'value':>12}{'min':>12}{'max':>12}"] if self.signals else []
        for name, value in self.signals.items():
            low, high = (self.bounds.get(name, {}).get(side) for side in ("min", "max"))
            breaks = (low is not None and value < low) or (high is not None and value > high)
            lines.append(f"  {'>>' if breaks else '  '}  {name:<32}{value:>12.4g}"
                         f"{_bound(low)}{_bound(high)}")
        return "\n".join(lines)

    def print_representative(self) -> None:
        """Prints the first lines of the document that this one duplicates."""
        other_id = self._row.get("representative")
        places = self._corpus.find(other_id).get(other_id) if other_id else None
        if places:
            other = self._corpus.read_at(places[0])
            print(f"\nit resembles {other_id}  {visible(other['source'])}\n"
                  f"{beginning(other['text'])}")

    def _removal(self) -> str:
        row = self._row
        bound = self._corpus.threshold(row)
        limit = "" if bound is None else f", the threshold is {bound:.4g}"
        alike = f", resembles {row['representative']}" if row["representative"] else ""
        return f"{row['reason']} = {row['score']:.4g}{limit}{alike}"

    def _scores(self) -> str:
        parts = []
        for name, score in (self._meta.get("scores") or {}).items():
            bound = self._cutoffs.get(name)
            limit = "" if bound is None else f" (threshold {bound:.4g})"
            parts.append(f"{name} {score if isinstance(score, str) else f'{score:.4g}'}{limit}")
        return ", ".join(parts) or "not scored"

    def _hits(self) -> str:
        return "; ".join(
            f"{hit['task']} item {hit['item']} ({hit['kind']}, {hit['overlap']:.2f} of it): "
            f"{visible(hit['text'][:NUM_CHARS])}" for hit in self._meta.get("hits") or ())

    def _cluster(self) -> str:
        members = self._meta.get("cluster_size", 1)
        if members < 2:
            return "resembles no other document"
        name = f" {self._meta['cluster_id']}" if "cluster_id" in self._meta else ""
        return f"kept from cluster{name} of {count(members)} documents"


def _list(done: str, amounts: Mapping[str, int], unit: str) -> str:
    parts = [f"{count(number)} {unit}{kind}" for kind, number in amounts.items()]
    return f"{done} {', '.join(parts)}" if parts else f"nothing {done}"


def _bound(value: float | None) -> str:
    return f"{'·' if value is None else f'{value:.4g}':>12}"
