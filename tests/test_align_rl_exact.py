"""The enumerable task: exact laws against enumeration, and trained policies below the frontier."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from align.rl import exact
from align.rl.exact import Task
from align.scalar import with_scalar_head
from core.artifacts import read_json, write_json
from core.errors import UserError
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import init
from scripts.bench import frontier as bench
from scripts.bench.frontier_page import draw, format_table
from scripts.bench.frontier_policy import PolicyRecipe, sample_answers, values
from scripts.bench.frontier_train import Recipe, add_scalar_head

EXECUTION = Execution()
TASK = Task(P=2, V=3, L=3)
CONFIG = ModelConfig(V=3, D=16, N=2, H=2, G=2, K=8, F=32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    """Parameters of a model of `TASK`."""
    return jax.jit(partial(init, CONFIG))(jax.random.key(0))


@pytest.fixture
def drawn(rng):
    """A reference of `TASK` and a reward."""
    ref_PA = exact.draw_source(TASK, rng)
    return ref_PA, exact.draw_reward(TASK, ref_PA, rng)


# Models -------------------------------------------------------------------------------------------

def test_answers_are_all_sequences_in_order():
    assert TASK.answers_AL.tolist() == [list(a) for a in itertools.product(range(3), repeat=3)]


def test_log_probabilities_of_all_answers_are_the_models_and_sum_to_one(model):
    logp_PA = exact.answer_logps(model, TASK, config=CONFIG, execution=EXECUTION)
    assert logp_PA.dtype == np.float64
    np.testing.assert_allclose(np.exp(logp_PA).sum(axis=1), 1, rtol=0, atol=1e-14)
    for prompt in range(TASK.P):
        rows = exact.make_rows(np.full(TASK.A, prompt, np.int32), TASK.answers_AL)
        logp_BL = batch_logps(model, rows, config=CONFIG, execution=EXECUTION)
        np.testing.assert_allclose(logp_PA[prompt], np.sum(logp_BL, axis=1), rtol=0, atol=1e-5)
    assert not np.allclose(logp_PA[0], logp_PA[1]), "the prompt is read"


def test_rewards_of_all_answers_are_of_the_whole_answer(model):
    config = with_scalar_head(CONFIG)
    params = add_scalar_head(model, CONFIG, jax.random.key(1))
    reward_PA = exact.answer_rewards(params, TASK, config=config, execution=EXECUTION)
    assert reward_PA.shape == (2, 27)
    assert len(np.unique(np.round(reward_PA, 6))) == reward_PA.size, "each token and the prompt"
    rows = exact.make_texts(np.array([[1, 2, 0, 1]], np.int32))    # prompt 1, answer 2 0 1
    score, = exact.answer_scores(params, *rows, config=config, execution=EXECUTION)
    assert reward_PA[1, 2 * 9 + 1] == pytest.approx(float(score), abs=1e-6)


@pytest.mark.parametrize("sizes, rule", [
    (dict(P=4, V=3), "more prompts than tokens"), (dict(P=0), "has no answers"),
    (dict(V=8, L=8), "67,108,864 answers, more than 1,048,576 to enumerate")])
def test_tasks_that_cannot_be_enumerated_are_refused(sizes, rule):
    with pytest.raises(UserError, match=rule):
        Task(**sizes)


def test_a_model_of_another_vocabulary_is_refused(model):
    with pytest.raises(UserError, match=r"model.V=3: is not the task's vocabulary of 4 tokens"):
        exact.answer_logps(model, Task(P=2, V=4, L=3), config=CONFIG, execution=EXECUTION)


# The frontier -------------------------------------------------------------------------------------

def test_the_reference_has_no_divergence_and_the_rewards_are_normalised(drawn):
    ref_PA, reward_PA = drawn
    point = exact.measure(ref_PA, ref_PA, reward_PA)
    assert point.kl == 0 and point.reward == pytest.approx(0, abs=1e-14)
    np.testing.assert_allclose(np.sum(np.exp(ref_PA) * reward_PA**2, axis=1), 1)


def test_a_policy_may_give_answers_no_probability():
    ref_PA, reward_PA = np.log([[0.25, 0.75]]), np.array([[2.0, 1.0]])
    with np.errstate(divide="ignore"):
        sure_PA = np.log([[1.0, 0.0]])
    assert exact.measure(sure_PA, ref_PA, reward_PA) == pytest.approx((2.0, math.log(4)))


def test_the_optimum_is_better_than_what_is_near_it_and_equals_its_closed_form(drawn, rng):
    """E[r] - beta KL of the optimum is beta log Z, and other policies lack beta KL(pi || pi*)."""
    ref_PA, reward_PA = drawn

    def objective(logp_PA, beta):
        point = exact.measure(logp_PA, ref_PA, reward_PA)
        return point.reward - beta * point.kl

    for beta in (0.1, 1.0, 5.0):
        best_PA = exact.optimum(ref_PA, reward_PA, beta)
        log_z = np.log(np.sum(np.exp(ref_PA + reward_PA / beta), axis=1)).mean()
        assert objective(best_PA, beta) == pytest.approx(beta * log_z, rel=1e-12)
        for scale in (0.01, 0.3, 3.0):
            other_PA = log_softmax(best_PA + scale * rng.standard_normal(best_PA.shape), axis=1)
            lost = exact.measure(other_PA, best_PA, reward_PA).kl
            assert lost > 0
            assert objective(other_PA, beta) == pytest.approx(beta * (log_z - lost), rel=1e-9)


def test_divergences_are_positive_and_random_policies_are_below_the_frontier(drawn, rng):
    ref_PA, reward_PA = drawn
    for scale in (1e-3, 0.1, 1.0, 10.0):
        for tilt in (0.0, 1.0, 3.0):
            noise_PA = scale * rng.standard_normal(ref_PA.shape)
            point = exact.measure(log_softmax(ref_PA + tilt * reward_PA + noise_PA, axis=1),
                                  ref_PA, reward_PA)
            assert point.kl > 0
            assert point.reward < exact.frontier_reward(ref_PA, reward_PA, point.kl)


def test_optimal_policies_are_on_the_frontier_whatever_the_scale_of_rewards(drawn):
    ref_PA, reward_PA = drawn
    for scale in (1e-3, 1.0, 1e4):
        betas = [beta * scale for beta in (0.05, 0.3, 1.0, 100.0)]
        for reward, kl in exact.frontier(ref_PA, scale * reward_PA, betas):
            assert exact.frontier_reward(ref_PA, scale * reward_PA, kl) == pytest.approx(
                reward, rel=1e-9)


def test_the_frontier_ends_at_the_best_answers(drawn):
    ref_PA, reward_PA = drawn
    assert exact.frontier_reward(ref_PA, reward_PA, 0.0) == pytest.approx(0, abs=1e-14)
    assert 0 < exact.frontier_reward(ref_PA, reward_PA, 1e-18) < 2e-6
    best = reward_PA.max(axis=1).mean()
    limit = -np.mean([ref_A[reward_A.argmax()] for ref_A, reward_A in zip(ref_PA, reward_PA)])
    assert exact.frontier_reward(ref_PA, reward_PA, limit + 1) == best
    assert best - 1e-3 < exact.frontier_reward(ref_PA, reward_PA, limit - 1e-4) < best
    assert exact.frontier_reward(ref_PA, np.zeros_like(reward_PA), 1.0) == 0


# Best of n ----------------------------------------------------------------------------------------

def enumerate_best(p_A, score_A, num):
    """Probabilities of the best of `num`, by all draws; the tied ones share."""
    law_A = np.zeros(len(p_A))
    for answers in itertools.product(range(len(p_A)), repeat=num):
        scores = np.array([score_A[answer] for answer in answers])
        tied = [answer for answer, score in zip(answers, scores) if score == scores.max()]
        for answer in tied:
            law_A[answer] += np.prod(p_A[list(answers)]) / len(tied)
    return law_A


@pytest.mark.parametrize("score", [[0, 1, 2, 3, 4], [3, 1, 1, 3, 0], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_the_law_of_best_of_n_is_that_of_all_draws(score, num):
    p_A = np.array([0.1, 0.3, 0.2, 0.35, 0.05])
    law_PA = np.exp(exact.best_of_n(np.log(p_A)[None], np.array([score], float), num))
    np.testing.assert_allclose(law_PA[0], enumerate_best(p_A, score, num), atol=1e-15)


def test_the_divergence_of_best_of_n_is_its_bound_without_ties_and_below_it_with_them(rng):
    ref_PA = exact.draw_source(Task(P=2, V=8, L=5), rng, scale=0.1)
    score_PA = rng.permuted(np.arange(ref_PA.size, dtype=float).reshape(ref_PA.shape), axis=1)
    for num in (1, 2, 4, 16):
        law_PA = exact.best_of_n(ref_PA, score_PA, num)
        np.testing.assert_allclose(np.exp(law_PA).sum(axis=1), 1, rtol=1e-12)
        bound = exact.best_of_n_bound(num)
        kl = exact.measure(law_PA, ref_PA, score_PA).kl
        assert kl <= bound + 1e-12 and kl == pytest.approx(bound, abs=1e-4)
        tied_PA = exact.best_of_n(ref_PA, score_PA // 2**13, num)
        assert exact.measure(tied_PA, ref_PA, score_PA).kl < bound - 1e-3 or num == 1


# What is drawn ------------------------------------------------------------------------------------

def test_answers_and_labels_are_drawn_with_their_probabilities(drawn, rng):
    ref_PA, reward_PA = drawn
    num = 200_000
    pairs = exact.draw_pairs(ref_PA, reward_PA, num, rng)
    assert np.bincount(pairs.prompt_B).tolist() == [num / 2] * 2
    p_PA = np.exp(ref_PA)
    # An answer is preferred to a random one with probability E[sigmoid(r - r')].
    wins_PAA = 1 / (1 + np.exp(reward_PA[:, None] - reward_PA[:, :, None]))
    wins_PA = np.einsum("PC,PAC->PA", p_PA, wins_PAA)
    for prompt in range(TASK.P):
        chosen_B = pairs.chosen_B[pairs.prompt_B == prompt]
        found_A = np.bincount(chosen_B, minlength=TASK.A) / len(chosen_B)
        np.testing.assert_allclose(found_A, 2 * p_PA[prompt] * wins_PA[prompt], atol=5e-3)


def test_the_source_is_markov_and_the_reward_a_sum_over_neighbours(drawn):
    """Of tokens a b c: what c adds depends on b alone, and the first token on the prompt."""
    ref_PVVV, reward_PVVV = (leaf.reshape(2, 3, 3, 3) for leaf in drawn)
    np.testing.assert_allclose(np.exp(ref_PVVV).sum(axis=(1, 2, 3)), 1)
    for leaf in (ref_PVVV, reward_PVVV):
        last = leaf - leaf[..., :1]
        np.testing.assert_allclose(last, np.broadcast_to(last[:, :1], last.shape), atol=1e-12)
    assert not np.allclose(ref_PVVV[0, :, 0, 0], ref_PVVV[1, :, 0, 0])


# Trained policies ---------------------------------------------------------------------------------

def test_the_sampler_reads_the_policy_that_is_trained(model):
    """Its log-probabilities are the forward pass's, and its answers have their frequencies."""
    prompt_B = jnp.arange(6000, dtype=jnp.int32) % TASK.P
    answer_BL, logp_BL = sample_answers(model, prompt_B, jax.random.key(0), task=TASK,
                                        config=CONFIG)
    rows = exact.make_rows(prompt_B, answer_BL)
    np.testing.assert_allclose(logp_BL, batch_logps(model, rows, config=CONFIG,
                                                    execution=EXECUTION), atol=1e-5)
    number_B = np.asarray(answer_BL) @ [9, 3, 1]
    logp_PA = exact.answer_logps(model, TASK, config=CONFIG, execution=EXECUTION)
    for prompt in range(TASK.P):
        found_A = np.bincount(number_B[np.asarray(prompt_B) == prompt], minlength=TASK.A) / 3000
        np.testing.assert_allclose(found_A, np.exp(logp_PA[prompt]), atol=0.03)


