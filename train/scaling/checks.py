"""What makes runs unfit for a law, refused, or doubtful, reported."""

from __future__ import annotations

import numpy as np
from scipy import stats

from core.errors import UserError
from train.scaling.forms import FLOPS_PER_PARAM, Form
from train.scaling.runs import Runs

SPARE_RUNS = 2      # beyond the parameters of a law
MIN_SIZES = 3       # different values of each input
MIN_RANGE = 3.0     # of compute, largest over smallest
MAX_CORRELATION = 0.999     # of log N and log D
BYTES_RATIO = (0.15, 0.5)   # of FLOPs to 6 N D, where tokens are bytes, of 2 to 6 to a token
PF_DAY_FLOPS = 8.64e19
LOW_RATIO, HIGH_RATIO = 0.7, 2.0        # where an exact count of FLOPs may lie
TOKENS_PER_PARAM = (1e-3, 1e7)      # outside of which no model is trained
WORSE = 1.02        # a larger loss than that of a smaller run on fewer tokens


def check_runs(runs: Runs, form: Form) -> list[str]:
    """Refuses runs that cannot decide the law; returns what is doubtful about them.

    Raises:
        UserError: units are swapped, losses rise with compute, or as `check_sizes`.
    """
    check_sizes(runs, form)
    warnings, num_runs = _check_units(runs), len(runs.names)
    correlation = float(stats.spearmanr(runs.flops_R, runs.loss_R).statistic)
    if correlation >= 0:
        raise UserError(f"{num_runs} runs", "have losses that rise with compute (rank correlation "
                        f"{correlation:.2f})", "check the column of the loss: it must fall as "
                        "models improve")
    return warnings + _doubts(runs, correlation)


def check_sizes(runs: Runs, form: Form) -> None:
    """Refuses runs whose sizes cannot decide the law, whatever their losses.

    Raises:
        UserError: runs are too few or too much alike.
    """
    num_runs, need = len(runs.names), len(form.names) + SPARE_RUNS
    if num_runs < need:
        raise UserError(f"{num_runs} runs", f"are too few for the {len(form.names)} parameters of "
                        f"the law {form.name}", f"add runs until there are {need}, spread over "
                        "sizes and budgets")
    spread = runs.flops_R.max() / runs.flops_R.min()
    if spread < MIN_RANGE:
        raise UserError(f"{num_runs} runs", "have one budget only: their compute differs by a "
                        f"factor of {spread:.2f}", "add runs of other budgets, as a law along "
                        "compute needs at least two, far apart")
    for name in form.inputs:
        if (num := len(np.unique(np.round(np.log(runs.column(name)), 6)))) < MIN_SIZES:
            raise UserError(f"{num_runs} runs", f"have only {num} different values of {name}",
                            f"add runs until there are {MIN_SIZES}")
    if len(form.inputs) > 1:
        together = np.corrcoef(np.log(runs.params_R), np.log(runs.tokens_R))[0, 1]
        if abs(together) > MAX_CORRELATION:
            raise UserError(f"{num_runs} runs", "have tokens that follow from their parameters, so "
                            "the effects of the two cannot be told apart",
                            "add runs with other tokens per parameter")


def _check_units(runs: Runs) -> list[str]:
    """Compares FLOPs with 6 N D, and tokens with parameters."""
    ratio_R = runs.flops_R / (FLOPS_PER_PARAM * runs.params_R * runs.tokens_R)
    ratio = float(np.median(ratio_R))
    what = f"FLOPs of training, {ratio:.3g} times 6 x params x tokens"
    days = ratio * PF_DAY_FLOPS
    if LOW_RATIO < days < HIGH_RATIO:
        raise UserError(what, "they are in PF-days", "multiply that column by 8.64e19")
    if BYTES_RATIO[0] <= ratio <= BYTES_RATIO[1]:
        raise UserError(what, "the tokens may be bytes",
                        "give tokens, or leave the column of FLOPs out")
    if not 0.1 < ratio < 20:
        raise UserError(what, "one of the three is in another unit",
                        "give counts of parameters and tokens, and FLOPs")
    per_param = float(np.median(runs.tokens_R / runs.params_R))
    if not TOKENS_PER_PARAM[0] < per_param < TOKENS_PER_PARAM[1]:
        raise UserError(f"{per_param:.3g} tokens per parameter", "one of params, tokens and flops "
                        "is in another unit or in another's column", "give counts of parameters "
                        "and tokens, and FLOPs; a PF-day is 8.64e19 FLOPs")
    if not LOW_RATIO < ratio < HIGH_RATIO:
        return [f"{what}: budgets are forecast by C = 6 N D"]
    return []


def _doubts(runs: Runs, correlation: float) -> list[str]:
    warnings = []
    if correlation > -0.5:
        warnings.append(f"losses hardly fall with compute (rank correlation {correlation:.2f})")
    params_RR = runs.params_R[:, None] >= runs.params_R
    tokens_RR = runs.tokens_R[:, None] >= runs.tokens_R
    worse_R = (params_RR & tokens_RR & (runs.loss_R[:, None] > WORSE * runs.loss_R)).any(axis=1)
    if worse_R.any():
        first = runs.names[int(np.argmax(worse_R))]
        warnings.append(f"{int(worse_R.sum())} runs are over 2 % worse than one with fewer "
                        f"parameters and fewer tokens, the first is {first}: they may not be tuned")
    unknown = [name for name in ("tokenizer", "corpus", "eval length")
               if name.replace(" ", "_") not in runs.origin]
    if unknown:
        warnings.append(f"not known whether all runs have the same {', '.join(unknown)}")
    return warnings
