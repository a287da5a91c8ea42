"""Small runs of pretraining on given mixtures: their plan, their training, and their losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from core.artifacts import parent, read_json
from core.entry import is_built
from core.errors import UserError
from core.points import Point, Runner, read_results
from core.progress import format_count, log
from core.stages import StageModule, config_arguments, load_config
from eval.measures.likelihood import has_heldout
from model.flops import matmul_params
from model.section import read_section
from train.mixture.shares import Shares, share_settings
from train.objective import text_length
from train.pretrain import STAGE, plan_phases
from train.scaling.forms import FLOPS_PER_PARAM
from train.start import Start

MODULE = "train.pretrain"
TOLERANCE = 1e-6    # of a share that a run is given and the one that it would read
# Fields of the section pretrain that would change what the runs read, or how they begin.
NOT_OURS = {"anneal_frac": 0.0, "temperature": 1.0, "upweight": {}, "init_from": "",
            "resume_from": ""}


@dataclasses.dataclass(frozen=True)
class Search:
    """What the commands share.

    Attributes:
        name: of the command, which is that of its section in the config.
        config: the config without the settings of a run.
        given: the arguments that define it.
        parents: workdir of the artifacts that all runs read.
        tokens: the token folder in it.
        out: folder that is written.
        metric: the loss of a run.
        parallel: runs at once.
    """

    name: str
    config: ConfigDict
    given: tuple[str, ...]
    parents: Path
    tokens: Path
    out: Path
    metric: str
    parallel: int

    @property
    def section(self) -> ConfigDict:
        """The command's section of the config."""
        return self.config[self.name]


@dataclasses.dataclass(frozen=True)
class ProxyRun:
    """One run of pretraining on one mixture.

    Attributes:
        point: its workdir and command.
        config: its config.
        part: what it is for.
        shares: of the domains.
        epochs: passes over each domain by the end.
        tokens: that it is trained on.
        params: of its model in matrix products.
    """

    point: Point
    config: ConfigDict
    part: str
    shares: Shares
    epochs: dict[str, float]
    tokens: int
    params: int

    @property
    def name(self) -> str:
        """That of its workdir."""
        return self.point.folder.name

    @property
    def folder(self) -> Path:
        """Of its artifact."""
        return self.point.folder / self.config.pretrain.out

    @property
    def is_finished(self) -> bool:
        """Whether its artifact is there, with this config, these tokens and this first model."""
        source = self.config.pretrain.init_from
        return ((not source or (Path(source) / "lineage.json").exists())
                and is_built(STAGE, self.config, self.point.folder))

    def describe(self) -> dict[str, Any]:
        """A row of the plan."""
        return {"run": self.name, "part": self.part, "shares": self.shares, "tokens": self.tokens,
                "flops": float(FLOPS_PER_PARAM * self.params * self.tokens),
                "epochs": max(self.epochs.values()), "is_finished": self.is_finished}


def open_search(name: str, values: Any) -> Search:
    """Reads the flags of a command.

    Raises:
        UserError: one is missing, the config has no such section or sets what a search decides, or
            there are no tokens, or none held out for the metric.
    """
    for flag, example in (("config", "configs/mixture.py:cpu"), ("parents", "runs/quickstart-cpu"),
                          ("out", f"runs/{name}")):
        if not getattr(values, flag):
            raise UserError(f"--{flag}", "is missing", f"try --{flag}={example}")
    config = values.config
    for section in (name, "checks", "pretrain", "model"):
        if section not in config:
            raise UserError(f"config.{section}", "this config has no such section",
                            "use a config with small runs, as configs/mixture.py")
    for field, usual in NOT_OURS.items():
        found = config.pretrain[field]
        if (found.to_dict() if isinstance(found, ConfigDict) else found) != usual:
            raise UserError(f"pretrain.{field}={found!r}", "would change what the small runs read "
                            "or begin with", f"leave out --config.pretrain.{field}")
    parents = Path(values.parents).absolute()
    tokens, _ = parent(parents, "pretrain.tokens", config.pretrain.tokens)
    if values.metric.startswith("heldout_") and not has_heldout(tokens):
        raise UserError(f"--metric={values.metric}", f"{tokens} holds no page out",
                        "curate the corpus with --config.curate.heldout.frac above 0")
    return Search(name, config, tuple(config_arguments()), parents, tokens.absolute(),
                  Path(values.out).absolute(), values.metric, values.parallel)


