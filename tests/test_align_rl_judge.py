"""The reward of a judge, an endpoint or a model: what it reads, what it says, what it costs."""

import time

import jax
import numpy as np
import pytest
from chat_server import serve

from align.rl import rewards as rewarding
from align.rl.__main__ import STAGE
from align.rl.answers import Answer
from align.rl.judge import Judge, open_judge, read_score
from configs.rl import get_config
from core.artifacts import make_lineage, write_json
from core.errors import UserError
from data.chat import Conversation, Message, ask
from data.tokenizers.bpe import BytePairTokenizer
from eval.respond.responder import Reply
from model.directory import save_model
from model.parallel.sharding import make_mesh

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})


def say_length(prompt):
    """A judge whose score is the number of characters of the answer."""
    return str(len(prompt.partition("Answer:\n\n")[2].partition("\n\nHow good")[0]))


@pytest.fixture
def server(monkeypatch):
    yield from serve(monkeypatch, say_length)


@pytest.fixture
def section(server):
    section = get_config("grpo").rl
    section.update(judge_endpoint=server.url, judge_endpoint_model="tiny")
    section.rewards.update(task=0.0, judge=1.0)
    section.run.update(num_connections=2, timeout_secs=5.0, max_retries=1, backoff_secs=0.001)
    return section


def make_answer(text, question="How?", finish="stop"):
    return Answer(ask(question, "the solution"), (1,), [2], [-1.0], text, finish)


def make_rewards(section):
    return rewarding.Rewards(rewarding.Resources(section, {}, None, TOKENIZER, None, None, 1))


@pytest.mark.parametrize("reply, expected", [
    ("7", 0.7), ("0", 0.0), ("10", 1.0), (" 4\n", 0.4), ("7.5", 0.75),
    ("11", "no_score"), ("-1", "no_score"), ("", "no_score"), ("7/10", "no_score"),
    ("Score: 7", "no_score"), ("seven", "no_score"), ("nan", "no_score"), ("1e1", "no_score"),
    ("٧", "no_score"), ("7 or 8", "no_score"), ("100", "no_score"), ("10.5", "no_score"),
    (Reply("1", "truncated"), "truncated"), (Reply("", "rejected_400"), "rejected"),
    (Reply("", "prompt_too_long"), "prompt_too_long"), (Reply("", "unreachable"), "unreachable")],
    ids=repr)
def test_a_score_is_read_strictly(reply, expected):
    score, reason = read_score(Reply(reply) if isinstance(reply, str) else reply)
    if isinstance(expected, str):
        assert np.isnan(score) and reason == expected
    else:
        assert score == pytest.approx(expected) and reason == ""


def test_the_rewards_are_a_tenth_of_the_scores_and_what_it_cost_is_counted(server, section):
    """Two equal answers are one request; nonsense makes a reward that is not finite."""
    section.run.update(prompt_price=2.0, answer_price=10.0)
    server.reply = lambda prompt, number: server.completion(
        say_length(prompt), usage={"prompt_tokens": 100, "completion_tokens": 2})
    answers = [make_answer("a" * 5), make_answer("a" * 5), make_answer("a" * 10),
               make_answer("a" * 11), make_answer("a" * 5, question="Why?")]
    total_B, means = make_rewards(section)(answers)
    np.testing.assert_allclose(total_B, [0.5, 0.5, 1.0, np.nan, 0.5])
    assert len(server.requests) == 4
    assert means["reward/judge"] == pytest.approx((0.5 + 0.5 + 1 + 0.5) / 4)
    assert means["judge/requests"] == 4 and means["judge/prompt_tokens"] == 400
    assert means["judge/cost"] == pytest.approx((400 * 2.0 + 8 * 10.0) / 1e6)
    assert means["judge/no_score"] == 1 and means["judge/unreachable"] == 0


def test_the_judge_sees_conversation_and_answer_but_not_the_solution(server, section):
    """An answer that holds a place of the prompt is shown as it is."""
    conversation = Conversation((Message("system", "Be kind."), Message("user", "How?"),
                                 Message("assistant", "the solution")))
    answer = make_answer("say {conversation} {answer}")._replace(question=conversation)
    make_rewards(section)([answer])
    (prompt, body, _), = server.requests
    assert "System: Be kind.\n\nHuman: How?\n\nAnswer:\n\nsay {conversation} {answer}\n" in prompt
    assert "the solution" not in prompt
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0.0, 8, "tiny")


