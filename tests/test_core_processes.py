"""Number and index of processes, from the variables that each launcher sets."""

import pytest

from core.errors import UserError
from core.processes import COORDINATOR_PORT, Processes, find_processes

# As `srun` sets them: slurm.schedmd.com/srun.html, section output environment variables.
SLURM = {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "16",
         "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[003-006,9]"}
TPU = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "10.0.0.7,10.0.0.8,10.0.0.9"}
JOB = {"JOB_COMPLETION_INDEX": "1", "HEARTWOOD_NUM_PROCESSES": "4",
       "HEARTWOOD_COORDINATOR": "run-0.run:1234"}
BY_HAND = {"HEARTWOOD_PROCESS_ID": "0", "HEARTWOOD_NUM_PROCESSES": "2",
           "HEARTWOOD_COORDINATOR": "here:99"}


@pytest.mark.parametrize("environment, expected", [
    ({}, Processes()),
    (SLURM, Processes(3, 8, "gpu003:13634")),
    (TPU, Processes(2, 3, f"10.0.0.7:{COORDINATOR_PORT}")),
    (JOB, Processes(1, 4, "run-0.run:1234")),
    (BY_HAND, Processes(0, 2, "here:99")),
    (SLURM | BY_HAND, Processes(0, 2, "here:99")),
    (SLURM | {"HEARTWOOD_COORDINATOR": "gpu003-ib:7"}, Processes(3, 8, "gpu003-ib:7")),
    # Single processes: a batch script's shell, an array of Jobs, one TPU host.
    ({"SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, Processes()),
    ({"JOB_COMPLETION_INDEX": "1"}, Processes()),
    ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, Processes()),
    (SLURM | {"HEARTWOOD_NUM_PROCESSES": "1"}, Processes()),
    ({"HEARTWOOD_COORDINATOR": "here:99"}, Processes()),    # meant for a job that is submitted
], ids=range(12))
def test_each_launchers_variables_are_read(environment, expected):
    assert find_processes(environment) == expected


@pytest.mark.parametrize("nodes, host", [
    ("node7", "node7"), ("a1,b2", "a1"), ("gpu[12,14]", "gpu12"), ("r[3-4]-x,r9-x", "r3-x"),
    ("tux[007-012]", "tux007"), ("h-1.cluster", "h-1.cluster")])
def test_the_first_host_of_a_node_list(nodes, host):
    processes = find_processes(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert processes.coordinator.rpartition(":")[0] == host


@pytest.mark.parametrize("environment, line", [
    (BY_HAND | {"HEARTWOOD_PROCESS_ID": "two"}, "HEARTWOOD_PROCESS_ID='two': is not a whole num"),
    (BY_HAND | {"HEARTWOOD_PROCESS_ID": "2"}, "HEARTWOOD_PROCESS_ID=2: is not among 0 to 1"),
    (BY_HAND | {"HEARTWOOD_NUM_PROCESSES": "0"}, "HEARTWOOD_NUM_PROCESSES=0: is below 1"),
    (BY_HAND | {"HEARTWOOD_COORDINATOR": "here"}, "HEARTWOOD_COORDINATOR='here': is not host:po"),
    ({"HEARTWOOD_PROCESS_ID": "1"}, "HEARTWOOD_PROCESS_ID=1: is set, but not how many"),
    ({"HEARTWOOD_NUM_PROCESSES": "2"}, "HEARTWOOD_NUM_PROCESSES=2: does not say which process"),
    (SLURM | {"SLURM_STEP_NODELIST": ""}, "HEARTWOOD_COORDINATOR='': is not host:port"),
], ids=range(7))
def test_inconsistent_variables_are_one_line(environment, line):
    with pytest.raises(UserError) as error:
        find_processes(environment)
    assert str(error.value).startswith(line)
