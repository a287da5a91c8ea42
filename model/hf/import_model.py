"""Imports a model of another program as a model directory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from core import artifacts, locks
from core.artifacts import code_digest, make_lineage, read_json
from core.errors import UserError, require_file
from core.file_sums import sum_file
from core.progress import log
from data.tokenizers.gguf import tokenizer_from_gguf
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from model.config import ModelConfig
from model.directory import save_model
from model.families.registry import num_params
from model.hf.families.table import find_layout
from model.hf.fields import Fields
from model.hf.gguf_layouts import open_gguf_model
from model.hf.safetensors_files import open_safetensors
from model.hf.tables import Layout, Tensors, left_out, load_params
from model.parallel.sharding import make_mesh

# Files of a folder that decide what is imported.
DECIDING = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
            "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
            "added_tokens.json", "generation_config.json", "chat_template.jinja")
LENGTHS = ("max_position_embeddings", "n_positions", "context_length")
RELATIVE_CONTEXT = 512      # of T5 where its config, as that of 1.1, names none (arXiv 1910.10683)


class Source(NamedTuple):
    """A model to import, of which no weight has been read.

    Attributes:
        layout, fields: its family, and the fields that describe it.
        tensors: by their names.
        tokenizer: read when it is called.
    """

    layout: Layout
    fields: Fields
    tensors: Tensors
    tokenizer: Any


def import_model(source: Path, out: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Writes a model directory; one that was imported from the same files is left as it is.

    Args:
        source: a folder with ``config.json`` and safetensors, a GGUF file, or a folder with one.
        out: the model directory.
        tokenizer: see `load_tokenizer`; None for the model's own.

    Raises:
        UserError: a file is missing or damaged, or the model has parts that we do not have.
    """
    files = _deciding_files(source) + (_deciding_files(tokenizer) if tokenizer else [])
    lineage = make_lineage(
        stage="import", config={"import": {"run": {"source": str(source.resolve())}}},
        inputs={path.name: sum_file(path) for path in files}, code=code_digest(__file__))
    result, partial_folder = {"model": str(out)}, out.with_name(f"{out.name}.partial")
    with locks.locked(out):
        if artifacts.find_finished(out, lineage):
            log(f"import: {out} is up to date")
            return result | {"skipped": True} | read_json(out / "metrics.json")
        with artifacts.opened(partial_folder, lineage):
            metrics = _build(_open(source, tokenizer), partial_folder)
        artifacts.finish(partial_folder, out, metrics)
    return result | {"skipped": False} | metrics


def _deciding_files(source: Path) -> list[Path]:
    require_file("--source", source, "name a folder or a file of a model")
    if source.is_file():
        return [source]
    return sorted({path for pattern in (*DECIDING, "*.gguf") for path in source.glob(pattern)})


def _open(source: Path, tokenizer: Path | None) -> Source:
    """Finds the family and the tokenizer of a model, and opens its weights."""
    gguf = [source] if source.is_file() else sorted(source.glob("*.gguf"))
    if source.is_dir() and (source / "config.json").exists():
        fields = Fields(_read_object(source / "config.json"), str(source / "config.json"))
        return Source(find_layout(fields), fields, open_safetensors(source),
                      partial(load_tokenizer, tokenizer or source))
    if len(gguf) != 1 or gguf[0].suffix != ".gguf":
        raise UserError(f"--source={source}", "is neither a GGUF file nor a folder with one, and "
                        "has no config.json", "name the folder of a model")
    layout, fields, tensors, metadata = open_gguf_model(gguf[0])
    return Source(layout, fields, tensors, partial(load_tokenizer, tokenizer) if tokenizer
                  else partial(tokenizer_from_gguf, metadata))


def _read_object(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, Mapping):
        raise UserError(str(path), "is no JSON object", "fetch it anew")
    return value


def _read_context(fields: Fields, config: ModelConfig) -> int:
    """The length of the rows that a model was trained on."""
    named = next((name for name in LENGTHS if name in fields), None)
    if named is None and config.positions == "relative":
        log(f"import: the config names no length of rows: {RELATIVE_CONTEXT}, as T5 was trained")
        return RELATIVE_CONTEXT
    return fields.count(named or LENGTHS[0])


def _build(source: Source, folder: Path) -> dict[str, Any]:
    """Writes the model directory; what can be refused is, before the first weight is read."""
    layout, fields = source.layout, source.fields
    config = layout.read_config(fields)
    context_tokens = config.max_positions or _read_context(fields, config)
    tokenizer: Tokenizer = source.tokenizer()
    if unread := fields.unread():
        log(f"import: fields that have no meaning here: {', '.join(unread)}")
    if names := left_out(layout, source.tensors):
        log(f"import: parameters that are left out: {', '.join(names)}")
    mesh = make_mesh({"fsdp": -1}) if jax.device_count() > 1 else None
    params = load_params(layout, source.tensors, config, mesh)
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / "tokenizer"
        tokenizer.save(own)
        save_model(folder, params, config, own, chat=bool(tokenizer.chat_template),
                   context_tokens=context_tokens)
    return {"model_type": layout.model_type, "parameters": num_params(config),
            "context_tokens": context_tokens, "chat": bool(tokenizer.chat_template),
            "stored_as": sorted({tensor.stored_as for tensor in source.tensors.values()})}