def test_a_prompt_of_ones_own_is_read_and_decides_the_result(server, section, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Q {conversation} A {answer} ?")
    section.judge_prompt = str(path)
    server.reply = lambda prompt, number: server.completion("3")
    make_rewards(section)([make_answer("yes")])
    assert server.requests[0][0] == "Q Human: How? A yes ?"
    config = get_config("grpo")
    marks = []
    for text, weight in (("{conversation}{answer}", 1.0), ("{conversation} {answer}", 1.0),
                         ("{conversation} {answer}", 0.0)):
        path.write_text(text)
        config.rl.judge_prompt, config.rl.rewards.judge = str(path), weight
        marks.append(STAGE.inputs(config))
    assert marks[0] != marks[1] and marks[2] == {}


def test_an_endpoint_that_is_silent_ends_the_run_in_one_line_or_is_counted(server, section):
    def silent_about_b(prompt, number):
        if "\n\nb\n" in prompt:
            time.sleep(0.6)
        return server.completion("6")

    server.reply = silent_about_b
    section.run.update(timeout_secs=0.2)
    answers = [make_answer("a"), make_answer("b"), make_answer("c")]
    with pytest.raises(UserError, match=r"^endpoint='http.*is silent for 0.2 s, attempt 2 of 2: "
                       "check the server") as error:
        make_rewards(section)(answers)
    assert "\n" not in str(error.value)
    section.judge_unreachable = "count"
    total_B, means = make_rewards(section)(answers)
    np.testing.assert_allclose(total_B, [0.6, np.nan, 0.6])
    assert means["judge/unreachable"] == 1


def test_an_endpoint_that_rejects_all_ends_the_run(server, section):
    server.reply = lambda prompt, number: (400, b"no such model", {})
    with pytest.raises(UserError, match=r"^tiny: rejects every prompt of the judge \(rejected_400"):
        make_rewards(section)([make_answer("a"), make_answer("b")])


@pytest.mark.parametrize("changes, message", [
    (dict(judge_endpoint=""), "grpo.judge='', judge_endpoint='': exactly one of them must be set"),
    (dict(judge="sft"), "grpo.judge='sft', judge_endpoint='http.*': exactly one of them must be"),
    (dict(judge_unreachable="ignore"), "grpo.judge_unreachable='ignore': is none of fail, count"),
    (dict(judge_prompt="none.txt"), "grpo.judge_prompt='none.txt': cannot be read"),
    (dict(judge_endpoint="host"), "endpoint='host', endpoint_model='tiny': is no URL")])
def test_what_cannot_judge_is_refused_in_one_line(section, changes, message):
    section.update(changes)
    with pytest.raises(UserError, match=f"^{message}") as error:
        make_rewards(section)
    assert "\n" not in str(error.value)


def test_a_prompt_without_a_place_is_refused(section, tmp_path):
    (tmp_path / "prompt.txt").write_text("How good is {answer}?")
    section.judge_prompt = str(tmp_path / "prompt.txt")
    with pytest.raises(UserError, match=r"has no place \{conversation\}: write \{conversation\} a"):
        make_rewards(section)


def test_a_local_model_judges(section, params, config, execution, tmp_path):
    """It is a tiny random model: its replies are nonsense, which is counted; a long prompt too."""
    (tmp_path / "tokenizer").mkdir()
    TOKENIZER.save(tmp_path / "tokenizer")
    save_model(tmp_path / "judge", params, config, tmp_path / "tokenizer", chat=True,
               context_tokens=64)
    write_json(tmp_path / "judge" / "lineage.json",
               make_lineage(stage="sft", config={}, inputs={}, code=""))
    (tmp_path / "prompt.txt").write_text("{conversation} {answer}")
    section.update(judge="judge", judge_endpoint="", judge_tokens=4,
                   judge_prompt=str(tmp_path / "prompt.txt"))
    mesh = make_mesh(dict(data=1), jax.devices()[:1])
    judge = open_judge(section, tmp_path / "judge", execution, mesh)
    assert isinstance(judge, Judge)
    with jax.set_mesh(mesh):
        scores_B = judge([make_answer("a"), make_answer("b"), make_answer("long " * 20)])
    assert scores_B.dtype == np.float32 and not np.isfinite(scores_B).any()
    counts = judge.counts
    assert counts["judge/prompt_too_long"] == 1 and counts["judge/cost"] == 0
    assert counts["judge/no_score"] + counts["judge/truncated"] == 2
    assert counts["judge/requests"] == 3 and counts["judge/answer_tokens"] > 0
