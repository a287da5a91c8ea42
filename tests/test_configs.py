"""Every variant of every config: its model lowers, sharded three ways, without being compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from configs.quickstart import get_config
from core.errors import UserError
from data.batch import Batch
from model.config import make_model_config
from model.execution import make_execution
from train.pretrain import make_loss
from train.setup import RUN_FIELDS, make_setup
from train.trainer import abstract_params, make_step

VARIANTS = ("cpu", "accelerator", "smoke")


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_lowers_on_eight_devices(variant):
    config = get_config(variant)
    section = config.pretrain
    model_config = make_model_config(config.model, config.tokenizer.vocab_size)
    setup = make_setup(model_config, section, {"data": 2, "fsdp": 4, "tensor": 1})
    make_first, step = make_step(make_loss(section), setup, section, num_steps=section.num_steps)
    state = make_first(abstract_params(setup))
    row = partial(jax.ShapeDtypeStruct, (section.batch_size, section.row_length))
    batch = Batch(row(jnp.int32), row(jnp.int32), row(jnp.float32), row(jnp.int32), row(jnp.int32))
    with jax.set_mesh(setup.mesh):
        lowered = step.lower(state, batch)
    after, metrics = lowered.out_info
    assert {"loss", "gradient_norm", "param_norm"} <= set(metrics)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape,
                                                                        state)
    assert "sharding" in lowered.as_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_with_a_model_says_how_it_runs(variant):
    config = get_config(variant)
    for name in ("pretrain", "sft", "dpo"):
        make_execution(config[name], also=RUN_FIELDS)
    for name in ("pairs", "eval"):
        make_execution(config[name], also=("batch_size",))


def test_an_unknown_field_of_run_is_refused():
    section = get_config("smoke").pretrain
    section.run.rematt = "full"
    with pytest.raises(UserError, match=r"base: run.rematt: is no field of this stage: choose"):
        make_execution(section, also=RUN_FIELDS)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="is none of cpu, accelerator, smoke"):
        get_config("huge")
