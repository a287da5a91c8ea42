"""Which model is planned: one that the flags name, or a stand-in of the planned size."""

from __future__ import annotations

import dataclasses
import math

from absl import flags
from ml_collections import ConfigDict

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution, make_execution
from model.flops import train_flops_per_token
from model.summary import count_parameters, open_config
from train.plan.memory import ADAMW, MIXED, Training
from train.plan.shape import stand_in
from train.setup import RUN_FIELDS

ROW_LENGTH = 8192       # of a stand-in: arXiv 2407.21783, section 3.2


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with how it is trained.

    Attributes:
        title: the name that the flags gave, or what the stand-in is.
        config: the architecture.
        row_length: positions of a row.
        is_stand_in: whether only the size was known.
        batch_tokens: of a step; None follows from the tokens.
        tokens: of a config's own schedule; None if there is none.
        execution, optimizer, keep_ema: see `train.plan.memory.Training`.
    """

    title: str
    config: ModelConfig
    row_length: int
    is_stand_in: bool = False
    batch_tokens: int | None = None
    tokens: int | None = None
    execution: Execution = MIXED
    optimizer: ConfigDict = dataclasses.field(default_factory=lambda: ADAMW)
    keep_ema: bool = False

    def params(self) -> tuple[int, int]:
        """All parameters, and those that a token meets, embeddings included."""
        counted = count_parameters(self.config)
        return counted["total"], counted["active"]

    def flops_per_token(self, attention: str) -> float:
        """Of a training step; see `model.flops.train_flops_per_token`."""
        return train_flops_per_token(self.config, self.row_length, attention)

    def training(self, tokens: float, batch_tokens: float | None) -> Training:
        """What decides its memory, for a run of so many tokens."""
        batch = batch_tokens or self.batch_tokens
        rows = batch / self.row_length if batch else 2 ** round(math.log2(
            max(1.0, usual_batch_tokens(tokens) / self.row_length)))
        return Training(self.config, self.row_length, max(1, round(rows)), self.execution,
                        self.optimizer, self.keep_ema)


def usual_batch_tokens(tokens: float) -> float:
    """Tokens of a step for a run of `tokens`: 2^19 at 1.3B, growing with the power 0.383.

    The power is that of the best batch over the horizon in arXiv 2505.13738, the reference
    nanochat's at depth 12; both as in configs/common.py. Llama 3's 15.6T give 19M, it took 16M.
    """
    return 2**19 * (tokens / 1.32e9) ** 0.383


def open_subject(values: flags.FlagValues, row_length: int | None) -> Subject | None:
    """The model that `--preset`, `--model` or `--config` names; None if none does.

    Raises:
        UserError: more than one of them is given, or `--params` beside one; or the model is
            unknown or does not read such rows.
    """
    given = [f"--{name}" for name in ("preset", "model", "config") if values[name].value]
    if not given:
        return None
    for name in ("params", "active_params"):
        if values[name].value is not None:
            raise UserError(f"--{name}", f"is what {given[0]} decides", f"leave out --{name}")
    title, config, context = open_config()
    length = row_length or context
    if config.max_positions and length > config.max_positions:
        raise UserError(f"--row_length={length}", f"exceeds max_positions={config.max_positions} "
                        "of this model", f"give at most {config.max_positions}")
    if given != ["--config"]:
        return Subject(title, config, length)
    section = values.config.pretrain
    batch = section.batch_size * section.row_length
    return Subject("the config's model", config, length, batch_tokens=batch,
                   tokens=batch * section.num_steps,
                   execution=make_execution(section, also=RUN_FIELDS),
                   optimizer=section.optimizer, keep_ema=section.ema_decay > 0)


def stand_in_subject(params: float, row_length: int | None) -> Subject | None:
    """A model of the shape of Llama 3 with about so many parameters; see `train.plan.shape`."""
    config = stand_in(params)
    if config is None:
        return None
    title = f"a dense decoder of {config.N} layers and width {config.D:,}"
    return Subject(title, config, row_length or ROW_LENGTH, is_stand_in=True)
