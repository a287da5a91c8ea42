"""Benchmark of text extraction from web pages: F1 and speed against other libraries.

    python -m scripts.bench.extraction --benchmark=PATH/web_extraction

PATH holds pages of scrapinghub/article-extraction-benchmark: `html/ID.html.gz` and
`ground_truth.json.gz`. First the roofline: parsing the pages only. Then, in turns, every extractor
over all the pages: F1 by the benchmark's own metric, and MB of HTML per second of CPU time, the
median of the rounds. Prints one JSON line last.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import resource
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trafilatura
from absl import flags
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from core import entry
from core.errors import require_file
from core.progress import log
from data.extraction.encoding import decode
from data.extraction.extract import extract
from data.extraction.guard import Failure, GuardedExtractor

SHINGLE_WORDS = 4
HTML = "text/html"

Extract = Callable[[Sequence[bytes]], list[str]]


@dataclasses.dataclass(frozen=True)
class Score:
    """The benchmark's scores, in [0, 1]."""

    precision: float
    recall: float
    f1: float


def score(texts: Sequence[str], gold: Sequence[str]) -> Score:
    """Means over pages of the precision and recall of word 4-grams, and the F1 of these means.

    As in evaluate.py of scrapinghub/article-extraction-benchmark: case-sensitive words, grams
    counted with multiplicity, pages without a gram excluded from the mean.
    """
    precisions, recalls = [], []
    for text, gold_text in zip(texts, gold, strict=True):
        predicted, expected = _shingles(text), _shingles(gold_text)
        shared = (predicted & expected).total()
        if predicted:
            precisions.append(shared / predicted.total())
        if expected:
            recalls.append(shared / expected.total())
    precision, recall = statistics.mean(precisions), statistics.mean(recalls)
    return Score(precision, recall, 2 * precision * recall / (precision + recall))


def _shingles(text: str) -> Counter:
    words = re.findall(r"\w+", text)
    count = max(1, len(words) - SHINGLE_WORDS + 1) if words else 0
    return Counter(tuple(words[start:start + SHINGLE_WORDS]) for start in range(count))


def _guarded(mode: str) -> Extract:
    def run(pages: Sequence[bytes]) -> list[str]:
        with GuardedExtractor(mode=mode, timeout_secs=60, max_page_bytes=64 << 20) as extractor:
            return ["" if isinstance(outcome, Failure) else outcome
                    for outcome in extractor.run((page, HTML) for page in pages)]
    return run


def _ours(mode: str) -> Extract:
    return lambda pages: [extract(page, HTML, mode=mode) for page in pages]


def _trafilatura(**options: bool) -> Extract:
    return lambda pages: [trafilatura.extract(page, **options) or "" for page in pages]


def _parse(pages: Sequence[bytes]) -> list[str]:
    return [HTMLTree.parse(decode(page)).title or "" for page in pages]


EXTRACTORS: Mapping[str, Extract] = {
    "parse_only": _parse,
    "ours_fast": _ours("fast"),
    "ours_fast_guarded": _guarded("fast"),
    "ours_quality": _ours("quality"),
    "resiliparse": lambda pages: [extract_plain_text(decode(page), main_content=True)
                                  for page in pages],
    "trafilatura": _trafilatura(),
    "trafilatura_fast": _trafilatura(fast=True),
    "trafilatura_precision": _trafilatura(favor_precision=True),
    "trafilatura_precision_no_comments": _trafilatura(favor_precision=True,
                                                      include_comments=False),
}


def _cpu_secs() -> float:
    """CPU seconds of this process and of its finished children."""
    usages = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> dict[str, Any]:
    """Runs every extractor; speeds in MB of HTML per second of CPU time."""
    folder = flags.FLAGS.benchmark or str(
        Path(os.environ.get("HEARTWOOD_DATASETS", "")) / "web_extraction")
    truth = json.loads(gzip.decompress(require_file(
        "--benchmark", Path(folder) / "ground_truth.json.gz",
        "give the folder of the article extraction benchmark").read_bytes()))
    pages = [gzip.decompress((Path(folder) / "html" / f"{name}.html.gz").read_bytes())
             for name in truth]
    gold = [page["articleBody"] for page in truth.values()]
    num_mb = sum(map(len, pages)) / 1e6
    speeds = {name: [] for name in EXTRACTORS}
    texts = {}
    for _ in range(flags.FLAGS.rounds):
        for name, run in EXTRACTORS.items():
            start = _cpu_secs()
            texts[name] = run(pages)
            speeds[name].append(num_mb / (_cpu_secs() - start))
    result: dict[str, Any] = {"pages": len(pages), "html_mb": num_mb}
    for name in EXTRACTORS:
        speed = statistics.median(speeds[name])
        row = {"mb_per_cpu_sec": speed}
        if name != "parse_only":
            row |= dataclasses.asdict(score(texts[name], gold))
        result[name] = {key: round(value, 4) for key, value in row.items()}
        log(f"{name:34s} {speed:6.1f} MB/s" + "".join(
            f"  {key} {row[key]:.4f}" for key in ("precision", "recall", "f1") if key in row))
    best = max(result[name]["f1"] for name in EXTRACTORS if name.startswith("trafilatura"))
    return result | {
        "fast_speed_over_resiliparse": _ratio(result, "ours_fast", "resiliparse"),
        "quality_speed_over_trafilatura": _ratio(result, "ours_quality", "trafilatura"),
        "quality_f1_above_best_trafilatura": round(result["ours_quality"]["f1"] - best, 4)}


def _ratio(result: Mapping[str, Any], first: str, second: str) -> float:
    return round(result[first]["mb_per_cpu_sec"] / result[second]["mb_per_cpu_sec"], 2)


if __name__ == "__main__":
    flags.DEFINE_string("benchmark", None, "Folder of the benchmark's pages and gold texts; by "
                        "default web_extraction in $HEARTWOOD_DATASETS.")
    flags.DEFINE_integer("rounds", 3, "Times that every extractor reads all pages.", lower_bound=1)
    entry.run(main)
