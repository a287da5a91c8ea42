"""Safetensors files: read and written tensor by tensor.

A file is the length of a header in 8 bytes, the header, and the tensors' bytes:

    {"__metadata__": {"format": "pt"},
     "NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

A larger model is a folder of such files with an index, ``{"weight_map": {"NAME": "FILE", ...}}``.
The format is that of https://github.com/huggingface/safetensors, the index that of transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from core.errors import UserError, quote
from model.hf.tensor_files import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    PICKLES,
    LazyTensor,
    bytes_of,
    read_bytes,
    refuse,
    require_tensor_file,
    whole_files,
)

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
ENTRY = {"dtype", "shape", "data_offsets"}

# In the order in which the library lays them out in a file.
DTYPES = {name: np.dtype(scalar) for name, scalar in {
    "U64": np.uint64, "I64": np.int64, "F64": np.float64, "C64": np.complex64,
    "F32": np.float32, "U32": np.uint32, "I32": np.int32,
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "U16": np.uint16, "I16": np.int16,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz, "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANKS = {name: rank for rank, name in enumerate(DTYPES)}


def open_safetensors(path: str | Path) -> dict[str, LazyTensor]:
    """Opens a file, an index, or a folder that holds either under the usual name.

    Returns:
        The tensors by name, in the order of their bytes. Nothing but headers has been read.

    Raises:
        UserError: the file, or one of the shards, is damaged, hostile or missing.
    """
    path = Path(path)
    if not path.is_dir():
        return _open_index(path) if path.name.endswith(".index.json") else _open_file(path)
    found = [name for name in (FILE, INDEX) if (path / name).exists()]
    if len(found) == 2:
        refuse(path, f"holds {FILE} and {INDEX}", remedy="name one of the two")
    if found == [INDEX]:
        return _open_index(path / INDEX)
    if found == [FILE]:
        return _open_file(_inside(path, FILE))
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
    if pickles:
        require_tensor_file(path / pickles[0])
    refuse(path, f"holds neither {FILE} nor {INDEX}", remedy="name a folder or file of weights")


def write_safetensors(folder: str | Path, tensors: Iterable[LazyTensor], *,
                      max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes ``model.safetensors``, or shards and an index, one tensor in memory at a time.

    The bytes are those that the library and transformers write: tensors are divided into shards
    in the order that is given, and lie in each by dtype and name.

    Args:
        max_shard_bytes: of a shard's tensors; a larger tensor has a shard to itself.

    Raises:
        UserError: the folder holds weights already, two tensors have one name, a dtype is not of
            the format, or an array is not what its tensor says. Nothing is left of the files.
    """
    folder, tensors = Path(folder), list(tensors)
    _check_writable(folder, tensors)
    shards = _divide(tensors, max_shard_bytes)
    if len(shards) == 1:
        with whole_files(folder, [FILE]) as paths:
            _write_file(paths[0], shards[0])
        return
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    index = {"metadata": {"total_parameters": sum(math.prod(t.shape) for t in tensors),
                          "total_size": sum(map(_num_bytes, tensors))},
             "weight_map": {t.name: name for name, shard in zip(names, shards) for t in shard}}
    with whole_files(folder, [*names, INDEX]) as paths:
        for path, shard in zip(paths, shards):
            _write_file(path, shard)
        paths[-1].write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _open_index(path: Path) -> dict[str, LazyTensor]:
    size = require_tensor_file(path)
    if size > MAX_HEADER_BYTES:
        refuse(path, f"has {size:,} bytes, more than {MAX_HEADER_BYTES:,}")
    index = _parse(path, path.read_bytes())
    weight_map = index.get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        refuse(path, "has no weight_map of tensors to files")
    for tensor, name in weight_map.items():
        if not (type(name) is str and Path(name).name == name and len(name) < 256
                and name.endswith(".safetensors")):
            refuse(path, f"lies in {quote(name)}, expected a .safetensors file of this folder",
                   tensor=tensor)
    tensors: dict[str, LazyTensor] = {}
    for name in sorted(set(weight_map.values())):
        if not (path.parent / name).exists():
            refuse(path, f"names the file {quote(name)}, which is missing",
                   remedy="fetch the missing file")
        shard = _open_file(_inside(path.parent, name))
        for tensor in shard:
            if weight_map.get(tensor) != name:
                refuse(path, f"lies in {name}, but the index has it in "
                       f"{quote(weight_map.get(tensor, 'no file'))}", tensor=tensor)
        tensors |= shard
    for tensor in weight_map.keys() - tensors.keys():
        refuse(path, f"is not in {quote(weight_map[tensor])}, where the index has it",
               tensor=tensor)
    return tensors


