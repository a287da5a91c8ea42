"""The inside of a model agrees with its outside."""

import dataclasses

import jax
import numpy as np
import pytest

from model.families.registry import forward, init
from model.heads.language import logits
from model.inspection import logit_lens, look_inside


@pytest.mark.parametrize("changes", [
    {}, {"window": 3, "global_every": 2, "sinks": True},
    {"family": "encoder", "positions": "relative", "embed_previous": False}], ids=str)
def test_the_last_layers_stream_gives_the_models_logits(batch, config, execution, changes):
    config = dataclasses.replace(config, **changes)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    rows = batch.tokens_BL[:2], batch.positions_BL[:2], batch.segment_ids_BL[:2]
    inside = look_inside(params, *rows, config=config, execution=execution)

    @jax.jit
    def all_logits(params):
        x_BLD = forward(params, *rows, config=config, execution=execution)
        return logits(params, x_BLD, config=config, execution=execution)

    expected_BLV = all_logits(params)
    found_NBLV = logit_lens(params, inside.stream_NBLD, config=config, execution=execution)
    assert found_NBLV.shape == (config.N + 1, *expected_BLV.shape)
    np.testing.assert_allclose(np.asarray(found_NBLV)[-1], expected_BLV, atol=1e-5)

    weights_NBHLM = np.asarray(inside.weights_NBHLM)
    total_NBHL = weights_NBHLM.sum(-1)
    assert (total_NBHL < 1).all() if config.sinks else np.allclose(total_NBHL, 1)
    segments_BL = np.asarray(rows[2])
    is_foreign_BLM = segments_BL[:, :, None] != segments_BL[:, None]
    assert not weights_NBHLM[:, :, :, :].transpose(1, 3, 4, 0, 2)[is_foreign_BLM].any()
    if config.window:      # the first layer is windowed, the second is not
        distance_LM = np.subtract.outer(*[np.arange(segments_BL.shape[1])] * 2)
        assert not weights_NBHLM[0][..., distance_LM >= 3].any()
        assert weights_NBHLM[1][..., distance_LM >= 3].any()
