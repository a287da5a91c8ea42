"""Rounds of alignment: a planted reward rises, killed runs go on, votes, and what is refused."""

import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from align.rl import rewards as rewarding
from align.rl.answers import Answer
from align.rounds import __main__ as rounds
from align.rounds import candidates, measure
from align.rounds.choose import pair_up, share_of_ours
from align.rounds.page import render_rounds
from align.rounds.plan import Plan
from align.rounds.votes import count_blank, read_votes, write_blank
from align.scalar import with_scalar_head
from align.synthetic.rules import RULES
from configs.rounds import VARIANTS, get_config
from core.artifacts import make_lineage, read_json, read_jsonl, read_lineage, write_json
from core.errors import UserError
from data.chat import ask
from data.preferences import Preference, read_preferences
from data.tokenizers.bpe import BytePairTokenizer
from model.directory import save_model
from model.families.registry import init
from model.parallel.sharding import make_mesh
from train import setup as setups

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
NUM_TRAIN, NUM_PROMPTS = 400, 96


def even_share(text):
    """The planted reward: the share of an answer's characters whose code is even."""
    return sum(ord(letter) % 2 == 0 for letter in text) / max(len(text), 1)


class Even:
    """The planted reward as a rule."""

    def __init__(self, settings):
        del settings

    def score(self, answer):
        return even_share(answer)


def on_one_device(section):
    return make_mesh(section, jax.devices()[:1])


