"""What share of rephrased benchmark items each rule of `eval.contamination` finds.

    python -m scripts.bench.contamination --datasets=PATH --encoder=MINILM

PATH holds the folders `contamination` (the rephrased and translated items of lm-decontaminator),
`gsm8k`, `humaneval` and `mmlu`. Row i of a file of rephrased items is a copy of item i; empty rows
are no copies and count nowhere. Five shares, of the items that have a copy:

    own       found by the rule in its own copy
    any       found in any of the copies
    wrong     found in a copy of another item: false, but for items that are alike
    control   found in texts of the same kind that are no copies: GSM8K's training questions; MMLU's
              European and world history; the programs of CodeAlpaca nearest to HumanEval, by
              embedding, without those that lm-decontaminator judged to be copies
    best      nothing else, copy or control, is as near as its own copy

Thresholds are those of the rules. Beside them stand thresholds that find at most one item in a
hundred in the control of GSM8K, chosen there alone and applied to the other sets. Prints tables in
Markdown, and one JSON line last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.contamination.task_files import Item
from data.layouts.rows import read_rows
from eval.contamination.detect import Detector
from eval.contamination.embed import Encoder, Nearby, cut_windows, load_encoder
from eval.contamination.items import read_tasks
from eval.contamination.tally import RULES, Rule

MISSING = -1.0              # of a method that found nothing
CONTROL_FRAC = 0.01         # of the items, that a chosen threshold may find in the first control
FEATURES = ("near", "chars_50", "overlap_8", "longest", "edit", "embedding")
HISTORY = ("high_school_european_history", "high_school_world_history")


class Bed(NamedTuple):
    """Items, a copy of each ("": none), and texts that are no copies."""

    name: str
    items: Sequence[Item]
    copies: Sequence[str]
    controls: Sequence[str]


class Values(NamedTuple):
    """The best value of a method for each item that has a copy: [num_items] float64 each."""

    own: np.ndarray
    wrong: np.ndarray
    control: np.ndarray


def read_beds(folder: Path, num_items: int, num_controls: int) -> list[Bed]:
    """The four sets.

    Args:
        num_items: of each, the first ones; 0: all.
        num_controls: texts of each control, the first ones.
    """
    beds, copies = folder / "contamination", {}
    for name in ("rephrase_gsm8k", "rephrase_humaneval_python", "translated_humaneval_js",
                 "rephrase_mmlu_us_history"):
        copies[name] = [row["text"] for row in _rows(beds / f"{name}.jsonl.gz")][:num_items or None]
    items = {name: read_tasks([str(folder / path)])[0][:num_items or None] for name, path in (
        ("gsm8k", "gsm8k/test.jsonl.gz"), ("humaneval", "humaneval/HumanEval.jsonl.gz"),
        ("mmlu", "contamination/mmlu_us_history_test.csv.gz"))}
    programs = [row["train"][0] for row in _rows(
        beds / "humaneval_vs_codealpaca_nearest.jsonl.gz") if not row["results"][0]]
    controls = {
        "gsm8k": [f"Question: {row['question']}\nAnswer: {row['answer']}"
                  for row in _rows(folder / "gsm8k" / "train.jsonl.gz")],
        "humaneval": programs, "mmlu": ["\n".join([row["question"], *row["choices"]])
                                        for row in _rows(folder / "mmlu" / "mmlu_test.jsonl.gz")
                                        if row["subject"] in HISTORY]}
    return [Bed(name, items[key], texts, controls[key][:num_controls])
            for (name, texts), key in zip(copies.items(), ("gsm8k", "humaneval", "humaneval",
                                                           "mmlu"))]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def measure(bed: Bed, encoder: Encoder | None) -> dict[str, Values]:
    """The values of all methods."""
    detector = Detector(bed.items)
    nearby = Nearby(encoder, bed.items) if encoder else None
    copies = _score(detector, nearby, bed.copies)
    controls = _score(detector, nearby, bed.controls)
    has_copy = np.array([bool(text.strip()) for text in bed.copies])
    own_IC = np.eye(len(bed.items), dtype=bool)
    return {method: Values(
        np.where(own_IC, values_IC, MISSING).max(axis=1)[has_copy],
        np.where(own_IC, MISSING, values_IC).max(axis=1)[has_copy],
        controls[method].max(axis=1)[has_copy]) for method, values_IC in copies.items()}


def _score(detector: Detector, nearby: Nearby | None,
           texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The value of every method for each item and text: [num_items, num_texts] each."""
    shape = len(detector.items), len(texts)
    found = {method: np.full(shape, MISSING) for method in {
        rule.method: None for name, rule in RULES.items() if nearby or name != "embedding"}}
    for column, text in enumerate(texts):
        for item, candidate in detector.find(text).items():
            for method, span in candidate.spans.items():
                found[method][item, column] = span.value
    if nearby:
        windows = [(column, window.text) for column, text in enumerate(texts)
                   for window in cut_windows(text)]
        cosines_IW = nearby.cosines([text for _, text in windows])
        for number, (column, _) in enumerate(windows):
            values = found["embedding"][:, column]
            np.maximum(values, cosines_IW[:, number], out=values)
        _add_edits(detector, found["edit"], windows, cosines_IW)
    return found