def test_a_value_does_not_see_the_token_that_it_precedes(model):
    critic = add_scalar_head(model, CONFIG, jax.random.key(1))
    both_BL = [values(critic, exact.make_rows(np.zeros(1, np.int32), np.array([answer], np.int32)),
                      config=CONFIG) for answer in ([0, 1, 2], [0, 2, 2])]
    assert np.abs(both_BL[0] - both_BL[1])[0].tolist()[:2] == [0, 0]
    assert np.abs(both_BL[0] - both_BL[1])[0, 2] > 1e-4


def test_a_policy_above_the_frontier_ends_the_benchmark(drawn):
    ref_PA, reward_PA = drawn
    world = bench.World(None, None, ref_PA, reward_PA, None)
    best_PA = exact.optimum(ref_PA, reward_PA, 0.5)
    assert bench.place("optimum", best_PA, world)["share"] == pytest.approx(1)
    with pytest.raises(bench.AboveFrontier, match=r"^PPO has the reward .* none can exceed"):
        bench.place("PPO", best_PA + 1e-4, world)   # sums to more than one
    with pytest.raises(bench.AboveFrontier):
        bench.place("PPO", best_PA + np.nan, world)


def test_means_over_seeds_have_students_interval():
    results = [{"rows": {"DPO": {"share": share}}} for share in (0.8, 0.9, 1.0)]
    found = bench.summarise(results)["DPO"]["share"]
    assert found["mean"] == pytest.approx(0.9)
    assert found["high"] - 0.9 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert bench.summarise(results[:1])["DPO"]["share"] == {"mean": 0.8, "low": None, "high": None}


