"""A model directory is restored unchanged, and one that does not fit is refused in one line."""

import dataclasses
import errno
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from core.artifacts import finish, make_lineage, open_partial
from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from eval.respond.loaded import load_model
from model.config import ModelConfig, make_model_config
from model.directory import LAYOUT, Description, load_params, read_description, save_model
from model.execution import Execution
from model.families.registry import init
from model.parallel.sharding import make_mesh

BYTES = {bytes([i]): i for i in range(256)}


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    """A saved model with a tokenizer of 262 tokens: its parameters, config and folder."""
    folder = tmp_path_factory.mktemp("model")
    BytePairTokenizer(BYTES | {b"th": 256}).save(folder / "tokenizer.source")
    config = dataclasses.replace(config, V=262, N=1)
    params = jax.jit(lambda key: init(config, key))(jax.random.key(0))
    save_model(folder / "saved", params, config, folder / "tokenizer.source", chat=True,
               context_tokens=96)
    return params, config, folder / "saved"


def test_parameters_are_restored_bit_for_bit(saved):
    params, config, folder = saved
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["fingerprint"]
    assert read_description(folder) == Description(config, tokenizer, chat=True, context_tokens=96)
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, config), params)


def test_the_description_has_the_architecture_and_not_the_execution(saved):
    described = json.loads((saved[2] / "model.json").read_text())
    assert set(described) == {"layout", "config", "tokenizer", "chat", "context_tokens", "arrays"}
    assert described["layout"] == LAYOUT
    sizes = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(described["config"]) == sizes
    assert not sizes & {field.name for field in dataclasses.fields(Execution)}


def test_a_model_can_be_loaded_onto_a_mesh(saved):
    params, config, folder = saved
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    loaded = load_params(folder, config, mesh)
    assert loaded["embed_VD"].sharding.shard_shape((262, 32)) == (131, 16)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved[2], tmp_path / "copy")
    return tmp_path / "copy"


def test_another_tokenizer_is_refused(saved, copied, tmp_path):
    params, config, _ = saved
    BytePairTokenizer(BYTES | {b"in": 256}).save(copied / "tokenizer")
    with pytest.raises(UserError, match=r"is damaged: tokenizer/ranks\.tiktoken has changed"):
        read_description(copied)
    BytePairTokenizer(BYTES | {b"in": 256, b"th": 257}).save(copied / "tokenizer")
    with pytest.raises(UserError, match="has 263 tokens, the model rows for 262"):
        save_model(tmp_path / "new", params, config, copied / "tokenizer", chat=False,
                   context_tokens=96)
    assert not (tmp_path / "new").exists()


def test_folders_that_are_no_models_are_refused(saved, copied, tmp_path):
    with pytest.raises(UserError, match=r"is no model directory \(no model.json\)"):
        read_description(tmp_path)
    shutil.rmtree(copied / "params")
    with pytest.raises(UserError, match=r"is damaged: params/\S+ is missing: put it back"):
        load_params(copied, saved[1])


@pytest.mark.parametrize("layout", [None, 1, LAYOUT - 1])
def test_an_earlier_layout_is_refused_in_one_line(copied, layout):
    (copied / "files.json").unlink()
    described = {"config": {"unknown": "field"}} | ({} if layout is None else {"layout": layout})
    (copied / "model.json").write_text(json.dumps(described))
    with pytest.raises(UserError) as raised:
        read_description(copied)
    assert str(raised.value) == (
        f"{copied}: was written with layout {layout or 1} of model directories, and this version "
        f"reads layout {LAYOUT}: move it away and build it anew, or use the commit that wrote it")


@pytest.fixture(scope="module")
def finished(saved, tmp_path_factory):
    """A model directory as a stage leaves it, with metrics and a checkpoint."""
    params, config, source = saved
    folder = tmp_path_factory.mktemp("finished")
    partial, final = folder / "base.partial", folder / "base"
    open_partial(partial, make_lineage(stage="pretrain", config={}, inputs={}, code=""))
    save_model(partial, params, config, source / "tokenizer", chat=False, context_tokens=96)
    (partial / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5}\n')
    (partial / "checkpoints" / "4").mkdir(parents=True)
    (partial / "checkpoints" / "4" / "files.json").write_text("{}")
    finish(partial, final, {"steps": 1})
    load_model(final, Execution())
    return final


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_refused_in_one_line_that_names_it(finished):
    rng = np.random.default_rng(0)
    names = [name for name in _files(finished) if not name.startswith("checkpoints/")]
    assert {"files.json", "lineage.json", "metrics.json", "metrics.jsonl", "model.json",
            "tokenizer/ranks.tiktoken", "tokenizer/tokenizer.json"} < set(names)
    assert sum(name.startswith("params/") for name in names) > 5
    for name in names:
        path = finished / name
        intact = path.read_bytes()
        for place in (0, len(intact) - 1, *rng.integers(0, len(intact), 3)):
            spoilt = bytearray(intact)
            spoilt[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(spoilt)
            with pytest.raises(UserError) as raised:
                load_model(finished, Execution())
            assert "\n" not in str(raised.value) and name in str(raised.value), (name, place)
        path.write_bytes(intact)
    load_model(finished, Execution())


def test_what_loading_needs_must_be_there_and_the_rest_may_be_deleted(finished, tmp_path):
    for name in _files(finished):
        copy = tmp_path / "copy"
        shutil.copytree(finished, copy)
        (copy / name).unlink()
        if name in ("metrics.json", "metrics.jsonl") or name.startswith("checkpoints/"):
            load_model(copy, Execution())
        else:
            with pytest.raises(UserError, match=name.replace(".", r"\.")):
                load_model(copy, Execution())
        shutil.rmtree(copy)


def test_arrays_that_are_not_those_that_were_saved_are_refused(copied, saved):
    """As when memory or a library fails between the devices and the files."""
    described = json.loads((copied / "model.json").read_text())
    described["arrays"]["blocks/wq_DHK"] = "0" * 16
    (copied / "model.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"params: blocks/wq_DHK is not what was saved"):
        load_params(copied, saved[1])


@pytest.mark.parametrize("changes, line", [
    ({"H": 6, "G": 4}, "model.H=6: is not divisible by model.G=4"),
    ({"K": 7}, "model.K=7: must be even"),
    ({"N": 0}, "model.N=0: must be a whole number, at least 1"),
    ({"E": 1}, "model.experts_per_token=2: exceeds model.E=1")], ids=str)
def test_invalid_sizes_are_refused(config, changes, line):
    with pytest.raises(UserError, match=line):
        dataclasses.replace(config, **changes)


def test_config_sections_are_checked_by_name():
    sizes = dict(D=32, N=2, H=4, G=2, K=8, F=64)
    assert make_model_config(ConfigDict(sizes), 98).V == 98
    with pytest.raises(UserError, match=r"model\.width: is no field of a model"):
        make_model_config(ConfigDict(sizes | {"width": 3}), 98)
    del sizes["D"]
    with pytest.raises(UserError, match="'D'"):
        make_model_config(ConfigDict(sizes), 98)


def test_a_full_disk_is_an_os_error_and_other_errors_pass(saved, monkeypatch, tmp_path):
    def save_with(message):
        def fail(*_, **__):
            raise ValueError(message)

        monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
        save_model(tmp_path / "new", *saved[:2], saved[2] / "tokenizer", chat=True,
                   context_tokens=96)

    with pytest.raises(OSError, match="No space left") as caught:
        save_with("RESOURCE_EXHAUSTED: Error writing local file")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "new")
    with pytest.raises(ValueError, match="other"):
        save_with("other")
