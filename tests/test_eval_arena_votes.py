"""Votes of the arena: reading, order and quality, style, next pairs, the report, real battles."""

import csv
import datetime
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from core.artifacts import ROOT, read_json, write_jsonl
from core.errors import UserError
from data.chat import Conversation, Message
from data.layouts.faults import Faults
from data.preferences import Preference, write_preferences
from eval.agreement import Bootstrap, measure_file
from eval.arena.__main__ import rate_file
from eval.arena.ballots import count_ballots
from eval.arena.bradley_terry import PRIOR_TIES, fit
from eval.arena.quality import find_repeated, measure_order, measure_voters
from eval.arena.report import Settings, make_report
from eval.arena.sampling import information_gains, pair_probabilities
from eval.arena.style import Penalty, fit_style, measure_style, style_differences
from eval.arena.votes import read_votes
from tests.arena_peers import arena_rank_variances, fastchat_ratings

FEW = Settings(num_samples=40)
STYLES = ("words", "header", "list", "bold")


def battle(one, other, winner="model_a", **fields):
    return {"model_a": one, "model_b": other, "winner": winner, **fields}


def read(path, rows):
    """Votes of rows, and what was left out."""
    write_jsonl(path, rows)
    faults = Faults("arena")
    return read_votes(path, faults), faults.counts


@pytest.fixture
def path(tmp_path):
    return tmp_path / "votes.jsonl"


# --- reading -------------------------------------------------------------------------------------

@pytest.mark.parametrize("line, reason", [
    ("{not json", "broken_line"), ("[1]", "broken_line"), ('"model_a"', "broken_line"),
    ('{"winner": "model_a"}', "no_models"),
    ('{"model_a": "a", "winner": "model_a"}', "broken_models"),
    ('{"model_a": "a", "model_b": " ", "winner": "tie"}', "broken_models"),
    ('{"models": ["a", 3], "ranks": [1, 2]}', "broken_models"),
    ('{"models": ["a"], "ranks": [1]}', "broken_models"),
    ('{"model_a": "a", "model_b": "b", "winner": "c"}', "unknown_vote"),
    ('{"model_a": "a", "model_b": "b", "winner": ["a"]}', "unknown_vote"),
    ('{"model_a": "a", "model_b": "b"}', "unknown_vote"),
    ('{"model_a": "a", "model_b": "b", "score": -1}', "no_verdict"),
    ('{"model_a": "a", "model_b": "b", "score": 4}', "unknown_vote"),
    ('{"model_a": "a", "model_b": "a", "winner": "model_a"}', "same_model"),
    ('{"models": ["a", "b"], "ranks": [1]}', "broken_ranks"),
    ('{"models": ["a", "b"], "ranks": [0, 1]}', "broken_ranks"),
    ('{"models": ["a", "b"], "ranks": [true, 1]}', "broken_ranks"),
    ('{"models": ["a", "b"], "ranks": null}', "not_voted"),
    ('{"models": ["a", "b"], "ranks": [null, null]}', "not_voted"),
    ('{"meta": {"models": ["a", "b"]}, "ranks": null}', "not_voted"),
    ('{"models": ["a", "b"], "ranks": [1, 2], "responses": ["one"]}', "broken_responses"),
    ('{"model_a": "a", "model_b": "b", "winner": "tie", "time": "soon"}', "broken_time"),
    ('{"model_a": "a", "model_b": "b", "winner": "tie", "secs": NaN}', "broken_secs"),
    ('{"model_a": "a", "model_b": "b", "winner": "tie", "id": 7}', "repeated_id")])
def test_lines_that_are_no_votes_are_counted_by_reason(path, line, reason):
    good = battle("a", "b", id=7)
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    faults = Faults("arena")
    votes = read_votes(path, faults)
    assert votes.num_votes == 1 and faults.counts == {reason: 1}


@pytest.mark.parametrize("text", ["", "\n\n", "{}\n", '{"models": ["a", "b"], "ranks": null}\n'])
def test_a_file_without_a_vote_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=r"holds no vote.*: write lines like"):
        read_votes(path, Faults("arena"))


