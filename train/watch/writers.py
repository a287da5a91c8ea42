"""Writers of metrics to TensorBoard and Weights & Biases.

The JSON lines are the record; these are only views of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import jax
from ml_collections import ConfigDict

from core.errors import UserError


class Writer(Protocol):
    """A destination of metrics besides the file."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""

    def close(self) -> None:
        """Writes what is buffered and waits for it."""


class TensorBoard:
    """Event files in ``<folder>/tensorboard``; values of a killed process after `step` are hidden.

    Args:
        step: the restored step.
    """

    def __init__(self, folder: Path, *, step: int, config: ConfigDict):
        module = _import("tensorboardX", "tensorboard", "tb")
        # A file is named by the second; without a suffix a quick restart would overwrite it.
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1,
                                            flush_secs=10, filename_suffix=f".{step}")
        if step == 0:
            self._writer.add_text("config", f"```yaml\n{config}\n```", 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """One run on W&B, resumed by later processes; account and project are the
    user's, by `wandb login`, WANDB_PROJECT and WANDB_MODE=offline.

    Steps are a metric and the x-axis of the others, because W&B's own step cannot decrease, as a
    restored run requires.
    """

    def __init__(self, folder: Path, *, run_name: str, config: ConfigDict):
        module = _import("wandb", "wandb", "wandb")
        id_file = folder / "wandb.id"
        run_id = id_file.read_text() if id_file.exists() else ""
        if not run_id:
            run_id = secrets.token_hex(8)
            id_file.write_text(run_id)
        self._run = module.init(id=run_id, resume="allow", name=run_name,
                                dir=str(folder), config=config.to_dict())
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


def make_writers(names: Iterable[str], folder: Path, *, run_name: str, config: ConfigDict,
                 step: int) -> list[Writer]:
    """Opens the writers of the config field `run.writers`: ``tensorboard``, ``wandb``.

    Args:
        folder: for their files.
        run_name: name of the run, e.g. ``quickstart/base``.
        config: shown next to the curves.
        step: the restored step.

    Returns:
        An empty list on processes other than the first.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    known = {"tensorboard": lambda: TensorBoard(folder, step=step, config=config),
             "wandb": lambda: WeightsAndBiases(folder, run_name=run_name, config=config)}
    for name in names:
        if name not in known:
            raise UserError(f"run.writers={name!r}", f"is none of {', '.join(known)}",
                            "set --config.SECTION.run.writers")
    return [known[name]() for name in names] if jax.process_index() == 0 else []


def _import(module: str, writer: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"run.writers={writer!r}", f"needs the package {module}",
                        f"pip install -e '.[{extra}]', or leave it out of run.writers") from None
