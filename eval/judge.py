"""Stage: judges answers, and measures how far the judge can be trusted.

    python -m eval.judge --config=configs/judge.py --workdir=runs/mine \\
        --config.judge.answers=mine=mine.jsonl,theirs=theirs.jsonl \\
        --config.judge.endpoint=http://127.0.0.1:8000/v1 --config.judge.endpoint_model=NAME
    python -m eval.judge --config=configs/judge.py --workdir=runs/mine \\
        --config.judge.votes=votes.jsonl --config.judge.reward=reward

The judge is a chat endpoint, a chat model in a folder, or a reward model. It compares each
candidate's answers with the baseline's in both orders (`form` pairwise), rates each answer from 1
to 10 (single), or by each criterion of a file (rubric); right answers in `references` are shown
beside. Of a model in a folder the verdict can be how likely it finds the letters A and B (`verdict`
likelihood), so that it writes nothing. Without `answers`, the responses in a file of people's
`votes` are judged. With `prompts`, a file of FastChat's, it is asked as in MT-Bench, whose files of
answers are read with `questions`.

A reply that gives no verdict, or several, is counted as unparsed, by the reason, and is neither a
loss nor a win. With every result come the judge's bias by position, by length and for its own
answers (`own` names the candidate that it wrote), and with `votes` its agreement with people.
`experiments` compares the baseline's answers with themselves: `verbose`, `concise`, or `injected`,
with an instruction for the judge. The first two also tell length from quality in the win rates at
equal lengths, as the gamed baselines of AlpacaEval do.

Writes `verdicts.jsonl`, every prompt with its reply and verdict; `annotations.jsonl` and
`gamed.jsonl`, which `eval.alpaca_eval` reads; `preferences.jsonl`, which `eval.agreement` and
`align.dpo` read; `judge.json` and `page.html`. Replies are kept in WORKDIR/known: a run that was
ended, or had used up `max_requests` or `max_cost`, goes on with what it lacks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import write_json, write_jsonl
from core.bounds import check_numbers
from core.entry import Stage, run_stage
from core.errors import UserError
from core.file_sums import sum_file
from core.pairs import parse_pairs
from core.progress import log
from data.layouts.faults import Faults
from data.layouts.rows import find_files
from data.preferences import write_preferences
from eval.judges.bias import (
    Outcome,
    as_comparisons,
    measure_length,
    measure_position,
    measure_self_preference,
    measure_win_rate,
)
from eval.judges.candidates import (
    Answers,
    Pair,
    pair_up,
    read_answers,
    read_voted,
    reference_of,
)
from eval.judges.experiments import EXPERIMENTS, REWRITES, make_variants
from eval.judges.judge import Judge, check_judge, open_judge
from eval.judges.mt_bench import read_turns
from eval.judges.page import render_judge
from eval.judges.people import Votes, as_preferences, mean_votes, measure_agreement, read_votes
from eval.judges.prompts import read_rubric
from eval.judges.ratings import rate_answers

FILES = ("votes", "references", "rubric", "questions", "prompts")
FORMS = ("pairwise", "single", "rubric")
ONE_SHOWN = {"value": None, "why": "the judge reads one answer at a time"}


@dataclasses.dataclass(frozen=True)
class Material:
    """What is judged.

    Attributes:
        candidates: their answers by question; none where the answers are those of a file of votes.
        baseline: the candidate that the others are compared with; "" if there is none.
        references: conversations that end with right answers.
        pairs: of answers.
        votes: of people.
        people_agreement: how far they agree with each other; None where that is not known.
    """

    candidates: Mapping[str, Answers]
    baseline: str
    references: Answers
    pairs: Sequence[Pair]
    votes: Votes
    people_agreement: float | None


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Judges by ``config.judge``; see the module's docstring.

    Returns:
        `candidates`, win rates against the baseline, and `length_terms`, what those at equal
        lengths are estimated by; `scores` of the forms that rate; `bias` by
        `position`, `length` and `self_preference`; `agreement` with people; `experiments`;
        `unparsed`, verdicts by the reason; `left_out`, rows by the reason; usage and cost.

    Raises:
        UserError: the config is contradictory, a file is damaged, there is nothing to judge, or not
            one verdict could be read.
    """
    section = config.judge
    _check(section)
    faults = Faults("judge", section.faulty)
    material = read_material(section, faults)
    faults.report()
    judge = open_judge(section, parents, folder.parent / "known")
    if section.form == "pairwise":
        outcomes = judge_pairs(material.pairs, judge)
        rows, scores = list(_verdict_rows(outcomes, "")), {}
    else:
        criteria = read_rubric(Path(section.rubric)) if section.form == "rubric" else [None]
        outcomes, rows, scores = rate_answers(material.candidates, material.references,
                                              material.pairs, criteria, judge)
    _check_verdicts(rows, judge)
    variants, left_out = _experiment(section, material, judge)
    for name, own in variants.items():
        rows += _verdict_rows(own, name)
    gamed = [one for name in REWRITES for one in variants.get(name, ()) if one.share is not None]
    metrics = {"judge": judge.name, "form": section.form, **scores,
               **measure(outcomes, material, section, judge, gamed),
               "experiments": {name: measure_win_rate(own) | {"left_out": left_out[name]}
                               for name, own in variants.items()},
               "unparsed": dict(Counter(row["reason"] for row in rows if row["reason"])),
               "verdicts": len(rows), "left_out": dict(faults.counts), **judge.usage()}
    _write(folder, outcomes, gamed, rows, metrics)
    (folder / "page.html").write_text(render_judge(metrics, rows, section.num_shown), "utf-8")
    _report(metrics)
    return metrics


