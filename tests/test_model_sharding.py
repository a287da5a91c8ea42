"""Sharding rules: parameters are sharded by name, and a mesh that does not fit is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs.common import make_optimizer as optimizer_section
from core.errors import UserError
from model.execution import Execution
from model.families.registry import abstract_params
from model.parallel.sharding import (
    ACTIVATION_RULES,
    STREAM_RULES,
    check_mesh,
    constrain,
    fitting_spec,
    leaf_name,
    letters_of,
    make_mesh,
    pad_vocabulary,
    param_name,
    param_shardings,
    spec,
    state_shardings,
)
from train.optimizer.optimizers import make_optimizer


def test_specs_follow_the_letters_of_the_names(params):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = jax.tree.map(lambda s: s.spec, param_shardings(params, mesh))
    assert specs["embed_VD"] == P("tensor", "fsdp")
    assert specs["blocks"]["wq_DHK"] == P("stage", "fsdp", "tensor", None)
    assert specs["blocks"]["w_down_FD"] == P("stage", "tensor", "fsdp")
    assert specs["final_norm_D"] == P("fsdp")
    assert spec("BLD") == P(("data", "fsdp", "expert"), "context", None)


def test_a_vocabulary_that_the_mesh_does_not_divide_is_stored_whole(config):
    """`tensor` shards the width instead, where it divides it too."""
    for width, axes, expected in ((32, {"fsdp": 2, "tensor": 4}, ("fsdp", "tensor")),
                                  (36, {"data": 2, "tensor": 4}, ("fsdp", "tensor")),
                                  (36, {"fsdp": 2, "tensor": 4}, "fsdp")):
        sizes = dataclasses.replace(config, D=width, H=8, G=4)
        shapes, mesh = abstract_params(sizes), make_mesh(axes)
        specs = jax.tree.map(lambda s: s.spec, param_shardings(shapes, mesh))
        assert specs["embed_VD"] == P(None, expected) and specs["head_DV"] == P(expected, None)
        assert specs["blocks"]["wq_DHK"] == P("stage", "fsdp", "tensor", None)
        check_mesh(sizes, Execution(), mesh, batch_size=8, row_length=24)


def test_padding_of_a_vocabulary_exists_only_while_a_table_is_used(params):
    table_VD = params["embed_VD"]
    assert pad_vocabulary(table_VD, axis=0) is table_VD, "there is no mesh"
    with jax.set_mesh(make_mesh({"data": 4, "tensor": 2})):
        assert pad_vocabulary(table_VD, axis=0) is table_VD
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        padded_VD = pad_vocabulary(table_VD, axis=0)
        assert padded_VD.shape == (100, 32) and not padded_VD[98:].any()
        assert pad_vocabulary(table_VD.T, axis=1).shape == (32, 100)


def test_one_axis_takes_the_remaining_devices():
    assert dict(make_mesh({"data": -1, "fsdp": 2, "tensor": 1}).shape) == {
        "stage": 1, "data": 4, "fsdp": 2, "expert": 1, "context": 1, "tensor": 1}


@pytest.mark.parametrize("shape, rule", [
    ((3, 1, 1), "does not divide 8 devices"), ((-1, -1, 1), "does not divide 8 devices"),
    ((2, 2, 1), "does not use all 8 devices"), ((-1, 0, 1), "does not divide 8 devices"),
    ((16, 1, 1), "does not divide 8 devices")], ids=str)
def test_meshes_that_do_not_fit_are_refused(shape, rule):
    with pytest.raises(UserError, match=rule):
        make_mesh(dict(zip(("data", "fsdp", "tensor"), shape)))


def test_an_axis_that_the_mesh_does_not_divide_is_refused(params):
    with pytest.raises(UserError, match=r"mesh.tensor=4: does not divide model.G="):
        param_shardings(params, make_mesh({"data": -1, "fsdp": 1, "tensor": 4}))


def test_paths_have_names_and_names_have_letters(params):
    names = {leaf_name(path): (param_name(path), letters_of(path, leaf.ndim)) for path, leaf in
             jax.tree_util.tree_leaves_with_path({"params": params})}
    assert names["params/embed_VD"] == ("embed_VD", "VD")
    assert names["params/blocks/wq_DHK"] == ("wq_DHK", "NDHK")
    assert names["params/blocks/attn_norm_D"] == ("attn_norm_D", "ND")


def test_a_name_without_axis_letters_is_an_error():
    path = (jax.tree_util.DictKey("wq"),)
    with pytest.raises(ValueError, match="does not end in its axis letters"):
        letters_of(path, 2)
    with pytest.raises(ValueError, match="of rank 3"):
        param_shardings({"norm_D": jnp.zeros((2, 3, 4))}, make_mesh({"data": -1, "fsdp": 1,
                                                                     "tensor": 1}))


def test_an_unknown_axis_is_refused():
    with pytest.raises(UserError, match=r"mesh.sequence: is no axis of a mesh: choose among stage"):
        make_mesh({"data": -1, "sequence": 2})


def test_experts_and_layers_have_their_own_axes(config):
    config = dataclasses.replace(config, E=4)
    shapes = abstract_params(config)
    specs = jax.tree.map(lambda s: s.spec, param_shardings(
        shapes, make_mesh({"stage": 2, "expert": 2, "tensor": 2})))["blocks"]
    assert specs["w_gate_EDF"] == P("stage", "expert", "fsdp", "tensor")
    assert specs["router_DE"] == P("stage", "fsdp", "expert")


@pytest.mark.parametrize("axes, sizes, rows, rule", [
    ({"tensor": 8}, {}, (8, 24), "mesh.tensor=8: does not divide model.H=4"),
    ({"tensor": 4, "data": 2}, {"V": 96}, (8, 24), "mesh.tensor=4: does not divide model.G=2"),
    ({"fsdp": 8}, {"D": 36}, (8, 24), "mesh.fsdp=8: does not divide model.D=36"),
    ({"expert": 8}, {"E": 4}, (8, 24), "mesh.expert=8: does not divide model.E=4"),
    ({"expert": 8}, {}, (8, 24), "mesh.expert=8: needs a model with experts"),
    ({"stage": 4, "data": 2}, {}, (8, 24), "mesh.stage=4: does not divide model.N=2"),
    ({"data": 2, "fsdp": 4}, {}, (12, 24), "batch_size=12: is not divisible by 8 data shards"),
    ({"context": 8}, {}, (8, 20), "row_length=20: is not divisible by mesh.context x mesh.tensor"),
    ({"context": 4, "tensor": 2}, {}, (8, 20), "row_length=20: is not divisible by .* = 8: take a"),
], ids=str)
def test_what_a_mesh_does_not_divide_is_refused(config, execution, axes, sizes, rows, rule):
    with pytest.raises(UserError, match=f"^{rule}"):
        check_mesh(dataclasses.replace(config, **sizes), execution, make_mesh(axes),
                   batch_size=rows[0], row_length=rows[1])


@pytest.mark.parametrize("stages, num_layers, changes, batch_size, rule", [
    (4, 4, {"pipeline_rounds": 2}, 8,
     "model.N=4: is not divisible by 4 stages x 2 pipeline_rounds"),
    (4, 8, {"pipeline_rounds": 2, "pipeline_microbatches": 2}, 8,
     "pipeline_microbatches=2: must be at least mesh.stage=4"),
    (2, 2, {}, 12, "batch_size=12: is not divisible by 4 data shards x 2 pieces for the pipeline"),
    (2, 2, {"remat": "dots"}, 8, "remat='dots': would keep nothing"),
], ids=str)
def test_a_pipeline_that_does_not_fit_is_refused(config, stages, num_layers, changes, batch_size,
                                                 rule):
    mesh = make_mesh({"stage": stages, "data": 8 // stages})
    with pytest.raises(UserError, match=f"^{rule}"):
        check_mesh(dataclasses.replace(config, N=num_layers), Execution(**changes), mesh,
                   batch_size=batch_size, row_length=24)


def test_what_a_mesh_divides_is_not_refused(config, execution):
    check_mesh(config, execution, make_mesh({"stage": 2, "fsdp": 2, "tensor": 2}), batch_size=8,
               row_length=24)
    check_mesh(dataclasses.replace(config, E=4), execution, make_mesh({"expert": 4, "context": 2}),
               batch_size=8, row_length=24)


@pytest.mark.parametrize("shape, letters, rules, expected", [
    ((8, 24, 32), "BLD", STREAM_RULES, (4, 6, 32)), ((8, 2, 32), "BLD", STREAM_RULES, (4, 1, 32)),
    ((8, 24, 32), "BLD", ACTIVATION_RULES, (4, 12, 32)),
    ((8, 1, 4, 8), "BLHK", ACTIVATION_RULES, (4, 1, 2, 8)),
    ((1, 1, 98), "BLV", ACTIVATION_RULES, (1, 1, 49)),
    ((3, 5, 7), "BLF", ACTIVATION_RULES, (3, 5, 7))], ids=str)
def test_an_activation_is_sharded_as_far_as_the_mesh_divides_it(shape, letters, rules, expected):
    """A mesh of fsdp=2, context=2, tensor=2: what does not divide, as in decoding, stays whole."""
    mesh = make_mesh({"fsdp": 2, "context": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, fitting_spec(letters, shape, rules))
        x = jax.jit(lambda x: constrain(x, letters, rules))(jnp.zeros(shape))
    assert place.shard_shape(shape) == x.sharding.shard_shape(shape) == expected


@pytest.mark.parametrize("name", ["adafactor", "schedule_free", "muon"])
def test_optimizer_state_is_sharded_like_its_parameter(config, name):
    config = dataclasses.replace(config, D=256, F=256, V=256)  # adafactor factors from 128 on
    optimizer = make_optimizer(ConfigDict(optimizer_section(
        name=name, schedule="constant", warmup_steps=1)), num_steps=10)
    params = abstract_params(config)
    state = {"opt_state": jax.eval_shape(optimizer.init, params), "ema": params}
    mesh = make_mesh({"fsdp": 4, "stage": 2})
    cut, expected = state_shardings(state, params, mesh), param_shardings(params, mesh)
    assert cut["ema"] == expected
    w_gate = params["blocks"]["w_gate_DF"]
    places = [(leaf.shape, sharding.spec) for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state["opt_state"]), jax.tree.leaves(cut["opt_state"]))
        if "w_gate_DF" in jax.tree_util.keystr(path)]
    assert places
    for shape, place in places:
        assert place == (P("stage", "fsdp", "tensor") if shape == w_gate.shape else P()), shape
    assert any(shape != w_gate.shape for shape, _ in places) == (name == "adafactor")
