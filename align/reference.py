"""Log-probabilities of answers under a frozen reference, computed once and kept beside the runs.

`WORKDIR/reference/KEY/` holds `logps` (little-endian float32, checksums beside it) and
`reference.json`. The key is of what the numbers depend on: the model's parameters, the rows, the
compute dtype and the temperature. A run with the same key, of another loss or strength or after a
kill, reads them.
"""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from align.losses.preference import score_pairs
from align.preference_rows import PairRows
from core.artifacts import digest, read_json, write_json
from core.errors import UserError
from core.progress import Progress, log
from data.batch import stack
from data.tokens.checked import CheckedArray, sums_path, write_sums
from data.tokens.examples import DTYPES
from model.directory import fingerprint_params, load_params
from train.setup import Setup
from train.step import place_batch


def find_reference(workdir: Path, source: Path, rendered: Path, rows: dict[str, PairRows], *,
                   setup: Setup, section: ConfigDict) -> dict[str, np.ndarray]:
    """The reference's log-probabilities of all rows, read or computed.

    Args:
        workdir: holds `reference/`.
        source: the reference's model directory. Its parameters are loaded only if they are needed,
            and freed again.
        rendered: the folder of `data.tokens.examples` that the rows are of.
        rows: by part.

    Returns:
        By part, in nats, float32: [pairs, 2, 2], of each row the whole answer and its first tokens,
        as many as the shorter answer of the pair has.
    """
    found, params = {}, None
    for part, part_rows in rows.items():
        described = describe_reference(source, rendered, part, len(part_rows), setup, section)
        place = workdir / "reference" / digest(described)
        logps = _read(place, described)
        if logps is None:
            if params is None:
                params = load_params(source, setup.config, setup.mesh)
            logps = compute_reference(params, part_rows, setup=setup,
                                      batch_size=section.batch_size,
                                      temperature=section.temperature)
            if jax.process_index() == 0:
                _write(place, logps, described)
            log(f"{section.out}: reference of {len(part_rows):,} pairs of {part}: computed, kept "
                f"in {place}")
        else:
            log(f"{section.out}: reference of {len(part_rows):,} pairs of {part}: read from "
                f"{place}")
        found[part] = logps
    return found


def describe_reference(source: Path, folder: Path, part: str, num_rows: int, setup: Setup,
                       section: ConfigDict) -> dict[str, Any]:
    """What the numbers depend on."""
    hasher = xxhash.xxh3_128()
    for name in DTYPES:     # the checksums of all blocks stand for the rows
        hasher.update(sums_path(folder / f"{part}.{name}").read_bytes())
    return {"model": fingerprint_params(source), "rows": hasher.hexdigest(), "pairs": num_rows,
            "compute_dtype": str(setup.execution.compute_dtype), "matmul": section.matmul,
            "temperature": section.temperature, "row_length": section.row_length}


def compute_reference(params: Any, rows: PairRows, *, setup: Setup, batch_size: int,
                      temperature: float) -> np.ndarray:
    """The log-probabilities of all rows, by the code and in batches of the shape of training."""
    # Replicated: each process needs all of them.
    whole = NamedSharding(setup.mesh, PartitionSpec())
    score = jax.jit(partial(_score, config=setup.config, execution=setup.execution,
                            temperature=temperature), out_shardings=whole)
    logps = np.empty((len(rows), 2, 2), np.float32)
    with jax.set_mesh(setup.mesh), Progress("reference", len(rows), "pairs") as progress:
        for first in range(0, len(rows), batch_size):
            last = min(first + batch_size, len(rows))
            picked = [rows[i] for i in range(first, last)]
            filled = stack(picked + [picked[-1]] * (batch_size - len(picked)))
            logps[first:last] = jax.device_get(score(params, *(
                place_batch(side, setup.mesh) for side in sides_of(filled))))[:len(picked)]
            progress.update(last)
    return logps


def sides_of(batch: Any) -> tuple[Any, Any]:
    """The two rows of each element of a batch."""
    return (batch.chosen, batch.rejected) if hasattr(batch, "chosen") else (
        batch.answers, batch.mismatched)


def _score(params: Any, first: Any, second: Any, **model: Any) -> jax.Array:
    sides = score_pairs(params, first, second, **model)
    return jnp.stack([jnp.stack([side.answer_B, side.common_B], axis=-1) for side in sides], axis=1)


def _read(place: Path, described: dict[str, Any]) -> np.ndarray | None:
    """What was kept; None if there is nothing, or it is damaged."""
    if not (place / "reference.json").exists():
        return None
    try:
        if read_json(place / "reference.json") != described:
            raise UserError(str(place), "is of other rows", "delete it")
        kept = CheckedArray(place / "logps", "<f4")
        return np.array(kept[:], np.float32).reshape(described["pairs"], 2, 2)
    except (UserError, ValueError) as error:
        log(f"warning: {error}; the reference is computed anew")
        return None


def _write(place: Path, logps: np.ndarray, described: dict[str, Any]) -> None:
    made = place.with_name(f".{place.name}.{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    with open(made / "logps", "wb") as file:
        file.write(logps.astype("<f4").tobytes())
        file.flush()
        os.fsync(file.fileno())
    write_sums(made / "logps")
    write_json(made / "reference.json", described)
    shutil.rmtree(place, ignore_errors=True)    # what is damaged
    os.rename(made, place)
