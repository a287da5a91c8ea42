"""Stage of a round: labels its candidates, by a reward model's scores or by people's votes.

Writes `pairs.jsonl` and `rankings.jsonl` as `align.pairs` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.pairs import make_pairs, make_rankings
from align.rounds import candidates as candidates_stage
from align.rounds.votes import read_votes
from align.sources import digest_file
from core.entry import Stage
from core.errors import UserError
from core.progress import log
from data.chat import Conversation, Message
from data.preferences import Preference, read_preferences, write_preferences
from eval.respond.reward import load_reward
from model.execution import make_execution


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Labels the parent `candidates` by the file `label.votes` or else the parent `reward`.

    Returns:
        pairs and rankings, and what was left out by reason.

    Raises:
        UserError: the file of votes is at fault, or nothing is preferred to anything.
    """
    section = config.label
    asked = read_preferences(parents["candidates"] / candidates_stage.FILE)
    if section.votes:
        rankings, counts = read_votes(Path(section.votes), asked)
        rankings = pairs = [vote for vote in rankings if vote.pairs()]
    else:
        scores = score(asked, parents["reward"], section)
        pairs, rankings, counts = order(asked, scores, section.min_margin)
    log(f"label: {len(pairs)} pairs of {len(asked)} prompts; {counts}")
    if not pairs:
        raise UserError(f"label: {len(asked)} prompts", "have no answer that is preferred to "
                        f"another: {counts}", "lower --config.label.min_margin, or vote for more")
    write_preferences(folder / "pairs.jsonl", pairs)
    write_preferences(folder / "rankings.jsonl", rankings)
    return {"pairs": len(pairs), "rankings": len(rankings), **counts}


def score(asked: Sequence[Preference], reward: Path, section: ConfigDict) -> list[list[float]]:
    """The scores of each candidate's answers by a reward model."""
    model = load_reward(reward, make_execution(section, also=("batch_size",)))
    scores = iter(model.score(
        [Conversation((*one.prompt.messages, Message("assistant", text)))
         for one in asked for text in one.responses], batch_size=section.run.batch_size))
    return [[float(next(scores)) for _ in one.responses] for one in asked]


def order(asked: Sequence[Preference], scores: Sequence[Sequence[float]], min_margin: float
          ) -> tuple[list[Preference], list[Preference], dict[str, int]]:
    """Pairs of the best and the worst answer, rankings of all, and candidates left out by reason.

    Both are those of `align.pairs`.
    """
    pairs, rankings, left_out = [], [], Counter(equal=0, too_close=0)
    for one, own in zip(asked, scores, strict=True):
        rows = [{"task": one.source, "family": one.meta["family"], "completion": text,
                 "messages": one.prompt.to_dict()["messages"], "finish": finish, "score": value}
                for text, finish, value in zip(one.responses, one.finishes, own, strict=True)]
        made, skipped = make_pairs(rows, len(rows), min_margin)
        pairs += made
        rankings += make_rankings(rows, len(rows))
        left_out.update(skipped)
    return pairs, rankings, dict(left_out)


STAGE = Stage("label", build, parents=("candidates", "reward"),
              inputs=lambda config: {"votes": digest_file(Path(config.label.votes))}
              if config.label.votes else {})
