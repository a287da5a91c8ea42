"""Ladders: planning by the dial, refusals, times, forecasts of planted runs, and going on."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from planted_ladder import plant, write_tokens
from scaling_runs import UNROUNDED, losses
from small_tokens import write_artifacts

from configs.common import REFERENCES, scale_by_depth
from core.artifacts import ROOT
from core.errors import UserError
from core.points import Runner
from core.progress import format_secs
from core.stages import load_config
from train.pretrain import STAGE
from train.scaling import report
from train.scaling.forms import HOFFMANN, OVERTRAINING
from train.scaling.ladder import forecast
from train.scaling.ladder.check import check_ladder, check_metric
from train.scaling.ladder.command import describe_plan, ladder, read_plan, show_plan
from train.scaling.ladder.plan import plan_ladder, read_ladder
from train.scaling.ladder.speed import Speed, estimate_secs, measure_speed
from train.scaling.surface import fit_law

# Of ml_collections, which loads configs.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

FILE = "--config=configs/ladder.py:cpu"
GIVEN = (FILE, "--config.ladder.tokens_per_param=(0.5,1.0,2.0)", "--config.ladder.target.depth=8",
         "--config.ladder.target.tokens_per_param=1.0")


def plan(parents, out, *arguments, count="with_head", given=GIVEN):
    given = [*given, *arguments]
    return plan_ladder(load_config(given, "ladder"), given, count, parents=parents, out=out)


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    write_tokens(folder, pages=60_000_000, code=40_000_000, heldout=1000)
    return folder


@pytest.fixture(scope="module")
def planned(parents, tmp_path_factory):
    return plan(parents, tmp_path_factory.mktemp("out"), "--config.ladder.depths=(3,1,2,4,5,1)",
                "--config.pretrain.seed=7")


# --- the plan


def test_a_plan_has_every_size_and_length_by_the_dial(planned, parents):
    assert len(planned.runs) == 15, "a depth that is named twice is one"
    flops = [run.flops for run in planned.runs]
    assert flops == sorted(flops) and planned.target.flops > flops[-1]
    run, = (run for run in planned.runs if run.name == "depth=4,tokens_per_param=2")
    scale = scale_by_depth(4, "cpu_ladder", 2.0)
    section = run.config.pretrain
    assert (section.num_steps, section.batch_size) == (scale.num_steps, scale.batch_size)
    assert section.optimizer.learning_rate == pytest.approx(scale.learning_rate)
    assert section.optimizer.weight_decay == pytest.approx(scale.weight_decay)
    assert section.seed == 7, "what else the command line sets holds for every run"
    products = 4 * (4 * 64**2 + 3 * 64 * 256) + 64 * 2048
    assert run.params == pytest.approx(products, rel=0.01) and run.params > products
    assert run.tokens == scale.num_steps * scale.batch_size * 256
    assert run.tokens / products == pytest.approx(2.0, rel=0.01)
    assert run.flops == 6 * run.params * run.tokens
    # Shares by size: 60 % of the rows are of pages, and a domain's passes are rows over its size.
    assert run.epochs == pytest.approx(dict.fromkeys(("pages", "code"), run.tokens / 1e8), rel=0.01)
    assert not run.is_finished and run.folder.name == "base"
    assert run.point.arguments == (
        "--config=configs/ladder.py:cpu,4,2", "--config.pretrain.seed=7",
        f"--config.pretrain.tokens={parents / 'tokens'}")
    assert planned.target.point.folder.parent.name == "target"


@pytest.mark.parametrize("name, family, num_experts", [
    ("transformer", "decoder", 0), ("lstm", "lstm", 0), ("experts", "decoder", 8)])
def test_architectures_are_compared_at_nearly_equal_sizes(name, family, num_experts, planned,
                                                          parents, tmp_path):
    """In products a run has the parameters and the tokens of its Transformer; none has a target."""
    own = plan(parents, tmp_path, count="products",
               given=(f"--config=configs/ladder.py:cpu-{name}",))
    check_ladder(own, OVERTRAINING, with_target=False)
    with pytest.raises(UserError, match="--run_target: this ladder has no target"):
        check_ladder(own, OVERTRAINING, with_target=True)
    for run in own.runs:
        model, dial = run.config.model, scale_by_depth(run.depth, "cpu_ladder", 1.0).model
        width, hidden, depth = dial["D"], dial["F"], dial["N"]
        products = depth * (4 * width**2 + 3 * width * hidden) + width * 2048
        assert run.params == pytest.approx(products, rel=0.09)
        ratio = float(run.name.rpartition("=")[2])
        assert run.tokens / products == pytest.approx(ratio, rel=0.02)
        assert (model.family, model.E, model.D) == (family, num_experts, width)
        assert not model.embed_previous
    rows = describe_plan(own, [])
    assert len(rows) == 9 and "% of the target" not in show_plan(rows)


def test_the_count_decides_the_parameters(planned, parents, tmp_path):
    small = plan(parents, tmp_path, "--config.ladder.depths=(1,)",
                 "--config.ladder.target.depth=9", count="non_embedding")
    assert small.target.depth == small.target.config.model.N == 9
    body = small.runs[0]
    head = next(run for run in planned.runs if run.name == body.name)
    assert head.params - body.params == 16 * 2048 and head.tokens == body.tokens


def test_the_dial_follows_the_tokens_for_each_parameter():
    """Batch, learning rate and decay of a depth are those of its horizon, not of its width."""
    usual, longer = scale_by_depth(4, "cpu"), scale_by_depth(4, "cpu", 1.75 * 8)
    assert scale_by_depth(4, "cpu", 1.75) == usual
    assert longer.batch_size == 2 * usual.batch_size    # 8 ** 0.383 is 2.2
    assert longer.num_steps == pytest.approx(4 * usual.num_steps, rel=0.01)
    assert longer.learning_rate == pytest.approx(2**0.5 * usual.learning_rate)
    rows = [scale_by_depth(8, "cpu_ladder", 1.75 * times).batch_size for times in (1, 2, 4)]
    assert rows == [16, 21, 27], "a ladder on a CPU goes on without steps: 16 times 2 ** 0.383 n"
    horizons = [scale.num_steps * scale.batch_size for scale in (usual, longer)]
    memory = [scale.batch_size / (scale.learning_rate * scale.weight_decay * horizon)
              for scale, horizon in zip((usual, longer), horizons)]
    assert memory[1] == pytest.approx(memory[0], rel=0.01)
    shortest = scale_by_depth(1, "cpu", 1e-4)
    assert (shortest.batch_size, shortest.num_steps) == (1, 1)
    assert REFERENCES["cpu"].tokens_per_param == 1.75


# --- refusals


def _with(run, **changes):
    return dataclasses.replace(run, **changes)


def _other_mixture(ladder):
    run = ladder.runs[3]
    phases = tuple(dataclasses.replace(phase, weights={"pages": 1.0})
                   for phase in run.reading.phases)
    runs = (*ladder.runs[:3], _with(run, reading=dataclasses.replace(run.reading, phases=phases)),
            *ladder.runs[4:])
    return _with(ladder, runs=runs)


def _read_twice(ladder, **changes):
    last = _with(ladder.runs[-1], epochs={"pages": 0.5, "code": 1.25})
    return _with(ladder, runs=(*ladder.runs[:-1], last), **changes)


def _one_budget(ladder):
    return _with(ladder, runs=tuple(_with(run, params=100_000 + i, tokens=1_000_000 - 10 * i)
                                    for i, run in enumerate(ladder.runs)))


@pytest.mark.parametrize("change, line", [
    (lambda it: _with(it, runs=tuple(run for run in it.runs if run.depth != 3)),
     "ladder.depths=(1, 2, 4, 5): are fewer than 5 sizes"),
    (lambda it: _with(it, runs=tuple(run for run in it.runs if run.name.endswith("=1"))),
     "ladder.tokens_per_param: holds one number"),
    (lambda it: _with(it, target=_with(it.runs[-1], depth=6)), "no more than depth=5,tokens_per"),
    (lambda it: _with(it, runs=(*it.runs, _with(it.runs[2]))), "has the parameters and the tokens"),
    (_read_twice, "run depth=5,tokens_per_param=2: would read the domain code 1.25 times"),
    (_other_mixture, "reads another mixture than depth="),
    (_one_budget, "have one budget only"),
])
def test_an_unfit_ladder_is_refused_before_anything_is_trained(planned, change, line):
    check_ladder(planned, HOFFMANN, with_target=True)
    with pytest.raises(UserError) as error:
        check_ladder(change(planned), HOFFMANN, with_target=True)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_data_may_repeat_by_name_and_in_a_target_that_is_not_trained(planned, capsys):
    check_ladder(_read_twice(planned, may_repeat=True), HOFFMANN, with_target=True)
    beyond = _with(planned, target=_with(planned.target, epochs={"pages": 2.5, "code": 1.0}))
    check_ladder(beyond, HOFFMANN, with_target=False)
    assert "the domain pages would have to hold 2.50 times as much" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"would read the domain pages 2\.50 times"):
        check_ladder(beyond, HOFFMANN, with_target=True)


def test_a_measure_of_held_out_pages_needs_some(planned, parents, tmp_path):
    check_metric(planned, "heldout_bpb")
    write_tokens(tmp_path, pages=60_000_000)
    with pytest.raises(UserError, match=r"--metric=heldout_bpb: .*tokens holds no page out"):
        check_metric(plan(tmp_path, tmp_path, "--config.ladder.depths=(1,)"), "heldout_bpb")


@pytest.mark.parametrize("argument, line", [
    ("ladder.depths=()", "ladder.depths=(): is no list of whole numbers above 0"),
    ("ladder.depths=(1,0)", "ladder.depths=(1, 0): is no list of whole numbers"),
    ("ladder.depths=(1,2.5)", "is no list of whole numbers"),
    ("ladder.tokens_per_param=(1.0,-2.0)", "ladder.tokens_per_param=(1.0, -2.0): is no list of n"),
    ("ladder.repeats=yes", "ladder.repeats='yes': is neither refuse nor allow"),
    ("pretrain.init_from=runs/x", "makes the runs begin with what another learned"),
    ("ladder.target.depth=-1", "ladder.target.depth=-1: must be a whole number, at least 0")])
def test_a_section_without_sizes_is_refused(argument, line):
    with pytest.raises(UserError) as error:
        read_ladder(load_config([FILE, f"--config.{argument}"], "ladder"))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_config_without_a_ladder_and_a_size_that_is_none_are_refused():
    with pytest.raises(UserError, match=r"config\.ladder: this config has no such section"):
        read_ladder(load_config(["--config=configs/quickstart.py:smoke"], "ladder"))
    for variant in ("tpu", "cpu,4", "cpu,four,1", "cpu,0,1", "cpu,4,-1", "cpu,4,inf"):
        with pytest.raises(UserError, match="is no platform with a size: write"):
            load_config([f"--config=configs/ladder.py:{variant}"], "ladder")


# --- times


def test_a_time_is_that_of_the_run_of_the_nearest_size():
    speeds = [Speed(1e5, 1e9, 10.0), Speed(1e7, 1e11, 20.0)]
    assert estimate_secs(2e5, 5e9, speeds) == pytest.approx(15.0)
    assert estimate_secs(2e6, 5e12, speeds) == pytest.approx(70.0)
    assert estimate_secs(2e6, 5e12, []) is None


def test_the_speed_of_a_run_counts_its_restarts(planned):
    run = planned.runs[0]
    assert measure_speed(run.folder, "with_head") is None
    plant(STAGE, run, 2.0)
    steps, path = run.config.pretrain.num_steps, run.folder / "goodput.jsonl"
    attempts = [{"began": 0.0, "resumed": 0, "last": 20, "secs": {"step": 40.0, "startup": 3.0}},
                {"began": 900.0, "resumed": 10, "last": steps,     # ten steps again
                 "secs": {"step": 2.0 * (steps - 10), "startup": 4.0, "restore": 1.0}}]
    path.write_text("".join(json.dumps(attempt) + "\n" for attempt in attempts))
    speed = measure_speed(run.folder, "with_head")
    assert speed.params == run.params and speed.other_secs == pytest.approx(8.0)
    assert speed.flops_per_sec == pytest.approx(run.flops / (2.0 * steps))


def test_the_table_names_costs_and_the_share_of_the_target(planned):
    rows = describe_plan(planned, [Speed(1e6, 1e10)])
    assert [row["part"] for row in rows] == ["ladder"] * 15 + ["target"]
    assert rows[-1]["secs"] == pytest.approx(planned.target.flops / 1e10)
    rows[0]["is_finished"] = True
    head, first, *_, target, total = show_plan(rows).splitlines()
    assert head.split() == ["run", "params", "tokens", "tokens/param", "FLOPs", "(6ND)", "epochs",
                            "time"]
    assert first.startswith("depth=1,tokens_per_param=0.5") and first.endswith("finished")
    assert target.startswith("depth=8,") and target.endswith("target")
    share = 100 * planned.flops / planned.target.flops
    assert f"15 runs, {planned.flops:.3g} FLOPs, {share:.3g} % of the target's" in total
    assert f"14 are left, {format_secs((planned.flops - rows[0]['flops']) / 1e10)}" in total
    assert "an unknown time: give --flops_per_sec" in show_plan(describe_plan(planned, []))


# --- the command, on planted runs


class Planting:
    """Stands for the runner: writes runs whose losses follow a law."""

    def __init__(self, out, noise=0.0):
        self.out, self.noise, self.calls, self.skip, self.forecast = out, noise, [], set(), None

    def run(self, planned, points):
        """Plants the runs of these points."""
        self.calls.append([point.folder.name for point in points])
        by_name = {run.point.folder: run for run in planned.with_target}
        if by_name[points[0].folder] is planned.target:
            self.forecast = json.loads((self.out / "forecast.json").read_text())
        rng = np.random.default_rng(0)
        for point in points:
            run = by_name[point.folder]
            if point.folder.name not in self.skip:
                plant(STAGE, run, self.loss_of(run) * np.exp(self.noise * rng.normal()))

    def loss_of(self, run):
        """By the law."""
        return losses(OVERTRAINING, UNROUNDED[:4], [run.params], [run.tokens])[0]


@pytest.fixture
def command(parents, tmp_path, monkeypatch):
    """`call(**flags)` runs the command in this process; its `planting` stands for the runner."""
    def call(*arguments, **changes):
        monkeypatch.setattr(sys, "argv", ["ladder", *GIVEN, *arguments])
        values = SimpleNamespace(**dict(
            config=load_config([*GIVEN, *arguments], "ladder"), count="with_head",
            law="overtraining",
            metric="heldout_bpb", parents=str(parents), out=str(tmp_path / "out"), dry_run=False,
            run_target=False, parallel=1, flops_per_sec=0.0, figures=False) | changes)
        call.planned = read_plan(values)
        return ladder(values)

    call.planting = Planting(tmp_path / "out")
    monkeypatch.setattr(Runner, "run", lambda self, points, parallel: call.planting.run(
        call.planned, points))
    for module in (report, forecast):
        monkeypatch.setattr(module, "fit_law", partial(fit_law, num_samples=20))
    return call


def test_a_ladder_forecasts_its_target_and_is_not_trained_twice(command, tmp_path, capsys):
    out, planting = tmp_path / "out", command.planting
    dry = command(dry_run=True)
    assert not planting.calls and not out.exists()
    assert dry["runs"] == 15 and dry["planned"][-1]["secs"] is None
    result = command()
    assert [len(call) for call in planting.calls] == [15]
    target, found = command.planned.target, result["forecast"]
    truth, = losses(OVERTRAINING, UNROUNDED[:4], [target.params], [target.tokens])
    assert found["loss"] == pytest.approx(truth, rel=1e-4) and "measured" not in found
    assert found["flops"] == target.flops == 6 * found["params"] * found["tokens"]
    assert found["ladder_flops_frac"] == pytest.approx(command.planned.flops / target.flops)
    assert json.loads((out / "law" / "fit.json").read_text())["count"] == "with_head"
    assert len((out / "law" / "runs.jsonl").read_text().splitlines()) == 15

    capsys.readouterr()
    again = command(run_target=True)
    assert planting.calls[1:] == [[target.name]], "finished runs are not trained again"
    assert planting.forecast == found, "it is written before the target's loss is known"
    assert again["forecast"]["measured"]["relative_error"] == pytest.approx(0.0, abs=1e-4)
    assert again["forecast"]["measured"]["loss"] == pytest.approx(truth)
    rows = [json.loads(line) for line in (out / "law" / "runs.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows].count("held_out") == 1
    printed = capsys.readouterr()
    assert printed.out.count("finished") == 15 and "0 are left, 0s" in printed.out
    assert "the forecast is off by" in printed.err
    assert json.loads((out / "forecast.json").read_text()) == again["forecast"]


def test_a_ladder_without_a_target_ends_with_the_law(command, tmp_path):
    result = command("--config.ladder.target.depth=0")
    assert "forecast" not in result and not (tmp_path / "out" / "forecast.json").exists()
    fitted = json.loads((tmp_path / "out" / "law" / "fit.json").read_text())
    assert fitted["runs"] == 15 and fitted["forecast"] == []


def test_a_run_that_failed_stops_the_ladder_until_it_is_trained(command, tmp_path):
    planting = command.planting
    name = "depth=3,tokens_per_param=1"
    planting.skip = {name}
    folder = tmp_path / "out" / "runs" / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(
        {"point": name, "status": "failed", "error": "error: disk: no space left"}))
    with pytest.raises(UserError, match=r"1 of 15 runs: are not finished; depth=3,tokens_per_param"
                                        r"=1: error: disk: no space left: see .*log.txt"):
        command()
    assert not (tmp_path / "out" / "forecast.json").exists()
    planting.skip = set()
    result = command(flops_per_sec=1e10)
    assert planting.calls[1] == [name]
    assert np.isfinite(result["forecast"]["loss"])


def test_figures_are_refused_before_the_training(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="--figures: needs matplotlib"):
        command(figures=True)
    assert not command.planting.calls


def test_other_settings_are_other_runs(command):
    command(dry_run=True)
    for run in command.planned.runs[:2]:
        plant(STAGE, run, 2.0)
    command(dry_run=True)
    assert [run.is_finished for run in command.planned.runs] == [True] * 2 + [False] * 13
    command("--config.pretrain.run.log_every=1", dry_run=True)
    assert sum(run.is_finished for run in command.planned.runs) == 2, "it decides nothing"
    command("--config.pretrain.z_loss_coef=0.1", dry_run=True)
    assert not any(run.is_finished for run in command.planned.runs)
    command.planting.skip = {run.name for run in command.planned.runs}
    with pytest.raises(UserError, match="15 of 15 runs: are not finished"):
        command("--config.pretrain.z_loss_coef=0.1")    # the others' losses are not taken for these


def test_the_interval_of_a_run_adds_the_scatter_of_the_runs(command):
    command.planting.noise = 0.02
    found = command("--config.ladder.target.depth=6")["forecast"]
    law, run = found["law"], found["run"]
    assert law["low"] < found["loss"] < law["high"]
    assert run["high"] - run["low"] > law["high"] - law["low"]


def test_smaller_sizes_forecast_the_largest(command):
    """Where the largest size goes wrong by 5 %, its losses are forecast too high by as much."""
    law = command.planting.loss_of
    command.planting.loss_of = lambda run: law(run) * (0.95 if run.depth == 5 else 1.0)
    found = command()["forecast"]["largest"]
    assert found["runs"] == 3 and found["inside"] == 0
    assert found["params"] == max(run.params for run in command.planned.runs)
    assert found["max_relative_error"] == pytest.approx(1 / 0.95 - 1, rel=1e-3)


@pytest.mark.parametrize("missing", ["config", "count", "parents", "out"])
def test_a_missing_flag_is_named(missing):
    values = dict(config="c", count="total", parents="p", out="o") | {missing: None}
    with pytest.raises(UserError, match=f"--{missing}: is missing: try --{missing}="):
        read_plan(SimpleNamespace(**values))


# --- the command line, and real runs


@pytest.mark.full
def test_the_command_line_shows_a_plan(parents, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "train.scaling", "ladder", FILE, f"--parents={parents}",
         "--count=products", f"--out={tmp_path / 'out'}", "--dry_run", "--flops_per_sec=1e10",
         "--config.ladder.target.depth=9"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["runs"] == 15 and len(table) == 18 and "depth=9,tokens" in table[-2]
    assert result["planned"][0]["params"] == 4 * 16**2 + 3 * 16 * 128 + 16 * 2048
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's
def test_real_runs_are_trained_once_and_go_on_when_killed(tmp_path, monkeypatch):
    """Two sizes, two lengths, a few steps each; one is killed before."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")     # a batch has one row
    write_artifacts(tmp_path)
    arguments = ("--config.ladder.depths=(1,2)", "--config.ladder.tokens_per_param=(0.02,0.04)")
    planned = plan(tmp_path, tmp_path / "out", *arguments, given=(FILE,))
    assert len(planned.runs) == 4
    first = planned.runs[0]
    killed = subprocess.Popen(
        [sys.executable, "-m", "train.pretrain", *first.point.arguments,
         "--config.pretrain.run.checkpoint_every=1", f"--workdir={first.point.folder}"],
        cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    checkpoints = first.folder.with_name("base.partial") / "checkpoints"
    deadline = time.monotonic() + 60
    while not any(path.name.isdecimal() for path in checkpoints.glob("*")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    Runner("ladder").run([run.point for run in planned.runs], parallel=2)
    assert "going on where an earlier run stopped" in (first.point.folder / "log.txt").read_text()
    again = plan(tmp_path, tmp_path / "out", *arguments, given=(FILE,))
    assert all(run.is_finished for run in again.runs)
    results = [json.loads((run.point.folder / "result.json").read_text()) for run in again.runs]
    assert [row["metrics"]["tokens"] for row in results] == [run.tokens for run in again.runs]
    assert all(measure_speed(run.folder, "with_head").flops_per_sec > 0 for run in again.runs)
