"""Safetensors files come back as they were, in the library's bytes; hostile ones end in a line."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from core.artifacts import ROOT
from core.errors import UserError
from model.hf.safetensors_files import DTYPES, FILE, INDEX, open_safetensors, write_safetensors
from model.hf.tensor_files import MAX_TENSORS, LazyTensor

MATRIX = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def _lazy(arrays):
    return [LazyTensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]


def _arrays():
    """A tensor of each dtype, of no, one and two dimensions, an empty one and unusual names."""
    rng = np.random.default_rng(0)
    arrays = {f"of.{name}": rng.integers(0, 2, (3, 5)).astype(dtype)
              for name, dtype in reversed(DTYPES.items())}
    arrays |= {"scalar": np.full((), 0.1), "empty": np.zeros((0, 3), np.float32),
               'n"\\\n\x7f\u2028\u00e9': np.arange(3, dtype=np.int64)}
    return arrays | {"bf16": rng.normal(size=(7, 3)).astype(ml_dtypes.bfloat16)}


def _pack(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _refusal(path):
    with pytest.raises(UserError) as caught:
        for tensor in open_safetensors(path).values():
            tensor.read()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800, message
    return message


def test_tensors_come_back_and_the_bytes_are_the_librarys(tmp_path):
    arrays = _arrays()
    write_safetensors(tmp_path, _lazy(arrays))
    assert os.listdir(tmp_path) == [FILE]
    assert (tmp_path / FILE).read_bytes() == safetensors.numpy.save(arrays, {"format": "pt"})
    tensors = open_safetensors(tmp_path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor, found = tensors[name], tensors[name].read()
        assert (tensor.shape, tensor.dtype) == (found.shape, found.dtype)
        assert found.tobytes() == array.tobytes() and found.dtype == array.dtype
        assert DTYPES[tensor.stored_as] == array.dtype


def test_shards_have_an_index_and_their_bound(tmp_path):
    arrays = {f"t{i}": np.full((i, 4), i, np.float32) for i in (3, 1, 2, 9, 5)}
    write_safetensors(tmp_path, _lazy(arrays), max_shard_bytes=100)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_parameters": 80, "total_size": 320}
    shards = {"t3": 2, "t1": 2, "t2": 2, "t9": 1, "t5": 3}    # t9 alone exceeds the bound
    assert index["weight_map"] == {name: f"model-{i:05d}-of-00003.safetensors"
                                   for name, i in shards.items()}
    for path in tmp_path.glob("*.safetensors"):
        held = safetensors.numpy.load_file(path)
        assert sum(a.nbytes for a in held.values()) <= 100 or len(held) == 1
        for name, array in held.items():
            np.testing.assert_array_equal(array, arrays[name])
    for source in (tmp_path, tmp_path / INDEX):
        tensors = open_safetensors(source)
        assert tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(tensors[name].read(), array)
    write_safetensors(tmp_path / "again", open_safetensors(tmp_path).values())
    assert (tmp_path / "again" / FILE).read_bytes() == safetensors.numpy.save(
        arrays, {"format": "pt"})


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    size = 1 << 20
    tensors = [LazyTensor(f"t{i}", (size,), np.dtype(np.uint8), lambda: np.ones(size, np.uint8))
               for i in range(12)]
    tracemalloc.start()
    write_safetensors(tmp_path, tensors, max_shard_bytes=4 * size)
    for tensor in open_safetensors(tmp_path).values():
        assert tensor.read().all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < peak < 3 * size


def test_nothing_is_left_of_a_file_that_cannot_be_finished(tmp_path):
    def fail():
        raise OSError("no space left")

    good = _lazy({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    bad = {"broken": LazyTensor("c", (3,), np.dtype(np.float32), fail),
           "other": LazyTensor("c", (3,), np.dtype(np.float32), lambda: np.ones(4, np.float32))}
    with pytest.raises(OSError, match="no space"):
        write_safetensors(tmp_path, [*good, bad["broken"]], max_shard_bytes=12)
    with pytest.raises(UserError, match=r"tensor 'c': is float32 \(4,\), not float32 \(3,\)"):
        write_safetensors(tmp_path, [*good, bad["other"]], max_shard_bytes=12)
    with pytest.raises(UserError, match="tensor 'a': this name is taken"):
        write_safetensors(tmp_path, [*good, good[0]])
    with pytest.raises(UserError, match="tensor 'x': safetensors files have no complex128"):
        write_safetensors(tmp_path, _lazy({"x": np.ones(1, np.complex128)}))
    assert os.listdir(tmp_path) == []
    write_safetensors(tmp_path, good)
    with pytest.raises(UserError, match=rf"{FILE}: is there already"):
        write_safetensors(tmp_path, good)


HOSTILE = {
    "empty": (b"", "header has 0 bytes, expected at most 0"),
    "shorter than a length": (b"\x01\x00\x00", "header has 1 bytes, expected at most 0"),
    "length beyond the file": (_pack(b"{}", length=3), "header has 3 bytes, expected at most 2"),
    "length of 64 bits": (_pack(b"{}", length=2**64 - 1), "18,446,744,073,709,551,615 bytes"),
    "not JSON": (_pack(b"{'a': 1}"), "is not valid JSON"),
    "not UTF-8": (_pack(b'{"\xff": 1}'), "is not valid JSON"),
    "nested too deeply": (_pack(b'{"a":' + b"[" * 100_000), "is not valid JSON"),
    "digits without end": (_pack(b'{"a":' + b"9" * 9999 + b"}"), "is not valid JSON"),
    "no object": (_pack([1]), "is no JSON object"),
    "a number": (_pack(b"7"), "is no JSON object"),
    "billions of keys": (_pack(b'{"":0,' + b'"":0,' * (16 * MAX_TENSORS)), "more values than"),
    "key twice": (_pack(b'{"a":1,"b":2,"a":3}'), "the key 'a' twice"),
    "field twice": (_pack(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "the key 'dtype' twice"),
    "metadata of numbers": (_pack({"__metadata__": {"a": 1}}), "__metadata__ is no map of texts"),
    "metadata is a list": (_pack({"__metadata__": []}), "__metadata__ is no map of texts"),
    "no entry": (_pack({"a": 5}), "tensor 'a': has 5, expected dtype, shape and data_offsets"),
    "entry without shape": (_pack({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "tensor 'a'"),
    "entry with more": (_pack({"a": MATRIX | {"code": "x"}}, bytes(16)), "tensor 'a'"),
    "unknown dtype": (_pack({"a": MATRIX | {"dtype": "F4"}}, bytes(16)), "has the dtype 'F4'"),
    "dtype is a list": (_pack({"a": MATRIX | {"dtype": ["F32"]}}, bytes(16)), "the dtype"),
    "negative size": (_pack({"a": MATRIX | {"shape": [-2, -2]}}, bytes(16)), r"shape \[-2, -2\]"),
    "fractional size": (_pack({"a": MATRIX | {"shape": [4.0]}}, bytes(16)), r"shape \[4.0\]"),
    "size is a bool": (_pack({"a": MATRIX | {"shape": [True, 4]}}, bytes(16)), "shape"),
    "size above 64 bits": (_pack({"a": MATRIX | {"shape": [2**64 + 4]}}, bytes(16)), "shape"),
    "product above 64 bits": (_pack({"a": MATRIX | {"shape": [2**32, 2**32]}}), "too large"),
    "empty, and too large": (_pack({"a": {"dtype": "F32", "shape": [0, 2**61, 2**61],
                                          "data_offsets": [0, 0]}}), "too large"),
    "dimensions": (_pack({"a": MATRIX | {"shape": [1] * 99}}, bytes(16)), "up to 32 sizes"),
    "shape is a text": (_pack({"a": MATRIX | {"shape": "22"}}, bytes(16)), "has the shape '22'"),
    "bytes do not fit": (_pack({"a": MATRIX | {"shape": [2, 3]}}, bytes(16)),
                         r"has 16 bytes, expected 24 for F32 \[2, 3\]"),
    "dtype does not fit": (_pack({"a": MATRIX | {"dtype": "BF16"}}, bytes(16)), "expected 8"),
    "offsets reversed": (_pack({"a": MATRIX | {"data_offsets": [16, 0]}}, bytes(16)),
                         r"the data_offsets \[16, 0\]"),
    "offsets negative": (_pack({"a": MATRIX | {"data_offsets": [-16, 0]}}, bytes(16)), "offsets"),
    "three offsets": (_pack({"a": MATRIX | {"data_offsets": [0, 8, 16]}}, bytes(16)), "offsets"),
    "overlap": (_pack({"a": MATRIX, "b": MATRIX | {"data_offsets": [8, 24]}}, bytes(24)),
                "tensor 'b': begins at byte 8 of the data, expected 16"),
    "same bytes": (_pack({"a": MATRIX, "b": MATRIX}, bytes(16)), "begins at byte 0"),
    "hole": (_pack({"a": MATRIX, "b": MATRIX | {"data_offsets": [20, 36]}}, bytes(36)),
             "tensor 'b': begins at byte 20 of the data, expected 16"),
    "hole at the start": (_pack({"a": MATRIX | {"data_offsets": [4, 20]}}, bytes(20)), "byte 4"),
    "beyond the file": (_pack({"a": MATRIX}, bytes(15)), "has 15 bytes of data, its tensors 16"),
    "trailing bytes": (_pack({"a": MATRIX}, bytes(17)), "has 17 bytes of data, its tensors 16"),
    "lines in a name": (_pack({"a\nb\x1b[2J" + "c" * 9999: 1}), r"tensor 'a\\nb\\x1b"),
    "half a pair": (_pack(b'{"\\ud800": 1}'), r"tensor '\\ud800'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(case, tmp_path):
    path, (content, message) = tmp_path / "x.safetensors", HOSTILE[case]
    path.write_bytes(content)
    assert str(path) in _refusal(path)
    with pytest.raises(UserError, match=message):
        open_safetensors(path)


INDEXES = {
    "no JSON": (b"{", "is not valid JSON"),
    "no map": ({"metadata": {}}, "has no weight_map"),
    "map is a list": ({"weight_map": ["a"]}, "has no weight_map"),
    "missing shard": ({"weight_map": {"a": "1.safetensors", "b": "3.safetensors"}},
                      "the file '3.safetensors', which is missing"),
    "parent folder": ({"weight_map": {"a": "../out.safetensors"}}, "tensor 'a': lies in '../out"),
    "absolute": ({"weight_map": {"a": "/etc/x.safetensors"}}, "tensor 'a': lies in '/etc/x"),
    "two dots": ({"weight_map": {"a": ".."}}, "lies in '..'"),
    "no name": ({"weight_map": {"a": ""}}, "tensor 'a': lies in ''"),
    "a number": ({"weight_map": {"a": 1}}, "tensor 'a': lies in 1"),
    "long name": ({"weight_map": {"a": "x" * 999 + ".safetensors"}}, "tensor 'a': lies in 'xxx"),
    "pickle": ({"weight_map": {"a": "pytorch_model.bin"}}, "lies in 'pytorch_model.bin'"),
    "link out": ({"weight_map": {"a": "link.safetensors"}}, "is a link to .*out.safetensors"),
    "in two shards": ({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},
                      "tensor 'a': lies in 2.safetensors, but the index has it in '1.safe"),
    "not in its shard": ({"weight_map": {"a": "1.safetensors", "c": "1.safetensors"}},
                         "tensor 'c': is not in '1.safetensors'"),
    "not in the index": ({"weight_map": {"b": "2.safetensors"}}, "tensor 'a': .* in 'no file'"),
    "tensor twice": (b'{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}', "'a' twice"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_hostile_index_is_refused_in_one_line(case, tmp_path):
    folder, (index, message) = tmp_path / "model", INDEXES[case]
    folder.mkdir()
    one, two = {"a": np.ones(2, np.float32)}, {"a": np.ones(2, np.int8), "b": np.ones(2, np.int8)}
    safetensors.numpy.save_file(one, folder / "1.safetensors")
    safetensors.numpy.save_file(two, folder / "2.safetensors")
    safetensors.numpy.save_file(one, tmp_path / "out.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    (folder / INDEX).write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    assert str(folder) in _refusal(folder)
    with pytest.raises(UserError, match=message):
        open_safetensors(folder)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "1a2b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, blobs / "0123")
    (snapshot / FILE).symlink_to("../../blobs/0123")
    assert open_safetensors(snapshot)["a"].read().tolist() == [1, 1]


def test_pickles_and_what_is_no_file_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    for name in ("pytorch_model.bin", "model.pt", "weights.ckpt", "X.PTH"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        assert "is a pickle, which can run any code" in _refusal(tmp_path / name)
    assert "is a pickle" in _refusal(tmp_path)
    (tmp_path / "y.safetensors").write_bytes(pickle.dumps(Trap()))
    _refusal(tmp_path / "y.safetensors")
    assert not (tmp_path / "trapped").exists()
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "no such file" in _refusal(tmp_path / "pipe.safetensors")
    assert "no such file" in _refusal(tmp_path / "none.safetensors")
    (tmp_path / "folder").mkdir()
    assert "holds neither" in _refusal(tmp_path / "folder")
    for name in (FILE, INDEX):
        (tmp_path / "folder" / name).write_bytes(b"")
    assert f"holds {FILE} and {INDEX}" in _refusal(tmp_path / "folder")


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.ones(5, ml_dtypes.bfloat16)}
    whole, path = safetensors.numpy.save(arrays), tmp_path / "x.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        _refusal(path)
    path.write_bytes(whole)
    tensor = open_safetensors(path)["b"]
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="tensor 'b': ends after 9 of 10 bytes"):
        tensor.read()


SMALL = safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.int8)},
                               {"format": "pt"})


@given(changes=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)),
                        min_size=1, max_size=4))
def test_changed_bytes_are_refused_or_read(changes, tmp_path_factory):
    content = bytearray(SMALL)
    for place, byte in changes:
        content[place] = byte
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    path.write_bytes(content)
    try:
        tensors = open_safetensors(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        for tensor in tensors.values():
            array = tensor.read()
            assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)


def test_hostile_files_need_little_memory_and_time(tmp_path):
    for i, (content, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{i}.safetensors").write_bytes(content)
    code = ("import resource, sys; from pathlib import Path\n"
            "from core.errors import UserError\n"
            "from model.hf.safetensors_files import open_safetensors\n"
            "used = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)\n"
            "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
            "for path in Path(sys.argv[1]).iterdir():\n"
            "    try: open_safetensors(path)\n"
            "    except UserError: continue\n"
            "    sys.exit(f'{path} was read')\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_the_folder_is_that_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48,
                                      num_hidden_layers=2, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    arrays = {name: tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
              for name, tensor in model.state_dict().items()}
    write_safetensors(tmp_path / "ours", _lazy(arrays), max_shard_bytes=20_000)
    names = sorted(path.name for path in (tmp_path / "theirs").glob("model*"))
    assert len(names) > 3 and names == sorted(os.listdir(tmp_path / "ours"))
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