ROW = {"reward": 0.9, "kl": 0.5, "frontier": 1.0, "share": 0.9}


def test_the_table_has_means_and_the_interval_of_the_share():
    two = [{"rows": {"DPO, beta 1": ROW | {"share": share}}} for share in (0.89, 0.91)]
    assert format_table(bench.summarise(two)).splitlines()[2] == (
        "| DPO, beta 1 | 0.900 | 0.500 | 1.000 | 90.0 | 77.3 to 102.7 |")
    assert format_table(bench.summarise(two[:1])).endswith("| 89.0 |  |\n")


@pytest.mark.full
def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    policies = {"DPO, beta 1": ROW, "DPO, beta 0.3": ROW, "best of 4": ROW}
    draw(tmp_path / "made" / "figure.png", [[exact.Point(0.5, 0.1), exact.Point(1.0, 0.5)]] * 2,
         [policies] * 2)
    assert (tmp_path / "made" / "figure.png").stat().st_size > 5000


@pytest.mark.full
def test_no_method_is_above_the_frontier_and_good_ones_are_near_it(tmp_path):
    """The benchmark in small, through its file of results, with its table and figure."""
    policy = dict(num_iterations=40, batch_size=256, learning_rate=2e-3)
    plan = bench.Plan(
        task=Task(P=3, V=6, L=4), num_pairs=5000, reference=Recipe(150, 128, 5e-3),
        dpo=Recipe(150, 128, 2e-3), reward=Recipe(150, 128, 2e-3),
        policies=tuple(PolicyRecipe(name, **policy) for name in ("ppo", "rloo")),
        dpo_betas=(1.0,), policy_betas=(0.5,), nums=(4,))
    result = bench.run_seed(plan, 0, tmp_path)
    share = {name: row["share"] for name, row in result["rows"].items()}
    assert share.pop("optimum, beta 0.5") == pytest.approx(1)
    assert list(share) == ["best of 4", "DPO, beta 1", "PPO, beta 0.5", "RLOO, beta 0.5",
                           "optimum of the learned reward, beta 0.5",
                           "PPO, learned reward, beta 0.5"]
    assert max(share.values()) < 1
    assert share["DPO, beta 1"] > 0.8 and share["PPO, beta 0.5"] > 0.9
    assert share["PPO, beta 0.5"] > share["PPO, learned reward, beta 0.5"] > 0.5
    # What is missing is made again from the same reference.
    kept = read_json(tmp_path / "seed_0.json")
    lost = kept["rows"].pop("optimum, beta 0.5")
    write_json(tmp_path / "seed_0.json", kept)
    again = bench.run_seed(plan, 0, tmp_path)["rows"]
    assert again.pop("optimum, beta 0.5") == lost and again == kept["rows"]
    with pytest.raises(UserError, match="other settings: name another folder with --out"):
        bench.run_seed(plan._replace(num_pairs=7), 0, tmp_path)
