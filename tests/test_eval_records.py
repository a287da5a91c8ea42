"""Records of items, the scores that follow from them, and what looks into them."""

import json
import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.common import make_eval
from core.artifacts import write_json, write_jsonl
from core.errors import UserError
from data.chat import ask
from data.tokenizers.bpe import BytePairTokenizer
from eval.inspect import describe_choice, diff, items, with_bars
from eval.measures.choices import ChoiceScore
from eval.records import MASS, choice_record, summarise_answers, summarise_choices, verdict
from eval.run import _check_settings, complete_command
from eval.suite_page import write_suite_page
from eval.tasks.task import Choice


def _record(number, logps, answer, *, group="", choices=("yes", "maybe")):
    question = Choice(ask(f"Question {number}?", id=f"t/{number}", group=group), choices, answer,
                      (f"Question {number}?\nAnswer:",))
    score = ChoiceScore(question.contexts, logps, (1,) * len(logps), tuple(map(len, choices)),
                        tuple(map(len, choices)), (True,) * len(logps), (), (answer,))
    return choice_record(question, score, number, "raw")


RECORDS = [_record(0, (-1.0, -2.0), 0, group="a"), _record(1, (-1.0, -2.0), 1, group="a"),
           _record(2, (-3.0, -2.0), 1, group="b"), _record(3, (-2.0, -4.5), 0, group="b")]


def test_scores_of_choices_follow_from_their_records():
    metrics = summarise_choices(RECORDS)
    assert metrics["acc"] == metrics["acc_raw"] == 3 / 4
    # Per character: -1/3 beats -2/5, -3/3 loses to -2/5, and -2/3 to -4.5/5.
    assert metrics["acc_norm"] == 3 / 4 and "acc_pmi" not in metrics
    assert metrics["low"] < 3 / 4 < metrics["high"] and metrics["items"] == 4
    assert metrics["chance"] == 1 / 2 and metrics["cut"] == 0
    assert metrics["macro"] == pytest.approx((1 / 2 + 1) / 2) and metrics["groups"] == 2
    right = 1 / (1 + math.exp(-1))
    briers = [2 * (1 - right)**2, 2 * right**2, 2 * (1 - right)**2,
              2 * (1 - 1 / (1 + math.exp(-2.5)))**2]
    assert metrics["brier"] == pytest.approx(sum(briers) / 4)
    json.loads(json.dumps(RECORDS))     # plain data


def test_of_single_options_there_is_a_perplexity():
    records = [_record(n, (logp,), 0, choices=("word",)) for n, logp in enumerate((-1.0, -2.0))]
    metrics = summarise_choices(records)
    assert metrics["acc"] == 1.0 and metrics["ppl"] == pytest.approx(math.exp(1.5))
    assert metrics["chance"] == 0 and "brier" not in metrics
    assert metrics["low"] > 0.3, "two right answers are no certainty"


def test_unparsed_and_refused_answers_count_as_wrong_and_are_counted():
    rows = [{"score": score, "family": family, "finish": finish, "extracted": extracted,
             "measures": {"strict": score}} for score, family, finish, extracted in
            ((1.0, "a", "stop", "18"), (0.0, "a", "length", None), (0.0, "b", "refused", None))]
    metrics = summarise_answers(rows)
    assert metrics["acc"] == metrics["strict"] == pytest.approx(1 / 3)
    assert (metrics["unparsed"], metrics["unfinished"], metrics["refused"]) == (2, 1, 1)
    assert metrics["by_family"] == {"a": 0.5, "b": 0.0}


def test_a_model_alone_stands_for_a_whole_command():
    words = complete_command(["run", "--model=models/mine", "--config.eval.tasks.turns=5"])
    given = dict(word.lstrip("-").split("=", 1) for word in words[1:])
    assert given["config.eval.model"] == str(Path("models/mine").absolute())
    assert given["config.eval.out"] == "mine" and given["workdir"] == "runs/eval"
    assert given["config"].endswith("configs/eval.py") and given["config.eval.tasks.turns"] == "5"
    kept = complete_command(["run", "--model=m", "--config=c.py", "--workdir=w",
                             "--config.eval.out=x"])
    assert {"--config=c.py", "--workdir=w", "--config.eval.out=x"} <= set(kept)
    assert len(kept) == 5
    for command in (words, kept):       # ml_collections wants a config before its fields
        names = [word.partition("=")[0] for word in command]
        assert names.index("--config") < min(n for n, name in enumerate(names)
                                             if name.startswith("--config."))
    plain = ["run", "--config=configs/quickstart.py"]
    assert complete_command(plain) == plain


