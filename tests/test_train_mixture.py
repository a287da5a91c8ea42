"""Searches for shares of domains: refusals, planted and real searches, and shares as flags."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from planted_ladder import write_tokens
from small_tokens import write_artifacts

from core import artifacts
from core.artifacts import ROOT, read_json, write_jsonl
from core.entry import run_next
from core.errors import UserError
from core.points import Runner
from core.stages import load_config
from data.domains import by_domain, config_key
from train.mixture.anneal import add_share, anneal, choose_shares
from train.mixture.checks import measure_gain, warn_of_gain
from train.mixture.doremi import doremi
from train.mixture.proxy import STAGE as PROXY
from train.mixture.regmix import fit_mixtures, rank_interval, regmix, warn_of_fit
from train.mixture.shares import natural_shares, round_shares, share_flags
from train.pretrain import STAGE

# Of ml_collections, which loads configs.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

COMMANDS = {"regmix": regmix, "doremi": doremi, "anneal": anneal}
SIZES = {"code": 60_000_000, "notes": 10_000_000, "pages": 30_000_000}
SMOKE = "--config=configs/mixture.py:smoke"


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    write_tokens(folder, **SIZES, best=15_000_000, heldout=1000)
    return folder


class Planting:
    """Stands for the runner: writes runs whose losses follow from their mixtures.

    Attributes:
        loss_of: `loss_of(shares, config)` of a run.
        weights: that a proxy of DoReMi finds.
        steps: its record of its steps.
        trained: workdirs by name, in the order of their runs.
        skip: names of runs that are not trained.
    """

    def __init__(self):
        self.loss_of, self.weights, self.steps = lambda shares, config: 2.0, {}, []
        self.trained, self.skip = [], ()

    def run(self, points):
        """Plants the runs of these points."""
        for point in points:
            self.trained.append(point.folder.name)
            if point.folder.name in self.skip:
                continue
            config = load_config(point.arguments, "planted")
            loss = self.loss_of(by_domain(config.pretrain.mixture), config)
            for stage, metrics in ((STAGE, {"heldout_bpb": loss}), (PROXY, {
                    name: self.weights for name in ("weights", "excess", "loss",
                                                    "reference_loss")}))[:len(point.modules)]:
                def build(config, parents, folder, metrics=metrics):
                    write_jsonl(folder / "steps.jsonl", self.steps)
                    return metrics
                run_next(dataclasses.replace(stage, build=build), config, point.folder,
                         rebuild=False)


@pytest.fixture
def command(parents, tmp_path, monkeypatch):
    """`call(name, *arguments, **flags)` runs a command here; its `planting` trains."""
    def call(name, *arguments, **changes):
        arguments = [SMOKE, *(f"--config.{argument}" for argument in arguments)]
        monkeypatch.setattr(sys, "argv", ["mixture", *arguments])
        values = dict(config=load_config(arguments, "test"), parents=str(parents),
                      out=str(tmp_path / "out"), metric="heldout_bpb", dry_run=False, parallel=1)
        return COMMANDS[name](SimpleNamespace(**values | changes))

    call.planting, call.out = Planting(), tmp_path / "out"
    # Digests of code and commits take most of the time of a planted run.
    monkeypatch.setattr(artifacts, "code_digest", lambda file: "planted")
    monkeypatch.setattr(artifacts, "_git", lambda *arguments: None)
    monkeypatch.setattr(Runner, "run", lambda self, points, parallel: call.planting.run(points))
    return call


# --- shares and flags


def test_shares_sum_to_one_within_a_unit():
    weights = np.random.default_rng(0).dirichlet(np.full(7, 0.3), 200)
    for row in weights:
        shares = round_shares("abcdefg", 3.0 * row)
        assert sum(round(share * 10_000) for share in shares.values()) == 10_000
        assert np.abs(np.array([*shares.values()]) - row).max() < 1e-4
    assert natural_shares(SIZES) == {"code": 0.6, "notes": 0.1, "pages": 0.3}


@pytest.mark.parametrize("file", ["configs/quickstart.py:cpu", "configs/mixture.py:cpu"])
def test_flags_give_a_config_the_very_shares(file):
    """Also where a config has shares already, and where a name is no identifier."""
    shares = {"code": 0.0, "pages": 0.6125, "sci-tech.": 0.3, "50%.x": 0.0875}
    for field in ("mixture", "anneal_mixture"):
        words = shlex.split(share_flags(f"pretrain.{field}", shares))
        config = load_config([f"--config={file}", *words], "test")
        found = by_domain(config.pretrain[field])
        assert {name: found[name] for name in shares} == shares
        assert not any(share for name, share in found.items()
                       if name not in shares and name != "best")
    assert by_domain({config_key("a%2E.b"): 1}) == {"a%2E.b": 1}


# --- refusals


@pytest.mark.parametrize("name, arguments, line", [
    ("regmix", ["regmix.domains=('pages',)"], "there is no choice between 1 domain: name two of"),
    ("regmix", ["regmix.domains=('pages','books')"], "holds no domain 'books': choose from best, "),
    ("doremi", ["doremi.domains=('pages','heldout')"], "holds no domain 'heldout'"),
    ("regmix", ["regmix.num_mixtures=5"], "regmix.num_mixtures=5: are too few for a fit over 3 "
     "domains: set --config.regmix.num_mixtures=6 or more"),
    ("regmix", ["regmix.num_mixtures=6", "regmix.max_ratio=1.0"], "regmix.max_ratio=1.0: "),
    ("regmix", ["pretrain.mixture.pages=1.0"], "pretrain.mixture={'pages': 1.0}: is what regmix "),
    ("regmix", ["pretrain.temperature=0.5"], "pretrain.temperature=0.5: would change what"),
    ("anneal", ["pretrain.anneal_frac=0.5"], "pretrain.anneal_frac=0.5: would change what"),
    ("anneal", ["anneal.base=base"], "anneal.base='base': no finished artifact at"),
    ("doremi", ["doremi.reference_mixture=best"], "is none of natural and uniform"),
    ("doremi", ["pretrain.batch_size=8"], "pretrain.batch_size=8: is no multiple of 3 domains, and "
     "DoReMi's batches have as many rows of each: set --config.pretrain.batch_size=9"),
    ("doremi", ["pretrain.batch_size=9", "pretrain.objective=masked"], "has no excess loss"),
    # A third of 400,000 steps of 576 tokens is 77 million, of a domain of 10 million.
    ("doremi", ["pretrain.batch_size=9", "pretrain.num_steps=400000"],
     "run run: would read the domain notes 7.68 times in 230M tokens, more than "
     "pretrain.max_epochs=4"),
])
def test_a_search_that_cannot_answer_is_refused_before_its_runs(command, name, arguments, line):
    with pytest.raises(UserError) as error:
        command(name, *arguments)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not command.planting.trained and not command.out.exists()


def test_missing_flags_tokens_and_held_out_pages_are_named(command, tmp_path):
    for flag in ("parents", "out"):
        with pytest.raises(UserError, match=f"--{flag}: is missing: try --{flag}="):
            command("regmix", **{flag: None})
    with pytest.raises(UserError, match=r"pretrain\.tokens='tokens': no finished artifact at"):
        command("regmix", parents=str(tmp_path))
    write_tokens(tmp_path, **{"pages": 1000, "Science & Tech.": 1000})
    with pytest.raises(UserError, match=r"no flag can hold the domain 'Science & Tech\.'"):
        command("regmix", parents=str(tmp_path), metric="loss")
    with pytest.raises(UserError, match=r"--metric=heldout_bpb: .*tokens holds no page out"):
        command("regmix", parents=str(tmp_path))
    with pytest.raises(UserError, match=r"config\.regmix: this config has no such section"):
        command("regmix", config=load_config(["--config=configs/quickstart.py:smoke"], "test"))


def test_a_folder_goes_on_with_its_own_plan_only(command):
    command("regmix", "regmix.num_mixtures=6")
    trained = len(command.planting.trained)
    command("regmix", "regmix.num_mixtures=6", "pretrain.run.log_every=1")
    assert len(command.planting.trained) == trained, "finished runs are not trained again"
    for name, argument, line in (
            ("regmix", "regmix.num_mixtures=7", "its regmix.num_mixtures is 6, and here it is 7"),
            ("anneal", "pretrain.seed=0", "it is none of anneal")):
        with pytest.raises(UserError) as error:
            command(name, argument)
        assert f"holds another plan: {line}" in str(error.value)
    assert len(command.planting.trained) == trained


# --- RegMix


def _law(shares, config):
    """Notes help the target most, code does not; a seed adds its own constant."""
    gain = {"notes": 0.8, "pages": 0.4, "code": 0.0}
    return 3.0 - sum(gain[name] * share**0.5 for name, share in shares.items()) \
        + 0.01 * config.pretrain.seed


def test_regmix_finds_the_domain_that_helps_and_measures_its_gain(command, capsys):
    command.planting.loss_of = _law
    arguments = ("regmix.num_mixtures=16", "checks.num_seeds=2")
    dry = command("regmix", *arguments, dry_run=True)
    assert dry["runs"] == 16 and not command.planting.trained and not command.out.exists()
    result = command("regmix", *arguments)
    weights, natural = result["weights"], result["natural"]
    assert max(weights, key=weights.get) == "notes" and weights["code"] < 0.1
    assert sum(weights.values()) == pytest.approx(1.0)
    assert len(command.planting.trained) == 16 + 4
    fit, check, predicted = result["fit"], result["check"], result["predicted"]
    assert fit["rank_correlation"] > 0.95 and fit["relative_error"] < 0.02
    config = SimpleNamespace(pretrain=SimpleNamespace(seed=0))
    gain = _law(natural, config) - _law(weights, config)
    assert check["gain"] == pytest.approx(gain) and check["stderr"] == pytest.approx(0, abs=1e-9)
    assert predicted["natural"] - predicted["best"] == pytest.approx(gain, rel=0.2)
    assert not result["warnings"]
    config = load_config([SMOKE, *shlex.split(result["flags"])], "test")
    assert config.pretrain.mixture.to_dict() == weights
    saved = read_json(command.out / "mixture.json")
    assert {name: saved[name] for name in result} == result
    assert saved["config"]["regmix.num_mixtures"] == 16 and "tokens" in saved["parents"]
    assert "predicted heldout_bpb" in capsys.readouterr().out


def test_losses_without_order_are_warned_of():
    """The weights of 12 random losses say nothing, and the search says so."""
    rng = np.random.default_rng(3)
    mixtures = [round_shares("abc", row) for row in rng.dirichlet(np.ones(3), 12)]
    noise = np.exp(rng.normal(0, 0.1, 12))
    fitted = fit_mixtures(mixtures, noise, natural_shares(dict(a=1, b=1, c=1)), seed=0,
                          max_ratio=3.0)
    warnings = " ".join(warn_of_fit(fitted))
    assert "the leave-one-out rank correlation is" in warnings
    assert "is smaller than the leave-one-out error of" in warnings
    truth = np.array([2.0 - shares["a"] for shares in mixtures])
    clear = fit_mixtures(mixtures, truth, natural_shares(dict(a=1, b=1, c=1)), seed=0,
                         max_ratio=3.0)
    assert not warn_of_fit(clear) and clear.best["a"] > 0.9


def test_the_interval_of_a_rank_correlation_by_hand():
    low, high = rank_interval(0.5, 12)
    assert (low, high) == (pytest.approx(-0.1427, abs=1e-4), pytest.approx(0.8461, abs=1e-4))
    assert rank_interval(1.0, 12)[1] <= 1.0


def test_a_gain_within_its_error_is_warned_of():
    check = measure_gain([2.0, 2.2, 2.1], [1.9, 2.1, 2.0])
    assert check["gain"] == pytest.approx(0.1) and check["stderr"] == pytest.approx(0.0, abs=1e-9)
    assert not warn_of_gain(check, "checks.num_seeds")
    vague = measure_gain([2.0, 2.2], [1.9, 2.2])
    assert (vague["gain"], vague["stderr"]) == (pytest.approx(0.05), pytest.approx(0.05))
    assert "at most twice its standard error" in warn_of_gain(vague, "checks.num_seeds")[0]
    assert "not known: raise --config.a.b" in warn_of_gain(measure_gain([2.0], [1.0]), "a.b")[0]


def test_a_run_that_failed_stops_the_search_until_it_is_trained(command):
    command.planting.skip = {"mixture=2"}
    with pytest.raises(UserError, match=r"1 of 6 runs: are not finished; mixture=2: has not been"):
        command("regmix", "regmix.num_mixtures=6")
    assert not (command.out / "mixture.json").exists()
    command.planting.skip, command.planting.trained = (), []
    command("regmix", "regmix.num_mixtures=6")
    assert command.planting.trained == ["mixture=2", "natural,seed=1", "best,seed=1"]


# --- DoReMi, on planted runs


def test_doremi_gives_its_weights_and_checks_them(command):
    command.planting.weights = {"code": 0.2, "notes": 0.70004, "pages": 0.09996}
    command.planting.loss_of = _law
    command.planting.steps = [{"weights": {"code": code, "notes": 0.9 - code, "pages": 0.1}}
                              for code in (0.4, 0.4, 0.2, 0.1)]
    result = command("doremi", "pretrain.batch_size=9")
    assert result["moved"] == pytest.approx(0.25)
    assert "the weights have not settled: 25 % of them lie elsewhere" in result["warnings"][0]
    assert command.planting.trained == ["run", "natural,seed=1", "best,seed=1"]
    assert result["weights"] == {"code": 0.2, "notes": 0.7, "pages": 0.1}
    assert result["check"]["gain"] > 0 and result["losses"]["excess"] == command.planting.weights
    reference = read_json(command.out / "run" / "base" / "lineage.json")["config"]["pretrain"]
    assert reference["mixture"] == result["natural"]
    proxy = read_json(command.out / "run" / "doremi" / "lineage.json")
    assert {*proxy["inputs"]} == {"tokens", "reference"}
    command("doremi", "pretrain.batch_size=9")
    assert len(command.planting.trained) == 3


# --- annealing


def test_the_rule_of_annealing_by_hand():
    usual = {"code": 0.5, "pages": 0.5}
    gains = {name: dict(gain=gain, stderr=stderr) for name, gain, stderr in (
        ("best", 0.01, 0.005), ("code", -0.02, 0.001), ("notes", 0.02, 0.03),
        ("pages", 0.03, 0.01))}
    # Code loses, and the gain of notes is within its error: 0.3 goes to best and pages as 1 to 3.
    assert choose_shares(usual, gains, 0.3) == {"best": 0.075, "code": 0.35, "pages": 0.575}
    none = {name: dict(gain=0.01, stderr=0.02) for name in gains}
    assert choose_shares(usual, none, 0.3) == usual
    unknown = {name: found | {"stderr": None} for name, found in gains.items()}
    assert choose_shares(usual, unknown, 0.3)["notes"] == pytest.approx(0.3 * 2 / 6)
    assert add_share(usual, {"notes": 1.0}, 0.3) == {"code": 0.35, "notes": 0.3, "pages": 0.35}


def test_annealing_finds_the_pool_that_helps(command):
    """From a model trained first; the best pages help, each seed by another amount."""
    def loss_of(shares, config):
        if not config.pretrain.init_from:
            return 2.5
        return 2.0 - (0.5 + 0.1 * config.pretrain.seed) * shares.get("best", 0.0) + 0.1 * (
            shares.get("code", 0.0))

    command.planting.loss_of = loss_of
    result = command("anneal", "anneal.num_seeds=2", "anneal.share=0.5", "anneal.num_steps=3")
    trained = command.planting.trained
    assert trained[0] == "base" and len(trained) == 1 + 2 * 5 + 2
    assert result["usual"] == natural_shares(SIZES)
    gains = result["gains"]
    # 0.5 of best at 0.6 and 0.7, and half of the code, 0.3, gone.
    assert gains["best"]["gain"] == pytest.approx(0.325 + 0.03)
    assert gains["best"]["stderr"] == pytest.approx(0.025)
    assert gains["code"]["gain"] == pytest.approx(-0.02) and gains["notes"]["gain"] > 0
    weights = result["weights"]
    assert weights["best"] == pytest.approx(0.5 * 0.355 / (0.355 + 2 * 0.03), abs=1e-4)
    assert weights["code"] == 0.3
    assert result["check"]["gain"] > 0 and result["warnings"] == []
    config = load_config([SMOKE, *shlex.split(result["flags"])], "test")
    assert config.pretrain.anneal_mixture.to_dict() == weights
    lineage = read_json(command.out / "runs" / "best,seed=1" / "base" / "lineage.json")
    section = lineage["config"]["pretrain"]
    assert section["optimizer"]["schedule"] == "linear" and section["num_steps"] == 3
    assert section["optimizer"]["final_frac"] == 0.0 and section["mixture"]["best"] == 0.5
    assert "init_from" in lineage["inputs"]


def test_annealing_without_a_gain_keeps_the_usual_mixture(command):
    result = command("anneal", "anneal.num_seeds=2", "pretrain.mixture.pages=3.0",
                     "pretrain.mixture.code=1.0")
    assert result["weights"] == result["usual"] == {"code": 0.25, "pages": 0.75}
    assert "check" not in result
    assert any("no domain gains more than its standard error" in line
               for line in result["warnings"])


# --- the command line, and real runs


def _call(parents, out, name, *arguments):
    return [sys.executable, "-m", "train.mixture", name, SMOKE, *arguments,
            f"--parents={parents}", f"--out={out}"]


def _finish(arguments):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's
def test_real_searches_go_on_when_killed_and_end_with_flags(tmp_path):
    write_artifacts(tmp_path)
    arguments = _call(tmp_path, tmp_path / "regmix", "regmix", "--config.checks.num_seeds=0")
    killed = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, start_new_session=True)
    first = tmp_path / "regmix" / "runs" / "mixture=1" / "base" / "metrics.json"
    deadline = time.monotonic() + 150
    while not first.exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    written = first.stat().st_mtime_ns
    result = _finish(arguments)
    assert first.stat().st_mtime_ns == written, "a finished run is not trained again"
    assert {*result["weights"]} == {"code", "pages"} and len(result["runs"]) == 4

    result = _finish(_call(tmp_path, tmp_path / "doremi", "doremi",
                           "--config.checks.num_seeds=0"))
    assert sum(result["weights"].values()) == pytest.approx(1.0)
    steps = (tmp_path / "doremi" / "run" / "doremi" / "steps.jsonl").read_text().splitlines()
    assert len(steps) == 4
    mean = np.mean([json.loads(line)["weights"]["code"] for line in steps])
    assert result["weights"]["code"] == pytest.approx(mean, abs=1e-4)

    result = _finish(_call(tmp_path, tmp_path / "anneal", "anneal",
                           "--config.anneal.domains=('best','code')"))
    assert {*result["gains"]} == {"best", "code"}
    assert result["flags"].startswith("--config.pretrain.anneal_mixture.")