def _add_edits(detector: Detector, edits_IC: np.ndarray, windows: Sequence[tuple[int, str]],
               cosines_IW: np.ndarray) -> None:
    """Edit similarities of each item's nearest window, as in a search, and of that of its own
    copy, which would be the nearest in a corpus without the others."""
    columns = np.array([column for column, _ in windows])
    for item, nearest in enumerate(cosines_IW.argmax(axis=1).tolist()):
        mine = np.flatnonzero(columns == item)
        best = [nearest, *mine[np.argsort(-cosines_IW[item, mine])[:1]].tolist()]
        for number in dict.fromkeys(best):
            column, text = windows[number]
            edits_IC[item, column] = max(edits_IC[item, column],
                                         detector.edit_in(item, text).value)


def shares(values: Values, at_least: float) -> dict[str, float]:
    """The shares at a threshold."""
    own, wrong, control = (part >= at_least for part in values)
    best = own & (values.own > np.maximum(values.wrong, values.control))
    return {"own": float(own.mean()), "any": float((own | wrong).mean()),
            "wrong": float(wrong.mean()), "control": float(control.mean()),
            "best": float(best.mean())}


def choose_threshold(values: Values) -> float:
    """The least value above 0 that finds at most `CONTROL_FRAC` of the items in the control."""
    allowed = int(CONTROL_FRAC * len(values.control))
    limit = np.sort(values.control)[::-1][allowed]
    above = np.unique(np.concatenate([values.own, values.control]))
    above = above[above > max(limit, 0)]
    return float(above[0]) if len(above) else float("inf")


def format_table(found: Mapping[str, Mapping[str, Values]], rules: Mapping[str, Rule]) -> str:
    """A table of all sets: own, any, wrong, control and best in percent, by rule."""
    head = ["rule", *(f"{name} ({len(next(iter(values.values())).own):,})"
                      for name, values in found.items())]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, rule in rules.items():
        cells = [f"{name} >= {rule.at_least:.4g}"]
        for values in found.values():
            if rule.method in values:
                part = shares(values[rule.method], rule.at_least)
                cells.append(" / ".join(f"{100 * share:.1f}" for share in part.values()))
        if len(cells) > 1:
            lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> dict[str, Any]:
    """Measures all sets and prints the tables."""
    values = flags.FLAGS
    if not values.datasets:
        raise UserError("--datasets", "is missing", "name the folder of the benchmarks' files")
    encoder = load_encoder(Path(values.encoder)) if values.encoder else None
    found = {}
    for bed in read_beds(Path(values.datasets), values.num_items, values.num_controls):
        found[bed.name] = measure(bed, encoder)
        log(f"contamination: measured {bed.name}")
    first = next(iter(found.values()))
    chosen = {method: Rule(method, choose_threshold(first[method]))
              for method in FEATURES if method in first}
    print("own / any / wrong / control / best, in percent\n")
    print(format_table(found, RULES))
    print("\nat thresholds chosen on the first set\n")
    print(format_table(found, chosen))
    return {"rules": {name: {bed: shares(methods[rule.method], rule.at_least)
                             for bed, methods in found.items()}
                      for name, rule in RULES.items() if rule.method in first},
            "chosen": {name: {"at_least": rule.at_least} | {
                bed: shares(methods[name], rule.at_least) for bed, methods in found.items()}
                for name, rule in chosen.items()}}


if __name__ == "__main__":
    flags.DEFINE_string("datasets", None, "Folder of the benchmarks' files.")
    flags.DEFINE_string("encoder", None, "Model directory of all-MiniLM-L6-v2; none: without "
                        "embeddings.")
    flags.DEFINE_integer("num_items", 0, "Items of each set, the first ones; 0: all.",
                         lower_bound=0)
    flags.DEFINE_integer("num_controls", 500, "Texts of each control.", lower_bound=1)
    entry.run(main)