def test_of_votes_with_one_id_the_first_is_kept(path):
    votes, left_out = read(path, [battle("a", "b", id="x"), battle("a", "b", "model_b", id="x"),
                                  battle("a", "b", "tie", id="y")])
    assert votes.scores.tolist() == [1.0, 0.5] and left_out == {"repeated_id": 1}


@pytest.mark.parametrize("row, scores, num_same", [
    (battle("x", "y", "tie (bothbad)"), [0.5], 0),
    ({"model_a": "x", "model_b": "y", "score": 2}, [0], 0),
    ({"models": ["x", "y", "z"], "ranks": [2, 1, 2]}, [0, 0.5, 1], 0),
    ({"models": ["x", "y", "x"], "ranks": [1, 2, 3]}, [1, 1], 1)])
def test_votes_and_rankings_become_comparisons(path, row, scores, num_same):
    votes, _ = read(path, [row])
    assert votes.scores.tolist() == scores and set(votes.votes) == {0}
    assert votes.num_same_model == num_same


def test_preferences_of_a_labelling_page_are_votes(path):
    prompt = Conversation((Message("user", "Say hello."),))
    meta = {"models": ["m", "n"], "annotator": "p1", "secs": 9, "time": "2026-01-02T00:00:00+00:00",
            "category": "chat", "id": 4}
    answers = ("Hello.", "# Hi\n\n- **you**")
    write_preferences(path, [Preference(prompt, answers, (2, 1), meta=meta)])
    votes = read_votes(path, Faults("arena"))
    assert (votes.models, votes.annotators, votes.categories) == (("m", "n"), ("p1",), ("chat",))
    assert votes.scores.tolist() == [0.0] and votes.secs.tolist() == [9.0]
    assert votes.times.tolist() == [1767312000.0] and votes.items.tolist() == [0]
    assert votes.styles.tolist() == [[[1, 0, 0, 0], [4, 1, 1, 1]]]


def test_conversations_of_an_arena_are_votes(path):
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
             for text in ("one two", "three")]
    votes, _ = read(path, [battle("a", "b", conversation_a=turns[0], conversation_b=turns[1],
                                  tstamp=5.0, judge="arena_user_3")])
    assert votes.styles[0, :, 0].tolist() == [2, 1] and votes.annotators == ("arena_user_3",)
    assert votes.times.tolist() == [5.0] and votes.items.tolist() == [0]


def test_times_of_a_table_are_read(tmp_path):
    """Without a zone they are of UTC."""
    moment = datetime.datetime(2026, 1, 2)
    rows = [battle("a", "b", timestamp=moment), battle("a", "b", timestamp=moment)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "votes.parquet")
    votes = read_votes(tmp_path / "votes.parquet", Faults("arena"))
    assert votes.times.tolist() == [1767312000.0] * 2


# --- order and quality ---------------------------------------------------------------------------

def test_order_bias_is_counted_by_hand(path):
    """Three items in both orders: one consistent, one not, one of two ties; and a fourth once."""
    votes, _ = read(path, [
        battle("a", "b", prompt="1"), battle("b", "a", "model_b", prompt="1"),
        battle("a", "b", prompt="2"), battle("b", "a", prompt="2"),
        battle("a", "b", "tie", prompt="3"), battle("b", "a", "tie", prompt="3"),
        battle("a", "b", prompt="4")])
    found = measure_order(votes)
    assert (found["first_shown"]["wins"], found["first_shown"]["num"]) == (4, 5)
    assert (found["consistency"]["same"], found["consistency"]["num"]) == (2, 3)
    assert found["first_shown"]["low"] < 0.8 < found["first_shown"]["high"]


def test_what_is_not_known_is_none(path):
    votes, _ = read(path, [battle("a", "b", "tie")])
    report = make_report(votes, FEW)
    assert report["order"] == {"first_shown": None, "consistency": None}
    assert report["style"] is None and report["categories"] == {}
    assert report["quality"]["repeated"] is None and report["quality"]["instant"] is None
    assert report["quality"]["agreement"] is None and report["over_time"]["by"] == "file"


