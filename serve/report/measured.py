"""Sections about evaluations: whiskers of models, bits per byte, lengths and texts of answers."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from core.page.layout import section, table
from core.page.markup import Markup, count, decimal, join, percent, tag
from model.generation.requests import LENGTH
from serve.report.evaluations import (
    OPEN,
    Estimate,
    Evaluation,
    all_tasks,
    has,
    mean_length,
    unlike_bits,
    unlike_task,
)
from serve.report.lanes import draw_bars, draw_lanes
from serve.report.settings import Unlike, group_alike

MAX_COLUMNS = 6         # models whose answers stand side by side
NUM_QUESTIONS = 5
NOT_PICKED = ("Not picked by hand: the questions whose text has the smallest SHA-256. Each "
              "model's prompt is literal.")


def accuracy(evaluations: Sequence[Evaluation]) -> Markup | None:
    """Dots and whiskers of each task, for the models that were asked in the same way."""
    blocks = []
    for task in (*all_tasks(evaluations), OPEN):
        for members, unlike in groups(evaluations, task):
            blocks += [_task(task, members, unlike), _families(task, members)]
    blocks += _win_rates(evaluations)
    if not blocks:
        return None
    return section(
        "Evaluations", "Dots are means, whiskers 95 % intervals (Wilson's for shares of right "
        "answers, normal ones for scores). Models stand under one heading only where the "
        "questions and the settings are the same. How a question is put also follows from the "
        "model: a base model may be shown solved examples, a chat model is asked in its template.",
        tag("div", blocks, class_="measures"))


def groups(evaluations: Sequence[Evaluation],
           task: str) -> list[tuple[list[Evaluation], Unlike | None]]:
    """The evaluations of a task, those together that asked the same in the same way."""
    return group_alike([one for one in evaluations if has(one, task)],
                       lambda ours, theirs: unlike_task(task, ours, theirs))


def _task(task: str, members: Sequence[Evaluation], unlike: Unlike | None) -> Markup:
    first = members[0]
    chance = first.number(f"{task}_chance")
    items = count(first.number(f"{task}_items"))
    if task == OPEN:
        note = f"{items} sampled answers, mean score"
    elif math.isfinite(chance):
        note = f"{items} questions with options; line: chance, {percent(chance, 0)}"
    else:
        note = f"{items} answers, right by the task"
    if unlike is not None:
        note += f". Apart from those above, as {unlike}"
    name = "Open answers" if task == OPEN else task.replace("_", " ").capitalize()
    return draw_lanes(name, note, [(one.model, one.style, one.estimate(task)) for one in members],
                      chance)


def _families(task: str, members: Sequence[Evaluation]) -> Markup | None:
    by_family: dict[str, list[tuple[str, str, Estimate]]] = defaultdict(list)
    for one in members:
        for family, estimate in one.families(task).items():
            by_family[family].append((one.model, one.style, estimate))
    if task == OPEN or not 1 < len(by_family) <= 20:
        return None
    return tag("details", tag("summary", f"{task}: {len(by_family)} families of questions"),
               [draw_lanes(family, "", lanes) for family, lanes in sorted(by_family.items())],
               class_="families")


def _win_rates(evaluations: Sequence[Evaluation]) -> list[Markup]:
    lanes = []
    for one in evaluations:
        ends = one.metrics.get("win_rate_ci")
        if math.isfinite(one.number("win_rate")) and isinstance(ends, list):
            against = one.run.parents(one.artifact).get("against")
            names = {other.artifact.name: other.model for other in evaluations}
            rival = (names.get(against.name, against.name) if against
                     else one.metrics.get("against"))
            lanes.append((f"{one.model} over {rival}", one.style,
                          Estimate(one.number("win_rate"), *ends)))
    return [draw_lanes("Win rate", "on the open answers, ties count half; line: a draw", lanes,
                       0.5)] if lanes else []


def bits(evaluations: Sequence[Evaluation]) -> Markup | None:
    """Bits per byte of the models, and of each how much above the one that it was trained from."""
    measured = [one for one in evaluations if math.isfinite(one.number("bpb"))]
    parts = [part for members, unlike in group_alike(measured, unlike_bits)
             for part in _bits(members, unlike)]
    if not parts:
        return None
    return section(
        "Bits per byte", "Of held-out pages that nothing in training resembles; lower is better. "
        "What a model needs more than the base model that it was trained from is the alignment "
        "tax.", *parts)


def _bits(members: Sequence[Evaluation], unlike: Unlike | None) -> list[Markup]:
    first, rows = members[0], []
    for name, key in (("unigram model", "unigram_bpb"), ("xz -9e", "xz_bpb")):
        if math.isfinite(first.number(key)):
            rows.append((name, "quiet", first.number(key), decimal(first.number(key))))
    rows += [(one.model, one.style, one.number("bpb"), decimal(one.number("bpb")))
             for one in members]
    taxes = [[one.model, decimal(one.number("bpb")), base.model,
              _signed(one.number("bpb") - base.number("bpb"))]
             for one in members if (base := _base(one, members)) is not None]
    note = tag("p", f"Apart from those above, as {unlike}.", class_="note") if unlike else None
    return [part for part in (note, draw_bars(rows), table(
        ["model", "bits per byte", "base model", "alignment tax"], taxes, "numbers")
        if taxes else None) if part is not None]


def _base(one: Evaluation, members: Sequence[Evaluation]) -> Evaluation | None:
    """The evaluation of the base model of a model; None for a base model itself."""
    model = one.run.parents(one.artifact).get("model")
    if model is None:
        return None
    base = one.run.root(model)
    found = (other for other in members if other.run.parents(other.artifact).get("model") is base)
    return None if base is model else next(found, None)


def _signed(value: float) -> str:
    return f"+{decimal(value)}" if value > 0 else decimal(value)


def lengths(evaluations: Sequence[Evaluation]) -> Markup | None:
    """Length of the answers of each model, and how many were cut at the limit."""
    parts = []
    for task in (*all_tasks(evaluations), OPEN):
        for members, unlike in groups([one for one in evaluations if one.answers(task)], task):
            limit = members[0].artifact.config.get("max_new_tokens")
            note = f"limit: {limit} tokens" + (f"; apart, as {unlike}" if unlike else "")
            parts.append(tag("div", tag("h3", "Open answers" if task == OPEN else task.capitalize(),
                                        tag("small", f" {note}")),
                             draw_bars([_length(one, task) for one in members])))
    if not parts:
        return None
    return section("Length of answers", "Mean tokens of an answer; then its mean characters, which "
                   "do not depend on the tokenizer, and the share of answers cut at the limit.",
                   tag("div", parts, class_="lengths"))


def _length(one: Evaluation, task: str) -> tuple[str, str, float, str]:
    rows = one.answers(task)
    tokens, characters = mean_length(rows)
    cut = sum(row.get("finish") == LENGTH for row in rows) / len(rows)
    return one.model, one.style, tokens, (f"{decimal(tokens, 1)} · {characters:.0f} characters · "
                                          f"{percent(cut)} cut")


def answers(evaluations: Sequence[Evaluation]) -> Markup | None:
    """The same questions answered by every model."""
    answered = {task: groups([one for one in evaluations if one.answers(task)], task)
                for task in (*all_tasks(evaluations), OPEN)}
    largest = {task: max((members for members, _ in found), key=len)[:MAX_COLUMNS]
               for task, found in answered.items() if found}
    if not largest:
        return None
    each = max(1, NUM_QUESTIONS // len(largest))
    return section("Questions and answers", NOT_PICKED,
                   [part for task, members in largest.items()
                    for part in _questions(task, members, each)])


def _questions(task: str, members: Sequence[Evaluation], num: int) -> list[Markup]:
    by_question = [{row["question"]: row for row in one.answers(task)} for one in members]
    shared = set.intersection(*map(set, by_question))
    return [_answers(task, question, [(one, rows[question])
                                      for one, rows in zip(members, by_question)])
            for question in sorted(shared, key=_sha256)[:num]]


def _answers(task: str, question: str,
             rows: Sequence[tuple[Evaluation, Mapping[str, Any]]]) -> Markup:
    prompts: dict[str, list[str]] = defaultdict(list)
    for one, row in rows:
        prompts[row.get("prompt", "")].append(one.model)
    columns = [tag("div", tag("h4", tag("span", one.model, class_=f"key {one.style}"),
                              _verdict(task, row["score"])),
                   tag("pre", row["completion"] or "(nothing)")) for one, row in rows]
    return tag("article", tag("h3", question), tag("p", f"{task} · reference: ", tag(
        "q", rows[0][1].get("reference", "")), class_="reference"),
        tag("div", columns, class_="columns"),
        tag("details", tag("summary", "Literal prompts"),
            [join(tag("p", " and ".join(models)), tag("pre", prompt))
             for prompt, models in prompts.items()]), class_="question")


def _verdict(task: str, score: float) -> Markup:
    if task == OPEN or 0 < score < 1:
        return tag("span", f"score {decimal(score, 2)}", class_="verdict")
    is_right = score >= 1
    return tag("span", "✓ right" if is_right else "✗ wrong",
               class_=f"verdict {'right' if is_right else 'wrong'}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
