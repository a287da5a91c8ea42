"""Stage: writes the run book of the artifacts that a config names.

    python -m serve.report.write --config=configs/quickstart.py --workdir=runs/quickstart

Writes `report.html`, the page that `python -m serve.report` makes of a whole folder, about the
parents alone: no scripts, no network access, everything inlined. Equal artifacts give equal bytes.
A parent whose field is empty is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import digest
from core.entry import Stage, run_stage
from core.page import layout
from core.progress import log
from serve.report.book import STYLE, render_run
from serve.report.runs import Artifact, Run, total

ARTIFACTS = ("corpus", "tokenizer", "tokens", "base", "eval_base", "sft", "eval_sft", "pairs",
             "reward", "dpo", "eval_dpo", "rl", "eval_rl")
MODELS = ("base", "sft", "dpo", "rl")


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes the page; returns its path and the run's key numbers.

    Args:
        parents: folders of some of `ARTIFACTS`.
    """
    run = Run(folder.absolute().parent.name, parents)
    for name, field in run.replaced_parents():
        log(f"report: {name} was built from another {field} than the one that is shown")
    (folder / "report.html").write_text(render_run(run), encoding="utf-8")
    for name, reason in run.left_out:
        log(f"report: {name} is not shown: {reason}")
    return {"run_dir": str(folder.parent),
            "report": str(folder.with_name(Path(config.report.out).name) / "report.html"),
            **key_numbers({artifact.name: artifact for artifact in run.artifacts})}


def key_numbers(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The key numbers of a run; None stands for what was not measured."""
    metrics = {name: artifact.metrics for name, artifact in artifacts.items()}
    evals = {model: metrics[f"eval_{model}"] for model in MODELS if f"eval_{model}" in metrics}
    secs = total(artifact.number("secs") for artifact in artifacts.values())

    def number(name: str, key: str) -> Any:
        return metrics.get(name, {}).get(key)

    def by_model(key: str) -> dict[str, Any]:
        return {model: own.get(key) for model, own in evals.items()}

    return {"minutes": round(secs / 60, 2), "corpus_documents": number("corpus", "documents"),
            "corpus_bytes": number("corpus", "bytes"), "base_bpb": number("eval_base", "bpb"),
            "unigram_bpb": number("eval_base", "unigram_bpb"),
            "xz_bpb": number("eval_base", "xz_bpb"), "mc_acc": by_model("documentation_acc"),
            "verifiable_acc": by_model("verifiable_acc"), "turns_acc": by_model("turns_acc"),
            "bpb": by_model("bpb"), "reward_accuracy": number("reward", "accuracy"),
            "dpo_win_rate": number("eval_dpo", "win_rate"),
            "dpo_win_rate_ci": number("eval_dpo", "win_rate_ci"),
            "rl_win_rate": number("eval_rl", "win_rate"),
            "rl_win_rate_ci": number("eval_rl", "win_rate_ci")}


STAGE = Stage("report", build, parents=ARTIFACTS,
              inputs=lambda config: {"page": layout.fingerprint(),
                                     "style": digest(STYLE.read_text())})

if __name__ == "__main__":
    run_stage(STAGE)
