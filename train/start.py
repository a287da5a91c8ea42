"""How pretraining begins: afresh, from a model's parameters, or from a checkpoint of another run.

`init_from` names a model directory. Its parameters are taken, and nothing else: optimizer state,
schedule, steps and data begin anew. `resume_from` names a run of pretraining, finished or not, and
`resume_step` one of its checkpoints. The whole state is taken: parameters, moments, average,
randomness and step; `num_steps` and the schedule count the other run's steps, and the data is read
on from where it stood. In both cases the architecture is that of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import read_json, read_lineage
from core.errors import UserError
from core.progress import log
from data.tokens.mixture import Drawn
from model.config import ModelConfig, make_model_config
from model.directory import read_description
from model.mup import is_on, mup_of
from model.section import read_section
from train.checkpoints.reader import Branch
from train.objective import text_length
from train.reading import NAME, read_reading

REFIT = ("take the parameters alone, with --config.pretrain.init_from, or go back to the optimizer "
         "of that run")


@dataclasses.dataclass(frozen=True)
class Start:
    """The beginning of a run.

    Attributes:
        config: the architecture.
        source: the model directory whose parameters are taken; None without `init_from`.
        branch: the checkpoint whose state is taken; None without `resume_from`.
        first_step: the step of that checkpoint, else 0.
        tokens_before: inputs that the state was trained on by then.
        drawn: rows that were drawn from each stream by then.
    """

    config: ModelConfig
    source: Path | None = None
    branch: Branch | None = None
    first_step: int = 0
    tokens_before: int = 0
    drawn: Mapping[str, Drawn] = dataclasses.field(default_factory=dict)


def open_start(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> Start:
    """Opens what a run begins from.

    Args:
        folder: of this run; where it has begun already, the step is the one recorded there.

    Raises:
        UserError: both fields are set; the tokens are of another tokenizer than the model's; or
            there is no such checkpoint.
    """
    section, tokens = config.pretrain, parents["tokens"]
    own = read_section(config.model, read_json(tokens / "tokens.json")["vocab_size"])
    if section.init_from and section.resume_from:
        raise UserError(f"pretrain.init_from={section.init_from!r}",
                        f"excludes resume_from={section.resume_from!r}", "set one of the two to ''")
    if section.init_from:
        source = parents["init_from"]
        described = read_description(source)
        _check_tokenizer("init_from", section, described.tokenizer, parents)
        _log_architecture(config, own, described.config, source)
        log(f"pretrain: the parameters are those of {source}; optimizer, schedule and data begin "
            "anew")
        return Start(described.config, source=source)
    if section.resume_from:
        return _go_on(config, own, parents, folder)
    if section.resume_step:
        raise UserError(f"pretrain.resume_step={section.resume_step}", "needs resume_from",
                        "name a run with --config.pretrain.resume_from")
    return Start(own)


def source_of(section: ConfigDict, tokens: Path) -> dict[str, Any]:
    """What decides the rows of a run and their order; see `Reading.source`."""
    return {"tokens": read_lineage(tokens)["build"], "row_length": text_length(section),
            "packing": section.packing, "seed": section.seed}


def _go_on(config: ConfigDict, own: ModelConfig, parents: Mapping[str, Path],
           folder: Path) -> Start:
    """The start of a run that goes on from another's checkpoint."""
    section, other, tokens = config.pretrain, parents["resume_from"], parents["tokens"]
    reading = read_reading(other)
    _check_tokenizer("resume_from", section, reading.tokenizer, parents)
    sizes = dict(reading.model)
    given = make_model_config(sizes, sizes.pop("V"))
    if (folder / NAME).exists():    # the other run's checkpoint may be deleted since
        begun = read_reading(folder)
        step, tokens_before, drawn = begun.first_step, begun.tokens_before, begun.drawn
    else:
        step = _choose_step(section, other)
    if section.num_steps <= step:
        raise UserError(f"pretrain.num_steps={section.num_steps}",
                        f"counts from the other run's start, and this one goes on at step {step}",
                        f"set --config.pretrain.num_steps above {step}")
    branch = Branch(other / "checkpoints", step, "pretrain.resume_step", REFIT)
    if not (folder / NAME).exists():
        index = branch.next_index()
        tokens_before, drawn = reading.tokens_at(index), reading.drawn_at(index)
        changed = [name for name, value in source_of(section, tokens).items()
                   if reading.source[name] != value]
        if changed:
            drawn = {}
        _log_architecture(config, own, given, other)
        log(f"pretrain: goes on from step {step} of {other} with its optimizer state; "
            + (f"its {' and '.join(changed)} differ, so the data is read from its first row"
               if changed else "the data is read on from where it stood"))
    return Start(given, branch=branch, first_step=step, tokens_before=tokens_before, drawn=drawn)


def _choose_step(section: ConfigDict, other: Path) -> int:
    """The checkpoint to go on from: the one named, or the newest of a finished run."""
    names = (path.name for path in (other / "checkpoints").glob("*"))
    steps = sorted(int(name) for name in names if name.isdecimal())
    choice = f"name one of {', '.join(map(str, steps))}" if steps else "name another run"
    field = f"pretrain.resume_step={section.resume_step}"
    if section.resume_step:
        if section.resume_step not in steps:
            raise UserError(field, f"{other} has no checkpoint of this step", choice)
        return section.resume_step
    if not (other / "metrics.json").exists():
        raise UserError(field, f"{other} is not finished, and its newest checkpoint may change",
                        choice)
    if not steps:
        raise UserError(f"pretrain.resume_from={section.resume_from!r}",
                        f"{other} has no checkpoint",
                        "take its parameters alone, with --config.pretrain.init_from")
    return steps[-1]


def _check_tokenizer(field: str, section: ConfigDict, expected: str,
                     parents: Mapping[str, Path]) -> None:
    """Raises `UserError` when the token files are of another tokenizer than the model's."""
    found = read_json(parents["tokens"] / "tokenizer" / "tokenizer.json")["fingerprint"]
    if found != expected:
        own = (f"data.pack with --config.pack.tokenizer={parents[field]} encodes the corpus with "
               "the model's own" if (parents[field] / "tokenizer").exists() else
               "set --config.pretrain.tokens to those of that run")
        raise UserError(
            f"pretrain.{field}={section[field]!r}", f"was trained with the tokenizer {expected}, "
            f"and pretrain.tokens={section.tokens!r} are of {found}", own)


def _log_architecture(config: ConfigDict, own: ModelConfig, given: ModelConfig,
                      source: Path) -> None:
    """Logs the fields in which the config's architecture differs, as they are not used.

    Raises:
        UserError: they differ and the config scales the optimizer to its own architecture.
    """
    different = [field.name for field in dataclasses.fields(ModelConfig)
                 if getattr(own, field.name) != getattr(given, field.name)]
    if different and is_on(mup_of(config.model)):
        raise UserError(f"model.mup={dict(mup_of(config.model))}",
                        f"scales another architecture than that of {source}, which differs in "
                        f"{', '.join(different)}", "give the same section model, or set "
                        "--config.model.mup.base_width=0 and base_depth=0")
    if different:
        log(f"pretrain: the architecture is that of {source}; the config's differs in "
            f"{', '.join(different)} and is not used")
