"""Several processes, one computation: joins this process to the others before jax is used."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from core.processes import ProcessLost, find_processes
from core.progress import log

START_SECS = 300


def initialize() -> None:
    """Joins the processes that the environment names; does nothing for one process, or twice.

    To be called before anything that asks jax for its devices. From then on `jax.devices()` are
    those of all processes, and a process that dies takes the others with it: their heartbeats
    stop, and the launcher starts them again.

    Raises:
        ProcessLost: the others did not come within `START_SECS`.
        UserError: the environment does not add up; see `core.processes`.
    """
    processes = find_processes()
    if processes.count == 1 or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")     # CPUs: tests, and fallback
    log(f"waiting for {processes.count} processes at {processes.coordinator}")
    try:
        jax.distributed.initialize(processes.coordinator, processes.count, processes.index,
                                   cluster_detection_method="deactivate",
                                   initialization_timeout=START_SECS)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ProcessLost(f"{processes.coordinator}: {processes.count} processes did not come "
                          f"together ({reason}): see what the others say") from None


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process; all must ask at the same step.

    A signal reaches processes at different steps: what follows from it must be agreed on.
    """
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
