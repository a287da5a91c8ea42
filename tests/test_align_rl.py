"""The stage of reinforcement learning: what is learned, resuming, rewards, and what is refused."""

import json
import os
import signal
import time
from functools import partial

import jax
import numpy as np
import pytest
from rl_stage import (
    TOKENIZER,
    iterations_of,
    make_config,
    on_one_device,
    plant_reward,
    run_stage,
    write_lineage,
    write_parents,
)

from align.rl import __main__ as rl
from align.rl import experience as experiences
from align.rl import loop as loops
from align.rl import rewards as rewarding
from align.rl.algorithms import ALGORITHMS, Known, make_policy_batch
from align.rl.answers import Answer
from align.rl.rollouts import make_rows, pick_minibatch, pick_prompts, sampled_logps
from align.scalar import with_scalar_head
from core.artifacts import read_json
from core.errors import UserError
from data.chat import ask, render_prompt
from data.tokenizers.bpe import BytePairTokenizer
from eval.respond.reward import load_reward
from eval.tasks.file import load_file_task
from model.directory import load_params, read_description, save_model
from model.families.registry import init
from model.parallel.sharding import make_mesh
from train import setup as setups
from train.signals import StopRequest as stopping
from train.watch.compilation import Compilations
from train.watch.metrics import read_metrics


@pytest.fixture(scope="module")
def parents(tmp_path_factory, params, config):
    """The tiny model as a chat model, and a file of questions."""
    root = tmp_path_factory.mktemp("parents")
    write_parents(root, params, config)
    return root


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(setups, "make_mesh", on_one_device)


@pytest.fixture(scope="module")
def planted():
    with pytest.MonkeyPatch.context() as patch:
        yield plant_reward(patch)


def ppo_config(parents, planted):
    return make_config(parents, "ppo", num_iterations=5, num_epochs=2, rewards=planted,
                       kl_coef=0.01, kl_target=0.1, kl_horizon=200.0)


@pytest.fixture(scope="module")
def trained(parents, planted, tmp_path_factory):
    """A run of PPO: its folder, the rows of its metrics, and the number of programs compiled until
    the end of each iteration."""
    folder, counts = tmp_path_factory.mktemp("run") / "ppo", []
    with pytest.MonkeyPatch.context() as patch, Compilations() as compilations:
        patch.setattr(setups, "make_mesh", on_one_device)
        report = loops.OnPolicyLoop._report

        def count(self, *arguments):
            counts.append(compilations.summary()["num_programs_compiled"])
            report(self, *arguments)

        patch.setattr(loops.OnPolicyLoop, "_report", count)
        _, rows = run_stage(folder, ppo_config(parents, planted), parents)
    return folder, rows, counts


def test_ppo_learns_a_planted_reward_from_its_own_reference_on(trained):
    rewards = [row["reward"] for row in iterations_of(trained[1])]
    assert rewards[-1] > rewards[0] + 0.15
    first, *_, last = iterations_of(trained[1])
    assert abs(first["kl"]) < 1e-6 and last["kl"] > 0.1
    assert first["reward_low"] < first["reward"] < first["reward_high"]
    assert first["groups/usable"] + first["groups/all_equal"] == 8
    assert 0 < first["ended_frac"] < 1 and 1 < first["answer_tokens"] <= 6
    assert 3 < first["entropy_nats"] < 6


def test_sampler_and_trainer_agree_on_every_log_probability(trained):
    gaps = [row["sampler_gap"] for row in iterations_of(trained[1])]
    assert 0 < max(gaps) < 1e-5


def test_the_first_update_of_an_iteration_is_on_policy(trained):
    steps = {row["step"]: row for row in trained[1] if "loss" in row}
    assert sorted(steps) == list(range(1, 21))
    for step in range(1, 21, 4):
        assert steps[step]["ratio"] == pytest.approx(1, abs=1e-5)
        assert steps[step]["clip_frac"] == 0
    assert steps[2]["ratio_max"] > 1.01


def test_the_kl_coefficient_follows_the_kl(trained):
    coefs = [row["kl_coef"] for row in iterations_of(trained[1])]
    assert coefs[0] == pytest.approx(0.01)
    assert coefs[1] == pytest.approx(0.01 * (1 - 0.2 * 128 / 200))
    assert coefs[-1] > min(coefs)


