"""Where things are kept that can be computed again; whatever lies there may be deleted."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from core.artifacts import ROOT


def cache_folders() -> list[Path]:
    """The places of caches: that of the checkout, if the code is in one, and that of the user.

    The latter is `heartwood` in `~/.cache`, or where the XDG base directory specification has it.
    """
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    places = [ROOT / ".cache"] if (ROOT / "pyproject.toml").exists() else []
    # A user without a home has none: the name stays as it is.
    return places + ([Path(users) / "heartwood"] if os.path.isabs(users) else [])


def find_cache(name: str) -> Path | None:
    """The folder `name` in the first cache that this process may write to; None if there is none.

    It is made for this user alone, as what lies in a compile cache is executed.
    """
    for place in cache_folders():
        folder = place / name
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None
