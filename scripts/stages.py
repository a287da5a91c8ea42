"""What a stage's module says of itself, read without importing it, and how it is called."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from core import entry
from core.artifacts import ROOT
from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class StageModule:
    """A module that calls `core.entry.run_stage`.

    Attributes:
        module: e.g. ``train.pretrain``.
        section: its config section; the section's `out` names what it writes.
        parents: fields of the section that name artifacts it reads.
        every_process: whether all processes of a launch compute together.
    """

    module: str
    section: str
    parents: tuple[str, ...]
    every_process: bool


def read_stage(module: str) -> StageModule:
    """Finds the module's call of `run_stage`.

    Raises:
        UserError: there is no such module, or it is no stage.
    """
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not path.exists():
        raise UserError(f"--stages={module}", f"there is no {path.relative_to(ROOT)}",
                        "name a module such as train.pretrain")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("entry.run_stage",
                                                                     "run_stage"):
            given = {word.arg: word.value for word in node.keywords}
            return StageModule(module, ast.literal_eval(node.args[0]),
                               _literal(given.get("parents"), ()),
                               _literal(given.get("every_process"), False))
    raise UserError(f"--stages={module}", "is no stage: it does not call core.entry.run_stage",
                    "name a module such as train.pretrain")


def _literal(node: ast.expr | None, default):
    try:
        return default if node is None else ast.literal_eval(node)
    except ValueError:      # a name: a constant of the module
        return default


def read_stages(modules: Sequence[str], config: ConfigDict) -> list[StageModule]:
    """The stages, each of which the config must have a section for."""
    if not modules:
        raise UserError("--stages", "is missing", "try --stages=train.pretrain")
    stages = [read_stage(module) for module in modules]
    for stage in stages:
        if stage.section not in config:
            raise UserError(f"--stages={stage.module}", f"the config has no section "
                            f"{stage.section!r}", "use a config that describes this stage")
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
        what: they are, for the one line that says that they are not possible.

    Raises:
        UserError: a field or a value is not possible.
    """
    values, argv = flags.FlagValues(), ["stage", *arguments]
    entry.define_config_flags(values, argv)
    if fault := entry.flag_fault(values, argv):
        raise UserError(what, fault, "correct this setting")
    return values.config