def test_repeated_and_instant_votes_are_counted_and_ratings_without_them_told(path):
    rows = [battle("a", "b", prompt=str(n), annotator="p", secs=20) for n in range(6)]
    rows += [battle("b", "a", prompt=str(n), annotator="q", secs=9) for n in range(3)]
    rows += [battle("a", "b", prompt="0", annotator="p", secs=8),         # the same again
             battle("b", "a", "model_b", prompt="0", annotator="p", secs=8),  # the other order
             battle("a", "b", prompt="0", secs=8), battle("a", "b", prompt="0", secs=8),  # whose?
             battle("a", "b", prompt="9", annotator="q", secs=0.5)]
    votes, _ = read(path, rows)
    assert np.flatnonzero(find_repeated(votes)).tolist() == [9]
    quality = make_report(votes, FEW)["quality"]
    assert (quality["repeated"], quality["instant"], quality["without_voter"]) == (1, 1, 2)
    assert quality["without"]["a"] == pytest.approx(1000 + 200 * math.log10(9 / 3))
    assert quality["largest_shift"] == pytest.approx(200 * math.log10(11 / 9))
    by_name = {row["voter"]: row for row in quality["voters"]}
    assert (by_name["p"]["votes"], by_name["p"]["repeated"], by_name["p"]["instant"]) == (8, 1, 0)
    assert by_name["q"]["first_frac"] == 1.0 and by_name["q"]["instant"] == 1


def label(prompt, ranks, annotator):
    return {"messages": [{"role": "user", "content": prompt}], "responses": ["yes", "no", "maybe"],
            "ranks": ranks, "meta": {"annotator": annotator, "models": ["a", "b", "c"]}}


def test_agreement_on_rankings_is_that_of_eval_agreement(path):
    rng = np.random.default_rng(0)
    rows = [label(f"q{n}", rng.permutation([1, 2, 3]).tolist() if rng.random() < 0.5
                  else [1, 1, 2], f"p{k}") for n in range(20) for k in range(4)]
    # The same again counts once, and who contradicts themselves not at all.
    rows += [rows[7], label("q0", [1, 2, 3], "p0"), label("q0", [3, 2, 1], "p0")]
    votes, _ = read(path, rows)
    ours = measure_voters(votes, Bootstrap(0, 50))
    theirs = measure_file(path, "choices", "category", Bootstrap(0, 50))
    assert ours["items"] == theirs["items_with_several"] == 60
    for name in ("raw", "fleiss_kappa"):
        assert ours[name] == pytest.approx(theirs[name])
    assert ours["krippendorff_alpha"] == pytest.approx(theirs["krippendorff_alpha"]["nominal"])
    voters = make_report(votes, FEW)["quality"]["voters"]
    assert {row["voter"]: row["agreement"] for row in voters} == pytest.approx(
        {name: found["value"] for name, found in theirs["annotators"].items()})


# --- style ---------------------------------------------------------------------------------------

def draw_styled(num, seed):
    """Votes that length decides as much as strength: 1.0 for its scaled difference."""
    rng = np.random.default_rng(seed)
    strengths = np.array([0.0, 0.3, 0.8])
    first = rng.integers(3, size=num)
    second = (first + rng.integers(1, 3, size=num)) % 3
    verbosity = 1 + 3 * np.stack([first, second], axis=1)
    measures = rng.integers(1, 400, size=(num, 2, 4)) * verbosity[:, :, None]
    measures[:, :, 3] = 0       # never differs
    styles = style_differences(measures[:, 0], measures[:, 1])
    p = expit(strengths[first] - strengths[second] + styles[:, 0])
    return first, second, (rng.random(num) < p).astype(float), styles


def test_differences_are_relative_and_of_one_size():
    first, second = np.array([[3.0, 0], [1, 0], [2, 0]]), np.array([[1.0, 0], [1, 0], [6, 0]])
    found = np.array([2 / 5, 0, -4 / 9])
    differences = style_differences(first, second)
    np.testing.assert_allclose(differences[:, 0], found / np.sqrt(np.mean(found**2)))
    assert not differences[:, 1].any()


