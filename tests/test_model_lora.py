"""LoRA: applied equals merged, one program for several adapters, and what is refused."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.artifacts import write_json
from core.errors import UserError
from core.file_sums import write_sums
from model.adapters.lora import (
    Adapted,
    Lora,
    abstract_lora,
    apply_adapters,
    apply_lora,
    cast_frozen,
    init_lora,
    load_lora,
    merge_lora,
    save_lora,
    stack_adapters,
    unmerge_lora,
)
from model.attention.kind import kind_of
from model.config import ModelConfig
from model.directory import save_model
from model.execution import Execution
from model.families.decoder import Block
from model.families.registry import FAMILIES, abstract_params, forward, init
from model.layers.matmul import project
from model.parallel.sharding import make_mesh, param_shardings

LORA = Lora(rank=4, alpha=8.0)
FEW = Lora(rank=2, alpha=3.0, targets=("wq", "w_*"))
PLAIN = Execution()


# Each as one program: by itself every operation on every weight would be compiled.
init_, fresh = (jax.jit(function, static_argnums=range(num_static)) for function, num_static in (
    (init, 1), (init_lora, 2)))
merge = jax.jit(merge_lora, static_argnames="lora")


def trained(config, lora, seed):
    """An adapter that changes something: noise in both factors."""
    return jax.device_get(_trained(config, lora, seed))


@partial(jax.jit, static_argnames=("config", "lora", "seed"))
def _trained(config, lora, seed):
    adapter = init_lora(config, lora, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten([leaf + 0.05 * jax.random.normal(key, leaf.shape)
                           for key, leaf in zip(keys, leaves)])


@partial(jax.jit, static_argnames=("config", "execution"))
def hidden(params, batch, config, execution=PLAIN):
    source = () if batch.source is None else (batch.source,)
    return forward(params, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL, *source,
                   config=config, execution=execution)


def test_each_projection_has_two_factors_with_its_letters(config):
    adapter = abstract_lora(config, LORA)["blocks"]
    shapes = {name: leaf.shape for name, leaf in adapter.items()}
    assert shapes["wq_a_DI"] == (2, 32, 4) and shapes["wq_b_IHK"] == (2, 4, 4, 8)
    assert shapes["wo_a_HKI"] == (2, 4, 8, 4) and shapes["wo_b_ID"] == (2, 4, 32)
    assert shapes["w_down_a_FI"] == (2, 64, 4) and shapes["w_down_b_ID"] == (2, 4, 32)
    assert len(shapes) == 2 * 7, "queries, keys, values, output, gate, up, down"
    assert set(abstract_lora(config, FEW)["blocks"]) == {
        f"{stem}_{factor}" for stem, factors in {
            "wq": ("a_DI", "b_IHK"), "w_gate": ("a_DI", "b_IF"), "w_up": ("a_DI", "b_IF"),
            "w_down": ("a_FI", "b_ID")}.items() for factor in factors}


def test_a_projection_is_the_formula_of_the_paper():
    """arXiv 2106.09685, equation 3, in float64."""
    rng = np.random.default_rng(0)
    x_BLHK, wo_HKD, a_HKI, b_ID = (rng.normal(size=shape) for shape in (
        (2, 3, 4, 8), (4, 8, 32), (4, 8, 5), (5, 32)))
    expected = x_BLHK.reshape(2, 3, 32) @ (wo_HKD.reshape(32, 32) + a_HKI.reshape(32, 5) @ b_ID)
    weight = Adapted(*(np.float32(leaf) for leaf in (wo_HKD, a_HKI, b_ID)))
    found = jax.jit(partial(project, "BLHK,HKD->BLD", execution=PLAIN))(
        np.float32(x_BLHK), weight)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_fresh_adapter_changes_nothing(params, batch, config):
    adapter = jax.device_get(fresh(config, LORA, jax.random.key(3)))
    np.testing.assert_array_equal(hidden(apply_lora(params, adapter, LORA), batch, config),
                                  hidden(params, batch, config))
    jax.tree.map(np.testing.assert_array_equal, merge(params, adapter, lora=LORA), params)
    a_DI = adapter["blocks"]["w_up_a_DI"]
    assert np.std(a_DI) == pytest.approx(32**-0.5, rel=0.15)


@pytest.mark.parametrize("lora", [LORA, FEW], ids=["all", "few"])
def test_applied_is_merged_and_unmerged_is_the_base(params, batch, config, lora):
    adapter = trained(config, lora, 1)
    base, applied = hidden(params, batch, config), hidden(apply_lora(params, adapter, lora), batch,
                                                          config)
    merged = merge_lora(params, adapter, lora)
    assert np.max(np.abs(np.asarray(applied) - np.asarray(base))) > 0.1
    np.testing.assert_allclose(hidden(merged, batch, config), applied, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6),
                 jax.jit(partial(unmerge_lora, lora=lora))(merged, adapter), params)
    assert merged["embed_VD"] is params["embed_VD"]


def test_layers_apart_are_the_layers_of_the_stack(params, config):
    """As in decoding, where each layer has its own arrays."""
    adapter, params = trained(config, LORA, 1), jax.device_get(params)
    x_BLD = np.random.default_rng(2).normal(size=(2, 5, 32)).astype("float32")
    layers = [jax.tree.map(lambda leaf, n=n: leaf[n], params["blocks"]) for n in range(config.N)]
    apart = apply_lora({**params, "blocks": layers}, adapter, LORA)["blocks"]
    stacked = apply_lora(params, adapter, LORA)["blocks"]
    ones_BL = np.ones((2, 5), np.int32)
    positions_BL = np.arange(5, dtype=np.int32) * ones_BL
    run = jax.jit(lambda own: Block(config, PLAIN, kind_of(config)).apply(
        {"params": own}, x_BLD, positions_BL, ones_BL))
    for n, own in enumerate(apart):
        of_stack = jax.tree.map(lambda leaf, n=n: leaf[n], stacked)
        for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(of_stack), strict=True):
            np.testing.assert_array_equal(one, other)
        run(own)


def test_each_row_has_its_own_adapter_in_one_program(params, batch, config):
    """The three ranks and targets differ; another choice compiles nothing."""
    given = [(trained(config, LORA, 1), LORA), (trained(config, FEW, 5), FEW)]
    stack = jax.jit(lambda *adapters: stack_adapters(list(zip(adapters, (LORA, FEW)))))(
        *(adapter for adapter, _ in given))
    assert stack["blocks"]["wk_a_DI"].shape == (2, 3, 32, 4)

    @jax.jit
    def run(adapter_B):
        return hidden(apply_adapters(params, stack, adapter_B), batch, config)

    alone = jax.device_get([hidden(params, batch, config),
                            *(hidden(apply_lora(params, *pair), batch, config) for pair in given)])
    num_rows = batch.tokens_BL.shape[0]
    for shift in range(3):
        adapter_B = (np.arange(num_rows) + shift) % 3
        found = np.asarray(run(np.int32(adapter_B)))
        for row, place in enumerate(adapter_B):
            np.testing.assert_allclose(found[row], alone[place][row], atol=2e-6)
    alike, mixed = (np.asarray(run(np.int32(adapters * (num_rows // 2))))
                    for adapters in ([2, 2], [1, 2]))
    np.testing.assert_array_equal(alike[1], mixed[1], "whatever its neighbours take")
    assert run._cache_size() == 1


def test_an_adapted_int8_weight_projects_in_int8(config):
    x_BLD, w_DF = (np.random.default_rng(n).normal(size=shape).astype("float32") for n, shape in
                   enumerate(((2, 3, 32), (32, 64))))
    a_DI, b_IF = np.ones((32, 2), np.float32), np.ones((2, 64), np.float32)
    execution = Execution(matmul="int8")
    run = jax.jit(partial(project, "BLD,DF->BLF", execution=execution))
    found = run(x_BLD, Adapted(w_DF, a_DI, b_IF))
    np.testing.assert_allclose(found, run(x_BLD, w_DF) + x_BLD @ a_DI @ b_IF, atol=1e-5)

    class Quantised:
        def project(self, equation, x, execution):
            return jnp.full((2, 3, 64), 7.0)

    found = jax.jit(lambda: project("BLD,DF->BLF", jnp.asarray(x_BLD), Adapted(
        Quantised(), a_DI, 0 * b_IF), execution))()
    np.testing.assert_array_equal(found, 7.0)
    blocks = {"blocks": {"w_up_DF": Quantised()}}
    part = {"blocks": {"w_up_a_DI": a_DI[None], "w_up_b_IF": b_IF[None]}}
    with pytest.raises(UserError, match="blocks/w_up_DF: is no plain array"):
        merge_lora(blocks, part, LORA)


def test_frozen_weights_in_the_compute_dtype_are_the_same_model(params, batch, config):
    execution = Execution(compute_dtype="bfloat16")
    cast = jax.jit(cast_frozen, static_argnums=1)(params, execution)
    assert cast["blocks"]["wq_DHK"].dtype == cast["embed_VD"].dtype == "bfloat16"
    assert cast["blocks"]["attn_norm_D"].dtype == "float32"
    np.testing.assert_array_equal(hidden(cast, batch, config, execution),
                                  hidden(params, batch, config, execution))
    same = cast_frozen(params, Execution(compute_dtype="bfloat16", matmul="int8"))
    assert same["embed_VD"].dtype == "float32"


@pytest.mark.parametrize("changes", [
    dict(family="encoder"), dict(family="encoder_decoder", encoder_layers=1),
    dict(mlp="gelu", attention_bias=True, mlp_bias=True, attention_out_bias=True),
    dict(E=4, shared_experts=1)], ids=str)
def test_every_family_with_projections_has_adapters(config, changes):
    config = dataclasses.replace(config, embed_previous=False, **changes)
    params, adapter = init_(config, jax.random.key(0)), trained(config, LORA, 1)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(adapter)}
    assert ("w_up_a_DI" in names) == (not config.E), "experts are left out"
    assert ("cross_wo_b_ID" in names) == (config.family == "encoder_decoder")
    num_leaves = [len(jax.tree.leaves(tree)) for tree in (
        params, adapter, apply_lora(params, adapter, LORA))]
    assert sum(num_leaves[:2]) == num_leaves[2], "all of it is applied"
    merged = merge(params, adapter, lora=LORA)
    if config.family != "encoder_decoder":
        ones_BL = np.ones((2, 6), np.int32)
        run = jax.jit(partial(FAMILIES[config.family].forward_with_stats, config=config,
                              execution=PLAIN))
        positions_BL = np.cumsum(ones_BL, 1, dtype=np.int32) - 1
        applied, found = (run(tree, ones_BL, positions_BL, ones_BL)[0] for tree in (
            apply_lora(params, adapter, LORA), merged))
        np.testing.assert_allclose(applied, found, atol=1e-5)


@pytest.mark.parametrize("axes, part_HK", [
    ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 4, 2, 8)),
    ({"data": 2, "fsdp": 2, "stage": 2}, (1, 4, 4, 8))], ids=["tensor", "stage"])
def test_a_sharded_adapter_gives_the_same(params, batch, config, axes, part_HK):
    mesh = make_mesh(axes)
    adapter = trained(config, LORA, 1)
    expected = hidden(apply_lora(params, adapter, LORA), batch, config)
    placed, own = (jax.device_put(jax.device_get(tree), param_shardings(tree, mesh))
                   for tree in (params, adapter))
    assert own["blocks"]["wq_b_IHK"].sharding.shard_shape((2, 4, 4, 8)) == part_HK
    with jax.set_mesh(mesh):
        found = hidden(apply_lora(placed, own, LORA), batch, config)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def write_model(folder, params, config):
    words = folder / "words"
    words.mkdir(parents=True)
    write_json(words / "tokenizer.json", {"vocab_size": config.V, "fingerprint": "0"})
    save_model(folder, params, config, words, chat=True, context_tokens=24)
    write_json(folder / "lineage.json", {})
    write_sums(folder, folder.rglob("*"))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, params, config):
    """(the adapter's folder, its model's)."""
    root = tmp_path_factory.mktemp("saved")
    base = write_model(root / "base", params, config)
    save_lora(root / "adapter", jax.device_put(trained(config, FEW, 1)), FEW, base)
    return root / "adapter", base


def test_a_saved_adapter_describes_itself_and_comes_back(saved, config):
    folder, base = saved
    described = json.loads((folder / "adapter.json").read_text())
    assert {name: described[name] for name in ("rank", "alpha", "targets")} == {
        "rank": 2, "alpha": 3.0, "targets": ["wq", "w_*"]}
    assert described["base"]["name"] == "base" and len(described["base"]["params"]) == 16
    adapter, lora = load_lora(folder, base)
    assert lora == FEW
    jax.tree.map(np.testing.assert_array_equal, adapter, trained(config, FEW, 1))


def damage_arrays(folder):
    largest = max((folder / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"x")


def change_rank(folder, sums=True):
    describe(folder, lambda described: described | {"rank": 3}, sums)


def drop_shapes(folder):
    describe(folder, lambda described: {name: value for name, value in described.items()
                                        if name != "shapes"})


def describe(folder, change, sums=True):
    described = json.loads((folder / "adapter.json").read_text())
    write_json(folder / "adapter.json", change(described))
    if sums:
        write_sums(folder, folder.rglob("*"))


@pytest.mark.parametrize("damage, line", [
    (damage_arrays, r"adapter: is damaged: params/.* has changed: put it back"),
    (partial(change_rank, sums=False), "adapter: is damaged: adapter.json has changed"),
    (change_rank, r"adapter: has blocks/w_down_a_FI of shape \[2, 64, 2\], and "
                  r"its rank and targets need \[2, 64, 3\]: put it back"),
    (drop_shapes, r"adapter/adapter.json: has no shapes: put it back"),
    (lambda folder: (folder / "adapter.json").unlink(), r"is no adapter \(no adapter.json\)"),
    (lambda folder: (folder / "files.json").unlink(), "is damaged: files.json is missing"),
], ids=["arrays", "json", "shapes", "keys", "none", "sums"])
def test_what_is_no_sound_adapter_is_refused(saved, tmp_path, damage, line):
    folder, base = saved
    shutil.copytree(folder, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises(UserError, match=line) as error:
        load_lora(tmp_path / "adapter", base)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_model_is_refused(saved, tmp_path, params, config):
    folder, _ = saved
    other = write_model(tmp_path / "other", params | {"final_norm_D": 2 * params["final_norm_D"]},
                        config)
    with pytest.raises(UserError, match=r"is an adapter of base with parameters \w{16}, and those "
                                        r"of .*other are \w{16}: name the model"):
        load_lora(folder, other)
    again = write_model(tmp_path / "again", params, config)
    assert load_lora(folder, again)[1] == FEW, "a copy is the same model"


@pytest.mark.parametrize("make, line", [
    (lambda config: Lora(4, targets=("wq", "wz")),
     r"lora.targets='wz': names no dense projection of the blocks: choose among w_down, w_gate, "
     r"w_up, wk, wo, wq, wv"),
    (lambda config: Lora(4, targets=("embed",)), "lora.targets='embed': names no dense"),
    (lambda config: Lora(0), "lora.rank=0: makes no adapter"),
    (lambda config: Lora(-1), "lora.rank=-1: must be a whole number"),
    (lambda config: Lora(4, alpha=float("nan")), "lora.alpha=nan: must be a number"),
], ids=["unknown", "table", "zero", "negative", "nan"])
def test_what_makes_no_adapter_is_refused(config, make, line):
    with pytest.raises(UserError, match=line):
        init_lora(config, make(config), jax.random.key(0))


def test_experts_and_the_lstm_have_no_adapters(config):
    experts = dataclasses.replace(config, E=4)
    with pytest.raises(UserError, match=r"lora.targets='w_up': names no dense"):
        abstract_lora(experts, Lora(4, targets=("w_up",)))
    lstm = ModelConfig(V=98, D=32, N=2, H=4, G=4, K=8, F=64, family="lstm", qk_norm=False,
                       positions="none")
    with pytest.raises(UserError, match=r"'\*': names no dense projection .*: fine-tune all"):
        abstract_lora(lstm, LORA)
    assert "blocks" in abstract_params(lstm)
