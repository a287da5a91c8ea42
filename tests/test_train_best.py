"""The best parameters of a run: which are kept, when the run ends, and after a kill."""

import shutil
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer, make_training, make_training_run
from core.artifacts import make_lineage, open_partial
from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import init
from model.parallel.sharding import make_mesh
from train.setup import Setup
from train.trainer import Data, train
from train.watch.metrics import read_metrics

MODEL = ModelConfig(V=16, D=8, N=1, H=1, G=1, K=8, F=8)
NUM_STEPS = 12


def shrinking_loss(params, batch, *, config, execution, key):
    """Half the squared norm of the last norm's weights: each step makes them smaller."""
    rows = jnp.sum(batch["ones_B"])
    return rows * 0.5 * jnp.sum(params["final_norm_D"]**2), {"loss": (rows, rows)}


def run(folder, evaluate, **best):
    """Trains from weights of 1, which each step multiplies by 0.9."""
    open_partial(folder, make_lineage(stage="toy", config={}, inputs={}, code=""))
    section = ConfigDict(make_training(
        out="toy", row_length=8, batch_size=2, best=dict(measure="distance", patience=0) | best,
        optimizer=make_optimizer(name="sgd", momentum=0.0, clip_norm=0.0, schedule="constant",
                                 warmup_steps=0, learning_rate=0.1),
        run=make_training_run(log_every=1, evaluate_every=1, checkpoint_every=3)))
    batches = grain.MapDataset.range(NUM_STEPS).map(lambda _: {"ones_B": np.ones(2, "f4")})
    setup = Setup(MODEL, Execution(), make_mesh({"data": 1}, jax.devices()[:1]))
    trained, metrics = train(shrinking_loss, Data(batches), partial(init, MODEL, jax.random.key(0)),
                             section=section, folder=folder, setup=setup, evaluate=evaluate)
    steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "evaluated" in row]
    return float(trained.params["final_norm_D"][0]), metrics["best_step"], steps[-1]


def distance(params):
    """Smallest at 0.9 ** 5, after five steps."""
    return {"distance": abs(float(params["final_norm_D"][0]) - 0.9**5)}


def test_the_parameters_of_the_smallest_value_are_kept(tmp_path):
    weight, best_step, last = run(tmp_path, distance)
    assert weight == pytest.approx(0.9**5, rel=1e-5) and (best_step, last) == (5, NUM_STEPS)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["5"]


def test_a_run_ends_after_so_many_evaluations_without_progress(tmp_path):
    weight, best_step, last = run(tmp_path, distance, patience=3)
    assert weight == pytest.approx(0.9**5, rel=1e-5) and (best_step, last) == (5, 8)


@pytest.mark.parametrize("killed_at", [4, 6, 8])
def test_a_killed_run_keeps_and_ends_as_another(tmp_path, killed_at):
    undisturbed = run(tmp_path / "undisturbed", distance, patience=3)
    seen = []

    def evaluate(params):
        seen.append(params)
        if len(seen) == killed_at:
            raise KeyboardInterrupt
        return distance(params)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", evaluate, patience=3)
    assert run(tmp_path / "killed", distance, patience=3) == undisturbed
    assert ((tmp_path / "killed" / "metrics.jsonl").read_bytes()
            == (tmp_path / "undisturbed" / "metrics.jsonl").read_bytes())


def test_a_value_that_is_not_finite_is_never_the_best(tmp_path):
    weight, best_step, _ = run(tmp_path, lambda params: {
        "distance": -np.inf if params["final_norm_D"][0] > 0.85 else np.nan
        if params["final_norm_D"][0] < 0.7 else 1.0})
    assert best_step == 2 and weight == pytest.approx(0.81, rel=1e-5)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match=r"toy: distance: is not finite in any evaluation: lower"):
        run(tmp_path, lambda params: {"distance": np.nan})


def test_an_unknown_measure_is_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        run(tmp_path, lambda params: {"heldout_loss": 1.0, "bpb": 1.0})
    assert str(error.value) == ("toy.best.measure='distance': is no value of the evaluations: "
                                "choose among bpb, heldout_loss")
    with pytest.raises(UserError, match=r"toy.best.measure='distance': this run evaluates nothing"):
        run(tmp_path / "none", None)
