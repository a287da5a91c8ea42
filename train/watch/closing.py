"""Clean-up that never hides the error which made it necessary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from core.errors import first_line
from core.progress import log


@contextlib.contextmanager
def closed_after(close: Callable[[], object], what: str) -> Iterator[None]:
    """Calls `close` in the end. What it raises after another error is logged, not raised."""
    try:
        yield
    except BaseException:
        try:
            close()
        except Exception as error:
            log(f"WARNING: {what} could not be closed ({first_line(error)})")
        raise
    close()
