"""Pretraining with a fault planted among its batches, for `scripts.chaos.matrix`.

    python -m scripts.chaos.child --fault=nan --at=9 ...    and the flags of train.pretrain
"""

from __future__ import annotations

import errno
import os

import numpy as np
from absl import flags

from core import entry
from data.batch import Batch
from train import pretrain
from train.watch import profile

FAULT = flags.DEFINE_enum("fault", None, ["nan", "reader"], "What to plant.", required=True)
AT = flags.DEFINE_integer("at", 9, "In which batch, counted from 0.")


def spoil(index: int, batch: Batch) -> Batch:
    """A batch whose loss is no number, or a reading thread that dies."""
    if index != AT.value:
        return batch
    if FAULT.value == "reader":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "shard")
    return batch.replace(loss_weights_BL=np.full_like(batch.loss_weights_BL, np.nan))


def make_rows(section, tokens):
    """The rows of pretraining, one batch spoilt."""
    return sound_rows(section, tokens).map_with_index(spoil)


sound_rows = pretrain.make_rows


if __name__ == "__main__":
    pretrain.make_rows = make_rows
    profile.define_flag()
    entry.run_stage("pretrain", pretrain.build, parents=("tokens", "corpus"), sections=("model",))
