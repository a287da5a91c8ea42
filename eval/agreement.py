"""Measures how far annotators agree on the same items, and lists where they contradict.

    python -m eval.agreement --inputs=votes.jsonl
    python -m eval.agreement --inputs=votes.jsonl --ties=drop --out=conflicts.jsonl
    python -m eval.agreement --inputs=ratings.jsonl --of=scores

`--inputs` is a file or a folder of preferences or labels in any layout of `data.layouts` whose rows
name their `annotator`. Two responses are one item in whichever order they were shown, and which of
them is called the first does not matter: choices count in both orders. Prints a table, and all
figures with 95 % intervals of the bootstrap over prompts as the last line; `--out` is written with
a line for each item on which an annotator contradicts another or themselves.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from eval.measures.agreement import (
    LEVELS,
    agreement_with_others,
    cohen_kappa,
    count_values,
    fleiss_kappa,
    flip_rate,
    krippendorff_alpha,
    raw_agreement,
)
from eval.measures.annotations import (
    FIRST,
    SECOND,
    SUBJECTS,
    TIE,
    TIES,
    Rating,
    Ratings,
    Repeats,
    make_ratings,
    merge_repeats,
    read_ratings,
)
from eval.statistics import bootstrap_interval

MAX_PAIRS = 200     # of annotators, those with the most items in common


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Intervals of one command: `seed` and number of samples."""

    seed: int
    num_samples: int

    def estimate(self, statistic: Callable[[np.ndarray], float],
                 prompts: Sequence[Hashable]) -> dict[str, Any]:
        """A statistic of indices of items with its 95 % interval, over prompts.

        Where the statistic is undefined it is None, and so is the interval where it is undefined
        for one of the samples.
        """
        num_prompts = len(set(prompts))
        found = {"value": None, "low": None, "high": None, "items": len(prompts),
                 "prompts": num_prompts}
        value = statistic(np.arange(len(prompts))) if len(prompts) else math.nan
        if math.isnan(value):
            return found
        groups = None if num_prompts == len(prompts) else prompts
        try:
            drawn = bootstrap_interval(statistic, len(prompts), seed=self.seed, groups=groups,
                                       num_samples=self.num_samples)
        except UserError:       # of a sample whose ratings are all equal
            return found | {"value": value}
        return found | {"value": value, "low": drawn.low, "high": drawn.high}


