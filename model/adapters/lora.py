"""LoRA (arXiv 2106.09685): each projection gets an addition of low rank, the rest stays frozen.

A projection with the weight W becomes x W + (alpha / rank) x A B. A begins as noise and B as zeros,
so that an untrained adapter changes nothing. The two factors of `wq_DHK` are `wq_a_DI` and
`wq_b_IHK`, with the rank I: their names say how they are sharded, decayed and scaled, as those of
all parameters do. Adapted are the dense projections of the blocks, `PROJECTIONS`; experts, tables
and the head are not, and the LSTM has none.

An adapter is saved by itself:

    params/         Orbax arrays
    adapter.json    rank, alpha, targets, the model it belongs to, shapes and digests of the arrays
    files.json      checksums of all these files
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from core.artifacts import check_layout, read_json, write_json
from core.bounds import check_numbers
from core.errors import UserError
from core.file_sums import write_sums
from model.config import ModelConfig
from model.digests import named_leaves
from model.directory import (
    check_files,
    fingerprint_params,
    load_arrays,
    read_description,
    save_arrays,
)
from model.execution import Execution
from model.families.registry import Params, abstract_params
from model.layers.matmul import PROJECTIONS, project
from model.parallel.sharding import param_name

LAYOUT, ADAPTERS = 1, "adapters"    # other layouts are refused

# {"blocks": {"wq_a_DI": [N, D, I], "wq_b_IHK": [N, I, H, K], ...}}, nested as the parameters are.
Adapter = Any


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which projections an adapter changes, and by what rank. Hashable: a static argument of jit.

    Attributes:
        rank: numbers between the two factors.
        alpha: over the rank, the factor of the addition.
        targets: shell patterns of projections' names without their letters, as ``wq`` or ``w_*``;
            none adapts all.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ()

    def __post_init__(self):
        check_numbers(dict(rank=self.rank, alpha=self.alpha), "SECTION.lora")
        if not self.rank:
            raise UserError("lora.rank=0", "makes no adapter", "set the rank to 8, for example")

    @property
    def scale(self) -> float:
        """The factor of the addition."""
        return self.alpha / self.rank


@flax.struct.dataclass
class Adapted:
    """A weight with an addition of low rank.

    It stands in the place of the weight in a tree of parameters, stacked over layers or of one
    layer; `model.layers.matmul.project` calls its `project`.

    Attributes:
        base: the weight, an array or another weight of `model.adapters`. The first leaf, since
            linen compares that one's shape with the declared one.
        a: the first factor, the weight's inputs and I; with `adapter_B` an axis X in front.
        b: the second factor, I and the weight's outputs, times the scale; likewise.
        adapter_B: which of the X adapters each row of the batch takes; None where there is one.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    adapter_B: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.base.shape

    def project(self, equation: str, x: jax.Array, execution: Execution) -> jax.Array:
        """`einsum(equation, x, weight)` with the base's precision, and the addition's in the
        compute dtype; see `model.layers.matmul.project`."""
        of_x, of_weight, out = equation.replace("->", ",").split(",")
        inputs = "".join(letter for letter in of_weight if letter in of_x)
        outputs = of_weight.replace(inputs, "")
        low = of_x.replace(inputs, "") + "I"
        a, b, rows = self.a.astype(x.dtype), self.b.astype(x.dtype), ""
        if self.adapter_B is not None:
            a, b, rows = a[self.adapter_B], b[self.adapter_B], of_x[0]
        addition = jnp.einsum(f"{low},{rows}I{outputs}->{out}",
                              jnp.einsum(f"{of_x},{rows}{inputs}I->{low}", x, a), b)
        return project(equation, x, self.base, execution) + addition


def read_lora(section: Any) -> Lora | None:
    """The adapter that a config's subsection `lora` asks for; None if its rank is 0."""
    return Lora(section.rank, section.alpha, tuple(section.targets)) if section.rank else None


def init_lora(config: ModelConfig, lora: Lora, key: jax.Array) -> Adapter:
    """Makes a fresh float32 adapter, which changes nothing yet.

    The first factors have a standard deviation of one over the root of their inputs.

    Raises:
        UserError: the model has no projection that is adapted, or none that a pattern names.
    """
    factors = {}
    for n, (path, shape) in enumerate(_targets(config, lora)):
        inputs = PROJECTIONS[_letters(path[-1])]
        num_layers, sizes = shape[0], shape[1:]
        of_inputs, of_outputs = sizes[:len(inputs)], sizes[len(inputs):]
        name_a, name_b = _factor_names(path[-1])
        factors[*path[:-1], name_a] = math.prod(of_inputs) ** -0.5 * jax.random.normal(
            jax.random.fold_in(key, n), (num_layers, *of_inputs, lora.rank))
        factors[*path[:-1], name_b] = jnp.zeros((num_layers, lora.rank, *of_outputs))
    return unflatten_dict(factors)


@lru_cache
def abstract_lora(config: ModelConfig, lora: Lora) -> Adapter:
    """Shapes and dtypes of `init_lora`'s adapter; one tree for all callers, as they leave it."""
    return jax.eval_shape(partial(init_lora, config, lora), jax.random.key(0))


