"""Stage of a round: samples answers that people are to label.

Writes `candidates.jsonl`: preferences, see `data.preferences`, whose answers all have rank 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from align.rl.answers import Answer
from align.rounds.sampling import draw, open_model
from align.sources import fingerprint_inputs
from core.entry import Stage
from core.errors import UserError
from core.progress import log
from data.chat import Conversation
from data.preferences import Preference, write_preferences
from eval.tasks.task import question_of
from train.distributed import initialize

FILE = "candidates.jsonl"


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Samples answers to the prompts of the round `candidates.round`.

    Returns:
        candidates: prompts with answers to choose from; left_out: prompts by reason; repeated:
        answers whose text another one to the prompt has.

    Raises:
        UserError: as `align.rounds.sampling.open_model`; or all answers to each prompt are equal.
    """
    initialize()
    section = config.candidates
    asked = open_model(section, config.mesh, parents, "train")
    _, answers = draw(asked, section, section.round)
    found, counts = make_candidates(answers, section.num_samples)
    log(f"candidates: {len(found)} of {section.num_prompts} prompts have answers that differ")
    if not found:
        raise UserError(f"candidates: {section.num_prompts} prompts", "have no two answers that "
                        "differ", "raise --config.candidates.temperature or num_samples")
    if jax.process_index() == 0:
        write_preferences(folder / FILE, found)
    return {"candidates": len(found), "repeated": counts["repeated"],
            "left_out": dict(asked.left_out) | {"equal": counts["equal"]}}


def make_candidates(answers: Sequence[Answer],
                    num_samples: int) -> tuple[list[Preference], Counter[str]]:
    """The answers to each prompt whose texts differ, of equal ones the first.

    Args:
        answers: `num_samples` to each prompt, next to each other.

    Returns:
        The candidates; and counts: `repeated`, answers; `equal`, prompts with one text alone.
    """
    found, counts = [], Counter()
    for first in range(0, len(answers), num_samples):
        group: dict[str, Answer] = {}
        for answer in answers[first:first + num_samples]:
            counts["repeated"] += answer.text in group
            group.setdefault(answer.text, answer)
        question = answers[first].question
        if len(group) < 2:
            counts["equal"] += 1
            continue
        meta = {name: question.meta[name] for name in ("task", "family")}
        found.append(Preference(
            Conversation(question_of(question).messages), tuple(group), (1,) * len(group),
            meta["task"], meta, tuple(answer.finish for answer in group.values())))
    return found, counts


STAGE = Stage("candidates", build, parents=("model", "corpus"), every_process=True,
              inputs=lambda config: fingerprint_inputs(config.candidates))
