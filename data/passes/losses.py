"""Losses: bytes of the inputs that were not read because of damage.

A broken record weighs one record of the run, but the rest of a file, or a whole one, may have held
any number; so losses are counted in bytes of the input files as well.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import PassingError
from core.progress import log
from data.readers.records import CUT_OFF
from data.readers.units import UNKNOWN_BYTES, Unit, is_folder, version

MIN_NAMED_FRAC = 0.01       # of a file: less, in single records, is not named by file
MAX_NAMED = 20              # files that are named in the log


@dataclasses.dataclass(frozen=True)
class Loss:
    """What was not read of an input file.

    Attributes:
        reason: the one with the most bytes.
        num_bytes: of the file; for one that is cut off as many as are there.
        frac: share of the file, with what it would hold if it were whole.
    """

    path: str
    reason: str
    num_bytes: int
    frac: float

    def __str__(self) -> str:
        missing = "about " if self.reason.endswith(CUT_OFF) else ""
        return (f"{self.path} ({self.reason}: {missing}{self.num_bytes:,} bytes, "
                f"{self.frac:.0%} of it, are lost)")


def find_losses(units: Sequence[Unit],
                measured: Sequence[Mapping[str, Any]]) -> tuple[list[Loss], float]:
    """The files that lost more than single records, the largest loss first, and the share of bytes.

    Args:
        measured: results of `data.passes.measure`, per unit.

    Returns:
        The files, and the share of the lost bytes, of all files, in the bytes of the inputs.
    """
    sizes, by_file = Counter(), {}
    for unit, result in zip(units, measured):
        sizes[unit.path] += _size(unit, result)
        for path, reasons in result["losses"].items():
            by_file.setdefault(path, Counter()).update(reasons)
    missing = sum(num_bytes for reasons in by_file.values() for reason, num_bytes in reasons.items()
                  if reason.endswith(CUT_OFF))
    lost = sum(sum(reasons.values()) for reasons in by_file.values())
    losses = [_describe(path, reasons, sizes[path]) for path, reasons in by_file.items()]
    named = [loss for loss in losses if loss.frac >= MIN_NAMED_FRAC
             or loss.reason.endswith((": damaged", CUT_OFF))]
    return (sorted(named, key=lambda loss: (-loss.num_bytes, loss.path)),
            lost / max(sizes.total() + missing, 1))


def _describe(path: str, reasons: Counter, size: int) -> Loss:
    """The loss of a file of `size` bytes, 0 for a document of a folder, which is lost whole."""
    lost = reasons.total()
    missing = sum(count for reason, count in reasons.items() if reason.endswith(CUT_OFF))
    whole = max(size + missing, lost)
    return Loss(path, max(reasons, key=lambda reason: (reasons[reason], reason)), lost,
                round(lost / whole, 4))


def _size(unit: Unit, result: Mapping[str, Any]) -> int:
    """Bytes of a unit's input; of documents, and where a server did not tell, those that came."""
    if not is_folder(unit.path) and unit.stop != UNKNOWN_BYTES:
        return unit.stop - unit.start
    return result["raw_bytes"] + sum(num_bytes for reasons in result["losses"].values()
                                     for reason, num_bytes in reasons.items()
                                     if not reason.endswith(CUT_OFF))


def log_losses(losses: Sequence[Loss]) -> None:
    """One line per file, for the largest."""
    for loss in losses[:MAX_NAMED]:
        log(f"curate: ALARM: {loss}")
    if len(losses) > MAX_NAMED:
        log(f"curate: ALARM: and {len(losses) - MAX_NAMED} more files; see alarms in manifest.json")


def describe_losses(losses: Sequence[Loss]) -> list[dict[str, Any]]:
    """The alarms of a manifest for files of which bytes were not read."""
    return [{"source": loss.path, "lost_bytes": loss.num_bytes, "removed_frac": loss.frac,
             "reason": loss.reason} for loss in losses]


def check_unchanged(versions: Mapping[str, str]) -> None:
    """Raises `PassingError` when an input has another version than before it was read."""
    for path, before in versions.items():
        if version(path) != before:
            raise PassingError(path, "was written to while it was read",
                               "run the same command again when it is complete")
