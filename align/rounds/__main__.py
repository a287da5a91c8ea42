"""Iterated alignment: rounds in which a model is trained on labels of its own new answers.

    python -m align.rounds --config=configs/rounds.py --workdir=runs/quickstart-cpu
    python -m align.rounds --config=configs/rounds.py:votes --workdir=runs/quickstart-cpu

A round samples answers of the current model to new prompts, labels them, trains on the labels, and
measures the result on held-out prompts, the same ones in each round; the next round starts from the
trained model. Each step is a stage with its own artifact in WORKDIR/rounds/ROUND, see
`align.rounds.plan`; a run that was killed goes on where it stopped.

With labels=votes a round writes its pairs to a file and ends; when people have filled in the file,
the same command goes on. Writes `rounds.jsonl`, a row for each round, and the page `rounds.html`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from align.rounds import candidates, choose, measure
from align.rounds.page import render_rounds
from align.rounds.plan import CRITICS, VOTES, Plan
from align.rounds.votes import count_blank, write_blank
from core import entry
from core.artifacts import read_json, read_jsonl, write_jsonl
from core.processes import find_processes
from core.progress import log
from data.preferences import read_preferences
from train.watch import profile

# Of a round's row, beside its number and what its labels and its training gave.
MEASURED = ("reward", "reward_low", "reward_high", "kl", "kl_low", "kl_high", "answer_tokens",
            "answer_tokens_low", "answer_tokens_high", "ended_frac", "answers")
COMPARED = ("win_rate", "win_rate_low", "win_rate_high")


def main() -> dict[str, Any]:
    """Runs all rounds, or as many as there are votes for."""
    config, workdir = entry.config_and_workdir()
    return run_rounds(config, workdir, rebuild=flags.FLAGS.rebuild)


def run_rounds(config: ConfigDict, workdir: Path, *, rebuild: bool = False) -> dict[str, Any]:
    """See the module.

    Args:
        workdir: holds the artifacts that `config.rounds` names, and gets the rounds.
        rebuild: builds finished artifacts anew.

    Returns:
        `rounds`, a row for each finished round from 0 on; `page`, its path; and `waiting_for`, the
        file that people are to fill in, or "" where all is done.

    Raises:
        UserError: by the plan, or by one of the stages.
    """
    plan, rows, waiting = Plan(config, workdir), [], ""
    page = workdir / config.rounds.out / "rounds.html"
    for number in range(config.rounds.num_rounds + 1):
        waiting = _train(plan, number, rebuild) if number else ""
        if waiting:
            break
        rows.append(_measure(plan, number, config.rounds.labels, rebuild))
        _report(rows[-1])
        _write(plan, rows, page, config.rounds.num_shown)
    return {"rounds": rows, "page": str(page), "waiting_for": waiting}


def _train(plan: Plan, number: int, rebuild: bool) -> str:
    """Labels and trains; returns the file of votes if it is not filled in."""
    config, folder = plan.configure(number), plan.folder(number)
    run = partial(entry.run_next, config=config, workdir=folder, rebuild=rebuild)
    for stage in plan.labelling:
        if stage.section == "label" and config.label.votes and _await_votes(plan, number):
            return str(folder / VOTES)
        run(stage)
    for stage in plan.training:
        run(stage)
    return ""


def _await_votes(plan: Plan, number: int) -> bool:
    """Whether votes are missing; writes the file for them if there is none."""
    path = plan.folder(number) / VOTES
    asked = read_preferences(plan.artifact(number, "candidates") / candidates.FILE)
    if not path.exists() and find_processes().index == 0:
        write_blank(path, asked)
    num_blank = count_blank(path, asked) if path.exists() else len(asked)
    if num_blank:
        log(f"rounds: round {number} waits for votes: fill in the ranks of {num_blank} lines of "
            f"{path}, 1 for the best answer and equal numbers for a tie, or remove lines; then run "
            "the same command again")
    return bool(num_blank)


def _measure(plan: Plan, number: int, labels: str, rebuild: bool) -> dict[str, Any]:
    """Measures a round's model; returns its row."""
    config, folder = plan.configure(number), plan.folder(number)
    entry.run_next(measure.STAGE, config, folder, rebuild=rebuild)
    measured = read_json(plan.artifact(number, "measure") / "metrics.json")
    row = {"round": number, "model": str(plan.model(number))}
    row |= {name: measured[name] for name in MEASURED}
    if not number:
        return row
    row |= {name: measured[name] for name in COMPARED} | {"win_rate_by": "reward"}
    if labels in CRITICS:
        entry.run_next(choose.STAGE, config, folder, rebuild=rebuild)
        chosen = read_json(plan.artifact(number, "chosen") / "metrics.json")
        row |= {name: chosen[name] for name in COMPARED} | {"win_rate_by": "critic"}
    if plan.labelling:
        made = read_json(plan.artifact(number, plan.labelling[-1].section) / "metrics.json")
        row["pairs"] = made["pairs"]
    return row


def _report(row: dict[str, Any]) -> None:
    wins = "" if "win_rate" not in row else (
        f", wins {row['win_rate']:.1%} ({row['win_rate_low']:.1%} to {row['win_rate_high']:.1%}) "
        f"against the first model by the {row['win_rate_by']}")
    log(f"rounds: round {row['round']}: reward {row['reward']:.3f}, KL {row['kl']:.3f} nats, "
        f"{row['answer_tokens']:.1f} tokens{wins}")


def _write(plan: Plan, rows: Sequence[dict[str, Any]], page: Path, num_shown: int) -> None:
    """Writes the page of the rounds so far, and `rounds.jsonl` beside it."""
    if find_processes().index:
        return
    write_jsonl(page.with_name("rounds.jsonl"), rows)
    answers = [read_jsonl(plan.artifact(row["round"], "measure") / measure.FILE)[:num_shown]
               for row in rows]
    temporary = page.with_name(f".{page.name}.tmp")
    temporary.write_text(render_rounds(rows, answers), encoding="utf-8")
    os.replace(temporary, page)


if __name__ == "__main__":
    profile.define_flag()
    entry.define_config_flags()
    entry.run(main)
