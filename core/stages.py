"""Stages by module name, and the arguments of their config."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from core import entry
from core.artifacts import ROOT
from core.entry import Stage
from core.errors import UserError


class StageModule(NamedTuple):
    """A module that defines a stage, e.g. ``train.pretrain``, and its `STAGE`."""

    module: str
    stage: Stage


def read_stage(module: str) -> StageModule:
    """Imports the module's `STAGE`.

    Raises:
        UserError: there is no such module, or it defines no stage.
    """
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not path.exists():
        raise UserError(f"--stages={module}", f"there is no {path.relative_to(ROOT)}",
                        "name a module such as train.pretrain")
    stage = getattr(importlib.import_module(module), "STAGE", None)
    if not isinstance(stage, Stage):
        raise UserError(f"--stages={module}", "is no stage: it defines no STAGE",
                        "name a module such as train.pretrain")
    return StageModule(module, stage)


def read_stages(modules: Sequence[str], config: ConfigDict) -> list[StageModule]:
    """The stages; raises `UserError` if the config has no section for one."""
    if not modules:
        raise UserError("--stages", "is missing", "try --stages=train.pretrain")
    stages = [read_stage(module) for module in modules]
    for module, stage in stages:
        if stage.section not in config:
            raise UserError(f"--stages={module}", f"the config has no section {stage.section!r}",
                            "use a config that describes this stage")
    return stages


def config_arguments(argv: Sequence[str] | None = None) -> list[str]:
    """The command line's arguments that define the config, to pass on to stages.

    Raises:
        UserError: a value is not joined to its flag by =.
    """
    arguments = [argument for argument in (sys.argv[1:] if argv is None else argv)
             if argument.lstrip("-").partition("=")[0].split(".")[0] == "config"
             and argument.startswith("-")]
    for argument in arguments:
        if "=" not in argument:
            raise UserError(argument, "has no value after =", f"write {argument}=VALUE")
    return arguments


def load_config(arguments: Sequence[str], what: str) -> ConfigDict:
    """The config of a stage that is called with these arguments.

    Args:
        what: their description, for error messages.

    Raises:
        UserError: a field or a value is invalid.
    """
    values, argv = flags.FlagValues(), ["stage", *arguments]
    entry.define_config_flags(values, argv)
    if fault := entry.flag_fault(values, argv):
        raise UserError(what, fault, "correct this setting")
    return values.config