def _inside(folder: Path, name: str) -> Path:
    """The path of a folder's file, unless a link leads out of the folder.

    Links into the cache of Hugging Face's hub are followed: a snapshot consists of them.
    """
    target = (folder / name).resolve()
    allowed = [folder.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    if target.parent not in allowed:
        refuse(folder / name, f"is a link to {target}, outside the folder",
               remedy="put the file itself there")
    return folder / name


def _open_file(path: Path) -> dict[str, LazyTensor]:
    num_bytes = require_tensor_file(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or length > min(num_bytes - 8, MAX_HEADER_BYTES):
            refuse(path, f"its header has {length:,} bytes, expected at most "
                   f"{min(max(num_bytes - 8, 0), MAX_HEADER_BYTES):,}")
        entries = _parse(path, file.read(length))
    metadata = entries.pop("__metadata__", {})
    if type(metadata) is not dict or not all(type(text) is str for text in metadata.values()):
        refuse(path, "its __metadata__ is no map of texts")
    for name, entry in entries.items():
        _check_entry(path, name, entry)
    end, tensors = 0, {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end:
            refuse(path, f"begins at byte {start:,} of the data, expected {end:,}", tensor=name)
        end, dtype, shape = stop, DTYPES[entry["dtype"]], tuple(entry["shape"])
        read = partial(_read, path, name, 8 + length + start, dtype, shape)
        tensors[name] = LazyTensor(name, shape, dtype, read, entry["dtype"])
    if end != num_bytes - 8 - length:
        refuse(path, f"has {num_bytes - 8 - length:,} bytes of data, its tensors {end:,}",
               tensor=name if tensors else None)
    return tensors


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """Parses JSON to an object; its values are counted first, as they need far more memory."""
    if sum(map(text.count, (b"{", b"[", b":", b","))) > 16 * MAX_TENSORS:   # 14 for a matrix
        refuse(path, f"its header has more values than {MAX_TENSORS:,} tensors need")
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=partial(_unique, path))
    except (ValueError, RecursionError) as error:
        refuse(path, f"its header is not valid JSON ({quote(str(error))})")
    if type(parsed) is not dict:
        refuse(path, "its header is no JSON object")
    return parsed


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            refuse(path, f"has the key {quote(name)} twice")
        found[name] = value
    return found


def _check_entry(path: Path, name: str, entry: Any) -> None:
    """Refuses a header's entry whose fields are not of their type, or do not fit one another."""
    def sizes(value: Any, max_count: int) -> bool:
        return (type(value) is list and len(value) <= max_count
                and all(type(size) is int and 0 <= size < MAX_TENSOR_BYTES for size in value))

    if type(entry) is not dict or entry.keys() != ENTRY:
        refuse(path, f"has {quote(entry)}, expected dtype, shape and data_offsets", tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        refuse(path, f"has the dtype {quote(dtype)}, expected one of {', '.join(DTYPES)}",
               tensor=name, remedy="convert it to one of these")
    if not sizes(shape, MAX_DIMENSIONS):
        refuse(path, f"has the shape {quote(shape)}, expected up to {MAX_DIMENSIONS} sizes below "
               "2^62", tensor=name)
    if not sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(path, f"has the data_offsets {quote(offsets)}, expected [start, end]", tensor=name)
    itemsize = DTYPES[dtype].itemsize
    if itemsize * math.prod(max(size, 1) for size in shape) > MAX_TENSOR_BYTES:
        refuse(path, f"has the shape {quote(shape)}, too large for 64 bits", tensor=name)
    expected, found = itemsize * math.prod(shape), offsets[1] - offsets[0]
    if found != expected:
        refuse(path, f"has {found:,} bytes, expected {expected:,} for {dtype} {shape}",
               tensor=name)


def _read(path: Path, name: str, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    num_bytes = dtype.itemsize * math.prod(shape)
    return read_bytes(path, name, start, num_bytes).view(dtype).reshape(shape)


def _num_bytes(tensor: LazyTensor) -> int:
    return tensor.dtype.itemsize * math.prod(tensor.shape)


def _check_writable(folder: Path, tensors: Sequence[LazyTensor]) -> None:
    found = sorted(folder.glob("model*.safetensors*"))
    if found:
        refuse(found[0], "is there already", remedy="name an empty folder")
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names or tensor.name == "__metadata__":
            raise UserError(f"tensor {quote(tensor.name)}", "this name is taken",
                            "give each tensor a name of its own")
        if tensor.dtype not in NAMES:
            raise UserError(f"tensor {quote(tensor.name)}",
                            f"safetensors files have no {tensor.dtype}",
                            f"convert it to one of {', '.join(map(str, NAMES))}")
        names.add(tensor.name)


def _divide(tensors: Sequence[LazyTensor], max_bytes: int) -> list[list[LazyTensor]]:
    """Divides tensors into shards as huggingface_hub's `split_state_dict_into_shards_factory`."""
    shards, shard, num_bytes = [], [], 0
    for tensor in tensors:
        size = _num_bytes(tensor)
        if size > max_bytes:
            shards.append([tensor])
            continue
        if num_bytes + size > max_bytes:
            shards.append(shard)
            shard, num_bytes = [], 0
        shard.append(tensor)
        num_bytes += size
    return [*shards, shard] if shard or not shards else shards


def _write_file(path: Path, tensors: Sequence[LazyTensor]) -> None:
    tensors = sorted(tensors, key=lambda tensor: (RANKS[NAMES[tensor.dtype]], tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _num_bytes(tensor)
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                               "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)     # the tensors begin at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(bytes_of(tensor.read_checked()))