def test_a_planted_effect_of_length_is_found_and_taken_out():
    votes = draw_styled(6000, seed=0)
    found = fit_style(*votes, 3, Penalty(0.0))
    np.testing.assert_allclose(found.ratings, 1000 + 400 / math.log(10) * (
        np.array([0.0, 0.3, 0.8]) - 1.1 / 3), atol=25)
    (low, high), others = found.coefficient_bounds[0], found.coefficient_bounds[1:3]
    assert low < 1.0 < high and high - low < 0.2
    assert (others[:, 0] < 0).all() and (others[:, 1] > 0).all()
    assert found.coefficients[3] == 0.0
    plain = fit(count_ballots(*votes[:3], np.arange(6000), 3)[0]).ratings()
    assert np.abs(plain - found.ratings).max() > 50


def test_the_reduction_decides_what_a_penalty_means():
    """A penalty on the mean is as many times stronger as there are comparisons."""
    votes = draw_styled(500, seed=1)
    by_sum, by_mean = (fit_style(*votes, 3, penalty).coefficients[0] for penalty in (
        Penalty(500.0, "sum"), Penalty(1.0, "mean")))
    assert by_sum == pytest.approx(by_mean, abs=1e-9)
    assert by_sum < 0.5 * fit_style(*votes, 3, Penalty(1.0, "sum")).coefficients[0]


def test_swapped_sides_leave_style_control_as_it_is():
    first, second, scores, styles = draw_styled(400, seed=2)
    swapped = np.arange(400) % 3 == 0
    found = fit_style(first, second, scores, styles, 3, Penalty())
    other = fit_style(np.where(swapped, second, first), np.where(swapped, first, second),
                      np.where(swapped, 1 - scores, scores),
                      np.where(swapped[:, None], -styles, styles), 3, Penalty())
    np.testing.assert_allclose(other.ratings, found.ratings, atol=1e-6)
    np.testing.assert_allclose(other.bounds, found.bounds, atol=1e-6)


def test_without_coefficients_style_control_is_the_plain_fit():
    first, second, scores, styles = draw_styled(400, seed=3)
    found = fit_style(first, second, scores, 0 * styles, 3, Penalty(0.0))
    plain = fit(count_ballots(first, second, scores, np.arange(400), 3)[0])
    np.testing.assert_allclose(found.ratings, plain.ratings(), atol=1e-6)
    np.testing.assert_allclose(found.bounds, plain.bounds(), atol=1e-6)


def test_style_control_is_fastchats():
    first, second, scores, styles = draw_styled(800, seed=4)
    found = fit_style(first, second, scores, styles, 3,
                      Penalty(0.5, "sum", 0.5 / math.log(10)**2))
    ratings, coefficients = fastchat_ratings(first, second, scores, 3, styles, reg=0.5)
    np.testing.assert_allclose(found.ratings, ratings, atol=0.05)
    np.testing.assert_allclose(found.coefficients, coefficients, atol=1e-3)


def test_votes_that_length_decides_alone_need_a_penalty():
    votes = (np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0]), np.array([1.0, 1.0, 0.0, 0.0]),
             np.array([[1.0], [1.0], [-1.0], [-1.0]]))
    with pytest.raises(UserError, match="--style_penalty=0: the loss has no minimum"):
        fit_style(*votes, 2, Penalty(0.0))
    assert fit_style(*votes, 2, Penalty(0.5)).coefficients[0] > 0.5


def test_a_model_that_always_wins_has_a_rating_at_equal_style(path):
    votes, _ = read(path, [{**row, "winner": "model_a"} for row in many(60)])
    style = make_report(votes, FEW)["style"]
    assert style["penalty"]["strengths"] == 0.0
    always = [row | {"winner": "model_a" if row["model_a"] == "a" else "model_b"} for row in
              many(60) if "a" in (row["model_a"], row["model_b"])]
    style = make_report(read(path, always)[0], FEW)["style"]
    assert style["penalty"]["strengths"] == PRIOR_TIES / 4
    best = style["ratings"]["a"]
    assert 1100 < best["rating"] < 2500 and best["high"] - best["low"] > 200
    assert style["interval"] == "posterior"


