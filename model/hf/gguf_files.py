"""GGUF files, the format of llama.cpp: read and written tensor by tensor.

`data.tokenizers.gguf_header` describes the layout. Number formats, their blocks and their
arithmetic are those of the library `gguf`, and so is the writer. From `gguf.cpp` of ggml is the
rule that tensors follow one another in the header's order.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from core.errors import UserError, quote
from core.progress import log
from data.tokenizers.gguf_header import ARRAY, SCALARS, STRING, Header, read_metadata
from model.hf.tensor_files import (
    MAX_TENSOR_BYTES,
    LazyTensor,
    read_bytes,
    refuse,
    require_tensor_file,
    whole_files,
)

MAX_DIMENSIONS = 4              # of ggml
DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 63             # of a tensor, in llama.cpp
CHUNK_VALUES = 1 << 20          # that are converted at once, or a row

UINT32, INT32, FLOAT32, BOOL, UINT64 = 4, 5, 6, 7, 10

# Formats that are arrays as they are. All others are dequantised to float32.
PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64,
         "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}        # `general.file_type` of what can be written
OURS = ("general.architecture", "general.alignment", "general.file_type",
        "general.quantization_version")


def open_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Opens a file.

    Returns:
        The metadata as Python's numbers, texts, and lists of these; and the tensors by name, in
        the order of their bytes, with row-major shapes (the file has them reversed). A tensor's
        `stored_as` is its number format; quantised ones are read as float32.

    Raises:
        UserError: the file is damaged, hostile, one part of several, or has a tensor of an unknown
            format; or the library is not installed.
    """
    path = Path(path)
    num_bytes, gguf = require_tensor_file(path), _library(path)
    with open(path, "rb") as file:
        header = Header(path, file)
        metadata, num_tensors = read_metadata(header)
        infos = [_read_info(gguf, header) for _ in range(num_tensors)]
        alignment = _check_metadata(path, metadata)
        data_start = _pad(file.tell(), alignment)
    expected, tensors = 0, {}
    for name, kind, shape, offset in infos:
        if name in tensors:
            refuse(path, "is there twice", tensor=name)
        size = _num_bytes(gguf, kind, shape)
        if offset != expected:
            refuse(path, f"begins at byte {offset:,} of the data, expected {expected:,}",
                   tensor=name)
        if data_start + offset + size > num_bytes:
            refuse(path, f"ends at byte {data_start + offset + size:,}, the file at "
                   f"{num_bytes:,}", tensor=name)
        expected += _pad(size, alignment)
        read = partial(_read, path, name, data_start + offset, kind, shape)
        tensors[name] = LazyTensor(name, shape, np.dtype(PLAIN.get(kind.name, np.float32)), read,
                                   kind.name)
    return metadata, tensors


def write_gguf(path: str | Path, metadata: Mapping[str, Any], tensors: Iterable[LazyTensor],
               quantisation: str) -> None:
    """Writes a file, one tensor in memory at a time.

    Vectors, norms, routers and what is no weight stay float32, as llama.cpp's converter has them.
    A matrix whose rows do not divide into blocks becomes F16, which is announced.

    Args:
        metadata: texts, bools, numbers and lists of one of these, with ``general.architecture``.
            A whole number becomes a uint32 and in a list an int32, a float a float32: these are
            what llama.cpp asks for. What describes the file itself, as its alignment and
            ``general.file_type``, is set here.
        quantisation: ``F32``, ``F16`` or ``Q8_0``.

    Raises:
        UserError: a value or a tensor does not fit into the file; nothing is left of it.
    """
    path, tensors = Path(path), list(tensors)
    gguf = _library(path)
    if quantisation not in FILE_TYPES:
        raise UserError(f"quantisation={quantisation!r}", "cannot be written",
                        f"choose one of {', '.join(FILE_TYPES)}")
    writer = gguf.GGUFWriter(None, _architecture(metadata))
    for key, value in metadata.items():
        if key not in OURS:
            types = map(gguf.GGUFValueType, _value_types(key, value))
            writer.add_key_value(key, value, *types)
    writer.add_file_type(FILE_TYPES[quantisation])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kinds = [_kind_to_write(gguf, tensor, quantisation) for tensor in tensors]
    if path.exists():
        refuse(path, "is there already", remedy="name another file")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise UserError(str(path), "two tensors have one name", "give each a name of its own")
    for tensor, kind in zip(tensors, kinds):
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32),
                               _num_bytes(gguf, kind, tensor.shape), raw_dtype=kind)
    with whole_files(path.parent, [path.name]) as (temporary,):
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor, kind in zip(tensors, kinds):
                writer.write_tensor_data(_quantise(gguf, tensor, kind))
        finally:
            writer.close()


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> int:
    """Refuses one part of several; returns the alignment."""
    if metadata.get("split.count", 1) not in (0, 1):
        refuse(path, f"is one of {quote(metadata['split.count'])} parts of a model",
               remedy="merge them with llama-gguf-split")
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        refuse(path, f"metadata 'general.alignment' is {quote(alignment)}, expected a power of two")
    return alignment


