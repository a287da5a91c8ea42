"""Stage of a round: a critic chooses between answers of a round's model and of the first one.

Each pair is shown in both orders; a choice that depends on the order is a tie. Writes
`choices.jsonl`, the preferences.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align import constitution
from align.rounds import measure
from align.synthetic.choices import TwoAnswers, prefer
from align.synthetic.outcomes import Outcomes
from align.synthetic.parties import Parties
from align.synthetic.principles import read_constitution
from core.artifacts import read_jsonl
from core.entry import Stage
from core.errors import UserError
from data.chat import Conversation, make_conversation
from data.preferences import Preference, write_preferences
from eval.statistics import win_rate


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Asks the critic of `config.constitution` about the answers of two measurements.

    Args:
        parents: `ours` and `theirs`, artifacts of `align.rounds.measure`; `critic`, where it is a
            model in a folder.

    Returns:
        `win_rate` of ours with its 95 % interval, ties counting half; not_chosen, pairs without a
        choice; what `align.synthetic.choices.prefer` counts; usage and cost.

    Raises:
        UserError: the measurements are of other prompts, the critic cannot be opened, or it chooses
            nowhere.
    """
    section = config.constitution
    principles = read_constitution(constitution.principle_files(section))
    ours, theirs = (read_jsonl(parents[name] / measure.FILE) for name in ("ours", "theirs"))
    if [row["prompt"] for row in ours] != [row["prompt"] for row in theirs]:
        raise UserError("chosen.theirs", "answered other prompts",
                        "measure both with the same config")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    parties = Parties(section, parents, work)
    critic = parties.open_critic(principles.with_examples(section.num_examples))
    different = pair_up(ours, theirs)
    made, counts = prefer(different, critic, principles.preferences,
                          Outcomes(section.rules.to_dict()), disagreement="tie", seed=section.seed)
    write_preferences(folder / "choices.jsonl", made)
    # Equal answers are ties that nobody is asked about.
    shares = [0.5] * (len(ours) - len(different)) + [share_of_ours(one, ours) for one in made]
    if not shares:
        raise UserError("chosen", f"the critic chose in none of {len(ours)} pairs",
                        "use a better critic, or set config.constitution.rules to keep")
    rate, (low, high) = win_rate(shares, [1 - share for share in shares])
    shutil.rmtree(work)
    return {"win_rate": rate, "win_rate_low": low, "win_rate_high": high, "compared": len(shares),
            "not_chosen": len(ours) - len(shares), **counts} | parties.usage()


def pair_up(ours: Sequence[Mapping[str, Any]],
            theirs: Sequence[Mapping[str, Any]]) -> list[TwoAnswers]:
    """The pairs of answers whose texts differ, ours first; a pair's source is its number."""
    return [TwoAnswers(
        Conversation(make_conversation(mine["prompt"]).messages, {"source": str(number)}),
        (mine["answer"], other["answer"]), (mine["finish"], other["finish"]))
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True))
        if mine["answer"] != other["answer"]]


def share_of_ours(one: Preference, ours: Sequence[Mapping[str, Any]]) -> float:
    """The probability that our answer is the better one of a pair of `pair_up`."""
    own = ours[int(one.meta["origin"])]["answer"]
    return one.scores[one.responses.index(own)]


STAGE = Stage("chosen", build, parents=("ours", "theirs", "critic"), sections=("constitution",),
              inputs=constitution.STAGE.inputs)
