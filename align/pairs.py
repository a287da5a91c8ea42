"""Stage: samples several answers per question, keeps the best, and pairs it with the worst.

    python -m align.pairs --config=configs/quickstart.py --workdir=runs/quickstart
    python -m align.sft --config=configs/align.py:rejection --workdir=runs/quickstart \\
        --config.sft.inputs=runs/quickstart/pairs/best.jsonl

Writes preferences, see `data.preferences`: `pairs.jsonl`, of two responses each, for preference
losses; and `rankings.jsonl`, of all answers, for a reward model. For rejection sampling it writes
`best.jsonl`, each question with its best answer as a conversation to learn from. Answers are ranked
by the rewards of `align.rl.rewards`, by default the task's `score` alone: exact match for
verifiable tasks, word F1 for documentation. In a pair an answer that was cut at `max_new_tokens` is
preferred only where none ends by itself. The stage's JSON has what the best of n answers is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from align.best_of_n import log_curve, make_curve, pick_best
from align.rl.answers import Answer
from align.rl.rewards import Resources, Rewards
from align.sources import fingerprint_inputs
from core.artifacts import write_jsonl
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.chat import make_conversation
from data.preferences import Preference, write_preferences
from data.tokenizers.tokenizer import Tokenizer
from eval.measures.generation import Answered, answer_and_score
from eval.respond.loaded import LoadedModel, load_model
from eval.tasks.registry import open_tasks
from eval.tasks.task import Task
from model.execution import make_execution
from model.generation.requests import REFUSED
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
    model = load_model(parents["model"], make_execution(section, also=("batch_size",)),
                       weights=section.weights)
    rewards = open_rewards(section, model, [task for task, _ in tasks], parents.get("reward"))
    repeated = [c for c in solved for _ in range(section.num_samples)]
    sampling = Sampling(section.max_new_tokens, temperature=section.temperature)
    answered = answer_and_score(model, [task for task, _ in tasks], repeated, sampling,
                                seed=section.seed, batch_size=section.run.batch_size)
    rows, rated = rate(answered, rewards, section.num_samples)
    pairs, left_out = make_pairs(rows, section.num_samples, section.min_margin)
    if not pairs:
        raise UserError(f"pairs.min_margin={section.min_margin}",
                        f"none of {len(solved)} questions has answers that far apart",
                        "set a smaller --config.pairs.min_margin or a higher temperature")
    described = describe_pairs(pairs, model.tokenizer)
    log(f"pairs: {len(pairs)} of {len(solved)} questions; {left_out['equal']} with equal answers "
        f"or scores, {left_out['too_close']} too close")
    log(f"pairs: {described['chosen_tokens_mean']:.1f} tokens chosen on average, "
        f"{described['rejected_tokens_mean']:.1f} rejected; {described['empty_chosen']} empty "
        f"answers chosen, {described['empty_rejected']} rejected; "
        f"{described['cut_chosen']} answers cut at the limit chosen, {described['cut_rejected']} "
        "rejected")
    rankings = make_rankings(rows, section.num_samples)
    best, without = pick_best(rows, section.num_samples, section.min_score)
    log(f"pairs: {len(best)} of {len(solved)} questions with a best answer to learn from; "
        + ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in without.items()))
    curve = describe_best(rows, section, rewards)
    write_preferences(folder / "pairs.jsonl", pairs)
    write_preferences(folder / "rankings.jsonl", rankings)
    write_jsonl(folder / "best.jsonl", (conversation.to_dict() for conversation in best))
    return {"questions": len(solved), "pairs": len(pairs), "rankings": len(rankings), **left_out,
            **described, **rated, "best": len(best), "without_best": without, "best_of_n": curve}


def open_rewards(section: ConfigDict, model: LoadedModel, tasks: Sequence[Task],
                 reward_model: Path | None) -> Rewards:
    """What answers are ranked by; see `align.rl.rewards.Rewards` for what is refused."""
    if section.rewards.get("model") and not model.chat:
        raise UserError(f"pairs.rewards.model={section.rewards.model}", "scores conversations, and "
                        f"{model.name} is a base model", "name a model that align.sft wrote, or "
                        "set the weight to 0")
    return Rewards(Resources(section, {task.name: task for task in tasks}, reward_model,
                             model.tokenizer, model.execution, None, section.run.batch_size))


def rate(answered: Sequence[Answered], rewards: Rewards,
         num_samples: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of answers whose `score` is the reward, and `task_score` that of the task.

    A question is left out with all its answers where the reward of one is not finite.

    Args:
        answered: each question's `num_samples` answers are contiguous.

    Returns:
        The rows; the number of questions left out (`not_finite`), and the mean of each reward.

    Raises:
        UserError: no question has an answer, or none is left.
    """
    rows = [one.row | {"task_score": one.row["score"]} for one in answered]
    given = [n for n, row in enumerate(rows) if row["finish"] != REFUSED]
    if not given:
        raise UserError("pairs.max_new_tokens", f"leaves no room for any of "
                        f"{len(rows) // num_samples} questions in the model's context", "lower it")
    totals, means = rewards([_as_answer(answered[n]) for n in given])
    for n, total in zip(given, totals.tolist(), strict=True):
        rows[n]["score"] = total
    kept, num_groups = [], len(rows) // num_samples
    for first in range(0, len(rows), num_samples):
        group = rows[first:first + num_samples]
        kept += group if np.isfinite([row["score"] for row in group]).all() else []
    num_wrong = num_groups - len(kept) // num_samples
    if not kept:
        raise UserError("pairs.rewards", "are not finite for an answer to each of "
                        f"{num_groups} questions", "find out why a score is not finite")
    if num_wrong:
        log(f"warning: pairs: {num_wrong} of {num_groups} questions are left out, as the reward of "
            "an answer is not finite")
    return kept, {"not_finite": num_wrong, **means}


