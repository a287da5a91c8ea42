"""Best-of-n: its estimator, the best answers, the stage that writes them, and what SFT learns."""

import dataclasses
import itertools
import json
import math
from functools import partial

import jax
import numpy as np
import pytest

from align import pairs, sft
from align.best_of_n import best_of_n, make_curve, pick_best
from align.pairs import make_pairs, make_rankings, rate
from align.rl import rewards as rewarding
from align.scalar import with_scalar_head
from configs.align import get_config
from core.artifacts import make_lineage, read_jsonl, write_json
from core.bounds import check_numbers
from core.errors import UserError
from data.chat import ask, render_prompt
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import write_preferences
from data.tokenizers.bpe import BytePairTokenizer
from eval.measures.generation import answer_and_score
from eval.measures.pass_at_k import pass_at_k
from eval.respond.loaded import load_model
from eval.respond.reward import load_reward
from eval.tasks.registry import open_tasks
from model.directory import save_model
from model.execution import make_execution
from model.families.registry import init
from model.generation.sampling import Sampling
from model.parallel.sharding import make_mesh
from train import setup as setups

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
NAN = float("nan")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# The estimator ------------------------------------------------------------------------------------

def by_subsets(rewards, values, n):
    """The mean over all subsets of n answers of the mean value of those with the highest reward."""
    found = []
    for subset in itertools.combinations(range(len(rewards)), n):
        highest = max(rewards[i] for i in subset)
        found.append(np.mean([values[i] for i in subset if rewards[i] == highest]))
    return np.mean(found)


@pytest.mark.parametrize("rewards", [
    [0.3, -1.0, 2.5, 0.7, 0.1], [1.0, 0.0, 1.0, 0.0, 1.0, 0.5], [2.0] * 4, [-3.0]], ids=str)
def test_the_best_of_n_is_the_mean_over_all_subsets(rewards):
    values = [((7 * i) % 5) - 1.5 for i in range(len(rewards))]
    for n in range(1, len(rewards) + 1):
        assert best_of_n(rewards, n) == pytest.approx(by_subsets(rewards, rewards, n), abs=1e-12)
        assert best_of_n(rewards, n, values) == pytest.approx(
            by_subsets(rewards, values, n), abs=1e-12)
    assert best_of_n(rewards, 1) == pytest.approx(np.mean(rewards))
    assert best_of_n(rewards, len(rewards)) == pytest.approx(max(rewards))


def test_the_best_of_right_and_wrong_answers_is_pass_at_k():
    for num, right, n in [(10, 3, 4), (10, 0, 2), (200, 1, 100)]:
        rewards = [1.0] * right + [0.0] * (num - right)
        assert best_of_n(rewards, n) == pytest.approx(pass_at_k(num, right, n), abs=1e-12)


def test_the_estimate_does_not_depend_on_the_order_of_the_answers(rng):
    rewards, values = np.round(rng.normal(size=12), 1), rng.normal(size=12)
    order = rng.permutation(12)
    for n in (1, 3, 8):
        assert best_of_n(rewards[order], n, values[order]) == pytest.approx(
            best_of_n(rewards, n, values), abs=1e-12)


def test_the_estimate_is_unbiased(rng):
    """The highest of 3 uniform numbers has a mean of 3/4, whatever number of them is drawn."""
    found = [best_of_n(rng.uniform(size=7), 3) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(0.75, abs=4 * np.std(found) / math.sqrt(4000))


def test_a_curve_has_errors_over_prompts_a_bound_and_the_scores_of_chosen_answers():
    """The second reward prefers the answers that the task likes least."""
    rewards_PJ = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0, 6.0]])
    curve = make_curve(rewards_PJ, 5 - rewards_PJ)
    assert list(curve) == ["1", "2", "4", "6"]
    assert curve["1"] == {"kl_bound_nats": 0.0, "reward": 1.75, "task_score": 3.25,
                          "reward_stderr": pytest.approx(0.75),
                          "task_score_stderr": pytest.approx(0.75)}
    assert curve["2"]["reward"] == pytest.approx((55 / 15 + 30 / 15) / 2)
    assert curve["4"]["kl_bound_nats"] == pytest.approx(math.log(4) - 3 / 4)
    assert curve["6"]["reward"] == 5.5 and curve["6"]["task_score"] == -0.5
    alone = make_curve(rewards_PJ[:1])["6"]
    assert alone == {"kl_bound_nats": pytest.approx(math.log(6) - 5 / 6), "reward": 5.0,
                     "reward_stderr": None}


