"""Stage of a round: labels its candidates by people's votes.

Writes `pairs.jsonl` and `rankings.jsonl` as `align.pairs` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.rounds import candidates as candidates_stage
from align.rounds.votes import read_votes
from align.sources import digest_file
from core.entry import Stage
from core.errors import UserError
from core.progress import log
from data.preferences import read_preferences, write_preferences


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Labels the parent `candidates` by the file `label.votes`.

    Returns:
        pairs and rankings, and what was left out by reason.

    Raises:
        UserError: the file of votes is at fault, or nothing is preferred to anything.
    """
    asked = read_preferences(parents["candidates"] / candidates_stage.FILE)
    votes, counts = read_votes(Path(config.label.votes), asked)
    decided = [vote for vote in votes if vote.pairs()]
    log(f"label: {len(decided)} votes on {len(asked)} prompts; {counts}")
    if not decided:
        raise UserError(f"label: {len(asked)} prompts", "have no answer that is preferred to "
                        f"another: {counts}", "vote for more")
    for name in ("pairs", "rankings"):
        write_preferences(folder / f"{name}.jsonl", decided)
    return {"pairs": len(decided), "rankings": len(decided), **counts}


STAGE = Stage("label", build, parents=("candidates",),
              inputs=lambda config: {"votes": digest_file(Path(config.label.votes))})