def _as_answer(one: Answered) -> Answer:
    """An answer as rewards read it."""
    found = one.completion
    return Answer(one.question, tuple(one.prompt), found.tokens, found.logps, found.text,
                  found.finish)


def describe_best(rows: Sequence[Mapping[str, Any]], section: ConfigDict,
                  rewards: Rewards) -> dict[str, dict[str, float | None]]:
    """What the best of n answers is worth; see `align.best_of_n.make_curve`. It is logged.

    Args:
        rows: as of `make_pairs`; those of refused prompts are not counted.
    """
    answers = [row for row in rows if row["finish"] != REFUSED]
    rewards_PJ, task_scores_PJ = (np.reshape([row[name] for row in answers],
                                             (-1, section.num_samples))
                                  for name in ("score", "task_score"))
    curve = make_curve(rewards_PJ, None if rewards.is_task_alone else task_scores_PJ)
    log_curve(curve)
    return curve


def make_pairs(rows: Sequence[Mapping[str, Any]], num_samples: int,
               min_margin: float) -> tuple[list[Preference], dict[str, int]]:
    """Pairs the best with the worst of each question's answers.

    Args:
        rows: scored answers; each question's `num_samples` rows are contiguous.
        min_margin: least difference in score of a pair.

    Returns:
        The pairs; and the numbers of questions left out because best and worst have the same text
        or score (`equal`), or scores that are less than `min_margin` apart (`too_close`).
    """
    pairs, left_out = [], {"equal": 0, "too_close": 0}
    for first in range(0, len(rows), num_samples):
        answers = sorted((row for row in rows[first:first + num_samples]
                          if row["finish"] != "refused"), key=lambda row: row["score"])
        if not answers:
            left_out["equal"] += 1
            continue
        worst, best = answers[0], ([row for row in answers if row["finish"] == "stop"]
                                   or answers)[-1]
        if best["score"] == worst["score"] or best["completion"] == worst["completion"]:
            left_out["equal"] += 1
        elif best["score"] - worst["score"] < min_margin:
            left_out["too_close"] += 1
        else:
            pairs.append(Preference(
                make_conversation(best["messages"]), (best["completion"], worst["completion"]),
                (1, 2), source=best["task"], finishes=(best["finish"], worst["finish"]),
                meta={"family": best["family"]}, scores=(best["score"], worst["score"])))
    return pairs, left_out


def make_rankings(rows: Sequence[Mapping[str, Any]], num_samples: int) -> list[Preference]:
    """The answers to each question in the order of their scores, where these are not all equal.

    Args:
        rows: as of `make_pairs`.
    """
    rankings = []
    for first in range(0, len(rows), num_samples):
        answers = [row for row in rows[first:first + num_samples] if row["finish"] != "refused"]
        levels = sorted({row["score"] for row in answers}, reverse=True)
        if len(levels) > 1:
            rankings.append(Preference(
                make_conversation(answers[0]["messages"]),
                tuple(row["completion"] for row in answers),
                tuple(levels.index(row["score"]) + 1 for row in answers),
                source=answers[0]["task"], finishes=tuple(row["finish"] for row in answers),
                meta={"family": answers[0]["family"]},
                scores=tuple(row["score"] for row in answers)))
    return rankings


def describe_pairs(pairs: Sequence[Preference], tokenizer: Tokenizer) -> dict[str, float]:
    """Means of scores and of lengths in tokens, and numbers of empty and cut answers, by side.

    `longer_chosen_frac` is the share of pairs whose preferred answer is the longer one: far from a
    half, length is what a preference loss learns.
    """
    scores = np.array([pair.scores for pair in pairs])
    lengths = np.array([[len(tokenizer.encode(text)) for text in pair.responses]
                        for pair in pairs])
    empty = np.array([[not text.strip() for text in pair.responses] for pair in pairs])
    cut = np.array([[finish == "length" for finish in pair.finishes] for pair in pairs])
    return {name: value for column, side in enumerate(("chosen", "rejected")) for name, value in (
        (f"{side}_score", float(scores[:, column].mean())),
        (f"{side}_tokens_mean", float(lengths[:, column].mean())),
        (f"empty_{side}", int(empty[:, column].sum())),
        (f"cut_{side}", int(cut[:, column].sum())))} | {
            "longer_chosen_frac": float((lengths[:, 0] > lengths[:, 1]).mean())}


STAGE = Stage("pairs", build, parents=("model", "corpus", "reward"),
              inputs=lambda config: fingerprint_inputs(config.pairs))

if __name__ == "__main__":
    run_stage(STAGE)
