"""Learning curves: from tables of scores, and over the saved checkpoints of a run."""

import csv
import dataclasses
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer
from core.artifacts import ROOT, make_lineage, read_jsonl, write_json, write_jsonl
from core.errors import UserError
from core.pairs import parse_pairs
from data.chat import ask
from data.tokenizers.bpe import BytePairTokenizer
from eval import checkpoints
from eval.aggregate.curve_page import render
from eval.aggregate.curves import (
    Curve,
    Point,
    find_missing,
    make_curves,
    read_curves,
    summarise,
)
from eval.aggregate.table import Score
from eval.checkpoints import Run, measure_checkpoints, open_run, recorded
from eval.curve import write_curves
from eval.measures.choices import score_choices
from eval.respond.loaded import LoadedModel
from eval.statistics import wilson_interval
from eval.tasks.task import Choice
from model.checkpoint import load_checkpoint, saved_steps
from model.directory import save_model
from model.parallel.sharding import make_mesh
from train.checkpoints.checkpoints import Checkpoints
from train.optimizer import optimizers
from train.step import make_state
from train.trainer import trained_params

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
PYTHIA = DATASETS / "pythia_checkpoints" / "evals.csv.gz"
needs_files = pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")
ITEMS = {"piqa": 1838, "sciq": 1000, "arc_easy": 2376, "lambada_openai": 5153}
CHANCE = {"piqa": 0.5, "sciq": 0.25, "arc_easy": 0.25, "lambada_openai": 0.0}
SIZES = {"row_length": 64, "batch_size": 2, "seed": 1}


def curve(values, *, metric="acc", stderr=0.01, chance=0.25, steps=None):
    steps = steps or range(1, len(values) + 1)
    return Curve("", "piqa", metric, tuple(
        Point(step, Score(value, stderr, 100, chance)) for step, value in zip(steps, values)))


# --- what a curve says


@pytest.mark.parametrize("values, changes, step, words", [
    ([0.25, 0.26, 0.28, 0.30], {}, 3, ""),
    ([0.25, 0.30, 0.26, 0.30], {}, 4, "at the last checkpoint only"),
    ([0.25, 0.30, 0.27, 0.26], {}, None, "not above chance at the end"),
    ([0.25, 0.24, 0.26, 0.27], {}, None, "not above chance"),
    ([0.30, 0.31, 0.32, 0.33], {}, 1, ""),
    ([0.25, 0.30, 0.31, 0.32], {"chance": None}, None, "chance is not known"),
    ([0.25, 0.30, 0.31, 0.32], {"stderr": None}, None, "no standard errors"),
    ([9.0, 8.0, 7.0, 6.0], {"metric": "ppl"}, None, "no accuracy")])
def test_a_score_emerges_where_it_stays_above_chance_by_two_errors(values, changes, step, words):
    found = summarise(curve(values, **changes))
    assert (found.emerges_at, found.emergence) == (step, words)


def test_noise_is_that_of_independent_errors_whatever_the_trend_and_the_spacing():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 9, 4000)).tolist()
    values = 3 + 0.01 * np.array(steps) + rng.normal(0, 0.02, 4000)
    found = summarise(curve(values, steps=steps))
    assert found.noise == pytest.approx(0.02, rel=0.05)
    assert found.signal_to_noise == pytest.approx(abs(values[-1] - values[0]) / found.noise)
    line = summarise(curve([0.1, 0.2, 0.4], steps=[1, 2, 4]))
    assert line.noise == pytest.approx(0, abs=1e-15) and line.monotonicity == pytest.approx(1)


def test_monotonicity_follows_the_metrics_direction():
    assert summarise(curve([9, 7, 8, 5], metric="ppl")).monotonicity == pytest.approx(0.8)
    assert summarise(curve([9, 7, 8, 5])).monotonicity == pytest.approx(-0.8)
    assert summarise(curve([9, 7, 8, 5], metric="secs")).monotonicity is None
    assert summarise(curve([9, 7, 8, 5], metric="secs")).noise > 0
    short = summarise(curve([0.2, 0.3]))
    assert short.noise is short.monotonicity is short.signal_to_noise is None


