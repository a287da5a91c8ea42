"""How a family of transformers names and lays out the parameters that we hold.

A family is a `Layout`: its config both ways, and one `Entry` for each of our parameters. Everything
else, reading, writing and checking, follows from the entries.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from core.errors import UserError
from model.config import ModelConfig
from model.families.registry import abstract_params
from model.hf.tensor_files import LazyTensor
from model.parallel.sharding import leaf_name, param_shardings

Tensors = Mapping[str, LazyTensor]


class Entry(NamedTuple):
    """One of our parameters and the tensors that hold it.

    Attributes:
        ours: its path, e.g. ``blocks/wq_DHK``; the layers of `blocks` are stacked along N.
        theirs: name of the tensor; ``{n}`` is the layer and ``{e}`` the expert, if each has its
            own.
        axes: axes of the tensor in our letters; those in parentheses are one axis of the tensor:
            ``(HK)D``. A head size may be cut into its halves, p, and the pairs of numbers that
            RoPE rotates, k, in whatever order the tensor has them: ``(Hkp)D``.
        pick: where a tensor holds several of our parameters, the letter of the axis that counts
            them, not one of ours, and the place of this one: ``Q1``.
    """

    ours: str
    theirs: str
    axes: str
    pick: str = ""

    @property
    def letters(self) -> str:
        """The axes of the tensor, one by one."""
        return self.axes.replace("(", "").replace(")", "")

    @property
    def own_letters(self) -> str:
        """The axes of our parameter that one tensor has: without those that are in its name."""
        letters = self.ours.rpartition("_")[2]
        if "k" in self.axes:
            letters = letters.replace("K", "pk")
        return letters.replace("E", "") if "{e}" in self.theirs else letters


@dataclasses.dataclass(frozen=True)
class Layout:
    """A family of transformers.

    Attributes:
        model_type: as `config.json` names it.
        architecture: the class that loads it.
        entries: the entries of a model of this architecture.
        read_config: our architecture from the fields of `config.json`; raises `UserError` for what
            we do not have.
        write_config: the reverse, without names of types; None if the family has no such model.
        prefix: of tensor names, which some files leave out.
        old_names: parts of names that older files have, and what they are called today.
        copies: tensors that repeat another one, by name; e.g. a tied head.
        ignored: patterns of tensors that are no parameters.
        left_out: patterns of parameters that the architecture does not use; see `left_out`.
    """

    model_type: str
    architecture: str
    entries: Callable[[ModelConfig], list[Entry]]
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any] | None]
    prefix: str = ""
    old_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def load_params(layout: Layout, tensors: Tensors, config: ModelConfig,
                mesh: Mesh | None = None) -> Any:
    """Our parameters in float32, sharded over `mesh`; each device reads its own part.

    Args:
        tensors: of one model, by name.

    Raises:
        UserError: a tensor is missing, unknown or of another shape, or copies disagree.
    """
    tensors = _rename(layout, tensors)
    entries = {entry.ours: entry._replace(theirs=entry.theirs.removeprefix(layout.prefix))
               for entry in layout.entries(config)}
    _check(layout, tensors, entries.values(), config)
    shapes = abstract_params(config)
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = param_shardings(shapes, mesh)

    def make(path, shape, sharding):
        read = partial(_read_part, entries[leaf_name(path)], tensors, config, shape.shape)
        return jax.make_array_from_callback(shape.shape, sharding, read)

    return jax.tree_util.tree_map_with_path(make, shapes, shardings)


def left_out(layout: Layout, tensors: Tensors) -> list[str]:
    """Names of the parameters that `load_params` leaves out, for the caller to announce."""
    return [name for name in _rename(layout, tensors) if _matches(name, layout.left_out)]


def write_params(layout: Layout, params: Any, config: ModelConfig,
                 dtype: np.dtype) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Callable]]:
    """Name, shape, dtype and reader of each tensor of a family, in the order of its entries.

    Args:
        params: our parameters; a tensor is fetched from its devices when it is read.
    """
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    groups: dict[str, list[Entry]] = {}
    for entry in layout.entries(config):
        groups.setdefault(entry.theirs, []).append(entry)
    for theirs, entries in groups.items():
        shape = _their_shape(entries, config)
        for n, e in _places(entries[0], config):
            own = [leaves[entry.ours] for entry in entries]
            read = partial(_write_tensor, entries, own, config, n, e, shape, dtype)
            yield theirs.format(n=n, e=e), shape, dtype, read


def _read_part(entry: Entry, tensors: Tensors, config: ModelConfig, shape: tuple[int, ...],
               index: tuple[slice, ...]) -> np.ndarray:
    """The part of our parameter at `index`, tensor by tensor."""
    part = np.empty([len(range(*s.indices(size))) for s, size in zip(index, shape)], np.float32)
    is_stacked, per_expert = _is_stacked(entry), "{e}" in entry.theirs
    own = entry.own_letters
    for n in range(*index[0].indices(shape[0])) if is_stacked else [0]:
        here = index[1:] if is_stacked else index
        place = (n - (index[0].start or 0),) if is_stacked else ()
        for e in range(*here[0].indices(config.E)) if per_expert else [0]:
            inner = here[1:] if per_expert else here
            at = (*place, e - (here[0].start or 0)) if per_expert else place
            tensor = tensors[entry.theirs.format(n=n, e=e)].read()
            array = tensor.reshape(_sizes(entry.letters, config, {entry.pick[:1]: -1}))
            letters = entry.letters
            if entry.pick:
                array = array.take(int(entry.pick[1:]), axis=letters.index(entry.pick[0]))
                letters = letters.replace(entry.pick[0], "")
            array = array.transpose([letters.index(letter) for letter in own])
            part[at] = array.reshape(_sizes(own.replace("pk", "K"), config))[inner]
    return part


def _write_tensor(entries: Sequence[Entry], leaves: Sequence[jax.Array], config: ModelConfig,
                  n: int, e: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One tensor from our parameters."""
    parts = []
    for entry, leaf in zip(entries, leaves):
        at = (n,) * _is_stacked(entry) + (e,) * ("{e}" in entry.theirs)
        letters, own = entry.letters, entry.own_letters
        if entry.pick:
            letters = letters.replace(entry.pick[0], "")
        part = np.asarray(leaf[at]).reshape(_sizes(own, config))
        parts.append(part.transpose([own.index(letter) for letter in letters]))
    if entries[0].pick:
        axis = entries[0].letters.index(entries[0].pick[0])
        return np.stack(parts, axis).astype(dtype).reshape(shape)
    return parts[0].astype(dtype).reshape(shape)


