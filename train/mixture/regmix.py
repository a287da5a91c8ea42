"""The command `regmix`: a mixture by regression on the losses of small runs on sampled mixtures.

RegMix, arXiv 2407.01492.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from data.tokens.learned_mixture import LossModel, best_mixture, fit_losses, sample_mixtures
from train.mixture.checks import check_mixture
from train.mixture.runs import (
    ProxyRun,
    Search,
    open_search,
    plan_run,
    read_losses,
    refuse_given_shares,
    train_unfinished,
)
from train.mixture.shares import Shares, natural_shares, read_sizes, round_shares
from train.mixture.written import (
    open_folder,
    show_plan,
    show_table,
    write_mixture,
)

MIN_RUNS_PER_DOMAIN = 2     # the fit has two coefficients for each domain
MIN_CORRELATION = 0.7       # of ranks, below which the fit is not to be trusted
Z_95 = 1.96


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The fit of losses over mixtures, and what it predicts.

    Attributes:
        model: the fit.
        losses: [num_runs] of the runs.
        best: shares of the lowest predicted losses.
        predicted: loss by name of a mixture: `best`, `natural`, `uniform`.
    """

    model: LossModel
    losses: np.ndarray
    best: Shares
    predicted: dict[str, float]

    def describe(self) -> dict[str, Any]:
        """The fit's quality: by leaving each run out, its rank correlation with a 95 % interval,
        and its relative error."""
        low, high = rank_interval(self.model.rank_correlation, len(self.losses))
        return {"runs": len(self.losses), "ridge": self.model.ridge,
                "rank_correlation": self.model.rank_correlation,
                "rank_correlation_low": low, "rank_correlation_high": high,
                "relative_error": self.model.relative_error,
                "lowest_loss": float(self.losses.min()), "highest_loss": float(self.losses.max())}


def regmix(values: Any) -> dict[str, Any]:
    """Runs the command with these flags; returns the plan or, in the end, the mixture.

    Raises:
        UserError: the search is refused before anything is trained, or a run failed.
    """
    search = open_search("regmix", values)
    refuse_given_shares(search)
    sizes = read_sizes(search.tokens, "regmix.domains", search.section.domains)
    natural = natural_shares(sizes)
    runs = plan_mixtures(search, natural)
    print(show_plan(runs))
    if values.dry_run:
        return {"runs": len(runs), "natural": natural, "planned": [run.describe() for run in runs]}
    open_folder(search)
    train_unfinished(search, runs)
    fitted = fit_mixtures([run.shares for run in runs], read_losses(search, runs), natural,
                          seed=search.section.seed + 1, max_ratio=search.section.max_ratio)
    found: dict[str, Any] = {"natural": natural, "fit": fitted.describe(),
                             "predicted": fitted.predicted,
                             "runs": [{"run": run.name, "weights": run.shares, "loss": float(loss)}
                                      for run, loss in zip(runs, fitted.losses)],
                             "warnings": warn_of_fit(fitted)}
    print(show_fit(fitted, natural, search.metric))
    check_mixture(search, fitted.best, natural, found)
    return write_mixture(search, "pretrain.mixture", fitted.best, found)


def plan_mixtures(search: Search, natural: Shares) -> list[ProxyRun]:
    """A run on each sampled mixture.

    Raises:
        UserError: there are too few for a fit, none satisfies the bounds, or a run would read a
            domain too often.
    """
    section = search.section
    least = MIN_RUNS_PER_DOMAIN * len(natural)
    if section.num_mixtures < least:
        raise UserError(f"regmix.num_mixtures={section.num_mixtures}",
                        f"are too few for a fit over {len(natural)} domains",
                        f"set --config.regmix.num_mixtures={least} or more")
    try:
        mixtures = sample_mixtures(np.array([*natural.values()]), section.num_mixtures,
                                   seed=section.seed, temperature=section.temperature,
                                   max_ratio=section.max_ratio)
    except ValueError as error:
        raise UserError(f"regmix.max_ratio={section.max_ratio}", str(error),
                        "set --config.regmix.max_ratio") from None
    width = len(str(len(mixtures)))
    return [plan_run(search, f"runs/mixture={number:0{width}d}", "search",
                     round_shares(natural, weights))
            for number, weights in enumerate(mixtures, start=1)]


def fit_mixtures(mixtures: Sequence[Shares], losses: np.ndarray, natural: Shares, *, seed: int,
                 max_ratio: float) -> Fitted:
    """Fits losses over mixtures, and finds the mixture of the lowest predicted loss.

    Args:
        mixtures: of the runs; domains in the order of `natural`.
        losses: [num_runs], positive.
        seed: of the mixtures among which the best are found.
        max_ratio: of a share to the natural one.
    """
    prior = np.array([*natural.values()])
    model = fit_losses(np.array([[shares[name] for name in natural] for shares in mixtures]),
                       losses)
    best = round_shares(natural, best_mixture(model, prior, seed=seed, max_ratio=max_ratio))
    uniform = np.full(len(prior), 1 / len(prior))
    rows = np.array([[best[name] for name in natural], prior, uniform])
    predicted = dict(zip(("best", "natural", "uniform"), model.predict(rows).tolist()))
    return Fitted(model, losses, best, predicted)


def rank_interval(correlation: float, num_runs: int) -> tuple[float, float]:
    """A 95 % interval of Spearman's correlation, by Fisher's transform.

    Its variance there is (1 + r^2 / 2) / (n - 3): Bonett and Wright, Psychometrika 65 (2000).
    """
    center = math.atanh(min(max(correlation, -1 + 1e-9), 1 - 1e-9))
    error = Z_95 * math.sqrt((1 + correlation**2 / 2) / (num_runs - 3))
    return math.tanh(center - error), math.tanh(center + error)


def warn_of_fit(fitted: Fitted) -> list[str]:
    """Warnings where the fit cannot tell the best mixture from others."""
    warnings, model = [], fitted.model
    low, high = rank_interval(model.rank_correlation, len(fitted.losses))
    if model.rank_correlation < MIN_CORRELATION:
        warnings.append(
            f"the leave-one-out rank correlation is {model.rank_correlation:.2f} ({low:.2f} to "
            f"{high:.2f}): the fit hardly orders the mixtures; train more of them with "
            "--config.regmix.num_mixtures, or longer with --config.pretrain.num_steps")
    gain = fitted.predicted["natural"] - fitted.predicted["best"]
    error = model.relative_error * fitted.predicted["natural"]
    if gain < error:
        warnings.append(f"the predicted gain of {gain:.4f} is smaller than the leave-one-out error "
                        f"of {error:.4f}: the best mixture is not told from the natural one")
    return warnings


def show_fit(fitted: Fitted, natural: Shares, metric: str) -> str:
    """The table of shares, and of the predicted losses."""
    cells = [["domain", "natural", "best"]]
    cells += [[name, f"{natural[name]:.4f}", f"{fitted.best[name]:.4f}"] for name in natural]
    cells.append([f"predicted {metric}", *(f"{fitted.predicted[name]:.4f}"
                                           for name in ("natural", "best"))])
    model = fitted.model
    low, high = rank_interval(model.rank_correlation, len(fitted.losses))
    return "\n".join([show_table(cells), f"leave-one-out: rank correlation "
                      f"{model.rank_correlation:.2f} ({low:.2f} to {high:.2f}), error "
                      f"{100 * model.relative_error:.2f} %"])
