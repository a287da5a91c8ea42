"""The manifest of a corpus: counters of a curation, summed over its units."""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rustbpe

from core.artifacts import read_json
from data.corpus import KINDS, Corpus
from data.filters.rules import parse_rule
from data.passes.clean import load_index
from data.passes.decide import bin_edges
from data.passes.roster import merge_tallies
from data.tables import read_rows
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.patterns import HEARTWOOD

ESTIMATE_VOCABULARY = 8192
ESTIMATE_BYTES = 2_000_000      # sample of each domain for the estimate of tokens
EXAMPLE_CHARS, MAX_EXAMPLES = 600, 8
MIN_ALARM_DOCUMENTS = 5     # sources with fewer documents raise no alarm
DEDUP_STAGES = {"exact_dedup", "near_dedup"}


def make_funnel(passes: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One record per stage, in order: documents and bytes in and out, and removals by reason.

    Args:
        passes: results of the passes that remove documents, each a list over units.
    """
    return [{"stage": stage, **tally} for results in passes
            for stage, tally in merge_tallies(result["tallies"] for result in results).items()]


def removed_by_reason(funnel: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Removed documents by reason, the most frequent first."""
    counts = Counter()
    for stage in funnel:
        counts.update({reason: count["documents"] for reason, count in stage["removed"].items()})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def find_alarms(funnel: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]],
                passes: Sequence[Sequence[Mapping[str, Any]]], paths: Sequence[str],
                max_frac: float) -> list[dict[str, Any]]:
    """Domains and input files of which deduplication removed more than `max_frac`.

    Args:
        measured: results of the first pass, per unit.
        passes: results of the passes that remove documents, each a list over units.
        paths: the input file of each unit.
    """
    entered, lost = Counter(), Counter()
    for path, result in zip(paths, measured):
        entered.update(result["domains"])
        entered[path] += result["documents"]
    for stage in funnel:
        if stage["stage"] in DEDUP_STAGES:
            lost.update({domain: count["documents"]
                         for domain, count in stage["removed_by_domain"].items()})
    for results in passes:
        for path, result in zip(paths, results):
            for stage in DEDUP_STAGES & result["tallies"].keys():
                removed = result["tallies"][stage]["removed"].values()
                lost[path] += sum(count["documents"] for count in removed)
    return [{"source": name, "documents_in": entered[name],
             "removed_frac": round(lost[name] / entered[name], 4), "reason": "deduplication"}
            for name in sorted(lost)
            if entered[name] >= MIN_ALARM_DOCUMENTS and lost[name] > max_frac * entered[name]]


def merge_histograms(decided: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Histograms of the signals with rules, by domain, with their bounds.

    Args:
        decided: results of `data.passes.decide`, per unit.
    """
    bounds: dict[str, Mapping[str, float]] = {}
    for unit in decided:
        bounds |= unit["bounds"]
    histograms = []
    for domain, signals in sorted(merge_tallies(map(_lists, decided)).items()):
        for signal, counts in sorted(signals.items()):
            edges = bin_edges(signal)
            rules = [rule for rule in bounds[domain] if parse_rule(rule).signal == signal]
            sides = {parse_rule(rule).side: bounds[domain][rule] for rule in rules}
            histograms.append({
                "signal": signal, "domain": domain, "edges": edges.tolist(),
                "counts": [counts.get(str(place), 0) for place in range(len(edges) - 1)],
                "min": sides.get("min"), "max": sides.get("max"), "rule": ", ".join(rules)})
    return histograms


def _lists(unit: Mapping[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """A unit's histograms with the bins as keys, so that `merge_tallies` can add them."""
    return {domain: {signal: {str(place): count for place, count in enumerate(counts) if count}
                     for signal, counts in signals.items()}
            for domain, signals in unit["histograms"].items()}


def estimate_bytes_per_token(folder: Path) -> dict[str, float]:
    """Estimates UTF-8 bytes per token of each domain, from a sample.

    The tokenizer is a byte-level BPE of 8,192 tokens, trained on the same sample.

    Args:
        folder: the documents' Parquet parts.
    """
    samples: dict[str, list[str]] = {}
    sizes = Counter()
    for part in sorted(folder.glob("*.parquet")):
        for _, row in read_rows(part, ("text", "domain")):
            if sizes[row["domain"]] < ESTIMATE_BYTES:
                samples.setdefault(row["domain"], []).append(row["text"])
                sizes[row["domain"]] += len(row["text"].encode())
    trainer = rustbpe.Tokenizer()
    texts = [text for domain in sorted(samples) for text in samples[domain]]
    trainer.train_from_iterator(iter(texts), ESTIMATE_VOCABULARY, pattern=HEARTWOOD)
    tokenizer = BytePairTokenizer(
        {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()})
    return {domain: round(sizes[domain] / sum(map(len, tokenizer.encode_batch(texts))), 4)
            for domain, texts in sorted(samples.items())}


def find_contamination(corpus: Corpus, cleaned: Sequence[Mapping[str, Any]],
                       section: Mapping[str, Any]) -> dict[str, Any]:
    """Hits by benchmark, and a few examples with the matching text."""
    hits = sum((Counter(result["hits"]) for result in cleaned), Counter())
    examples = []
    for reason, rows in sorted(corpus.sample_removed(MAX_EXAMPLES).items()):
        for row in rows if reason.startswith("contamination_") else ():
            for hit in json.loads(row["meta"])["hits"][:1]:
                examples.append({"id": row["id"], "source": row["source"], **hit})
    report = load_index(section["contamination"]).report()
    return report | {"examples": examples[:MAX_EXAMPLES], "tasks": {
        name: {"items": count, "hits": hits[name]} for name, count in report["tasks"].items()}}


def describe_clusters(corpus: Corpus, near_dedup: dict[str, Any]) -> dict[str, Any]:
    """Adds sources and the beginning of the text to the examples of the near-duplicate summary."""
    wanted = {member["id"] for example in near_dedup["examples"]
              for member in (example, *example["members"])}
    places = {row["id"]: place for kind in KINDS for place, row in corpus.rows(kind, ["id"])
              if row["id"] in wanted}
    documents = {id_: corpus.read_at(place) for id_, place in places.items()}
    examples = [example | {
        "source": documents[example["id"]]["source"],
        "text": documents[example["id"]]["text"][:EXAMPLE_CHARS],
        "members": [member | {"source": documents[member["id"]]["source"]}
                    for member in example["members"]]} for example in near_dedup["examples"]]
    return near_dedup | {"examples": examples}


def describe_classifiers(classifiers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Held-out metrics of the classifiers in use, from their training."""
    return [{"name": name, "threshold": rules["min_score"] or rules["max_score"],
             **read_json(Path(rules["model"]) / "metrics.json")}
            for name, rules in sorted(classifiers.items()) if rules["model"]]


def peak_memory_bytes() -> int:
    """Peak resident memory of this process or of its largest worker, whichever is larger."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) * 1024