@pytest.mark.parametrize("rewards, n, message", [
    ([1.0, 2.0], 3, r"best of 3: cannot be estimated from 2 answers to a question: draw at least "),
    ([1.0, 2.0], 0, r"best of 0: cannot be estimated from 2 answers"),
    ([1.0, NAN], 1, r"rewards: 1 of 2 values are not finite"),
    ([], 1, r"rewards: there is no value")], ids=str)
def test_what_cannot_be_estimated_is_refused(rewards, n, message):
    with pytest.raises(UserError, match=f"^{message}") as error:
        best_of_n(rewards, n)
    assert "\n" not in str(error.value)


# The best answers ---------------------------------------------------------------------------------

def scored(question, *answers):
    return [{"task": "t", "family": "f", "messages": [{"role": "user", "content": question}],
             "completion": completion, "score": score, "task_score": 0.5,
             "finish": "".join(finish) or "stop"} for completion, score, *finish in answers]


def texts_of(conversations):
    return [conversation.messages[-1].content for conversation in conversations]


def test_the_best_is_an_answer_that_ended_and_each_question_without_one_is_counted():
    rows = (scored("q1", ("whole", 0.2), ("cut", 0.9, "length"), ("worse", 0.1))
            + scored("q2", ("cut", 0.9, "length"), ("also", 0.5, "length"), ("x", 0.1, "length"))
            + scored("q3", *[("", 0.0, "refused")] * 3)
            + scored("q4", (" ", 0.9), ("text", 0.5), ("other", 0.1))
            + scored("q5", ("low", 0.05), ("lower", 0.0), ("cut", 0.9, "length"))
            + scored("q6", ("first", 0.4), ("second", 0.4), ("third", 0.3)))
    solved, left_out = pick_best(rows, 3, 0.1)
    assert texts_of(solved) == ["whole", "first"]
    assert left_out == {"refused": 1, "none_ended": 1, "empty": 1, "below_min_score": 1}
    assert solved[0].to_dict() == {
        "messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "whole"}],
        "meta": {"origin": "t", "family": "f", "score": 0.2, "task_score": 0.5}}
    assert texts_of(pick_best(rows, 3, 0.4)[0]) == ["first"], "a score of min_score is enough"
    assert texts_of(pick_best(rows, 3, -1.0)[0]) == ["whole", "low", "first"]


def test_a_least_score_that_nothing_reaches_is_refused_in_one_line():
    rows = scored("q1", ("a", 0.2), ("b", 0.9)) + scored("q2", ("c", 0.1), ("d", 0.0, "length"))
    with pytest.raises(UserError, match=r"^pairs.min_score=0.95: none of 2 questions has a best ans"
                                        r"wer that reaches it: set a smaller --config.pairs.min_"):
        pick_best(rows, 2, 0.95)
    cut = scored("q1", ("a", 0.2, "length"), ("b", 0.9, "length"))
    assert pick_best(cut, 2, 0.95) == ([], dict(refused=0, none_ended=1, empty=0,
                                                below_min_score=0))


def test_one_sample_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^pairs.num_samples=1: must be a whole number, at least"):
        check_numbers({"num_samples": 1}, "pairs")


# The stage ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def parents(tmp_path_factory, params, config):
    """The tiny model as a chat model, a reward model of the same tokens, and a file of questions.
    """
    root = tmp_path_factory.mktemp("parents")
    (root / "tokenizer").mkdir()
    TOKENIZER.save(root / "tokenizer")
    scalar = with_scalar_head(config)
    for name, tree, made, context_tokens in (
            ("sft", params, config, 64),
            ("reward", jax.jit(partial(init, scalar))(jax.random.key(1)), scalar, 12)):
        save_model(root / name, tree, made, root / "tokenizer", chat=True,
                   context_tokens=context_tokens)
        write_lineage(root / name)
    (root / "questions.jsonl").write_text("".join(
        json.dumps({"question": f"{letter} or not {letter}", "answer": letter}) + "\n"
        for letter in "abcdefghijklmnop"))
    return root


def write_lineage(folder):
    write_json(folder / "lineage.json",
               make_lineage(stage=folder.name, config={}, inputs={}, code=""))


