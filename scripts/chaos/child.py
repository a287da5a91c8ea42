"""Pretraining with a fault injected into one batch, for `scripts.chaos.matrix`.

    python -m scripts.chaos.child --fault=nan --at=9 ...    and the flags of train.pretrain
"""

from __future__ import annotations

import errno
import os

import numpy as np
from absl import flags

from core.entry import run_stage
from data.batch import Batch
from train import pretrain
from train.watch import profile

FAULT = flags.DEFINE_enum("fault", None, ["nan", "reader"], "Fault to inject.", required=True)
AT = flags.DEFINE_integer("at", 9, "In which batch, counted from 0.")


def inject(index: int, batch: Batch) -> Batch:
    """Injects the fault: a batch whose loss is NaN, or an error of the reading thread."""
    if index != AT.value:
        return batch
    if FAULT.value == "reader":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "shard")
    return batch.replace(loss_weights_BL=np.full_like(batch.loss_weights_BL, np.nan))


def make_batches(*arguments):
    """The batches of pretraining, one of them with the fault."""
    return intact_batches(*arguments).map_with_index(inject)


intact_batches = pretrain.make_batches


if __name__ == "__main__":
    pretrain.make_batches = make_batches
    profile.define_flag()
    run_stage(pretrain.STAGE)
