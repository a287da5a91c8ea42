"""Joins several processes into one JAX computation."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

from core.processes import ProcessLost, find_processes
from core.progress import log

START_SECS = 300


def initialize() -> None:
    """Connects the processes that the environment names; no-op for one process or if connected.

    Must be called before JAX's devices are used. Afterwards `jax.devices()` are those of all
    processes, and if one process ends, missing heartbeats end the others, for the launcher to
    restart.

    Raises:
        ProcessLost: the others did not connect within `START_SECS`.
        UserError: the environment is inconsistent; see `core.processes`.
    """
    processes = find_processes()
    if processes.count == 1 or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")     # for tests on CPUs
    log(f"waiting for {processes.count} processes at {processes.coordinator}")
    try:
        jax.distributed.initialize(processes.coordinator, processes.count, processes.index,
                                   cluster_detection_method="deactivate",
                                   initialization_timeout=START_SECS)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ProcessLost(f"{processes.coordinator}: {processes.count} processes did not "
                          f"connect ({reason}): see the others' logs") from None


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must call this at the same step.

    Signals reach processes at different steps, so acting on one needs agreement.
    """
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