def apply_lora(params: Params, adapter: Adapter, lora: Lora) -> Params:
    """The parameters with an `Adapted` weight for each that the adapter changes.

    Everything else stays the same object. Differentiable in the adapter.

    Args:
        params: blocks stacked along N, or a sequence of the layers' own parameters.
    """
    return apply_adapters(params, _scaled(adapter, lora.scale))


def apply_adapters(params: Params, adapters: Adapter,
                   adapter_B: jax.Array | None = None) -> Params:
    """As `apply_lora`, where each row of the batch takes one of several adapters.

    Which one is an argument of the compiled program: another choice compiles nothing.

    Args:
        params: as of `apply_lora`.
        adapters: see `stack_adapters`.
        adapter_B: int32, place of each row's adapter; 0 is none.
    """
    def apply_layer(block: Params, part: Adapter, adapter_B: jax.Array | None) -> Params:
        changed = {name: Adapted(block[name], a, b, adapter_B)
                   for name, a, b in _factors(block, part)}
        return {**block, **changed}

    def apply_blocks(blocks: Any, part: Adapter) -> Any:
        if isinstance(blocks, Sequence):
            return [apply_layer(block, jax.tree.map(lambda leaf, n=n: leaf[n], part), adapter_B)
                    for n, block in enumerate(blocks)]
        num_layers = jax.tree.leaves(part)[0].shape[0]
        adapter_NB = None if adapter_B is None else jnp.broadcast_to(
            adapter_B[None], (num_layers, *adapter_B.shape))
        return apply_layer(blocks, part, adapter_NB)

    return _map_blocks(apply_blocks, params, adapters)


def stack_adapters(adapters: Sequence[tuple[Adapter, Lora]]) -> Adapter:
    """Adapters of one model as arrays of one program, for `apply_adapters`.

    Each is padded with zeros to the largest rank and to the targets of all.

    Returns:
        A tree as an adapter's, with an axis X behind N: ``wq_a_DI`` is [N, X, D, I]. The first of
        X is no adapter, the others are those given; second factors include the scale.
    """
    flat = [flatten_dict(_scaled(adapter, lora.scale)) for adapter, lora in adapters]
    rank = max(lora.rank for _, lora in adapters)

    def stack(path: tuple[str, ...]) -> jax.Array:
        axis = 1 + _letters(path[-1]).index("I")    # behind N
        given = [leaves.get(path) for leaves in flat]
        shape = list(next(leaf for leaf in given if leaf is not None).shape)
        shape[axis] = rank
        leaves = [jnp.zeros(shape) if leaf is None else jnp.pad(
            leaf, [(0, (rank - leaf.shape[axis]) * (n == axis)) for n in range(leaf.ndim)])
            for leaf in (None, *given)]
        return jnp.stack(leaves, axis=1)

    return unflatten_dict({path: stack(path) for leaves in flat for path in leaves})


def cast_frozen(params: Params, execution: Execution) -> Params:
    """The parameters with projections and tables of the vocabulary in the compute dtype.

    They are cast to it wherever they are used, so that with frozen ones nothing changes but their
    bytes. Quantised matmuls read float32; then nothing is cast.
    """
    if execution.matmul != "compute":
        return params

    def cast(path: tuple[str, ...], leaf: jax.Array) -> jax.Array:
        letters = _letters(path[-1])
        is_cast = letters in ("VD", "DV") or ("blocks" in path and letters in PROJECTIONS)
        return leaf.astype(execution.compute_dtype) if is_cast else leaf

    return unflatten_dict({path: cast(path, leaf) for path, leaf in flatten_dict(params).items()})


def merge_lora(params: Params, adapter: Adapter, lora: Lora) -> Params:
    """The parameters with the adapter added to its weights: a model like any other.

    Raises:
        UserError: a weight is quantised.
    """
    return _add(params, adapter, lora.scale)


def unmerge_lora(params: Params, adapter: Adapter, lora: Lora) -> Params:
    """The parameters before `merge_lora`, up to rounding."""
    return _add(params, adapter, -lora.scale)


