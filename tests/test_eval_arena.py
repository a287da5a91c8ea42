"""The arena: closed forms, golden values, invariances, coverage, bad input, and the report."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from core.artifacts import write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from eval.arena import bradley_terry
from eval.arena.__main__ import format_leaderboard, rate_file
from eval.arena.ballots import count_ballots, find_extremes, split_components
from eval.arena.bradley_terry import SCALE, bootstrap, fit
from eval.arena.elo import online_elo
from eval.arena.report import Settings, make_report
from eval.arena.votes import read_votes
from eval.statistics import Z_95
from tests.arena_peers import arena_rank_variances, fastchat_ratings

FEW = Settings(num_samples=40)


def ballots_of(rows, num_models):
    """Ballots of (first, second, score, votes for it)."""
    rows = [row[:3] for row in rows for _ in range(row[3])]
    first, second, scores = map(np.array, zip(*rows))
    return count_ballots(first, second, scores, np.arange(len(rows)), num_models)[0]


def draw_votes(strengths, num, seed, ties=0.2):
    """Random pairs, and scores by their strengths, a part of them ties."""
    rng = np.random.default_rng(seed)
    first = rng.integers(len(strengths), size=num)
    second = (first + rng.integers(1, len(strengths), size=num)) % len(strengths)
    scores = (rng.random(num) < expit(strengths[first] - strengths[second])).astype(float)
    return first, second, np.where(rng.random(num) < ties, 0.5, scores)


def count(first, second, scores, num_models):
    """Ballots of votes between two models each."""
    return count_ballots(first, second, scores, np.arange(len(first)), num_models)[0]


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


# --- closed forms and golden values ------------------------------------------------------------

@pytest.mark.parametrize("wins, ties, losses", [(30, 0, 10), (12, 7, 20), (1, 5, 0)])
def test_two_models_differ_by_the_log_odds(wins, ties, losses):
    fitted = fit(ballots_of([(0, 1, 1.0, wins), (0, 1, 0.5, ties), (0, 1, 0.0, losses)], 2))
    num, p = wins + ties + losses, (wins + ties / 2) / (wins + ties + losses)
    middle = wins * (1 - p)**2 + ties * (0.5 - p)**2 + losses * p**2
    half = Z_95 * SCALE * math.sqrt(middle) / (num * p * (1 - p)) / 2      # of each from the mean
    rating = 1000 + 200 * math.log10(p / (1 - p))
    np.testing.assert_allclose(fitted.ratings(), [rating, 2000 - rating], atol=1e-8)
    np.testing.assert_allclose(fitted.bounds()[0], [rating - half, rating + half], atol=1e-6)
    assert fitted.interval == "sandwich"


def test_the_example_of_wikipedia_has_its_values():
    """Article "Bradley-Terry model", also in the tests of arena-rank: geometric mean 1."""
    wins = {(0, 1): 2, (0, 3): 1, (1, 0): 3, (1, 2): 5, (2, 1): 3, (2, 3): 1, (3, 0): 4, (3, 2): 3}
    fitted = fit(ballots_of([(i, j, 1.0, num) for (i, j), num in wins.items()], 4))
    np.testing.assert_allclose(np.exp(fitted.strengths), [0.640, 1.043, 0.660, 2.270], atol=5e-4)


def test_ratings_and_bounds_are_those_of_the_votes_one_by_one():
    votes = draw_votes(np.linspace(-1.5, 1.5, 7), 900, seed=1)
    fitted = fit(count(*votes, 7))
    np.testing.assert_allclose(fitted.ratings(), fastchat_ratings(*votes, 7)[0], atol=0.01)
    half = Z_95 * SCALE * np.sqrt(arena_rank_variances(*votes, fitted.strengths))
    np.testing.assert_allclose(fitted.bounds()[:, 1] - fitted.ratings(), half, atol=0.01)


def test_elo_is_computed_in_the_order_of_the_votes():
    ratings = online_elo(np.array([0, 0]), np.array([1, 1]), np.array([1.0, 0.5]), 2, [1, 2])
    after = 1002 - 4 / (1 + 10 ** (-4 / 400)) + 2
    np.testing.assert_allclose(ratings, [[1002, 998], [after, 2000 - after]])


# --- invariances ---------------------------------------------------------------------------------

def test_neither_order_nor_side_nor_numbers_of_models_matter():
    first, second, scores = draw_votes(np.array([0.0, 0.4, 1.0, -0.7]), 300, seed=2)
    rng = np.random.default_rng(0)
    shuffle, swap, name = rng.permutation(300), rng.random(300) < 0.5, rng.permutation(4)
    one, other = name[np.where(swap, second, first)], name[np.where(swap, first, second)]
    fitted = fit(count(first, second, scores, 4))
    changed = fit(count(one[shuffle], other[shuffle], np.where(swap, 1 - scores, scores)[shuffle],
                        4))
    np.testing.assert_allclose(changed.ratings()[name], fitted.ratings(), atol=1e-7)
    np.testing.assert_allclose(changed.bounds()[name], fitted.bounds(), atol=1e-7)


def test_four_times_the_votes_halve_the_intervals():
    votes = draw_votes(np.array([0.0, 0.4, 1.0]), 200, seed=3)
    one, four = fit(count(*votes, 3)), fit(count(*(np.tile(part, 4) for part in votes), 3))
    np.testing.assert_allclose(four.ratings(), one.ratings(), atol=1e-7)
    np.testing.assert_allclose(np.diff(four.bounds()), np.diff(one.bounds()) / 2, atol=1e-7)


def test_a_ranking_is_its_pairs_but_one_vote():
    """Its outcomes are one ballot: the intervals are those of summed gradients."""
    rng = np.random.default_rng(4)
    rows = []
    for vote in range(120):
        order = np.argsort(-(np.array([0.0, 0.5, 1.0, 1.2]) + rng.gumbel(size=4)))[:3]
        rows += [(i, j, 1.0, vote) for i, j in itertools.combinations(order, 2)]
    first, second, scores, votes = map(np.array, zip(*rows))
    together, apart = (fit(count_ballots(first, second, scores, numbers, 4)[0])
                       for numbers in (votes, np.arange(len(rows))))
    np.testing.assert_allclose(together.ratings(), apart.ratings(), atol=1e-7)
    x = np.zeros((len(rows), 4))
    x[np.arange(len(rows)), first], x[np.arange(len(rows)), second] = 1.0, -1.0
    p = expit(x @ together.strengths)
    inverse = np.linalg.pinv((x.T * (p * (1 - p))) @ x)
    summed = np.zeros((120, 4))
    np.add.at(summed, votes, x * (1 - p)[:, None])
    np.testing.assert_allclose(together.covariance, inverse @ summed.T @ summed @ inverse,
                               atol=1e-9)
    assert np.abs(together.covariance - apart.covariance).max() > 1e-4


# --- intervals -----------------------------------------------------------------------------------

TRUE = np.array([-0.9, -0.2, 0.1, 0.4, 0.6])


def test_planted_ratings_lie_within_95_of_100_intervals():
    """The bounds are some three standard errors of shares of 600 and of 150 values."""
    inside = {"sandwich": [], "bootstrap": []}
    for seed in range(120):
        ballots = count(*draw_votes(TRUE, 300, seed, ties=0.0), 5)
        fitted = fit(ballots)
        every = {"sandwich": fitted.bounds()}
        if seed < 30:
            every["bootstrap"] = bootstrap(ballots, fitted, num_samples=150, seed=seed).bounds()
        for name, bounds in every.items():
            truth = 1000 + SCALE * TRUE
            inside[name].append((bounds[:, 0] < truth) & (truth < bounds[:, 1]))
    assert 0.92 < np.mean(inside["sandwich"]) < 0.98
    assert 0.90 < np.mean(inside["bootstrap"]) < 0.99


def test_the_bootstrap_agrees_with_the_sandwich_and_repeats():
    ballots = count(*draw_votes(TRUE, 2000, seed=5), 5)
    fitted = fit(ballots)
    samples = bootstrap(ballots, fitted, num_samples=600, seed=0)
    np.testing.assert_allclose(np.diff(samples.bounds()), np.diff(fitted.bounds()), rtol=0.12)
    again = bootstrap(ballots, fitted, num_samples=600, seed=0)
    assert np.array_equal(samples.ratings, again.ratings) and samples.num_prior == 0


def test_few_kinds_of_votes_are_drawn_as_counts():
    """With many votes for each ballot they are drawn multinomially: the same distribution."""
    ballots = ballots_of([(0, 1, 1.0, 300), (0, 1, 0.0, 100)], 2)
    drawn = bootstrap(ballots, fit(ballots), num_samples=2000, seed=0).ratings[:, 0]
    p = 0.75
    stderr = SCALE / 2 / math.sqrt(400 * p * (1 - p))
    assert drawn.std() == pytest.approx(stderr, rel=0.06)
    assert drawn.mean() == pytest.approx(1000 + SCALE / 2 * logit(p), abs=1.5)


@pytest.mark.parametrize("num_rare", [40, 6, 1])
def test_samples_are_fitted_to_their_own_maximum(monkeypatch, num_rare):
    """With the Hessian of all votes as with each sample's own, also for a model of few votes."""
    first, second, scores = draw_votes(TRUE, 300, seed=8)
    rare = np.full(2 * num_rare, 5)
    ballots = count(np.append(first, rare), np.append(second, np.arange(2 * num_rare) % 5),
                    np.append(scores, np.arange(2 * num_rare) // num_rare), 6)
    fitted = fit(ballots)
    near = bootstrap(ballots, fitted, num_samples=60, seed=0)
    monkeypatch.setattr(bradley_terry, "NEAR_STEPS", 0)
    exact = bootstrap(ballots, fitted, num_samples=60, seed=0)
    np.testing.assert_allclose(near.ratings, exact.ratings, atol=1e-3)
    assert (near.num_prior > 0) == (num_rare == 1)


def test_samples_without_a_maximum_get_the_prior_and_are_counted():
    """The last model has one win and one loss, and most samples miss one of the two."""
    ballots = ballots_of([(0, 1, 1.0, 20), (0, 1, 0.0, 15), (1, 2, 1.0, 1), (0, 2, 0.0, 1)], 3)
    samples = bootstrap(ballots, fit(ballots), num_samples=200, seed=0)
    assert 0.5 < samples.num_prior / 200 < 0.7      # 1 - (1 - 1/e)^2 = 0.6
    assert np.isfinite(samples.ratings).all() and np.abs(samples.ratings).max() < 2500


# --- what has no maximum, and what is not connected ----------------------------------------------

def test_a_model_that_always_wins_has_the_rating_of_the_stated_prior():
    """Each model gets a tie with an opponent of strength 0: the optimum found by brute force."""
    fitted = fit(ballots_of([(0, 1, 1.0, 10), (1, 2, 1.0, 6), (1, 2, 0.0, 6)], 3))

    def loss(values):
        pairs = [(0, 1, 10), (1, 2, 6), (2, 1, 6)]
        return (sum(num * np.log1p(np.exp(values[j] - values[i])) for i, j, num in pairs)
                + np.sum(np.log1p(np.exp(values)) + np.log1p(np.exp(-values))) / 2)

    best = minimize(loss, np.zeros(3), tol=1e-10).x
    assert fitted.prior_ties == 1.0 and fitted.interval == "posterior"
    np.testing.assert_allclose(fitted.strengths, best - best.mean(), atol=1e-4)
    assert np.diff(fitted.bounds())[0] > 300


def test_models_that_no_vote_connects_are_rated_apart(path):
    rows = [battle("a", "b"), battle("b", "a"), battle("a", "b"), battle("c", "d", "tie"),
            battle("e", "e")]
    votes, left_out = read(path, rows)
    report = make_report(votes, FEW)
    assert [part["models"] for part in report["components"]] == [["a", "b"], ["c", "d"]]
    assert report["unrated"] == ["e"] and left_out == {"same_model": 1}
    ratings = {row["model"]: row["rating"] for row in report["models"]}
    assert ratings["a"] + ratings["b"] == pytest.approx(2000) and ratings["c"] == 1000
    assert np.isnan(report["win_rates"]["predicted"][0, 2])
    assert "component 2: 1 votes" in format_leaderboard(report)


def test_groups_that_votes_connect_are_named(path, tmp_path, capsys):
    write_jsonl(path, [battle("a", "b"), battle("c", "d"), battle("d", "c"), battle("e", "e")])
    result = rate_file(path, tmp_path / "out", FEW)
    said = capsys.readouterr().err
    assert "no vote connects these 2 groups of models" in said and "c, d; a, b" in said
    assert "no loss or tie of a against the others, and no win or tie of b; each" in said
    assert "no rating: e" in said
    assert result["components"] == 2 and result["unrated"] == ["e"]


def test_models_that_never_lose_or_never_win_are_named():
    """The first two never lose against the others, but one against the other."""
    ballots = ballots_of([(0, 1, 1.0, 2), (1, 0, 0.5, 1), (1, 2, 1.0, 3), (2, 3, 1.0, 1),
                          (0, 3, 1.0, 1)], 4)
    undefeated, winless = find_extremes(ballots)
    assert undefeated.tolist() == [0, 1] and winless.tolist() == [3]
    level = ballots_of([(0, 1, 0.5, 1), (1, 2, 1.0, 1), (1, 2, 0.0, 1)], 3)
    assert not any(len(found) for found in find_extremes(level))


def test_components_keep_their_ballots():
    ballots = ballots_of([(0, 3, 1.0, 2), (3, 0, 1.0, 1), (1, 2, 1.0, 4), (1, 2, 0.0, 1)], 5)
    (one, first), (other, second) = split_components(ballots)
    assert one.tolist() == [1, 2] and other.tolist() == [0, 3]
    assert first.counts.sum() == 5 and second.counts.sum() == 3
    assert fit(first).strengths[0] == pytest.approx(math.log(4) / 2)
    assert fit(second).strengths[0] == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("anchors, message", [
    ({"z": 1000.0}, "--anchor=z: no vote names this model: choose among a, b, e"),
    ({"e": 1000.0}, "--anchor=e: this model has no vote that counts: choose another"),
    ({"a": 1.0, "b": 2.0}, "--anchor=a,b: votes connect these models: give one of them")])
def test_impossible_anchors_are_refused(path, anchors, message):
    votes, _ = read(path, [battle("a", "b"), battle("b", "a"), battle("e", "e")])
    with pytest.raises(UserError) as error:
        make_report(votes, Settings(anchors=anchors, num_samples=4))
    assert str(error.value) == message


def test_an_anchor_shifts_the_models_that_are_connected_with_it(path):
    votes, _ = read(path, [battle("a", "b")] * 3 + [battle("b", "a"), battle("c", "d", "tie")])
    rows = make_report(votes, Settings(anchors={"b": 1114.0}, num_samples=4))["models"]
    ratings = {row["model"]: row["rating"] for row in rows}
    assert ratings["b"] == pytest.approx(1114) and ratings["c"] == 1000
    assert ratings["a"] == pytest.approx(1114 + SCALE * math.log(3))