def make_config(parents, **changes):
    config = get_config("rejection")
    config.pairs.update(corpus="", tasks=dict(arithmetic=0), num_samples=16, min_margin=0.0,
                        inputs=str(parents / "questions.jsonl"), out="pairs", min_score=0.0,
                        max_new_tokens=4)
    config.pairs.rewards.update(changes.pop("rewards", {}))
    config.pairs.run.update(batch_size=256, scan_unroll=1)
    config.pairs.update(changes)
    return config


def build(parents, folder, **changes):
    folder.mkdir()
    given = {"model": parents / "sft", "reward": parents / "reward"}
    return pairs.build(make_config(parents, **changes), given, folder)


def test_a_reward_model_and_the_files_of_questions_decide_the_result(parents):
    assert "reward" in pairs.STAGE.parents
    assert list(pairs.STAGE.inputs(make_config(parents))) == [str(parents / "questions.jsonl")]


# Every text of an answer in this model's letters; those that ended are short.
SHORT = dict(rewards=dict(task=0.0, format=1.0), pattern=".{1,3}")


@pytest.fixture(scope="module")
def answered(parents):
    """What the stage samples, and its model."""
    section = make_config(parents).pairs
    [(task, count)] = open_tasks(section.tasks, None, section.inputs)
    solved = [c for c in task.conversations("train", count, section.seed) for _ in range(16)]
    model = load_model(parents / "sft", make_execution(section, also=("batch_size",)))
    return answer_and_score(model, [task], solved, Sampling(4, temperature=1.0), seed=section.seed,
                            batch_size=256), model