def test_style_is_counted_outside_of_code():
    text = "# Title\n\nSome **bold** and __more__.\n- one\n 2. two\n```\n# no\n- no **no**\n```\n"
    assert measure_style(text) == (17, 1, 2, 2)


# --- next pairs, parts and the page --------------------------------------------------------------

def test_the_gain_of_a_vote_is_that_of_the_determinant():
    strengths = np.array([0.5, -0.2, -0.3, 0.0])
    rows = [(0, 1)] * 30 + [(1, 2)] * 4         # of the last model there is no vote
    first, second = map(np.array, zip(*rows))
    ballots, _ = count_ballots(first, second, np.ones(len(rows)), np.arange(len(rows)), 4)
    gains = information_gains(ballots, strengths)

    def log_det(pairs):
        information = PRIOR_TIES * np.diag(expit(strengths) * expit(-strengths))
        for i, j in pairs:
            x = np.eye(4)[i] - np.eye(4)[j]
            p = expit(strengths[i] - strengths[j])
            information = information + p * (1 - p) * np.outer(x, x)
        return np.linalg.slogdet(information)[1]

    for i, j in [(0, 1), (1, 2), (0, 2), (1, 3)]:
        more = (log_det([*rows, (i, j)]) - log_det(rows)) / 2
        assert gains[i, j] == pytest.approx(more) and gains[j, i] == gains[i, j]
    shares = pair_probabilities(gains)
    assert not np.tril(shares).any()
    assert shares.sum() == pytest.approx(1) and 3 in np.unravel_index(shares.argmax(), (4, 4))
    assert shares[0, 1] == np.min(shares[np.triu_indices(4, 1)])


