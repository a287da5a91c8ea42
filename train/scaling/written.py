"""What a fit leaves in its folder: the law with its bootstrap samples, and the runs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.artifacts import write_json, write_jsonl
from core.json_text import format_json, parse_json
from core.progress import log
from train.scaling.report import Report


def write_fit(folder: Path, report: Report, result: Mapping[str, Any]) -> None:
    """Writes `fit.json` and `runs.jsonl`, and logs what is found and what is doubtful.

    Args:
        result: of `train.scaling.report.describe`, with what the command adds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = [dict(zip(report.fit.form.names, theta_P.tolist()))
               for theta_P in report.fit.samples_SP]
    write_json(folder / "fit.json", parse_json(format_json(dict(result) | {"samples": samples})))
    write_jsonl(folder / "runs.jsonl", _rows(report))
    for warning in result["warnings"]:
        log(f"fit: {warning}")
    log(write_sentence(result))


def _rows(report: Report) -> list[Mapping[str, Any]]:
    """A row for each run with the law's prediction."""
    rows = []
    for part, runs in (("fitted", report.runs), ("held_out", report.held)):
        if runs.names:
            predicted_R = report.fit.predict(
                **{name: runs.column(name) for name in report.fit.form.inputs})
            rows += [{"run": name, "part": part, "params": params, "tokens": tokens,
                      "flops": flops, "loss": loss, "predicted": predicted,
                      "relative_error": predicted / loss - 1}
                     for name, params, tokens, flops, loss, predicted in zip(
                         runs.names, *(runs.column(name).tolist() for name in
                                       ("params", "tokens", "flops", "loss")),
                         predicted_R.tolist())]
    return rows


def write_sentence(result: Mapping[str, Any]) -> str:
    """The result in a line."""
    constants = ", ".join(
        f"{name} {found['value']:.4g} " + (
            "(not determined)" if found["stderr"] is None else f"± {found['stderr']:.2g}")
        for name, found in result["constants"].items())
    held = result["heldout"]
    tail = "" if held is None else (f"; {held['runs']} held-out runs are predicted within "
                                    f"{100 * held['max_relative_error']:.2f} %")
    return (f"fit: {result['law']} of {result['runs']} runs, {result['counted']}: {constants}"
            f"{tail}")
