"""Constitutional AI with a rule as the critic: a chat model learns to answer in few words.

    python -m scripts.lab.constitution --model=runs/smollm2 --parents=runs/quickstart-cpu \\
        --out=runs/lab/constitution

A rule stands in for the critic, so that what is right is known of every answer: at most
`--max_words` words, and of two answers the shorter one. Two lines are compared:

    preferences     rounds of DPO on pairs of the model's own answers, labelled by the rule
    revisions       before these rounds, SFT on answers that the rule revised (SL-CAI)

After arXiv 2212.08073, with DPO in place of PPO. Prompts are questions about documentation from the
corpus in `--parents`, held-out ones for the measurements. Adapters are trained and merged. A run
that was stopped goes on; `--out` gets `table.md` and `figure.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from core import entry
from core.artifacts import read_jsonl
from core.errors import UserError
from core.points import Point, run_in_order
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.lab.experiment import finish_chart

LINES = ("preferences", "revisions")
PROMPT_TOKENS = 128     # room in a row for a prompt with its template
COLUMNS = {"kept": "within the limit, %", "words": "words", "ended": "ended, %",
           "win_rate": "wins against round 0, %", "kl": "KL from round 0, nats"}


class Plan(NamedTuple):
    """What decides the results.

    Attributes:
        model: folder of the chat model.
        corpus: folder whose documentation is asked about.
        num_prompts: of each phase, and of each measurement.
    """

    model: Path
    corpus: Path
    num_prompts: int
    num_rounds: int
    max_new_tokens: int
    max_words: int

    @property
    def asking(self) -> dict[str, Any]:
        """Fields of `constitution`, in both phases."""
        return {"constitution.rule.max_words": self.max_words,
                "constitution.answer.max_new_tokens": self.max_new_tokens,
                "constitution.tasks.documentation": self.num_prompts}

    @property
    def row_length(self) -> int:
        """Of training and of measurements."""
        return PROMPT_TOKENS + self.max_new_tokens


def list_stages(plan: Plan, out: Path) -> list[Point]:
    """The stages of both lines, in their order."""
    supervised = out / "supervised"
    return [
        _stage("align.constitution", "configs/constitution.py:rule", supervised, plan.asking | {
            "constitution.model": plan.model, "constitution.corpus": plan.corpus,
            "constitution.tasks.verifiable": 0, "constitution.makes": "('revisions',)"}),
        _stage("align.sft", "configs/align.py:smollm2_lora", supervised, {
            "sft.model": plan.model, "sft.row_length": plan.row_length,
            "sft.inputs": supervised / "constitution" / "revisions.jsonl"}),
        *(_stage("align.rounds", "configs/rounds.py:rule", out / line, plan.asking | {
            "rounds.model": model, "rounds.corpus": plan.corpus,
            "rounds.num_rounds": plan.num_rounds, "constitution.tasks.arithmetic": 0,
            "dpo.row_length": plan.row_length, "dpo.batch_size": 8, "dpo.lora.rank": 16,
            "measure.tasks.arithmetic": 0, "measure.tasks.documentation": plan.num_prompts,
            "measure.num_prompts": plan.num_prompts, "measure.row_length": plan.row_length,
            "measure.max_new_tokens": plan.max_new_tokens, "measure.run.num_slots": 64,
            "measure.rewards.task": 0.0, "measure.rewards.length": 1.0})
          for line, model in zip(LINES, (plan.model, supervised / "sft")))]


def _stage(module: str, config: str, folder: Path, fields: dict[str, Any]) -> Point:
    return Point({}, folder, (module,), (f"--config={config}", *(
        f"--config.{name}={value}" for name, value in fields.items())))


def read_line(folder: Path, max_words: int) -> list[dict[str, float]]:
    """A row for each round of a line, with the names of `COLUMNS`; shares are in percent."""
    rows = []
    for found in read_jsonl(folder / "rounds" / "rounds.jsonl"):
        answers = read_jsonl(folder / "rounds" / str(found["round"]) / "measured" / "answers.jsonl")
        words_B = np.array([len(answer["answer"].split()) for answer in answers])
        row = {"kept": 100 * np.mean(words_B <= max_words), "words": words_B.mean(),
               "ended": 100 * found["ended_frac"], "kl": found["kl"]}
        rows.append(row | ({"win_rate": 100 * found["win_rate"]} if "win_rate" in found else {}))
    return rows


def format_table(lines: dict[str, Sequence[dict[str, float]]]) -> str:
    """A Markdown table with a line for each round."""
    text = [f"| line | round | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for line, rows in lines.items():
        for number, row in enumerate(rows):
            cells = [f"{row[name]:.1f}" if name in row else "" for name in COLUMNS]
            text.append(f"| {line} | {number} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def draw(path: Path, lines: dict[str, Sequence[dict[str, float]]]) -> None:
    """Draws by round the share of answers within the limit, their words, and the KL."""
    figure, charts = open_figure(path, 3)
    for chart, name in zip(charts, ("kept", "words", "kl")):
        for line, rows in lines.items():
            chart.plot(range(len(rows)), [row[name] for row in rows], marker="o", label=line)
        chart.set_xticks(range(max(map(len, lines.values()))))
        finish_chart(chart, "round", COLUMNS[name])
    save_figure(figure, path)


def read_plan(values: Any) -> Plan:
    """The plan by the flags; raises `UserError` if a flag or a folder is missing."""
    for name, example in (("model", "runs/smollm2"), ("parents", "runs/quickstart-cpu"),
                          ("out", "runs/lab/constitution")):
        if not getattr(values, name):
            raise UserError(f"--{name}", "is missing", f"try --{name}={example}")
    corpus = Path(values.parents).absolute() / "corpus"
    if not corpus.is_dir():
        raise UserError(f"--parents={values.parents}", "has no folder `corpus`",
                        "name a workdir in which data.curate has run")
    return Plan(Path(values.model).absolute(), corpus, values.prompts, values.rounds,
                values.new_tokens, values.max_words)


def main() -> dict[str, Any]:
    """Runs all stages, then writes the table and the figure."""
    values = flags.FLAGS
    plan, out = read_plan(values), Path(values.out).absolute()
    run_in_order("constitution", list_stages(plan, out))
    lines = {line: read_line(out / line, plan.max_words) for line in LINES}
    table = format_table(lines)
    (out / "table.md").write_text(table)
    print(table, end="", flush=True)
    draw(out / "figure.png", lines)
    return {"lines": lines}


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "Folder of a chat model.")
    flags.DEFINE_string("parents", "", "A workdir with a corpus that has documentation.")
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_integer("prompts", 128, "Prompts of each phase.", lower_bound=1)
    flags.DEFINE_integer("rounds", 2, "Rounds of preferences.", lower_bound=1)
    flags.DEFINE_integer("new_tokens", 48, "The longest answer, in tokens.", lower_bound=1)
    flags.DEFINE_integer("max_words", 16, "Words of an answer that the rule allows.", lower_bound=1)
    entry.run(main)
