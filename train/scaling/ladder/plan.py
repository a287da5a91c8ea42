"""The plan of a ladder: its runs by the config's dial of sizes, what they read, their commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from core.entry import find_parents, is_built
from core.errors import UserError
from core.points import Point, shared_parents
from core.stages import StageModule, load_config
from train.pretrain import STAGE, make_epochs, plan_reading
from train.reading import Reading
from train.scaling.folders import count_by_convention
from train.scaling.forms import FLOPS_PER_PARAM
from train.scaling.runs import Runs
from train.start import open_start

MODULE = "train.pretrain"


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of pretraining.

    Attributes:
        point: its workdir and command.
        config: its config.
        depth: its size on the config's dial.
        reading: what it reads.
        params: of the model, as one of `COUNTS` says.
        tokens: that it is trained on.
        epochs: passes over each domain by the end.
    """

    point: Point
    config: ConfigDict
    depth: int
    reading: Reading
    params: int
    tokens: int
    epochs: dict[str, float]

    @property
    def name(self) -> str:
        """Depth and tokens for each parameter, as the dial was given them."""
        return self.point.folder.name

    @property
    def flops(self) -> float:
        """FLOPs of training, 6 N D."""
        return float(FLOPS_PER_PARAM * self.params * self.tokens)

    @property
    def folder(self) -> Path:
        """Of its artifact."""
        return self.point.folder / self.config.pretrain.out

    @property
    def is_finished(self) -> bool:
        """Whether its artifact is there, with this config and these tokens."""
        return is_built(STAGE, self.config, self.point.folder)


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Runs in ascending order of FLOPs, and the run that they forecast.

    Attributes:
        target: that run; None of runs that are for a comparison alone.
        count: which parameters are counted, one of `COUNTS`.
        may_repeat: whether runs may read a domain more than once.
    """

    runs: tuple[PlannedRun, ...]
    target: PlannedRun | None
    count: str
    may_repeat: bool

    @property
    def with_target(self) -> tuple[PlannedRun, ...]:
        """The runs and, if there is one, the target as the last."""
        return self.runs if self.target is None else (*self.runs, self.target)

    @property
    def flops(self) -> float:
        """Of all runs, without the target."""
        return sum(run.flops for run in self.runs)

    def sizes(self) -> Runs:
        """The runs before they have losses."""
        params_R, tokens_R = (np.array([getattr(run, name) for run in self.runs], np.float64)
                              for name in ("params", "tokens"))
        unknown_R = np.full(len(self.runs), np.nan)
        return Runs(tuple(run.name for run in self.runs), params_R, tokens_R,
                    FLOPS_PER_PARAM * params_R * tokens_R, unknown_R, unknown_R, self.count)


def plan_ladder(config: ConfigDict, given: Sequence[str], count: str, *, parents: Path,
                out: Path) -> Ladder:
    """Plans every pair of a depth and a number of tokens for each parameter, and the target.

    A run's config is that of the same file with the variant PLATFORM,DEPTH,TOKENS_PER_PARAM, and
    with what else the command line sets.

    Args:
        config: with a section `ladder`, see configs/ladder.py.
        given: the arguments that define it.
        count: which parameters are counted, one of `COUNTS`.
        parents: workdir of the artifacts that all runs read.
        out: the ladder's folder: the runs are in `runs`, the target's in `target`.

    Raises:
        UserError: the section is missing or holds what is no size, or an artifact is missing.
    """
    section = read_ladder(config)
    file = next(word for word in reversed(given) if word.lstrip("-").startswith("config="))
    file = file.partition("=")[2].partition(":")[0]
    own = [word for word in given
           if not word.lstrip("-").startswith(("config=", "config.ladder."))]
    own += shared_parents([StageModule(MODULE, STAGE)], config, (), parents)

    def plan(folder: str, depth: int, ratio: float) -> PlannedRun:
        size = f"--config={file}:{section.platform},{depth},{ratio:g}"
        point = Point({}, out / folder / f"depth={depth},tokens_per_param={ratio:g}", (MODULE,),
                      (size, *own))
        return plan_run(point, depth, count)

    runs = [plan("runs", depth, ratio)
            for depth in dict.fromkeys(section.depths)
            for ratio in dict.fromkeys(section.tokens_per_param)]
    target = (plan("target", section.target.depth, section.target.tokens_per_param)
              if section.target.depth else None)
    return Ladder(tuple(sorted(runs, key=lambda run: run.flops)), target, count,
                  section.repeats == "allow")


def plan_run(point: Point, depth: int, count: str) -> PlannedRun:
    """Reads a run's config, and what it would read of the tokens."""
    config = load_config(point.arguments, f"run {point.folder.name}")
    parents = find_parents(STAGE, config, point.folder)
    start = open_start(config, parents, point.folder / config.pretrain.out)
    # What it reports, the process that trains logs; the plan lists the passes over the data.
    reading = plan_reading(config.pretrain, parents["tokens"], start, report=lambda line: None)
    passes = make_epochs(reading, parents["tokens"])(config.pretrain.num_steps)
    epochs = {name.partition("/")[2]: number for name, number in passes.items() if "/" in name}
    return PlannedRun(point, config, depth, reading, count_by_convention(start.config)[count],
                      int(passes["tokens"]), epochs)


def read_ladder(config: ConfigDict) -> ConfigDict:
    """The section `ladder`, whose lists hold sizes.

    Raises:
        UserError: it is missing, or a list holds what is no size; or the runs would not begin
            afresh.
    """
    if "ladder" not in config:
        raise UserError("config.ladder", "this config has no such section",
                        "use a config with sizes, as configs/ladder.py")
    section = config.ladder
    for field, kind in (("depths", int), ("tokens_per_param", int | float)):
        values = section[field]
        if not values or not all(isinstance(value, kind) and not isinstance(value, bool)
                                 and 0 < value < float("inf") for value in values):
            raise UserError(f"ladder.{field}={values!r}", "is no list of "
                            f"{'whole ' * (kind is int)}numbers above 0",
                            f"write --config.ladder.{field}=(1,2,3)")
    if section.repeats not in ("refuse", "allow"):
        raise UserError(f"ladder.repeats={section.repeats!r}", "is neither refuse nor allow",
                        "set --config.ladder.repeats=refuse")
    for field in ("init_from", "resume_from"):
        if config.pretrain[field]:
            raise UserError(f"pretrain.{field}={config.pretrain[field]!r}", "makes the runs begin "
                            "with what another learned, and no law counts that",
                            f"leave out --config.pretrain.{field}")
    return section
