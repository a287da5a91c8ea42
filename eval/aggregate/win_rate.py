"""Mean win rate of models over the columns of a table, as HELM has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from eval.aggregate.table import IS_HIGHER_BETTER, Table


@dataclasses.dataclass(frozen=True)
class WinRates:
    """Mean win rates; they change when a model or a column is added.

    Attributes:
        rates: of each model, from 0 to 1; None where none of its columns counts.
        columns: number of columns behind each model's rate.
        skipped: why a column does not count, by "task metric".
    """

    rates: Mapping[str, float | None]
    columns: Mapping[str, int]
    skipped: Mapping[str, str]


def mean_win_rates(table: Table,
                   is_higher_better: Mapping[str, bool] = IS_HIGHER_BETTER) -> WinRates:
    """Of each model the share of other models that it beats, ties counting half, over columns.

    Of a column with n values, a model's win rate is (models strictly beaten + half of those tied)
    over n - 1; of these the mean over the columns that have the model (HELM, arXiv 2211.09110,
    section 5.3 and `stanford-crfm/helm` at 63754d0). Columns whose metric has no known direction,
    or with fewer than two values, are skipped.

    Args:
        is_higher_better: by metric.
    """
    rates: dict[str, list[float]] = {model: [] for model in table.models}
    skipped = {}
    for task, metric in table.columns:
        values = table.column((task, metric))
        if metric not in is_higher_better:
            skipped[f"{task} {metric}"] = "its direction is not known"
        elif len(values) < 2:
            skipped[f"{task} {metric}"] = "it has fewer than two values"
        else:
            sign = 1 if is_higher_better[metric] else -1
            array = sign * np.array(list(values.values()))
            for model, value in zip(values, array):
                beaten, tied = int(np.sum(array < value)), int(np.sum(array == value)) - 1
                rates[model].append((beaten + tied / 2) / (len(array) - 1))
    return WinRates({model: float(np.mean(found)) if found else None
                     for model, found in rates.items()},
                    {model: len(found) for model, found in rates.items()}, skipped)
