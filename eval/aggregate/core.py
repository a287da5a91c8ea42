"""Centred means, and CORE of DataComp-LM with the name of its table of baselines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from core.errors import UserError
from eval.aggregate.table import Score
from eval.statistics import Z_95


class Baseline(NamedTuple):
    """Accuracy of guessing on a task, in percent, by table, and the number of items."""

    v0: float
    v1: float
    v2: float
    items: int


# Of `mlfoundations/dclm` at 361714b: v1 is eval/eval_meta_data_v1.csv, v2 eval/eval_meta_data.csv,
# which today's code reads. v0 differs from v1 in four tasks; it reproduces the older rows of
# assets/DCLM_model_database.csv, and is inferred from them. (eval/eval_meta_data.csv counts 2376
# items for arc_challenge, as for arc_easy; the file has 1172.)
BASELINES = {
    "hellaswag_zeroshot": Baseline(25.0, 25.0, 25.0, 10042),
    "jeopardy": Baseline(0.0, 0.0, 0.0, 2117),
    "bigbench_qa_wikidata": Baseline(0.0, 0.0, 0.0, 20321),
    "arc_easy": Baseline(25.0, 25.0, 25.0, 2376),
    "arc_challenge": Baseline(25.0, 25.0, 25.0, 1172),
    "copa": Baseline(50.0, 50.0, 50.0, 100),
    "commonsense_qa": Baseline(25.0, 20.0, 40.3, 1221),
    "piqa": Baseline(50.0, 50.0, 50.0, 1838),
    "openbook_qa": Baseline(25.0, 25.0, 25.0, 500),
    "lambada_openai": Baseline(0.0, 0.0, 0.0, 5153),
    "hellaswag": Baseline(25.0, 25.0, 25.0, 10042),
    "winograd": Baseline(50.0, 50.0, 50.0, 273),
    "winogrande": Baseline(50.0, 50.0, 50.0, 1267),
    "bigbench_language_identification": Baseline(25.0, 9.1, 25.0, 10000),
    "bigbench_dyck_languages": Baseline(0.0, 0.0, 0.0, 1000),
    "agi_eval_lsat_ar": Baseline(25.0, 20.0, 25.0, 230),
    "bigbench_cs_algorithms": Baseline(0.0, 0.0, 0.0, 1320),
    "bigbench_operators": Baseline(0.0, 0.0, 0.0, 210),
    "bigbench_repeat_copy_logic": Baseline(0.0, 0.0, 0.0, 32),
    "squad": Baseline(0.0, 0.0, 0.0, 10570),
    "coqa": Baseline(0.0, 0.0, 0.0, 7983),
    "boolq": Baseline(50.0, 62.0, 62.0, 3270),
}
TABLES = ("v0", "v1", "v2")


@dataclasses.dataclass(frozen=True)
class CenteredMean:
    """A mean of centred scores.

    Attributes:
        value: the mean over the tasks that are there.
        stderr: from those of the scores; None where one of them has none.
        table: name of the table of baselines.
        tasks: number of tasks in the mean.
        expected: number of tasks in the whole aggregate.
        missing: the others, by name.
        centered: each task's centred score.
    """

    value: float
    stderr: float | None
    table: str
    tasks: int
    expected: int
    missing: tuple[str, ...]
    centered: Mapping[str, float]

    @property
    def coverage(self) -> str:
        """How many of the tasks there are, as in `19 of 22`."""
        return f"{self.tasks} of {self.expected}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The normal 95 % interval, over items; seeds of training vary more (about 0.006)."""
        if self.stderr is None:
            return None
        return self.value - Z_95 * self.stderr, self.value + Z_95 * self.stderr


def center(value: float, baseline: float) -> float:
    """(value - baseline) / (1 - baseline): 0 for guessing, 1 for all right, below 0 for worse.

    Args:
        value, baseline: shares, from 0 to 1; the baseline is less than 1.
    """
    return (value - baseline) / (1 - baseline)


def centered_mean(scores: Mapping[str, Score], baselines: Mapping[str, float],
                  table: str) -> CenteredMean:
    """Mean of centred scores over those tasks of `baselines` that have a score.

    Args:
        scores: by task, from 0 to 1; of other tasks they are left out.
        baselines: by task, from 0 to 1.
        table: the baselines' name.

    Raises:
        UserError: no task has a score, one is not from 0 to 1, or a baseline is not below 1.
    """
    for task, baseline in baselines.items():
        if not 0 <= baseline < 1:
            raise UserError(f"baseline of {task}", f"{baseline} is not from 0 to below 1",
                            "give a share, not percent")
    present = {task: scores[task] for task in baselines if task in scores}
    for task, score in present.items():
        if not 0 <= score.value <= 1:
            raise UserError(f"score of {task}", f"{score.value} is not from 0 to 1",
                            "give a share, not percent")
    if not present:
        raise UserError(f"table {table}", f"none of its {len(baselines)} tasks has a score",
                        f"measure some of {', '.join(list(baselines)[:4])}, ...")
    centered = {task: center(score.value, baselines[task]) for task, score in present.items()}
    errors = [None if score.stderr is None else score.stderr / (1 - baselines[task])
              for task, score in present.items()]
    num = len(present)
    stderr = None if None in errors else math.sqrt(math.fsum(e**2 for e in errors)) / num
    return CenteredMean(math.fsum(centered.values()) / num, stderr, table, num, len(baselines),
                        tuple(task for task in baselines if task not in present), centered)


def core(scores: Mapping[str, Score], table: str) -> CenteredMean:
    """CORE of arXiv 2406.11794, section 3.4: the centred mean over 22 tasks, or those there are.

    Three tables of baselines circulate, and CORE differs by up to 0.03 between them: a value
    without the name of its table cannot be compared.

    Args:
        scores: accuracies by the tasks' names in `BASELINES`.
        table: `v0`, `v1` or `v2`; see `BASELINES`.

    Raises:
        UserError: the table is unknown, or as `centered_mean`.
    """
    if table not in TABLES:
        raise UserError(f"table={table!r}", "is no table of baselines",
                        f"choose among {', '.join(TABLES)}")
    return centered_mean(scores, {task: getattr(row, table) / 100
                                  for task, row in BASELINES.items()}, f"DCLM {table}")
