"""Optimizers and schedules, by parameter name.

Muon takes the matrices of the blocks; embedding, head and norms go to AdamW. Muon's own default
("every 2-D leaf") would do the opposite here, because blocks are stacked to rank 3 and 4: each
parameter therefore says which of its axes a matrix is made of.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers

from core.errors import UserError
from model.sharding import letters_of

# Letters that a block's weight sums over; its other letters are the output.
REDUCED_LETTERS = {"wq_DHK": "D", "wk_DGK": "D", "wv_DGK": "D", "wo_HKD": "HK",
                   "w_gate_DF": "D", "w_up_DF": "D", "w_down_FD": "F"}


def muon_dimensions(params: Any) -> Any:
    """For each parameter its `MuonDimensionNumbers`, or None where AdamW is to be used."""
    def dimensions(path, leaf):
        reduced = REDUCED_LETTERS.get(str(getattr(path[-1], "key", path[-1])))
        if reduced is None:
            return None
        letters = letters_of(path, leaf.ndim)
        return MuonDimensionNumbers(
            reduction_axis=tuple(i for i, c in enumerate(letters) if c in reduced),
            output_axis=tuple(i for i, c in enumerate(letters) if c not in reduced + "N"))

    return jax.tree_util.tree_map_with_path(dimensions, params)


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: the blocks' matrices, not norms or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(getattr(path[-1], "key", path[-1])) in REDUCED_LETTERS, params)


def make_schedule(section: ConfigDict, num_steps: int) -> optax.Schedule:
    """A multiplier of the learning rate over steps, from 0 to 1.

    `wsd`: linear warmup, constant, linear decay over the last `decay_frac` (arXiv 2405.18392).
    `cosine`: linear warmup, then half a cosine down to 0 (arXiv 1608.03983).

    Raises:
        UserError: the schedule is unknown, or warmup and decay do not fit into the run.
    """
    warmup = section.warmup_steps
    if section.schedule == "cosine":
        if warmup >= num_steps:
            raise UserError(f"warmup_steps={warmup}", f"must be below num_steps={num_steps}",
                            "set fewer warmup steps")
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, num_steps)
    if section.schedule == "wsd":
        decay = round(section.decay_frac * num_steps)
        if warmup + decay > num_steps:
            raise UserError(f"warmup_steps={warmup}",
                            f"and {decay} steps of decay exceed num_steps={num_steps}",
                            "set fewer warmup steps or a smaller decay_frac")
        parts = [optax.linear_schedule(0.0, 1.0, max(warmup, 1)), optax.constant_schedule(1.0),
                 optax.linear_schedule(1.0, 0.0, max(decay, 1))]
        return optax.join_schedules(parts, [warmup, num_steps - decay])
    raise UserError(f"schedule={section.schedule!r}", "is none of wsd, cosine",
                    "set the optimizer's schedule")


def make_optimizer(section: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then Muon (arXiv 2502.16982) or AdamW (arXiv 1711.05101).

    Args:
        section: `name` (muon | adamw), `learning_rate`, `adam_learning_rate` (embedding, head and
            norms under Muon), `weight_decay`, `b1`, `b2`, `clip_norm`, `schedule`,
            `warmup_steps`, `decay_frac`.

    Raises:
        UserError: the optimizer or schedule is unknown.
    """
    multiplier = make_schedule(section, num_steps)

    def scaled(learning_rate):
        return lambda step: learning_rate * multiplier(step)

    if section.name == "adamw":
        update = optax.adamw(scaled(section.learning_rate), section.b1, section.b2,
                             weight_decay=section.weight_decay, mask=decayed)
    elif section.name == "muon":
        update = optax.contrib.muon(
            scaled(section.learning_rate), weight_decay=section.weight_decay,
            adam_b1=section.b1, adam_b2=section.b2,
            adam_learning_rate=scaled(section.adam_learning_rate),
            muon_weight_dimension_numbers=muon_dimensions,
            consistent_rms=0.2)  # updates as large as AdamW's, so that rates carry over
    else:
        raise UserError(f"optimizer.name={section.name!r}", "is none of muon, adamw",
                        "set the optimizer's name")
    return optax.chain(optax.clip_by_global_norm(section.clip_norm), update)
