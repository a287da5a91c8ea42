"""The experiments on alignment: their laws against enumeration, and each in small."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align.rl import exact
from align.rl.exact import Pairs, Rankings, Task
from core.artifacts import read_json, write_json
from core.errors import UserError
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import init
from scripts.bench.frontier_policy import PolicyRecipe
from scripts.bench.frontier_train import Answers, Recipe, gather, train_on_pairs
from scripts.lab import (
    alignment,
    hacking,
    label_noise,
    length_bias,
    overoptimisation,
    ranking,
    tax,
)
from scripts.lab.experiment import BASE, format_table

EXECUTION = Execution()
CONFIG = ModelConfig(V=3, D=16, N=2, H=2, G=2, K=8, F=32)
ENDING = Task(P=2, V=3, L=3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    """Parameters of a model of `ENDING`."""
    return jax.jit(partial(init, CONFIG))(jax.random.key(0))


# Laws ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("is_log", [False, True])
def test_the_form_of_a_curve_is_found(is_log):
    d = np.geomspace(0.1, 4, 12)
    gold = d * (1.5 - 0.4 * (np.log(d) if is_log else d))
    assert overoptimisation.fit_form(d, gold, is_log) == pytest.approx((1.5, 0.4))


def test_the_row_of_a_curve_says_where_gold_is_largest_and_where_it_ends():
    points = [{"kl": d**2, "reward": d * (2 - d), "proxy": d} for d in (0, 0.5, 1, 1.5)]
    row = overoptimisation.describe(points, is_log=False)
    assert [row[name] for name in ("alpha", "beta", "gold_best", "d_best", "gold_last",
                                   "proxy_last", "d_last")] == pytest.approx(
        [2, 1, 1, 1, 0.75, 1.5, 1.5])
    assert row["curve"][2] == [1, 1, 1]


def test_rankings_have_the_law_of_plackett_and_luce(rng):
    reward_PA = np.array([[0.0, 1.0, -1.0]])
    ref_PA = np.log([[0.2, 0.3, 0.5]])
    num = 60_000
    ranked = exact.draw_rankings(ref_PA, reward_PA, num, 3, rng).answer_BJ
    found = np.zeros((3, 3, 3))
    np.add.at(found, tuple(ranked.T), 1 / num)
    expected = np.zeros((3, 3, 3))
    for drawn in itertools.product(range(3), repeat=3):
        for order in itertools.permutations(drawn):     # 6 ways to draw the same three
            weight = np.exp(reward_PA[0, list(order)])
            law = np.prod([weight[place] / weight[place:].sum() for place in range(3)])
            expected[order] += np.exp(ref_PA[0, list(drawn)]).prod() * law
    np.testing.assert_allclose(expected.sum(), 1)
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_preferences_are_rankings_of_two():
    pairs = Pairs(np.array([0, 1]), np.array([5, 6]), np.array([7, 8]))
    assert Rankings.of_pairs(pairs).answer_BJ.tolist() == [[5, 7], [6, 8]]


def test_swapped_labels_are_a_share_and_stay_swapped_at_a_higher_one(rng):
    chosen_B = np.arange(10_000)
    pairs = Pairs(np.zeros_like(chosen_B), chosen_B, chosen_B + 10_000)
    low, high = (label_noise.swap(pairs, rate, np.random.default_rng(1)) for rate in (0.1, 0.4))
    is_low_B, is_high_B = (each.chosen_B != chosen_B for each in (low, high))
    assert is_low_B.mean() == pytest.approx(0.1, abs=0.01)
    assert is_high_B.mean() == pytest.approx(0.4, abs=0.01)
    assert np.all(is_high_B[is_low_B])
    assert np.all(high.chosen_B + high.rejected_B == 2 * chosen_B + 10_000)


def test_accuracy_is_over_pairs_that_the_true_reward_orders():
    """Of the ordered pairs 0 < 1, 0 < 2 and 0 < 3, 1 < 3, 2 < 3 (1 and 2 are tied)."""
    ref_PA = np.log([[0.1, 0.2, 0.3, 0.4]])
    reward_PA = np.array([[0.0, 1.0, 1.0, 2.0]])
    learned_PA = np.array([[0.0, 0.0, 5.0, 3.0]])   # wrong: 0 < 1 (a tie) and 2 < 3
    pairs = {(0, 1): 0.02, (0, 2): 0.03, (0, 3): 0.04, (1, 3): 0.08, (2, 3): 0.12}
    wrong = pairs[0, 1] + pairs[2, 3]
    assert ranking.pair_accuracy(ref_PA, reward_PA, learned_PA) == pytest.approx(
        1 - wrong / sum(pairs.values()))
    assert ranking.pair_accuracy(ref_PA, reward_PA, reward_PA) == 1


def test_the_flaw_counts_the_token_that_the_reference_writes_least():
    task = Task(P=1, V=3, L=2)
    p_V = np.array([0.5, 0.1, 0.4])
    ref_PA = np.log((p_V[:, None] * p_V[None]).reshape(1, -1))
    count_A = hacking.count_rarest(task, ref_PA)
    assert count_A.tolist() == [0, 1, 0, 1, 2, 1, 0, 1, 0]


def test_the_tax_is_the_difference_of_divergences_from_the_source(rng):
    source_PA, ref_PA, logp_PA = np.log(rng.dirichlet(np.ones(5), (3, 2)))
    far, near = (np.sum(np.exp(source_PA) * (source_PA - each), axis=1).mean()
                 for each in (logp_PA, ref_PA))
    world = SimpleNamespace(source_PA=source_PA, ref_PA=ref_PA)
    assert tax.tax(logp_PA, world) == pytest.approx(far - near)


# Answers that end ---------------------------------------------------------------------------------

def test_strings_that_agree_up_to_the_end_are_one_answer():
    ended = length_bias.end_answers(Task(P=1, V=2, L=3))    # 1 ends
    assert ended.tokens_CL.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert ended.length_C.tolist() == [3, 3, 2, 1]
    assert ended.class_A.tolist() == [0, 1, 2, 2, 3, 3, 3, 3]


def test_the_probability_of_an_answer_is_the_models_of_its_own_tokens(model):
    ended = length_bias.end_answers(ENDING)
    p_PA = np.exp(exact.answer_logps(model, ENDING, config=CONFIG, execution=EXECUTION))
    p_PC = length_bias.merge(p_PA, ended)
    np.testing.assert_allclose(p_PC.sum(axis=1), 1)
    is_own_CL = np.arange(3)[None] < ended.length_C[:, None]
    for prompt in range(ENDING.P):
        rows = exact.make_rows(np.full(len(p_PC[0]), prompt, np.int32), ended.tokens_CL)
        logp_CL = batch_logps(model, rows, config=CONFIG, execution=EXECUTION)
        np.testing.assert_allclose(np.log(p_PC[prompt]), np.sum(logp_CL * is_own_CL, axis=1),
                                   atol=1e-5)


def test_the_gold_reward_says_nothing_about_length(rng):
    ended = length_bias.end_answers(ENDING)
    ref_PA = exact.draw_source(ENDING, rng)
    gold_PC = length_bias.make_gold(np.exp(ref_PA), exact.draw_reward(ENDING, ref_PA, rng), ended)
    p_PC = length_bias.merge(np.exp(ref_PA), ended)
    for length in (1, 2, 3):
        is_here_C = ended.length_C == length
        np.testing.assert_allclose(np.sum((p_PC * gold_PC)[:, is_here_C], axis=1), 0, atol=1e-14)
    square_LP = [np.sum((p_PC * gold_PC**2)[:, ended.length_C == length], axis=1)
                 / np.sum(p_PC[:, ended.length_C == length], axis=1) for length in (1, 2, 3)]
    np.testing.assert_allclose(square_LP[0], 0, atol=1e-28)
    np.testing.assert_allclose(square_LP[1], square_LP[2])
    np.testing.assert_allclose(np.sum(p_PC * gold_PC**2, axis=1), 1)


@pytest.mark.full
@pytest.mark.parametrize("loss", ["dpo", "dpo_norm", "simpo"])
def test_tokens_after_the_end_are_not_trained_on(model, loss):
    ended = length_bias.end_answers(ENDING)
    is_own_CL = np.arange(3)[None] < ended.length_C[:, None]
    ref_PC = jnp.zeros((2, len(ended.length_C)))
    pairs = Pairs(*(np.array([[numbers]]) for numbers in (0, 14, 3)))    # of 1 and of 3 tokens

    def train(filled_CL):
        answers = Answers(jnp.asarray(filled_CL, jnp.int32), jnp.float32(is_own_CL), ref_PC)
        return train_on_pairs(model, answers, pairs, {"beta": 1.0}, loss=loss, config=CONFIG,
                              recipe=Recipe(2, 1, 1e-2))

    assert ended.length_C[[14, 3]].tolist() == [1, 3]
    pairs = gather(pairs, np.array([0, 0]))
    first, second = (train(np.where(is_own_CL, ended.tokens_CL, fill)) for fill in (0, 2))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))
    assert not np.array_equal(first["embed_VD"], model["embed_VD"])


# Each in small ------------------------------------------------------------------------------------

SMALL = BASE._replace(task=Task(P=2, V=4, L=3), num_pairs=1500, reference=Recipe(100, 64, 5e-3),
                      dpo=Recipe(80, 64, 3e-3), reward=Recipe(80, 64, 5e-3))
QUICK = PolicyRecipe("ppo", num_iterations=40, batch_size=128, learning_rate=3e-3)
PLANS = {
    "overoptimisation": overoptimisation.OveroptimisationPlan(
        SMALL, QUICK, sizes=(50,), betas=(0.0,), nums=(2, 4, 16), iterations=(10, 20, 40)),
    "label_noise": label_noise.NoisePlan(SMALL, rates=(0.0, 0.4), losses=("dpo", "robust")),
    "ranking": ranking.RankingPlan(SMALL, budgets=(800,), sizes=(2, 4)),
    "hacking": hacking.HackingPlan(SMALL, QUICK, flaw=3.0, betas=(0.0, 1.6)),
    "length_bias": length_bias.LengthPlan(
        SMALL, weights=(0.0, 1.0), methods=(length_bias.Method("DPO", "dpo", 0.3),)),
    "tax": tax.TaxPlan(SMALL, QUICK, betas=(0.1,), ptx_coefs=(1.0,))}


def check_overoptimisation(rows):
    best, trained = rows.values()
    assert best["proxy_last"] > best["gold_last"], "the proxy promises more than there is"
    for row in (best, trained):
        assert row["gold_best"] >= row["gold_last"] and row["gold_best"] > 0


def check_label_noise(rows):
    assert list(rows) == ["DPO, 0 % swapped", "DPO, 40 % swapped", "robust DPO, 40 % swapped"]
    assert rows["DPO, 0 % swapped"]["share"] > rows["DPO, 40 % swapped"]["share"]


def check_ranking(rows):
    assert len(rows) == 3
    for row in rows.values():
        assert 0.6 < row["accuracy"] < 1 and row["correlation"] > 0.4 and row["share"] > 0.4


def check_hacking(rows):
    free, held = rows["PPO, beta 0"], rows["PPO, beta 1.6"]
    assert free["flaws"] > held["flaws"] and free["proxy"] > held["proxy"]
    assert free["reward"] < held["reward"]


def check_length_bias(rows):
    for method in ("optimum", "DPO"):
        fair, biased = (rows[f"{method}, length weight {weight}"] for weight in (0, 1))
        assert biased["length"] > fair["length"] and biased["share"] < fair["share"]


def check_tax(rows):
    without, with_text = rows["beta 0.1"], rows["beta 0.1, ptx 1"]
    assert with_text["tax"] < without["tax"] and with_text["tax_asked"] < without["tax_asked"]
    assert min(row["reward"] for row in rows.values()) > 0.3


@pytest.mark.full
@pytest.mark.parametrize("name", PLANS)
def test_an_experiment_in_small_with_its_figure_goes_on_where_it_was(name, tmp_path):
    experiment = alignment.EXPERIMENTS[name]._replace(plan=PLANS[name])
    rows = alignment.run_seed(experiment, 0, tmp_path)["rows"]
    globals()[f"check_{name}"](rows)
    kept = read_json(tmp_path / "seed_0.json")
    lost = kept["rows"].pop(next(iter(rows)))
    write_json(tmp_path / "seed_0.json", kept)
    again = alignment.run_seed(experiment, 0, tmp_path)["rows"]
    assert again[next(iter(rows))] == lost
    pytest.importorskip("matplotlib")
    experiment.draw(tmp_path / "made" / "figure.png", PLANS[name], [rows, rows])
    assert (tmp_path / "made" / "figure.png").stat().st_size > 5000
    with pytest.raises(UserError, match="other settings: name another folder with --out"):
        alignment.run_seed(alignment.EXPERIMENTS[name], 0, tmp_path)


# The command --------------------------------------------------------------------------------------

def test_the_table_has_means_and_half_of_their_intervals():
    summary = {"a": {"kl": {"mean": 1.0, "low": 0.5, "high": 1.5}},
               "b": {"kl": {"mean": 2.0, "low": None, "high": None}}}
    assert format_table({"kl": "KL, nats", "x": "X"}, summary) == (
        "| | KL, nats | X |\n|---|---|---|\n| a | 1.000 ± 0.500 |  |\n| b | 2.000 |  |\n")


@pytest.mark.parametrize("given, rule", [
    (dict(experiment="hacks", out="x"), "there is no such experiment: choose one of overopt"),
    (dict(experiment="hacking", out=""), "--out: is missing")])
def test_a_wrong_flag_is_refused(given, rule, monkeypatch):
    given = SimpleNamespace(seeds=1, **given)
    monkeypatch.setattr(alignment, "flags", SimpleNamespace(FLAGS=given))
    with pytest.raises(UserError, match=rule):
        alignment.main()
