"""The report of a synthetic run: safe, deterministic, explicit about missing numbers."""

import json
import math
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from core.artifacts import LAYOUT
from core.errors import UserError
from serve.report import write as report
from serve.report.run import ARTIFACTS, MODELS, Run, proportion

ATTACK = "</pre><script>alert('x')</script><img src=http://evil.example onerror=alert(1)>"
PARENTS = {"tokenizer": ["corpus"], "tokens": ["corpus", "tokenizer"], "base": ["tokens"],
           "sft": ["base", "corpus"], "pairs": ["sft", "corpus"], "dpo": ["sft", "pairs"],
           "reward": ["sft", "pairs"], "eval_base": ["base"], "eval_sft": ["sft", "eval_base"],
           "eval_dpo": ["dpo", "eval_sft"], "rl": ["dpo", "corpus"],
           "eval_rl": ["rl", "eval_dpo"]}
VOID = {"meta"}


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _answers(task, number, score, prompt):
    return [{"task": task, "family": f"{task}{i % 2}", "question": f"{task} {i}?",
             "reference": f"{i}", "prompt": prompt, "completion": f"{prompt} says {i} {ATTACK}",
             "score": score} for i in range(number)]


def _write_corpus(folder):
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
    _write(folder / "manifest.json", {
        "documents": 6, "bytes": 600, "documents_in": 9, "bytes_in": 900, "heldout_documents": 1,
        "heldout_bytes": 100, "redacted": {"email": 3}, "corrupt": {}, "funnel": stages,
        "kept_by_domain": {"web": {"documents": 4, "bytes": 400},
                           "code": {"documents": 2, "bytes": 200}}})
    for kind, rows in {
            "heldout": [{"id": "h", "domain": "web"}],
            "removed": [{"id": f"r{i}", "stage": "rules", "reason": "gopher_min_words",
                         "text": f"{ATTACK}\nline {i}", "representative": "",
                         "source": ATTACK, "domain": "web", "score": 3.0}
                        for i in range(2)]}.items():
        (folder / kind).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / kind / "part-00000.parquet")


def _write_eval(folder, model, score):
    metrics = {"bpb": 1.5, "unigram_bpb": 3.0, "xz_bpb": 2.0, "documentation_acc": score,
               "documentation_chance": 0.25, "documentation_items": 40, "verifiable_acc": score,
               "verifiable_items": 8, "turns_acc": score / 2, "turns_items": 8,
               "tasks": ["documentation", "turns", "verifiable"],
               "open_score": score, "open_stderr": 0.02, "open_items": 6, "secs": 1.0,
               "peak_memory_bytes": 1e8}
    if model != "base":
        metrics |= {"win_rate": 0.7, "win_rate_ci": [0.6, 0.8], "against": "eval_base"}
    _write(folder / "metrics.json", metrics)
    _write_rows(folder / "verifiable.jsonl", _answers("verifiable", 8, float(score > 0.5), model))
    _write_rows(folder / "open.jsonl", _answers("documentation", 6, score, model)
                + _answers("verifiable", 2, score, model))


def _write_run(folder):
    _write_corpus(folder / "corpus")
    for model, score in zip(MODELS, (0.1, 0.6, 0.8, 0.9), strict=True):
        _write_eval(folder / f"eval_{model}", model, score)
    base = {"params": 1000, "steps": 20, "tokens": 4000, "goodput_frac": 0.9}
    for name, metrics in {"corpus": {}, "tokenizer": {}, "tokens": {"tokens": 5000}, "base": base,
                          "sft": {"conversations": 30}, "pairs": {"pairs": 5}, "dpo": {}, "rl": {},
                          "reward": {"accuracy": 0.75, "longer_accuracy": 0.5,
                                     "shorter_accuracy": 0.45}}.items():
        _write(folder / name / "metrics.json", metrics | {"secs": 30.0, "peak_memory_bytes": 2e9})
    _write(folder / "base" / "model.json", {"config": {"N": 2, "D": 32, "V": 512}})
    _write_rows(folder / "base" / "speed.jsonl", [{"step": 20, "tokens_per_sec": 1234.0}])
    losses = [{"step": step, "loss": 5 - step / 10, "margin": step / 10, "accuracy": 0.6,
               "chosen_reward": 0.1, "rejected_reward": -0.1, "reward": 0.4, "kl": 0.2}
              for step in range(1, 21)]
    for name in ("base", "sft", "reward", "dpo", "rl"):
        _write_rows(folder / name / "metrics.jsonl", [*losses, {"step": 20, "heldout_bpb": 1.5}])
    for name in ARTIFACTS:
        _write(folder / name / "lineage.json", {
            "layout": LAYOUT, "stage": name, "fingerprint": f"print-of-{name}",
            "build": f"mark-of-{name}", "command": f"python -m {name}",
            "inputs": {parent: f"mark-of-{parent}" for parent in PARENTS.get(name, ())},
            "config": {"pretrain": {"num_steps": 20, "anneal_frac": 0.3}}, "commit": "c" * 40,
            "uncommitted_changes": False, "python": "3.11", "platform": "Linux",
            "versions": {"jax": "0.10.2"}, "started": "2026-01-01T00:00:00Z"})


@pytest.fixture
def folders(tmp_path):
    _write_run(tmp_path)
    return {name: tmp_path / name for name in ARTIFACTS}


def _build(folders, out):
    out.mkdir()
    config = ConfigDict({"report": {"out": "report"}})
    return report.build(config, folders, out), (out / "report.html").read_bytes()


