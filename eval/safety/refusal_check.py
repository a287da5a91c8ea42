"""How close the refusal classifier is to people's labels, beside string match and GPT-4."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.page.markup import visible
from data.layouts.faults import Faults
from eval.agreement import Bootstrap
from eval.measures.agreement import cohen_kappa
from eval.safety.refusal import FULL_COMPLIANCE, VERDICTS, classify_refusal
from eval.safety.xstest import LABELLERS, Completion, read_completions
from eval.statistics import estimate_share

RULES = "rules"     # this classifier, beside the labellers of the files
PARTS = {"all": lambda number: True, "seen": lambda number: number % 2 == 1,
         "held out": lambda number: number % 2 == 0}
MEASURES = ("accuracy", "refuses", "kappa")
HEAD = f"{'completions':28} {'prompts':9} {'labels':13} {'accuracy':24} {'refuses or not':24} kappa"


def check_refusals(path: Path, seed: int, num_samples: int) -> dict[str, Any]:
    """The agreement of each labeller with people, by file and part.

    Parts are all prompts, those of odd number, with which the rules were written (`seen`), and the
    others (`held out`). A label that is none of the three classes agrees with nobody.

    Returns:
        `files`: by file, part and labeller: `accuracy` of the three classes, `refuses` (full or
        partial, or not) and Cohen's `kappa` of the three, each with value, low and high;
        `left_out`, rows by the reason.

    Raises:
        UserError: there is no labelled completion.
    """
    faults = Faults("xstest")
    found = read_completions(path, faults)
    faults.report()
    files: dict[str, Any] = {}
    for name, completions in found.items():
        chosen = {part: [one for one in completions if is_part(_number(one))]
                  for part, is_part in PARTS.items()}
        files[name] = {part: _measure(ones, seed, num_samples)
                       for part, ones in chosen.items() if ones}
    return {"files": files, "left_out": dict(faults.counts)}


def format_check(found: Mapping[str, Any]) -> str:
    """A table of `check_refusals`, a line for each file, part and labeller."""
    lines = [HEAD]
    for name, parts in found["files"].items():
        for part, labellers in parts.items():
            for labeller, one in labellers.items():
                shown = [_write(one[measure]) for measure in MEASURES]
                lines.append(f"{visible(name)[:28]:28} {part:9} {labeller:13} "
                             + " ".join(f"{text:24}" for text in shown).rstrip())
    return "\n".join(lines)


def _write(one: Mapping[str, float | None]) -> str:
    """A value with its interval; an undefined one, such as a kappa of equal labels, as a dash."""
    if one["value"] is None:
        return "-"
    span = "" if one["low"] is None else f" ({one['low']:.3f} to {one['high']:.3f})"
    return f"{one['value']:.3f}{span}"


def _measure(completions: Sequence[Completion], seed: int,
             num_samples: int) -> dict[str, dict[str, Any]]:
    people = _code([one.labels["human"] for one in completions])
    labels = {RULES: [classify_refusal(one.prompt.text, one.text) for one in completions]}
    labels |= {name: [one.labels[name] for one in completions]
               for name in LABELLERS if name != "human" and any(
                   one.labels[name] for one in completions)}
    return {name: _compare(_code(values), people, seed, num_samples)
            for name, values in labels.items()}


def _compare(codes: np.ndarray, people: np.ndarray, seed: int,
             num_samples: int) -> dict[str, Any]:
    complies = VERDICTS.index(FULL_COMPLIANCE)
    # What is no class is neither refusal nor compliance.
    refuses = (codes >= 0) & ((codes != complies) == (people != complies))
    return {"accuracy": dataclasses.asdict(estimate_share((codes == people).astype(float))),
            "refuses": dataclasses.asdict(estimate_share(refuses.astype(float))),
            "kappa": Bootstrap(seed, num_samples).estimate(
                lambda at: cohen_kappa(codes[at], people[at]), range(len(codes)))}


def _code(labels: Sequence[str]) -> np.ndarray:
    return np.array([VERDICTS.index(label) if label in VERDICTS else -1 for label in labels])


def _number(completion: Completion) -> int:
    """The number of a prompt: 17 of `v2-17`."""
    digits = completion.prompt.id.rpartition("-")[2]
    if not digits.isdigit():
        raise UserError(f"id {completion.prompt.id!r}", "ends in no number, by which prompts that "
                        "the rules were written with are known", "keep XSTest's ids")
    return int(digits)
