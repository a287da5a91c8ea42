"""The experiments on learning rates and batch sizes: planted results, and each in small."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny_tokens import TOKENIZER, write_tokens

from core.errors import UserError
from model.families.registry import init
from scripts.coordinate_check import OWN, make_section, resize, scale
from scripts.lab import critical_batch, learning_rate
from scripts.lab.critical_batch import BatchPlan, Reached, fit_seed, steps_to_loss
from scripts.lab.learning_rate import BASE, TransferPlan, list_panels, list_shifts
from scripts.lab.small_models import (
    Text,
    draw_rows,
    find_optimum,
    make_trainer,
    mean_loss,
    read_text,
    sweep,
)
from train.optimizer.optimizers import make_optimizer
from train.scaling.noise_scale import relative_examples, relative_steps

PERIODIC = Text(*[jnp.asarray(np.tile(np.frombuffer(b"abcdefgh", np.uint8), num))
                  for num in (500, 100)])


# The optimum --------------------------------------------------------------------------------------

@pytest.mark.parametrize("best", [-7.0, -6.3, -5.51])
def test_the_optimum_of_a_parabola_is_exact(best):
    values = {exponent: 2 + 0.3 * (exponent - best)**2 for exponent in range(-10, -3)}
    assert find_optimum(values) == pytest.approx((best, 2.0))


@pytest.mark.parametrize("neighbour", [np.inf, np.nan])
def test_next_to_a_divergence_the_least_value_is_taken(neighbour):
    assert find_optimum({-8: 2.5, -7: 2.0, -6: neighbour}) == (-7.0, 2.0)


@pytest.mark.parametrize("best", [-12.3, -6.6, -2.2])
def test_a_sweep_goes_on_until_the_least_value_has_two_neighbours(best):
    asked = []

    def measure(rate):
        asked.append(np.log2(rate))
        return (asked[-1] - best)**2 if asked[-1] < best + 6 else np.nan

    values = sweep(measure, -8, -5)
    assert list(values) == sorted(asked) and len(asked) == len(set(asked))
    assert set(range(-8, -4)) <= set(values)
    assert {round(best) - 1, round(best), round(best) + 1} <= set(values)
    assert find_optimum(values).exponent == pytest.approx(best)


def test_a_sweep_without_an_optimum_is_refused():
    with pytest.raises(UserError, match="all of them diverge"):
        sweep(lambda rate: np.nan, -8, -5)
    with pytest.raises(UserError, match="is the best, at the limits of the search"):
        sweep(lambda rate: rate, -8, -5)


# Training -----------------------------------------------------------------------------------------

def test_rows_are_pieces_of_the_text():
    text_T = jnp.arange(100, dtype=jnp.uint8)
    batch = draw_rows(text_T, jax.random.key(0), 5, 8)
    assert batch.tokens_BL.shape == (5, 8)
    np.testing.assert_array_equal(batch.targets_BL, batch.tokens_BL + 1)
    np.testing.assert_array_equal(np.diff(batch.tokens_BL), 1)
    np.testing.assert_array_equal(batch.positions_BL, np.tile(np.arange(8), (5, 1)))
    assert len(set(batch.tokens_BL[:, 0].tolist())) > 1


def test_the_text_is_the_decoded_domain(tmp_path):
    write_tokens(tmp_path / "tokens", {"pages": [TOKENIZER.encode("the other ") * 30]})
    text = read_text(str(tmp_path / "tokens"), "pages", 10_000)
    whole = bytes(np.concatenate(text).tolist()).decode()
    assert "the other the other" in whole and len(text.heldout_T) == round(0.05 * len(whole))
    for given, rule in (("", "--tokens: is missing"), ("nowhere", "no such file or folder")):
        with pytest.raises(UserError, match=rule):
            read_text(given, "pages", 10)


@pytest.mark.full
@pytest.mark.parametrize("is_scaled", [pytest.param(False, marks=pytest.mark.full), True])
def test_a_learning_rate_that_is_an_argument_trains_as_one_of_the_section(is_scaled):
    base, config = resize(OWN, 16, 1), resize(OWN, 32, 1)
    own = dict(schedule="linear", warmup_steps=2, weight_decay=0.1)
    trainer = make_trainer(config, ConfigDict(own), 4, base if is_scaled else None)
    section = make_section(0.01)
    section.update(own)
    if is_scaled:
        config, section = scale(config, section, base)
        assert section.lr_multipliers["w_up_DF"] == 0.5
    assert trainer.config == config
    optimizer = make_optimizer(section, 4)

    @jax.jit
    def train(rate):
        batches = [draw_rows(PERIODIC.train_T, jax.random.key(seed), 2, 8) for seed in range(2)]
        state, params = trainer.start(jax.random.key(0)), init(config, jax.random.key(0))
        moments = optimizer.init(params)
        for batch in batches:
            state = trainer.step(state, batch, rate)
            updates, moments = optimizer.update(jax.grad(mean_loss)(params, batch, config),
                                                moments, params)
            params = optax.apply_updates(params, updates)
        return state[0], params

    got, want = train(0.01)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, want)


# Learning rates -----------------------------------------------------------------------------------

PLAN = TransferPlan(widths=(64, 128, 256), depths=(2, 4))


def planted_rows(shift, noise=0.0):
    """Losses of which the optimum moves by `shift` per doubling of the width; deeper it stays."""
    rows = {}
    for panel in list_panels(PLAN):
        for size, name in panel.names.items():
            moved = shift * np.log2(size / 64) if panel[:2] == ("width", "standard") else 0.0

            def train(rate, best=-6.3 + moved + noise):
                return 2 + 0.1 * (np.log2(rate) - best)**2

            rows[name] = learning_rate.measure_model(train, PLAN)
    return rows


def test_the_models_are_those_of_four_panels_with_one_base():
    panels = list_panels(PLAN)
    assert [panel[:2] for panel in panels] == [
        ("width", "standard"), ("width", "muP"), ("depth", "standard"), ("depth", "CompleteP")]
    assert panels[1].names == {64: BASE, 128: "muP, width 128", 256: "muP, width 256"}
    rows = learning_rate.list_rows(PLAN, PERIODIC, 0)
    assert next(iter(rows)) == BASE and len(rows) == 1 + 2 + 2 + 1 + 1


def test_the_shift_of_planted_optima_is_exact():
    seeds = [planted_rows(-0.8, noise) for noise in (0.0, 0.2)]
    shifts = [list_shifts(panel, seeds) for panel in list_panels(PLAN)]
    np.testing.assert_allclose(shifts, [[-0.8, -0.8], [0, 0], [0, 0], [0, 0]], atol=1e-9)


def test_the_table_has_optima_losses_and_shifts():
    table = learning_rate.format_table(list_panels(PLAN), [planted_rows(-0.8)]).splitlines()
    assert table[2] == "| standard | width 64 | -6.30 | 2.000 | 2.009 | -0.80 |"
    assert table[4] == "|  | width 256 | -7.90 | 2.000 | 2.361 |  |"
    lost = planted_rows(-0.8)
    lost["muP, width 128"]["losses"] = [[-6, None]]
    assert "diverged or not tried" in learning_rate.format_table(list_panels(PLAN), [lost])


def test_one_training_learns(tmp_path):
    plan = TransferPlan(widths=(16, 32), depths=(1, 2), num_steps=30, warmup_steps=2, num_rows=4,
                        row_length=16, heldout_rows=8)
    train = learning_rate.make_training(plan, "width", 16, "standard")
    losses = [float(train(PERIODIC, seed, rate)) for seed, rate in (
        (0, 0.0), (0, 0.01), (0, 0.01), (1, 0.01))]
    assert losses[0] == pytest.approx(np.log(256), rel=0.1)
    assert losses[1] < losses[0] - 1 and losses[1] == losses[2] != losses[3]


# The critical batch size --------------------------------------------------------------------------

def test_the_step_of_a_crossing_lies_between_two_measurements():
    plan = BatchPlan(loss=2.0, rows_between=64)
    reached = Reached(None, jnp.int32(48), jnp.float32(2.3), jnp.float32(1.9))
    assert steps_to_loss(plan, 8, reached) == pytest.approx(40 + 8 * 0.75)
    assert steps_to_loss(plan, 8, reached._replace(loss=jnp.float32(2.1))) == np.inf
    assert steps_to_loss(plan, 8, reached._replace(loss=jnp.float32(np.nan))) == np.inf


def test_the_critical_batch_of_planted_trainings_is_found():
    sizes = np.array([256, 512, 2048, 8192])
    rows = {str(size): {"steps": 50 * relative_steps(size, 1000), "noise_scale": noise,
                        "tokens": 50_000 * relative_examples(size, 1000), "exponent": -7.0}
            for size, noise in zip(sizes, (1000, 4000, 2000, 2000))}
    fit = fit_seed(rows)
    assert fit == pytest.approx((50, 50_000, 1000, 2000), rel=1e-6)
    plan = BatchPlan(sizes=tuple(int(size) for size in sizes), row_length=1)
    table = critical_batch.format_table(plan, [rows], [fit])
    assert "| 256 | -7.00 | 245 | 62,800 | 1,000 |" in table
    assert "| critical batch by the trainings, tokens | 1,000 |" in table


SMALL = BatchPlan(width=16, depth=1, loss=2.5, sizes=(2, 8), exponents=(-7, -6), warmup_steps=2,
                  max_tokens=20_000, row_length=16, piece_rows=2, heldout_rows=8, rows_between=8,
                  small_rows=2, large_rows=16, large_batches=4)


@pytest.mark.full
def test_pieces_of_a_batch_train_as_the_batch():
    train, trainer = critical_batch.make_training(SMALL), critical_batch.make_trainer_of(SMALL)
    key_weights, key_rows, key_heldout = jax.random.split(jax.random.key(3), 3)
    pieces = [draw_rows(PERIODIC.train_T, jax.random.fold_in(jax.random.fold_in(key_rows, 0), n),
                        2, 16) for n in range(4)]
    batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)
    reached = train(PERIODIC, 3, 8, 0.01, 1)
    params, _ = jax.jit(lambda key, batch: trainer.step(trainer.start(key), batch, 0.01))(
        key_weights, batch)
    assert int(reached.num_steps) == 1 and float(reached.before) > float(reached.loss) > 4
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), reached.params, params)
    heldout = draw_rows(PERIODIC.heldout_T, key_heldout, 8, 16)
    assert float(reached.loss) == pytest.approx(float(mean_loss(params, heldout, trainer.config)),
                                                rel=1e-4)


@pytest.mark.full
def test_a_batch_size_in_small():
    row = critical_batch.measure_batch(SMALL, PERIODIC, 0, 8)
    assert row["tokens"] == pytest.approx(128 * row["steps"]) and 1 < row["steps"] < 150
    assert row["noise_scale"] > 0
    assert row["steps"] <= min(steps for _, steps in row["tried"] if steps is not None)


@pytest.mark.full
def test_both_experiments_in_small_with_their_figures_go_on_where_they_were(tmp_path):
    pytest.importorskip("matplotlib")
    transfer = TransferPlan(widths=(16, 32), depths=(1, 2), num_steps=20, warmup_steps=2,
                            num_rows=4, row_length=16, heldout_rows=8)
    found = learning_rate.run_plan(transfer, PERIODIC, 2, tmp_path / "rates")
    assert set(found["shifts"]["width"]) == {"standard", "muP"}
    batches = critical_batch.run_plan(SMALL, PERIODIC, 2, tmp_path / "batches")
    assert batches["critical_batch_tokens"]["mean"] > 0
    for folder in ("rates", "batches"):
        assert (tmp_path / folder / "figure.png").stat().st_size > 10_000
    assert learning_rate.run_plan(transfer, PERIODIC, 2, tmp_path / "rates") == found
    with pytest.raises(UserError, match="is a result of other settings"):
        learning_rate.run_plan(transfer._replace(num_steps=21), PERIODIC, 2, tmp_path / "rates")


@pytest.mark.parametrize("module", [learning_rate, critical_batch])
def test_a_missing_folder_is_refused(module, monkeypatch):
    monkeypatch.setattr(module, "flags", SimpleNamespace(FLAGS=SimpleNamespace(out="")))
    with pytest.raises(UserError, match="--out: is missing"):
        module.main()
