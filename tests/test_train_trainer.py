"""The trainer: when first parameters are made, and that nothing holds them a second time."""

import dataclasses
import gc
import math
import shutil
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer, make_training, make_training_run
from core.artifacts import make_lineage, open_partial, write_json
from core.artifacts import parent as artifact
from core.errors import UserError
from model.config import ModelConfig
from model.directory import load_params, read_description, save_model
from model.families.registry import abstract_params, init
from model.parallel.sharding import make_mesh
from train.pretrain import make_epochs
from train.reading import Phase, Reading
from train.setup import Setup
from train.trainer import Data, train
from train.watch.compilation import Compilations
from train.watch.metrics import read_metrics

NUM_STEPS = 4
MODEL = ModelConfig(V=512, D=128, N=2, H=4, G=2, K=32, F=512)


def quadratic_loss(params, batch, *, config, execution, key):
    """Half the squared norm of all parameters, for each row: the gradient is the parameters."""
    rows = jnp.sum(batch["ones_B"])
    loss_sum = rows * 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return loss_sum, {"loss": (loss_sum, rows)}


def test_epochs_of_pretraining_are_tokens_drawn_over_those_there_are(tmp_path):
    write_json(tmp_path / "tokens.json", {"domains": {"pages": {"tokens": 640},
                                                      "best": {"tokens": 80}}})
    phases = (Phase("mixture", 8, {"pages": 1.0}),
              Phase("anneal_mixture", 2, {"best": 0.5, "pages": 0.5}))
    reading = Reading({"row_length": 10}, "", {}, batch_size=4, first_step=0, tokens_before=0,
                      drawn={}, phases=phases)
    epochs = make_epochs(reading, tmp_path)
    assert epochs(4) == {"tokens": 160, "epochs/pages": 0.25, "epochs/best": 0.0}
    assert epochs(10) == {"tokens": 400, "epochs/pages": 0.5625, "epochs/best": 0.5}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model directory to start from."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "words").mkdir()
    write_json(folder / "words" / "tokenizer.json", {"vocab_size": MODEL.V, "fingerprint": "0"})
    params = jax.jit(partial(init, MODEL))(jax.random.key(0))
    save_model(folder, params, MODEL, folder / "words", chat=False, context_tokens=8)
    return folder


@pytest.fixture
def run(tmp_path, execution):
    """`run(make_params, mesh, ...)`: trains in one folder and gives the parameters and, for each
    evaluation, the bytes of arrays that were not there before the training.

    A save under way holds copies on the host, which on a CPU look like others; so none is under
    way while it is measured, unless a test asks for earlier checkpoints.
    """
    def run(make_params, mesh, *, model=MODEL, checkpoint_every=NUM_STEPS, **optimizer):
        open_partial(tmp_path, make_lineage(stage="toy", config={}, inputs={}, code=""))
        section = ConfigDict(make_training(
            out="toy", row_length=8, batch_size=2, optimizer=make_optimizer(
                clip_norm=0.0, schedule="constant", warmup_steps=0, **optimizer),
            run=make_training_run(log_every=1, evaluate_every=1,
                                  checkpoint_every=checkpoint_every)))
        batches = grain.MapDataset.range(NUM_STEPS).map(lambda _: {"ones_B": np.ones(2, "f4")})
        before, found = live_bytes(), []

        def evaluate(params):
            found.append(live_bytes() - before)
            return {"norm": float(params["final_norm_D"][0])}

        trained, _ = train(quadratic_loss, Data(batches), make_params, section=section,
                           folder=tmp_path, setup=Setup(model, execution, mesh), evaluate=evaluate)
        return jax.device_get(trained.params), found

    return run


