"""The benchmark of reinforcement learning: equal work, turns, ratios, and our own side."""

import functools
from types import SimpleNamespace

import pytest

from core.errors import UserError
from scripts.bench import align_turns, rl, rl_ours
from scripts.bench.align_workload import read_work, write_work
from scripts.bench.generate_process import EngineStopped
from scripts.bench.rl_workload import give_answers, new_tokens, reward
from scripts.bench.train_workload import SIZES

# What TRL 1.16 finds (torch 2.13, float32): `trainers.trl_grpo.check` in the last line of
# `python -m scripts.bench.rl --size=tiny --prompts=2 --samples=4 --row_length=32 --turns=1`.
TRL = {"logp": -6.229970932006836, "reward": 0.6756715774536133,
       "gradient_norm": 1.10628342628479, "loss": -0.02315528690814972}


@pytest.fixture
def folder(tmp_path):
    """The work of two prompts."""
    write_work(tmp_path, SIZES["tiny"], num_pairs=2, row_length=32)
    return tmp_path


# --- our side -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """By algorithm, what loading ours and an iteration gave; measured when first asked for."""
    folder = tmp_path_factory.mktemp("work")
    write_work(folder, SIZES["tiny"], num_pairs=2, row_length=32)

    @functools.cache
    def measured(task):
        ours = rl_ours.Ours()
        loaded = ours.load(str(folder), task, num_threads=1, num_samples=4, num_minibatches=2)
        return loaded | ours.steps(1) | {"peak_bytes": ours.peak_bytes()}

    return measured


def check_parts(row):
    """Holds what is true of an iteration of any algorithm."""
    assert row["answer_tokens"] == [16.0]
    assert 0 < row["rewards"][0] < 1
    parts = [row[f"{part}_secs"][0] for part in rl.PARTS]
    assert min(parts) > 0 and sum(parts) <= row["secs"][0]
    assert rl.summarise({"ours": row}, 16)["ours"].keys() == {
        "secs", "peak_bytes", "rollout_frac", "score_frac", "update_frac"}


def test_our_side_finds_of_given_answers_what_trl_finds(measure):
    check = measure("grpo")["check"]
    first, second = check["losses"]
    assert first == pytest.approx(0, abs=1e-6)
    assert {**{name: check[name] for name in ("logp", "reward", "gradient_norm")},
            "loss": second} == pytest.approx(TRL, rel=2e-4)


def test_an_iteration_of_ours_is_measured_by_its_parts(measure):
    check_parts(measure("grpo"))


@pytest.mark.full
def test_ppo_is_measured_too_and_its_loss_has_that_of_values(measure):
    check_parts(measure("ppo"))
    assert measure("ppo")["check"]["losses"][0] > 1e-3


# --- the work -----------------------------------------------------------------------------------

def test_prompts_and_answers_fit_a_row_and_samples_differ(folder):
    work = read_work(str(folder))
    given = give_answers(work, 2, 4)
    assert [prompt for prompt, _ in given] == [
        pair["prompt"] for pair in work["pairs"] for _ in range(4)]
    assert len({tuple(answer) for _, answer in given[:4]}) == 4
    assert new_tokens(work) == 16
    assert all(len(pair["prompt"]) + new_tokens(work) <= work["row_length"]
               for pair in work["pairs"])
    assert reward([2, 3, 4, 8]) == 0.75


def test_no_token_ends_an_answer_of_ours():
    assert rl_ours.Words().stops == () and rl_ours.Words().text_of([1, 2]) == "w1 w2"


def test_sizes_that_do_not_fit_are_refused():
    given = SimpleNamespace(size="tiny", prompts=4, minibatches=2)
    rl.check_flags(given)
    given.minibatches = 3
    with pytest.raises(UserError, match=r"--minibatches=3: does not divide the 4 prompts"):
        rl.check_flags(given)
    given.size = "7T"
    with pytest.raises(UserError, match=r"--size=7T: is no known size: choose among tiny"):
        rl.check_flags(given)


# --- turns and figures --------------------------------------------------------------------------

class FakeProcess:
    """Takes one second more for a step at each turn; the peer fails when it is asked for steps."""

    def __init__(self, command, log):
        self.command, self.secs = command, 0.0

    def ask(self, call, **args):
        if call == "load":
            return {"versions": {}, "given": args}
        if call == "peak_bytes":
            return 7
        if self.command[0] == "PEER":
            raise EngineStopped("memory ran out")
        self.secs += 1
        return {"secs": [self.secs] * args["count"], "losses": [self.secs] * args["count"]}

    def close(self):
        pass


def test_times_of_the_first_turn_are_left_out_and_a_failure_stops_its_side_alone(
        monkeypatch, tmp_path):
    monkeypatch.setattr(align_turns, "EngineProcess", FakeProcess)
    results = align_turns.measure(
        {"ours": ("align_ours", "sft"), "trl": ("peer_trl", "sft")}, tmp_path, peer_python="PEER",
        num_steps=2, num_turns=2, batch_size=3)
    assert results["trl"] == {"error": "memory ran out"}
    ours = results["ours"]
    assert ours["secs"] == [2, 2, 3, 3] and ours["losses"] == [1, 1, 2, 2, 3, 3]
    assert ours["peak_bytes"] == 7
    assert ours["given"].keys() == {"folder", "task", "num_threads", "batch_size"}


def make_result(secs, logp=-6.0):
    """Of a trainer that spends a half on rollouts and a quarter on updates."""
    return {"secs": [secs, secs], "rollout_secs": [secs / 2] * 2, "score_secs": [secs / 4] * 2,
            "update_secs": [secs / 4] * 2, "answer_tokens": [48.0] * 4, "peak_bytes": secs * 1e9,
            "check": {"logp": logp, "reward": 0.5, "gradient_norm": 1.0, "losses": [0.0, -0.1]}}


def test_ratios_are_the_peers_figures_over_ours(capsys):
    results = {rl.OURS: make_result(2.0), rl.PEER: make_result(6.0, logp=-6.3),
               "ours_ppo": make_result(3.0)}
    summary = rl.summarise(results, 48)
    assert summary["ours_ppo"] == {"secs": 3.0, "peak_bytes": 3e9, "rollout_frac": 0.5,
                                   "score_frac": 0.25, "update_frac": 0.25}
    ratios = rl.compare(summary, results)
    assert list(ratios)[-1] == "ratio" and ratios["ratio"] == 3.0
    assert ratios["ratio_rollout"] == ratios["ratio_update"] == ratios["ratio_memory"] == 3.0
    assert ratios["check_difference"] == pytest.approx(0.3 / 6.3)
    rl.print_table(summary, results)
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines] == [10] * 5
    assert lines[2].startswith("| ours_grpo | 2.000 | 50% | 25% | 25% | 2,000 | -6.00000 |")


def test_a_side_that_failed_or_worked_less_has_a_reason_and_no_ratio(capsys):
    short = make_result(6.0) | {"answer_tokens": [48.0, 47.5]}
    results = {rl.OURS: make_result(2.0), rl.PEER: short, "ours_ppo": {"error": "no memory"}}
    summary = rl.summarise(results, 48)
    assert summary[rl.PEER] == {"error": "its answers do not all have 48 tokens"}
    assert summary["ours_ppo"] == {"error": "no memory"}
    ratios = rl.compare(summary, results)
    assert set(ratios.values()) == {None}
    assert ratios.keys() == rl.compare(rl.summarise(
        results | {rl.PEER: make_result(6.0)}, 48), results).keys()
    rl.print_table(summary, results)
    assert "| ours_ppo | no memory |" in capsys.readouterr().out