def read_material(section: ConfigDict, faults: Faults) -> Material:
    """Reads the answers, right answers and votes that a section names."""
    votes, agreed = read_votes(Path(section.votes), faults) if section.votes else ({}, None)
    read = partial(read_turns, Path(section.questions)) if section.questions else read_answers
    references = read(Path(section.references), faults) if section.references else {}
    if not section.answers:
        # Its faults were counted when the votes were read.
        pairs = [dataclasses.replace(pair, reference=reference_of(references, pair.question))
                 for pair in read_voted(Path(section.votes), Faults("judge.votes"))]
        return Material({}, "", references, pairs, votes, agreed)
    candidates = {name: read(Path(path), faults)
                  for name, path in _name_answers(section).items()}
    baseline = section.baseline or next(reversed(candidates))
    if section.own and section.own not in candidates:
        raise UserError(f"judge.own={section.own!r}", "is no candidate",
                        f"name one of {', '.join(candidates)}, or set it to \"\"")
    is_alone = len(candidates) == 1 and section.form != "pairwise"
    pairs = [] if is_alone else pair_up(candidates, baseline, references, faults)
    return Material(candidates, baseline, references, pairs, votes, agreed)


def _name_answers(section: ConfigDict) -> dict[str, str]:
    """The file of each candidate."""
    return parse_pairs("config.judge.answers", section.answers.split(",")) \
        if section.answers else {}


def judge_pairs(pairs: Sequence[Pair], judge: Judge) -> list[Outcome]:
    """Compares the answers of each pair in both orders."""
    shown = [part for pair in pairs for part in (pair, pair.swapped())]
    verdicts = judge.compare(shown)
    return [Outcome(pair, (verdicts[2 * number], verdicts[2 * number + 1]))
            for number, pair in enumerate(pairs)]


def measure(outcomes: Sequence[Outcome], material: Material, section: ConfigDict, judge: Judge,
            gamed: Sequence[Outcome] = ()) -> dict[str, Any]:
    """Win rates, biases and agreement; see `build`.

    Args:
        gamed: of the baseline's answers longer and shorter, which tie the regression by length.
    """
    people = mean_votes(outcomes, material.votes)
    ties = [as_comparisons([one for one in gamed if one.pair.names[0] == name])
            for name in dict.fromkeys(one.pair.names[0] for one in gamed)]
    by_name: dict[str, list[Outcome]] = {}
    for one in outcomes if material.candidates else ():
        by_name.setdefault(one.pair.names[0], []).append(one)
    reads_order = judge.reads_order and section.form == "pairwise"
    agreement = None
    if section.votes:
        agreement = measure_agreement(outcomes, material.votes, section.seed)
        agreement["people_agreement"] = material.people_agreement
    own = section.own or (judge.name if judge.name in material.candidates else "")
    return {"baseline": material.baseline,
            "candidates": {name: measure_win_rate(pairs, ties) for name, pairs in by_name.items()},
            "length_terms": ["length"] + ["gamed"] * bool(ties),
            "bias": {"position": measure_position(outcomes) if reads_order else ONE_SHOWN,
                     "length": measure_length(outcomes, people),
                     "self_preference": measure_self_preference(outcomes, own, people)},
            "agreement": agreement}


