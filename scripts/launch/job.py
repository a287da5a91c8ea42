"""Flags and commands of a job, shared by all launchers."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from core import entry
from core.artifacts import ROOT
from core.errors import UserError
from core.stages import StageModule, config_arguments, read_stages


@dataclasses.dataclass(frozen=True)
class Job:
    """Stages to run one after another on the same machines.

    Attributes:
        name: of the job; letters, digits and dashes.
        stages: in order.
        arguments: the config's arguments, the same for every stage.
        workdir: a folder on a disk that all machines share.
        root: the checkout on these machines.
        python: the interpreter there.
    """

    name: str
    stages: tuple[StageModule, ...]
    arguments: tuple[str, ...]
    workdir: str
    root: str
    python: str

    @property
    def refused(self) -> str:
        """File that a process creates when it refuses its input, so that it is not retried."""
        return f"{self.workdir}/.{self.name}-refused"

    def command(self, stage: StageModule) -> str:
        """The stage's command, quoted for a shell."""
        return shlex.join([self.python, "-m", stage.module, *self.arguments,
                           f"--workdir={self.workdir}"])

    def exports(self) -> list[str]:
        """Shell lines that set the environment of every stage."""
        return [f"export JAX_COMPILATION_CACHE_DIR={shlex.quote(f'{self.workdir}/.cache/jax')}"]


def define_job_flags() -> None:
    """Declares the flags that `read_job` reads."""
    entry.define_config_flags()
    flags.DEFINE_list("stages", [], "Modules to run in order, e.g. train.pretrain,align.sft.")
    flags.DEFINE_string("name", "heartwood", "Name of the job.")
    flags.DEFINE_string("root", str(ROOT), "The checkout, where the job runs.")
    flags.DEFINE_string("python", None, "The interpreter there; ROOT/.venv/bin/python by default.")
    flags.DEFINE_string("out", None, "File to write to, instead of printing.")


def read_job() -> Job:
    """The job that the flags describe.

    Raises:
        UserError: one of them is missing or invalid.
    """
    given = flags.FLAGS
    config, workdir = entry.config_and_workdir()
    if not re.fullmatch(r"/[\w./@+=,-]+", given.workdir):   # valid in every scheduler's syntax
        raise UserError(f"--workdir={given.workdir}", "must be an absolute path, without blanks, "
                        "on a disk that all machines share", "write it from /, or mount it there")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", given.name):
        raise UserError(f"--name={given.name!r}", "must be lower-case letters, digits and dashes, "
                        "at most 40, a letter first", "choose another --name")
    return Job(given.name, tuple(read_stages(given.stages, config)), tuple(config_arguments()),
               str(workdir), given.root, given.python or f"{given.root}/.venv/bin/python")


def out_path() -> Path | None:
    """The path given by `--out`; None if not given."""
    return Path(flags.FLAGS.out) if flags.FLAGS.out else None


# Runs stages one after another and forwards SIGTERM: bash alone would exit or, as the first process
# of a container, ignore it. `wait` returns early when a trap has run, hence the loop.
RUN_STAGE = """\
run_stage() {
  "$@" &
  child=$!
  while :; do
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  [ $status = 0 ] || exit $status
}
trap 'kill -TERM "$child" 2>/dev/null' TERM"""


def check_options(options: Sequence[str], start: str, flag: str) -> None:
    """Raises `UserError` for scheduler options that are not one line with the right start."""
    for option in options:
        if not option.startswith(start) or "\n" in option:
            raise UserError(f"{flag}={option!r}", f"must be one line that begins with {start}",
                            "write one option a flag")


def deliver(text: str, path: Path | None) -> dict[str, str]:
    """Prints a script, or writes it to an executable file."""
    if path is None:
        print(text)
        return {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return {"file": str(path)}
