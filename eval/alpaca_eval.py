"""AlpacaEval 2: win rates against a baseline, and what they would be at equal lengths.

    python -m eval.alpaca_eval --annotations=annotations.csv.gz --difficulty=difficulty.csv \\
        --gamed=gamed_baselines.csv.gz --out=runs/alpaca
    python -m eval.alpaca_eval --annotations=annotations.json --published=leaderboard.csv

`--annotations` is a file or folder of a judge's preferences between a model's answers and a
baseline's (`eval.judges.annotations` has the columns); `eval.judge` writes one as
`annotations.jsonl`. The length-controlled win rate is that of arXiv 2404.04475. It equals the
leaderboard's only with the difficulties of the instructions and the comparisons of the gamed
baselines; what was left out is named in `terms`. With `--published` each row is compared with a
leaderboard. Writes `leaderboard.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import write_jsonl
from core.errors import UserError
from core.progress import Progress
from data.layouts.faults import Faults
from eval.judges.annotations import (
    Annotation,
    compare,
    read_annotations,
    read_difficulties,
    read_leaderboard,
)
from eval.judges.length_control import NUM_FOLDS, Comparisons, control_length
from eval.statistics import mean_and_stderr

COMPARED = ("win_rate", "standard_error", "length_controlled_winrate", "lc_standard_error")


def measure(annotations: Sequence[Annotation], difficulties: Mapping[str, float],
            gamed: Sequence[Comparisons]) -> dict[str, Any]:
    """A model's row of the leaderboard; shares are in percent, as there.

    Returns:
        The columns of the published leaderboard, draws counting half; and `lc_fit_stderr`, which
        has the error of the fit that `lc_standard_error` lacks, `strength` and `coefficients`. The
        length-controlled ones are None of fewer than five comparisons.
    """
    compared = compare(annotations, difficulties)
    shares = compared.preferences
    mean, stderr = mean_and_stderr(shares, "preferences")
    wins, losses = int(np.sum(shares > 0.5)), int(np.sum(shares < 0.5))
    draws = len(shares) - wins - losses
    row = {"win_rate": 100 * mean, "standard_error": 100 * stderr, "n_wins": wins,
           "n_wins_base": losses, "n_draws": draws, "n_total": len(shares),
           "discrete_win_rate": 100 * (wins + draws / 2) / len(shares),
           "avg_length": int(compared.lengths.mean())}
    if len(shares) < NUM_FOLDS:
        return row | {"length_controlled_winrate": None}
    fitted = control_length(compared, gamed)
    return row | {"length_controlled_winrate": 100 * fitted.win_rate,
                  "lc_standard_error": 100 * fitted.spread_stderr,
                  "lc_fit_stderr": 100 * fitted.stderr, "strength": fitted.strength,
                  "coefficients": fitted.coefficients}


def measure_file(annotations: Path, difficulty: Path | None, gamed: Path | None,
                 published: Path | None, out: Path | None) -> dict[str, Any]:
    """Measures every model of a file, the best length-controlled win rate first.

    Args:
        difficulty, gamed: None leaves these terms out of the regression.
        published: a leaderboard to compare with; None compares with none.
        out: folder that is written; None writes none.

    Raises:
        UserError: a file cannot be read, or as `read_annotations`.
    """
    faults = Faults("annotations")
    models = read_annotations(annotations, faults)
    faults.report()
    difficulties = read_difficulties(difficulty) if difficulty else {}
    tied = [] if gamed is None else [
        compare(rows, difficulties)
        for rows in read_annotations(gamed, Faults("gamed", "fail")).values()]
    leaderboard = read_leaderboard(published) if published else {}
    rows = []
    with Progress("alpaca_eval", len(models), "models") as progress:
        for model, own in models.items():
            row = {"model": model} | measure(own, difficulties, tied)
            rows.append(row | _differences(row, leaderboard.get(model)))
            progress.update(len(rows))
    rows.sort(key=_order)
    print(format_table(rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / "leaderboard.jsonl", rows)
    terms = ["length"] + ["difficulty"] * bool(difficulty) + ["gamed"] * bool(gamed)
    return {"models": {row["model"]: {name: row.get(name) for name in COMPARED} for row in rows},
            "terms": terms, "left_out": dict(faults.counts), "compared": sum(
                "differences" in row for row in rows), "largest_differences": _largest(rows)}


def _order(row: Mapping[str, Any]) -> float:
    controlled = row["length_controlled_winrate"]
    return -(row["win_rate"] if controlled is None else controlled)


def _differences(row: Mapping[str, Any], published: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ours less the published, of the columns that both have."""
    if published is None:
        return {}
    return {"differences": {
        name: row[name] - float(published[name]) for name in COMPARED
        if published.get(name) not in (None, "") and row.get(name) is not None}}


def _largest(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        for name, difference in row.get("differences", {}).items():
            found[name] = max(found.get(name, 0.0), abs(difference))
    return found


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The leaderboard as lines of text, with the published value of the last column."""
    width = max(len(row["model"]) for row in rows)
    lines = [f"{'model':{width}} win rate  error  at equal lengths  published"]
    for row in rows:
        controlled = row["length_controlled_winrate"]
        shown = "-" if controlled is None else f"{controlled:.2f}"
        difference = row.get("differences", {}).get("length_controlled_winrate")
        published = "" if difference is None else f"{controlled - difference:.2f}"
        lines.append(f"{row['model']:{width}} {row['win_rate']:8.2f} {row['standard_error']:6.2f} "
                     f"{shown:>17} {published:>10}".rstrip())
    return "\n".join(lines)


def main() -> dict[str, Any]:
    """Reads the flags and measures."""
    values = flags.FLAGS
    if not values.annotations:
        raise UserError("--annotations", "is missing", "name a file: --annotations=PATH")
    paths = [Path(values[name].value) if values[name].value else None
             for name in ("difficulty", "gamed", "published", "out")]
    return measure_file(Path(values.annotations), *paths)


if __name__ == "__main__":
    flags.DEFINE_string("annotations", None, "File or folder of a judge's preferences.")
    flags.DEFINE_string("difficulty", None, "File of the instructions' difficulties.")
    flags.DEFINE_string("gamed", None, "File of preferences for the gamed baselines.")
    flags.DEFINE_string("published", None, "Leaderboard to compare with.")
    flags.DEFINE_string("out", None, "Folder that is written.")
    entry.run(main)
