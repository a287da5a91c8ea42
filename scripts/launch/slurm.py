"""SLURM: prints a batch script that runs stages over nodes, and submits it on request.

    python -m scripts.launch.slurm --config=configs/quickstart.py:accelerator \\
        --workdir=/shared/run --stages=train.pretrain --nodes=4 --gpus_per_node=8 [--submit]

One task per node uses all its GPUs; with --tasks=gpu, there is one task per GPU. Two minutes before
its time limit, or when it is preempted, every task gets SIGTERM, saves and ends; the job is then
requeued under the same number and resumes from its checkpoints. It is requeued after a crash as
well, up to --max_requeues times; a user error (status 2) ends it at once.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.stages import StageModule
from scripts.launch.job import (
    Job,
    check_options,
    define_job_flags,
    deliver,
    out_path,
    read_job,
)

SIGNAL_SECS = 120   # between SIGTERM and SIGKILL, to save


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Resources that a job requests from SLURM.

    Attributes:
        nodes: machines.
        gpus_per_node, cpus_per_task: 0 requests none.
        tasks: "node" or "gpu": what one process uses.
        minutes: the job's time limit; 0 leaves it to the partition.
        options: further options of sbatch, e.g. ``--partition=a100``.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 0
    tasks: str = "node"
    minutes: int = 0
    options: tuple[str, ...] = ()

    @property
    def tasks_per_node(self) -> int:
        """Processes on each machine."""
        return self.gpus_per_node if self.tasks == "gpu" and self.gpus_per_node else 1

    def header(self, name: str, signalled: str = "") -> list[str]:
        """The first lines of a batch script.

        Args:
            signalled: recipient of SIGTERM before the end: "" for the tasks of srun, "B:" for
                the script itself.
        """
        asked = [f"--job-name={name}", f"--nodes={self.nodes}",
                 f"--ntasks-per-node={self.tasks_per_node}",
                 *([f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
                 *([f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []),
                 *([f"--time={self.minutes}"] if self.minutes else []),
                 f"--signal={signalled}TERM@{SIGNAL_SECS}", "--requeue", "--open-mode=append",
                 *self.options]
        return ["#!/usr/bin/env bash", *(f"#SBATCH {option}" for option in asked)]


def render(job: Job, allocation: Allocation, max_requeues: int) -> str:
    """The batch script."""
    lines = [*allocation.header(job.name), f"#SBATCH --output={job.workdir}/{job.name}-%j.log", "",
             "set -uo pipefail", f"cd {shlex.quote(job.root)} || exit 2", *job.exports(),
             f"export HEARTWOOD_REFUSED={shlex.quote(job.refused)}"]
    if allocation.cpus_per_task:    # since 22.05 srun does not inherit it
        lines.append(f"export SRUN_CPUS_PER_TASK={allocation.cpus_per_task}")
    lines += ["", _FUNCTION.format(max_requeues=max_requeues), ""]
    return "\n".join(lines + [_stage_line(job, stage, allocation) for stage in job.stages]) + "\n"


# The status of srun is the highest among its tasks, and those that it kills after the first has
# failed have 137: only the marker file shows that a task refused its input and must not be retried.
_FUNCTION = """\
run_stage() {{  # NODES TASKS COMMAND...
  rm -f "$HEARTWOOD_REFUSED"
  srun --nodes="$1" --ntasks="$2" --kill-on-bad-exit=1 "${{@:3}}"
  local status=$?
  if [ $status = 0 ]; then return; fi
  if [ -e "$HEARTWOOD_REFUSED" ]; then exit 2; fi
  if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_requeues} ]; then
    echo "status $status: giving up after {max_requeues} requeues" >&2
    exit $status
  fi
  echo "status $status: requeued" >&2
  scontrol requeue "$SLURM_JOB_ID"
  exit $status
}}"""


def _stage_line(job: Job, stage: StageModule, allocation: Allocation) -> str:
    command = job.command(stage)
    if not stage.stage.every_process:
        return f"run_stage 1 1 {command}"
    if allocation.tasks == "gpu":
        one_gpu = 'JAX_LOCAL_DEVICE_IDS="$SLURM_LOCALID" exec "$@"'
        command = f"bash -c {shlex.quote(one_gpu)} bash {command}"
    nodes = allocation.nodes
    return f"run_stage {nodes} {nodes * allocation.tasks_per_node} {command}"


def submit(script: Path) -> str:
    """Submits a script by sbatch; returns the job's number.

    Raises:
        UserError: there is no sbatch, or it refuses the script.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("--submit", "there is no sbatch here", "run this where SLURM is, or "
                        f"take {script} there") from None
    if done.returncode:
        raise UserError(str(script), f"sbatch refused it ({done.stderr.strip()[:200]})",
                        "correct the options, e.g. --sbatch=--partition=NAME")
    return done.stdout.strip().partition(";")[0]


def define_slurm_flags() -> None:
    """Declares the flags of an `Allocation`."""
    flags.DEFINE_integer("nodes", 1, "Machines.", lower_bound=1)
    flags.DEFINE_integer("gpus_per_node", 0, "GPUs of each; 0 on machines without.", lower_bound=0)
    flags.DEFINE_integer("cpus_per_task", 0, "Cores of a task; 0 is SLURM's own choice.",
                         lower_bound=0)
    flags.DEFINE_enum("tasks", "node", ["node", "gpu"], "What one process uses.")
    flags.DEFINE_integer("minutes", 0, "Time limit; 0 is the partition's.", lower_bound=0)
    flags.DEFINE_multi_string("sbatch", [], "A further option, e.g. --sbatch=--partition=a100.")
    flags.DEFINE_bool("submit", False, "Submit the script as well.")


def read_allocation() -> Allocation:
    """The `Allocation` of the flags."""
    given = flags.FLAGS
    check_options(given.sbatch, "--", "--sbatch")
    return Allocation(given.nodes, given.gpus_per_node, given.cpus_per_task, given.tasks,
                      given.minutes, tuple(given.sbatch))


def main() -> dict[str, Any]:
    """Prints or writes the script, and submits it on request."""
    job, allocation = read_job(), read_allocation()
    text = render(job, allocation, flags.FLAGS.max_requeues)
    path = out_path()
    if flags.FLAGS.submit and path is None:
        path = Path(job.workdir) / f"{job.name}.sbatch"
    result = {"launcher": "slurm", "nodes": allocation.nodes, **deliver(text, path)}
    return result | ({"job": submit(path)} if flags.FLAGS.submit else {})


if __name__ == "__main__":
    define_job_flags()
    define_slurm_flags()
    flags.DEFINE_integer("max_requeues", 50, "Requeues of the job.", lower_bound=0)
    entry.run(main)
