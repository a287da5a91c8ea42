"""Searches a training corpus for the items of benchmarks, and measures whether it matters.

    python -m eval.contamination --tasks=gsm8k/test.jsonl.gz --inputs=pages.jsonl --out=DIR
    python -m eval.contamination --tasks=gsm8k,mmlu --data=BENCHMARKS --inputs=CORPUS --out=DIR \\
        --encoder=MINILM --results=runs/eval/model
    python -m eval.contamination --tasks=documentation --inputs=CORPUS --out=DIR --model=DIR \\
        --members=seen.jsonl --nonmembers=unseen.jsonl --canary='canary GUID 4ab5...'

Tasks are files, as curation takes them, or names of the registry. The corpus is anything that
curation reads, or a folder that it wrote. Every method has a threshold from which an item counts as
contaminated, which `--thresholds` changes; the module `detect` says what each measures. `--encoder`
adds passages of like meaning, `--model` what a model's own probabilities say, and `--results`, the
folder of an evaluation, its scores on clean and on contaminated items.

Writes `contamination.json`, a row of each item in `items.jsonl`, and `contamination.html`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import write_json, write_jsonl
from core.errors import UserError
from core.pairs import parse_pairs
from core.progress import log
from eval.contamination.canaries import Canaries
from eval.contamination.corpus import find_questions
from eval.contamination.detect import Detector
from eval.contamination.embed import load_encoder
from eval.contamination.items import read_tasks
from eval.contamination.page import render_contamination
from eval.contamination.report import Evidence, make_report, search
from eval.contamination.scores import read_results
from eval.contamination.tally import set_thresholds
from eval.respond.loaded import load_model
from model.execution import Execution


def main() -> dict[str, Any]:
    """Reads the flags, searches and writes the report."""
    values = flags.FLAGS
    for name in ("tasks", "inputs", "out"):
        if not values[name].value:
            raise UserError(f"--{name}", "is missing", f"set it: --{name}=...")
    if bool(values.members) != bool(values.nonmembers):
        raise UserError("--members, --nonmembers", "one of them is missing", "give both, or none")
    if values.members and not values.model:
        raise UserError("--members", "are scored by a model, and none is given", "set --model=DIR")
    rules = set_thresholds(parse_pairs("thresholds", values.thresholds, float))
    items, skipped = read_tasks(values.tasks, fields=values.fields,
                                corpus=find_questions(values.inputs),
                                data=Path(values.data) if values.data else None)
    results = read_results(Path(values.results)) if values.results else None
    encoder = load_encoder(Path(values.encoder)) if values.encoder else None
    model = load_model(Path(values.model), Execution(loss_chunks=0)) if values.model else None
    detector, canaries = Detector(items, skipped=skipped, seed=values.seed), Canaries(values.canary)
    log(f"contamination: {len(items):,} items of {', '.join(values.tasks)}")
    searched = search(detector, values.inputs, encoder=encoder, canaries=canaries, num=values.num)
    report, rows = make_report(detector, searched, rules, canaries, Evidence(
        model, values.members, values.nonmembers, values.num_candidates, values.batch_size,
        values.seed, results))
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "contamination.json", report)
    write_jsonl(out / "items.jsonl", rows)
    (out / "contamination.html").write_text(render_contamination(report, rows), encoding="utf-8")
    return summarise(report) | {"page": str(out / "contamination.html")}


def summarise(report: dict[str, Any]) -> dict[str, Any]:
    """The figures for the last line."""
    corpus, model = report["corpus"], report["model"]
    return {
        "documents": corpus["documents"], "left_out": corpus["left_out"],
        "lexical_mb_per_sec": round(corpus["lexical_mb_per_sec"], 3),
        "tasks": {task: {"items": one["items"]} | one["rules"]
                  for task, one in report["tasks"].items()},
        "differences": report["scores"] and {
            task: {rule: split["difference"] and round(split["difference"]["value"], 4)
                   for rule, split in one["rules"].items()}
            for task, one in report["scores"].items()},
        "auroc": model and model["auroc"] and {name: round(one["value"], 4)
                                               for name, one in model["auroc"].items()},
        "canaries": [{"documents": one["documents"],
                      "exposure_bits": one.get("model", {}).get("exposure_bits")}
                     for one in report["canaries"]]}


if __name__ == "__main__":
    flags.DEFINE_list("tasks", [], "Task files or folders of them, or names of tasks.")
    flags.DEFINE_list("fields", [], "Fields of task files that hold an item's text; none: the "
                      "usual ones.")
    flags.DEFINE_string("inputs", None, "The corpus: files, folders, globs, with commas.")
    flags.DEFINE_string("out", None, "Folder for the report.")
    flags.DEFINE_string("data", None, "Folder of benchmarks' files, for names of benchmarks.")
    flags.DEFINE_integer("num", 0, "Documents of the corpus, the first ones; 0: all.",
                         lower_bound=0)
    flags.DEFINE_list("thresholds", [], "From which value of a rule on an item counts as "
                      "contaminated: RULE=VALUE.")
    flags.DEFINE_string("encoder", None, "Model directory of an encoder of texts.")
    flags.DEFINE_string("model", None, "Model directory, for evidence from probabilities.")
    flags.DEFINE_string("members", None, "Texts that the model was trained on.")
    flags.DEFINE_string("nonmembers", None, "Texts of the same kind that it was not trained on.")
    flags.DEFINE_multi_string("canary", [], "A text with a GUID or digits that were drawn at "
                              "random; may be given several times.")
    flags.DEFINE_integer("num_candidates", 1000, "Other canaries that each is compared with.",
                         lower_bound=1)
    flags.DEFINE_string("results", None, "Folder of an evaluation with records of its items.")
    flags.DEFINE_integer("batch_size", 1, "Rows of the model's context in a forward pass.",
                         lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of random substrings and canaries.", lower_bound=0)
    entry.run(main)
