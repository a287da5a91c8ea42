"""Chips, prices, grids, thresholds and published runs: the rows of `tables.json`, with sources."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.json_text import parse_json
from model.flops import peak_flops

TABLES = parse_json(Path(__file__).with_name("tables.json").read_text())
DTYPES = ("bfloat16", "fp8")    # of the peak that MFU is relative to


def find_row(table: str, name: str, field: str) -> dict[str, Any]:
    """The row of a table by its name, in any case.

    Args:
        table: `chips` or `grids`.
        field: the flag that gave the name, for the message.

    Raises:
        UserError: there is none; it names those that are spelled alike.
    """
    rows, wanted = TABLES[table], name.strip().lower()
    if wanted not in rows:
        near = ([known for known in rows if wanted and (wanted in known or known in wanted)]
                or difflib.get_close_matches(wanted, rows, n=3, cutoff=0.5) or rows)
        raise UserError(f"{field}={name!r}", f"is none of the {table} of train/plan/tables.json",
                        f"name one of {', '.join(near)}")
    return rows[wanted]


def chip_peak_flops(name: str, dtype: str = "bfloat16") -> float:
    """Dense peak of a chip in FLOP/s, without sparsity; from `model.flops.PEAKS`.

    Raises:
        UserError: the chip or the dtype is unknown, or the chip does not multiply in it.
    """
    peak = peak_flops(find_row("chips", name, "--chip")["device_kind"], dtype)
    if dtype not in DTYPES or peak is None:
        raise UserError(f"--dtype={dtype!r}", f"has no known peak on {name}", "take bfloat16")
    return peak
