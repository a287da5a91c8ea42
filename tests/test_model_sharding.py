"""Sharding by rules: names say how a parameter is cut, and a mesh that does not fit is refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from core.errors import UserError
from model.sharding import letters_of, make_mesh, param_shardings, spec


def test_specs_follow_the_letters_of_the_names(params):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = jax.tree.map(lambda s: s.spec, param_shardings(params, mesh))
    assert specs["embed_VD"] == P("tensor", "fsdp")
    assert specs["blocks"]["wq_DHK"] == P("stage", "fsdp", "tensor", None)
    assert specs["blocks"]["w_down_FD"] == P("stage", "tensor", "fsdp")
    assert specs["final_norm_D"] == P("fsdp")
    assert spec("BLD") == P(("data", "fsdp", "expert"), "context", None)


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
    with pytest.raises(UserError, match=r"mesh.tensor=4: does not divide model.[GV]="):
        param_shardings(params, make_mesh({"data": -1, "fsdp": 1, "tensor": 4}))


def test_a_name_without_its_letters_is_a_bug():
    path = (jax.tree_util.DictKey("wq"),)
    with pytest.raises(ValueError, match="does not end in its axis letters"):
        letters_of(path, 2)
    with pytest.raises(ValueError, match="of rank 3"):
        param_shardings({"norm_D": jnp.zeros((2, 3, 4))}, make_mesh({"data": -1, "fsdp": 1,
                                                                     "tensor": 1}))
