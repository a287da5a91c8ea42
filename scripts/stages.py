"""Stages by the names of their modules, and the arguments that they are called with."""

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
        UserError: there is no such module, or it is no stage.
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
    """The stages, each of which the config must have a section for."""
    if not modules:
        raise UserError("--stages", "is missing", "try --stages=train.pretrain")
    stages = [read_stage(module) for module in modules]
    for module, stage in stages:
        if stage.section not in config:
            raise UserError(f"--stages={module}", f"the config has no section {stage.section!r}",
                            "use a config that describes this stage")
    return stages


def config_arguments(argv: Sequence[str] | None = None) -> list[str]:
    """Those arguments of this command line that make up the config, to be handed on.

    Raises:
        UserError: a value stands apart from its flag.
    """
    found = [argument for argument in (sys.argv[1:] if argv is None else argv)
             if argument.lstrip("-").partition("=")[0].split(".")[0] == "config"
             and argument.startswith("-")]
    for argument in found:
        if "=" not in argument:
            raise UserError(argument, "has no value after =", f"write {argument}=VALUE")
    return found


def load_config(arguments: Sequence[str], what: str) -> ConfigDict:
    """The config that a stage would see if it were called with these arguments.

    Args:
        what: what they are, for the message of an error.

    Raises:
        UserError: a field or a value is not possible.
    """
    values, argv = flags.FlagValues(), ["stage", *arguments]
    entry.define_config_flags(values, argv)
    if fault := entry.flag_fault(values, argv):
        raise UserError(what, fault, "correct this setting")
    return values.config
