"""Agreement between annotators: published examples, parity, invariances, conflicts, messages."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from core.artifacts import ROOT, read_jsonl, write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from eval.agreement import Bootstrap, measure_file
from eval.measures.agreement import (
    LEVELS,
    agreement_with_others,
    cohen_kappa,
    count_values,
    fleiss_kappa,
    flip_rate,
    krippendorff_alpha,
    raw_agreement,
)
from eval.measures.annotations import merge_repeats, read_ratings
from eval.statistics import bootstrap_interval

NONE = math.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): section C, four observers.
FOUR_OBSERVERS = np.array([[1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
                           [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
                           [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
                           [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE]]).T
# Fleiss (Psychological Bulletin 76, 1971), table 1: 30 patients, six psychiatrists each, by
# diagnosis: depression, personality disorder, schizophrenia, neurosis, other.
DIAGNOSES = np.array([[int(digit) for digit in f"{row:05d}"] for row in (
    60, 3003, 1401, 6, 3030, 20400, 402, 20310, 20040, 6, 10050, 11040, 3300, 10050, 2031,
    501, 30012, 51000, 2040, 10203, 6, 1050, 2013, 20040, 10041, 5010, 40002, 2040, 10500, 6)])


def counts_of(table):
    """Counts and values of a table [items, annotators], NaN where there is no rating."""
    items, annotators = np.nonzero(~np.isnan(table))
    values, codes = np.unique(table[items, annotators], return_inverse=True)
    return count_values(items, codes, len(values)), values


def planted_table(num_items=60, num_annotators=5):
    """Ratings from 0 to 3, about 60 % of them the item's own value and a tenth missing."""
    table = np.full((num_items, num_annotators), NONE)
    for i in range(num_items):
        for a in range(num_annotators):
            noise = (i * 31 + a * 17 + i * a * 13) % 10
            if (i * 3 + a * 5) % 11:
                table[i, a] = i * 7 % 4 if noise < 6 else (i * 7 + noise) % 4
    return table


# --- golden values ---------------------------------------------------------------------------

