"""Where a benchmark's items come from, and how it is asked to present them."""

from __future__ import annotations

import dataclasses
import glob
from pathlib import Path
from typing import Any

from core.errors import UserError
from data.layouts.rows import Damaged, name_of, read_rows
from data.readers.units import format_of


@dataclasses.dataclass(frozen=True)
class Source:
    """What a benchmark is opened with; all but the folder is part of the task's definition.

    Attributes:
        folder: holds the benchmark's files, here or below.
        form: name of one of the benchmark's forms of prompts; "" is its first.
        num_shots: solved examples before each question; -1 is the benchmark's own number.
        examples: "first" of the examples' file, or "seeded": drawn for each item.
        seed: of the draw.
    """

    folder: Path
    form: str = ""
    num_shots: int = -1
    examples: str = "first"
    seed: int = 1234

    def find(self, *stems: str, remedy: str = "name the folder that has one") -> Path:
        """The file with one of these names, endings aside.

        Raises:
            UserError: there is none, or there are several.
        """
        # Unlike `Path.rglob` it enters folders that are linked.
        every = glob.glob("**/*", root_dir=self.folder, recursive=True)
        found = sorted(path for path in (Path(self.folder, name) for name in every)
                       if path.is_file() and format_of(path.name) and name_of(path) in stems)
        if len(found) != 1:
            raise UserError(str(self.folder), f"has {len(found)} files named {' or '.join(stems)}",
                            remedy)
        return found[0]

    def rows(self, *stems: str) -> list[dict[str, Any]]:
        """The rows of `find(*stems)`.

        Raises:
            UserError: a row is damaged; a score over the others would mislead.
        """
        rows = []
        for place, row in read_rows(self.find(*stems)):
            if isinstance(row, Damaged):
                raise UserError(place, row.what, "correct this row, or remove it")
            rows.append(row)
        return rows
