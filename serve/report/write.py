"""Stage: writes a self-contained report of a run.

    python -m serve.report.write --config=configs/quickstart.py --workdir=runs/quickstart

Writes `report.html`: no scripts, no network access, everything inlined. Equal artifacts give
equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import digest
from core.entry import Stage, run_stage
from core.page import layout
from core.page.markup import tag
from core.progress import log
from serve.report import sections as sections
from serve.report.run import ARTIFACTS, MODELS, Run

STYLE = Path(__file__).with_name("report.css")


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes the page; returns its path and the run's key numbers.

    Args:
        parents: one folder for each of `ARTIFACTS`.

    Raises:
        UserError: a file of an artifact is missing or damaged.
    """
    run = Run(parents)
    for name, field in run.foreign_parents():
        log(f"report: {name} was built from another {field} than the one that is shown")
    (folder / "report.html").write_text(render_page(run), encoding="utf-8")
    return {"run_dir": str(folder.parent),
            "report": str(folder.with_name(Path(config.report.out).name) / "report.html"),
            **key_numbers(run)}


def render_page(run: Run) -> str:
    """The whole page as HTML."""
    return layout.render_page("Heartwood: run report", sections.headline(run), tag(
        "main", sections.curation(run), sections.training(run), sections.compression(run),
        sections.evaluation(run), sections.answers(run), sections.lineage(run)),
        style=STYLE.read_text())


def key_numbers(run: Run) -> dict[str, Any]:
    """The key numbers of a run."""
    base, dpo, rl = (run.artifacts[f"eval_{model}"].metrics for model in ("base", "dpo", "rl"))
    manifest = run.corpus.manifest
    return {"minutes": round(run.secs() / 60, 2), "corpus_documents": manifest["documents"],
            "corpus_bytes": manifest["bytes"], "base_bpb": base["bpb"],
            "unigram_bpb": base["unigram_bpb"], "xz_bpb": base["xz_bpb"],
            "mc_acc": {model: run.evals[model]["documentation_acc"] for model in MODELS},
            "verifiable_acc": {model: run.evals[model]["verifiable_acc"] for model in MODELS},
            "turns_acc": {model: run.evals[model].get("turns_acc") for model in MODELS},
            "bpb": {model: run.artifacts[f"eval_{model}"].metrics["bpb"] for model in MODELS},
            "reward_accuracy": run.artifacts["reward"].metrics.get("accuracy"),
            "dpo_win_rate": dpo.get("win_rate"), "dpo_win_rate_ci": dpo.get("win_rate_ci"),
            "rl_win_rate": rl.get("win_rate"), "rl_win_rate_ci": rl.get("win_rate_ci")}


STAGE = Stage("report", build, parents=ARTIFACTS,
              inputs=lambda config: {"page": layout.fingerprint(),
                                     "style": digest(STYLE.read_text())})

if __name__ == "__main__":
    run_stage(STAGE)