@pytest.mark.parametrize("level, alpha", [
    ("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_four_observers_is_krippendorffs(level, alpha):
    assert krippendorff_alpha(*counts_of(FOUR_OBSERVERS), level) == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("first, second, alpha", [
    ("0100000010", "1110010000", 0.095), ("aabbdcccedda", "babbbccceddd", 0.692)])
def test_alpha_of_two_observers_is_krippendorffs(first, second, alpha):
    """Sections A and B of the same text."""
    table = np.array([[ord(letter) for letter in given] for given in (first, second)], float).T
    assert krippendorff_alpha(*counts_of(table), "nominal") == pytest.approx(alpha, abs=5e-4)


def test_kappa_of_diagnoses_is_fleiss():
    assert DIAGNOSES.shape == (30, 5) and set(DIAGNOSES.sum(axis=1)) == {6}
    assert raw_agreement(DIAGNOSES) == pytest.approx(0.5556, abs=5e-5)
    assert fleiss_kappa(DIAGNOSES) == pytest.approx(0.43024452006014074, abs=1e-12)


def test_kappa_of_two_judges_is_cohens():
    """Cohen (Educational and Psychological Measurement 20, 1960): 200 cases, kappa .492."""
    table = [[88, 10, 2], [14, 40, 6], [18, 10, 12]]
    cells = [(i, j) for i in range(3) for j in range(3) for _ in range(table[i][j])]
    assert cohen_kappa(*zip(*cells)) == pytest.approx(0.29 / 0.59, abs=1e-12)


@pytest.mark.parametrize("level, alpha", [       # of krippendorff 0.9.0
    ("nominal", 0.42085519316138986), ("ordinal", 0.4425053789537111),
    ("interval", 0.44117407723861435)])
def test_alpha_with_missing_ratings_has_parity(level, alpha):
    assert krippendorff_alpha(*counts_of(planted_table()), level) == pytest.approx(alpha, abs=1e-12)


def test_kappas_have_parity():
    """With scikit-learn 1.9.1, and with statsmodels 0.15.0 on the items that all rated."""
    table = planted_table()
    both = ~np.isnan(table[:, :2]).any(axis=1)
    assert both.sum() == 48
    assert cohen_kappa(table[both, 0], table[both, 1]) == pytest.approx(1 / 22, abs=1e-12)
    full, _ = counts_of(table[~np.isnan(table).any(axis=1)])
    assert fleiss_kappa(full) == pytest.approx(0.43192738921516294, abs=1e-12)


# --- meaning ---------------------------------------------------------------------------------

def test_alpha_of_few_distant_values_is_that_of_the_pairs_themselves():
    """Against the definition: mean squared difference within items over that of all ratings."""
    table = np.array([[1, 2, NONE], [5, 5, 9], [2, NONE, 2], [NONE, NONE, 7.0]])
    rated = [row[~np.isnan(row)] for row in table[:3]]
    within = sum(((row[:, None] - row)**2).sum() / (len(row) - 1) for row in rated)
    pooled = np.concatenate(rated)
    overall = ((pooled[:, None] - pooled)**2).sum() / (len(pooled) - 1)
    alpha = krippendorff_alpha(*counts_of(table), "interval")
    assert alpha == pytest.approx(1 - within / overall, abs=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_depends_on_no_order_and_on_no_scale(level):
    table = planted_table()
    alpha = krippendorff_alpha(*counts_of(table), level)
    for other in (table[::-1], table[:, ::-1], 10 - 3 * table):
        assert krippendorff_alpha(*counts_of(other), level) == pytest.approx(alpha, abs=1e-12)
    cubed = krippendorff_alpha(*counts_of(table**3), level)
    assert (abs(cubed - alpha) < 1e-12) == (level != "interval")


def test_agreement_is_1_where_all_agree_and_undefined_where_nobody_can_disagree():
    perfect = np.array([[3, 0], [0, 3]])
    assert raw_agreement(perfect) == fleiss_kappa(perfect) == 1
    assert krippendorff_alpha(perfect, [0, 1], "nominal") == cohen_kappa([0, 1], [0, 1]) == 1
    constant, lonely = np.array([[3, 0], [2, 0]]), np.array([[1, 0], [0, 1]])
    for counts in (constant, lonely):
        assert math.isnan(fleiss_kappa(counts))
        assert math.isnan(krippendorff_alpha(counts, [0, 1], "nominal"))
    assert math.isnan(cohen_kappa([1, 1], [1, 1])) and math.isnan(cohen_kappa([], []))
    assert raw_agreement(constant) == 1 and math.isnan(raw_agreement(lonely))


def test_a_planted_flip_rate_is_found():
    rng, num = np.random.default_rng(0), 20_000
    flipped = rng.random((num, 3)) < 0.2
    labels = (rng.random((num, 1)) < 0.7) ^ flipped
    counts, _ = counts_of(labels.astype(float))
    assert flip_rate(raw_agreement(counts)) == pytest.approx(0.2, abs=0.01)
    assert flip_rate(1.0) == 0 and flip_rate(0.5) == 0.5 and math.isnan(flip_rate(0.49))
    assert flip_rate(0.9**2 + 0.1**2) == pytest.approx(0.1, abs=1e-12)


def test_agreement_with_others_is_a_share_of_them():
    items, codes = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    shares = agreement_with_others(count_values(items, codes, 2), items, codes)
    np.testing.assert_array_equal(shares, [0.5, 0.5, 0, 1, 1, NONE])


def test_two_annotators_with_different_numbers_of_ratings_are_refused():
    with pytest.raises(UserError, match="one annotator has 2 and the other 1"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(UserError, match="level='ratio': is none of nominal, ordinal, interval"):
        krippendorff_alpha(np.array([[2]]), [0], "ratio")


# --- files -----------------------------------------------------------------------------------

def vote(number, annotator, rank, other_rank, *, is_turned=False):
    responses, ranks = [f"yes {number}", f"no {number}"], [rank, other_rank]
    if is_turned:
        responses, ranks = responses[::-1], ranks[::-1]
    return {"messages": [{"role": "user", "content": f"question {number}"}],
            "responses": responses, "ranks": ranks, "meta": {"annotator": annotator}}


def planted_votes(turned=lambda number: False, num=40):
    """Votes of three annotators, of whom c prefers the other response in every fourth item."""
    return [vote(number, name, *((2, 1) if (number % 2) ^ (name == "c" and number % 4 == 0)
                                 else (1, 2)), is_turned=turned(number + place))
            for number in range(num) for place, name in enumerate("abc")]


def measure(tmp_path, rows, subject="choices", ties="category", out=None, num_samples=100):
    path = tmp_path / "votes.jsonl"
    write_jsonl(path, rows)
    return measure_file(path, subject, ties, Bootstrap(0, num_samples), out)


def test_both_orders_of_a_pair_are_one_item(tmp_path):
    one = measure(tmp_path, planted_votes())
    assert one == measure(tmp_path, planted_votes(lambda place: place % 2 == 1))
    assert one["items"] == 40 and one["ratings"] == 120
    assert one["raw"]["value"] == pytest.approx((30 + 10 / 3) / 40)
    shares = {name: found["value"] for name, found in one["annotators"].items()}
    assert shares == pytest.approx({"a": 0.875, "b": 0.875, "c": 0.75})
    (ab,) = (pair for pair in one["cohen_kappa"] if pair["annotators"] == ["a", "b"])
    assert ab["value"] == 1 and ab["items"] == 40
    assert one["conflicts"] == {"within": 0, "between": 10}


def test_which_response_is_called_the_first_does_not_matter(tmp_path):
    """All prefer the response that sorts first: without both orders, chance would explain it."""
    rows = [vote(number, name, 2, 1) for number in range(9) for name in "ab"]
    found = measure(tmp_path, [*rows, vote(9, "a", 2, 1), vote(9, "b", 1, 2)])
    assert found["raw"]["value"] == 0.9
    assert found["fleiss_kappa"]["value"] == pytest.approx(0.8)
    assert found["cohen_kappa"][0]["value"] == pytest.approx(0.8)


def test_intervals_are_over_prompts_and_hold_the_value(tmp_path):
    found = measure(tmp_path, planted_votes())
    for name in ("raw", "fleiss_kappa", "flip_rate"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"], name
    three = [{"messages": [{"role": "user", "content": f"question {number}"}],
              "responses": ["x", "y", "z"], "ranks": ranks, "annotator": name}
             for number in range(8) for name, ranks in (("a", [1, 2, 3]), ("b", [1, 2, 3]),
                                                        ("c", [2, 1 + number % 2 * 2, 4]))]
    ranked = measure(tmp_path, three)
    assert (ranked["raw"]["items"], ranked["raw"]["prompts"]) == (24, 8), "all pairs of a ranking"
    by_prompt = np.array([7 / 9, 1] * 4)        # c exchanges the first two of every other ranking
    drawn = bootstrap_interval(lambda picked: by_prompt[picked].mean(), 8, seed=0, num_samples=100)
    assert (ranked["raw"]["low"], ranked["raw"]["high"]) == pytest.approx((drawn.low, drawn.high))


def test_ties_count_by_the_named_rule(tmp_path):
    rows = [vote(0, "a", 1, 2), vote(0, "b", 1, 1), vote(1, "a", 1, 1), vote(1, "b", 1, 1),
            vote(2, "a", 2, 1), vote(2, "b", 2, 1)]
    third = measure(tmp_path, rows)
    assert third["raw"]["value"] == pytest.approx(2 / 3) and third["raw"]["items"] == 3
    assert third["decided_agreement"]["items"] == 1 and third["flip_rate"]["value"] == 0
    dropped = measure(tmp_path, rows, ties="drop")
    assert dropped["raw"] == third["decided_agreement"]
    assert dropped["left_out"] == {"tie": 3} and third["left_out"] == {}


def test_who_contradicts_themselves_has_no_rating_and_is_listed(tmp_path):
    rows = [vote(0, "a", 1, 2), vote(0, "a", 1, 2, is_turned=True), vote(0, "b", 2, 1),
            vote(1, "a", 2, 1), vote(1, "a", 1, 2), vote(1, "b", 1, 2), vote(1, "c", 1, 2)]
    found = measure(tmp_path, rows, out=tmp_path / "conflicts.jsonl")
    assert found["repeated"] == 2 and found["conflicts"] == {"within": 1, "between": 1}
    assert found["raw"] | {"low": 0, "high": 0} == {"value": 0.5, "low": 0, "high": 0, "items": 2,
                                                    "prompts": 2}
    within, between = read_jsonl(tmp_path / "conflicts.jsonl")
    assert within["annotators"] == ["a"]
    assert [place.rpartition(", ")[2] for place in within["places"]] == ["line 4", "line 5"]
    assert between["kind"] == "between" and between["annotators"] == ["a", "b"]


def test_votes_of_an_arena_scores_and_labels_are_read(tmp_path):
    def arena(number, judge, winner):
        asked = {"role": "user", "content": f"question {number}"}
        return {"conversation_a": [asked, {"role": "assistant", "content": "yes"}],
                "conversation_b": [asked, {"role": "assistant", "content": "no"}],
                "winner": winner, "judge": judge}
    found = measure(tmp_path, [arena(number, judge, winner) for number, winner in enumerate(
        ("model_a", "model_b", "tie")) for judge in ("one", "two")])
    assert found["raw"]["value"] == 1 and set(found["annotators"]) == {"one", "two"}
    scored = [{"prompt": f"question {number}", "responses": ["yes", "no"], "annotator": name,
               "scores": [number, number + (name == "b")]}
              for number in range(5) for name in "ab"]
    found = measure(tmp_path, scored, "scores")
    assert found["items"] == 10 and found["raw"]["value"] == 0.5 and "flip_rate" not in found
    alphas = [found["krippendorff_alpha"][level]["value"] for level in LEVELS]
    assert alphas[0] < alphas[1] < 1 and alphas[0] < alphas[2] < 1
    labelled = [{"prompt": f"question {number}", "completion": "yes", "label": number % 2 == 0
                 or name == "c", "annotator": name} for number in range(6) for name in "abc"]
    found = measure(tmp_path, labelled, "labels")
    assert found["raw"]["value"] == pytest.approx((3 + 3 / 3) / 6)
    assert found["flip_rate"]["value"] == pytest.approx(flip_rate(4 / 6))


def test_only_the_pairs_with_the_most_items_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.agreement.MAX_PAIRS", 1)
    found = measure(tmp_path, [*planted_votes(), vote(0, "d", 1, 2)])
    assert [pair["annotators"] for pair in found["cohen_kappa"]] == [["a", "b"]]
    assert found["cohen_pairs_left_out"] == 5


def test_an_interval_is_none_where_a_sample_leaves_the_coefficient_undefined(tmp_path):
    labelled = [{"prompt": f"question {number}", "completion": "yes", "annotator": name,
                 "label": number > 0} for number in range(4) for name in "ab"]
    found = measure(tmp_path, labelled, "labels")
    assert found["fleiss_kappa"]["value"] == 1 and found["fleiss_kappa"]["low"] is None
    assert found["raw"]["low"] == 1


@pytest.mark.parametrize("row, reason", [
    (vote(0, "", 1, 2), "no_annotator"), (vote(0, None, 1, 2), "no_annotator"),
    (vote(0, ["x"], 1, 2), "no_annotator"),
    (vote(0, "a", 1, 2) | {"responses": ["x", "x", "y"], "ranks": [1, 2, 3]}, "equal"),
    (vote(0, "a", 0, 1), "broken_ranks")])
def test_what_is_no_rating_is_left_out_and_counted(tmp_path, row, reason):
    found = measure(tmp_path, [*planted_votes(num=4), row])
    assert found["left_out"] == {reason: 1}


@pytest.mark.parametrize("rows, subject, line", [
    ([vote(0, "a", 1, 2), vote(1, "b", 1, 2)], "choices", "none of its 2 items has ratings of two"),
    ([vote(0, None, 1, 2)], "choices", r"none of its 0 items .* \(left out: 1 no_annotator\)"),
    ([vote(0, "a", 1, 2)], "scores", r"none of its 0 items .* \(left out: 1 no_scores\)"),
    ([{"instruction": "x", "output": "y"}], "choices", "holds conversations")])
def test_files_that_hold_no_agreement_are_refused_in_one_line(tmp_path, rows, subject, line):
    with pytest.raises(UserError, match=line) as caught:
        measure(tmp_path, rows, subject)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--ties=half: is none of category, drop"):
        merge_repeats(read_ratings(tmp_path, "choices", ties="half", faults=Faults("inputs")))


def test_the_command_ends_with_a_line_of_json(tmp_path):
    write_jsonl(tmp_path / "votes.jsonl", planted_votes(num=8))
    done = subprocess.run(
        [sys.executable, "-m", "eval.agreement", f"--inputs={tmp_path}/votes.jsonl",
         "--num_samples=20"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert table[0].startswith("raw ") and found["items"] == 8
    assert found["krippendorff_alpha"]["nominal"]["items"] == 8
