"""Stage: samples several answers per question and labels the best and the worst of them.

    python -m align.pairs --config=configs/quickstart.py --workdir=runs/quickstart

Writes `pairs.jsonl`: question, chosen, rejected, their scores. The labeller is the task's own
`score`: exact match for verifiable tasks, shared words with the documentation otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from core.progress import log
from eval.run import answer_and_score, load_evaluated, write_rows
from eval.tasks.documentation import load_documentation
from eval.tasks.verifiable import Verifiable
from model.generation.generate import Sampling


def make_pairs(rows: list[dict[str, Any]], num_samples: int,
               min_margin: float) -> tuple[list[dict[str, Any]], Counter]:
    """Best against worst of each question's answers.

    Args:
        rows: scored answers; each question's `num_samples` rows stand together.
        min_margin: least difference in score that makes a pair.

    Returns:
        The pairs, and a count of questions by outcome: `paired` or `too_close`.
    """
    pairs, outcomes = [], Counter()
    for first in range(0, len(rows), num_samples):
        answers = sorted(rows[first:first + num_samples], key=lambda row: row["score"])
        worst, best = answers[0], answers[-1]
        if best["score"] - worst["score"] < min_margin:
            outcomes["too_close"] += 1
            continue
        outcomes["paired"] += 1
        pairs.append({"task": best["task"], "family": best["family"],
                      "question": best["question"],
                      "chosen": best["completion"], "rejected": worst["completion"],
                      "chosen_score": best["score"], "rejected_score": worst["score"]})
    return pairs, outcomes


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Samples from the SFT model on questions of the training split."""
    section = config.pairs
    model = load_evaluated(parents["model"])
    tasks = (load_documentation(parents["corpus"]), Verifiable())
    # Another seed than SFT's: new operands, and another order of the documentation questions.
    solved = [c for task, num in zip(tasks, (section.num_documentation, section.num_verifiable))
              for c in task.conversations("train", num, section.seed)]
    repeated = [c for c in solved for _ in range(section.num_samples)]
    sampling = Sampling(section.max_new_tokens, temperature=section.temperature)
    rows = answer_and_score(model, tasks, repeated, sampling, section)
    pairs, outcomes = make_pairs(rows, section.num_samples, section.min_margin)
    if not pairs:
        raise UserError(f"pairs.min_margin={section.min_margin}",
                        f"none of {len(solved)} questions has answers that far apart",
                        "set a smaller --config.pairs.min_margin or a higher temperature")
    log(f"pairs: {len(pairs)} of {len(solved)} questions; {outcomes['too_close']} too close")
    write_rows(folder / "pairs.jsonl", pairs)
    return {"questions": len(solved), "pairs": len(pairs), "too_close": outcomes["too_close"],
            "chosen_score": sum(p["chosen_score"] for p in pairs) / len(pairs),
            "rejected_score": sum(p["rejected_score"] for p in pairs) / len(pairs)}


if __name__ == "__main__":
    entry.run_stage("pairs", build, parents=("model", "corpus"))