def test_bands_of_accuracies_are_wilsons_and_of_others_normal():
    wide, = Curve("", "a", "acc", (Point(1, Score(1.0, 0.0, 20)),)).intervals
    assert wide == wilson_interval(1.0, 20) and wide[0] < 0.9
    stderr = math.sqrt(0.3 * 0.7 / 200)
    own, = Curve("", "a", "acc", (Point(1, Score(0.3, stderr, 200)),)).intervals
    assert own == pytest.approx(wilson_interval(0.3, 200))
    clustered, = Curve("", "a", "acc", (Point(1, Score(0.3, 2 * stderr, 200)),)).intervals
    assert clustered == pytest.approx(wilson_interval(0.3, 50)), "a quarter of the items"
    normal, = Curve("", "a", "bpb", (Point(1, Score(0.9, 0.1, 200)),)).intervals
    assert normal == pytest.approx((0.9 - 0.196, 0.9 + 0.196), abs=1e-4)
    assert Curve("", "a", "bpb", (Point(1, Score(0.9)),)).intervals == [None]


def test_checkpoints_without_a_task_are_named():
    points = [("x", "piqa", "acc", Point(step, Score(0.5))) for step in (1, 2, 3)]
    points += [("x", "sciq", "acc", Point(2, Score(0.5))), ("y", "sciq", "acc",
                                                           Point(9, Score(0.5)))]
    curves, repeated = make_curves([*points, points[0]])
    assert repeated == 1 and find_missing(curves) == {("x", "sciq", "acc"): [1, 3]}
    with pytest.raises(UserError, match=r"step 1, piqa acc of x: comes twice, as 0\.5 and 0\.6: "):
        make_curves([*points, ("x", "piqa", "acc", Point(1, Score(0.6)))])


# --- tables


def write_table(path, rows, columns="step,task,metric,value"):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def read_table(path, **changes):
    return read_curves(path, **dict(only={}, items={}, chance={}) | changes)


def test_columns_of_a_table_and_what_is_given_beside_it(tmp_path):
    path = write_table(tmp_path / "t.csv", [
        "20,piqa,acc,0.6,1000,,a,5", "10,piqa,acc,0.5,1000,0.1,a,5", "10,piqa,ppl,3,,,a,5",
        "10,piqa,acc,0.5,1000,,b,5"], "step,task,metric,value,n,stderr,model,shots")
    curves, left_out = read_table(path, only={"model": "a"}, items={"piqa": 7},
                                  chance={"piqa": 0.5}, tokens_per_step=100)
    assert left_out == {"not_chosen": 1} and [c.series for c in curves] == ["a, 5", "a, 5"]
    first, last = curves[0].points
    assert (first.step, first.tokens, first.score) == (10, 1000, Score(0.5, 0.1, 1000, 0.5))
    assert last.score.stderr == pytest.approx(math.sqrt(0.24 / 999)), "that of a share"
    assert curves[1].points[0].score == Score(3.0, None, 7, 0.5), "of a perplexity none"


@pytest.mark.parametrize("row, line", [
    ("1,piqa,acc,nan", "line 2: value is 'nan', which is no finite number"),
    ("1,piqa,acc,", "line 2: has no value: name a table with the columns step, task, metric"),
    ("one,piqa,acc,0.5", "line 2: step is 'one', which is no finite number")])
def test_a_row_that_is_no_score_is_one_line(tmp_path, row, line):
    with pytest.raises(UserError) as error:
        read_table(write_table(tmp_path / "t.csv", [row]))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_choice_that_leaves_no_row_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no row with model=c: correct --only"):
        read_table(write_table(tmp_path / "t.csv", ["1,piqa,acc,0.5"]), only={"model": "c"})