def measure_agreement(ratings: Ratings, subject: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """All coefficients of ratings, each with its interval and its items.

    Args:
        subject: of `SUBJECTS`; choices count in both orders, which makes the coefficients of a
            chance independent of which response is the first.

    Returns:
        `raw`, `fleiss_kappa`, `krippendorff_alpha` by level; `flip_rate` (of two values; of choices
        without ties) and the agreement that it is made of; `cohen_kappa` of two annotators, of the
        200 pairs with the most items in common, and the number of other pairs; `annotators`: the
        share of the others who agree with each.
    """
    both = _in_both_orders if subject == "choices" else (lambda rows: rows)
    counts = count_values(ratings.items, ratings.codes, len(ratings.values))
    several = np.flatnonzero(counts.sum(axis=1) > 1)
    prompts = [ratings.prompts[item] for item in several]

    def estimate(statistic: Callable[[np.ndarray], float], of: np.ndarray) -> dict[str, Any]:
        return bootstrap.estimate(lambda picked: statistic(both(of[picked])), prompts)

    return {
        "raw": estimate(raw_agreement, counts[several]),
        "fleiss_kappa": estimate(fleiss_kappa, counts[several]),
        "krippendorff_alpha": {
            level: estimate(partial(krippendorff_alpha, values=ratings.values, level=level),
                            counts[several]) for level in LEVELS},
        **_flips(ratings, counts, bootstrap, subject),
        **_pairwise(ratings, bootstrap, subject),
        "annotators": _by_annotator(ratings, counts, bootstrap)}


def find_conflicts(ratings: Sequence[Rating], repeats: Repeats) -> Iterator[dict[str, Any]]:
    """Of each item that is contradicted: who, and in which rows, within or between annotators."""
    for annotator, places in repeats.conflicting:
        yield {"kind": "within", "annotators": [annotator], "places": list(places)}
    groups: dict[Hashable, list[Rating]] = {}
    for rating in ratings:
        groups.setdefault(rating.item, []).append(rating)
    for group in groups.values():
        if len({rating.value for rating in group}) > 1:
            yield {"kind": "between", "annotators": [rating.annotator for rating in group],
                   "places": [rating.place for rating in group]}


def _in_both_orders(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([counts, counts[:, ::-1]])


def _flips(ratings: Ratings, counts: np.ndarray, bootstrap: Bootstrap,
           subject: str) -> dict[str, Any]:
    """The flip rate of two opposite values; its interval is that of the agreement."""
    if subject == "scores":
        return {}
    decided = counts[:, ratings.values != TIE] if subject == "choices" else counts
    several = np.flatnonzero(decided.sum(axis=1) > 1)
    decided = decided[several]
    agreement = bootstrap.estimate(lambda picked: raw_agreement(decided[picked]),
                                   [ratings.prompts[item] for item in several])
    value, low, high = (agreement[name] for name in ("value", "low", "high"))
    # The rate falls as the agreement rises; an end below 1/2 is that of labels without any truth.
    ends = [None if end is None else flip_rate(max(end, 0.5)) for end in (high, low)]
    rate = math.nan if value is None else flip_rate(value)
    return {"decided_agreement": agreement,
            "flip_rate": agreement | {"value": rate, "low": ends[0], "high": ends[1]}}


def _pairwise(ratings: Ratings, bootstrap: Bootstrap, subject: str) -> dict[str, Any]:
    """Cohen's kappa of two annotators, pair by pair, and the number of pairs beyond `MAX_PAIRS`."""
    by_item: dict[int, list[tuple[int, float]]] = {}
    for item, annotator, code in zip(ratings.items, ratings.annotators, ratings.codes):
        by_item.setdefault(int(item), []).append((int(annotator), float(ratings.values[code])))
    shared: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    for item, rated in by_item.items():
        for (one, value), (other, other_value) in itertools.combinations(sorted(rated), 2):
            shared.setdefault((one, other), []).append((item, value, other_value))
    picked = sorted(shared, key=lambda pair: (-len(shared[pair]), pair))[:MAX_PAIRS]
    kappas = []
    for pair in sorted(picked):
        values = np.array([row[1:] for row in shared[pair]])
        prompts = [ratings.prompts[row[0]] for row in shared[pair]]
        kappas.append({"annotators": [ratings.names[number] for number in pair],
                       **bootstrap.estimate(partial(_kappa, values, subject), prompts)})
    return {"cohen_kappa": kappas, "cohen_pairs_left_out": len(shared) - len(kappas)}


def _kappa(values: np.ndarray, subject: str, picked: np.ndarray) -> float:
    """Cohen's kappa of the picked rows of two annotators' values, [items, 2]."""
    given = values[picked]
    if subject == "choices":    # in both orders
        given = np.concatenate([given, -given])
    return cohen_kappa(given[:, 0], given[:, 1])


def _by_annotator(ratings: Ratings, counts: np.ndarray,
                  bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """The share of the others who agree with each annotator, as the mean over items."""
    shares = agreement_with_others(counts, ratings.items, ratings.codes)
    found = {}
    for number, name in enumerate(ratings.names):
        rows = np.flatnonzero((ratings.annotators == number) & ~np.isnan(shares))
        own = shares[rows]
        found[name] = bootstrap.estimate(
            lambda picked, own=own: float(own[picked].mean()),
            [ratings.prompts[item] for item in ratings.items[rows]])
    return found


def format_table(measured: dict[str, Any]) -> str:
    """The coefficients and the annotators as lines of text."""
    alphas = {f"krippendorff_alpha {level}": found
              for level, found in measured["krippendorff_alpha"].items()}
    named = {name: measured[name] for name in ("raw", "fleiss_kappa", "flip_rate")
             if name in measured} | alphas | {
                 f"{name} with others": found for name, found in measured["annotators"].items()}
    width = max(map(len, named))
    return "\n".join(f"{name:{width}} {_number(found['value'])} ({_number(found['low'])} to "
                     f"{_number(found['high'])}), {found['items']} items"
                     for name, found in named.items())


def _number(value: float | None) -> str:
    return "  -  " if value is None or math.isnan(value) else f"{value:.3f}"


def measure_file(inputs: Path, subject: str, ties: str, bootstrap: Bootstrap,
                 out: Path | None = None) -> dict[str, Any]:
    """Measures the annotators of a file or folder, and writes their conflicts.

    Args:
        subject, ties: see `read_ratings`.
        out: JSON lines that are written; None writes none.

    Raises:
        UserError: no two annotators rated the same item, or a file cannot be read.
    """
    faults = Faults("inputs")
    kept, repeats = merge_repeats(read_ratings(inputs, subject, ties=ties, faults=faults))
    faults.report()
    ratings = make_ratings(kept, _scale(subject, ties))
    num_several = int(np.count_nonzero(np.bincount(ratings.items) > 1))
    if not num_several:
        left_out = ", ".join(f"{num} {reason}" for reason, num in faults.counts.items())
        raise UserError(f"--inputs={inputs}", f"none of its {len(ratings.prompts)} items has "
                        "ratings of two annotators" + f" (left out: {left_out})" * bool(left_out),
                        "have the same items rated by several, and name the annotator in each row")
    measured = measure_agreement(ratings, subject, bootstrap)
    print(format_table(measured))
    conflicts = list(find_conflicts(kept, repeats))
    if out is not None:
        write_jsonl(out, conflicts)
    return {"inputs": str(inputs), "of": subject, "ties": ties, "ratings": len(kept),
            "items": len(ratings.prompts), "items_with_several": num_several, **measured,
            "repeated": repeats.num, "left_out": dict(faults.counts),
            "conflicts": {kind: sum(conflict["kind"] == kind for conflict in conflicts)
                          for kind in ("within", "between")}}


def _scale(subject: str, ties: str) -> tuple[float, ...]:
    """The values that belong to a subject, also where nobody gave them."""
    if subject == "choices":
        return (FIRST, SECOND) if ties == "drop" else (FIRST, TIE, SECOND)
    return (0.0, 1.0) if subject == "labels" else ()


def main() -> dict[str, Any]:
    """Reads the flags and measures."""
    values = flags.FLAGS
    if not values.inputs:
        raise UserError("--inputs", "is missing", "name a path: --inputs=PATH")
    return measure_file(Path(values.inputs), values.of, values.ties,
                        Bootstrap(values.seed, values.num_samples),
                        Path(values.out) if values.out else None)


if __name__ == "__main__":
    flags.DEFINE_string("inputs", None, "File or folder of preferences or labels.")
    flags.DEFINE_enum("of", SUBJECTS[0], SUBJECTS, "What is compared: choices between every two "
                      "responses, scores of responses, or labels, good or not.")
    flags.DEFINE_enum("ties", TIES[0], TIES, "Of choices: a tie is an answer like others, or it is "
                      "left out and counted.")
    flags.DEFINE_string("out", None, "JSON lines that are written: a line for each conflict.")
    flags.DEFINE_integer("num_samples", 1000, "Samples of the bootstrap.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Of the bootstrap.", lower_bound=0)
    entry.run(main)
