"""Exports a model directory as files that other programs load."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from core.artifacts import write_json
from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.export import bos_of, gguf_tokenizer, hub_files
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from model.config import ModelConfig
from model.directory import Description, load_params, read_description
from model.families.registry import num_params
from model.hf.families.table import LAYOUTS
from model.hf.fields import Fields
from model.hf.gguf_files import write_gguf
from model.hf.gguf_layouts import GGUF_LAYOUTS, gguf_metadata
from model.hf.safetensors_files import write_safetensors
from model.hf.tables import Layout, write_params
from model.hf.tensor_files import LazyTensor

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16),
          "float16": np.dtype(np.float16)}
QUANTISATIONS = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}
FORMATS = {"safetensors": tuple(DTYPES), "gguf": tuple(QUANTISATIONS)}


def export_model(model: Path, out: Path, *, dtype: str = "float32",
                 format: str = "safetensors") -> dict[str, Any]:  # noqa: A002
    """Writes a folder that transformers, vLLM or llama.cpp load.

    Args:
        model: a model directory.
        out: the new folder.
        dtype: of the weights; of a GGUF file ``q8_0`` too.
        format: ``safetensors`` with ``config.json`` and the tokenizer's files, or ``gguf``.

    Raises:
        UserError: the model has a part that no family of the format has, or cannot be read.
    """
    if dtype not in FORMATS[format]:
        raise UserError(f"--dtype={dtype}", f"{format} files are written as "
                        f"{', '.join(FORMATS[format])}", "choose one of these")
    if out.exists():
        raise UserError(f"--out={out}", "is there already", "name a new folder")
    described = read_description(model)
    tokenizer = load_tokenizer(model)
    layout, fields = choose_layout(described.config,
                                   GGUF_LAYOUTS if format == "gguf" else LAYOUTS)
    params = load_params(model, described.config)
    temporary = out.with_name(f"{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write = _write_gguf if format == "gguf" else _write_hub
    try:
        write(temporary, described, tokenizer, layout, fields, params, dtype)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"path": str(out), "architecture": layout.architecture, "dtype": dtype,
            "parameters": num_params(described.config)}


def choose_layout(config: ModelConfig,
                  layouts: Sequence[Layout] = LAYOUTS) -> tuple[Layout, dict[str, Any]]:
    """The first family that has such a model, and the fields that describe it there.

    A family has it if reading what it writes gives the same config again.

    Raises:
        UserError: none has it; names what the nearest one lacks.
    """
    nearest: tuple[Layout, list[str]] | None = None
    for layout in layouts:
        try:
            fields = layout.write_config(config)
            back = None if fields is None else layout.read_config(Fields(fields))
        except (UserError, ArithmeticError):    # a number that the family cannot have
            continue
        if back is None:
            continue
        lacking = [field.name for field in dataclasses.fields(config)
                   if getattr(config, field.name) != getattr(back, field.name)]
        if not lacking:
            return layout, fields
        if nearest is None or len(lacking) < len(nearest[1]):
            nearest = layout, lacking
    if nearest is None:
        raise UserError(f"model.family={config.family!r}", "has no counterpart in this format",
                        "export to another one")
    shown = ", ".join(f"model.{name}={getattr(config, name)!r}" for name in nearest[1])
    raise UserError(shown, f"has no counterpart in {nearest[0].architecture}, the nearest family",
                    "train a model without it, or keep the model directory")


def _write_hub(folder: Path, described: Description, tokenizer: Tokenizer, layout: Layout,
               fields: dict[str, Any], params: Any, dtype: str) -> None:
    config = {"architectures": [layout.architecture], "model_type": layout.model_type} | fields | {
        "torch_dtype": dtype, "bos_token_id": bos_of(tokenizer), "eos_token_id": tokenizer.end}
    if described.config.family == "encoder_decoder" and isinstance(tokenizer, BytePairTokenizer):
        config["decoder_start_token_id"] = tokenizer.bos    # see data.tokens.corruption
    if not described.config.max_positions:
        config["max_position_embeddings"] = described.context_tokens
    write_json(folder / "config.json", config)
    stops = list(tokenizer.stops)
    write_json(folder / "generation_config.json", {
        "bos_token_id": bos_of(tokenizer), "eos_token_id": stops if len(stops) > 1 else stops[0]})
    for name, text in hub_files(tokenizer, chat=described.chat,
                                context_tokens=described.context_tokens).items():
        (folder / name).write_text(text, "utf-8")
    write_safetensors(folder, _tensors(layout, params, described.config, DTYPES[dtype]))


def _write_gguf(folder: Path, described: Description, tokenizer: Tokenizer, layout: Layout,
                fields: dict[str, Any], params: Any, dtype: str) -> None:
    metadata = gguf_metadata(layout, fields, described.context_tokens) | gguf_tokenizer(
        tokenizer, num_rows=described.config.V, chat=described.chat)
    write_gguf(folder / "model.gguf", metadata,
               _tensors(layout, params, described.config, DTYPES["float32"]), QUANTISATIONS[dtype])


def _tensors(layout: Layout, params: Any, config: ModelConfig,
             dtype: np.dtype) -> Iterator[LazyTensor]:
    for name, shape, _, read in write_params(layout, params, config, DTYPES["float32"]):
        yield LazyTensor(name, shape, dtype, partial(_cast, name, read, dtype))


def _cast(name: str, read: Callable[[], np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The numbers of a tensor in another format, which must be able to hold them."""
    array = read()
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if not np.isfinite(cast).all() and np.isfinite(array).all():
        raise UserError(f"tensor {name}", f"has numbers that {dtype} cannot hold",
                        "export to float32 or bfloat16")
    return cast