def _experiment(section: ConfigDict, material: Material,
                judge: Judge) -> tuple[dict[str, list[Outcome]], dict[str, dict[str, int]]]:
    """The outcomes of answers in other forms, and how many of these are left out by the reason."""
    found, left_out = {}, {}
    for name in section.experiments:
        pairs, counts = make_variants(name, material.candidates[material.baseline],
                                      material.references, judge, section.seed)
        found[name], left_out[name] = judge_pairs(pairs, judge), dict(counts)
    return found, left_out


def _verdict_rows(outcomes: Sequence[Outcome], experiment: str) -> Iterator[dict[str, Any]]:
    """A row for each order of each pair."""
    for one in outcomes:
        for pair, verdict in zip((one.pair, one.pair.swapped()), one.verdicts):
            yield {"question": pair.question, "models": list(pair.names),
                   "lengths": list(pair.lengths), "experiment": experiment,
                   **verdict._asdict()}


def _check_verdicts(rows: Sequence[Mapping[str, Any]], judge: Judge) -> None:
    reasons = Counter(row["reason"] for row in rows)
    if rows and not reasons[""]:
        raise UserError(judge.name, f"gave no verdict in {len(rows)} replies ({dict(reasons)})",
                        "use a better judge, raise --config.judge.max_new_tokens, or check the "
                        "endpoint")


def _write(folder: Path, outcomes: Sequence[Outcome], gamed: Sequence[Outcome],
           rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> None:
    write_jsonl(folder / "verdicts.jsonl", rows)
    for name, own in (("annotations", outcomes), ("gamed", gamed)):
        write_jsonl(folder / f"{name}.jsonl", map(_annotate, own))
    write_preferences(folder / "preferences.jsonl", as_preferences(outcomes, metrics["judge"]))
    write_json(folder / "judge.json", metrics)


def _annotate(one: Outcome) -> dict[str, Any]:
    """A row of `eval.judges.annotations`."""
    return {"model": one.pair.names[0], "index": one.pair.question,
            "len_model": one.pair.lengths[0], "len_baseline": one.pair.lengths[1],
            "preference": None if one.share is None else 1 + one.share}


def _report(metrics: Mapping[str, Any]) -> None:
    for name, found in metrics["candidates"].items():
        rate = found["win_rate"]
        if rate["value"] is not None:
            log(f"judge: {name} wins {rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) "
                f"of {found['pairs']} against {metrics['baseline']}")
    num = sum(metrics["unparsed"].values())
    if num:
        log(f"judge: {num} of {metrics['verdicts']} replies give no verdict: {metrics['unparsed']}")


def _check(section: ConfigDict) -> None:
    check_numbers(section, "judge")
    if section.form not in FORMS:
        raise UserError(f"judge.form={section.form!r}", f"is none of {', '.join(FORMS)}",
                        "choose one of them")
    if (section.form == "rubric") != bool(section.rubric):
        raise UserError(f"judge.form={section.form!r}, rubric={section.rubric!r}",
                        "a rubric is read by the form rubric, and by no other",
                        "name a file of criteria, or set rubric to \"\"")
    if not section.answers and not section.votes:
        raise UserError("judge: answers, votes", "name nothing to judge",
                        "write --config.judge.answers=NAME=FILE,NAME=FILE")
    if section.experiments and not section.answers:
        raise UserError("judge.experiments", "are made with the answers of a candidate",
                        "name some: --config.judge.answers=NAME=FILE")
    for name in section.experiments:
        if name not in EXPERIMENTS:
            raise UserError(f"judge.experiments={name!r}", f"is none of {', '.join(EXPERIMENTS)}",
                            "choose among them")
    check_judge(section)


def _fingerprint(config: ConfigDict) -> dict[str, str]:
    """The contents of all files that are read."""
    section = config.judge
    named = {name: section[name] for name in FILES if section[name]}
    named |= {f"answers.{name}": path for name, path in _name_answers(section).items()}
    return {f"{name} {file.name}": sum_file(file) for name, path in named.items()
            for file in find_files(Path(path))}


STAGE = Stage("judge", build, parents=("model", "reward"), inputs=_fingerprint)

if __name__ == "__main__":
    run_stage(STAGE)
