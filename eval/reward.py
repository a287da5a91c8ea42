"""Scores answers with a reward model.

    python -m eval.reward --reward=runs/mine/reward --inputs=answers.jsonl --out=scores.jsonl

`--inputs` is a file or a folder of conversations in any layout of `data.layouts` that end with an
answer. Prints the mean score, its standard error and the number of answers; `--out` is written
with a line for each: its place, source and score.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from eval.respond.reward import load_reward
from eval.statistics import mean_and_stderr
from model.execution import Execution


def score_file(reward: Path, inputs: Path, out: Path | None, batch_size: int) -> dict[str, Any]:
    """Scores the last answers of a file's conversations.

    Args:
        out: JSON lines that are written; None writes none.

    Raises:
        UserError: there is no answer, or a file cannot be read.
    """
    model = load_reward(reward, Execution())
    faults, kept = Faults("inputs"), []
    for conversation in read_examples(inputs, "conversations", faults=faults):
        last = conversation.messages[-1]
        if last.role == "assistant" and last.content:
            kept.append(conversation)
        else:
            faults.add("no_answer", str(conversation.meta.get("place", inputs)),
                       "does not end with an answer")
    faults.report()
    if not kept:
        raise UserError(f"--inputs={inputs}", "holds no conversation that ends with an answer",
                        "name a file of answers")
    scores = model.score(kept, batch_size=batch_size)
    mean, stderr = mean_and_stderr(scores)
    if out is not None:
        write_jsonl(out, ({"place": conversation.meta.get("place", ""),
                           "source": conversation.meta.get("source", ""), "score": float(score)}
                          for conversation, score in zip(kept, scores)))
    return {"reward": model.name, "answers": len(kept), "score": mean, "score_stderr": stderr,
            "left_out": dict(faults.counts)}


def main() -> dict[str, Any]:
    """Reads the flags and scores."""
    values = flags.FLAGS
    for name in ("reward", "inputs"):
        if not values[name].value:
            raise UserError(f"--{name}", "is missing", f"name a path: --{name}=PATH")
    return score_file(Path(values.reward), Path(values.inputs),
                      Path(values.out) if values.out else None, values.batch_size)


if __name__ == "__main__":
    flags.DEFINE_string("reward", None, "Directory of the reward model.")
    flags.DEFINE_string("inputs", None, "File or folder of conversations that end with an answer.")
    flags.DEFINE_string("out", None, "JSON lines that are written: a score for each answer.")
    flags.DEFINE_integer("batch_size", 16, "Answers of a forward pass.", lower_bound=1)
    entry.run(main)
