"""Stage: samples several answers per question and pairs the best with the worst.

    python -m align.pairs --config=configs/quickstart.py --workdir=runs/quickstart

Writes `pairs.jsonl`, preferences of two responses each, see `data.preferences`. Answers are
ranked by the task's `score`: exact match for verifiable tasks, word F1 for documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.chat import ask
from data.preferences import Preference, write_preferences
from eval.measures.generation import answer_and_score
from eval.respond.loaded import load_model
from eval.tasks.registry import open_tasks
from model.execution import make_execution
from model.generation.sampling import Sampling


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Samples answers of the SFT model to questions of the training split."""
    section = config.pairs
    tasks = open_tasks(section.tasks, parents.get("corpus"), section.inputs)
    # Another seed than SFT's: new operands, and another order of the documentation questions.
    solved = [c for task, count in tasks for c in task.conversations("train", count, section.seed)]
    if not solved:
        raise UserError("pairs: tasks, inputs", "give no question",
                        "raise a count in tasks, or name files in inputs")
    model = load_model(parents["model"], make_execution(section, also=("batch_size",)))
    repeated = [c for c in solved for _ in range(section.num_samples)]
    sampling = Sampling(section.max_new_tokens, temperature=section.temperature)
    rows = answer_and_score(model, [task for task, _ in tasks], repeated, sampling,
                            seed=section.seed, batch_size=section.run.batch_size)
    pairs = make_pairs(rows, section.num_samples, section.min_margin)
    if not pairs:
        raise UserError(f"pairs.min_margin={section.min_margin}",
                        f"none of {len(solved)} questions has answers that far apart",
                        "set a smaller --config.pairs.min_margin or a higher temperature")
    num_close = len(solved) - len(pairs)
    log(f"pairs: {len(pairs)} of {len(solved)} questions; {num_close} too close")
    write_preferences(folder / "pairs.jsonl", pairs)
    chosen, rejected = zip(*(pair.meta["scores"] for pair in pairs))
    return {"questions": len(solved), "pairs": len(pairs), "too_close": num_close,
            "chosen_score": sum(chosen) / len(pairs), "rejected_score": sum(rejected) / len(pairs)}


def make_pairs(rows: Sequence[Mapping[str, Any]], num_samples: int,
               min_margin: float) -> list[Preference]:
    """Pairs the best with the worst of each question's answers.

    Args:
        rows: scored answers; each question's `num_samples` rows are contiguous.
        min_margin: least difference in score of a pair.
    """
    pairs = []
    for first in range(0, len(rows), num_samples):
        answers = sorted(rows[first:first + num_samples], key=lambda row: row["score"])
        worst, best = answers[0], answers[-1]
        if best["score"] - worst["score"] >= min_margin:
            pairs.append(Preference(
                ask(best["question"]), (best["completion"], worst["completion"]), (1, 2),
                source=best["task"],
                meta={"family": best["family"], "scores": [best["score"], worst["score"]]}))
    return pairs


STAGE = Stage("pairs", build, parents=("model", "corpus"))

if __name__ == "__main__":
    run_stage(STAGE)
