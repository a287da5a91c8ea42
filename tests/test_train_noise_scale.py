"""The gradient noise scale of a model: against laws that are known, and as a command."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokens import write_tokens

from core.artifacts import make_lineage, read_json, write_json
from core.errors import UserError
from core.file_sums import write_sums as write_file_sums
from model.config import ModelConfig
from model.directory import save_model
from model.families.registry import init
from train.loss import next_token_loss
from train.scaling.gradients import measure_norms
from train.scaling.noise import describe_noise, draw_batches, noise, show_noise
from train.scaling.noise_scale import GradientNorms, estimate_from_norms, noise_intervals

KEY = jax.random.key(0)


# Laws ---------------------------------------------------------------------------------------------

def regression_loss(params, batch, *, key):
    """Half of the squared error of a linear model, a row counting as much as its weight."""
    errors_B = batch["x_BX"] @ params - batch["y_B"]
    weights_B = batch["weights_B"]
    return jnp.sum(weights_B * errors_B**2) / 2, {
        "loss": (jnp.sum(weights_B * errors_B**2) / 2, jnp.sum(weights_B))}


def draw_regression(rng, num, size, *, num_batches, noise):
    """Batches of normal inputs whose targets are those of the parameters 0, and noise."""
    return [{"x_BX": rng.normal(size=(num, size)).astype(np.float32),
             "y_B": rng.normal(0, noise, num).astype(np.float32),
             "weights_B": np.ones(num, np.float32)} for _ in range(num_batches)]


def test_the_noise_scale_of_a_linear_regression_is_that_of_its_law():
    """With d the parameters' error and s the noise, of normal inputs the gradient of a row is
    x (x d - e): its mean is d, and the trace of its covariance (X + 1) |d|^2 + X s^2."""
    rng, d_X, s = np.random.default_rng(0), np.float32([0.5, -1.0, 0.25, 0.0, 2.0, -0.5]), 3.0
    batches = draw_regression(rng, 400, len(d_X), num_batches=16, noise=s)
    norms = measure_norms(regression_loss, jnp.asarray(d_X), batches, num_small=100, key=KEY)
    assert norms.batch_tokens == 4 and norms.squared_RC.shape == (16, 100)
    squared = float(d_X @ d_X)
    trace = (len(d_X) + 1) * squared + len(d_X) * s**2
    found = noise_intervals(norms)
    for name, law in (("squared_norm", squared), ("trace", trace),
                      ("noise_scale", trace / squared)):
        assert found[name].low < law < found[name].high, name
        assert found[name].value == pytest.approx(law, rel=0.15)
    sizes = norms.squared_norms()
    assert list(sizes) == [4, 400, 800, 1600, 3200, 6400]
    for size in (4, 400):
        assert sizes[size] == pytest.approx(squared + trace / size, rel=0.1)


def planted_norms(rng, gradient_X, deviation, num, num_small):
    """Norms of small batches' gradients that are normal around the true one."""
    small_RCX = gradient_X + rng.normal(0, deviation, (num, num_small, len(gradient_X)))
    large_RX = small_RCX.mean(axis=1)
    return GradientNorms((small_RCX**2).sum(axis=2), large_RX @ large_RX.T, 1.0)


def test_the_intervals_hold_the_truth_as_often_as_they_claim():
    rng, gradient_X = np.random.default_rng(1), np.full(40, 0.1)
    truths = {"squared_norm": 0.4, "trace": 40 * 0.25, "noise_scale": 25.0}
    found = [noise_intervals(planted_norms(rng, gradient_X, 0.5, 8, 50)) for _ in range(400)]
    for name, truth in truths.items():
        covered = np.mean([each[name].low < truth < each[name].high for each in found])
        assert 0.92 < covered < 0.985, (name, covered)


def test_all_pairs_of_small_batches_give_the_squared_norm():
    """The estimate by two sizes is the mean product of two different small batches' gradients."""
    small_SX = np.random.default_rng(2).normal(1.0, 0.5, (12, 5))
    products_SS = small_SX @ small_SX.T
    large_RX = small_SX.reshape(3, 4, 5).mean(axis=1)
    norms = GradientNorms(np.diag(products_SS).reshape(3, 4), large_RX @ large_RX.T, 7.0)
    found = estimate_from_norms(norms)
    pairs = products_SS[~np.eye(12, dtype=bool)].mean()
    assert found.squared_norm == pytest.approx(pairs)
    assert found.trace == pytest.approx(7 * (np.diag(products_SS).mean() - pairs))