def _check(layout: Layout, tensors: Tensors, entries: Iterator[Entry] | Any,
           config: ModelConfig) -> None:
    """Raises `UserError` for the first tensor that is missing, unknown, of another shape, or an
    unequal copy."""
    expected: dict[str, tuple[int, ...]] = {}
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.theirs, []).append(entry)
    for theirs, group in groups.items():
        shape = _their_shape(group, config)
        expected |= {theirs.format(n=n, e=e): shape for n, e in _places(group[0], config)}
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(name, f"is missing; a {layout.model_type} of these sizes has it",
                            "give all files of the model")
        if tensors[name].shape != shape:
            raise UserError(name, f"has shape {tensors[name].shape}, and config.json asks for "
                            f"{shape}", "give the config that belongs to the weights")
    for name in tensors:
        if name not in expected and name not in layout.copies and not _matches(
                name, layout.ignored + layout.left_out):
            raise UserError(name, f"is no tensor of a {layout.model_type} of these sizes",
                            "give the config that belongs to the weights")
    for copy, original in layout.copies.items():
        is_copy = copy in tensors and copy not in expected and original in tensors
        if is_copy and not np.array_equal(tensors[copy].read(), tensors[original].read()):
            raise UserError(copy, f"differs from {original}, which the config ties it to",
                            "set tie_word_embeddings to false in config.json")


def _rename(layout: Layout, tensors: Tensors) -> Tensors:
    """The tensors under today's names, without the prefix."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in layout.old_names.items():
            name = name.replace(old, new)
        renamed[name.removeprefix(layout.prefix)] = tensor
    return renamed


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _is_stacked(entry: Entry) -> bool:
    return "blocks/" in entry.ours


def _places(entry: Entry, config: ModelConfig) -> list[tuple[int, int]]:
    """Layer and expert of each tensor of an entry; 0 where there is one for all."""
    layers = config.encoder_layers if entry.ours.startswith("encoder/") else config.N
    return [(n, e) for n in range(layers if "{n}" in entry.theirs else 1)
            for e in range(config.E if "{e}" in entry.theirs else 1)]


def _sizes(letters: str, config: ModelConfig,
           counted: Mapping[str, int] | None = None) -> list[int]:
    """Size of each axis; `counted` has those of letters that are not ours."""
    special = {"L": config.max_positions + config.position_offset, "A": config.token_types,
               "W": config.relative_buckets, "Z": config.shared_experts, "O": config.D,
               "p": 2, "k": config.K // 2, **(counted or {})}
    return [special[letter] if letter in special else getattr(config, letter)
            for letter in letters]


def _their_shape(group: Sequence[Entry], config: ModelConfig) -> tuple[int, ...]:
    """Shape of the tensor that holds a group of entries, with merged axes."""
    entry = group[0]
    sizes = iter(_sizes(entry.letters, config, {entry.pick[:1]: len(group)}))
    shape, inside = [], None
    for character in entry.axes:
        if character == "(":
            inside = 1
        elif character == ")":
            shape.append(inside)
            inside = None
        elif inside is None:
            shape.append(next(sizes))
        else:
            inside *= next(sizes)
    return tuple(shape)
