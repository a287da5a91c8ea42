"""Judges as a stage: results, people's votes, rubrics, MT-Bench, budgets, failures, messages."""

import dataclasses
import gzip
import json
import os
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from chat_server import serve
from judge_replies import parts, prefer_longer

from configs.judge import get_config
from core.artifacts import make_lineage, read_json, read_jsonl, write_json, write_jsonl
from core.errors import UserError
from data.chat import Conversation, Message, render_prompt
from data.layouts.faults import Faults
from data.tokenizers.bpe import BytePairTokenizer
from eval.alpaca_eval import measure_file
from eval.judge import build
from eval.judges.candidates import read_answers
from eval.judges.prompts import SYSTEM, read_rubric
from eval.respond.loaded import load_model
from model.directory import save_model
from model.execution import Execution
from model.families.registry import forward, init
from model.heads.language import logits

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
NUM = 12


@pytest.fixture
def server(monkeypatch):
    yield from serve(monkeypatch, prefer_longer)


@pytest.fixture
def judge(server, tmp_path):
    """A function of changes: runs the stage in a folder of its own; returns it and the metrics."""
    lengths = {"mine": lambda number: 9, "theirs": lambda number: 3 + number}
    for name, length in lengths.items():
        write_jsonl(tmp_path / f"{name}.jsonl", [
            {"prompt": f"question {number}", "completion": name[0] * length(number)}
            for number in range(NUM)])

    def run(name="judge", parents=None, **changes):
        config = get_config()
        section = config.judge
        section.update(answers=f"mine={tmp_path}/mine.jsonl,theirs={tmp_path}/theirs.jsonl",
                       endpoint=server.url, endpoint_model="tiny")
        section.run.update(timeout_secs=60.0, max_retries=1, backoff_secs=0.001, num_connections=3)
        for field, value in changes.items():
            (section.run if field in section.run else section)[field] = value
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return folder, build(config, parents or {}, folder)
    return run


def test_a_judge_that_prefers_length_is_found_out(judge, server, tmp_path):
    folder, metrics = judge()
    found = metrics["candidates"]["mine"]
    # 9 characters against 3 to 14: six shorter, one as long, five longer.
    assert (found["wins"], found["ties"], found["losses"]) == (6, 1, 5)
    assert found["win_rate"]["value"] == pytest.approx(6.5 / 12)
    assert found["length_controlled"] == pytest.approx(0.5, abs=0.05)
    bias = metrics["bias"]
    assert bias["length"]["longer"]["value"] == 1.0
    assert bias["position"]["first"]["value"] == 0.5
    assert bias["position"]["consistent"]["value"] == 1.0
    assert len(server.requests) == 2 * NUM and metrics["usage"]["requests"] == 2 * NUM
    rows = read_jsonl(folder / "verdicts.jsonl")
    assert len(rows) == 2 * NUM and all(row["prompt"] and row["text"] for row in rows)
    assert rows[0]["models"] == rows[1]["models"][::-1] == ["mine", "theirs"]
    assert read_json(folder / "judge.json")["bias"] == bias
    write_jsonl(tmp_path / "difficulties.jsonl", [
        {"instruction": f"question {number}", "instruction_difficulty": 0.0}
        for number in range(NUM)])
    again = measure_file(folder / "annotations.jsonl", tmp_path / "difficulties.jsonl", None, None,
                         None)
    assert again["models"]["mine"]["win_rate"] == pytest.approx(100 * 6.5 / 12)
    assert again["models"]["mine"]["length_controlled_winrate"] == pytest.approx(
        100 * found["length_controlled"])


def test_a_judge_that_prefers_the_first_place_gives_ties(judge, server):
    server.reply = lambda prompt, number: server.completion(f"[[A {parts(prompt)[0]}]]")
    _, metrics = judge()
    assert metrics["candidates"]["mine"]["win_rate"]["value"] == 0.5
    assert metrics["bias"]["position"]["first"]["value"] == 1.0
    assert metrics["bias"]["position"]["consistent"]["value"] == 0.0


def test_nonsense_and_both_verdicts_are_counted_by_the_reason(judge, server):
    def answer(prompt, number):
        code, texts = parts(prompt)
        number = int(texts["CONVERSATION"].split()[-1])
        said = {0: "I cannot say.", 1: f"[[A {code}]] [[B {code}]]", 2: "[[A]]"}
        return server.completion(said.get(number, prefer_longer(prompt)))
    server.reply = answer
    folder, metrics = judge()
    assert metrics["unparsed"] == {"no_verdict": 2, "several": 2, "no_code": 2}
    found = metrics["candidates"]["mine"]
    assert found["unparsed"] == {"no_verdict": 1, "several": 1, "no_code": 1}
    assert (found["pairs"], found["wins"], found["losses"]) == (9, 3, 5)
    annotated = read_jsonl(folder / "annotations.jsonl")
    assert sum(row["preference"] is None for row in annotated) == 3


