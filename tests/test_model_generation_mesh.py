"""Generation on eight devices: the answers of one, and slots that stay where they are placed."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import init
from model.generation import reading
from model.generation.engine import Engine
from model.generation.requests import Budget, Request
from model.generation.sampling import Sampling
from model.generation.weights import unstack
from model.parallel.sharding import make_mesh, param_shardings
from train.watch.compilation import Compilations

EXECUTION = Execution()
BASE = ModelConfig(V=32, D=16, N=2, H=4, G=2, K=4, F=24)
MESHES = {"shards": {"data": 2, "fsdp": 2, "tensor": 2}, "experts": {"expert": 2, "tensor": 4},
          "stages": {"stage": 2, "context": 2, "tensor": 2}}


def _requests(num, settings):
    rng = np.random.default_rng(0)
    return [Request(tuple(rng.integers(0, 32, int(rng.integers(1, 9))).tolist()),
                    settings[row % len(settings)], seed=row) for row in range(num)]


def _assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.finish) == (theirs.tokens, theirs.finish)
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)


# Of the cache's largest array, the piece of one device: slots that the mesh does not divide are
# whole on each.
@pytest.mark.parametrize("changes, mesh, num_slots, piece", [
    (dict(embed_previous=True), "shards", 4, (1, 1, 24, 4)),
    pytest.param(dict(E=4, G=4), "experts", 3, (3, 1, 24, 4), marks=pytest.mark.full),
    pytest.param(dict(window=3, global_every=2), "stages", 4, (4, 1, 24, 4),
                 marks=pytest.mark.full),
    pytest.param(dict(family="lstm", positions="none"), "shards", 3, (3, 2, 12),
                 marks=pytest.mark.full),
    pytest.param(dict(V=31, tied=True), "shards", 4, (1, 1, 24, 4), marks=pytest.mark.full)],
    ids=str)
def test_answers_on_a_mesh_are_those_of_one_device(changes, mesh, num_slots, piece, monkeypatch):
    monkeypatch.setattr(reading, "PIECES", (8,))
    config = dataclasses.replace(BASE, **changes)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32),
                          jax.eval_shape(partial(init, config), jax.random.key(0)))
    sizes = dict(num_slots=num_slots, capacity=24, budget=Budget(4))
    requests = [request for request in _requests(
        9, [Sampling(8, temperature=0), Sampling(6, 1.5), Sampling(7, 0.9, top_p=0.9)])
        if max(request.prompt) < config.V]
    expected = Engine(unstack(params, EXECUTION), config, EXECUTION, **sizes).run(requests)
    mesh = make_mesh(MESHES[mesh])
    with jax.set_mesh(mesh):
        weights = unstack(jax.device_put(params, param_shardings(params, mesh)), EXECUTION)
        placed = param_shardings(weights, mesh)
        for leaf, sharding in zip(jax.tree.leaves(weights), jax.tree.leaves(placed), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), "one layer as the stack"
        engine = Engine(weights, config, EXECUTION, **sizes)
        engine.warm_up()        # the order of requests decides in which shapes prompts are read
        before = [leaf.sharding for leaf in jax.tree.leaves(engine._state)]
        _assert_same(engine.run(requests), expected)
        with Compilations() as compilations:
            _assert_same(engine.run(requests[::-1]), expected[::-1])
        assert not compilations.programs
    for leaf, sharding in zip(jax.tree.leaves(engine._state), before, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    largest = max(jax.tree.leaves(engine._state.cache), key=lambda leaf: leaf.size)
    assert largest.addressable_shards[0].data.shape == piece