@pytest.fixture(autouse=True, scope="module")
def planted():
    """The planted reward by its name, on one device: eight would take eight times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setups, "make_mesh", on_one_device)
        patch.setitem(RULES, "even", Even)
        patch.setitem(rewarding.REWARDS, "even", lambda given: lambda answers: [
            even_share(answer.text) for answer in answers])
        yield


@pytest.fixture(scope="module")
def parents(tmp_path_factory, params, config):
    """The tiny model as a chat model, a reward model, and files of questions."""
    root = tmp_path_factory.mktemp("parents")
    (root / "tokenizer").mkdir()
    TOKENIZER.save(root / "tokenizer")
    scalar = with_scalar_head(config)
    for name, tree, sizes in (
            ("sft", params, config),
            ("reward", jax.jit(partial(init, scalar))(jax.random.key(1)), scalar)):
        save_model(root / name, tree, sizes, root / "tokenizer", chat=True, context_tokens=64)
        write_json(root / name / "lineage.json",
                   make_lineage(stage=name, config={}, inputs={}, code=""))
    for name, first, num in (("train", "a", NUM_TRAIN), ("heldout", "n", NUM_PROMPTS)):
        (root / f"{name}.jsonl").write_text("".join(
            json.dumps({"question": chr(ord(first) + n % 12) + chr(65 + n // 12), "answer": "no"})
            + "\n" for n in range(num)))
    return root


def make_config(parents, variant="rule", **changes):
    config = get_config(variant)
    files = {name: str(parents / f"{name}.jsonl") for name in ("train", "heldout")}
    sizes = dict(max_new_tokens=6, row_length=16)
    for section in (config.pairs, config.candidates, config.constitution, config.rl):
        section.update(inputs=files["train"], tasks=dict(arithmetic=0))
    config.rounds.update(num_rounds=2, model=str(parents / "sft"))
    config.constitution.answer.max_new_tokens = 6
    config.constitution.run.scan_unroll = 1
    config.candidates.update(num_prompts=12, num_samples=2, **sizes)
    config.measure.update(inputs=files["heldout"], tasks=dict(arithmetic=0),
                          num_prompts=NUM_PROMPTS, **sizes)
    with config.unlocked():
        config.measure.rewards = dict(task=0.0, even=1.0, model=0.0)
    for section in (config.candidates, config.measure):
        section.run.scan_unroll = 1
    config.candidates.run.num_slots = config.measure.run.num_slots = NUM_PROMPTS
    config.constitution.run.batch_size = NUM_PROMPTS
    config.constitution.critic_rule = "even" if variant == "rule" else ""
    for section in (config.dpo, config.reward):
        section.update(row_length=16, batch_size=8 if variant == "votes" else 40)
        section.run.update(scan_unroll=1, loss_chunks=1)
        section.optimizer.update(learning_rate=0.01, warmup_steps=0)
    config.dpo.update(num_epochs=2, nll_coef=0.0)
    for field, value in changes.items():
        name, _, own = field.partition("__")
        config[name][own] = value
    return config


@pytest.fixture(scope="module")
def trained(parents, tmp_path_factory):
    """Two rounds by the planted rule, killed before the second one's model was measured: the
    workdir, the result, and the models that were measured."""
    workdir, drawn, draw = tmp_path_factory.mktemp("run"), [], measure.draw
    began = time.monotonic()

    def draw_or_die(asked, section, number):
        drawn.append(asked.source.parent.name)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(asked, section, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "draw", draw_or_die)
        with pytest.raises(KeyboardInterrupt):
            rounds.run_rounds(make_config(parents), workdir)
        result = rounds.run_rounds(make_config(parents), workdir)
    secs = sum(read_json(path)["secs"] for path in workdir.rglob("metrics.json"))
    assert secs < time.monotonic() - began + 1, "the time of each stage is its own"
    return workdir, result, drawn


@pytest.mark.full
def test_a_planted_reward_rises_over_the_rounds_away_from_the_first_model(trained):
    _, result, _ = trained
    first, second, third = result["rounds"]
    assert result["waiting_for"] == ""
    assert second["reward"] > first["reward"] + 0.05 and third["reward"] > first["reward"] + 0.1
    for row in result["rounds"]:
        assert row["reward_low"] < row["reward"] < row["reward_high"]
        assert 1 < row["answer_tokens"] <= 6 and row["answers"] == NUM_PROMPTS
    assert abs(first["kl"]) < 1e-5 and 0.1 < second["kl"] < third["kl"]
    assert "win_rate" not in first and third["win_rate_by"] == "critic"
    assert 0.5 < third["win_rate_low"] < third["win_rate"] < third["win_rate_high"]


@pytest.mark.full
def test_each_round_is_a_folder_of_artifacts_that_name_their_parents(trained):
    workdir, result, _ = trained
    for number in (1, 2):
        folder = workdir / "rounds" / str(number)
        lineages = {name: read_lineage(folder / name) for name in
                    ("pairs", "dpo", "measured", "chosen")}
        models = [row["model"] for row in result["rounds"]]
        built = read_lineage(Path(models[number - 1]))["build"]
        assert lineages["pairs"]["inputs"]["model"] == built
        assert lineages["dpo"]["inputs"]["model"] == built
        assert lineages["dpo"]["inputs"]["pairs"] == lineages["pairs"]["build"]
        assert lineages["measured"]["inputs"]["model"] == lineages["dpo"]["build"]
        assert lineages["chosen"]["inputs"]["ours"] == lineages["measured"]["build"]
        seeds = {lineage["config"][stage]["seed"] for stage, lineage in
                 (("constitution", lineages["pairs"]), ("dpo", lineages["dpo"]))}
        assert seeds == {number, number + 1}
        assert lineages["measured"]["config"]["measure"]["seed"] == 0, "the same prompts each time"


@pytest.mark.full
def test_a_killed_run_goes_on_where_it_stopped_and_a_finished_one_does_nothing(
        trained, parents, capsys):
    workdir, result, drawn = trained
    assert drawn[1:] == ["1", "2", "2"], "no model is measured again but the last"
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("metrics.json")}
    assert rounds.run_rounds(make_config(parents), workdir) == result
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("metrics.json")} == before
    assert capsys.readouterr().err.count("is up to date") == 9
    assert read_jsonl(workdir / "rounds" / "rounds.jsonl") == result["rounds"]


@pytest.mark.full
def test_the_page_shows_every_round_and_escapes_answers(trained):
    workdir, result, _ = trained
    page = (workdir / "rounds" / "rounds.html").read_text()
    assert page.count("<svg") == 4 and "<script" not in page and "http://" not in page
    answers = [read_jsonl(workdir / "rounds" / str(n) / "measured" / "answers.jsonl")[:2]
               for n in range(3)]
    answers[1][0]["answer"] = "<script>alert('x')</script>"
    page = render_rounds(result["rounds"], answers)
    assert "<script" not in page and "&lt;script&gt;alert" in page
    assert page.count("<th>round ") == 3
    alone = render_rounds(result["rounds"][:1], answers[:1])
    assert "no round has finished" in alone


# Votes --------------------------------------------------------------------------------------------

def test_people_are_waited_for_and_their_votes_are_trained_on(parents, tmp_path, capsys):
    config = make_config(parents, "votes", rounds__num_rounds=1)
    found = rounds.run_rounds(config, tmp_path)
    path = tmp_path / "rounds" / "1" / "votes.jsonl"
    assert found["waiting_for"] == str(path) and len(found["rounds"]) == 1
    rows = read_jsonl(path)
    assert len(rows) == 12 and all(row["ranks"] == [None, None] for row in rows)
    lines = [line for line in capsys.readouterr().err.splitlines() if "waits for votes" in line]
    assert len(lines) == 1 and f"12 lines of {path}" in lines[0]
    for row in rows[1:]:
        row["ranks"] = [1, 2] if even_share(row["responses"][0]) > 0.5 else [2, 1]
        row["meta"]["annotator"] = "p1"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rounds.run_rounds(config, tmp_path)["waiting_for"] == str(path), "one is blank yet"
    path.write_text(json.dumps(rows[0] | dict(responses=["of an", "earlier run"])) + "\n")
    with pytest.raises(UserError, match="line 1: has a prompt or answers that this round did not"):
        rounds.run_rounds(config, tmp_path)     # nobody votes on answers of another model
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    found = rounds.run_rounds(config, tmp_path)
    assert found["waiting_for"] == "" and len(found["rounds"]) == 2
    assert found["rounds"][1]["pairs"] == 11 and found["rounds"][1]["win_rate_by"] == "reward"
    labelled = read_json(tmp_path / "rounds" / "1" / "pairs" / "metrics.json")
    assert (labelled["votes"], labelled["not_voted"], labelled["annotators"]) == (11, 1, 1)
    assert [one.ranks for one in read_preferences(tmp_path / "rounds" / "1" / "pairs"
                                                  / "pairs.jsonl")] == [
        tuple(row["ranks"]) for row in rows[1:]]


ASKED = [Preference(ask("q1"), ("a", "b"), (1, 1)), Preference(ask("q2"), ("c", "d"), (1, 1))]


def write_votes(path, *changes):
    write_blank(path, ASKED)
    rows = [row | changed for row, changed in zip(read_jsonl(path), changes)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_votes_may_tie_repeat_and_show_the_answers_in_another_order(tmp_path):
    path = tmp_path / "votes.jsonl"
    write_votes(path, dict(ranks=[2, 1], meta=dict(annotator="p1")))
    first = path.read_text()
    write_votes(path, dict(responses=["b", "a"], ranks=[1, 1], meta=dict(annotator="p2")))
    path.write_text(first + path.read_text())
    votes, counts = read_votes(path, ASKED)
    assert [(one.responses, one.ranks) for one in votes] == [
        (("a", "b"), (2, 1)), (("b", "a"), (1, 1))]
    assert counts == {"votes": 2, "ties": 1, "not_voted": 1, "annotators": 2}


@pytest.mark.parametrize("changed, message", [
    (dict(ranks=None), "line 1: has no order of its answers: fill in ranks"),
    (dict(ranks=[1, None]), "line 1: has no order of its answers: fill in ranks"),
    (dict(ranks=[1]), "line 1: needs one rank from 1 on for each response"),
    (dict(ranks=[0, 1]), "line 1: needs one rank from 1 on for each response"),
    (dict(ranks=[1, 2], responses=["a", "c"]), "line 1: has a prompt or answers that this round"),
    (dict(ranks=[1, 2], messages=[dict(role="user", content="q3")]), "line 1: has a prompt or an")])
def test_a_vote_that_is_none_is_refused(changed, message, tmp_path):
    write_votes(tmp_path / "votes.jsonl", changed)
    if "no order" in message:
        assert count_blank(tmp_path / "votes.jsonl", ASKED) == 1
    with pytest.raises(UserError, match=message):
        read_votes(tmp_path / "votes.jsonl", ASKED)


# Stages of a round --------------------------------------------------------------------------------

def answer_of(question, text, finish="stop"):
    return Answer(ask(question, "right", task="t", family="f"), (1,), [2], [-1.0], text, finish)


def test_candidates_are_answers_that_differ(parents):
    found, counts = candidates.make_candidates(
        [answer_of("q1", "a"), answer_of("q1", "b", "length"), answer_of("q1", "a", "length"),
         *[answer_of("q2", "c")] * 3], 3)
    assert found == [Preference(ask("q1"), ("a", "b"), (1, 1), "t", dict(task="t", family="f"),
                                ("stop", "length"))]
    assert counts == dict(repeated=3, equal=1)


def measured(*values, prompt="q"):
    """Rows of a measurement: (reward, log-probability, that of the first model, tokens)."""
    return [{"prompt": [dict(role="user", content=f"{prompt}{number}")], "answer": str(reward),
             "finish": "stop" if tokens < 5 else "length", "num_tokens": tokens, "reward": reward,
             "logp_nats": logp, "first_logp_nats": first}
            for number, (reward, logp, first, tokens) in enumerate(values)]


def test_the_kl_is_the_mean_log_ratio_of_whole_answers_with_its_interval():
    found = measure.describe(measured((1.0, -2.0, -3.0, 2), (0.0, -1.0, -0.5, 4), (1.0, -4, -5, 6)))
    assert found["kl"] == pytest.approx(0.5)
    stderr = np.std([1.0, -0.5, 1.0], ddof=1) / np.sqrt(3)
    assert found["kl_high"] - found["kl"] == pytest.approx(1.959964 * stderr, rel=1e-6)
    assert found["answer_tokens"] == 4 and found["ended_frac"] == pytest.approx(2 / 3)
    assert found["reward"] == pytest.approx(2 / 3) and found["answers"] == 3
    with pytest.raises(UserError, match=r"^measure: reward: 1 of 2 values are not finite"):
        measure.describe(measured((float("nan"), 0, 0, 1), (1.0, 0, 0, 1)))


def test_wins_are_counted_on_the_same_prompts():
    ours = measured(*[(reward, 0, 0, 1) for reward in (1.0, 1.0, 0.5, 0.0)])
    theirs = measured(*[(0.5, 0, 0, 1)] * 4)
    assert measure.compare(ours, theirs)["win_rate"] == pytest.approx(0.625)
    with pytest.raises(UserError, match=r"^measure.against: answered other prompts"):
        measure.compare(ours, measured(*[(0.5, 0, 0, 1)] * 4, prompt="p"))


def test_a_critics_choice_is_counted_for_the_side_that_wrote_the_answer():
    ours = measured((1.0, 0, 0, 1), (2.0, 0, 0, 1))
    theirs = measured((1.0, 0, 0, 1), (3.0, 0, 0, 1))
    different = pair_up(ours, theirs)
    assert [one.answers for one in different] == [("2.0", "3.0")]
    chosen = Preference(different[0].prompt, ("3.0", "2.0"), (1, 2), scores=(0.8, 0.2),
                        meta=dict(origin=different[0].prompt.meta["source"]))
    assert share_of_ours(chosen, ours) == 0.2


# Plans --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_a_plan_whose_rounds_begin_where_the_last_one_ended(variant, parents):
    config = get_config(variant)
    config.rounds.model = "sft"
    if variant == "judge":
        config.constitution.critic = "sft"
    plan = Plan(config, parents)
    trainer = "dpo" if plan.training[-1].section == "dpo" else "rl"
    first, second = plan.configure(1), plan.configure(2)
    assert first[trainer].model == str(parents / "sft")
    assert second[trainer].model == str(parents / "rounds" / "1" / trainer) == first.measure.model
    assert second.measure.first == str(parents / "sft")
    assert second[trainer].seed == config[trainer].seed + 2 and second.candidates.round == 1
    assert (second.rl.reward == "reward") == (variant == "ppo")
    assert bool(second.measure.reward) == (variant == "reward")
    assert config.dpo.model == "", "the config itself stays"


@pytest.mark.parametrize("variant, changes, message", [
    ("task", dict(rounds__labels="votez"), "rounds.labels='votez': is none of task, reward, judge"),
    ("task", dict(rounds__training="sft"), "rounds.training='sft': is none of dpo, reward_rl, rl"),
    ("task", dict(rounds__labels="none"), "rounds.labels='none': does not go with training='dpo'"),
    ("task", dict(rounds__training="rl"), "rounds.labels='task': does not go with training='rl'"),
    ("task", dict(dpo__model="base"), "dpo.model='base': is what each round sets: set --config.ro"),
    ("task", dict(rounds__model="none"), "rounds.model='none': no finished artifact at"),
    ("reward", dict(rounds__reward=""), "pairs.rewards.model: needs a reward model"),
    ("ppo", dict(rl__rewards=dict(task=1.0, model=0.0)), "rl.rewards.model=0: leaves out the rew"),
    ("judge", dict(), "constitution: no critic: exactly one of critic, critic_endpoint"),
    ("judge", dict(constitution__critic_rule="length"), "constitution.critic_rule='length': does"),
    ("rule", dict(constitution__makes=("pairs", "revisions")), "constitution.makes=.* is more"),
    ("rule", dict(constitution__endpoint="http://x"), "constitution.endpoint='http://x': answers"),
    ("task", dict(measure__num_prompts=500), "measured.tasks: 96 prompts: are fewer than")])
def test_what_cannot_be_had_is_refused_in_one_line(variant, changes, message, parents, tmp_path):
    changes = dict(rounds__reward=str(parents / "reward")) | changes
    with pytest.raises(UserError, match=f"^{message}") as error:
        rounds.run_rounds(make_config(parents, variant, **changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("metrics.json")), "refused before anything is built"


@pytest.mark.full
@pytest.mark.parametrize("variant", ["ppo", "rl"])
def test_what_is_rewarded_rises_by_reinforcement_learning_too(variant, parents, tmp_path):
    """PPO on a reward model that each round trains on the rule's rankings; or the reward itself."""
    labels = dict(rounds__labels="rule") if variant == "ppo" else {}
    config = make_config(parents, variant, rounds__num_rounds=1, **labels)
    if variant == "ppo":
        config.constitution.critic_rule = "even"
        config.reward.update(num_epochs=6, heldout_frac=0.0)
        config.rl.rewards.update(task=0.0, model=1.0)
    else:
        with config.unlocked():
            config.rl.rewards = dict(task=0.0, even=1.0, model=0.0)
    config.rl.update(num_iterations=6, num_prompts=16, num_samples=8, num_minibatches=2,
                     max_new_tokens=6, row_length=16)
    config.rl.run.update(scan_unroll=1, num_slots=128)
    config.rl.optimizer.update(learning_rate=0.01, warmup_steps=0, lr_multipliers=dict())
    before, after = rounds.run_rounds(config, tmp_path)["rounds"]
    assert after["kl"] > 0.05
    if variant == "rl":
        assert after["reward"] > before["reward"] + 0.05
    else:   # it maximises the scores of a model that saw few rankings
        rows = read_jsonl(tmp_path / "rounds" / "1" / "rl" / "metrics.jsonl")
        rewards = [row["reward"] for row in rows if "iteration" in row]
        assert rewards[-1] > rewards[0] + 0.05