def test_what_is_written_can_be_read_again_and_the_page_is_well_formed(tmp_path):
    rows = [f"{step},{task},acc,{0.2 + 0.02 * n:.2f},500,0.25,{model}"
            for n, step in enumerate((0, 1, 10, 100, 1000, 10000)) for task in ("piqa", "<b>&")
            for model in ("a", "b") if (task, step) != ("piqa", 10)]
    curves, _ = read_table(write_table(tmp_path / "t.csv", rows,
                                       "step,task,metric,value,items,chance,model"))
    metrics = write_curves(tmp_path / "out", "t", curves)
    assert metrics["missing"] == {"piqa acc (a)": [10], "piqa acc (b)": [10]}
    assert metrics["emerges_at"]["piqa acc (a)"] == 10000 and metrics["series"] == 2
    again, _ = read_table(tmp_path / "out" / "points.jsonl")
    assert again == curves
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count('class="key c') == 2, "the legend"
    assert page.count('class="band"') == page.count("<figure") * 2 == 4
    assert "1 checkpoints without it, steps 10" in page and "&lt;b&gt;&amp;" in page
    assert page.count('class="level"') == 2 and "http" not in page.split("</head>")[1]
    for drawing in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + drawing.split("</svg>")[0] + "</svg>")
    summaries = read_jsonl(tmp_path / "out" / "curves.jsonl")
    assert summaries[0]["monotonicity"] == pytest.approx(1) and len(summaries) == 4


def test_a_page_of_many_series_says_how_many_it_shows():
    curves, _ = make_curves((str(series), "piqa", "acc", Point(step, Score(0.5)))
                            for series in range(30) for step in (1, 2))
    page = render("t", curves, [summarise(found) for found in curves], {})
    assert "The charts show 24 of 30 series." in page


@needs_files
def test_learning_curves_of_pythia_by_another_route():
    """Rows of one model, read and judged here with plain loops."""
    curves, left_out = read_curves(
        PYTHIA, only={"model": "pythia-1b-bf16", "shots": "zero-shot"}, items=ITEMS,
        chance=CHANCE, tokens_per_step=2_097_152)
    with gzip.open(PYTHIA, "rt") as file:
        rows = list(csv.DictReader(file))
    own = [row for row in rows if (row["model"], row["shots"]) == ("pythia-1b-bf16", "zero-shot")]
    assert left_out == {"not_chosen": len(rows) - len(own)} and not find_missing(curves)
    assert sum(len(found.points) for found in curves) == len(own) == 378
    for found in curves:
        values = {int(row["step"]): float(row["value"]) for row in own
                  if (row["task"], row["metric"]) == (found.task, found.metric)}
        assert {p.step: p.score.value for p in found.points} == values
        if found.task in ITEMS and found.metric == "acc":
            emerged = None
            for step in sorted(values, reverse=True):
                p, n = values[step], ITEMS[found.task]
                if p - 2 * math.sqrt(p * (1 - p) / (n - 1)) <= CHANCE[found.task]:
                    break
                emerged = step
            assert summarise(found).emerges_at == emerged
    at = {found.task: summarise(found).emerges_at for found in curves if found.metric == "acc"}
    assert {task: at[task] for task in ITEMS} == {
        "piqa": 256, "sciq": 1000, "arc_easy": 512, "lambada_openai": 1000}
    assert curves[0].points[-1].tokens == 143_000 * 2_097_152


@needs_files
def test_rows_of_one_checkpoint_that_differ_are_not_silently_merged():
    try:
        read_curves(PYTHIA, only={"shots": "intervention", "model": "pythia-1.4b-deduped"},
                    items={}, chance={})
    except UserError as error:
        assert "comes twice" in str(error)
    else:
        pytest.fail("two interventions have the same name")


