"""The page of a run: only the sections for which there is something."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.page import layout
from core.page.markup import Markup, count, decimal, percent, size, tag
from core.progress import format_count
from data.card import funnel
from data.corpus import Corpus
from serve.report import measured
from serve.report.counted import held_out, numbers
from serve.report.evaluations import (
    Evaluation,
    all_tasks,
    has,
    is_evaluation,
    read_evaluations,
)
from serve.report.origin import left_out, origin
from serve.report.runs import Artifact, Run, total
from serve.report.training import is_training, training

STYLE = Path(__file__).with_name("report.css")
MAX_TILES, MAX_STEPS = 12, 6
ORDER = ("curate", "pretrain", "import", "sft", "pairs", "reward", "dpo", "rl", "eval")


def render_run(run: Run) -> str:
    """The whole page as HTML."""
    evaluations = read_evaluations(run)
    parts = [shown(run, "training", lambda: training(run)),
             *(shown(run, artifact.name, lambda artifact=artifact: curation(artifact))
               for artifact in run.artifacts if artifact.stage == "curate"),
             shown(run, "held out", lambda: held_out(run)),
             *(shown(run, make.__name__, lambda make=make: make(evaluations)) for make in (
                 measured.accuracy, measured.bits, measured.lengths, measured.answers)),
             numbers(run, [one.name for one in run.artifacts if one.stage == "curate"
                           or is_training(one) or is_evaluation(one)]),
             origin(run)]
    return layout.render_page(f"Heartwood: {run.name}", headline(run, evaluations), left_out(run),
                              tag("main", parts), style=STYLE.read_text())


def shown(run: Run, name: str, render: Callable[[], Markup | None]) -> Markup | None:
    """A section; one whose files are damaged is left out, and the run records why."""
    try:
        return render()
    except (UserError, OSError) as error:
        folders = {artifact.name: artifact.folder for artifact in run.artifacts}
        reason = str(error).replace(str(folders[name]), name) if name in folders else str(error)
        run.leave_out(name, reason)
        return None


def headline(run: Run, evaluations: Sequence[Evaluation]) -> Markup:
    """What there is, and tiles of key numbers."""
    stages: dict[str, int] = {}
    for artifact in sorted(run.artifacts, key=_rank):
        stages[artifact.stage] = stages.get(artifact.stage, 0) + 1
    listed = ", ".join(f"{number} × {stage}" if number > 1 else stage
                       for stage, number in stages.items())
    secs = total(artifact.number("secs") for artifact in run.artifacts)
    tiles = [("Artifacts", count(len(run.artifacts)), f"{secs / 60:.1f} minutes together"),
             *(tile for artifact in run.artifacts for tile in _tiles(artifact)),
             *_climbs(evaluations)]
    return layout.headline("Heartwood · run book", run.name, f"Finished artifacts: {listed}.",
                           tiles[:MAX_TILES])


def _rank(artifact: Artifact) -> int:
    return ORDER.index(artifact.stage) if artifact.stage in ORDER else len(ORDER)


def _tiles(artifact: Artifact) -> list[tuple[str, Any, str]]:
    """The key number of an artifact, where it has one."""
    metrics, name, stage, number = (artifact.metrics, artifact.name, artifact.stage,
                                    artifact.number)
    if stage == "curate":
        return [(name, size(number("bytes")), f"{count(number('documents'))} documents of "
                 f"{count(number('documents_in'))} read")]
    if stage == "pretrain":
        return [(name, f"{format_count(number('params'))} parameters"
                 if math.isfinite(number("params")) else "pretrained",
                 f"{count(number('steps'))} steps, held-out bits per byte "
                 f"{decimal(number('heldout_bpb'))}")]
    if stage == "reward" and math.isfinite(number("accuracy")):
        return [(name, f"{percent(number('accuracy'))} right", "of held-out pairs; the longer "
                 f"answer alone {percent(number('longer_accuracy'))}")]
    tasks = [key for key in metrics if f"{key}_low" in metrics and key.startswith("heldout_")]
    if stage == "rl" and tasks:
        return [(name, percent(number(tasks[0])), f"{tasks[0].removeprefix('heldout_')}, held "
                 f"out; before {percent(number(f'untouched_{tasks[0]}'))}")]
    return []


def _climbs(evaluations: Sequence[Evaluation]) -> list[tuple[str, Any, str]]:
    """A tile for each task: its share of right answers by model."""
    tiles = []
    for task in all_tasks(evaluations):
        members = max((group for group, _ in measured.groups(evaluations, task)), key=len,
                      default=[])
        if 1 < len(members) <= MAX_STEPS:
            tiles.append((f"{task}, %", [tag(
                "span", percent(one.estimate(task).value, 0).removesuffix(" %"),
                tag("small", one.model), class_=f"step {one.style}") for one in members],
                "share of right answers"))
        tiles += [(f"{task}: {one.model}", percent(one.estimate(task).value), "right")
                  for one in members if len(members) == 1 and has(one, task)]
    return tiles


def curation(artifact: Artifact) -> Markup:
    """The funnel of a corpus by stage and domain, losses of each domain, and removal reasons."""
    corpus = Corpus(artifact.folder)
    manifest = corpus.manifest
    left = {unit: percent(manifest[unit] / max(manifest[f"{unit}_in"], 1), 0)
            for unit in ("documents", "bytes")}
    return layout.section(
        f"The funnel of {artifact.name}", f"{left['documents']} of the documents and "
        f"{left['bytes']} of the bytes are left to train on. Bars count documents, tints are "
        "domains, hatched is what the stage removed; the thin line below is the text that is left.",
        funnel.draw_funnel(corpus), funnel.domain_table(corpus),
        tag("p", funnel.trim_note(corpus), class_="note"),
        tag("details", tag("summary", "Why documents were removed"),
            tag("p", f"Open a reason to read up to {funnel.NUM_SAMPLES} of its documents, those "
                "of the smallest content hash. The corpus' own page, report.html in its folder, "
                "shows the rest: signals, duplicates, languages, speed.", class_="note"),
            funnel.reasons(corpus)))
