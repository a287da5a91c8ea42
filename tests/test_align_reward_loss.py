"""Losses of rankings: TRL's numbers, float64 formulas, and what they must not depend on."""

import dataclasses
import itertools
import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_models import as_entries

from align.losses.reward import RankingBatch, ranking_loss, score_rankings
from align.scalar import with_scalar_head
from core.artifacts import ROOT
from data.answers import lay_out_answers
from eval.respond.reward import score_texts
from model.execution import Execution
from model.families.registry import init
from model.hf.families.llama import LLAMA
from model.hf.fields import Fields
from model.hf.tables import load_params
from model.hf.tensor_files import LazyTensor
from model.parallel.sharding import make_mesh, param_shardings
from train.step import accumulate, place_batch

EXECUTION = Execution()
GOLDEN = ROOT / "tests" / "golden" / "reward" / "losses.npz"
KEY = jax.random.key(0)


def make_batch(groups, length=16, num_answers=None):
    """Groups of (tokens, value) as a batch."""
    num_answers = num_answers or max(map(len, groups))
    texts = [[tokens for tokens, _ in group] + [()] * (num_answers - len(group))
             for group in groups]
    rows = [np.stack(leaves) for leaves in zip(*(lay_out_answers(row, length) for row in texts))]
    values = [[value for _, value in group] + [0.0] * (num_answers - len(group))
              for group in groups]
    is_real = [np.arange(num_answers) < len(group) for group in groups]
    return RankingBatch(*rows, np.array(values, np.float32), np.array(is_real))


@pytest.fixture(scope="module")
def scored(config):
    """The tiny model with a scalar head, moved off its start."""
    config = with_scalar_head(config)
    return config, jax.jit(partial(init, config))(jax.random.key(3))


@pytest.fixture(scope="module")
def loss_of(scored):
    config, params = scored
    function = jax.jit(partial(ranking_loss, config=config, execution=EXECUTION, key=KEY),
                       static_argnames=("loss", "margin", "centering_coef"))
    return lambda batch, loss="bradley_terry", **settings: jax.tree.map(
        float, function(params, batch, loss=loss, **settings))


