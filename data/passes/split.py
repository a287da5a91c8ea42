"""Pass 6, per unit: removes documents similar to a held-out page, in every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.artifacts import read_json, write_json
from data.dedup.heldout import HeldoutIndex
from data.passes.near import Documents
from data.passes.roster import Roster
from data.tables import write_array


def save_heldout(path: Path, ids: Sequence[str], shingles: Sequence[np.ndarray]) -> None:
    """Saves ids and shingles of the held-out documents, for `split`."""
    write_array(f"{path}.shingles.npy", np.concatenate([np.zeros(0, np.uint64), *shingles]))
    write_array(f"{path}.sizes.npy", np.array([len(one) for one in shingles], np.int64))
    write_json(Path(f"{path}.ids.json"), list(ids))


def split(*, output: Path, before: str, cleaned: str, heldout: str, heldout_rows: Sequence[int],
          rules: Mapping[str, Any]) -> dict[str, Any]:
    """Removes documents that are similar to a held-out page or contain one.

    Args:
        before: path of the unit's roster, written by `data.passes.settle`.
        cleaned: output of `data.passes.clean`, without suffix.
        heldout: held-out documents, see `save_heldout`; ``heldout_rows`` are those of this unit.
        rules: the section heldout of the config.

    Returns:
        ``tallies`` of the stage.
    """
    roster, own = Roster.load(before), set(heldout_rows)
    roster.begin("split")
    ids, sizes = read_json(Path(f"{heldout}.ids.json")), np.load(f"{heldout}.sizes.npy")
    index = HeldoutIndex(np.split(np.load(f"{heldout}.shingles.npy"), np.cumsum(sizes)[:-1])
                         if ids else [])
    documents = Documents([cleaned])
    for number in range(len(documents)):
        row = int(documents.index(number)["row"])
        if row in roster and row not in own:
            nearest, similarity, contained = index.overlap(documents.shingles(number))
            if similarity >= rules["max_jaccard"] or contained >= rules["max_containment"]:
                roster.remove(row, "near_heldout", max(similarity, contained), ids[nearest])
    return {"tallies": roster.save(output)}
