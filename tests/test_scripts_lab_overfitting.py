"""Overfitting and the law of repeated data: planted laws, the compiled loop, a run in small."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scaling_runs import losses
from small_tokens import write_artifacts

from core.errors import UserError
from data.batch import Batch
from scripts.bench.frontier_train import Recipe
from scripts.lab import overfitting, repeats
from scripts.lab.overfitting import Plan, Texts, describe_curve, measured_steps, run_plan
from scripts.lab.overfitting_page import describe_turns, draw
from train.loss import next_token_loss
from train.scaling.data_limited import DataLimited
from train.scaling.forms import OVERTRAINING
from train.scaling.surface import Fit

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

TINY = Plan("x", row_length=16, widths=(16, 32), num_layers=1, unique_rows=(4, 8), heldout_rows=4,
            recipe=Recipe(num_steps=8, batch_size=4, learning_rate=1e-2))


def curve(law, params, unique, width=32, rise=0.0):
    """A run that follows a law, until its held-out loss rises after the last but one point."""
    tokens_R = unique * 2.0 ** np.arange(-3, 6)
    heldout_R = law.predict(params, tokens_R, unique)
    heldout_R[-1] += rise
    return describe_curve(tokens_R, unique, heldout_R / 2, heldout_R) | {
        "width": width, "params": params, "unique": unique}


# The law ------------------------------------------------------------------------------------------

def test_the_row_of_a_run_says_where_the_held_out_loss_turns():
    row = describe_curve(np.array([50, 100, 200, 400]), 100, np.array([5.0, 4.0, 2.0, 1.0]),
                         np.array([5.0, 4.5, 4.0, 4.6]))
    assert [row[name] for name in ("best_epoch", "best", "epochs", "train", "heldout", "rise",
                                   "gap")] == pytest.approx([2, 4, 4, 1, 4.6, 0.6, 3.6])
    assert row["curve"][2] == [200, 2, 4]


def test_losses_are_measured_at_every_doubling_and_at_the_end():
    assert measured_steps(TINY._replace(recipe=Recipe(48, 4, 1e-2))) == [
        1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 48]


@pytest.fixture
def every_point(monkeypatch):
    """Of a few samples, with those of the warmup."""
    monkeypatch.setattr(repeats, "NUM_SAMPLES", 4)
    monkeypatch.setattr(repeats, "MIN_TOKENS", 0)


@pytest.mark.parametrize("repeated, excess", [(15.4, 5.3), (4.0, 20.0)])
def test_what_repetitions_are_worth_is_found(repeated, excess, every_point):
    law = DataLimited(repeats=repeated, excess=excess)
    curves = [curve(law, params, unique) for params in (1e5, 3e5, 1e6, 1e7)
              for unique in (1e5, 1e6, 1e7)]
    theta_P = np.array(law.theta_P[:4])
    fresh = Fit(OVERTRAINING, theta_P, np.stack([theta_P] * 4), np.zeros(1), 0.0, 1, 1)
    found = repeats.estimate_repeats(curves, fresh)
    assert found["repeats"]["value"] == pytest.approx(repeated, rel=1e-2)
    assert found["excess"]["value"] == pytest.approx(excess, rel=1e-2)
    assert found["error"] < 1e-4 and found["most_epochs"] == 32
    assert f"R_D* is {repeated:.3g} " in found["sentence"]


def test_the_law_of_fresh_tokens_is_that_of_the_first_epoch(every_point):
    """Whatever happens in later ones."""
    theta_P = np.array(DataLimited().theta_P[:4])
    curves = []
    for params in (1e6, 3e6, 1e7):
        for unique in (1e7, 1e8):
            tokens_R = unique * 2.0 ** np.arange(-3, 6)
            loss_R = losses(OVERTRAINING, theta_P, params, tokens_R)
            loss_R[tokens_R > unique] *= 0.99
            curves.append(describe_curve(tokens_R, unique, loss_R, loss_R)
                          | {"params": params, "unique": unique})
    assert repeats.measure_fresh(curves).theta_P == pytest.approx(theta_P, rel=1e-3)


def test_points_of_the_warmup_and_after_the_turn_are_left_out():
    row = curve(DataLimited(), 1e6, 2**17, rise=10.0)
    points_R4 = repeats.list_points(row)
    assert points_R4[:, 1].tolist() == [2.0**n for n in range(15, 22)]
    assert (points_R4[:, 0] == 1e6).all() and (points_R4[:, 2] == 2**17).all()
    assert (np.diff(points_R4[:, 3]) < 0).all()


def test_sentences_say_which_models_turn():
    law = DataLimited()
    rows = [{"a": curve(law, 1e5, 1000, width=32), "b": curve(law, 1e6, 1000, width=64, rise=10)}]
    line, = describe_turns(rows)
    assert line.startswith("1k unique tokens, read 32 times: width 32 does not turn")
    assert "width 64 turns after 16 and rises by 4.25 nats" in line


# The loop -----------------------------------------------------------------------------------------

def rows_of(rng, num):
    tokens_BL = rng.integers(0, 50, (num, TINY.row_length + 1))
    ones_BL = np.ones((num, TINY.row_length))
    return Batch(*(jnp.asarray(each, kind) for each, kind in (
        (tokens_BL[:, :-1], jnp.int32), (tokens_BL[:, 1:], jnp.int32), (ones_BL, jnp.float32),
        (ones_BL, jnp.int32), (ones_BL.cumsum(axis=1) - 1, jnp.int32))))


@pytest.mark.full
def test_the_compiled_loop_is_a_loop_of_steps():
    """The same losses as steps one by one, on rows that are looked up by hand."""
    rng = np.random.default_rng(0)
    train = rows_of(rng, 8)
    texts = Texts(train, jax.tree.map(lambda leaf: leaf[:4], train), rows_of(rng, 4))
    config, recipe = overfitting.make_config(TINY, 16, 50), Recipe(3, 2, 1e-2)
    params = overfitting.init(config, jax.random.key(0))
    order = np.array([[7, 1], [0, 3], [5, 5]])
    found = overfitting.train_and_measure(params, texts, order, np.array([True, False, True]),
                                          config=config, recipe=recipe)

    @partial(jax.value_and_grad)
    def loss_fn(params, rows):
        total, _ = next_token_loss(params, rows, config=config, key=jax.random.key(0),
                                   execution=overfitting.Execution())
        return total / rows.tokens_BL.size

    loss_fn, optimizer = jax.jit(loss_fn), overfitting.make_descent(recipe)
    state, expected = optimizer.init(params), []
    for numbers in order:
        _, gradient = loss_fn(params, jax.tree.map(lambda leaf, own=numbers: leaf[own], train))
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        expected.append([float(loss_fn(params, rows)[0]) for rows in (texts.seen, texts.heldout)])
    expected = np.array(expected).T
    expected[:, 1] = np.nan
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5)


# A run --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    write_artifacts(folder)
    return folder / "tokens"


def test_a_smaller_amount_is_part_of_a_larger_one(tokens):
    texts = overfitting.read_texts(TINY, tokens, seed=1)
    assert texts.train.tokens_BL.shape == (8, 16) and texts.heldout.tokens_BL.shape == (4, 16)
    np.testing.assert_array_equal(texts.seen.tokens_BL, texts.train.tokens_BL[:4])
    other = overfitting.read_texts(TINY, tokens, seed=2)
    assert (other.train.tokens_BL != texts.train.tokens_BL).any(), "seeds draw other rows"
    with pytest.raises(UserError, match=r"rows of 16 tokens: .* of the domain pages"):
        overfitting.read_texts(TINY._replace(unique_rows=(10**6,)), tokens, seed=0)


@pytest.mark.full
def test_a_run_goes_on_where_it_stopped(tokens, tmp_path, monkeypatch, every_point, capsys):
    for name in ("load_matplotlib", "draw"):
        monkeypatch.setattr(overfitting, name, lambda *given: None)
    first = run_plan(TINY, tokens, 1, tmp_path)
    assert len(first["rows"]) == 4 and first["rows"].keys() == {
        f"width {width}, {unique} unique tokens" for width in (16, 32) for unique in (64, 128)}
    table = (tmp_path / "table.md").read_text()
    assert "| width 32, 128 unique tokens | 4.000 |" in table
    printed = capsys.readouterr()
    assert table in printed.out and "R_D* is" in printed.err
    monkeypatch.setattr(overfitting, "train_and_measure", None)     # nothing is trained again
    assert run_plan(TINY, tokens, 1, tmp_path) == first
    with pytest.raises(UserError, match="is a result of other settings"):
        run_plan(TINY._replace(num_layers=2), tokens, 1, tmp_path)


@pytest.mark.full
def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    law = DataLimited()
    rows = [{f"{width} {unique}": curve(law, 1e4 * width, unique, width, rise=0.1)
             for width in (32, 64) for unique in (1000, 2000, 4000)}]
    draw(tmp_path / "figure.png", rows)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