def test_evaluations_under_other_settings_are_not_compared(tmp_path):
    section = make_eval(against="other", open_tasks=dict(turns=5))
    theirs = section.to_dict()
    write_json(tmp_path / "lineage.json", {"layout": 2, "config": {"eval": theirs}})
    _check_settings(section, tmp_path)
    write_json(tmp_path / "lineage.json",
               {"layout": 2, "config": {"eval": theirs | {"temperature": 1.5}}})
    with pytest.raises(UserError, match=r"against='other': was evaluated with temperature=1.5"):
        _check_settings(ConfigDict(section), tmp_path)


@pytest.fixture
def evaluations(tmp_path):
    """Two evaluations of a task, of which the second is right where the first is wrong."""
    folders = []
    for name, records in (("first", RECORDS),
                          ("second", [_record(n, (-2.0, -1.0), 1) for n in range(4)])):
        folder = tmp_path / name
        folder.mkdir()
        write_jsonl(folder / "t.jsonl", records)
        scores = {f"t_{key}": value for key, value in summarise_choices(records).items()}
        write_json(folder / "metrics.json", {"tasks": ["t"], **scores})
        write_json(folder / "lineage.json", {
            "layout": 2, "config": {"eval": make_eval().to_dict()}, "inputs": {"tasks.t": "abc"},
            "versions": {"jax": "1"}, "python": "3", "platform": "p"})
        folders.append(folder)
    return folders


def test_two_evaluations_are_compared_item_by_item(evaluations, capsys):
    found = diff(*evaluations, None, 5)["tasks"]["t"]
    assert (found["items"], found["first_only"], found["second_only"]) == (4, 0, 1)
    assert found["difference"] == -1 / 4 and found["low"] < -1 / 4 < found["high"]
    assert "t/1  0 / 1  Question 1?" in capsys.readouterr().out
    wrong = items(evaluations[0], "t", "wrong", 5)
    assert wrong["shown"] == ["t/1"] and wrong["of"] == 4
    for call, message in ((lambda: items(evaluations[0], "u", "all", 1), "is none of those of"),
                          (lambda: diff(*evaluations, "u", 1), "have not both the task 'u'"),
                          (lambda: items(evaluations[0].parent, "t", "all", 1), "no evaluation")):
        with pytest.raises(UserError, match=message):
            call()


def test_items_that_were_asked_in_other_words_are_not_compared(evaluations):
    first, second = evaluations
    write_jsonl(second / "t.jsonl", [{**record, "contexts": ["Other words:"]}
                                     for record in RECORDS])
    with pytest.raises(UserError, match="was asked with other prompts"):
        diff(first, second, None, 1)


def test_the_suite_page_leads_to_every_item(evaluations, tmp_path):
    page = tmp_path / "suite.html"
    assert write_suite_page(evaluations, page)["items"] == 8
    text = page.read_text()
    assert "75.0 %" in text and 'href="suite/first-t.html"' in text
    behind = (tmp_path / "suite" / "first-t.html").read_text()
    assert behind.count("<details") == 4 and "Question 1?" in behind
    assert "http:" not in text.replace("http://www.w3.org", "")


def test_a_verdict_is_of_the_way_that_the_task_judges_by():
    record = _record(0, (-2.0, -2.4), 1, choices=("yes", "maybe so"))
    assert verdict(record) == 0 and verdict({**record, "judged_by": "char"}) == 1


def test_an_item_is_shown_token_by_token():
    """Of several contexts each once, and which option follows which; without a baseline."""
    letters = BytePairTokenizer({bytes([b]): b for b in range(256)})
    assert with_bars(letters.encode("a b"), letters) == "a| |b"
    question = Choice(ask("_ sat", id="t/0"), (" sat", " sat"), 1, ("He", "It"))
    score = ChoiceScore(question.contexts, (-3.0, -2.0), (4, 4), (3, 3), (3, 3), (False, True), (),
                        (1,))
    lines = list(describe_choice(choice_record(question, score, 0, "raw"), letters))
    assert [line for line in lines if line.startswith("<|bos|>")] == ["<|bos|>|H|e", "<|bos|>|I|t"]
    assert any(line.startswith("*    -2.0000 nats    4 tokens  after 2   |s|a|t") for line in lines)
    assert lines[-1].startswith("acc_raw right")


def test_the_mass_of_all_right_options_can_be_what_counts():
    """TruthfulQA's MC2 of three options, two of them right."""
    record = _record(0, (-1.0, -2.0, -3.0), 0, choices=("a", "b", "c"))
    record |= {"answers": (0, 2), "judged_by": MASS}
    shares = [math.exp(-1), math.exp(-2), math.exp(-3)]
    assert verdict(record) == pytest.approx((shares[0] + shares[2]) / sum(shares))
