"""Coordinate check: how far activations move in a few steps, by width and by depth.

    python -m scripts.coordinate_check
    python -m scripts.coordinate_check --preset=llama-3.2-1b --figure=runs/coordinates.png

Small models of one architecture are trained on the same random tokens, as they are (standard) and
scaled from the first of them by muP and CompleteP. With the right scaling an activation changes as
much at any size: the slope of log change over log size is near 0 (arXiv 2203.03466, appendix D.1).

Prints tables of mean absolute activations and of their change since the first step, and as its last
line the slopes in JSON. `--figure` draws them; it needs matplotlib, pip install -e '.[report]'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from core.progress import log
from data.batch import Batch
from model.attention.kind import Extras, kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import Block, apply_final_norm, layer_inputs
from model.families.registry import Params, init
from model.heads.language import logits
from model.layers.embed import embed
from model.mup import scale_width_and_depth
from model.presets import find_preset
from train.optimizer.optimizers import make_optimizer, scale_optimizer

HEAD_SIZE, VOCABULARY, ROWS, ROW_LENGTH = 16, 256, 8, 32
PLACES = ("embedding", "half of the layers", "all layers", "logits")    # the stream after each
OWN = ModelConfig(V=VOCABULARY, D=64, N=2, H=4, G=4, K=HEAD_SIZE, F=256)

# By place: mean absolute activation and mean absolute change since the start, each [steps + 1].
Coordinates = Mapping[str, tuple[np.ndarray, np.ndarray]]


def resize(config: ModelConfig, width: int, depth: int) -> ModelConfig:
    """The parts of an architecture at a small size, with heads of `HEAD_SIZE`.

    Raises:
        UserError: the width has no whole number of heads, or this is no decoder.
    """
    if config.family != "decoder":
        raise UserError(f"model.family={config.family!r}", "is not checked here",
                        "name a decoder with --preset")
    if width % HEAD_SIZE:
        raise UserError(f"--widths={width}", f"is no multiple of the head size {HEAD_SIZE}",
                        f"give multiples of {HEAD_SIZE}")
    heads = width // HEAD_SIZE
    is_root = math.isclose(config.embed_scale, config.D**0.5)
    return dataclasses.replace(
        config, V=VOCABULARY, D=width, N=depth, H=heads, K=HEAD_SIZE, F=4 * width,
        G=max(1, heads * config.G // config.H) if heads % (config.H // config.G) == 0 else heads,
        E=min(config.E, 4), experts_per_token=min(config.experts_per_token, 2),
        attention_scale=0.0, embed_scale=width**0.5 if is_root else config.embed_scale)


def make_section(learning_rate: float) -> ConfigDict:
    """The optimizer of the smallest model: AdamW at a constant rate."""
    return ConfigDict(dict(
        name="adamw", learning_rate=learning_rate, weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8,
        mu_dtype="float32", clip_norm=0.0, lr_multipliers={}, decay_multipliers={},
        schedule="constant", warmup_steps=0, final_frac=0.0))


def scale(config: ModelConfig, section: ConfigDict,
          base: ModelConfig) -> tuple[ModelConfig, ConfigDict]:
    """Architecture and optimizer, scaled from a base by muP and CompleteP."""
    mup = {"base_width": base.D, "base_depth": base.N}
    return scale_width_and_depth(config, **mup).config, scale_optimizer(section, config, mup)


def measure(config: ModelConfig, section: ConfigDict, num_steps: int, seed: int = 0) -> Coordinates:
    """Trains for a few steps on one batch of random tokens, and measures before each and after."""
    optimizer, batch = make_optimizer(section, num_steps), _random_batch(seed)

    def loss(params):
        found = activations(params, batch, config)
        logp_BLV = jax.nn.log_softmax(found["logits"])
        return -jnp.mean(jnp.take_along_axis(logp_BLV, batch.targets_BL[..., None], -1)), found

    @jax.jit
    def run(key):
        def step(state, _):
            params, moments = state
            gradient, found = jax.grad(loss, has_aux=True)(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), found

        params = init(config, key)
        _, by_step = jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps + 1)
        return jax.tree.map(lambda found: (_mean_size(found), _mean_size(found - found[:1])),
                            by_step)

    return jax.tree.map(np.asarray, run(jax.random.key(seed)))


def _mean_size(by_step: jax.Array) -> jax.Array:
    """Mean absolute value at each step."""
    return jnp.mean(jnp.abs(by_step), axis=tuple(range(1, by_step.ndim)))


def activations(params: Params, batch: Batch, config: ModelConfig) -> dict[str, jax.Array]:
    """The stream at each place, and the logits."""
    execution = Execution(attention="xla")
    positions_BL, segments_BL = batch.positions_BL, batch.segment_ids_BL
    block = Block(config, execution, kind_of(config))
    previous_BL = jnp.where(positions_BL > 0, jnp.roll(batch.tokens_BL, 1, axis=1), -1)
    embedded_BLD = embed(params, batch.tokens_BL, previous_BL, positions_BL, config=config,
                         execution=execution)

    def layer(x_BLD, own):
        x_BLD, _, _ = block.apply({"params": own["params"]}, x_BLD, positions_BL, segments_BL,
                                  extras=Extras(own.get("is_global_N")))
        return x_BLD, x_BLD

    last_BLD, x_NBLD = jax.lax.scan(layer, embedded_BLD, layer_inputs(params, config))
    logits_BLV = logits(params, apply_final_norm(params, last_BLD, config), config=config,
                        execution=execution)
    middle = (config.N - 1) // 2
    return dict(zip(PLACES, (embedded_BLD, x_NBLD[middle], last_BLD, logits_BLV)))


def slopes(sizes: Sequence[int], found: Sequence[Coordinates]) -> dict[str, float]:
    """By place: slope of the log of the change after the last step over the log of the size."""
    return {place: float(np.polyfit(np.log(sizes), np.log(
        [coordinates[place][1][-1] for coordinates in found]), 1)[0]) for place in PLACES}


def check(parts: ModelConfig, widths: Sequence[int], depths: Sequence[int], *, num_steps: int,
          learning_rate: float) -> dict[str, dict[str, list[Coordinates]]]:
    """Coordinates by `width` and `depth`, `standard` and `mup`; sizes start with the base's."""
    section = make_section(learning_rate)
    base = resize(parts, widths[0], depths[0])
    at_base = measure(base, section, num_steps)     # the first of each list: scaled by nothing
    models = {"width": [resize(parts, width, base.N) for width in widths[1:]],
              "depth": [resize(parts, base.D, depth) for depth in depths[1:]]}
    return {axis: {"standard": [at_base, *(measure(config, section, num_steps)
                                           for config in configs)],
                   "mup": [at_base, *(measure(*scale(config, section, base), num_steps)
                                      for config in configs)]} for axis, configs in models.items()}


