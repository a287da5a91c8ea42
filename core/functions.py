"""Functions of the user's own, named in a config by module: ``my_package.module.function``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import UserError


def load_function(field: str, path: str) -> Callable[..., Any]:
    """Imports a function; modules are searched as Python does, from the working directory on.

    Args:
        field: of the config, for the message.
        path: module and name of the function, joined by a dot.

    Raises:
        UserError: it cannot be imported, or is not a function.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UserError(f"{field}={path!r}", f"cannot be imported ({error})",
                        "write module.function of an installed package or of a file in the "
                        "working directory") from None
    if not callable(function):
        raise UserError(f"{field}={path!r}", "is not a function", "name a function")
    return function


def defining_file(function: Callable[..., Any]) -> Path:
    """The file whose content decides what a function of the user's does."""
    return Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