def test_by_default_pairs_and_rankings_are_those_of_the_tasks_score(
        parents, answered, tmp_path, monkeypatch):
    """To the byte; scores of thirds have no exact float32."""
    def score(self, conversation, completion):
        return len(set(completion)) / 3

    monkeypatch.setattr("eval.tasks.file.FileTask.score", score)
    rows = [one.row | {"score": len(set(one.row["completion"])) / 3} for one in answered[0]]
    expected, counts = make_pairs(rows, 16, 0.0)
    write_preferences(tmp_path / "pairs.jsonl", expected)
    write_preferences(tmp_path / "rankings.jsonl", make_rankings(rows, 16))
    found = build(parents, tmp_path / "out")
    for name in ("pairs.jsonl", "rankings.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert expected and {name: found[name] for name in counts} == counts
    assert found["reward/task"] == pytest.approx(found["best_of_n"]["1"]["reward"])
    assert "task_score" not in found["best_of_n"]["1"], "it is the reward"


def test_what_is_best_by_another_reward_is_written_for_sft_beside_the_tasks_score(
        parents, answered, tmp_path):
    found = build(parents, tmp_path / "out", **SHORT)
    ended = [any(one.row["finish"] == "stop" for one in answered[0][first:first + 16])
             for first in range(0, 256, 16)]
    left_out, curve = found["without_best"], found["best_of_n"]
    assert 0 < found["best"] == sum(ended) - left_out["empty"] - left_out["below_min_score"]
    assert left_out["none_ended"] == 16 - sum(ended)
    assert [float(n) for n in curve] == [1, 2, 4, 8, 16]
    rewards = [at["reward"] for at in curve.values()]
    assert rewards == sorted(rewards) and rewards[0] < rewards[-1] <= 1
    assert all(at["task_score"] < 0.2 and at["reward_stderr"] >= 0 for at in curve.values())
    faults = Faults("sft")
    read = list(read_examples(tmp_path / "out" / "best.jsonl", "conversations", faults=faults))
    assert len(read) == found["best"] and not faults.counts
    assert all(0 < len(text) <= 3 for text in texts_of(read))
    assert [row["meta"]["score"] for row in read_jsonl(tmp_path / "out" / "best.jsonl")] == [
        1.0] * len(read)


def test_a_reward_model_reads_the_end_of_a_prompt_that_is_too_long_for_it(
        parents, answered, capsys):
    """It reads 12 tokens; the prompts with their answers have more. Of a prompt all answers see the
    same part, what the longest leaves room for."""
    section = make_config(parents, rewards=dict(task=0.0, model=1.0)).pairs
    rewards = pairs.open_rewards(section, answered[1], [], parents / "reward")
    rows, numbers = rate(answered[0][:16], rewards, 16)
    assert "answers to 1 prompts are scored without the oldest part" in capsys.readouterr().err
    prompt = render_prompt(ask(answered[0][0].row["question"]), TOKENIZER)
    drawn = [one.completion.tokens for one in answered[0][:16]]
    assert {len(tokens) for tokens in drawn} >= {4} and len(prompt) > 12
    kept = [prompt[0], *prompt[4 - 11:]]
    model = load_reward(parents / "reward", answered[1].execution)
    expected = rewarding.score_texts(
        model.params, [[*kept, *tokens] for tokens in drawn], config=model.config,
        execution=model.execution, batch_size=256, max_length=12)
    np.testing.assert_allclose([row["score"] for row in rows], expected, rtol=1e-6)
    assert numbers["reward/model"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert len(set(expected.tolist())) > 8 and {row["task_score"] for row in rows} == {0.0}


def planted(monkeypatch, parents, answered, values):
    """Rewards of the first questions, by the number of the answer."""
    monkeypatch.setitem(rewarding.REWARDS, "format", lambda given: lambda answers: [
        values(number) for number in range(len(answers))])
    section = make_config(parents, rewards=dict(task=0.0, format=1.0)).pairs
    return pairs.open_rewards(section, answered[1], [], None)


def test_questions_with_a_reward_that_is_no_number_are_left_out_and_counted(
        parents, answered, monkeypatch, capsys):
    rewards = planted(monkeypatch, parents, answered, lambda n: NAN if n == 20 else float(n))
    rows, numbers = rate(answered[0][:48], rewards, 16)
    assert [row["score"] for row in rows] == [*range(16), *range(32, 48)]
    assert numbers["not_finite"] == 1
    assert capsys.readouterr().err.count("1 of 3 questions are left out, as the reward of an") == 1
    rewards = planted(monkeypatch, parents, answered, lambda n: float("inf") if n % 16 else 0.0)
    with pytest.raises(UserError, match=r"^pairs.rewards: are not finite for an answer to each of 3"
                                        r" questions: find out why") as error:
        rate(answered[0][:48], rewards, 16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes, message", [
    (dict(rewards=dict(task=0.0)), "pairs.rewards: has no weight other than 0: set"),
    (dict(rewards=dict(format=1.0)), "pairs.pattern='': is the form of no answer"),
    (dict(rewards=dict(length=1.0)), "pairs.overlong_tokens=8: is more than max_new_tokens=4"),
    (dict(SHORT, min_score=1.5), "pairs.min_score=1.5: none of 16 questions has a best answer"),
    (dict(max_new_tokens=63), "pairs.max_new_tokens: leaves no room for any of 16 questions")],
    ids=str)
def test_what_cannot_be_had_is_refused_in_one_line(changes, message, parents, tmp_path):
    with pytest.raises(UserError, match=f"^{message}") as error:
        build(parents, tmp_path / "out", **changes)
    assert "\n" not in str(error.value) and not any((tmp_path / "out").iterdir())


def test_a_base_model_has_no_conversations_for_a_reward_model(parents, answered):
    base = dataclasses.replace(answered[1], chat=False, name="base")
    section = make_config(parents, rewards=dict(model=1.0)).pairs
    with pytest.raises(UserError, match=r"^pairs.rewards.model=1.0: scores conversations, and bas"):
        pairs.open_rewards(section, base, [], parents / "reward")


@pytest.mark.full
def test_learning_from_the_best_raises_the_score_of_what_is_sampled(
        parents, tmp_path, monkeypatch):
    """Another seed draws other answers of both models."""
    monkeypatch.setattr(setups, "make_mesh",
                        lambda section: make_mesh(section, jax.devices()[:1]))
    build(parents, tmp_path / "sampled", **SHORT)
    config = make_config(parents)
    config.sft.update(inputs=str(tmp_path / "sampled" / "best.jsonl"), row_length=64, batch_size=2,
                      num_epochs=20, heldout_frac=0.0)
    config.sft.run.update(scan_unroll=1, loss_chunks=1, samples=0)
    config.sft.optimizer.update(learning_rate=0.01, warmup_steps=0)
    (tmp_path / "sft").mkdir()
    write_lineage(tmp_path / "sft")
    sft.build(config, {"model": parents / "sft"}, tmp_path / "sft")
    curves = []
    for name, model in (("before", parents / "sft"), ("after", tmp_path / "sft")):
        (tmp_path / name).mkdir()
        found = pairs.build(make_config(parents, seed=7, **SHORT), {"model": model},
                            tmp_path / name)
        curves.append(found["best_of_n"]["1"])
    before, after = curves
    margin = 3 * math.hypot(before["reward_stderr"], after["reward_stderr"])
    assert after["reward"] > before["reward"] + max(margin, 0.2), curves
