"""Writers of metrics to TensorBoard and Weights & Biases.

The JSON lines are the record; these are only views of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
from ml_collections import ConfigDict

from core.errors import UserError, first_line
from core.progress import log


class Writer(Protocol):
    """A destination of metrics besides the file. Opening one raises what its package raises."""

    def start(self, step: int) -> None:
        """Begins behind the restored step; what a killed process wrote of later ones is hidden."""

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes the values of a step."""

    def close(self) -> None:
        """Writes what is buffered and waits for it."""


class TensorBoard:
    """Event files in ``<folder>/tensorboard``."""

    def __init__(self, folder: Path, *, config: ConfigDict, **_: str):
        self._make = import_module("tensorboardX").SummaryWriter
        self._folder, self._config, self._writer = folder / "tensorboard", config, None
        self._folder.mkdir(exist_ok=True)

    def start(self, step: int) -> None:
        """Begins a file; a mark in it hides the later steps of those before."""
        # A file is named by the second; without a suffix a quick restart would overwrite it.
        self._writer = self._make(str(self._folder), purge_step=step + 1, flush_secs=10,
                                  filename_suffix=f".{step}")
        if step == 0:
            self._writer.add_text("config", f"```yaml\n{self._config}\n```", 0)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes the values of a step."""
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(name, value, step)

    def close(self) -> None:
        """Writes what is buffered."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """One run on W&B, resumed by later processes; account and project are the
    user's, by `wandb login`, WANDB_PROJECT and WANDB_MODE=offline.

    Steps are a metric and the x-axis of the others, because W&B's own step cannot decrease, as a
    restored run requires.
    """

    def __init__(self, folder: Path, *, config: ConfigDict, run_name: str):
        module = import_module("wandb")
        id_file = folder / "wandb.id"
        run_id = id_file.read_text() if id_file.exists() else ""
        if not run_id:
            run_id = secrets.token_hex(8)
            id_file.write_text(run_id)
        self._run = module.init(id=run_id, resume="allow", name=run_name,
                                dir=str(folder), config=config.to_dict())
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def start(self, step: int) -> None:
        """Nothing: a step that is written again replaces its values."""

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes the values of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class Kind(NamedTuple):
    """A kind of writer: how it is opened, its package, our extra, and what helps if it fails."""

    open: Callable[..., Writer]
    package: str
    extra: str
    remedy: str


KINDS = {"tensorboard": Kind(TensorBoard, "tensorboardX", "tb", "free its folder"),
         "wandb": Kind(WeightsAndBiases, "wandb", "wandb",
                       "log in with `wandb login`, or set WANDB_MODE=offline")}


def check_writers(names: Iterable[str]) -> None:
    """Raises `UserError` if a writer of `run.writers` is unknown, or its package not installed."""
    for name in names:
        if name not in KINDS:
            raise UserError(f"run.writers={name!r}", f"is none of {', '.join(KINDS)}",
                            "set --config.SECTION.run.writers")
        kind = KINDS[name]
        try:
            import_module(kind.package)
        except ImportError:
            raise UserError(f"run.writers={name!r}", f"needs the package {kind.package}",
                            f"pip install -e '.[{kind.extra}]', or leave it out of run.writers") \
                from None


class Writers:
    """The writers of a run, on process 0.

    One that cannot be opened is an error, before anything is compiled. One that fails later is
    announced and left out from then on: the JSON lines are the record.

    Args:
        names: the config field `run.writers`.
        folder: for their files.
        run_name: name of the run, e.g. ``base``.
        config: shown next to the curves.

    Raises:
        UserError: a name is unknown, its package is not installed, or it cannot be opened.
    """

    def __init__(self, names: Iterable[str], folder: Path, *, run_name: str, config: ConfigDict):
        self._open: dict[str, Writer] = {}
        if jax.process_index():
            return
        check_writers(names)
        for name in names:
            try:
                self._open[name] = KINDS[name].open(folder, run_name=run_name, config=config)
            except Exception as error:
                self.close()
                raise UserError(f"run.writers={name!r}", f"cannot be opened ({first_line(error)})",
                                f"{KINDS[name].remedy}, or leave it out of run.writers") from error

    def start(self, step: int) -> None:
        """Begins behind the restored step."""
        self._each(lambda writer: writer.start(step))

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes the values of a step."""
        self._each(lambda writer: writer.write(step, values))

    def close(self) -> None:
        """Writes what is buffered, and waits for it."""
        self._each(lambda writer: writer.close())
        self._open = {}

    def _each(self, call: Callable[[Writer], None]) -> None:
        for name, writer in [*self._open.items()]:
            try:
                call(writer)
            except Exception as error:
                del self._open[name]
                log(f"WARNING: run.writers={name!r} fails ({first_line(error)}) and is left out "
                    "from here on; metrics.jsonl has everything")