def test_the_size_of_the_small_batches_changes_no_large_one():
    batches = draw_regression(np.random.default_rng(3), 48, 4, num_batches=4, noise=1.0)
    params = jnp.ones(4)
    found = {num: measure_norms(regression_loss, params, batches, num_small=num, key=KEY)
             for num in (48, 12, 4)}
    for num, norms in found.items():
        assert norms.batch_tokens == 48 / num
        np.testing.assert_allclose(norms.products_RR, found[4].products_RR, rtol=1e-5)
        assert noise_intervals(norms)["noise_scale"].value == pytest.approx(
            estimate_from_norms(found[4]).noise_scale, rel=0.3)
    halves = [jax.tree.map(lambda leaf, part=part: leaf[part], batch) for batch in batches
              for part in (slice(0, 24), slice(24, 48))]
    as_large = measure_norms(regression_loss, params, halves, num_small=6, key=KEY)
    as_small = measure_norms(regression_loss, params, batches, num_small=2, key=KEY)
    np.testing.assert_allclose(np.diag(as_large.products_RR), as_small.squared_RC.ravel(),
                               rtol=1e-5)


def test_tokens_without_a_weight_do_not_count(params, config, execution, batch):
    loss_fn = partial(next_token_loss, config=config, execution=execution)
    batches = [batch.replace(loss_weights_BL=np.float32(batch.loss_weights_BL > least))
               for least in (0, 1, 0)]
    norms = measure_norms(loss_fn, params, batches, num_small=4, key=KEY)
    counts = [each.loss_weights_BL.sum() for each in batches]
    assert norms.batch_tokens == pytest.approx(np.sum(counts) / 12)
    gradient, _ = jax.jit(jax.grad(loss_fn, has_aux=True))(params, batches[1], key=KEY)
    squared = sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(gradient))
    assert norms.products_RR[1, 1] == pytest.approx(squared / norms.large_tokens**2, rel=1e-4)
    assert norms.products_RR[0, 2] == pytest.approx(norms.products_RR[0, 0])


# What is refused ----------------------------------------------------------------------------------

def test_noise_that_hides_the_gradient_is_refused():
    """By chance an estimate may still be positive, of all batches and without any one of them."""
    rng = np.random.default_rng(0)
    hidden, refusals = [planted_norms(rng, np.zeros(40), 1.0, 6, 10) for _ in range(100)], []
    for norms in hidden:
        try:
            noise_intervals(norms)
        except UserError as error:
            refusals.append(str(error))
    both = [sum(text in refusal for refusal in refusals) for text in (
        "give no noise scale", "without one of the large batches noise hides the gradient")]
    assert sum(both) == len(refusals) > 60 and min(both) > 5
    with pytest.raises(UserError, match="2 large batches: are too few for an interval"):
        noise_intervals(hidden[0].choose(np.arange(2)))


def test_batches_that_cannot_be_measured_are_refused():
    batches = draw_regression(np.random.default_rng(0), 10, 3, num_batches=1, noise=1.0)
    with pytest.raises(UserError, match="of 10 rows: is no multiple of 4 small ones"):
        measure_norms(regression_loss, jnp.ones(3), batches, num_small=4, key=KEY)
    with pytest.raises(UserError, match="gradients: are not finite"):
        measure_norms(regression_loss, jnp.full(3, np.inf), batches, num_small=5, key=KEY)
    empty = [each | {"weights_B": np.zeros(10, np.float32)} for each in batches]
    with pytest.raises(UserError, match="have no target that is scored"):
        measure_norms(regression_loss, jnp.ones(3), empty, num_small=5, key=KEY)


# The command --------------------------------------------------------------------------------------