def random_groups(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [[(rng.integers(0, 98, rng.integers(3, 12)).tolist(), float(rng.integers(0, 6)))
             for _ in range(size)] for size in sizes]


# The golden model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """Config and parameters of the golden reward model, its batch, and the file's arrays."""
    arrays = dict(np.load(GOLDEN))
    described = json.loads(str(arrays.pop("described")))
    body = LLAMA.read_config(Fields(described["config"] | {"hidden_act": "silu"}))
    weights = {name.removeprefix("weights/"): array for name, array in arrays.items()
               if name.startswith("weights/")}
    head = weights.pop("score.weight")
    weights["lm_head.weight"] = np.zeros((body.V, body.D), np.float32)
    params = load_params(LLAMA, {name: LazyTensor(name, array.shape, array.dtype, lambda a=array: a)
                                 for name, array in weights.items()}, body)
    del params["head_DV"]
    params |= {"score_DY": jnp.asarray(head.T), "score_bias_Y": jnp.zeros(1)}
    return with_scalar_head(body), params, described, arrays


def golden_batch(described, margins=None):
    """Chosen and rejected answers; values that differ by the margins, which order each pair."""
    texts = [[prompt + answer + [described["eos"]] for answer in answers] for prompt, *answers in
             zip(described["prompts"], described["chosen"], described["rejected"])]
    above = [max(margin, 1e-9) for margin in margins or [1.0] * len(texts)]
    return make_batch([[(chosen, margin), (rejected, 0.0)]
                       for (chosen, rejected), margin in zip(texts, above)])


@pytest.mark.parametrize("name", ["plain", "margin", "centred"])
def test_losses_and_gradients_are_those_of_trl(golden, name):
    config, params, described, arrays = golden
    batch = golden_batch(described, described["margins"] if name == "margin" else None)
    settings = dict(margin="scores" if name == "margin" else "none",
                    centering_coef=described["centering"] if name == "centred" else 0.0)

    @jax.jit
    def mean(params):
        loss_sum, metrics = ranking_loss(params, batch, config=config, execution=EXECUTION, key=KEY,
                                         loss="bradley_terry", **settings)
        return loss_sum / metrics["loss"][1]

    assert float(mean(params)) == pytest.approx(described["losses"][name], rel=1e-5)
    gradient = jax.jit(jax.grad(mean))(params)
    head = gradient.pop("score_DY")
    del gradient["score_bias_Y"]
    gradient["head_DV"] = np.zeros((config.D, config.V), np.float32)
    ours = as_entries(LLAMA, gradient, dataclasses.replace(config, score_head=False))
    ours["score.weight"] = head.T
    of_golden = {key.removeprefix(f"gradients/{name}/"): array for key, array in arrays.items()
                 if key.startswith(f"gradients/{name}/")}
    assert len(of_golden) == 3
    for weight, expected in of_golden.items():
        np.testing.assert_allclose(ours[weight], expected, rtol=1e-4,
                                   atol=1e-5 * np.abs(expected).max())


def test_scores_of_the_golden_model_are_those_of_transformers(golden):
    config, params, described, arrays = golden
    batch = golden_batch(described)
    texts = [row[is_token > 0].tolist() for row, is_token in
             zip(batch.tokens_BJL.reshape(-1, 16), batch.segment_ids_BJL.reshape(-1, 16))]
    scores = score_texts(params, texts, config=config, execution=EXECUTION, batch_size=3,
                         max_length=128)
    np.testing.assert_allclose(scores.reshape(4, 2), arrays["scores"], rtol=1e-5, atol=1e-5)


# Formulas -----------------------------------------------------------------------------------------


def random_rankings(seed=0, sizes=(4, 9, 2, 6), num_answers=9):
    rng = np.random.default_rng(seed)
    score, value = rng.normal(size=(2, len(sizes), num_answers)) * 2
    value = value.round()       # some are tied
    return (score.astype(np.float32), value.astype(np.float32),
            np.arange(num_answers)[None] < np.array(sizes)[:, None])


def formula(score, value, is_real, *, loss, margin="none", centering_coef=0.0):
    """The loss of all prompts, pair by pair in float64."""
    total = 0.0
    for scores, values, real in zip(np.float64(score), value, is_real):
        numbers = np.flatnonzero(real)
        pairs = [(i, j) for i, j in itertools.permutations(numbers, 2) if values[i] > values[j]]
        terms = [math.log1p(math.exp(-(scores[i] - scores[j] - (
            values[i] - values[j] if margin == "scores" else 0)))) for i, j in pairs]
        if loss == "plackett_luce":
            below = {i: [j for a, j in pairs if a == i] for i, _ in pairs}
            terms = [math.log(sum(math.exp(scores[j]) for j in [i, *others])) - scores[i]
                     for i, others in below.items()]
        total += np.mean(terms)
        total += centering_coef * np.mean([(scores[i] + scores[j])**2 for i, j in pairs])
    return total


@pytest.mark.parametrize("settings", [
    dict(loss="bradley_terry"), dict(loss="bradley_terry", margin="scores"),
    dict(loss="bradley_terry", centering_coef=0.1), dict(loss="plackett_luce"),
    dict(loss="plackett_luce", centering_coef=0.1)], ids=str)
def test_loss_and_gradient_are_the_formula_in_float64(settings):
    score, value, is_real = random_rankings()
    loss = jax.jit(lambda score: score_rankings(score, value, is_real, **settings)[0])
    expected = formula(score, value, is_real, **settings)
    assert float(loss(score)) == pytest.approx(expected, rel=1e-5)
    gradient, step = jax.jit(jax.grad(loss))(score), 1e-6
    for place in itertools.product(range(4), (0, 1, 5, 8)):
        moved = [np.float64(score) for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (formula(moved[0], value, is_real, **settings)
                 - formula(moved[1], value, is_real, **settings)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_loss_of_a_ranking_is_the_mean_of_its_pairs_losses(loss_of):
    (group,) = random_groups([5], seed=4)
    group = [(tokens, float(value)) for (tokens, _), value in zip(group, (3, 1, 4, 1, 5))]
    (total, metrics) = loss_of(make_batch([group]))
    pairs = [pair for pair in itertools.combinations(group, 2) if pair[0][1] != pair[1][1]]
    losses = [loss_of(make_batch([list(pair)]))[0] for pair in pairs]
    assert len(pairs) == 9 and metrics["accuracy"][1] == 9 and metrics["loss"][1] == 1
    assert total == pytest.approx(np.mean(losses), rel=1e-5)


def test_plackett_luce_of_two_answers_is_bradley_terry(loss_of):
    batch = make_batch(random_groups([2, 2, 2, 2], seed=5))
    assert loss_of(batch, "plackett_luce")[0] == pytest.approx(loss_of(batch)[0], rel=1e-6)


def test_ties_and_missing_answers_count_nothing(loss_of):
    first, second = random_groups([3, 3], seed=6)
    tied = [(tokens, 2.0) for tokens, _ in second]
    first = [(tokens, float(n)) for n, (tokens, _) in enumerate(first)]
    alone, both = loss_of(make_batch([first], num_answers=5)), loss_of(make_batch([first, tied]))
    assert both[0] == pytest.approx(alone[0], rel=1e-5)
    assert both[1]["loss"][1] == 1 and both[1]["accuracy"][1] == 3
    assert loss_of(make_batch([tied]))[0] == 0


def test_a_prompt_is_one_element_whatever_its_number_of_pairs(loss_of):
    large, small = random_groups([7, 2], seed=8)
    large = [(tokens, float(n)) for n, (tokens, _) in enumerate(large)]
    small = [(tokens, float(n)) for n, (tokens, _) in enumerate(small)]
    apart = [loss_of(make_batch([group], num_answers=7))[0] for group in (large, small)]
    total, metrics = loss_of(make_batch([large, small]))
    assert total == pytest.approx(sum(apart), rel=1e-5) and metrics["loss"][1] == 2


def test_equal_scores_are_no_right_answer():
    value = np.array([[2.0, 1.0]])
    _, metrics = score_rankings(np.zeros((1, 2), np.float32), value, np.ones((1, 2), bool),
                                loss="bradley_terry")
    assert float(metrics["accuracy"][0]) == 0 and float(metrics["accuracy"][1]) == 1


# What does not matter -----------------------------------------------------------------------------


def test_padding_and_its_side_and_ids_do_not_matter(scored, loss_of):
    groups = random_groups([3, 2, 4], seed=9)
    batch = make_batch(groups, length=16)
    expected = loss_of(batch)[0]
    longer = make_batch(groups, length=29, num_answers=6)
    assert loss_of(longer)[0] == pytest.approx(expected, rel=1e-5)
    shifted = dataclasses.replace(batch, **{
        name: np.roll(getattr(longer, name), 7, axis=2)
        for name in ("tokens_BJL", "positions_BJL", "segment_ids_BJL")},
        value_BJ=longer.value_BJ, is_real_BJ=longer.is_real_BJ)
    assert loss_of(shifted)[0] == pytest.approx(expected, rel=1e-5)
    for name, ids in (("pad is the end of an answer", 5), ("pad is any token", None)):
        rng = np.random.default_rng(0)
        junk = np.full_like(batch.tokens_BJL, ids) if ids else rng.integers(
            0, 98, batch.tokens_BJL.shape).astype(np.int32)
        filled = batch.replace(tokens_BJL=np.where(batch.segment_ids_BJL > 0, batch.tokens_BJL,
                                                   junk))
        assert loss_of(filled)[0] == expected, name


def test_pad_inside_a_text_does_not_end_it(loss_of):
    """An end of turn inside the prompt is where others read the score (transformers 35352)."""
    end = 0     # the id of padding in these rows
    group = [([7, end, 8, 9, 10, end], 2.0), ([7, end, 8, 11, end], 1.0)]
    other = [([7, end, 8, 9, 12, end], 2.0), ([7, end, 8, 13, end], 1.0)]
    assert loss_of(make_batch([group]))[0] != loss_of(make_batch([other]))[0]


def test_microbatches_and_devices_do_not_matter(scored):
    config, params = scored
    groups = random_groups([3, 4, 2, 3, 4, 4, 2, 3], seed=10)
    groups[5] = [(tokens, 1.0) for tokens, _ in groups[5]]      # weighs nothing
    batch = make_batch(groups)
    gradient_fn = jax.grad(partial(ranking_loss, config=config, execution=EXECUTION, key=KEY,
                                   loss="bradley_terry", centering_coef=0.1), has_aux=True)

    def run(num_microbatches, num_devices):
        mesh = make_mesh({"data": num_devices // 2 or 1, "fsdp": min(2, num_devices)},
                         jax.devices()[:num_devices])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, param_shardings(params, mesh))
            gradient, sums = jax.jit(lambda params, batch: accumulate(
                gradient_fn, params, batch, num_microbatches))(placed, place_batch(batch, mesh))
        return jax.device_get((jax.tree.map(lambda leaf: leaf / sums["loss"][1], gradient), sums))

    expected, sums = run(1, 1)
    assert sums["loss"][1] == 7
    for sizes in ((4, 1), (1, 8)):
        gradient, others = run(*sizes)
        np.testing.assert_allclose(others["loss"], sums["loss"], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=2e-6 * max(1, np.abs(b).max())), gradient, expected)