def test_a_judge_that_fails_is_asked_again_the_next_time(judge, server):
    def fail(prompt, number):
        return (503, b"busy", {}) if "question 3" in prompt else server.completion(
            prefer_longer(prompt))
    server.reply = fail
    _, metrics = judge()
    assert metrics["unparsed"] == {"unreachable": 2}
    before = len(server.requests)
    server.reply = lambda prompt, number: server.completion(prefer_longer(prompt))
    _, metrics = judge("again")
    assert metrics["unparsed"] == {} and len(server.requests) == before + 2


def test_a_budget_ends_the_requests_and_not_the_measurement(judge, server):
    _, metrics = judge(max_requests=10, chunk_prompts=4)
    assert len(server.requests) == 10 and metrics["candidates"]["mine"]["pairs"] == 5
    assert metrics["unparsed"] == {"over_budget": 14}
    server.reply = lambda prompt, number: server.completion(
        prefer_longer(prompt), usage={"prompt_tokens": 100_000, "completion_tokens": 0})
    _, metrics = judge("cost", seed=1, max_cost=1.0, prompt_price=2.0, chunk_prompts=1)
    assert metrics["cost"] == pytest.approx(1.0) and len(server.requests) == 10 + 5


def test_a_judge_that_never_gives_a_verdict_is_refused(judge, server):
    server.reply = lambda prompt, number: server.completion("Both are nice.")
    with pytest.raises(UserError, match="tiny: gave no verdict in 24 replies"):
        judge()


def test_votes_of_people_are_compared(judge, tmp_path):
    rows = []
    for number in range(NUM):
        texts = ["m" * 9, "t" * (3 + number)]
        agrees = number not in (0, 1)
        longer = 0 if len(texts[0]) > len(texts[1]) else 1
        ranks = [1, 1] if number == 6 else [1, 2] if (longer == 0) == agrees else [2, 1]
        rows.append({"prompt": f"question {number}", "responses": texts, "ranks": ranks})
    write_jsonl(tmp_path / "votes.jsonl", [
        *(row | {"annotator": "p1"} for row in rows), *(row | {"annotator": "p2"} for row in rows)])
    _, both = judge(votes=f"{tmp_path}/votes.jsonl", own="mine")
    found = both["agreement"]
    assert (found["votes"], found["pairs"], found["people_agreement"]) == (24, 12, 1.0)
    assert found["agreement"]["value"] == pytest.approx(10 / 12)
    assert found["decided"]["value"] == pytest.approx(9 / 11)
    # Both name a tie once in 12, and otherwise each side equally often in both orders.
    chance = (1 / 12)**2 + 2 * (11 / 24)**2
    assert found["kappa"]["value"] == pytest.approx((10 / 12 - chance) / (1 - chance))
    assert both["bias"]["length"]["excess"]["value"] == pytest.approx(1 - 9 / 11)
    assert both["bias"]["self_preference"]["value"] == pytest.approx(2 / 12)
    _, swapped = judge("swapped", votes=f"{tmp_path}/votes.jsonl", baseline="mine")
    assert swapped["agreement"] == found
    _, alone = judge("alone", votes=f"{tmp_path}/votes.jsonl", answers="")
    assert alone["candidates"] == {} and alone["agreement"] == found
    assert alone["bias"]["length"] == both["bias"]["length"]


def test_answers_are_rated_one_at_a_time(judge, tmp_path):
    folder, metrics = judge(form="single")
    mine, theirs = (metrics["scores"][name] for name in ("mine", "theirs"))
    assert mine["mean"]["value"] == 9.0 and mine["length_correlation"] is None
    assert theirs["mean"]["value"] == pytest.approx(sum(min(3 + n, 10) for n in range(12)) / 12)
    assert theirs["length_correlation"] > 0.9
    found = metrics["candidates"]["mine"]
    assert (found["wins"], found["ties"], found["losses"]) == (6, 1, 5)
    assert "one answer at a time" in metrics["bias"]["position"]["why"]
    assert len(read_jsonl(folder / "verdicts.jsonl")) == 2 * NUM
    _, one = judge("one", form="single", answers=f"mine={tmp_path}/mine.jsonl")
    assert one["scores"]["mine"] == mine and one["candidates"] == {}
    _, longer = judge("longer", form="single", answers=f"mine={tmp_path}/mine.jsonl",
                      experiments=("verbose",))
    assert longer["experiments"]["verbose"]["wins"] == NUM


