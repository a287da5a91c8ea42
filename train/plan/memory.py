"""Memory of a device by part, and a mesh that fits, without compiling anything.

Parameters, optimizer state and gradient are those of the trainer's own shapes and sharding rules.
What the compiler decides is estimated: activations, gathered weights, logits; for a scanned stack
(`scan_unroll` 1), and without what Muon's iteration holds. `train.fit` measures them where the
devices, or enough memory to compile for them, are at hand.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import abstract_params
from model.heads.language import LOGITS_BYTES
from model.layers.mlps import MLPS, gated
from model.parallel.sharding import MESH_AXES, check_mesh, num_batch_shards, param_shardings
from train.fit import device_bytes
from train.optimizer.optimizers import make_optimizer
from train.state import TrainState
from train.step import make_state

USABLE_FRAC = 0.9           # of a device's memory; the rest is the runtime's
STAGES, TENSORS = (1, 2, 4, 8, 16), (1, 2, 4, 8)
MIXED = Execution(compute_dtype="bfloat16", remat="full")
ADAMW = ConfigDict(dict(
    name="adamw", learning_rate=3e-4, lr_multipliers={}, decay_multipliers={}, weight_decay=0.1,
    b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32", clip_norm=1.0, schedule="cosine",
    warmup_steps=100, final_frac=0.1))


@dataclasses.dataclass(frozen=True)
class Training:
    """What decides the memory of a step.

    Attributes:
        config: the architecture.
        row_length: positions of a row.
        batch_rows: rows of a step, over all devices.
        execution: `remat` and `compute_dtype` are read.
        optimizer: the section of its name and fields.
        keep_ema: whether a running average of the parameters is kept.
    """

    config: ModelConfig
    row_length: int
    batch_rows: int
    execution: Execution = MIXED
    optimizer: ConfigDict = dataclasses.field(default_factory=lambda: ADAMW)
    keep_ema: bool = False

    def state(self, mesh: AbstractMesh) -> TrainState:
        """Shapes of the train state, with shardings."""
        return make_state(abstract_params(self.config), make_optimizer(self.optimizer, 1000),
                          jax.random.key(0), mesh, keep_ema=self.keep_ema)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A mesh and the bytes of one of its devices.

    Attributes:
        mesh: sizes of the axes that are not 1.
        rows: of a device's forward pass.
        num_microbatches: pieces that a step's batch is cut into.
        batch_rows: of a step, rounded to what the mesh divides.
        params, opt_state, ema: exact.
        gradient: exact, and twice where microbatches are summed.
        activations, gathered, logits: estimated.
    """

    mesh: dict[str, int]
    rows: int
    num_microbatches: int
    batch_rows: int
    params: int
    opt_state: int
    ema: int
    gradient: int
    activations: int
    gathered: int
    logits: int

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return {name: getattr(self, name) for name in
                ("params", "opt_state", "ema", "gradient", "activations", "gathered", "logits")}

    @property
    def peak(self) -> int:
        """All parts together."""
        return sum(self.parts().values())


def make_abstract_mesh(**sizes: int) -> AbstractMesh:
    """A mesh without devices; axes that are not named are 1."""
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES,
                        axis_types=(AxisType.Auto,) * len(MESH_AXES))


