"""A model directory: parameters, config and tokenizer; all that generation and evaluation need.

    params/       Orbax arrays        model.json    the resolved config
    tokenizer/    see data.tokenizer  lineage.json  where it comes from (written by its stage)
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from core.artifacts import read_json, write_json
from core.errors import UserError
from model.config import ModelConfig
from model.families.decoder import Params, init
from model.parallel.sharding import param_shardings


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns Orbax's ``ValueError: RESOURCE_EXHAUSTED`` into the `OSError` that a full disk is."""
    try:
        yield
    except ValueError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None


def save_model(folder: Path, params: Params, config: ModelConfig, tokenizer: Path, *,
               chat: bool, context_tokens: int) -> None:
    """Writes a model directory; every process that holds a part of `params` must call it.

    Args:
        tokenizer: folder of the tokenizer that the model was trained with.
        chat: whether the model was taught to answer in turns; a base model continues text.
        context_tokens: length of the rows it was trained on; it knows no farther positions.

    Raises:
        UserError: the tokenizer has another vocabulary size than the model.
    """
    described = _check_tokenizer(tokenizer, config)
    with disk_errors(folder), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), params, force=True)
    if jax.process_index():
        return
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    shutil.copytree(tokenizer, folder / "tokenizer")
    portable = dataclasses.replace(config, attention="auto")    # it is opened on other machines
    write_json(folder / "model.json", {"config": dataclasses.asdict(portable),
                                       "tokenizer": described["fingerprint"], "chat": chat,
                                       "context_tokens": context_tokens})


def is_chat_model(folder: Path) -> bool:
    """Whether the model was taught to answer in turns."""
    return read_json(Path(folder) / "model.json")["chat"]


def context_tokens(folder: Path) -> int:
    """Length of the rows that the model was pretrained on."""
    return read_json(Path(folder) / "model.json")["context_tokens"]


def load_config(folder: Path) -> ModelConfig:
    """Reads a model's config and checks that its tokenizer belongs to it.

    Raises:
        UserError: this is no model directory, or the tokenizer is another.
    """
    if not (Path(folder) / "model.json").exists():
        raise UserError(str(folder), "is no model directory (no model.json)",
                        "name a folder that pretrain, sft or dpo wrote")
    described = read_json(Path(folder) / "model.json")
    config = ModelConfig(**described["config"])
    tokenizer = _check_tokenizer(Path(folder) / "tokenizer", config)
    if tokenizer["fingerprint"] != described["tokenizer"]:
        raise UserError(f"{folder}/tokenizer", f"is not the model's own: its fingerprint is "
                        f"{tokenizer['fingerprint']}, the model was trained with "
                        f"{described['tokenizer']}", "put the original tokenizer back")
    return config


def load_model(folder: Path, mesh: jax.sharding.Mesh | None = None) -> tuple[Params, ModelConfig]:
    """Loads a model directory, sharded over `mesh` if given.

    Raises:
        UserError: it is no model directory, is damaged, or its tokenizer is another.
    """
    config = load_config(folder)
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = param_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((Path(folder) / "params").absolute(), abstract), config
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{folder}/params", f"cannot be read ({reason})",
                        "build the model anew") from None


def _check_tokenizer(tokenizer: Path, config: ModelConfig) -> dict:
    described = read_json(tokenizer / "tokenizer.json")
    if described["vocab_size"] != config.V:
        raise UserError(str(tokenizer),
                        f"has {described['vocab_size']} tokens, the model {config.V}",
                        "use the tokenizer that the model was trained with")
    return described
