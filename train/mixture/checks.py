"""The gain of a mixture over another, measured with runs of the same seeds on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.progress import log
from eval.statistics import mean_and_stderr
from train.mixture.runs import ProxyRun, Search, plan_run, read_losses, train_unfinished
from train.mixture.shares import Shares


def check_mixture(search: Search, best: Shares, natural: Shares, found: dict[str, Any]) -> None:
    """Trains on a mixture and on the natural one, and measures the gain.

    Args:
        found: what is known of the mixture; gets `check`, unless there are no checks, and further
            `warnings`.
    """
    checks = {name: check_runs(search, name, shares)
              for name, shares in (("natural", natural), ("best", best))}
    runs = [run for of_name in checks.values() for run in of_name]
    if not runs:
        found["warnings"].append("the gain of this mixture is not measured: raise "
                                 "--config.checks.num_seeds")
        return
    train_unfinished(search, runs)
    losses = {name: read_losses(search, of_name) for name, of_name in checks.items()}
    check = measure_gain(losses["natural"], losses["best"])
    found["check"] = check | {"losses": {name: rows.tolist() for name, rows in losses.items()}}
    found["warnings"] += warn_of_gain(check, "checks.num_seeds")
    log(f"{search.name}: {show_gain(check, search.metric, 'natural')}")


def check_runs(search: Search, name: str, shares: Shares) -> list[ProxyRun]:
    """Plans a mixture's runs, one for each of `checks.num_seeds`.

    Their seeds are the same for all mixtures, and not that of the search's own runs.
    """
    first = search.config.pretrain.seed + 1
    return [plan_run(search, f"checks/{name},seed={seed}", "check", shares,
                     {"pretrain.seed": str(seed)})
            for seed in range(first, first + search.config.checks.num_seeds)]


def measure_gain(baseline: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """How much lower losses are than others of the same seeds.

    Returns:
        The means `baseline` and `loss`, and `gain`, that of the differences, with its `stderr`,
        None for one seed.
    """
    gain, stderr = mean_and_stderr(np.subtract(baseline, losses), "losses")
    return {"baseline": float(np.mean(baseline)), "loss": float(np.mean(losses)), "gain": gain,
            "stderr": stderr if len(losses) > 1 else None}


def show_gain(check: Mapping[str, Any], metric: str, other: str) -> str:
    """The sentence of a measured gain over the `other` mixture."""
    error = ("from one seed" if check["stderr"] is None
             else f"with a standard error of {check['stderr']:.4f}")
    return (f"{metric} is {check['loss']:.4f} on this mixture and {check['baseline']:.4f} on the "
            f"{other} one: a gain of {check['gain']:.4f}, {error}")


def warn_of_gain(check: Mapping[str, Any], field: str) -> list[str]:
    """A warning where the measured gain may be chance; `field` is that of the number of seeds."""
    if check["stderr"] is None:
        return ["the gain is measured with one seed, so its error is not known: raise "
                f"--config.{field}"]
    if check["gain"] <= 2 * check["stderr"]:
        return [f"the measured gain of {check['gain']:.4f} is at most twice its standard error of "
                f"{check['stderr']:.4f}: this mixture may be no better"]
    return []
