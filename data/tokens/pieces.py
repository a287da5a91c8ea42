"""Counts the pieces of a corpus in units, so that BPE is trained on more text than one machine
holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import regex

from data.engine import run_units
from data.tokenizers.marks import mark, without_look_ahead
from data.tokenizers.patterns import NORMALIZATIONS
from data.tokenizers.recipe import Recipe
from data.tokens.encode import Span, plan_units, read_spans


def count_pieces(documents: Path, recipe: Recipe, max_bytes: int, folder: Path,
                 **options: Any) -> dict[bytes, int]:
    """How often each piece occurs in the first units of `documents`.

    The counts do not depend on the units' order, on workers or on kills.

    Args:
        max_bytes: units are added until they hold this many bytes of text.
        folder: of the units' counts; units that stand there already are not counted again.
        options: of `run_units` and, as `unit_bytes`, of `plan_units`.

    Raises:
        UserError: a part of the documents is damaged.
    """
    units = plan_units(documents, options.pop("unit_bytes", None))
    wanted, planned = 0, 0
    for spans in units:
        if planned >= max_bytes:
            break
        wanted, planned = wanted + 1, planned + sum(map(_uncompressed_bytes, spans))
    tasks = [{"spans": spans, "pattern": recipe.pattern, "normalization": recipe.normalization}
             for spans in units[:wanted]]
    run_units(count_unit, tasks, folder, **options)
    tables = [pq.read_table(folder / f"{unit:05d}.parquet") for unit in range(wanted)]
    total = pa.concat_tables(tables).group_by("piece").aggregate([("count", "sum")])
    total = total.sort_by("piece")      # by bytes: the order decides nothing but is always the same
    return dict(zip(total["piece"].to_pylist(), total["count_sum"].to_pylist()))


def count_unit(output: Path, spans: Sequence[Span], pattern: str, normalization: str) -> \
        Mapping[str, int]:
    """Writes the pieces of a unit and their counts to ``{output}.parquet``.

    Returns:
        Documents and bytes of text.
    """
    find = regex.compile(without_look_ahead(pattern)).findall
    normalize = NORMALIZATIONS[normalization]
    counts: Counter[str] = Counter()
    num_documents = num_bytes = 0
    for row in read_spans(spans):
        counts.update(find(mark(normalize(row["text"]), pattern)))
        num_documents, num_bytes = num_documents + 1, num_bytes + len(row["text"].encode())
    pieces = sorted((piece.encode(), count) for piece, count in counts.items())
    pq.write_table(pa.table({
        "piece": pa.array([piece for piece, _ in pieces], pa.binary()),
        "count": pa.array([count for _, count in pieces], pa.int64())}), f"{output}.parquet")
    return {"documents": num_documents, "bytes": num_bytes}


def _uncompressed_bytes(span: Span) -> int:
    part, group, _, num_rows = span
    found = pq.ParquetFile(part).metadata.row_group(group)
    return found.total_byte_size * num_rows // found.num_rows
