"""The command `doremi`: a mixture by the losses of a proxy beside those of a reference.

DoReMi, arXiv 2305.10429. The target of the weights is no text that is held out, but the domains
themselves: those in which a model of this size can still come nearer to the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.artifacts import read_json, read_jsonl
from core.entry import is_built
from core.errors import UserError
from core.points import Runner, read_results
from core.stages import StageModule
from model.section import read_section
from train.mixture.checks import check_mixture
from train.mixture.proxy import LOSSES, check_proxy, rows_per_domain
from train.mixture.proxy import STAGE as PROXY
from train.mixture.runs import (
    MODULE,
    ProxyRun,
    Search,
    open_search,
    plan_run,
    refuse_given_shares,
)
from train.mixture.shares import Shares, natural_shares, read_sizes, round_shares
from train.mixture.written import open_folder, show_plan, show_table, write_mixture
from train.pretrain import STAGE

MODULES = (StageModule(MODULE, STAGE), StageModule("train.mixture.proxy", PROXY))
REFERENCES = ("natural", "uniform")
MAX_MOVED = 0.1     # share of the weight that may lie elsewhere in the other half of the steps


def doremi(values: Any) -> dict[str, Any]:
    """Runs the command with these flags; returns the plan or, in the end, the mixture.

    Raises:
        UserError: the search is refused before anything is trained, or a run failed.
    """
    search = open_search("doremi", values)
    refuse_given_shares(search)
    sizes = read_sizes(search.tokens, "doremi.domains", search.section.domains)
    natural, run = natural_shares(sizes), plan_reference(search, sizes)
    print(show_plan([run]))
    print("and a proxy on as many tokens, as many of each domain")
    if values.dry_run:
        return {"runs": 2, "natural": natural, "planned": [run.describe()]}
    open_folder(search)
    if not is_proxy_finished(run):
        Runner("doremi").run([run.point], parallel=1)
    measured = read_proxy(run)
    weights = round_shares(sizes, np.array([measured["weights"][name] for name in sizes]))
    found = {"natural": natural, "reference_mixture": search.section.reference_mixture,
             "losses": {name: measured[name] for name in LOSSES},
             "moved": (moved := measure_moved(read_steps(run))),
             "warnings": warn_of_moved(moved)}
    print(show_weights(weights, natural, measured))
    check_mixture(search, weights, natural, found)
    return write_mixture(search, "pretrain.mixture", weights, found)


def plan_reference(search: Search, sizes: Mapping[str, int]) -> ProxyRun:
    """The run of the reference model, in the workdir of which the proxy is trained after it.

    Raises:
        UserError: the config has no such reference or proxy, or one of the two would read a domain
            more than `pretrain.max_epochs` times.
    """
    section, pretrain = search.section, search.config.pretrain
    if section.reference_mixture not in REFERENCES:
        raise UserError(f"doremi.reference_mixture={section.reference_mixture!r}",
                        f"is none of {' and '.join(REFERENCES)}",
                        "set --config.doremi.reference_mixture=natural")
    vocab_size = read_json(search.tokens / "tokens.json")["vocab_size"]
    check_proxy(pretrain, read_section(search.config.model, vocab_size))
    rows_per_domain(pretrain.batch_size, len(sizes))
    uniform = round_shares(sizes, np.ones(len(sizes)))
    plan_run(search, "run", "proxy", uniform)   # refuses what the proxy could not read
    shares = natural_shares(sizes) if section.reference_mixture == "natural" else uniform
    settings = {"doremi.tokens": str(search.tokens), "doremi.reference": pretrain.out}
    return plan_run(search, "run", "reference", shares, settings, MODULES)


def is_proxy_finished(run: ProxyRun) -> bool:
    """Whether the reference and the proxy are trained, with this config and these tokens."""
    return run.is_finished and is_built(PROXY, run.config, run.point.folder)


def read_proxy(run: ProxyRun) -> dict[str, Any]:
    """The metrics of the proxy; raises `UserError` if it is not finished."""
    if not is_proxy_finished(run):
        row, = read_results([run.point])
        raise UserError("the reference or the proxy", "is not finished: "
                        f"{row.get('error', 'has not been run')}",
                        f"see {run.point.folder / 'log.txt'}, and run the same command again")
    return read_json(Path(run.point.folder) / run.config.doremi.out / "metrics.json")


def read_steps(run: ProxyRun) -> np.ndarray:
    """The proxy's weights at each step: [num_steps, num_domains]."""
    rows = read_jsonl(run.point.folder / run.config.doremi.out / "steps.jsonl")
    return np.array([[*row["weights"].values()] for row in rows])


def measure_moved(weights: np.ndarray) -> float:
    """The share of the weight, from 0 to 1, that the halves of the steps give to other domains.

    Args:
        weights: [num_steps, num_domains]; the middle step of an odd number is in both halves.
    """
    first, second = weights[:(len(weights) + 1) // 2], weights[len(weights) // 2:]
    return float(np.abs(first.mean(axis=0) - second.mean(axis=0)).sum() / 2)


def warn_of_moved(moved: float) -> list[str]:
    """A warning where the weights are not settled, so that their mean depends on the length."""
    if moved <= MAX_MOVED:
        return []
    return [f"the weights have not settled: {100 * moved:.0f} % of them lie elsewhere in the "
            "second half of the steps than in the first; train longer with "
            "--config.pretrain.num_steps, or lower --config.doremi.step_size"]


def show_weights(weights: Shares, natural: Shares, measured: Mapping[str, Any]) -> str:
    """The table of the weights, and of the losses over the last steps."""
    cells = [["domain", "natural", "weight", "excess", "proxy", "reference"]]
    cells += [[name, f"{natural[name]:.4f}", f"{weights[name]:.4f}",
               *(f"{measured[loss][name]:.4f}" for loss in LOSSES)] for name in weights]
    return show_table(cells) + "\nexcess and losses in nats per token, over the last steps"