def test_a_rubric_is_a_weighted_mean_and_lacks_no_criterion(judge, server, tmp_path):
    write_jsonl(tmp_path / "rubric.jsonl", [
        {"name": "right", "text": "Is it right?", "weight": 3}, {"name": "kind", "text": "Kind?"}])

    def answer(prompt, number):
        code, texts = parts(prompt)
        missing = "Kind?" in prompt and texts["CONVERSATION"] == "Human: question 5"
        rating = 8 if "Is it right?" in prompt else 4
        return server.completion("Hm." if missing else f"[[{rating} {code}]]")
    server.reply = answer
    _, metrics = judge(form="rubric", rubric=f"{tmp_path}/rubric.jsonl")
    mine = metrics["scores"]["mine"]
    assert mine["mean"]["value"] == 7.0 and mine["criteria"] == {"right": 8.0, "kind": 4.0}
    assert (mine["answers"], mine["unparsed"]) == (11, {"no_verdict": 1})
    assert metrics["candidates"]["mine"]["ties"] == 11
    with pytest.raises(UserError, match="line 1: is no criterion"):
        write_jsonl(tmp_path / "bad.jsonl", [{"name": "x", "text": "y", "weight": 0}])
        read_rubric(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("form", ["pairwise", "single"])
def test_the_page_shows_what_was_measured_and_quotes_what_is_hostile(judge, server, tmp_path, form):
    rows = read_jsonl(tmp_path / "mine.jsonl")
    rows[3]["completion"] = "<script>alert(1)</script>"
    write_jsonl(tmp_path / "mine.jsonl", rows)
    server.reply = lambda prompt, number: server.completion(
        "Both." if "question 5" in prompt else prefer_longer(prompt))
    folder, metrics = judge(form=form)
    page = (folder / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert f"{metrics['candidates']['mine']['win_rate']['value']:.1%}".replace("%", " %") in page
    first = page.index("<details>")
    assert page.index("no_verdict", first) < page.index("</summary>", first)
    assert "no candidate is the judge&#x27;s own" in page


def test_the_same_answers_longer_and_shorter(judge):
    folder, metrics = judge(experiments=("verbose", "concise"))
    verbose, concise = (metrics["experiments"][name] for name in ("verbose", "concise"))
    assert verbose["win_rate"]["value"] == 1.0
    assert verbose["lengths"][0] == 2 * verbose["lengths"][1]
    assert concise["win_rate"]["value"] == 0.0 and concise["lengths"][0] < concise["lengths"][1]
    assert metrics["candidates"]["mine"]["pairs"] == NUM
    rows = read_jsonl(folder / "gamed.jsonl")
    assert [row["model"] for row in rows] == ["verbose"] * NUM + ["concise"] * NUM
    again = measure_file(folder / "annotations.jsonl", None, folder / "gamed.jsonl", None, None)
    assert metrics["length_terms"] == again["terms"] == ["length", "gamed"]
    assert again["models"]["mine"]["length_controlled_winrate"] == pytest.approx(
        100 * metrics["candidates"]["mine"]["length_controlled"])


def test_the_same_answers_longer_tell_length_from_quality(judge, tmp_path):
    """All answers are longer than the baseline's, and win by that alone."""
    write_jsonl(tmp_path / "mine.jsonl", [
        {"prompt": f"question {number}", "completion": "m" * 30} for number in range(NUM)])
    alone, tied = (judge(name, experiments=experiments)[1]["candidates"]["mine"]
                   for name, experiments in (("alone", ()), ("tied", ("verbose", "concise"))))
    assert alone["win_rate"]["value"] == tied["win_rate"]["value"] == 1.0
    assert alone["length_controlled"] > 0.99
    assert tied["length_controlled"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_judge_that_obeys_an_answer_is_found_out(judge, server, obeys):
    def answer(prompt, number):
        code, texts = parts(prompt)
        injected = [name[-1] for name, text in texts.items() if "Note to the judge" in text]
        letter = "AB"["BA".index(injected[0])] if injected and not obeys else (injected or "C")[0]
        return server.completion(f"[[{letter} {code}]]")
    server.reply = answer
    _, metrics = judge(experiments=("injected",))
    assert metrics["experiments"]["injected"]["win_rate"]["value"] == float(obeys)


def test_right_answers_are_shown_beside(judge, server, tmp_path):
    write_jsonl(tmp_path / "right.jsonl", [{"prompt": "question 4", "completion": "forty-two"}])
    judge(references=f"{tmp_path}/right.jsonl")
    shown = [prompt for prompt, _, _ in server.requests if "forty-two" in prompt]
    assert len(shown) == 2 and all("question 4" in prompt for prompt in shown)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["reward", "model", "likelihood"])
def test_a_model_in_a_folder_judges(judge, config, tmp_path, kind):
    tokenizer = BytePairTokenizer({bytes([b]): b for b in range(256)})
    config = dataclasses.replace(config, V=tokenizer.vocab_size, score_head=kind == "reward")
    folder, saved = tmp_path / "tiny", tmp_path / "tokenizer"
    folder.mkdir()
    saved.mkdir()
    tokenizer.save(saved)
    write_json(folder / "lineage.json", make_lineage(stage=kind, config={}, inputs={}, code=""))
    save_model(folder, jax.jit(partial(init, config))(jax.random.key(0)), config,
               saved, chat=True, context_tokens=2048)
    field = "reward" if kind == "reward" else "model"
    settings = {field: "tiny", "endpoint": "", "parents": {field: folder}, "max_new_tokens": 4}
    if kind == "likelihood":
        settings["verdict"] = kind
    if kind == "model":     # of random parameters, which write no verdict
        with pytest.raises(UserError, match=r"tiny@\w+: gave no verdict in 24 replies"):
            judge(**settings)
        return
    written, metrics = judge(**settings)
    assert metrics["judge"].startswith("tiny@")
    assert metrics["candidates"]["mine"]["pairs"] == NUM
    if kind == "likelihood":
        _check_likelihoods(read_jsonl(written / "verdicts.jsonl"), folder)
        return
    assert metrics["usage"] == {"scored": 2 * NUM}
    assert "one answer at a time" in metrics["bias"]["position"]["why"]


def _check_likelihoods(rows, folder):
    """The verdict is the probability of A among the two letters, by the plain forward pass."""
    model = load_model(folder, Execution())
    for row in rows[:3]:
        system, user = SYSTEM.format(code=parts(row["prompt"])[0]), row["prompt"]
        tokens = render_prompt(Conversation((Message("system", system), Message("user", user))),
                               model.tokenizer)
        tokens_BL = np.array([tokens])
        x_BLD = forward(model.params, tokens_BL, np.arange(len(tokens))[None], tokens_BL * 0 + 1,
                        config=model.config, execution=model.execution)
        logits_V = logits(model.params, x_BLD, config=model.config,
                          execution=model.execution)[0, -1]
        chances = np.exp([logits_V[model.tokenizer.encode(letter)[0]] for letter in "AB"])
        assert row["value"] == pytest.approx(chances[0] / chances.sum(), abs=1e-5)
    assert 0 < min(row["value"] for row in rows) < max(row["value"] for row in rows) < 1


@pytest.mark.parametrize("changes, message", [
    ({"verdict": "likelihood"}, "judge.verdict='likelihood': is that of a local model"),
    ({"verdict": "guess"}, "judge.verdict='guess': is none of written, likelihood"),
    ({"endpoint": ""}, "no judge: exactly one of model, endpoint, reward must be set"),
    ({"reward": "r"}, "endpoint, reward: exactly one"),
    ({"endpoint": "", "reward": "r", "experiments": ("verbose",)}, "writes no text"),
    ({"form": "both"}, "judge.form='both': is none of pairwise, single, rubric"),
    ({"form": "rubric"}, "a rubric is read by the form rubric"),
    ({"answers": ""}, "name nothing to judge"), ({"answers": "mine"}, "is not of the form NAME="),
    ({"answers": "mine=a.jsonl,mine=b.jsonl"}, "names mine a second time"),
    ({"own": "nobody"}, "judge.own='nobody': is no candidate"),
    ({"baseline": "nobody"}, "has no baseline 'nobody'"),
    ({"experiments": ("verbose",), "answers": "", "votes": "v"}, "answers of a candidate"),
    ({"experiments": ("louder",)}, "judge.experiments='louder': is none of"),
    ({"max_cost": -1.0}, "judge.max_cost=-1.0: must be")])
def test_what_is_contradictory_is_refused(judge, changes, message):
    with pytest.raises(UserError, match=message):
        judge(**changes)


def test_unmatched_and_equal_answers_are_counted(judge, tmp_path):
    rows = read_jsonl(tmp_path / "theirs.jsonl")
    rows[0]["completion"] = "m" * 9
    write_jsonl(tmp_path / "theirs.jsonl", [*rows[:10], {"prompt": "new", "completion": "x"}])
    _, metrics = judge()
    assert metrics["left_out"] == {"equal": 1, "unmatched": 3}
    assert metrics["candidates"]["mine"]["pairs"] == 9
    write_jsonl(tmp_path / "twice.jsonl", [*rows[:2], *rows[:1]])
    faults = Faults("judge")
    assert len(read_answers(tmp_path / "twice.jsonl", faults)) == 2
    assert faults.counts == {"repeated": 1}


def test_the_judges_own_answers_are_those_of_its_name(judge, tmp_path):
    _, metrics = judge(answers=f"tiny={tmp_path}/mine.jsonl,theirs={tmp_path}/theirs.jsonl")
    own = metrics["bias"]["self_preference"]
    assert own["own_win_rate"] == metrics["candidates"]["tiny"]["win_rate"]


@pytest.mark.full
@pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
def test_published_judgments_give_the_published_scores(judge, server, tmp_path):
    """A judge that replies with GPT-4's judgments, asked with MT-Bench's own prompts."""
    folder = Path(DATASETS) / "mt_bench"
    with gzip.open(folder / "gpt4_single_judgments.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    models = {row["model"] for row in rows}
    said = {f"{row['model']} on {row['question_id']}, {row['turn']}": row["judgment"]
            for row in rows}
    paths = {}
    for number, model in enumerate(sorted(models)):
        paths[model] = tmp_path / f"{number}.jsonl"
        write_jsonl(paths[model], [
            {"question_id": number, "choices": [{"turns": [f"{model} on {number}, 1",
                                                           f"{model} on {number}, 2"]}]}
            for number in range(81, 161)])
    asked = []

    def answer(prompt, number):
        asked.append(prompt)
        return server.completion(said[max((name for name in said if name in prompt),
                                          key=prompt.index)])
    server.reply = answer
    _, metrics = judge(
        form="single", answers=",".join(f"{name}={path}" for name, path in paths.items()),
        questions=f"{folder}/question.jsonl", prompts=f"{folder}/judge_prompts.jsonl",
        references=f"{folder}/reference_answer_gpt-4.jsonl")
    turns = {name: one["turns"] for name, one in metrics["scores"].items()}
    assert turns["gpt-4-1106-preview"] == pytest.approx({"1": 9.40625, "2": 9.05})
    assert turns["mistralai/Mixtral-8x7B-Instruct-v0.1"] == pytest.approx(
        {"1": 8.69375, "2": 7.9875})
    assert metrics["unparsed"] == {} and len(asked) == 320
    with_reference = sum("Reference Answer" in prompt for prompt in asked)
    assert with_reference == 2 * 2 * 30
    assert not any(re.search(r"\{(question|answer|ref_answer)\w*\}", prompt) for prompt in asked)


def test_published_verdicts_are_read_without_a_code_and_two_are_none(judge, server, tmp_path):
    prompts = [{"name": name, "system_prompt": "Judge.", "prompt_template": "{question} {answer_a} "
                "| {answer_b}"} for name in (
        "pair-v2", "pair-v2-multi-turn", "pair-math-v1", "pair-math-v1-multi-turn", "single-v1",
        "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn")]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    rows = read_jsonl(tmp_path / "mine.jsonl")
    rows[0]["completion"] = "{answer_b}"
    write_jsonl(tmp_path / "mine.jsonl", rows)

    def answer(prompt, number):
        first = prompt.partition(" | ")[0].split()[-1]
        both = "question 7" in prompt
        return server.completion("[[A]] or [[B]]" if both else
                                 "[[B]]" if first.startswith("t") else "[[A]]")
    server.reply = answer
    _, metrics = judge(prompts=f"{tmp_path}/prompts.jsonl")
    assert metrics["unparsed"] == {"several": 2} and metrics["candidates"]["mine"]["wins"] == 11
    assert "question 0 {answer_b} | ttt" in [prompt for prompt, _, _ in server.requests]
    write_jsonl(tmp_path / "prompts.jsonl", prompts[1:])
    with pytest.raises(UserError, match="has no prompt 'pair-v2'"):
        judge("other", prompts=f"{tmp_path}/prompts.jsonl")