def save_lora(folder: Path, adapter: Adapter, lora: Lora, base: Path) -> None:
    """Writes an adapter; every process that holds a part of it must call it.

    Args:
        base: the model directory that it belongs to.

    Raises:
        OSError: the disk is full or broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests = save_arrays(folder, adapter)
    if jax.process_index():
        return
    write_json(folder / "adapter.json", {
        "layout": LAYOUT, **dataclasses.asdict(lora), "arrays": digests,
        "shapes": _shapes(adapter),
        "base": {"name": Path(base).resolve().name, "params": fingerprint_params(base)}})
    write_sums(folder, [folder / "adapter.json", *(folder / "params").rglob("*")])


def load_lora(folder: Path, base: Path, mesh: Mesh | None = None) -> tuple[Adapter, Lora]:
    """Loads an adapter, sharded over `mesh`; onto one device without a mesh.

    Args:
        base: the model directory that it is to be applied to.

    Raises:
        UserError: this is no adapter, it is damaged, or it belongs to another model.
    """
    described, base = describe_lora(folder), Path(base)
    config, own = read_description(base).config, described["base"]
    if fingerprint_params(base) != own["params"]:
        raise UserError(str(folder), f"is an adapter of {own['name']} with parameters "
                        f"{own['params']}, and those of {base} are {fingerprint_params(base)}",
                        "name the model that it was trained from")
    lora = Lora(described["rank"], described["alpha"], tuple(described["targets"]))
    shapes = abstract_lora(config, lora)
    _check_shapes(folder, described["shapes"], _shapes(shapes))
    return load_arrays(Path(folder), shapes, "adapter.json", mesh), lora


def describe_lora(folder: Path) -> dict[str, Any]:
    """What an adapter's `adapter.json` says, such as the model that it belongs to.

    Raises:
        UserError: this is no adapter, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / "adapter.json").exists():
        raise UserError(str(folder), "is no adapter (no adapter.json)",
                        "name the folder adapter/ that fine-tuning with lora.rank above 0 wrote")
    check_files(folder, lambda name: name == "adapter.json")
    described = read_json(folder / "adapter.json")
    check_layout(folder, described, layout=LAYOUT, of=ADAPTERS)
    if missing := {"rank", "alpha", "targets", "arrays", "shapes", "base"} - described.keys():
        raise UserError(f"{folder}/adapter.json", f"has no {', '.join(sorted(missing))}",
                        "put it back from a copy, or train it anew")
    return described


def _shapes(adapter: Adapter) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in named_leaves(adapter).items()}


def _check_shapes(folder: Path, saved: dict[str, list[int]], needed: dict[str, list[int]]) -> None:
    """Raises `UserError` for the first array that is missing, too many or of another shape."""
    for name in sorted({*saved, *needed}):
        if saved.get(name) != needed.get(name):
            raise UserError(str(folder), f"has {name} of shape {saved.get(name)}, and its rank and "
                            f"targets need {needed.get(name)}",
                            "put it back from a copy, or train it anew")


def _targets(config: ModelConfig, lora: Lora) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Paths and shapes of the weights that the adapter changes."""
    found = {path: leaf.shape for path, leaf in flatten_dict(abstract_params(config)).items()
             if "blocks" in path and _letters(path[-1]) in PROJECTIONS}
    if config.family == "lstm":     # whose matrices have the same letters, and are no projections
        found = {}
    stems = {path: path[-1].rpartition("_")[0] for path in found}
    for pattern in lora.targets or ("*",):
        if not any(fnmatchcase(stem, pattern) for stem in stems.values()):
            known = ", ".join(sorted(set(stems.values())))
            raise UserError(f"lora.targets={pattern!r}", "names no dense projection of the blocks",
                            f"choose among {known}" if known else "fine-tune all parameters")
    return [(path, shape) for path, shape in found.items()
            if any(fnmatchcase(stems[path], pattern) for pattern in lora.targets or ("*",))]


def _letters(name: str) -> str:
    """The axis letters that a parameter's name ends in."""
    return name.rpartition("_")[2]


def _factor_names(weight: str) -> tuple[str, str]:
    """Names of the two factors of a weight: `wq_a_DI` and `wq_b_IHK` of `wq_DHK`."""
    stem, _, letters = weight.rpartition("_")
    inputs = PROJECTIONS[letters]
    return f"{stem}_a_{inputs}I", f"{stem}_b_I{letters.removeprefix(inputs)}"


def _factors(block: Params, part: Adapter) -> Iterator[tuple[str, jax.Array, jax.Array]]:
    """(weight's name, first factor, second factor) of each weight of a block with an addition."""
    for weight in block:
        if _letters(weight) in PROJECTIONS:
            a, b = _factor_names(weight)
            if a in part:
                yield weight, part[a], part[b]


def _scaled(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with the scale in its second factors."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: scale * leaf if _letters(param_name(path)).startswith("I") else leaf,
        adapter)


def _add(params: Params, adapter: Adapter, scale: float) -> Params:
    def add(block: Params, part: Adapter) -> Params:
        changed = {}
        for name, a, b in _factors(block, part):
            weight, letters = block[name], _letters(name)
            if hasattr(weight, "project"):
                raise UserError(f"blocks/{name}", "is no plain array, and nothing is added to it",
                                "merge the adapter first and quantise the result")
            inputs = PROJECTIONS[letters]
            addition = jnp.einsum(f"N{inputs}I,NI{letters.removeprefix(inputs)}->N{letters}", a, b,
                                  precision="highest")
            changed[name] = (weight + scale * addition).astype(weight.dtype)
        return {**block, **changed}

    return _map_blocks(add, params, adapter)


def _map_blocks(function: Callable[[Any, Any], Any], params: Params, adapter: Adapter) -> Params:
    """The parameters with `function(blocks, their part of the adapter)` for all that it has."""
    return {**params, **{
        name: (function if name == "blocks" else partial(_map_blocks, function))(params[name], part)
        for name, part in adapter.items()}}
