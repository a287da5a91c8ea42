"""Metrics to watch a run by: TensorBoard and Weights & Biases, beside the JSON lines.

The JSON lines are the record; these are views of it, lost without harm.
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
    """Where metrics go besides the file."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands over the values of a step."""

    def close(self) -> None:
        """Hands over what is left and waits for it."""


class TensorBoard:
    """Event files in ``<folder>/tensorboard``; what a killed process wrote past `step` is hidden.

    Args:
        step: the restored step.
    """

    def __init__(self, folder: Path, *, step: int, config: ConfigDict):
        module = _import("tensorboardX", "tensorboard", "tb")
        # The file's name is the second; without a suffix a quick restart overwrites the file.
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1,
                                            flush_secs=10, filename_suffix=f".{step}")
        if step == 0:
            self._writer.add_text("config", f"```yaml\n{config}\n```", 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands over the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WeightsAndBiases:
    """One run on W&B, gone on with by every process of the run; account and project are the
    user's, by `wandb login`, WANDB_PROJECT and WANDB_MODE=offline.

    Steps are a metric that the others are drawn over, because W&B's own step never goes back, as
    a restored run does.
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
        """Hands over the values of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def make_writers(names: Iterable[str], folder: Path, *, run_name: str, config: ConfigDict,
                 step: int) -> list[Writer]:
    """Opens the writers of the config field `writers`: ``tensorboard``, ``wandb``.

    Args:
        folder: gets their files.
        run_name: what the run is called, e.g. ``quickstart/base``.
        config: shown beside the curves.
        step: the restored step.

    Returns:
        None of them on other processes than the first.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    known = {"tensorboard": lambda: TensorBoard(folder, step=step, config=config),
             "wandb": lambda: WeightsAndBiases(folder, run_name=run_name, config=config)}
    for name in names:
        if name not in known:
            raise UserError(f"writers={name!r}", f"is none of {', '.join(known)}",
                            "set --config.SECTION.writers")
    return [known[name]() for name in names] if jax.process_index() == 0 else []


def _import(module: str, writer: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"writers={writer!r}", f"needs the package {module}",
                        f"pip install -e '.[{extra}]', or leave it out of writers") from None
