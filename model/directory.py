"""Model directories: parameters, architecture and tokenizer, all that opening a model needs.

    params/       Orbax arrays        model.json    the architecture and training facts
    tokenizer/    see data.tokenizer  lineage.json  its origin (written by its stage)
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from core.artifacts import LAYOUT, check_layout, read_json, write_json
from core.errors import UserError, as_disk_error
from model.config import ModelConfig, make_model_config
from model.families.decoder import Params, abstract_params
from model.parallel.sharding import param_shardings


@dataclasses.dataclass(frozen=True)
class Description:
    """The contents of `model.json`.

    Attributes:
        config: the architecture.
        tokenizer: fingerprint of the tokenizer that the model was trained with.
        chat: whether the model was fine-tuned on chats; a base model continues text.
        context_tokens: length of the rows it was trained on, its longest context.
    """

    config: ModelConfig
    tokenizer: str
    chat: bool
    context_tokens: int


def save_model(folder: Path, params: Params, config: ModelConfig, tokenizer: Path, *,
               chat: bool, context_tokens: int) -> None:
    """Writes a model directory; every process that holds a part of `params` must call it.

    Args:
        tokenizer: folder of the tokenizer that the model was trained with.
        chat, context_tokens: see `Description`.

    Raises:
        UserError: the tokenizer has another vocabulary size than the model.
        OSError: the disk is full or broken.
    """
    fingerprint = _check_tokenizer(tokenizer, config)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / "params").absolute(), params, force=True)
    except ValueError as error:
        raise as_disk_error(error, folder) from None
    if jax.process_index():
        return
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    shutil.copytree(tokenizer, folder / "tokenizer")
    write_json(folder / "model.json", {"layout": LAYOUT, "config": dataclasses.asdict(config),
                                       "tokenizer": fingerprint, "chat": chat,
                                       "context_tokens": context_tokens})


def read_description(folder: Path) -> Description:
    """Reads `model.json` and checks that the tokenizer belongs to the model.

    Raises:
        UserError: this is no model directory, it is of an earlier layout, or the tokenizer does
            not match.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists():
        raise UserError(str(folder), "is no model directory (no model.json)",
                        "name a folder that pretrain, sft or dpo wrote")
    described = read_json(folder / "model.json")
    check_layout(folder, described)
    sizes = dict(described["config"])
    config = make_model_config(sizes, sizes.pop("V"))
    fingerprint = _check_tokenizer(folder / "tokenizer", config)
    if fingerprint != described["tokenizer"]:
        raise UserError(f"{folder}/tokenizer", f"is not the model's own: its fingerprint is "
                        f"{fingerprint}, the model was trained with {described['tokenizer']}",
                        "put the original tokenizer back")
    return Description(config, fingerprint, described["chat"], described["context_tokens"])


def load_params(folder: Path, config: ModelConfig, mesh: Mesh | None = None) -> Params:
    """Loads a model's parameters, sharded over `mesh`; onto one device without a mesh.

    Raises:
        UserError: they cannot be read.
    """
    shapes = abstract_params(config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = param_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((Path(folder) / "params").absolute(), abstract)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{folder}/params", f"cannot be read ({reason})",
                        "rebuild the model") from None


def _check_tokenizer(tokenizer: Path, config: ModelConfig) -> str:
    """Returns a tokenizer's fingerprint; raises `UserError` if its size is not the model's."""
    described = read_json(tokenizer / "tokenizer.json")
    if described["vocab_size"] != config.V:
        raise UserError(str(tokenizer),
                        f"has {described['vocab_size']} tokens, the model {config.V}",
                        "use the tokenizer that the model was trained with")
    return described["fingerprint"]