def test_nothing_is_compiled_after_the_second_iteration(trained):
    _, _, counts = trained
    assert len(counts) == 5 and counts[0] > 0 and counts[1:] == counts[1:2] * 4, counts


def test_a_run_that_was_killed_within_iterations_ends_bit_for_bit_the_same(
        trained, parents, planted, tmp_path, monkeypatch, capsys):
    """Once without a warning and once by SIGTERM, after the first of four updates."""
    update, gather = loops.OnPolicyLoop._update, experiences.Gatherer.gather
    faults, gathered = {(1, 0): "kill", (3, 0): "terminate"}, []

    def faulty(self, state, experience, iteration, number):
        state = update(self, state, experience, iteration, number)
        fault = faults.pop((iteration, number), None)
        if fault == "kill":
            raise ZeroDivisionError
        if fault == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            while not stopping.entered.requested:
                time.sleep(0.01)
        return state

    def counted(self, tree, iteration, kl_coef):
        gathered.append(iteration)
        return gather(self, tree, iteration, kl_coef)

    monkeypatch.setattr(loops.OnPolicyLoop, "_update", faulty)
    monkeypatch.setattr(experiences.Gatherer, "gather", counted)
    config, folder = ppo_config(parents, planted), tmp_path / "ppo"
    with pytest.raises(ZeroDivisionError):
        run_stage(folder, config, parents)
    with pytest.raises(SystemExit) as stopped:
        run_stage(folder, config, parents)
    assert stopped.value.code == 128 + signal.SIGTERM
    run_stage(folder, config, parents)
    assert gathered == [0, 1, 2, 3, 4], "each iteration's answers are sampled once"
    assert capsys.readouterr().err.count("are read from") == 2
    for name in ("metrics.jsonl", "rollouts/answers.jsonl"):
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes()
    first, second = (read_json(place / "model.json")["arrays"] for place in (trained[0], folder))
    assert first == second, "digests of all arrays"


def test_the_result_is_a_chat_model_without_a_value_head(trained, config):
    described = read_description(trained[0])
    assert described.chat and described.config == config


@pytest.mark.full
def test_an_adapter_is_trained_beside_the_frozen_model_and_asked_before_and_after(
        parents, tmp_path):
    """The reward is for short answers."""
    settings = make_config(parents, "grpo", rewards=dict(task=0.0, length=1.0), overlong_tokens=6,
                           kl_coef=0.0, num_iterations=5, num_epochs=2, row_length=40)
    settings.rl.lora.rank = 8
    settings.rl.optimizer.learning_rate = 0.02
    settings.rl.run.tasks.verifiable = 5
    found, rows = run_stage(tmp_path / "grpo", settings, parents)
    rewards = [row["reward"] for row in iterations_of(rows)]
    assert np.mean(rewards[2:]) > rewards[0] + 0.02, rewards
    assert abs(iterations_of(rows)[0]["kl"]) < 1e-6
    assert max(row["sampler_gap"] for row in iterations_of(rows)) < 1e-5
    assert found["heldout_verifiable_items"] == 5
    assert 0 <= found["heldout_verifiable_low"] <= found["heldout_verifiable_high"] <= 1
    assert "untouched_heldout_verifiable" in found
    base, merged = (load_params(folder, read_description(folder).config)
                    for folder in (parents / "sft", tmp_path / "grpo"))
    assert (tmp_path / "grpo" / "adapter").exists()
    np.testing.assert_array_equal(base["embed_VD"], merged["embed_VD"])
    assert np.any(base["blocks"]["wq_DHK"] != merged["blocks"]["wq_DHK"])


@pytest.mark.full
@pytest.mark.parametrize("algorithm", ["dr_grpo", "dapo", "rloo", "reinforce_plus_plus"])
def test_every_other_algorithm_learns_it_too(algorithm, parents, planted, tmp_path):
    config = make_config(parents, algorithm, num_iterations=8, rewards=planted)
    _, rows = run_stage(tmp_path / "rl", config, parents)
    rewards = [row["reward"] for row in iterations_of(rows)]
    assert rewards[-1] > rewards[0] + 0.1, rewards


