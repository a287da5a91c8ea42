"""Small runs written by hand, as the stages write them, for tests of the run book."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from core.artifacts import LAYOUT

ATTACK = "</pre><script>alert('x')</script><img src=http://evil.example onerror=alert(1)>"
ARTIFACTS = ("corpus", "tokenizer", "tokens", "base", "eval_base", "sft", "eval_sft", "pairs",
             "reward", "dpo", "eval_dpo", "rl", "eval_rl")
STAGES = {"corpus": "curate", "tokens": "pack", "base": "pretrain"}
PARENTS = {"tokenizer": {"corpus": "corpus"}, "tokens": {"corpus": "corpus",
                                                         "tokenizer": "tokenizer"},
           "base": {"tokens": "tokens", "corpus": "corpus"},
           "sft": {"model": "base", "corpus": "corpus"},
           "pairs": {"model": "sft", "corpus": "corpus"}, "dpo": {"model": "sft", "pairs": "pairs"},
           "reward": {"model": "sft", "pairs": "pairs"}, "rl": {"model": "dpo", "corpus": "corpus"},
           "eval_base": {"model": "base", "corpus": "corpus", "tokens": "tokens"},
           "eval_sft": {"model": "sft", "corpus": "corpus", "tokens": "tokens",
                        "against": "eval_base"},
           "eval_dpo": {"model": "dpo", "corpus": "corpus", "tokens": "tokens",
                        "against": "eval_sft"},
           "eval_rl": {"model": "rl", "corpus": "corpus", "tokens": "tokens",
                       "against": "eval_dpo"}}
SCORES = {"base": 0.1, "sft": 0.6, "dpo": 0.8, "rl": 0.9}
EVAL = {"seed": 0, "tasks": {"verifiable": 8}, "open_tasks": {"documentation": 6}, "row_length": 64,
        "max_new_tokens": 32, "prompts": "literal", "temperature": 1.0}


def write(path, value):
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_rows(path, rows):
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(path, **changes):
    """Changes fields of a JSON file."""
    write(path, json.loads(path.read_text()) | changes)


def write_artifact(folder, *, stage=None, inputs=None, config=None, metrics=None, mark=None):
    """Lineage and metrics of an artifact."""
    name = mark or folder.name
    stage = stage or STAGES.get(name, "eval" if name.startswith("eval") else name)
    parents = PARENTS.get(name, {})
    write(folder / "lineage.json", {
        "layout": LAYOUT, "stage": stage, "fingerprint": f"print-of-{name}",
        "build": f"mark-of-{name}", "command": f"python -m {name}", "commit": "c" * 40,
        "inputs": {field: f"mark-of-{parent}" for field, parent in parents.items()}
        if inputs is None else inputs,
        "config": {stage: parents | (config or {})}, "uncommitted_changes": False,
        "python": "3.11", "platform": "Linux", "versions": {"jax": "0.10.2"},
        "started": "2026-01-01T00:00:00Z"})
    write(folder / "metrics.json", {"secs": 30.0, "peak_memory_bytes": 2e9} | (metrics or {}))


def write_training(folder, *, loss=5.0, **options):
    """A training of 20 steps with a measure on held-out data at the end."""
    write_artifact(folder, **options)
    rows = [{"step": step, "loss": loss - step / 10, "learning_rate": 0.001 * step,
             "gradient_norm": 1.0, "margin": step / 10, "accuracy": 0.6, "chosen_reward": 0.1,
             "rejected_reward": -0.1, "reward": 0.4, "kl": 0.2} for step in range(1, 21)]
    write_rows(folder / "metrics.jsonl", [*rows, {"step": 20, "heldout_bpb": 1.5,
                                                   "turns_acc": 0.5}])


def answers(task, number, scores, prompt):
    """Records of answers; `scores` is a share of right ones, or a list."""
    if not isinstance(scores, list):
        scores = [float(i < round(scores * number)) for i in range(number)]
    return [{"id": str(i), "task": task, "family": f"{task}{i % 2}", "question": f"{task} {i}?",
             "reference": f"{i}", "prompt": prompt, "completion": f"{prompt} says {i} {ATTACK}",
             "finish": "length" if i == 0 else "stop", "num_tokens": 5 + i, "score": scores[i]}
            for i in range(number)]


def write_evaluation(folder, model, scores, *, config=None, metrics=None, **options):
    """An evaluation of two tasks, with bits per byte and sampled answers."""
    rows = answers("verifiable", 8, scores, model)
    share = sum(row["score"] for row in rows) / len(rows)
    found = {"bpb": 1.5, "unigram_bpb": 3.0, "xz_bpb": 2.0, "tasks": ["verifiable"],
             "verifiable_acc": share, "verifiable_low": max(share - 0.2, 0.0),
             "verifiable_high": min(share + 0.2, 1.0), "verifiable_items": 8,
             "documentation_acc": share, "turns_acc": share / 2,
             "open_score": 0.5, "open_stderr": 0.02, "open_items": 6}
    if model != "base":
        found |= {"win_rate": 0.7, "win_rate_ci": [0.6, 0.8], "against": "eval_base"}
    write_artifact(folder, config=EVAL | (config or {}), metrics=found | (metrics or {}), **options)
    write_rows(folder / "verifiable.jsonl", rows)
    write_rows(folder / "open.jsonl", answers("documentation", 6, scores if not isinstance(
        scores, list) else scores[:6], model))


def write_corpus(folder):
    """A corpus of six documents, of nine that were read."""
    counts = {"documents": 2, "bytes": 200}
    stages = [
        {"stage": "rules", "documents_in": 9, "bytes_in": 900,
         "removed": {"gopher_min_words": counts},
         "removed_by_domain": {"web": {"documents": 1, "bytes": 100},
                               "code": {"documents": 1, "bytes": 100}},
         "trimmed_bytes": {}, "documents_out": 7, "bytes_out": 700},
        {"stage": "split", "documents_in": 7, "bytes_in": 700, "removed": {},
         "removed_by_domain": {}, "trimmed_bytes": {"block": 7}, "documents_out": 7,
         "bytes_out": 700}]
    write_artifact(folder, metrics={"documents": 6, "bytes": 600, "documents_in": 9})
    write(folder / "manifest.json", {
        "documents": 6, "bytes": 600, "documents_in": 9, "bytes_in": 900, "heldout_documents": 1,
        "heldout_bytes": 100, "redacted": {"email": 3}, "corrupt": {}, "funnel": stages,
        "kept_by_domain": {"web": {"documents": 4, "bytes": 400},
                           "code": {"documents": 2, "bytes": 200}}})
    for kind, rows in {
            "heldout": [{"id": "h", "domain": "web"}],
            "removed": [{"id": f"r{i}", "stage": "rules", "reason": "gopher_min_words",
                         "text": f"{ATTACK}\nline {i}", "representative": "", "source": ATTACK,
                         "domain": "web", "score": 3.0} for i in range(2)]}.items():
        (folder / kind).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / kind / "part-00000.parquet")


def write_run(folder):
    """A whole run of the quickstart."""
    write_corpus(folder / "corpus")
    for name in ("tokenizer", "tokens", "pairs"):
        write_artifact(folder / name)
    for name in ("base", "sft", "reward", "dpo", "rl"):
        write_training(folder / name)
    for model, score in SCORES.items():
        write_evaluation(folder / f"eval_{model}", model, score,
                         metrics={"bpb": 1.5 + score / 10})
    change(folder / "reward" / "metrics.json", accuracy=0.75, longer_accuracy=0.5)
    change(folder / "base" / "metrics.json", params=1000, steps=20, tokens=4000, heldout_bpb=1.5)
