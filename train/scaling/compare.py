"""Sets of runs at equal compute, and how much more compute one needs for another's losses.

The curve of a set is the loss of its best size by budget, C = 6 N D. The compute multiplier at a
loss is the budget at which the other set's curve reaches it, over the budget at which its own does:
2 means that the other needs twice the compute. It is taken where both curves lie within the budgets
of their runs, so that nothing is extrapolated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from train.scaling.checks import check_runs
from train.scaling.forms import Form, optimal_sizes
from train.scaling.report import describe_constants, spread
from train.scaling.runs import Runs
from train.scaling.surface import Fit, fit_law

NUM_LOSSES = 7
HALVINGS = 60       # of the interval that holds the logarithm of a budget
LOG_FLOPS = (0.0, 115.0)    # 1 to 1e50


@dataclasses.dataclass(frozen=True)
class Side:
    """One set of runs with its law.

    Attributes:
        warnings: what is doubtful about the runs.
    """

    name: str
    runs: Runs
    fit: Fit
    warnings: Sequence[str]

    def losses_at(self, flops_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Losses [R] of the best sizes for budgets, and those of the bootstrap samples [S, R]."""
        form = self.fit.form
        return (best_losses(form, self.fit.theta_P, flops_R),
                np.array([best_losses(form, theta_P, flops_R)
                          for theta_P in self.fit.samples_SP]))

    def flops_at(self, loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Budgets [R] at which the best sizes have losses, and the samples' [S, R]."""
        form = self.fit.form
        return (flops_of_losses(form, self.fit.theta_P, loss_R),
                np.array([flops_of_losses(form, theta_P, loss_R)
                          for theta_P in self.fit.samples_SP]))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Multipliers of two sides at common losses.

    Attributes:
        loss_R: losses in descending order.
        flops_R, against_flops_R: budgets at which each side has them.
        samples_SR: multipliers by the bootstrap samples; nan where one has no such loss.
    """

    side: Side
    against: Side
    loss_R: np.ndarray
    flops_R: np.ndarray
    against_flops_R: np.ndarray
    samples_SR: np.ndarray

    @property
    def multiplier_R(self) -> np.ndarray:
        """The other side's budget over the side's own."""
        return self.against_flops_R / self.flops_R


def make_sides(sets: Sequence[tuple[str, Runs]], form: Form) -> list[Side]:
    """Fits the law to sets of runs, of which each has a name.

    Runs that have the names and the tokens of the first set's, as those of two ladders of one plan
    have, are pairs. The bootstrap draws pairs as such: what both laws miss of a pair cancels.

    Raises:
        UserError: see `check_runs`.
    """
    sides: list[Side] = []
    for number, (name, runs) in enumerate(sets):
        warnings = check_runs(runs, form)
        sides.append(Side(name, runs, fit_law(
            form, runs, seed=0 if _are_pairs(sets[0][1], runs) else number), warnings))
    return sides


def _are_pairs(runs: Runs, others: Runs) -> bool:
    return runs.names == others.names and np.array_equal(runs.tokens_R, others.tokens_R)


def compare_sides(side: Side, against: Side) -> Comparison:
    """The multipliers at losses that both sides have within the budgets of their runs.

    Raises:
        UserError: the runs differ in tokenizer, corpus or length of the evaluation, or the two
            curves have no loss in common.
    """
    for field in sorted({*side.runs.origin, *against.runs.origin}):
        kinds = [one.runs.origin.get(field, "not given") for one in (side, against)]
        if kinds[0] != kinds[1]:
            raise UserError(f"--runs and --against differ in {field.replace('_', ' ')}",
                            f"their losses cannot be compared: {kinds[0]}, {kinds[1]}",
                            "train both on the same tokens, or name other runs")
    ends = np.array([one.losses_at(np.array([one.runs.flops_R.min(), one.runs.flops_R.max()]))[0]
                     for one in (side, against)])
    highest, lowest = ends[:, 0].min(), ends[:, 1].max()
    if not lowest < highest:
        raise UserError("--runs and --against", "have no loss in common: " + " and ".join(
            f"{one.name} goes from {high:.4g} to {low:.4g}"
            for one, (high, low) in zip((side, against), ends)),
            "add runs of other budgets, so that both reach the same losses")
    loss_R = np.geomspace(highest, lowest, NUM_LOSSES)
    (own_R, own_SR), (other_R, other_SR) = side.flops_at(loss_R), against.flops_at(loss_R)
    return Comparison(side, against, loss_R, own_R, other_R, other_SR / own_SR)


def best_losses(form: Form, theta_P: np.ndarray, flops_R: np.ndarray) -> np.ndarray:
    """Losses [R] of the best sizes for budgets; nan where a law has no best size."""
    _, alpha, _, beta = form.terms(theta_P)
    if min(alpha, beta) <= 0:
        return np.full(len(flops_R), np.nan)
    with np.errstate(all="ignore"):     # far beyond the runs
        sizes = optimal_sizes(form, theta_P, flops_R)
        return np.exp(form.evaluate(theta_P, np.log(np.stack(sizes, axis=1)))[0])


def flops_of_losses(form: Form, theta_P: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
    """Budgets [R] whose best size has these losses; nan where no budget has.

    The loss falls with the budget, so halving an interval finds it.
    """
    low_R, high_R = (np.full(len(loss_R), end) for end in LOG_FLOPS)
    ends_R = [best_losses(form, theta_P, np.exp(end_R)) for end_R in (low_R, high_R)]
    for _ in range(HALVINGS):
        middle_R = (low_R + high_R) / 2
        is_above_R = best_losses(form, theta_P, np.exp(middle_R)) > loss_R
        low_R, high_R = np.where(is_above_R, middle_R, low_R), np.where(is_above_R, high_R,
                                                                        middle_R)
    is_reached_R = (ends_R[0] >= loss_R) & (loss_R > ends_R[1])
    return np.where(is_reached_R, np.exp(high_R), np.nan)


def describe_comparison(found: Comparison, budgets: Sequence[float]) -> dict[str, Any]:
    """The comparison as plain data: both laws, losses by budget, multipliers by loss and overall.

    The overall multiplier is the geometric mean over the common losses.

    Args:
        budgets: FLOPs at which losses are given beside the common ones.
    """
    sides = {"runs": found.side, "against": found.against}
    log_S = np.log(found.samples_SR).mean(axis=1)
    shares = [float(np.isfinite(sample_S).mean()) for sample_S in found.samples_SR.T]
    return {
        "law": found.side.fit.form.name, "count": found.side.runs.count,
        "sides": {key: {"name": side.name, "runs": len(side.runs.names),
                        "constants": describe_constants(side.fit),
                        "warnings": list(side.warnings)} for key, side in sides.items()},
        "losses": [{"flops": flops, **{
            key: {"loss": float(loss), **spread(sample_S)}
            for key, (loss, sample_S) in at.items()}}
            for flops, at in _losses_by_budget(found, budgets)],
        "multipliers": [
            {"loss": float(loss), "flops": float(own), "against_flops": float(other),
             "multiplier": float(other / own), **spread(sample_S), "samples_frac": share}
            for loss, own, other, sample_S, share in zip(
                found.loss_R, found.flops_R, found.against_flops_R, found.samples_SR.T, shares)],
        "multiplier": {"value": float(np.exp(np.log(found.multiplier_R).mean())),
                       **spread(np.exp(log_S)),
                       "samples_frac": float(np.isfinite(log_S).mean())}}


def _losses_by_budget(found: Comparison, budgets: Sequence[float]) -> list[tuple[float, dict]]:
    """Pairs of a budget and each side's loss with its samples [S]."""
    flops_R = np.unique(np.concatenate([found.flops_R, np.array(budgets, np.float64)]))
    rows: list[tuple[float, dict]] = [(flops, {}) for flops in flops_R.tolist()]
    for key, side in (("runs", found.side), ("against", found.against)):
        loss_R, loss_SR = side.losses_at(flops_R)
        for (_, at), loss, sample_S in zip(rows, loss_R, loss_SR.T):
            at[key] = (loss, sample_S)
    return rows
