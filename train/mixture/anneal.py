"""The command `anneal`: shares for annealing, by the gain of short runs that end on each domain.

A finished model is trained on for a few steps with a learning rate that falls to 0, on its usual
mixture with a share of one domain (arXiv 2407.21783, section 3.1.3; arXiv 2406.03476). The gain of
the domain is the loss after the same steps on the usual mixture alone, less that.

The rule: with p proportional to the gains that exceed their standard errors, the shares are
(1 - share) times the usual mixture plus share times p. They lie among the mixtures that were tried,
and runs on them are trained too. Their gain is over the runs that chose them, so it is slightly too
high where these were unlucky.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.artifacts import parent
from core.errors import UserError
from core.progress import log
from data.domains import by_domain, file_stem
from train.mixture.checks import measure_gain, show_gain, warn_of_gain
from train.mixture.runs import (
    ProxyRun,
    Search,
    open_search,
    plan_run,
    read_losses,
    train_unfinished,
)
from train.mixture.shares import Shares, natural_shares, read_sizes, round_shares
from train.mixture.written import open_folder, show_plan, show_table, write_mixture

USUAL, RESULT = "usual", "result"   # names of runs that are no domain's


@dataclasses.dataclass(frozen=True)
class Anneals:
    """The runs of a search.

    Attributes:
        usual: shares of the mixture that is annealed on without any domain's share.
        base: the run that gives the first parameters; None where they are a finished model's.
        source: folder of the first parameters.
        by_name: runs of each domain, and `USUAL`, one for each seed.
    """

    usual: Shares
    base: ProxyRun | None
    source: str
    by_name: dict[str, list[ProxyRun]]

    @property
    def runs(self) -> list[ProxyRun]:
        """All runs that are annealed."""
        return [run for runs in self.by_name.values() for run in runs]


def anneal(values: Any) -> dict[str, Any]:
    """Runs the command with these flags; returns the plan or, in the end, the shares.

    Raises:
        UserError: the search is refused before anything is trained, or a run failed.
    """
    search = open_search("anneal", values)
    planned = plan_anneals(search)
    first = [planned.base] if planned.base else []
    print(show_plan([*first, *planned.runs]))
    if values.dry_run:
        return {"runs": len(first) + len(planned.runs), "usual": planned.usual,
                "planned": [run.describe() for run in (*first, *planned.runs)]}
    open_folder(search)
    train_unfinished(search, first)
    if first:
        read_losses(search, first)  # refuses to go on without it
    train_unfinished(search, planned.runs)
    losses = {name: read_losses(search, runs) for name, runs in planned.by_name.items()}
    gains = {name: measure_gain(losses[USUAL], rows) for name, rows in losses.items()
             if name != USUAL}
    shares = choose_shares(planned.usual, gains, search.section.share)
    found: dict[str, Any] = {
        "usual": planned.usual, "base": planned.source, "gains": gains,
        "losses": {name: rows.tolist() for name, rows in losses.items()}, "warnings": []}
    check_result(search, planned, shares, losses[USUAL], found)
    print(show_gains(planned.usual, shares, gains, search.metric))
    return write_mixture(search, "pretrain.anneal_mixture", shares, found)


def plan_anneals(search: Search) -> Anneals:
    """The runs on each domain, and on the usual mixture alone.

    Raises:
        UserError: the model is missing, or a run would read a domain too often.
    """
    section, pretrain = search.section, search.config.pretrain
    sizes = read_sizes(search.tokens, "anneal.domains", section.domains, with_best=True)
    usual, base = usual_shares(search), None
    if section.base:
        folder, _ = parent(search.parents, "anneal.base", section.base)
    else:
        constant = {"pretrain.optimizer.schedule": "constant"}
        base = plan_run(search, "base", "base", usual, constant)
        folder = base.folder
    source = str(folder.absolute())
    mixed = {USUAL: usual} | {name: add_share(usual, {name: 1.0}, section.share)
                              for name in sizes}
    if {USUAL, RESULT} & sizes.keys():
        raise UserError("anneal.domains", f"a domain is called {USUAL} or {RESULT}, as a run is",
                        "name the others with --config.anneal.domains")
    seeds = range(pretrain.seed + 1, pretrain.seed + 1 + section.num_seeds)
    return Anneals(usual, base, source, {
        name: [plan_anneal(search, source, name, shares, seed) for seed in seeds]
        for name, shares in mixed.items()})


def usual_shares(search: Search) -> Shares:
    """The shares that the section pretrain gives, or else the natural ones."""
    given = {name: share for name, share in by_domain(search.config.pretrain.mixture).items()
             if share}
    if given:
        sizes = read_sizes(search.tokens, "pretrain.mixture", sorted(given), with_best=True,
                           least=1)
        return round_shares(sizes, np.array([given[name] for name in sizes]))
    return natural_shares(read_sizes(search.tokens, "pretrain.mixture", (), least=1))


def plan_anneal(search: Search, source: str, name: str, shares: Shares, seed: int) -> ProxyRun:
    """A run from the parameters in `source`, whose learning rate falls to 0.

    Its seed decides the order of the data alone, and is not that of a base trained here.
    """
    section = search.section
    rate = repr(float(section.learning_rate))
    return plan_run(search, f"runs/{file_stem(name)},seed={seed}", name, shares, {
        "pretrain.init_from": source, "pretrain.seed": str(seed),
        "pretrain.num_steps": str(section.num_steps),
        "pretrain.optimizer.learning_rate": rate, "pretrain.optimizer.adam_learning_rate": rate,
        "pretrain.optimizer.schedule": "linear", "pretrain.optimizer.warmup_steps": "0",
        "pretrain.optimizer.final_frac": "0.0"})


def add_share(usual: Shares, added: Mapping[str, float], share: float) -> Shares:
    """(1 - share) times a mixture plus `share` times another, whose weights sum to 1."""
    names = sorted(usual.keys() | {name for name in added if added[name]})
    return round_shares(names, np.array([
        (1 - share) * usual.get(name, 0.0) + share * added.get(name, 0.0) for name in names]))


def choose_shares(usual: Shares, gains: Mapping[str, Mapping[str, Any]], share: float) -> Shares:
    """The shares by the rule of this module; the usual ones where no gain exceeds its error.

    Args:
        gains: of each domain, as `measure_gain` gives them.
    """
    counted = {name: found["gain"] for name, found in gains.items()
               if found["gain"] > (found["stderr"] or 0.0)}
    total = sum(counted.values())
    return add_share(usual, {name: gain / total for name, gain in counted.items()},
                     share if counted else 0.0)


def check_result(search: Search, planned: Anneals, shares: Shares, usual_losses: np.ndarray,
                 found: dict[str, Any]) -> None:
    """Anneals on the shares, and measures their gain.

    Args:
        found: gets `check` and further `warnings`.
    """
    if shares == planned.usual:
        found["warnings"].append("no domain gains more than its standard error: the shares are "
                                 "those of the usual mixture")
        return
    runs = [plan_anneal(search, planned.source, RESULT, shares, run.config.pretrain.seed)
            for run in planned.by_name[USUAL]]
    train_unfinished(search, runs)
    losses = read_losses(search, runs)
    check = measure_gain(usual_losses, losses)
    found["check"] = check | {"losses": losses.tolist()}
    found["warnings"] += warn_of_gain(check, "anneal.num_seeds")
    log(f"anneal: {show_gain(check, search.metric, USUAL)}")


def show_gains(usual: Shares, shares: Shares, gains: Mapping[str, Mapping[str, Any]],
               metric: str) -> str:
    """The table of the domains' gains and shares."""
    cells: list[Sequence[str]] = [["domain", "usual", metric, "gain", "error", "share"]]
    for name in sorted({*usual, *shares, *gains}):
        found = gains.get(name)
        numbers = ["", "", ""] if found is None else [
            f"{found['loss']:.4f}", f"{found['gain']:+.4f}",
            "?" if found["stderr"] is None else f"{found['stderr']:.4f}"]
        cells.append([name, f"{usual.get(name, 0.0):.4f}", *numbers,
                      f"{shares.get(name, 0.0):.4f}"])
    return show_table(cells)
