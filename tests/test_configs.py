"""Every variant of every config: its model lowers, sharded three ways, without being compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from configs import gpt2_124m, llama3_8b, pretrain
from configs.common import REFERENCES, scale_by_depth
from configs.quickstart import get_config
from core.errors import UserError
from data.batch import Batch
from model.config import make_model_config
from model.execution import make_execution
from model.families.decoder import abstract_params
from train.pretrain import make_loss
from train.setup import RUN_FIELDS, make_setup
from train.trainer import make_step

VARIANTS = ("cpu", "accelerator", "smoke")


CONFIGS = {**{variant: (get_config, variant) for variant in VARIANTS},
           "gpt2_124m": (gpt2_124m.get_config, None), "llama3_8b": (llama3_8b.get_config, None),
           "depth 6": (pretrain.get_config, "6"), "depth 3, cpu": (pretrain.get_config, "3,cpu")}


@pytest.mark.parametrize("name", CONFIGS)
def test_one_step_lowers_on_eight_devices(name):
    make_config, variant = CONFIGS[name]
    config = make_config(variant)
    section = config.pretrain
    model_config = make_model_config(config.model, config.tokenizer.vocab_size)
    setup = make_setup(model_config, section, {"data": 2, "fsdp": 4, "tensor": 1})
    make_first, step = make_step(make_loss(section), setup, section, num_steps=section.num_steps)
    state = make_first(abstract_params(setup.config))
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


def test_the_quickstart_is_depth_4_of_the_dial():
    quickstart, dial = get_config("cpu"), pretrain.get_config("4,cpu")
    assert quickstart.model == dial.model and quickstart.tokenizer == dial.tokenizer
    for field in ("row_length", "batch_size", "num_steps"):
        assert quickstart.pretrain[field] == dial.pretrain[field]
    assert quickstart.pretrain.optimizer.learning_rate == dial.pretrain.optimizer.learning_rate


def test_the_dial_gives_the_reference_at_its_depth_and_scales_around_it():
    scale, reference = scale_by_depth(12, "accelerator"), REFERENCES["accelerator"]
    assert (scale.model["D"], scale.model["H"], scale.model["F"]) == (768, 6, 2048)
    assert scale.batch_size * scale.row_length == reference.batch_tokens
    assert scale.learning_rate == pytest.approx(reference.learning_rate)
    assert scale.weight_decay == pytest.approx(reference.weight_decay)
    num_params = 12 * (4 * 768**2 + 3 * 768 * 2048) + 768 * 32_768
    assert scale.num_steps == round(12 * num_params / reference.batch_tokens)
    twice = scale_by_depth(24, "accelerator")   # batch 2 ** (0.383 log2 of 6.6) of it: twice
    assert twice.batch_size == 2 * scale.batch_size
    assert twice.learning_rate == pytest.approx(scale.learning_rate)    # sqrt 2 / sqrt 2
    horizon = twice.num_steps * twice.batch_size / (scale.num_steps * scale.batch_size)
    memory = [s.batch_size / (s.learning_rate * s.weight_decay) for s in (scale, twice)]
    assert memory[1] / memory[0] == pytest.approx(horizon, rel=1e-3)


@pytest.mark.parametrize("arg", ["deep", "0", "12,tpu", "-3"])
def test_what_is_no_depth_is_refused(arg):
    with pytest.raises(ValueError, match=r"is no depth with a platform: write --config=configs"):
        pretrain.get_config(arg)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="is none of cpu, accelerator, smoke"):
        get_config("huge")
