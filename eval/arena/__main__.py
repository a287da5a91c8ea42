"""Ratings of models from votes between their answers: a leaderboard with intervals, as a page.

    python -m eval.arena votes.jsonl --out=runs/arena
    python -m eval.arena votes.jsonl --out=runs/arena --anchor=base=1000 --style_reduction=mean

Votes are lines of a file, or of the files of a folder; `eval.arena.votes` says which. Rankings of
several answers count as a comparison of every two. Ratings are Bradley-Terry's, by maximum
likelihood, with sandwich and bootstrap intervals, only among models that votes connect; online Elo
stands beside them. Where the style of answers is known, from their texts or beside the votes,
there are ratings at equal style as well. Prints the leaderboard, and writes `arena.json` and
`arena.html` with all figures: win rates, order bias, categories, what the votes are worth and how
far the voters agree, and which pairs to show next.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import write_json
from core.errors import UserError
from core.page.markup import visible
from core.pairs import parse_pairs
from core.progress import log
from data.layouts.faults import Faults
from eval.arena.page import render_arena
from eval.arena.report import Settings, make_report
from eval.arena.style import REDUCTIONS, Penalty
from eval.arena.votes import read_votes

ROW = "{rank:>4}  {model:{width}} {rating:8.1f} ({low:.1f} to {high:.1f}) {games:>8,}"


def rate_file(path: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Rates the models of a file or folder of votes, and writes `arena.json` and `arena.html`.

    Returns:
        The figures for the last line.

    Raises:
        UserError: there is no vote, or by the settings.
    """
    faults = Faults("arena")
    votes = read_votes(path, faults)
    faults.report()
    report = {"inputs": str(path), "left_out": dict(faults.counts)} | make_report(votes, settings)
    _announce(report)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "arena.json", report)
    (out / "arena.html").write_text(render_arena(report), encoding="utf-8")
    print(format_leaderboard(report))
    order, agreement = report["order"], report["quality"]["agreement"]
    return {"page": str(out / "arena.html"), "votes": report["votes"],
            "left_out": report["left_out"], "components": len(report["components"]),
            "unrated": report["unrated"],
            "ratings": {row["model"]: round(row["rating"], 2) for row in report["models"]},
            **{name: order[name] and order[name]["value"] for name in ("first_shown",
                                                                       "consistency")},
            "agreement": agreement and agreement["raw"]["value"]}


def format_leaderboard(report: dict[str, Any]) -> str:
    """The leaderboard as lines of text, with a heading for each of several components."""
    width = max(len(visible(row["model"])) for row in report["models"])
    lines = []
    for number, part in enumerate(report["components"]):
        if len(report["components"]) > 1:
            lines.append(f"component {number + 1}: {part['votes']:,} votes")
        lines += [ROW.format(width=width, **row | {"model": visible(row["model"])})
                  for row in report["models"] if row["component"] == number]
    return "\n".join(lines)


def _announce(report: dict[str, Any]) -> None:
    """Logs what limits the ratings."""
    components = report["components"]
    if len(components) > 1:
        named = "; ".join(_list(part["models"]) for part in components)
        log(f"arena: no vote connects these {len(components)} groups of models, so ratings compare "
            f"only within each: {named}")
    if report["unrated"]:
        log(f"arena: no vote that counts, so no rating: {_list(report['unrated'])}")
    for part in components:
        if part["prior_ties"]:
            log("arena: the likelihood has no maximum, as the votes hold no loss or tie of "
                f"{_list(part['undefeated'])} against the others, and no win or tie of "
                f"{_list(part['winless'])}; each of the {len(part['models'])} models is given "
                f"{part['prior_ties']:g} tie with an opponent of average strength")


def _list(names: Sequence[str]) -> str:
    return visible(", ".join(names))


def _read_rating(text: str) -> float:
    """A number; raises `ValueError` for what is none, or not finite."""
    rating = float(text)
    if not math.isfinite(rating):
        raise ValueError
    return rating


def main(words: Sequence[str]) -> dict[str, Any]:
    """Reads the flags and rates."""
    values = flags.FLAGS
    if len(words) != 1:
        raise UserError(" ".join(words) or "no file", "one file or folder of votes is needed",
                        "write `python -m eval.arena VOTES --out=DIR`")
    if not values.out:
        raise UserError("--out", "is missing", "name a folder: --out=DIR")
    penalty = Penalty(values.style_penalty, values.style_reduction, values.strength_penalty)
    anchors = parse_pairs("anchor", values.anchor, _read_rating)
    return rate_file(Path(words[0]), Path(values.out), Settings(
        penalty, anchors, values.num_samples, values.seed, values.instant_secs))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder for arena.json and arena.html.")
    flags.DEFINE_list("anchor", [], "Rating that a model is given, MODEL=RATING; the models that "
                      "votes connect with it shift as much. By default their mean is 1000.")
    flags.DEFINE_integer("num_samples", 1000, "Samples of the bootstrap.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Of the bootstrap.", lower_bound=0)
    flags.DEFINE_float("style_penalty", 0.5, "Style control: half of it times the squared "
                       "coefficients is added to the loss.", lower_bound=0.0)
    flags.DEFINE_enum("style_reduction", REDUCTIONS[0], REDUCTIONS, "Style control: the loss is "
                      "the sum or the mean over comparisons.")
    flags.DEFINE_float("strength_penalty", 0.0, "Style control: the same as --style_penalty, on "
                       "the models' strengths in log odds.", lower_bound=0.0)
    flags.DEFINE_float("instant_secs", 2.0, "Votes that took less are counted as instant.",
                       lower_bound=0.0)
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
