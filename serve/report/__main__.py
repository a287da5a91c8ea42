"""The run book: one self-contained page about whatever a run's folder holds.

    python -m serve.report runs/quickstart-cpu --out=runs/book
    python -m serve.report runs/a runs/b --out=runs/a-and-b
    python -m serve.report runs/sweep --out=runs/sweep-book

Finds every finished artifact below the folder by its `lineage.json` and shows only what there is:
curves, funnels, evaluations, bits per byte, answers, and where everything comes from. Of several
folders it compares what is comparable, names what is not and why, and lists the configs'
differences; a folder may also be a single artifact. A folder that `python -m scripts.sweep.run`
wrote is shown by its points. Writes `report.html`: no scripts, no network access, equal bytes for
equal artifacts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from serve.report.book import render_run
from serve.report.compare import Comparison
from serve.report.compare_page import render_comparison
from serve.report.evaluations import series
from serve.report.runs import find_run, short_names
from serve.report.sweep import Sweep, is_sweep, render_sweep


def show_run(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page of a run, and the figures for the last line."""
    run = find_run(folder)
    page = render_run(run)
    for name, reason in run.left_out:
        log(f"report: {name} is not shown: {reason}")
    return page, {"artifacts": [artifact.name for artifact in run.artifacts],
                  "left_out": dict(run.left_out)}


def show_comparison(folders: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """The page of several runs, and the figures for the last line."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(" ".join(map(str, folders)), "names a folder twice", "name each once")
    runs = [find_run(folder) for folder in folders]
    for run, name in zip(runs, short_names(folders)):
        run.name = name
    comparison = Comparison(runs, [series(number) for number in range(len(runs))])
    comparison.check()
    for reason in comparison.reasons():
        log(f"report: not compared: {reason}")
    return (render_comparison(comparison, " and ".join(run.name for run in runs)),
            {"runs": [run.name for run in runs], **comparison.numbers()})


def show_sweep(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page of a sweep, and the figures for the last line."""
    sweep = Sweep(folder)
    for reason in sweep.comparison.reasons():
        log(f"report: not compared: {reason}")
    return render_sweep(sweep), sweep.numbers()


def main(words: Sequence[str]) -> dict[str, Any]:
    """Reads the flags and writes the page."""
    out = flags.FLAGS.out
    if not words:
        raise UserError("no folder", "one or more folders of runs are needed",
                        "write `python -m serve.report RUN_DIR --out=DIR`")
    if not out:
        raise UserError("--out", "is missing", "name a folder: --out=DIR")
    folders = [Path(word) for word in words]
    if len(folders) > 1:
        page, result = show_comparison(folders)
    else:
        page, result = (show_sweep if is_sweep(folders[0]) else show_run)(folders[0])
    Path(out).mkdir(parents=True, exist_ok=True)
    path = Path(out) / "report.html"
    path.write_text(page, encoding="utf-8")
    return {"page": str(path)} | result


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder for report.html.")
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