@pytest.mark.full
def test_eight_devices_give_what_one_gives(trained, parents, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(setups, "make_mesh", make_mesh)
    _, rows = run_stage(tmp_path / "ppo", ppo_config(parents, planted), parents)
    for one, other in zip(iterations_of(trained[1]), iterations_of(rows), strict=True):
        assert one["reward"] == pytest.approx(other["reward"], abs=0.02)


def test_iterations_that_teach_nothing_are_counted_and_end_the_run(
        parents, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rewarding.REWARDS, "format", lambda given: lambda answers: [1.0] * len(
        answers))
    config = make_config(parents, "rloo", rewards=dict(task=0.0, format=1.0), max_idle=2)
    with pytest.raises(UserError, match=r"^rloo: 2 iterations in a row: had no group whose answer"):
        run_stage(tmp_path / "rloo", config, parents)
    rows = read_metrics(tmp_path / "rloo" / "metrics.jsonl")
    assert [(row["step"], row["groups/all_equal"]) for row in rows] == [(2, 8), (4, 8)]
    assert capsys.readouterr().err.count("teaches nothing") == 2


def test_with_oversampling_the_usable_groups_are_learned_from(parents, tmp_path, monkeypatch):
    """Half of the prompts' answers are all scored alike: what is kept are the others."""
    monkeypatch.setitem(rewarding.REWARDS, "format", lambda given: lambda answers: [
        (sum(answer.prompt) % 2) * len(set(answer.tokens)) for answer in answers])
    config = make_config(parents, "grpo", rewards=dict(task=0.0, format=1.0), oversampling=2,
                         num_iterations=1, num_prompts=4)
    run_stage(tmp_path / "grpo", config, parents)
    row, = iterations_of(read_metrics(tmp_path / "grpo" / "metrics.jsonl"))
    counts = [row["groups/usable"], row["groups/all_equal"]]
    assert sum(counts) == 8 and all(counts)
    written = (tmp_path / "grpo" / "rollouts" / "answers.jsonl").read_text().splitlines()
    rewards = np.array([json.loads(line)["reward"] for line in written])
    assert len(rewards) == 4 * 16
    assert np.mean(rewards > 0) == min(1, counts[0] / 4)
    assert row["reward"] < rewards.mean(), "that of all answers"


# Rollouts and rewards -----------------------------------------------------------------------------

def make_answer(prompt, tokens, text="", finish="stop", task="questions"):
    return Answer(ask("q", "a", task=task, family=task), tuple(prompt), list(tokens),
                  [-0.5 * n for n in range(1, len(tokens) + 1)], text, finish)


def test_rows_are_the_tokens_that_were_drawn_and_score_the_stop_too():
    """Padding holds the very token that ends answers: masks are carried, not inferred."""
    answers = [make_answer([5, 6, 0], [7, 0]), make_answer([5], [8, 9, 4], finish="length")]
    rows = make_rows(answers, 5)
    np.testing.assert_array_equal(rows.tokens_BL, [[5, 6, 0, 7, 0], [5, 8, 9, 4, 0]])
    np.testing.assert_array_equal(rows.targets_BL, [[6, 0, 7, 0, 0], [8, 9, 4, 0, 0]])
    np.testing.assert_array_equal(rows.loss_weights_BL, [[0, 0, 1, 1, 0], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(rows.segment_ids_BL, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(sampled_logps(answers, 5),
                                  [[0, 0, -0.5, -1, 0], [-0.5, -1, -1.5, 0, 0]])


def test_an_epoch_visits_every_answer_once_in_an_order_of_its_own(parents):
    section = make_config(parents).rl
    orders = [np.concatenate([pick_minibatch(12, section, iteration, 2 * epoch + part)
                              for part in range(2)])
              for iteration, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order) == list(range(12))
    assert len({tuple(order) for order in orders}) == 3
    again = np.concatenate([pick_minibatch(12, section, 0, part) for part in range(2)])
    np.testing.assert_array_equal(again, orders[0])


def test_every_pass_over_the_prompts_takes_each_once():
    passes = [[prompt for iteration in range(start, start + 2)
               for prompt in pick_prompts("abcdefgh", 4, iteration, seed=0)] for start in (0, 2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list("abcdefgh")
    assert passes[0] != passes[1]


def make_rewards(parents, **changes):
    section = make_config(parents, **changes).rl
    tasks = {"questions": load_file_task(parents / "questions.jsonl")}
    return rewarding.Rewards(rewarding.Resources(section, tasks, None, TOKENIZER, None, None, 1))


def test_rewards_are_summed_with_their_weights(parents):
    """Length: 0 up to 6 - 4 = 2 tokens, then a quarter less for each."""
    rewards = make_rewards(parents, rewards=dict(task=1.0, model=0.0, length=2.0, format=0.5),
                           overlong_tokens=4, pattern="a+", missing_end_penalty=3.0)
    answers = [make_answer([1], [2, 3], "a"), make_answer([1], [2] * 4, "aa"),
               make_answer([1], [2] * 6, "b", "length")]
    total_B, means = rewards(answers)
    np.testing.assert_allclose(total_B, [1 + 0 + 0.5, 0 - 1 + 0.5, 0 - 2 + 0 - 3])
    assert means == {"reward/task": pytest.approx(1 / 3), "reward/length": pytest.approx(-0.5),
                     "reward/format": pytest.approx(2 / 3)}


def test_a_reward_of_a_wrong_length_is_refused_and_one_that_is_no_number_left_out(
        parents, monkeypatch):
    answers = [make_answer([1], [2], "a")] * 2
    for name, values in (("task", [1.0]), ("format", [1.0, float("nan")])):
        monkeypatch.setitem(rewarding.REWARDS, name, lambda given, values=values:
                            lambda answers: values)
    with pytest.raises(UserError, match=r"^grpo.rewards.task: gave an array of shape \(1,\) for 2"):
        make_rewards(parents)(answers)
    total_B, means = make_rewards(parents, rewards=dict(task=0.0, format=1.0))(answers)
    assert total_B[0] == 1 and np.isnan(total_B[1]) and means == {"reward/format": 1.0}
    found = experiences.describe_answers(answers, total_B, 1)
    assert found["not_finite"] == 1 and found["reward"] == 1


@pytest.mark.parametrize("algorithm", [
    name for name, algorithm in ALGORITHMS.items() if not algorithm.has_pairs])
def test_an_answer_without_a_finite_reward_teaches_nothing(algorithm):
    shape = (4, 3)
    known = Known(np.array([1, 0, np.nan, 1], np.float32), np.ones(shape, np.float32),
                  np.full(shape, -1.0, np.float32), np.full(shape, -1.5, np.float32),
                  np.zeros(shape, np.float32), np.float32(0.1))
    batch = make_policy_batch(known, algorithm=ALGORITHMS[algorithm], num_samples=2, gamma=1.0,
                              lam=0.95)
    assert np.isfinite(batch.advantages_BL).all()
    assert not np.any(batch.mask_BL[2]) and not np.any(batch.advantages_BL[2])
    assert batch.advantages_BL[0].mean() > batch.advantages_BL[1].mean()
    is_dropped = not np.any(batch.mask_BL[3])
    assert is_dropped == (algorithm == "dapo"), "its group is not usable"


@pytest.mark.parametrize("algorithm, changes, message", [
    ("grpo", dict(num_samples=1), "grpo.num_samples=1: gives grpo nothing to compare"),
    ("rloo", dict(num_samples=1), "rloo.num_samples=1: gives rloo nothing to compare"),
    ("grpo", dict(algorithm="trpo"), "grpo.algorithm='trpo': there is no such algorithm: choose"),
    ("grpo", dict(kl_loss="k1"), "grpo.kl_loss='k1': as a loss it has a mean gradient of 0"),
    ("grpo", dict(kl_target=1.0), "grpo.kl_target=1.0: moves a coefficient of rewards"),
    ("ppo", dict(vf_coef=0.0), "ppo.vf_coef=0: leaves the value head of ppo untrained"),
    ("ppo", dict(num_samples=1, oversampling=2), "ppo.oversampling=2: compares no answers with"),
    ("grpo", dict(oversampling=3), "grpo.tasks: 16 prompts: are fewer than the 24 that are"),
    ("ppo", dict(num_minibatches=3), "ppo.num_minibatches=3: does not divide the 128 answers"),
    ("online_dpo", dict(kl_coef=0.1, num_minibatches=16), "online_dpo.num_minibatches=16: does not "
     "divide the 8 pairs"),
    ("online_dpo", dict(), "online_dpo.kl_coef=0: is the beta of online_dpo, whose loss would be"),
    ("grpo", dict(ptx_coef=1.0), "grpo.ptx_coef=1.0: there is no pretraining text: name an art"),
    ("grpo", dict(row_length=4), "grpo.row_length=4: has no room for an answer"),
    ("grpo", dict(num_prompts=17, num_minibatches=1), "grpo.tasks: 16 prompts: are fewer than"),
    ("grpo", dict(row_length=8), "grpo.tasks: 0 prompts: are fewer than the 8 that"),
    ("grpo", dict(rewards=dict(task=0.0)), "grpo.rewards: has no weight other than 0: set"),
    ("grpo", dict(rewards=dict(taste=1.0)), "grpo.rewards.taste: there is no such reward: choose"),
    ("grpo", dict(rewards=dict(format=1.0)), "grpo.pattern='': is the form of no answer"),
    ("grpo", dict(rewards=dict(format=1.0), pattern="("), "grpo.pattern='\\(': is no regular expr"),
    ("grpo", dict(rewards=dict(length=1.0), overlong_tokens=7), "grpo.overlong_tokens=7: is more"),
    ("grpo", dict(rewards=dict(model=1.0)), "grpo.rewards.model=1.0: there is no reward model"),
    ("grpo", dict(rewards=dict(judge=1.0)), "grpo.judge='', judge_endpoint='': exactly one of")])
def test_what_cannot_be_had_is_refused_in_one_line(algorithm, changes, message, parents, tmp_path):
    rewards = dict(task=0.0, model=0.0, length=0.0, format=0.0) | changes.get("rewards", {})
    changes = changes | (dict(rewards=rewards) if "rewards" in changes else {})
    with pytest.raises(UserError, match=f"^{message}") as error:
        run_stage(tmp_path / "rl", make_config(parents, algorithm, **changes), parents)
    assert "\n" not in str(error.value)


def test_a_base_model_is_refused(parents, tmp_path, params, config):
    save_model(tmp_path / "base", params, config, parents / "tokenizer", chat=False,
               context_tokens=64)
    write_lineage(tmp_path / "base")
    with pytest.raises(UserError, match=r"^grpo.model='sft': is a base model"):
        rl.build(make_config(parents), {"model": tmp_path / "base"}, tmp_path / "rl")


@pytest.fixture(scope="module")
def reward_model(parents, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "reward"
    scalar = with_scalar_head(config)
    save_model(folder, jax.jit(partial(init, scalar))(jax.random.key(1)), scalar,
               parents / "tokenizer", chat=True, context_tokens=20)
    write_lineage(folder)
    return folder


def resources(section, reward_model, tokenizer, setup):
    return rewarding.Resources(section, {}, reward_model, tokenizer, setup.execution, setup.mesh,
                               64, section.row_length + 1)


def test_a_reward_model_scores_the_tokens_that_were_drawn(
        parents, reward_model, config, execution):
    """Those of `aa` as two tokens, of an empty answer, and of one without an end."""
    section = make_config(parents, rewards=dict(task=0.0, model=1.0)).rl
    setup = setups.make_setup(config, section, dict(data=-1))
    rewards = rewarding.Rewards(resources(section, reward_model, TOKENIZER, setup))
    a, end = TOKENIZER.encode("a")[0], TOKENIZER.end
    prompt = render_prompt(ask("b"), TOKENIZER)
    answers = [make_answer(prompt, [a, a, end], "aa"), make_answer(prompt, [end]),
               make_answer(prompt, [a, a], "aa", "length")]
    total_B, _ = rewards(answers)
    model = load_reward(reward_model, execution)
    expected = model.score([ask("b", "aa")])
    assert total_B[0] == pytest.approx(expected[0], abs=1e-5)
    assert len(set(total_B.tolist())) == 3 and np.isfinite(total_B).all()


def test_a_reward_model_of_other_tokens_or_shorter_texts_is_refused(parents, reward_model, config):
    other = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(33, 126))})
    section = make_config(parents, rewards=dict(model=1.0), reward="reward").rl
    setup = setups.make_setup(config, section, dict(data=-1))
    with pytest.raises(UserError, match=r"^grpo.reward='reward': has another tokenizer than the p"):
        rewarding.Rewards(resources(section, reward_model, other, setup))
    section.row_length = 20
    with pytest.raises(UserError, match=r"^grpo.row_length=20: is more than the 20 tokens that re"):
        rewarding.Rewards(resources(section, reward_model, TOKENIZER, setup))