@pytest.mark.full
def test_the_command_prints_one_json_line(tmp_path):
    table = write_table(tmp_path / "t.csv", ["1,piqa,acc,0.5", "2,piqa,acc,0.9"])
    done = subprocess.run([sys.executable, "-m", "eval.curve", f"--table={table}",
                           "--items=piqa=100", "--chance=piqa=0.5", f"--out={tmp_path / 'out'}"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["emerges_at"] == {"piqa acc": 2}


@pytest.mark.parametrize("entries, convert", [(["piqa=many"], int), (["piqa"], float),
                                              (["=0.5"], float)])
def test_a_flag_that_is_no_pair_is_one_line(entries, convert):
    assert parse_pairs("items", ["piqa=3", "a b=4"], int) == {"piqa": 3, "a b": 4}
    with pytest.raises(UserError) as error:
        parse_pairs("items", entries, convert)
    assert str(error.value) == (f"--items={entries[0]!r}: is not of the form NAME=VALUE: "
                                "write --items=NAME=VALUE,NAME=VALUE")


# --- checkpoints


@pytest.fixture(scope="module")
def tokenizer():
    """As many tokens as the tiny model has rows, with the special ones."""
    return BytePairTokenizer({bytes([b]): i for i, b in enumerate((10, *range(32, 124)))})


@pytest.fixture
def model(params, config, execution, tokenizer):
    return LoadedModel(params, config, execution, tokenizer, False, 64)


def save_checkpoints(folder, params, steps, *, keep_ema=False, **optimizer):
    """Saves states of these steps, each with other parameters; the states by step."""
    section = ConfigDict(make_optimizer(warmup_steps=0, **optimizer))
    state = make_state(params, optimizer=optimizers.make_optimizer(section, 100),
                       key=jax.random.key(1), mesh=make_mesh({"data": 1}, jax.devices()[:1]),
                       guard_window=8, keep_ema=keep_ema)
    saved, states = Checkpoints(folder, keep=9), {}
    batches = iter(grain.MapDataset.range(100).to_iter_dataset())
    for step in steps:
        states[step] = dataclasses.replace(
            state, step=jnp.int32(step),
            params=jax.device_put(scaled(params, 1 + 0.1 * step)))
        assert saved.save(states[step], batches, required=True)
    saved.close()
    return states


def scaled(params, factor):
    return jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(factor), params)


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6), one, other))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params, config, tokenizer):
    """A finished run with checkpoints 2 and 4, and a running average."""
    place = tmp_path_factory.mktemp("work") / "base"
    place.mkdir()
    tokenizer.save(place.parent / "tokens" / "tokenizer")
    save_checkpoints(place / "checkpoints", params, (2, 4), keep_ema=True)
    write_json(place / "lineage.json", make_lineage(
        stage="pretrain", config={"pretrain": {"tokens": "tokens"}}, inputs={}, code=""))
    save_model(place, params, config, place.parent / "tokens" / "tokenizer", chat=False,
               context_tokens=64)
    write_jsonl(place / "metrics.jsonl", [
        {"step": 1, "tokens": 64.0}, {"step": 2, "tokens": 128.0},
        {"step": 2, "evaluated": 1, "heldout_bpb": 1.5}, {"step": 4, "tokens": 256.0}])
    return place


QUESTIONS = [Choice(ask(text, group=text[0]), ("yes", "no", "maybe so"), number % 3)
             for number, text in enumerate(("a b", "a c", "b d", "c e", "c f", "d g"))]
TASK = SimpleNamespace(name="guess", choices=lambda split, num, seed: QUESTIONS[:num],
                       conversations=lambda split, num, seed: [])


def test_a_checkpoint_gives_the_average_or_the_raw_parameters(folder, params, config):
    place = folder / "checkpoints"
    assert saved_steps(place) == [2, 4]
    assert equal(load_checkpoint(place, 4, config), params), "the average of the first state"
    assert equal(load_checkpoint(place, 4, config, raw=True), scaled(params, 1.4))


@pytest.mark.full
def test_without_an_average_these_are_what_training_would_keep(tmp_path, params, config):
    for name, changes in {"adamw": {}, "schedule_free": {"schedule": "constant"}}.items():
        states = save_checkpoints(tmp_path / name, params, (3,), name=name, **changes)
        kept = trained_params(states[3]).params
        assert equal(load_checkpoint(tmp_path / name, 3, config), kept)
        assert equal(kept, states[3].params) == (name == "adamw")


