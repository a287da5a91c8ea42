"""Flags for names of the user's own: domains, tasks, patterns of parameters.

A flag may set only a field that its config has. Some dicts hold names that no config can know, and
take new ones: ``--config.pretrain.mixture.web=1.0`` or, where a name is no identifier,
``--config.pretrain.mixture['my-web']=1.0``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from core.bounds import find_bounds
from core.errors import UserError

# Dicts of such names whose values are no numbers.
PLACEHOLDERS = {"curate.presets": (), "curate.columns": ""}
OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


def define_config_flag(values: flags.FlagValues = flags.FLAGS,
                       argv: Sequence[str] | None = None) -> None:
    """Declares ``--config``; arguments as of `core.entry.define_config_flags`."""
    config_flags.DEFINE_config_file("config", None, "Experiment: configs/NAME.py[:variant].",
                                    flag_values=values, sys_argv=argv)
    values["config"].parser = ConfigParser(values["config"].parser, argv)


class ConfigParser(flags.ArgumentParser):
    """Parses ``--config``, and adds the names of the user's own that the command line sets.

    Args:
        parser: of the config's file.
        argv: the command line; None for this process's own.
    """

    def __init__(self, parser: flags.ArgumentParser, argv: Sequence[str] | None):
        self._parser, self._argv = parser, argv

    def parse(self, argument: str) -> Any:
        """The config of a file, with a value at each new name, which its flag then sets."""
        config = self._parser.parse(argument)
        if isinstance(config, ConfigDict):
            for word in sys.argv if self._argv is None else self._argv:
                if match := OVERRIDE.match(word):
                    _add_name(config, match[1])
        return config

    def flag_type(self) -> str:
        """The kind of the flag's value, for messages."""
        return self._parser.flag_type()


def _add_name(config: ConfigDict, field: str) -> None:
    """Adds a field where its dict takes names of the user's own and lacks it.

    Raises:
        UserError: this is not how a field is written.
    """
    try:
        path = config_path.split(field)
    except ValueError:
        parent, _, name = field.rpartition(".")
        raise UserError(f"--config.{field}", "a name that is no identifier stands in brackets",
                        f"write --config.{parent}[{name!r}]=VALUE") from None
    if not all(isinstance(name, str) for name in path):
        return      # an index
    num_names, placeholder = _own_names(path)
    section = _section(config, path[:len(path) - num_names])
    if not num_names or section is None:
        return
    with section.unlocked():
        for name in path[-num_names:-1]:
            if name not in section:
                section[name] = ConfigDict()
            section = section[name]
        if path[-1] not in section:
            section[path[-1]] = placeholder


def _own_names(path: Sequence[str]) -> tuple[int, Any]:
    """How many names at the end of a path are the user's own, and a value of the field's type."""
    for key, placeholder in PLACEHOLDERS.items():
        if ".".join(path[:-1]) == key:
            return 1, placeholder
    key, bounds = find_bounds(path) or ("", None)
    return key.count("*"), 0 if bounds and bounds.whole else 0.0


def _section(config: ConfigDict, path: Iterable[str]) -> ConfigDict | None:
    """The section at `path`; None if there is none."""
    for name in path:
        if name not in config or not isinstance(config[name], ConfigDict):
            return None
        config = config[name]
    return config