class _Elements(HTMLParser):
    """All elements of a page, which must be properly nested."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)


def test_texts_of_documents_and_answers_are_escaped(folders, tmp_path):
    page = _build(folders, tmp_path / "out")[1].decode()
    elements = _Elements(page)
    assert not {"script", "img", "link", "iframe"} & {name for name, _ in elements.elements}
    for _, attributes in elements.elements:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    shown = [text for text in elements.text if "<script>alert('x')</script>" in text]
    assert len(shown) >= 2 * 2 + 5 * 4  # samples with their sources, and every answer
    assert "url(http" not in page and "@import" not in page


def test_same_artifacts_give_the_same_bytes_in_any_order_of_answers(folders, tmp_path):
    first, page = _build(folders, tmp_path / "out")
    assert _build(folders, tmp_path / "again")[1] == page
    assert first["report"] == str(tmp_path / "report" / "report.html")
    assert first["run_dir"] == str(tmp_path)
    assert first["verifiable_acc"] == {"base": 0.1, "sft": 0.6, "dpo": 0.8, "rl": 0.9}
    assert first["turns_acc"] == {"base": 0.05, "sft": 0.3, "dpo": 0.4, "rl": 0.45}
    assert first["reward_accuracy"] == 0.75 and first["bpb"]["sft"] == 1.5
    assert first["minutes"] == pytest.approx((9 * 30 + 4) / 60, abs=0.01)
    before = Run(folders).answers()
    for source in ("open", "verifiable"):
        path = folders["eval_sft"] / f"{source}.jsonl"
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    after = Run(folders).answers()
    assert after == before and len(after) == 5
    assert all(answer.question == answer.rows[model]["question"]
               for answer in after for model in MODELS)


def test_missing_numbers_are_reported_without_a_crash(folders, tmp_path):
    for name, changes in {
            "eval_dpo": {"win_rate": math.nan, "win_rate_ci": [math.nan, math.nan],
                         "open_stderr": math.nan, "documentation_items": 0, "bpb": math.nan},
            "eval_base": {"xz_bpb": 0.0, "unigram_bpb": math.nan}, "pairs": {"pairs": 0}}.items():
        metrics = json.loads((folders[name] / "metrics.json").read_text())
        _write(folders[name] / "metrics.json", metrics | changes)
    _write_rows(folders["dpo"] / "metrics.jsonl", [])
    _write_rows(folders["sft"] / "metrics.jsonl", [{"step": 1, "loss": math.nan}])
    for part in (folders["corpus"] / "removed").iterdir():
        part.unlink()
    page = _build(folders, tmp_path / "out")[1].decode()
    text = " ".join(_Elements(page).text)
    assert "n/a" in text and "No finite value was logged" in text
    assert " nan" not in text and "nan%" not in page and "inf" not in text.split()


def test_numbers_that_were_not_measured_are_null_and_named(folders, tmp_path):
    for model in MODELS:
        path = folders[f"eval_{model}"] / "metrics.json"
        _write(path, json.loads(path.read_text())
               | dict.fromkeys(("bpb", "unigram_bpb", "xz_bpb")))
    _write_rows(folders["base"] / "metrics.jsonl", [{"step": 20, "loss": 3.0, "evaluated": 1}])
    numbers, page = _build(folders, tmp_path / "out")
    assert numbers["base_bpb"] is numbers["unigram_bpb"] is numbers["xz_bpb"] is None
    text = " ".join(_Elements(page.decode()).text)
    assert "Not measured: the corpus holds no page out." in text
    assert "No finite value was logged." in text and " nan" not in text


def test_edges_follow_fingerprints_and_a_foreign_parent_is_reported(folders, tmp_path):
    run = Run(folders)
    assert set(run.edges()) == {(parent, child) for child, parents in PARENTS.items()
                                for parent in parents}
    assert run.foreign_parents() == []
    lineage = json.loads((folders["sft"] / "lineage.json").read_text())
    _write(folders["sft"] / "lineage.json", lineage | {"inputs": {"base": "another"}})
    assert Run(folders).foreign_parents() == [("sft", "base")]
    assert b"sft was built from another base" in _build(folders, tmp_path / "out")[1]


@pytest.mark.parametrize("damaged", ["corpus/manifest.json", "dpo/metrics.jsonl",
                                     "eval_sft/open.jsonl", "corpus/removed/part-00000.parquet"])
def test_damaged_artifact_is_a_user_error(folders, tmp_path, damaged):
    (tmp_path / damaged).write_text("{")
    with pytest.raises(UserError, match=rf"{damaged}.*: .*build its artifact anew"):
        _build(folders, tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_wilson_interval_has_its_textbook_values():
    none, half = proportion(0.0, 10), proportion(0.5, 10)
    assert (none.low, none.high) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert (half.low, half.high) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert math.isnan(proportion(0.5, 0).low)


def test_families_count_every_answer_of_their_own(folders):
    rows = _answers("verifiable", 8, 0.0, "sft")
    _write_rows(folders["eval_sft"] / "verifiable.jsonl",
                [row | {"score": float(i in (0, 2, 3))} for i, row in enumerate(rows)])
    families = Run(folders).families()
    assert list(families) == ["verifiable0", "verifiable1"]
    assert families["verifiable0"]["sft"] == proportion(2 / 4, 4)
    assert families["verifiable1"]["sft"] == proportion(1 / 4, 4)
    assert families["verifiable1"]["base"].value == 0