def _random_batch(seed: int) -> Batch:
    """Rows of random tokens, each of one document; the same for all models."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (ROWS, ROW_LENGTH + 1), dtype=np.int32)
    positions = np.broadcast_to(np.arange(ROW_LENGTH, dtype=np.int32), (ROWS, ROW_LENGTH))
    ones = np.ones((ROWS, ROW_LENGTH), np.int32)
    return Batch(*map(jnp.asarray, (tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones,
                                    positions)))


def _table(axis: str, scaling: str, sizes: Sequence[int], found: Sequence[Coordinates]) -> str:
    """Mean absolute activations, and their change in brackets, by size and step."""
    lines = [f"{axis}, {scaling}", "  ".join(f"{title:>18}" for title in (axis, "step", *PLACES))]
    for size, coordinates in zip(sizes, found):
        for step in range(len(coordinates[PLACES[0]][0])):
            cells = (f"{coordinates[place][0][step]:.4f} ({coordinates[place][1][step]:.4f})"
                     for place in PLACES)
            lines.append("  ".join(f"{cell:>18}" for cell in (size, step, *cells)))
    return "\n".join(lines)


def draw(path: Path, sizes: Mapping[str, Sequence[int]],
         found: Mapping[str, Mapping[str, Sequence[Coordinates]]]) -> None:
    """Draws the change after the last step over the size, a line for each place.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"--figure={str(path)!r}", "needs matplotlib",
                        "run pip install -e '.[report]'") from None
    figure = Figure(figsize=(9, 7), layout="constrained")
    rows = figure.subplots(len(found), 2, sharey="row", squeeze=False)
    for (axis, scalings), charts in zip(found.items(), rows):
        for (scaling, coordinates), chart in zip(scalings.items(), charts):
            for place in PLACES:
                chart.loglog(sizes[axis], [each[place][1][-1] for each in coordinates],
                             marker="o", label=place)
            chart.set_title(f"{axis}, {scaling}")
            chart.set_xlabel(axis)
            chart.set_xticks(sizes[axis], [str(size) for size in sizes[axis]], minor=False)
            chart.minorticks_off()
        charts[0].set_ylabel("mean absolute change")
    rows[0][0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> dict[str, Any]:
    """Reads the flags, trains the models and prints what they show."""
    values = flags.FLAGS
    parts = find_preset(values.preset) if values.preset else OWN
    sizes = {"width": read_sizes("widths"), "depth": read_sizes("depths")}
    found = check(parts, sizes["width"], sizes["depth"], num_steps=values.steps,
                  learning_rate=values.learning_rate)
    for axis, scalings in found.items():
        for scaling, coordinates in scalings.items():
            log(_table(axis, scaling, sizes[axis], coordinates))
    result: dict[str, Any] = {"slopes": {
        axis: {scaling: {place: round(slope, 3) for place, slope in
                         slopes(sizes[axis], coordinates).items()}
               for scaling, coordinates in scalings.items()} for axis, scalings in found.items()}}
    if values.figure:
        draw(Path(values.figure), sizes, found)
        result["figure"] = values.figure
    return result


def read_sizes(name: str) -> list[int]:
    """A flag's sizes, in order."""
    words = getattr(flags.FLAGS, name)
    if len(words) < 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--{name}={','.join(words)}", "is no list of two or more sizes",
                        f"write --{name}=64,128,256")
    return sorted(int(word) for word in words)


if __name__ == "__main__":
    flags.DEFINE_string("preset", "", "Parts of a preset; '' are those of our own decoder.")
    flags.DEFINE_list("widths", ["64", "128", "256", "512"], "Widths; the first is the base.")
    flags.DEFINE_list("depths", ["2", "4", "8", "16"], "Depths; the first is the base.")
    flags.DEFINE_integer("steps", 6, "Updates.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 3e-3, "Of the base.", lower_bound=0.0)
    flags.DEFINE_string("figure", "", "File to draw to, PNG or PDF; '' draws nothing.")
    entry.run(main)