def test_a_checkpoint_of_another_model_or_damaged_is_one_line(folder, config, tmp_path, params):
    with pytest.raises(UserError, match=r"checkpoints/2: ema/\S+ is not that of the run's model"):
        load_checkpoint(folder / "checkpoints", 2, dataclasses.replace(config, F=32))
    with pytest.raises(UserError, match=r"/7: is damaged \(files.json is missing\)"):
        load_checkpoint(folder / "checkpoints", 7, config)


def measure(run, cache, **changes):
    return measure_checkpoints(run, [(TASK, 6)], cache, **dict(raw=False, origin={}) | SIZES
                               | changes)


def test_scores_are_those_of_the_models_by_hand(folder, model, tmp_path):
    run = open_run(folder)
    assert run.steps == (2, 4) and run.tokens == {1: 64, 2: 128, 4: 256}
    rows, failed = measure(run, tmp_path, raw=True)
    assert not failed and [(task, metric) for _, task, metric, _ in rows] == [
        ("guess", "acc"), ("guess", "acc_raw")] * 2
    for _, _, metric, point in rows:
        other = dataclasses.replace(model, params=scaled(model.params, 1 + 0.1 * point.step))
        scores = score_choices(other, QUESTIONS, batch_tokens=128)
        right = [s.is_right("raw" if metric == "acc_raw" else "byte") for s in scores]
        assert point.score.value == pytest.approx(np.mean(right))
        assert (point.score.items, point.score.chance) == (6, pytest.approx(1 / 3))
        assert point.tokens == 64 * point.step
    assert [(series, point.step, point.score.value) for series, _, _, point in recorded(run)] == [
        ("while training", 2, 1.5)]


def test_a_repeated_command_evaluates_nothing_and_other_settings_or_code_do(
        folder, model, tmp_path, monkeypatch):
    loaded, code = [], ["code"]
    monkeypatch.setattr(checkpoints, "code_digest", lambda path: code[0])

    class Counted(Run):
        def load(self, step, *, raw):
            loaded.append(step)
            return model

    run = Counted(**vars(open_run(folder)))
    first = measure(run, tmp_path)
    assert loaded == [2, 4] and measure(run, tmp_path) == first and loaded == [2, 4]
    for changes in ({"raw": True}, {"seed": 2}, {"origin": {"corpus": "other"}}):
        loaded.clear()
        measure(run, tmp_path, **changes)
        assert loaded == [2, 4]
    code[0] = "other code"
    measure(run, tmp_path, **changes)
    assert loaded == [2, 4, 2, 4]


def test_a_damaged_checkpoint_is_left_out_and_named(folder, tmp_path, capfd):
    copied = tmp_path / "work"
    subprocess.run(["cp", "-r", str(folder.parent), str(copied)], check=True)
    victim = next((copied / "base" / "checkpoints" / "2" / "state").rglob("d/*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    rows, failed = measure(open_run(copied / "base"), tmp_path / "cache")
    assert {point.step for *_, point in rows} == {4}
    assert list(failed) == [2] and "is damaged" in failed[2]
    assert "curve: step 2 is left out: " in capfd.readouterr().err


def test_a_run_that_is_still_training_can_be_read(folder, tmp_path, config):
    copied = tmp_path / "work"
    subprocess.run(["cp", "-r", str(folder.parent), str(copied)], check=True)
    (copied / "base").rename(copied / "base.partial")
    (copied / "base.partial" / "model.json").unlink()
    with pytest.raises(UserError, match="is not finished, and does not say what model it trains"):
        open_run(copied / "base")
    write_json(copied / "base.partial" / "data.json", {
        "model": dataclasses.asdict(config), "batch_size": 2, "first_step": 0, "tokens_before": 10,
        "source": {"row_length": 64}})
    run = open_run(copied / "base")
    assert run.config == config and run.tokens[4] == 10 + 4 * 2 * 64
    subprocess.run(["rm", "-r", str(copied / "base.partial" / "checkpoints")], check=True)
    with pytest.raises(UserError, match="has no checkpoint: name a run"):
        open_run(copied / "base")
