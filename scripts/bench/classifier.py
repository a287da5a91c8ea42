"""Benchmark of the toxicity classifier next to scikit-learn, on one split of the same posts.

    python -m scripts.bench.classifier --labelled=PATH/labelled.jsonl.gz \\
        --peer_python=.venv-peers/bin/python

Ours is configs/classifier.py:toxicity. The peers are logistic regressions over TF-IDF of n-grams of
1 and 2 words, and of 2 to 5 characters within words; their C is chosen on the part of the documents
on which ours is calibrated. All are measured on the held-out part: the area under the ROC curve,
harmless posts against the others, with its 95 % interval, and the paired difference from ours.
Training is features and fit, for a peer with the chosen C alone; ours compiles in it. A time of
scoring is the median of the rounds. `ratio` is ours over the peer's speed of scoring. Prints a
table, and one JSON line last.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.errors import UserError, require_file
from core.progress import log
from core.stages import load_config
from data import train_classifier
from data.classify import labelled
from data.classify.labelled import Example
from data.classify.roc import area_difference, area_interval, area_under_curve
from scripts.bench.generate_process import EngineProcess, EngineStopped
from scripts.bench.peer_sklearn import FEATURES

OURS = "ours"
Parts = Mapping[str, Sequence[Example]]


def run_ours(parts: Parts, labels: tuple[str, ...], section: Any, rounds: int) -> dict[str, Any]:
    """Trains and scores ours: `scores` of the held-out part, and seconds."""
    begun = time.perf_counter()
    model = train_classifier.fit(parts, labels, section)
    train_secs, secs = time.perf_counter() - begun, []
    texts = [example.text for example in parts["heldout"]]
    for _ in range(rounds):
        begun = time.perf_counter()
        scores = model.score(texts)
        secs.append(time.perf_counter() - begun)
    return {"scores": scores, "train_secs": train_secs, "score_secs": statistics.median(secs)}


def run_peers(peer_python: str, parts: Parts, harmless: str,
              rounds: int) -> dict[str, dict[str, Any]]:
    """The same of each peer, and its C.

    Raises:
        UserError: the Python is missing, or it has no scikit-learn.
    """
    texts = {name: [example.text for example in part] for name, part in parts.items()}
    positive = {name: [example.target != harmless for example in part]
                for name, part in parts.items()}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = EngineProcess([peer_python, "-m", "scripts.bench.peer_sklearn"],
                               Path(folder) / "log")
        try:
            version = engine.ask("load")["versions"]
            for name in FEATURES:
                fitted = engine.ask(
                    "fit", features=name, texts=texts["train"], positive=positive["train"],
                    validation=texts["calibration"], validation_positive=positive["calibration"])
                turns = [engine.ask("score", texts=texts["heldout"]) for _ in range(rounds)]
                found[f"TF-IDF {name}"] = {
                    "scores": np.array(turns[0]["scores"]), "train_secs": fitted["one_secs"],
                    "search_secs": fitted["secs"], "cost": fitted["cost"], "versions": version,
                    "score_secs": statistics.median(turn["secs"] for turn in turns)}
                log(f"{name}: fitted in {fitted['secs']:.1f} s")
        except EngineStopped as error:
            raise UserError(f"--peer_python={peer_python!r}", f"cannot run scikit-learn ({error})",
                            "give a Python that has it, e.g. that of `pip install -e .[peers]`"
                            ) from None
        finally:
            engine.close()
    return found


def compare(found: Mapping[str, Mapping[str, Any]],
            actual: np.ndarray) -> dict[str, dict[str, Any]]:
    """A row for each side: area and interval, difference from ours, seconds, ratio of speeds."""
    rows, ours = {}, found[OURS]
    for name, side in found.items():
        low, high = area_interval(side["scores"], actual)
        rows[name] = {"auc": area_under_curve(side["scores"], actual), "auc_low": low,
                      "auc_high": high, **{key: value for key, value in side.items()
                                           if key != "scores"}}
        if name != OURS:
            difference, interval = area_difference(ours["scores"], side["scores"], actual)
            rows[name] |= {"difference": difference, "difference_low": interval[0],
                           "difference_high": interval[1],
                           "ratio": side["score_secs"] / ours["score_secs"]}
    return rows


def print_table(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The rows in Markdown."""
    print("| classifier | AUC | ours less it | training, s | scoring, s | our speed over its |")
    print("|---|---|---|---:|---:|---:|")
    for name, row in rows.items():
        paired = (f"{row['difference']:+.4f} ({row['difference_low']:+.4f} to "
                  f"{row['difference_high']:+.4f})" if "difference" in row else "")
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        print(f"| {name} | {row['auc']:.4f} ({row['auc_low']:.4f} to {row['auc_high']:.4f}) | "
              f"{paired} | {row['train_secs']:.1f} | {row['score_secs']:.2f} | {ratio} |")


def main() -> dict[str, Any]:
    """Reads the flags, measures, prints the table."""
    given = flags.FLAGS
    path = require_file("--labelled", given.labelled or Path(os.environ.get(
        "HEARTWOOD_DATASETS", "")) / "hate_offensive" / "labelled.jsonl.gz",
        "give a file of labelled posts")
    section = load_config(["--config=configs/classifier.py:toxicity",
                           f"--config.classifier.seed={given.seed}"], "the classifier").classifier
    examples, _ = labelled.read_targets([str(path)], section.target_field, False,
                                        section.max_documents, section.seed)
    parts = labelled.split(examples, by=section.split_by, seed=section.seed,
                           calibration_frac=section.calibration_frac,
                           heldout_frac=section.heldout_frac)
    labels = tuple(sorted({example.target for example in examples}))
    if len(labels) < 2 or section.negative_label not in labels:
        raise UserError(f"--labelled={str(path)!r}", f"has the labels {', '.join(labels)}",
                        f"give posts of which some are labelled {section.negative_label!r}")
    peers = run_peers(given.peer_python, parts, section.negative_label, given.rounds)
    found = {OURS: run_ours(parts, labels, section, given.rounds), **peers}
    actual = np.array([one.target != section.negative_label for one in parts["heldout"]])
    rows = compare(found, actual)
    print_table(rows)
    return {"documents": {name: len(part) for name, part in parts.items()}, "sides": rows}


if __name__ == "__main__":
    flags.DEFINE_string("labelled", None, "File of labelled posts; by default that of "
                        "hate_offensive in $HEARTWOOD_DATASETS.")
    flags.DEFINE_string("peer_python", ".venv-peers/bin/python", "A Python that has scikit-learn.")
    flags.DEFINE_integer("rounds", 3, "How often each scores the held-out part.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the split and of our training.", lower_bound=0)
    entry.run(main)
