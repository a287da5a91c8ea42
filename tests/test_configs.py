"""Every variant of every config: its model lowers, sharded three ways, without being compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from configs.quickstart import get_config
from data.batch import Batch
from model.config import make_model_config
from model.families.decoder import init
from model.parallel.sharding import make_mesh
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer
from train.step import make_state, make_train_step

VARIANTS = ("cpu", "accelerator", "smoke")


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_lowers_on_eight_devices(variant):
    config = get_config(variant)
    section = config.pretrain
    model_config = make_model_config(config.model, config.tokenizer.vocab_size)
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    optimizer = make_optimizer(section.optimizer, section.num_steps)

    make = partial(make_state, partial(init, model_config), optimizer=optimizer,
                   key=jax.random.key(1))
    state = jax.eval_shape(make, jax.random.key(0))
    step = make_train_step(next_token_loss, optimizer, config=model_config, mesh=mesh, state=state,
                           batch_size=section.batch_size)
    row = partial(jax.ShapeDtypeStruct, (section.batch_size, section.row_length))
    batch = Batch(row(jnp.int32), row(jnp.int32), row(jnp.float32), row(jnp.int32), row(jnp.int32))
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch)
    after, metrics = lowered.out_info
    assert {"loss", "gradient_norm", "param_norm"} <= set(metrics)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape,
                                                                        state)
    assert "sharding" in lowered.as_text()


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="is none of cpu, accelerator, smoke"):
        get_config("huge")