def find_mesh(training: Training, num_chips: int, chips_per_host: int,
              memory_bytes: float) -> Fit | None:
    """The simplest mesh of all chips that holds the training, one row a device at least.

    Stages and tensor parallelism are taken only when sharding by `fsdp` does not do, within a host
    for the latter; `fsdp` is the smallest that fits, a host if possible, and copies of it stand
    along `data`. Experts are cut by `fsdp` alone, and rows are whole.

    Returns:
        None if no such mesh fits, or the batch has too few rows for so many chips.
    """
    for stage, tensor in sorted(itertools.product(STAGES, TENSORS),
                                key=lambda pair: (pair[0] * pair[1], pair[0])):
        shards, rest = divmod(num_chips, stage * tensor)
        if rest or tensor > chips_per_host or shards * stage > 1.25 * training.batch_rows:
            continue
        host = max(1, chips_per_host // tensor)
        for fsdp in sorted((size for size in range(1, shards + 1) if shards % size == 0),
                           key=lambda size: (size < host, abs(size - host))):
            mesh = make_abstract_mesh(stage=stage, tensor=tensor, fsdp=fsdp, data=shards // fsdp)
            fit = _fit(training, mesh)
            if fit and fit.peak <= USABLE_FRAC * memory_bytes:
                return _fill(training, mesh, fit, USABLE_FRAC * memory_bytes)
    return None


def _fit(training: Training, mesh: AbstractMesh, rows: int = 1) -> Fit | None:
    """The bytes of a device with `rows` a piece; None where mesh and model do not divide."""
    pieces = mesh.shape["stage"]
    step_rows = rows * num_batch_shards(mesh) * pieces
    count = max(1, round(training.batch_rows / step_rows))
    try:
        check_mesh(training.config, training.execution, mesh, batch_size=step_rows,
                   row_length=training.row_length)
        param_shardings(abstract_params(training.config), mesh)
    except UserError:
        return None
    state = training.state(mesh)
    params = device_bytes(state.params)
    tokens = rows * pieces * training.row_length
    return Fit(
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1}, rows=rows * pieces,
        num_microbatches=count, batch_rows=count * step_rows, params=params,
        opt_state=device_bytes(state.opt_state), ema=device_bytes(state.ema),
        gradient=params * (2 if count > 1 else 1),
        activations=round(activation_bytes(training, mesh, tokens)),
        gathered=round(gathered_bytes(training, mesh)),
        logits=round(logits_bytes(training.config, mesh, tokens)))


def _fill(training: Training, mesh: AbstractMesh, fit: Fit, limit_bytes: float) -> Fit:
    """The same mesh with as many rows a device, a power of two, as memory and batch allow."""
    rows = 2 * fit.rows // mesh.shape["stage"]
    while rows * num_batch_shards(mesh) * mesh.shape["stage"] <= training.batch_rows:
        larger = _fit(training, mesh, rows)
        if larger is None or larger.peak > limit_bytes:
            break
        fit, rows = larger, 2 * rows
    return fit


def layer_elements(config: ModelConfig) -> dict[str, int]:
    """Numbers of a token in one layer that the backward pass may read, by the tags of
    `model.parallel.remat`, and `norms` and `product` (of gate and up projection), which have none;
    an LSTM's four gates are its `hidden`."""
    c = config
    if c.family == "lstm":
        return {"qkv": 0, "attention": 0, "hidden": 4 * c.F, "residual": c.D, "norms": c.D,
                "product": c.F}
    hidden = c.F * (c.experts_per_token + c.shared_experts if c.E else 1)
    return {"qkv": c.H * c.K + 2 * c.G * c.K, "attention": c.H * c.K,
            "hidden": (2 if MLPS[c.mlp].func is gated else 1) * hidden, "residual": c.D,
            "norms": 2 * c.D, "product": hidden}


def activation_bytes(training: Training, mesh: AbstractMesh, tokens: float) -> float:
    """Results that are kept for the backward pass, and those of the layer it is in, twice: each
    has a gradient.

    Args:
        tokens: of a device's forward pass, before positions are cut along `context`.

    Source: the count of arXiv 2205.05198, section 4, with attention that keeps no scores.
    """
    c, policy = training.config, training.execution.remat
    elements = layer_elements(c)
    kind, _, tags = policy.partition(":")
    kept = {"none": set(elements), "dots": {"qkv", "hidden", "residual"}, "full": set(),
            "names": set(tags.split(",")), "offload": set()}[kind]
    layers = (c.N + c.encoder_layers) / mesh.shape["stage"]
    total = c.D + sum(elements[name] for name in kept)
    size = 2 if training.execution.compute_dtype == "bfloat16" else 4
    cut = mesh.shape["tensor"] * mesh.shape["context"]
    return size * tokens / cut * (layers * total + 2 * sum(elements.values()))


def gathered_bytes(training: Training, mesh: AbstractMesh) -> float:
    """Whole weights in the compute dtype: of two layers, the one in use and the next, and of the
    embedding and head."""
    c = training.config
    total = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(c)))
    tables = c.V * c.D * (1 if c.tied else 2)
    layer = (total - tables) / (c.N + c.encoder_layers)
    size = 2 if training.execution.compute_dtype == "bfloat16" else 4
    return size * (2 * layer + tables) / mesh.shape["tensor"]


def logits_bytes(config: ModelConfig, mesh: AbstractMesh, tokens: float) -> float:
    """Float32 logits of a chunk of the head and their gradient."""
    whole = 4 * tokens * math.ceil(config.V / mesh.shape["tensor"])
    return 2 * min(LOGITS_BYTES, whole)


def checkpoint_bytes(training: Training) -> dict[str, int]:
    """Bytes on disk.

    Returns:
        `state`: a checkpoint to resume from: parameters, optimizer state, running average.
        `weights_float32`, `weights_bfloat16`: the parameters alone.
    """
    state = training.state(make_abstract_mesh())
    params = device_bytes(state.params)
    return {"state": params + device_bytes((state.opt_state, state.ema)),
            "weights_float32": params, "weights_bfloat16": params // 2}
