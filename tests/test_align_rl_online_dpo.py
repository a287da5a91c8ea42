"""Online DPO: its pairs, and its loss against that of align.dpo on the same answers."""

from functools import partial

import jax
import numpy as np
import pytest

from align.losses.preference import Settings, preference_loss
from align.preference_rows import PairRows, Renderer, write_rows
from align.reference import compute_reference
from align.rl.algorithms import ALGORITHMS, Known, make_pair_batch, read_algorithm
from align.rl.answers import Answer
from align.rl.experience import Experience, read_experience, write_experience
from align.rl.rollouts import make_rows
from align.rl.update import loss_weight, make_pair_loss, score_rows
from configs.rl import get_config
from core.errors import UserError
from data.batch import stack
from data.chat import ask, render_prompt
from data.layouts.faults import Faults
from data.preferences import Preference
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.examples import Examples
from model.families.registry import init
from model.parallel.sharding import make_mesh
from train.setup import Setup

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
QUESTIONS = "abc"
# Of each question four answers; of the last one all rewards are alike.
TEXTS = (("b", "ccc", "dd", "eeee"), ("x", "yy", "x y", "zz"), ("one", "two", "four", "five"))
REWARDS = np.array([0.5, 1, 0, 0.2, 1, 0, 1, 0, 0.3, 0.3, 0.3, 0.3], np.float32)
LENGTH = 24
PAIRS = {num: jax.jit(partial(make_pair_batch, num_samples=num)) for num in (3, 4)}


def make_answer(question, text):
    tokens = [*TOKENIZER.encode(text), TOKENIZER.end]
    return Answer(ask(question, "a"), tuple(render_prompt(ask(question), TOKENIZER)), tokens,
                  [0.0] * len(tokens), text, "stop")


@pytest.fixture
def rows():
    return make_rows([make_answer(question, text) for question, texts in zip(QUESTIONS, TEXTS)
                      for text in texts], LENGTH)


def make_known(rows, reference_BL, scores_B=REWARDS):
    return Known(scores_B, rows.loss_weights_BL, reference_BL, reference_BL, None, np.float32(0))


def make_pairs(rows, reference, temperature, **bound):
    """The pairs of `TEXTS` by `REWARDS`, with log-probabilities under a reference."""
    score = jax.jit(partial(score_rows, temperature=temperature, **bound))
    reference_BL, _ = score(reference, None, rows)
    return PAIRS[4](make_known(rows, reference_BL), rows)


@pytest.fixture
def reference(config):
    """Parameters of another model than the policy."""
    return jax.jit(partial(init, config))(jax.random.key(7))


def test_the_loss_is_that_of_align_dpo_on_the_same_pairs(
        rows, params, reference, config, execution, tmp_path):
    """At a temperature; the pairs are rendered and scored by align.dpo's own code."""
    settings = Settings(beta=0.3, temperature=0.7)
    bound = dict(config=config, execution=execution)
    batch = make_pairs(rows, reference, 0.7, **bound)
    np.testing.assert_array_equal(batch.weights_B, [1, 1, 0])
    loss_sum, metrics = jax.jit(partial(make_pair_loss(settings, None), key=None, **bound))(
        {"model": params}, batch)
    assert metrics["loss"][1] == loss_weight(batch, settings) == 2

    pairs = [Preference(ask(question), texts, (1, 2)) for question, texts in (
        ("a", ("ccc", "dd")), ("b", ("x", "yy")))]
    faults = Faults("dpo", "fail")
    write_rows(tmp_path / "rows", lambda: iter(pairs),
               Renderer(TOKENIZER, LENGTH, "fail", faults, "dpo"), heldout_frac=0.0, labels=False)
    offline = PairRows(Examples(tmp_path / "rows"), LENGTH)
    mesh = make_mesh(dict(data=1), jax.devices()[:1])
    offline.reference = compute_reference(reference, offline, setup=Setup(config, execution, mesh),
                                          batch_size=2, temperature=0.7)
    expected_batch = stack([offline[0], offline[1]])
    for side in ("chosen", "rejected"):
        own, other = (getattr(one, side) for one in (batch, expected_batch))
        np.testing.assert_array_equal((own.targets_BL * own.loss_weights_BL)[:2],
                                      other.targets_BL * other.loss_weights_BL)
    expected_sum, expected = jax.jit(partial(preference_loss, key=None, settings=settings,
                                             **bound))(params, expected_batch)
    assert loss_sum == pytest.approx(float(expected_sum), abs=1e-6)
    for name in ("loss", "margin", "chosen_reward", "rejected_logp"):
        assert metrics[name][0] == pytest.approx(float(expected[name][0]), abs=1e-5), name
    assert abs(float(expected["loss"][0]) / 2 - np.log(2)) > 1e-3


