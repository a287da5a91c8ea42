"""Learning-rate schedules: a multiplier of the learning rate over steps."""

from __future__ import annotations

import optax
from ml_collections import ConfigDict

from core.errors import UserError

SCHEDULES = ("constant", "linear", "cosine", "wsd")


def make_schedule(section: ConfigDict, num_steps: int) -> optax.Schedule:
    """A multiplier of the learning rate: linear warmup to 1, then the named schedule.

    Step s of a warmup, counted from 0, has (s + 1) / `warmup_steps`: every batch is learned from.

    `constant`: stays at 1.
    `linear`: falls linearly to `final_frac` at the end of the run.
    `cosine`: falls along half a cosine to `final_frac` (arXiv 1608.03983, equation 5).
    `wsd`: stays at 1, then falls linearly over the last `decay_frac` of the run to `final_frac`
    (warmup, stable, decay: arXiv 2405.18392).

    Args:
        section: the optimizer's section: `schedule`, `warmup_steps`, `final_frac` and, for wsd,
            `decay_frac`.
        num_steps: steps of the whole run, warmup included.

    Raises:
        UserError: the schedule is unknown, or warmup and decay do not fit into the run.
    """
    warmup, final = section.warmup_steps, section.final_frac
    if section.schedule not in SCHEDULES:
        raise UserError(f"optimizer.schedule={section.schedule!r}",
                        f"is none of {', '.join(SCHEDULES)}", "set the optimizer's schedule")
    if section.schedule == "wsd":
        rest = _stable_then_decay(section, num_steps)
    elif warmup >= num_steps:
        raise UserError(f"optimizer.warmup_steps={warmup}", f"must be below num_steps={num_steps}",
                        "set fewer warmup steps")
    elif section.schedule == "cosine":
        rest = optax.cosine_decay_schedule(1.0, num_steps - warmup, alpha=final)
    elif section.schedule == "linear":
        rest = optax.linear_schedule(1.0, final, num_steps - warmup)
    else:
        rest = optax.constant_schedule(1.0)
    return optax.join_schedules([lambda step: (step + 1) / max(warmup, 1), rest], [warmup])


def _stable_then_decay(section: ConfigDict, num_steps: int) -> optax.Schedule:
    """The schedule after the warmup of `wsd`; its step 0 is the first after the warmup."""
    warmup, decay = section.warmup_steps, round(section.decay_frac * num_steps)
    if warmup + decay > num_steps:
        raise UserError(f"optimizer.warmup_steps={warmup}",
                        f"and {decay} steps of decay exceed num_steps={num_steps}",
                        "set fewer warmup steps or a smaller decay_frac")
    parts = [optax.constant_schedule(1.0),
             optax.linear_schedule(1.0, section.final_frac, max(decay, 1))]
    return optax.join_schedules(parts, [num_steps - decay - warmup])