def write_model(folder, params, config, tokenizer, section):
    save_model(folder, params, config, tokenizer, chat=False, context_tokens=16)
    write_json(folder / "lineage.json",
               make_lineage(stage="pretrain", config={"pretrain": section}, inputs={}, code=""))
    write_file_sums(folder, [folder / "lineage.json"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, params, config):
    """A token folder, and the tiny model as if trained on it."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    write_tokens(root / "tokens", {
        name: [rng.integers(0, 20, rng.integers(30, 60)).tolist() for _ in range(num)]
        for name, num in (("pages", 60), ("code", 3))})
    section = {"batch_size": 4, "row_length": 16, "mixture": {"pages": 2.0, "code": 0.0}}
    write_model(root / "base", params, config, root / "tokens" / "tokenizer", section)
    return root


def flags(root, **given):
    return SimpleNamespace(**dict(
        model=str(root / "base"), tokens=str(root / "tokens"), out=str(root / "out"), domains=[],
        batch_rows=["2", "8"], batches=4, figures=False) | given)


def test_the_command_writes_what_it_measures(folders, capsys):
    result = noise(flags(folders))
    assert read_json(folders / "out" / "noise.json") == result
    scale = result["noise_scale_tokens"]
    assert 0 < scale["low"] < scale["value"] < scale["high"]
    assert result["mixture"] == {"pages": 1.0} and result["batch_rows"] == [2, 8]
    assert 14 < result["tokens_per_row"] <= 16
    trained, = (each for each in result["implied"] if each["is_training"])
    assert trained["batch_tokens"] == 64
    assert trained["relative_steps"] == pytest.approx(1 + scale["value"] / 64)
    assert trained["relative_tokens"] == pytest.approx(1 + 64 / scale["value"])
    first, *_, last = result["norms"]
    for each in (first, last):
        assert each["squared_norm"] == pytest.approx(
            result["squared_norm"]["value"] + result["trace"]["value"] / each["batch_tokens"])
    shown = capsys.readouterr().out
    assert shown.startswith("| | estimate | 95 % interval |")
    assert "| 64, in training | " in shown and show_noise(result) in shown


def test_the_batches_are_disjoint_rows_of_the_domains(folders):
    batches = draw_batches(folders / "tokens", {"pages": 1.0}, 16, 8, 4)
    assert len(batches) == 4 and {each.tokens_BL.shape for each in batches} == {(8, 16)}
    assert len({row.tobytes() for batch in batches for row in batch.tokens_BL}) == 32
    with pytest.raises(UserError, match=r"need 40 rows of code, which has \d+ of 16 tokens"):
        draw_batches(folders / "tokens", {"code": 1.0}, 16, 10, 4)


@pytest.mark.parametrize("given, rule", [
    (dict(model=""), "--model: is missing"), (dict(tokens="nowhere"), "no such file or folder"),
    (dict(batch_rows=["8"]), "are no two numbers of rows"),
    (dict(batch_rows=["8", "12"]), "the second is a multiple of the first"),
    (dict(batch_rows=["8", "8"]), "the second is a multiple"),
    (dict(domains=["prose"]), "--domains=prose: .* holds code, pages"),
    (dict(batches=400), "need 3,200 rows of pages")])
def test_what_does_not_fit_is_refused(folders, given, rule):
    with pytest.raises(UserError, match=rule):
        noise(flags(folders, **given))


def test_a_model_that_does_not_continue_text_is_refused(folders, tmp_path):
    encoder = ModelConfig(V=98, D=16, N=1, H=2, G=2, K=8, F=32, family="encoder", masked_head=True)
    write_model(tmp_path / "encoder", jax.jit(partial(init, encoder))(KEY), encoder,
                folders / "tokens" / "tokenizer", {})
    with pytest.raises(UserError, match="is an encoder, which does not continue text"):
        noise(flags(folders, model=str(tmp_path / "encoder")))


def test_a_model_of_unknown_training_needs_domains(folders, tmp_path, params, config):
    write_model(tmp_path / "own", params, config, folders / "tokens" / "tokenizer", {})
    with pytest.raises(UserError, match=r"--domains: is missing, .*: name some of code, pages"):
        noise(flags(folders, model=str(tmp_path / "own")))


def test_without_the_batch_of_the_training_the_noise_scale_alone_gives_sizes():
    norms = planted_norms(np.random.default_rng(0), np.full(40, 0.1), 0.5, 8, 50)
    found = describe_noise(norms, 0)
    assert [each["is_training"] for each in found["implied"]] == [False] * 5
    assert found["implied"][2]["relative_steps"] == pytest.approx(2)
    assert found["noise_scale_tokens"]["value"] == pytest.approx(dataclasses.asdict(
        estimate_from_norms(norms))["noise_scale"])


def test_the_figure_is_drawn(folders):
    pytest.importorskip("matplotlib")
    result = noise(flags(folders, figures=True))
    assert result["figures"] == [str(folders / "out" / "noise.png")]
    assert (folders / "out" / "noise.png").stat().st_size > 10_000
