"""Index and number of processes, read from the launcher's environment variables.

Processes started without a scheduler need `HEARTWOOD_PROCESS_ID`, `HEARTWOOD_NUM_PROCESSES` and
`HEARTWOOD_COORDINATOR`; each takes precedence over the variables of a scheduler.

    scheduler     index       count                             coordinator
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
# The port is derived from the number of a SLURM job, so that two jobs can share a host. It is below
# the ephemeral ports of Linux (from 32768).
FIRST_SLURM_PORT, NUM_SLURM_PORTS = 12_400, 20_000


@dataclasses.dataclass(frozen=True)
class Processes:
    """One of several processes of a run.

    Attributes:
        index: of this process; process 0 writes files, logs and the result.
        count: number of processes.
        coordinator: host:port of process 0, for the others to connect; empty for one process.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""


class ProcessLost(Exception):
    """Another process ended or did not start; the run can be restarted."""


def find_processes(environment: Mapping[str, str] | None = None) -> Processes:
    """Reads the environment; without any of the variables there is one process.

    Raises:
        UserError: a variable is not a number or out of range, or another one is missing.
    """
    variables = os.environ if environment is None else environment
    index_name, count_name, coordinator = _names(variables)
    if not count_name:
        return Processes()
    count = len(variables[count_name].split(",")) if count_name == "TPU_WORKER_HOSTNAMES" else \
        _number(variables, count_name)
    if count < 1:
        raise UserError(f"{count_name}={variables[count_name]}", "is below 1", "start at least one")
    if count == 1:
        return Processes()
    if not index_name:
        raise UserError(f"{count_name}={variables[count_name]}",
                        "does not say which process this is", "set HEARTWOOD_PROCESS_ID in each")
    index = _number(variables, index_name)
    if not 0 <= index < count:
        raise UserError(f"{index_name}={index}", f"is not among 0 to {count - 1}",
                        f"set it below {count_name}")
    coordinator = variables.get("HEARTWOOD_COORDINATOR") or coordinator
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"HEARTWOOD_COORDINATOR={coordinator!r}", "is not host:port",
                        "set it to the host of process 0 and a free port of it")
    return Processes(index, count, coordinator)


def _names(variables: Mapping[str, str]) -> tuple[str, str, str]:
    """Names of the variables of the index and the count, and the scheduler's coordinator."""
    index, count, coordinator = _scheduler(variables)
    if "HEARTWOOD_PROCESS_ID" in variables:
        index = "HEARTWOOD_PROCESS_ID"
    if "HEARTWOOD_NUM_PROCESSES" in variables:
        count = "HEARTWOOD_NUM_PROCESSES"
    if index == "HEARTWOOD_PROCESS_ID" and not count:
        raise UserError(f"{index}={variables[index]}",
                        "is set, but not how many processes there are",
                        "set HEARTWOOD_NUM_PROCESSES too")
    return index, count, coordinator


def _scheduler(variables: Mapping[str, str]) -> tuple[str, str, str]:
    if "SLURM_STEP_NUM_TASKS" in variables:     # set by srun, not in the shell of a batch script
        return "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", _slurm_coordinator(variables)
    if "JOB_COMPLETION_INDEX" in variables and "HEARTWOOD_NUM_PROCESSES" in variables:
        return "JOB_COMPLETION_INDEX", "", ""
    if variables.get("TPU_WORKER_HOSTNAMES"):
        first = variables["TPU_WORKER_HOSTNAMES"].split(",")[0]
        return "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", f"{first}:{COORDINATOR_PORT}"
    return "", "", ""


def _slurm_coordinator(variables: Mapping[str, str]) -> str:
    """First host and a port; node lists are ``node7``, ``a1,b2`` or ``rack[03-06,9]-x``."""
    nodes = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)",
                     variables.get("SLURM_STEP_NODELIST", ""))
    host = "".join(part or "" for part in nodes.groups())
    job = _number(variables, "SLURM_JOB_ID") + _number(variables, "SLURM_STEP_ID", 0)
    return f"{host}:{FIRST_SLURM_PORT + job % NUM_SLURM_PORTS}" if host else ""


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text!r}", "is not a whole number",
                        "set it to a whole number")
    return int(text)