def test_a_policy_that_is_its_reference_has_the_loss_ln_2(rows, params, config, execution):
    bound = dict(config=config, execution=execution)
    batch = make_pairs(rows, params, 1.0, **bound)
    _, metrics = jax.jit(partial(make_pair_loss(Settings(), None), key=None, **bound))(
        {"model": params}, batch)
    assert metrics["loss"][0] / 2 == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize("scores, is_answer, chosen, rejected, weight", [
    ([0.1, 0.9, 0.4], [1, 1, 1], 1, 0, 1),
    ([0.9, 0.1, 0.9], [1, 1, 1], 0, 1, 1),          # of equal ones the first
    ([0.5, 0.5, 0.5], [1, 1, 1], 0, 0, 0),
    ([0.5, np.nan, 0.1], [1, 1, 1], 0, 0, 0),
    ([0.5, np.inf, 0.1], [1, 1, 1], 0, 0, 0),
    ([0.2, 9.0, 0.1], [1, 0, 1], 0, 2, 1),          # an answer without tokens is none
    ([0.2, 9.0, 0.1], [1, 0, 0], 0, 0, 0)])
def test_the_best_and_the_worst_answer_are_a_pair(scores, is_answer, chosen, rejected, weight):
    rows = make_rows([make_answer("a", text) for text in ("one", "two", "six")], LENGTH)
    mask_BL = rows.loss_weights_BL * np.array(is_answer, np.float32)[:, None]
    known = make_known(rows, np.zeros_like(mask_BL), np.array(scores, np.float32))
    found = PAIRS[3](known._replace(mask_BL=mask_BL), rows)
    assert found.weights_B.tolist() == [weight]
    if weight:
        np.testing.assert_array_equal(found.chosen.tokens_BL[0], rows.tokens_BL[chosen])
        np.testing.assert_array_equal(found.rejected.tokens_BL[0], rows.tokens_BL[rejected])


def test_pairs_are_read_as_they_were_written(rows, tmp_path):
    batch = jax.device_get(PAIRS[4](make_known(rows, rows.loss_weights_BL * -1.5), rows))
    write_experience(tmp_path, 3, Experience(batch, {"kl": 0.5}, True))
    found = read_experience(tmp_path, 3)
    assert found.metrics == {"kl": 0.5} and found.is_usable
    assert jax.tree.structure(found.batch) == jax.tree.structure(batch)
    jax.tree.map(np.testing.assert_array_equal, found.batch, batch)


def test_its_beta_is_the_kl_coefficient():
    section = get_config("online_dpo").rl
    section.update(kl_coef=0.25, temperature=0.5)
    algorithm, settings, _ = read_algorithm(section)
    assert algorithm is ALGORITHMS["online_dpo"]
    assert settings == Settings(loss="dpo", beta=0.25, temperature=0.5)
    for change, message in ((dict(kl_coef=0.0), "online_dpo.kl_coef=0: is the beta of online_dpo"),
                            (dict(num_samples=1), "online_dpo.num_samples=1: gives online_dpo no"),
                            (dict(kl_target=1.0), "online_dpo.kl_target=1.0: moves a coeffic")):
        section = get_config("online_dpo").rl
        section.update(change)
        with pytest.raises(UserError, match=f"^{message}"):
            read_algorithm(section)
