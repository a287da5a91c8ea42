"""What is trained, how it is computed, and on which devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from model.config import ModelConfig
from model.execution import Execution, make_execution
from model.parallel.sharding import make_mesh

# Fields of a trainer's subsection `run` beside those of `Execution`.
RUN_FIELDS = ("num_microbatches", "diagnostics", "tasks", "samples", "writers", "log_every",
              "evaluate_every", "checkpoint_every", "keep_checkpoints", "keep_every", "num_slots",
              "num_connections", "timeout_secs", "max_retries", "backoff_secs", "prompt_price",
              "answer_price")


class Setup(NamedTuple):
    """A model with its execution, on a mesh."""

    config: ModelConfig
    execution: Execution
    mesh: Mesh


def make_setup(config: ModelConfig, section: ConfigDict, mesh: Mapping[str, int]) -> Setup:
    """The setup of a trainer, from its section and the section `mesh`.

    Raises:
        UserError: a field of `section.run` or an axis of the mesh is not possible.
    """
    return Setup(config, make_execution(section, also=RUN_FIELDS), make_mesh(mesh))