def refuse_given_shares(search: Search) -> None:
    """Refuses shares in the section pretrain, where the search is to find them."""
    given = {name: share for name, share in search.config.pretrain.mixture.items() if share}
    if given:
        raise UserError(f"pretrain.mixture={given}", f"is what {search.name} looks for",
                        "leave out --config.pretrain.mixture, and name domains with "
                        f"--config.{search.name}.domains")


def plan_run(search: Search, folder: str, part: str, shares: Shares,
             settings: Mapping[str, str] | None = None,
             modules: Sequence[StageModule] = (StageModule(MODULE, STAGE),)) -> ProxyRun:
    """Plans a run on a mixture.

    Args:
        folder: its workdir, below that of the search.
        settings: further fields of the config, which replace what the command line sets.
        modules: the stages of its workdir, of which the run is the first.

    Raises:
        UserError: the run would read a domain more than `pretrain.max_epochs` times.
    """
    settings = share_settings("pretrain.mixture", shares) | dict(settings or {})
    settings["pretrain.tokens"] = str(search.tokens)
    point = Point(settings, search.out / folder, tuple(module for module, _ in modules),
                  search.given)
    config = load_config(point.arguments, f"run {folder}")
    described = read_json(search.tokens / "tokens.json")
    model = read_section(config.model, described["vocab_size"])
    section = config.pretrain
    tokens = section.num_steps * section.batch_size * text_length(section)
    epochs = {name: share * tokens / described["domains"][name]["tokens"]
              for name, share in shares.items()}
    # What it reports, the process that trains logs.
    phase, = plan_phases(section, search.tokens, Start(model), report=lambda line: None)
    if any(abs(phase.weights.get(name, 0.0) - share) > TOLERANCE
           for name, share in shares.items()):
        name = max(epochs, key=epochs.get)
        raise UserError(f"run {folder}", f"would read the domain {name} {epochs[name]:.3g} times "
                        f"in {format_count(tokens)} tokens, more than pretrain.max_epochs="
                        f"{section.max_epochs:g}", "give this domain more data, leave it out with "
                        f"--config.{search.name}.domains, or shorten the runs with "
                        "--config.pretrain.num_steps")
    return ProxyRun(point, config, part, shares, epochs, tokens, matmul_params(model))


def train_unfinished(search: Search, runs: Sequence[ProxyRun]) -> None:
    """Trains the runs that are not finished; one that was killed goes on from its checkpoint."""
    points = [run.point for run in runs if not run.is_finished]
    if points:
        log(f"{search.name}: {len(points)} of {len(runs)} runs are left")
        Runner(search.name).run(points, search.parallel)


def read_losses(search: Search, runs: Sequence[ProxyRun]) -> np.ndarray:
    """The losses of runs, all of which must be finished: [num_runs].

    Raises:
        UserError: a run failed or is not finished, or has no such metric or one that is not finite.
    """
    unfinished = [run for run in runs if not run.is_finished]
    if unfinished:
        row, = read_results([unfinished[0].point])
        raise UserError(f"{len(unfinished)} of {len(runs)} runs", "are not finished; "
                        f"{unfinished[0].name}: {row.get('error', 'has not been run')}",
                        f"see {unfinished[0].point.folder / 'log.txt'}, and run the same command "
                        "again: finished runs are kept")
    losses = []
    for run in runs:
        metrics = read_json(run.folder / "metrics.json")
        loss = metrics.get(search.metric)
        if not isinstance(loss, int | float) or not 0 < loss < float("inf"):
            known = sorted(name for name, value in metrics.items() if isinstance(value, float))
            raise UserError(f"--metric={search.metric}", f"{run.folder} has {loss}",
                            f"name a loss that is positive; it has {', '.join(known)}")
        losses.append(loss)
    return np.array(losses)