def _read_info(gguf: Any, header: Header) -> tuple[str, Any, tuple[int, ...], int]:
    """A tensor's name, format, shape and offset."""
    name = header.text("the name of a tensor")
    field = f"tensor {quote(name)}"
    if (num_dimensions := header.number("I", field)) > MAX_DIMENSIONS:
        header.refuse(field, f"has {num_dimensions:,} dimensions, expected at most "
                      f"{MAX_DIMENSIONS}")
    shape = tuple(header.number("Q", field) for _ in range(num_dimensions))[::-1]
    if 0 in shape or math.prod(shape) > MAX_TENSOR_BYTES // 8:
        header.refuse(field, f"has the shape {shape}, expected sizes above 0 whose product fits "
                      "into 64 bits")
    number, offset = header.number("I", field), header.number("Q", field)
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        header.refuse(field, f"has the number format {number}, which gguf does not know")
    if not _is_readable(kind):
        header.refuse(field, f"has the number format {kind.name}, which gguf cannot dequantise")
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if math.prod(shape[-1:]) % block:
        header.refuse(field, f"has rows of {math.prod(shape[-1:]):,} numbers, expected a multiple "
                      f"of {block} for {kind.name}")
    return name, kind, shape, offset


@lru_cache(maxsize=64)
def _is_readable(kind: Any) -> bool:
    """Whether the library dequantises a format: one block shows it."""
    gguf = import_module("gguf")
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return kind.name in PLAIN
    return True


def _num_bytes(gguf: Any, kind: Any, shape: tuple[int, ...]) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def _read(path: Path, name: str, start: int, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    gguf = import_module("gguf")
    data = read_bytes(path, name, start, _num_bytes(gguf, kind, shape))
    if kind.name in PLAIN:
        return data.view(PLAIN[kind.name]).reshape(shape)
    values = np.empty((math.prod(shape[:-1]), shape[-1]), np.float32)
    rows = data.reshape(len(values), -1)
    with np.errstate(all="ignore"):     # scales that are not finite give numbers that are not
        for chunk in _chunks(values):
            values[chunk] = gguf.quants.dequantize(rows[chunk], kind)
    return values.reshape(shape)


def _chunks(rows: np.ndarray) -> Iterator[slice]:
    """Slices of rows; the library's intermediate arrays are several times larger than these."""
    step = max(1, CHUNK_VALUES // rows.shape[1])
    return (slice(first, first + step) for first in range(0, len(rows), step))


def _kind_to_write(gguf: Any, tensor: LazyTensor, quantisation: str) -> Any:
    kinds, where = gguf.GGMLQuantizationType, f"tensor {quote(tensor.name)}"
    if len(tensor.name.encode()) > MAX_NAME_BYTES:
        raise UserError(where, f"llama.cpp takes names of at most {MAX_NAME_BYTES} bytes",
                        "give it a shorter name")
    if len(tensor.shape) > MAX_DIMENSIONS or 0 in tensor.shape:
        raise UserError(where, f"has the shape {tensor.shape}, and GGUF at most {MAX_DIMENSIONS} "
                        "dimensions, none empty", "export to safetensors")
    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight") or tensor.name.endswith(
            ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight")):
        return kinds.F32
    if quantisation == "Q8_0" and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kinds.Q8_0][0]:
        log(f"{where}: its rows of {tensor.shape[-1]} numbers do not divide into blocks of 32: "
            "written as F16")
        return kinds.F16
    return kinds[quantisation]


def _quantise(gguf: Any, tensor: LazyTensor, kind: Any) -> np.ndarray:
    """A tensor's bytes in a format."""
    array = tensor.read_checked()
    array = array.reshape(-1, *array.shape[-1:] or (1,))
    data = np.empty((len(array), _num_bytes(gguf, kind, array.shape) // len(array)), np.uint8)
    try:
        with np.errstate(over="raise", invalid="raise"):
            for chunk in _chunks(array):
                values = np.ascontiguousarray(array[chunk], np.float32)
                data[chunk] = gguf.quants.quantize(values, kind).view(np.uint8)
    except FloatingPointError:
        raise UserError(f"tensor {quote(tensor.name)}",
                        f"has numbers that {kind.name} cannot hold", "choose F32") from None
    return data


def _architecture(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("general.architecture")
    if type(name) is not str or not name:
        raise UserError(f"metadata 'general.architecture'={quote(name)}",
                        "GGUF files name their architecture", "give it as a text")
    return name


def _value_types(key: str, value: Any) -> tuple[int, ...]:
    """The type that a value has in the file; of a list, also its values'."""
    if type(value) is list:
        types = {_scalar_type(part, (INT32,)) for part in value}
        found = (ARRAY, *types) if len(types) == 1 else (None,)
    else:
        found = (_scalar_type(value, (UINT32, INT32, UINT64)),)
    if None in found:
        raise UserError(f"metadata {quote(key)}={quote(value)}", "does not fit into a GGUF file",
                        "give a text, a bool, a number, or a list of one of these, not empty")
    return found


def _scalar_type(value: Any, whole_numbers: tuple[int, ...]) -> int | None:
    """The type of a value that is no list; of a whole number, the first of these that holds it."""
    with contextlib.suppress(UnicodeEncodeError):
        if type(value) is str and value.encode() is not None:
            return STRING
    for kind in {bool: (BOOL,), float: (FLOAT32,), int: whole_numbers}.get(type(value), ()):
        with contextlib.suppress(struct.error, OverflowError):
            struct.pack(f"<{SCALARS[kind]}", value)
            return kind
    return None


def _pad(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _library(path: Path) -> Any:
    try:
        return import_module("gguf")
    except ImportError:
        raise UserError(str(path), "GGUF files need the package gguf",
                        "pip install -e '.[hf]'") from None
