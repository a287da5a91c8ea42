"""Model directories: parameters, architecture and tokenizer, all that opening a model needs.

    params/       Orbax arrays        model.json    architecture, training facts, digests of arrays
    tokenizer/    see data.tokenizers lineage.json  its origin (written by its stage)
    files.json    checksums of all these files and of what else its stage wrote, checkpoints aside

All of it is verified when a model is opened: each file before it is read, and each array on its
devices against the digest that it had there when it was saved.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from core.artifacts import check_layout, digest, read_json, write_json
from core.errors import UserError, as_disk_error
from core.file_sums import NAME, DamagedError, check_sums, write_sums
from model.config import ModelConfig, make_model_config
from model.digests import named_leaves, read_digests, start_digests
from model.families.registry import Params, abstract_params
from model.parallel.sharding import param_shardings

LAYOUT, MODELS = 4, "model directories"     # other layouts are refused
NEEDED = ("lineage.json", "model.json", "tokenizer/")   # beside params/; others may be deleted
REMEDY = "put it back from a copy, or build the model anew with --rebuild"


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
        UserError: the tokenizer has more tokens than the model has rows for.
        OSError: the disk is full or broken.
    """
    fingerprint = _check_tokenizer(tokenizer, config)
    digests = save_arrays(folder, params)
    if jax.process_index():
        return
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    shutil.copytree(tokenizer, folder / "tokenizer")
    write_json(folder / "model.json", {"layout": LAYOUT, "config": dataclasses.asdict(config),
                                       "tokenizer": fingerprint, "chat": chat,
                                       "context_tokens": context_tokens, "arrays": digests})
    write_sums(folder, [folder / "model.json", *(folder / "params").rglob("*"),
                        *(folder / "tokenizer").rglob("*")])


def read_description(folder: Path) -> Description:
    """Reads `model.json`, and verifies all files but the parameters'.

    Raises:
        UserError: this is no model directory, or it is damaged or of an earlier layout.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists():
        raise UserError(str(folder), "is no model directory (no model.json)",
                        "name a folder that pretrain, sft or dpo wrote")
    if not (folder / NAME).exists():    # as in earlier layouts
        check_layout(folder, read_json(folder / "model.json"), layout=LAYOUT, of=MODELS)
    check_files(folder, lambda name: not name.startswith("params/") and (
        name.startswith(NEEDED) or (folder / name).exists()))
    described = read_json(folder / "model.json")
    check_layout(folder, described, layout=LAYOUT, of=MODELS)
    sizes = dict(described["config"])
    return Description(make_model_config(sizes, sizes.pop("V")), described["tokenizer"],
                       described["chat"], described["context_tokens"])


def load_params(folder: Path, config: ModelConfig, mesh: Mesh | None = None) -> Params:
    """Loads a model's parameters, sharded over `mesh`; onto one device without a mesh.

    Raises:
        UserError: they cannot be read, or are not those that were saved.
    """
    return load_arrays(folder, abstract_params(config), "model.json", mesh)


def fingerprint_params(folder: Path) -> str:
    """What tells a model's parameters from others': 16 hex digits, from the digests of its arrays.

    They depend on the parameters alone; neither on the mesh that saved them nor on the folder.
    """
    return digest(read_json(Path(folder) / "model.json")["arrays"])


def save_arrays(folder: Path, tree: Any) -> dict[str, str]:
    """Writes a tree of arrays to `folder/params`; every process that holds a part must call it.

    Returns:
        The digest of each array by name, for the JSON file beside them.

    Raises:
        OSError: the disk is full or broken.
    """
    leaves = named_leaves(tree)
    digests, _ = read_digests(leaves, start_digests(leaves))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / "params").absolute(), tree, force=True)
    except ValueError as error:
        raise as_disk_error(error, folder) from None
    return digests


def load_arrays(folder: Path, shapes: Any, described: str, mesh: Mesh | None = None) -> Any:
    """Loads what `save_arrays` wrote, sharded over `mesh`; onto one device without a mesh.

    Args:
        shapes: the tree's shapes and dtypes.
        described: name of the JSON file whose `arrays` are the digests.

    Raises:
        UserError: the arrays cannot be read, or are not those that were saved.
    """
    folder = Path(folder)
    check_files(folder, lambda name: name.startswith("params/"), index=jax.process_index(),
                count=jax.process_count())
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = param_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore((folder / "params").absolute(), abstract)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{folder}/params", f"cannot be read ({reason})", REMEDY) from None
    leaves = named_leaves(tree)
    found, _ = read_digests(leaves, start_digests(leaves))
    saved = read_json(folder / described)["arrays"]
    for name, array_digest in found.items():
        if saved[name] != array_digest:
            raise UserError(f"{folder}/params", f"{name} is not what was saved", REMEDY)
    return tree


def check_files(folder: Path, select: Callable[[str], bool], *, index: int = 0,
                 count: int = 1) -> None:
    """Raises `UserError`, naming the file, when one of those selected is damaged."""
    try:
        check_sums(folder, select=select, index=index, count=count)
    except DamagedError as damage:
        raise UserError(str(folder), f"is damaged: {damage}", REMEDY) from None


def _check_tokenizer(tokenizer: Path, config: ModelConfig) -> str:
    """Returns a tokenizer's fingerprint; raises `UserError` if its tokens exceed the model's rows.

    Many models have more rows than tokens, so that the number of rows divides well.
    """
    described = read_json(tokenizer / "tokenizer.json")
    if described["vocab_size"] > config.V:
        raise UserError(str(tokenizer), f"has {described['vocab_size']} tokens, the model rows for "
                        f"{config.V}", "use the tokenizer that the model was trained with")
    return described["fingerprint"]
