"""A model directory comes back the same, and refuses a tokenizer that is not its own."""

import dataclasses
import errno
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from data.tokenizer import Tokenizer
from model.config import make_model_config
from model.directory import disk_errors, is_chat_model, load_config, load_model, save_model
from model.families.decoder import init
from model.parallel.sharding import make_mesh

BYTES = {bytes([i]): i for i in range(256)}


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    """A saved model with a tokenizer of 262 tokens: its parameters, config and folder."""
    folder = tmp_path_factory.mktemp("model")
    Tokenizer(BYTES | {b"th": 256}).save(folder / "tokenizer.source")
    config = dataclasses.replace(config, V=262, N=1)
    params = jax.jit(lambda key: init(config, key))(jax.random.key(0))
    save_model(folder / "saved", params, config, folder / "tokenizer.source", chat=True,
               context_tokens=96)
    return params, config, folder / "saved"


def test_what_is_saved_comes_back_bit_for_bit(saved):
    params, config, folder = saved
    loaded, loaded_config = load_model(folder)
    assert loaded_config == config and is_chat_model(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_model_can_be_loaded_onto_a_mesh(saved):
    params, _, folder = saved
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    loaded, _ = load_model(folder, mesh)
    assert loaded["embed_VD"].sharding.shard_shape((262, 32)) == (131, 16)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved[2], tmp_path / "copy")
    return tmp_path / "copy"


def test_another_tokenizer_of_the_same_size_is_refused(copied):
    Tokenizer(BYTES | {b"in": 256}).save(copied / "tokenizer")
    with pytest.raises(UserError, match="is not the model's own: its fingerprint is"):
        load_config(copied)


def test_a_tokenizer_of_another_size_is_refused(saved, copied, tmp_path):
    params, config, _ = saved
    Tokenizer(BYTES).save(copied / "tokenizer")
    with pytest.raises(UserError, match="has 261 tokens, the model 262"):
        load_model(copied)
    with pytest.raises(UserError, match="has 261 tokens, the model 262"):
        save_model(tmp_path / "new", params, config, copied / "tokenizer", chat=False,
                   context_tokens=96)
    assert not (tmp_path / "new").exists()


def test_folders_that_are_no_models_are_refused(copied, tmp_path):
    with pytest.raises(UserError, match=r"is no model directory \(no model.json\)"):
        load_model(tmp_path)
    shutil.rmtree(copied / "params")
    with pytest.raises(UserError, match=r"params: cannot be read"):
        load_model(copied)


@pytest.mark.parametrize("changes, line", [
    ({"H": 6, "G": 4}, "model.H=6: is not divisible by model.G=4"),
    ({"K": 7}, "model.K=7: must be even"), ({"N": 0}, "model.N=0: must be at least 1"),
    ({"remat": "some"}, "model.remat='some': is none of"),
    ({"compute_dtype": "float16"}, "model.compute_dtype='float16': is none of")], ids=str)
def test_sizes_that_make_no_model_are_refused(config, changes, line):
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


def test_a_full_disk_is_an_os_error_and_other_errors_pass():
    with pytest.raises(OSError, match="No space left") as caught, disk_errors("/some/folder"):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == "/some/folder"
    with pytest.raises(ValueError, match="other"), disk_errors("/some/folder"):
        raise ValueError("other")