def live_bytes():
    """Bytes of all arrays that anybody in this process still holds."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted())


def param_bytes():
    shapes = abstract_params(MODEL)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def within(found, copies):
    """Whether the parameters, and what is as large, were there so many times, and little else."""
    whole, slack = param_bytes(), 50_000
    assert whole > 40 * slack, "a copy must be told from the slack"
    return all(copies * whole <= size <= copies * whole + slack for size in found)


ONE, TWO = {"data": 1}, {"fsdp": 2}
MOMENTS = {"sgd": 0, "adamw": 2}


@pytest.mark.parametrize("axes, name", [
    (ONE, "sgd"), pytest.param(ONE, "adamw", marks=pytest.mark.full),
    pytest.param(TWO, "sgd", marks=pytest.mark.full)], ids=str)
def test_training_further_holds_the_parameters_once(run, source, tmp_path, axes, name):
    mesh = make_mesh(axes, jax.devices()[:math.prod(axes.values())])
    load = partial(load_params, source, MODEL, mesh)
    copies, settings = 1 + MOMENTS[name], {"name": name, "momentum": 0.0}
    whole, found = run(load, mesh, **settings)
    assert len(found) == NUM_STEPS and within(found, copies), (found, param_bytes())

    shutil.rmtree(tmp_path / "checkpoints")
    run(load, mesh, checkpoint_every=2, **settings)
    shutil.rmtree(tmp_path / "checkpoints" / str(NUM_STEPS))
    resumed, found = run(must_not_be_called, mesh, **settings)      # from step 2
    assert len(found) == NUM_STEPS - 2 and within(found, copies), (found, param_bytes())
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_another_models_checkpoint_is_refused_before_anything_is_compiled(run, source):
    mesh = make_mesh(ONE, jax.devices()[:1])
    run(partial(load_params, source, MODEL, mesh), mesh, name="sgd", momentum=0.0)
    other = dataclasses.replace(MODEL, F=256)
    with Compilations() as compilations, pytest.raises(UserError, match="w_down_FD is float32"):
        run(must_not_be_called, mesh, model=other, name="sgd", momentum=0.0)
    assert compilations.programs == {}


def must_not_be_called():
    raise AssertionError("parameters were made although there is a checkpoint")


def test_the_measure_sees_a_second_copy(run, source):
    """A caller that keeps what it loaded, as a trainer would that takes arrays for an argument."""
    mesh = make_mesh(ONE, jax.devices()[:1])
    loaded = []

    def load_and_keep():
        loaded.append(load_params(source, MODEL, mesh))
        return jax.tree.map(jnp.copy, loaded[0])

    _, found = run(load_and_keep, mesh, name="sgd", momentum=0.0)
    assert within(found, 2), (found, param_bytes())


def test_a_finished_run_gives_its_parameters_again(run, source):
    mesh = make_mesh(ONE, jax.devices()[:1])
    first, _ = run(partial(load_params, source, MODEL, mesh), mesh, name="sgd", momentum=0.0)
    start = jax.device_get(load_params(source, MODEL))
    jax.tree.map(lambda leaf, old: np.testing.assert_allclose(
        leaf, old * (1 - 1e-3) ** NUM_STEPS, rtol=1e-5), first, start)
    again, found = run(must_not_be_called, mesh, name="sgd", momentum=0.0)
    assert found == [], "every evaluation is recorded already"
    jax.tree.map(np.testing.assert_array_equal, again, first)


def test_beside_an_average_the_raw_parameters_are_evaluated_and_kept(source, tmp_path, execution):
    """By hand: each step multiplies by 0.5; the corrected average of 1/2 and 1/4 at decay 0.5 is
    (1/2 + 2/4) / 3."""
    folder, mesh = tmp_path / "run", make_mesh(ONE, jax.devices()[:1])
    open_partial(folder, make_lineage(stage="toy", config={}, inputs={}, code=""))
    section = ConfigDict(make_training(
        out="toy", row_length=8, batch_size=2, ema_decay=0.5, optimizer=make_optimizer(
            name="sgd", momentum=0.0, clip_norm=0.0, schedule="constant", warmup_steps=0,
            learning_rate=0.5), run=make_training_run(log_every=1)))
    batches = grain.MapDataset.range(2).map(lambda _: {"ones_B": np.ones(2, "f4")})
    trained, _ = train(quadratic_loss, Data(batches), partial(load_params, source, MODEL, mesh),
                       section=section, folder=folder, setup=Setup(MODEL, execution, mesh),
                       evaluate=lambda params: {"scale": float(params["final_norm_D"][0])})
    trained.save(folder, MODEL, source / "tokenizer", chat=False, context_tokens=8)
    start = jax.device_get(load_params(source, MODEL))
    for where, factor in ((folder, 1 / 3), (folder / "raw", 1 / 4)):
        found = load_params(where, read_description(where).config)
        jax.tree.map(lambda leaf, old, factor=factor: np.testing.assert_allclose(
            leaf, factor * old, rtol=1e-5), found, start)
        assert artifact(where.parent, "sft.model", str(where))[0] == where
    last = read_metrics(folder / "metrics.jsonl")[-1]
    scale = float(start["final_norm_D"][0])
    assert (last["scale"], last["raw_scale"]) == pytest.approx((scale / 3, scale / 4))
