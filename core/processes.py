"""Which of how many processes this is, as the launcher's environment variables tell it.

Whoever starts the processes by hand sets `HEARTWOOD_PROCESS_ID`, `HEARTWOOD_NUM_PROCESSES` and
`HEARTWOOD_COORDINATOR`; each wins over what a scheduler says.

    scheduler     which       of how many                       coordinator
    SLURM (srun)  PROCID      STEP_NUM_TASKS                    first host of STEP_NODELIST
    indexed Job   JOB_COMPLETION_INDEX, with HEARTWOOD_NUM_PROCESSES and HEARTWOOD_COORDINATOR
    TPU pod       WORKER_ID   length of WORKER_HOSTNAMES        first of WORKER_HOSTNAMES
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping

from core.errors import UserError

COORDINATOR_PORT = 12_345
# A SLURM job's port follows from its number, so that two jobs may share a host. Below the ports
# that Linux hands out by itself (32768 and up).
FIRST_SLURM_PORT, NUM_SLURM_PORTS = 12_400, 20_000


@dataclasses.dataclass(frozen=True)
class Processes:
    """One process among those that work on the same thing.

    Attributes:
        index: which one this is; 0 owns files, lines and the result.
        count: how many there are.
        coordinator: host:port at which process 0 waits for the others; empty for one process.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""


class ProcessLost(Exception):
    """Another process is gone or never came: nobody's mistake, and worth another try."""


def find_processes(environment: Mapping[str, str] | None = None) -> Processes:
    """Reads the environment; one process when it names no others.

    Raises:
        UserError: a variable is no number, out of range, or its partner is missing.
    """
    found = os.environ if environment is None else environment
    index_name, count_name, coordinator = _names(found)
    if not count_name:
        return Processes()
    count = len(found[count_name].split(",")) if count_name == "TPU_WORKER_HOSTNAMES" else \
        _number(found, count_name)
    if count < 1:
        raise UserError(f"{count_name}={found[count_name]}", "is below 1", "start at least one")
    if count == 1:
        return Processes()
    if not index_name:
        raise UserError(f"{count_name}={found[count_name]}", "does not say which process this is",
                        "set HEARTWOOD_PROCESS_ID in each")
    index = _number(found, index_name)
    if not 0 <= index < count:
        raise UserError(f"{index_name}={index}", f"is not among 0 to {count - 1}",
                        f"set it below {count_name}")
    coordinator = found.get("HEARTWOOD_COORDINATOR") or coordinator
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"HEARTWOOD_COORDINATOR={coordinator!r}", "is not host:port",
                        "set it to the host of process 0 and a free port of it")
    return Processes(index, count, coordinator)


def _names(found: Mapping[str, str]) -> tuple[str, str, str]:
    """Names of the variables that hold the index and the count, and the scheduler's coordinator."""
    index, count, coordinator = _scheduler(found)
    if "HEARTWOOD_PROCESS_ID" in found:
        index = "HEARTWOOD_PROCESS_ID"
    if "HEARTWOOD_NUM_PROCESSES" in found:
        count = "HEARTWOOD_NUM_PROCESSES"
    if index == "HEARTWOOD_PROCESS_ID" and not count:
        raise UserError(f"{index}={found[index]}", "is set, but not how many processes there are",
                        "set HEARTWOOD_NUM_PROCESSES too")
    return index, count, coordinator


def _scheduler(found: Mapping[str, str]) -> tuple[str, str, str]:
    if "SLURM_STEP_NUM_TASKS" in found:     # srun sets it; a batch script's own shell has none
        return "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", _slurm_coordinator(found)
    if "JOB_COMPLETION_INDEX" in found and "HEARTWOOD_NUM_PROCESSES" in found:
        return "JOB_COMPLETION_INDEX", "", ""
    if found.get("TPU_WORKER_HOSTNAMES"):
        first = found["TPU_WORKER_HOSTNAMES"].split(",")[0]
        return "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", f"{first}:{COORDINATOR_PORT}"
    return "", "", ""


def _slurm_coordinator(found: Mapping[str, str]) -> str:
    """Node lists read ``node7``, ``a1,b2`` or ``rack[03-06,9]-x``; the first host, and a port."""
    nodes = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)",
                     found.get("SLURM_STEP_NODELIST", ""))
    host = "".join(part or "" for part in nodes.groups())
    job = _number(found, "SLURM_JOB_ID") + _number(found, "SLURM_STEP_ID", 0)
    return f"{host}:{FIRST_SLURM_PORT + job % NUM_SLURM_PORTS}" if host else ""


def _number(found: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = found.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r}", "is not a whole number",
                        "set it as the launcher should have done")
    return int(text)