def many(num=240):
    """Votes of three models by two voters in two categories, with times against the file's order.
    """
    rng = np.random.default_rng(6)
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    return [battle(*pairs[n % 3], ("model_a", "model_b", "tie")[rng.integers(3)], time=1000 - n,
                   id=n, annotator=f"p{n % 2}", category=("x", "y")[n // 2 % 2], prompt=f"{n // 6}",
                   **{f"{name}_{side}": int(rng.integers(90)) for name in STYLES for side in "ab"})
            for n in range(num)]


def test_parts_are_rated_as_files_of_their_own(path):
    votes, _ = read(path, many())
    report = make_report(votes, FEW)
    ratings = {row["model"]: row["rating"] for row in report["models"]}
    last = {name: values[-1] for name, values in report["over_time"]["ratings"].items()}
    assert last == pytest.approx(ratings) and report["over_time"]["by"] == "time"
    for name, found in report["categories"].items():
        alone, _ = read(path, [row for row in many() if row["category"] == name])
        own = {row["model"]: row["rating"] for row in make_report(alone, FEW)["models"]}
        assert {m: one["rating"] for m, one in found["ratings"].items()} == pytest.approx(own)
    first, _ = read(path, many()[-10:])     # the earliest in time are the last of the file
    early = {row["model"]: row["rating"] for row in make_report(first, FEW)["models"]}
    assert {name: values[0] for name, values in report["over_time"]["ratings"].items()} == \
        pytest.approx(early)


def test_elo_follows_time_and_not_the_file(path):
    one, _ = read(path, many())
    other, _ = read(path, many()[::-1])
    elos = [{row["model"]: row["elo"] for row in make_report(votes, FEW)["models"]}
            for votes in (one, other)]
    assert elos[0] == pytest.approx(elos[1])
    assert sum(elos[0].values()) == pytest.approx(3000)


def test_the_command_writes_a_report_and_a_page(path, tmp_path):
    rows = many()
    name = "<b>worst & best</b>"
    rows += [battle(name, "a", "tie"), battle("z", "z"), battle("u", "v")]
    path.write_text("nonsense\n" + "".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run([sys.executable, "-m", "eval.arena", str(path),
                           f"--out={tmp_path / 'out'}", "--num_samples=20", "--anchor=a=1100"],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["left_out"] == {"broken_line": 1, "same_model": 1}
    assert result["ratings"]["a"] == 1100 and result["unrated"] == ["z"]
    assert result["votes"] == 242 and result["components"] == 2
    report = read_json(tmp_path / "out" / "arena.json")
    assert {row["model"] for row in report["models"]} == {"a", "b", "c", "u", "v", name}
    page = (tmp_path / "out" / "arena.html").read_text()
    assert "&lt;b&gt;worst &amp; best&lt;/b&gt;" in page and name not in page
    assert "ratings compare only within it" in page and "Next votes" in page


@pytest.mark.parametrize("words, message", [
    (["votes.jsonl", "--out=x", "--anchor=a=nan"], "--anchor='a=nan': is not of the form"),
    (["none.jsonl", "--out=x"], "none.jsonl: no such file: correct the name")])
def test_the_command_refuses_in_one_line(words, message, tmp_path):
    done = subprocess.run([sys.executable, "-m", "eval.arena", *words], capture_output=True,
                          text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


# --- real battles --------------------------------------------------------------------------------

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
needs_datasets = pytest.mark.skipif(not DATASETS, reason="HEARTWOOD_DATASETS is not set")


def judged():
    """Rows of the battles, as columns of texts."""
    with gzip.open(Path(DATASETS) / "judge_battles" / "battles_vicuna.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
@needs_datasets
def test_battles_by_a_judge_have_the_ratings_of_fastchat_and_arena_rank(tmp_path):
    file = Path(DATASETS) / "judge_battles" / "battles_vicuna.csv.gz"
    result = rate_file(file, tmp_path, Settings())
    rows = [row for row in judged() if row["score"] != "-1"]
    assert result["votes"] == len(rows) and result["left_out"] == {"no_verdict": 4480 - len(rows)}
    report = read_json(tmp_path / "arena.json")
    names = sorted({row["model_a"] for row in rows})
    first, second = (np.array([names.index(row[side]) for row in rows])
                     for side in ("model_a", "model_b"))
    scores = np.array([{"1": 1.0, "2": 0.0, "3": 0.5}[row["score"]] for row in rows])
    by_name = {row["model"]: row for row in report["models"]}
    theirs, _ = fastchat_ratings(first, second, scores, len(names))
    ours = np.array([by_name[name]["rating"] for name in names])
    assert np.abs(ours - theirs).max() < 0.05
    half = 1.959963984540054 * 400 / math.log(10) * np.sqrt(arena_rank_variances(
        first, second, scores, (theirs - 1000) / 400 * math.log(10)))
    for end, sign in (("low", -1), ("high", 1)):
        bounds = np.array([by_name[name][end] for name in names])
        assert np.abs(bounds - theirs - sign * half).max() < 0.1
    assert report["order"]["first_shown"]["wins"] == 2512
    assert report["order"]["first_shown"]["num"] == 2512 + 1355
    verdicts = {(row["question_id"], row["model_a"], row["model_b"]): score
                for row, score in zip(rows, scores)}
    both = [(score, 1 - verdicts[question, b, a]) for (question, a, b), score in verdicts.items()
            if a < b and (question, b, a) in verdicts]
    found = report["order"]["consistency"]
    assert found["num"] == len(both)
    assert found["same"] == sum(one == other for one, other in both)


@pytest.mark.full
@needs_datasets
def test_style_of_the_answers_is_counted_as_beside_the_battles():
    with gzip.open(Path(DATASETS) / "judge_battles" / "vicuna_answers.jsonl.gz", "rt") as file:
        answers = {(row["model"], str(row["question_id"])): measure_style(row["answer"])
                   for row in map(json.loads, file)}
    for row in judged():
        for side in "ab":
            given = tuple(int(row[f"{name}_{side}"]) for name in STYLES)
            assert answers[row[f"model_{side}"], row["question_id"]] == given
