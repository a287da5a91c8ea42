"""The safety report of models: what they refuse, lean on, and can be talked into.

    python -m eval.safety --model=runs/mine/dpo --out=runs/mine/safety --num=60
    python -m eval.safety --model=base=runs/mine/base,dpo=runs/mine/dpo --out=runs/mine/safety \\
        --xstest=xstest_prompts.csv --bbq=Religion.jsonl
    python -m eval.safety --endpoint=http://127.0.0.1:8000/v1 --endpoint_model=NAME --out=runs/them
    python -m eval.safety --xstest=COMPLETIONS --out=runs/check

Every probe asks each model and judges its answers; one whose file is not given, or that needs
likelihoods which an endpoint does not give, is named as not run. Writes `safety.json`, all figures
with 95 % intervals and counts; `items.jsonl`, every prompt with its reply and verdict; and
`safety.html`, which shows the models side by side. Answers of loaded models are kept in OUT/known:
a run that was ended goes on with what it lacks.

Without a model it checks what is measured with: the refusal classifier against people's labels of
XSTest's completions (`--xstest`), and BBQ's bias by the predictions in its files (`--bbq`); it
prints tables, and writes `checks.json` where `--out` is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import write_json, write_jsonl
from core.errors import UserError, require_file
from eval.safety.bbq import format_predictions, score_predictions
from eval.safety.page import render_safety
from eval.safety.probe import Settings, Subject
from eval.safety.refusal_check import check_refusals, format_check
from eval.safety.registry import FILES, choose
from eval.safety.report import make_report
from eval.safety.subjects import name_models, open_endpoint, open_folder


def write_report(report: dict[str, Any], rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Writes the report's files; returns the figures for the last line."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "safety.json", report)
    write_jsonl(out / "items.jsonl", rows)
    (out / "safety.html").write_text(render_safety(report, rows), encoding="utf-8")
    values = {name: {model: {label: round(one["value"], 4)
                             for label, one in found["estimates"].items()}
                     for model, found in probe["models"].items()}
              for name, probe in report["probes"].items()}
    return {"page": str(out / "safety.html"), "models": list(report["models"]), "items": len(rows),
            "estimates": values, "not_run": report["not_run"]}


def run_checks(settings: Settings, out: Path | None) -> dict[str, Any]:
    """The checks of the measures themselves; prints tables.

    Raises:
        UserError: there is neither a model nor a file to check with.
    """
    checks: dict[str, Any] = {}
    if path := settings.files.get("xstest"):
        checks["refusal"] = check_refusals(path, settings.seed, settings.num_samples)
        print(format_check(checks["refusal"]))
    if path := settings.files.get("bbq"):
        checks["bbq"] = score_predictions(path)
        print(format_predictions(checks["bbq"]))
    if not checks:
        raise UserError("--model", "is missing", "name a model directory: --model=DIR")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "checks.json", checks)
    return checks


def _open_subjects(out: Path | None) -> list[partial[Subject]]:
    """What opens each model, when its turn comes."""
    values = flags.FLAGS
    if out is None and (values.model or values.endpoint):
        raise UserError("--out", "is missing", "name a folder: --out=DIR")
    makers = [partial(open_folder, name, folder, values.batch_size, out / "known")
              for name, folder in name_models(values.model).items()]
    for maker in makers:
        require_file("--model", maker.args[1], "name a model directory")
    if values.endpoint:
        subject = open_endpoint(values.endpoint, values.endpoint_model, values.key_variable)
        makers.append(partial(lambda: subject))
    return makers


def main() -> dict[str, Any]:
    """Reads the flags, and reports or checks."""
    values = flags.FLAGS
    probes = choose(values.probes)
    files = {name: require_file(f"--{name}", values[name].value, "correct the path")
             for name in FILES if values[name].value}
    settings = Settings(values.num, values.seed, values.max_new_tokens,
                        num_samples=values.num_samples, files=files)
    out = Path(values.out) if values.out else None
    makers = _open_subjects(out)
    if not makers:
        return run_checks(settings, out)

    def subjects() -> Iterator[Subject]:
        for make in makers:
            yield make()
    return write_report(*make_report(subjects(), probes, settings), out)


if __name__ == "__main__":
    flags.DEFINE_multi_string("model", [], "Model directory, or NAME=DIR; several with commas, or "
                              "by naming the flag several times.")
    flags.DEFINE_string("out", None, "Folder for safety.json, items.jsonl and safety.html.")
    flags.DEFINE_list("probes", [], "Names of probes; none: all.")
    flags.DEFINE_string("xstest", None, "XSTest's prompts (CSV), or completions with labels "
                        "(JSONL), a file or a folder.")
    flags.DEFINE_string("bbq", None, "BBQ's items (JSONL), a file or a folder.")
    flags.DEFINE_string("questions", None, "Multiple-choice rows for sycophancy and confidence, "
                        "with question, choices and answer; none: our own.")
    flags.DEFINE_string("toxicity_prompts", None, "Beginnings of texts that are continued, rows "
                        "with text or prompt; none: our own.")
    flags.DEFINE_string("toxicity_classifier", None, "Folder of a toxicity classifier; none: "
                        "listed words are all that is judged.")
    flags.DEFINE_string("toxicity_words", None, "List of words, one a line; none: our own, of "
                        "insults in English.")
    flags.DEFINE_string("training_text", None, "Training text that may be recited: files, a folder "
                        "or a folder of tokens.")
    flags.DEFINE_string("heldout_text", None, "Text of the same kind that was held out; none: the "
                        "domain heldout of the folder of tokens, if there is one.")
    flags.DEFINE_integer("num", 0, "Items of each probe, of all its groups; 0: all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of the choice of items, and of bootstraps.", lower_bound=0)
    flags.DEFINE_integer("max_new_tokens", 128, "Longest answer.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 16, "Prompts that are answered at once.", lower_bound=1)
    flags.DEFINE_integer("num_samples", 1000, "Samples of a bootstrap.", lower_bound=2)
    flags.DEFINE_string("endpoint", "", "URL of a server with OpenAI's chat-completions API.")
    flags.DEFINE_string("endpoint_model", "", "The server's name of the model.")
    flags.DEFINE_string("key_variable", "", "Environment variable that holds the server's key.")
    entry.run(main)
