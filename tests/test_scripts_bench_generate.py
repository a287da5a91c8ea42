"""The benchmark of generation: requests in turns, ratios, engines that fail, and a whole run."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import jax
import pytest

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from data.tokenizers.bpe import train
from data.tokenizers.recipe import Recipe
from model.config import ModelConfig
from model.directory import save_model
from model.families.registry import init
from scripts.bench import generate
from scripts.bench.generate_process import EngineProcess, EngineStopped
from scripts.bench.generate_prompts import make_texts
from scripts.bench.generate_table import LABELS, format_table, summarise

FLAGS = SimpleNamespace(prompt_lengths=["4", "8"], capacities=["16", "64"], num_tokens=5)
REQUESTS = generate.list_requests(50, FLAGS)
OWN = generate.list_own_requests(REQUESTS, FLAGS)

ENGINE = """
import os
from scripts.bench.generate_engine import serve

class Engine:
    def add(self, a, b):
        print("a library's message")
        return a + b
    def fail(self):
        raise ValueError("no such file\\nand more")
    def die(self):
        os.write(2, b"Fatal: out of luck\\n")
        os._exit(3)

serve(Engine())
"""


class FakeEngine:
    """Answers each request after a time that depends on the engine; counts what is compiled."""

    def __init__(self, name, secs, asked, stops_at=None):
        self.name, self.secs, self.asked, self.stops_at = name, secs, asked, stops_at
        self.compiled = 0

    def ask(self, call, **args):
        if call == "count_compilations":
            return self.compiled
        self.asked.append((self.name, call))
        if call == self.stops_at:
            raise EngineStopped("memory ran out")
        self.compiled += call == "generate_otherwise"
        if call == "prefill_cached":
            return self.secs / 4
        return self.secs * (1.5 if args.get("capacity") == 64 else 1)


def _take_turns(**secs):
    asked = []
    engines = {name: FakeEngine(name, value, asked) for name, value in secs.items()}
    return generate.take_turns(engines, REQUESTS, OWN, num_turns=2), asked


# --- requests and turns -------------------------------------------------------------------------

def test_prompts_are_different_and_of_different_lengths():
    texts = make_texts(20)
    assert len(set(texts)) == len({len(text.split()) for text in texts}) == 20


def test_requests_are_the_same_for_all_engines_and_within_the_cache():
    assert list(REQUESTS) == ["prefill_4", "prefill_8", "decode_1", "decode_16"]
    _, wide = REQUESTS["decode_16"]
    assert [len(row) for row in wide["prompts"]] == [4] * 16 and wide["capacity"] == 16
    assert OWN["decode_1_larger"][1]["capacity"] == 64


def test_engines_take_turns_and_the_first_turn_is_not_counted():
    results, asked = _take_turns(ours_float32=1.0, transformers=2.0)
    assert asked[:4] == [("ours_float32", "prefill"), ("transformers", "prefill")] * 2
    assert results["transformers"] == {name: [2.0, 2.0] for name in REQUESTS}
    assert results["ours_float32"]["decode_1_larger"] == [1.5, 1.5]
    assert results["ours_float32"]["num_compilations"] == 1     # by `generate_otherwise`


def test_an_engine_that_stops_is_reported_and_the_others_are_measured():
    asked = []
    engines = {"ours_float32": FakeEngine("ours_float32", 1.0, asked),
               "transformers": FakeEngine("transformers", 2.0, asked, stops_at="decode")}
    results = generate.take_turns(engines, REQUESTS, OWN, num_turns=2)
    assert results["transformers"] == {"error": "memory ran out"}
    assert asked.count(("transformers", "decode")) == 1
    assert results["ours_float32"]["decode_16"] == [1.0, 1.0]


# --- figures ------------------------------------------------------------------------------------

def test_ratios_are_of_the_rates_that_their_names_say():
    secs = {"ours_float32": 1.0, "ours_int8": 0.5, "ours_int4": 0.25, "transformers": 3.0,
            "llama_cpp": 0.2}
    results, _ = _take_turns(**secs)
    loaded = {name: {"weight_bytes": 1} for name in secs}
    rows, ratios = summarise(loaded, results, REQUESTS)
    assert rows["transformers"]["decode_16_tokens_per_sec"] == pytest.approx(16 * 5 / 3.0)
    assert rows["llama_cpp"]["prefill_8_tokens_per_sec"] == pytest.approx(8 / 0.2)
    assert rows["ours_int8"]["first_token_secs"] == 0.5
    assert ratios == {
        "ratio_batch_1": 3.0, "int8_over_float32": 2.0, "int4_over_llama_cpp": 0.8,
        "capacity_cost_frac": 0.5, "prefix_hit_over_miss": 0.25,
        "num_compilations_after_first": 3, "ratio": 3.0}
    assert list(ratios)[-1] == "ratio"


def test_a_side_that_was_not_run_has_a_reason_and_no_ratio():
    results, _ = _take_turns(ours_float32=1.0)
    loaded = {name: {"error": "no torch"} for name in LABELS}
    loaded["ours_float32"] = {"weight_bytes": 1}
    rows, ratios = summarise(loaded, results, REQUESTS)
    assert ratios["ratio"] is None and ratios["int8_over_float32"] is None
    table = format_table(rows, REQUESTS).splitlines()
    assert [line.count("|") for line in table[:3]] == [8, 8, 8]
    assert table[3:] == [f"{label}: not run: no torch" for label in (
        "ours, int8", "ours, int4", "transformers, float32", "llama.cpp, Q4_1")]


def test_tokens_are_compared_row_by_row():
    def engine(tokens):
        return SimpleNamespace(ask=lambda call, **args: tokens)

    ours, theirs = [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 0, 6]]
    engines = {"ours_float32": engine(ours), "transformers": engine(theirs)}
    result = generate.compare_tokens(engines, [[7], [8, 9]], 3)
    assert result == {"prompt_lengths": [1, 2], "tokens_agreed": [3, 1], "tokens_equal": False}
    engines["transformers"] = engine(ours)
    assert generate.compare_tokens(engines, [[7], [8, 9]], 3)["tokens_equal"] is True
    del engines["transformers"]
    assert generate.compare_tokens(engines, [[7]], 3) == {"tokens_equal": None}


# --- processes ----------------------------------------------------------------------------------

def test_a_process_answers_and_says_why_it_cannot(tmp_path):
    engine = EngineProcess([sys.executable, "-c", ENGINE], tmp_path / "log")
    try:
        assert engine.ask("add", a=1, b=2) == 3
        with pytest.raises(EngineStopped, match=r"^no such file$"):
            engine.ask("fail")
        assert engine.ask("add", a=2, b=2) == 4     # it goes on
        for _ in range(2):
            with pytest.raises(EngineStopped, match=r"^Fatal: out of luck$"):
                engine.ask("die")
    finally:
        engine.close()
    with pytest.raises(UserError, match=r"/no/python: cannot be run"):
        EngineProcess(["/no/python"], tmp_path / "log")


def test_the_gguf_file_is_found_in_a_wheel(tmp_path):
    (tmp_path / ".download").mkdir()
    with zipfile.ZipFile(tmp_path / ".download" / "model-1.whl", "w") as wheel:
        wheel.writestr("package/model.gguf", "GGUF")
    found = generate.find_gguf(None, tmp_path / "model", tmp_path / "scratch")
    assert found.read_text() == "GGUF"
    assert generate.find_gguf(str(found), tmp_path, tmp_path) == found
    with pytest.raises(UserError, match=r"--gguf=/no/file: is no file"):
        generate.find_gguf("/no/file", tmp_path, tmp_path)


@pytest.mark.full
def test_the_whole_benchmark_runs_and_its_last_line_ends_with_the_ratio(tmp_path):
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing")
    tokenizer = train(["the quick brown fox jumps over the lazy dog"] * 20, Recipe(280))
    tokenizer.save(tmp_path / "tokenizer")
    config = ModelConfig(V=tokenizer.vocab_size, D=32, N=2, H=4, G=2, K=8, F=64, qk_norm=False)
    params = jax.tree.map(lambda w: w + 0.2 * jax.random.normal(jax.random.key(7), w.shape),
                          init(config, jax.random.key(0)))
    save_model(tmp_path / "model", params, config, tmp_path / "tokenizer", chat=True,
               context_tokens=2048)
    write_json(tmp_path / "model" / "lineage.json",
               make_lineage(stage="sft", config={}, inputs={}, code=""))
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.generate", f"--model={tmp_path}/model",
         "--prompt_lengths=8,16", "--num_tokens=4", "--capacities=32,64", "--turns=1",
         f"--json={tmp_path}/figures.json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("cpu: a sum reads ")
    result = json.loads(last)
    assert json.loads((tmp_path / "figures.json").read_text()) == result
    assert list(result)[-1] == "ratio" and result["ratio"] > 0
    assert result["tokens_equal"] is True
    assert result["rows"]["ours_float32"]["weight_bytes"] == 4 * sum(
        leaf.size for leaf in jax.tree.leaves(params))
    assert "not asked for" in result["rows"]["llama_cpp"]["error"]
