"""Shares of domains: what a search is about, what is natural, and shares as flags of a run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.artifacts import read_json
from core.errors import UserError
from data.domains import POOLS, config_key

PLACES = 4      # decimals of a share: as a run is given it, and as a fit sees it

Shares = dict[str, float]


def read_sizes(tokens: Path, field: str, chosen: Sequence[str], *,
               with_best: bool = False, least: int = 2) -> dict[str, int]:
    """Tokens of the domains that a search is about, in alphabetical order.

    Args:
        tokens: token folder.
        field: of the config that names them, for messages.
        chosen: their names; none takes all but the pools, which repeat documents of domains.
        with_best: whether `best`, the documents that annealing takes, is one of all.
        least: how many there must be.

    Raises:
        UserError: a domain is unknown or empty or no flag can hold its name, or there are too few.
    """
    described = read_json(tokens / "tokens.json")["domains"]
    sizes = {name: domain["tokens"] for name, domain in described.items() if name != "heldout"}
    if unknown := sorted({*chosen} - sizes.keys()):
        raise UserError(f"{field}={tuple(chosen)!r}", f"{tokens} holds no domain {unknown[0]!r}",
                        f"choose from {', '.join(sorted(sizes))}")
    names = {*chosen} or {name for name in sizes if name not in POOLS or with_best}
    if empty := sorted(name for name in names if not sizes[name]):
        raise UserError(f"{field}={tuple(chosen)!r}", f"the domain {empty[0]!r} holds no tokens",
                        f"name the others with --config.{field}")
    if unwritten := sorted(name for name in names if re.search(r"[\s=]", name)):
        raise UserError(f"{field}={tuple(chosen)!r}", f"no flag can hold the domain "
                        f"{unwritten[0]!r}", f"name the others with --config.{field}, or give it "
                        "a name without spaces in the corpus")
    if len(names) < least:
        raise UserError(f"{field}={tuple(chosen)!r}", "there is no choice between "
                        f"{len(names)} domain{'s' * (len(names) != 1)}",
                        f"name two of {', '.join(sorted(sizes))}")
    return {name: sizes[name] for name in sorted(names)}


def natural_shares(sizes: Mapping[str, int]) -> Shares:
    """Shares in proportion to the tokens that there are."""
    return round_shares(sizes, np.array([*sizes.values()], np.float64))


def round_shares(names: Sequence[str] | Mapping[str, int], weights: np.ndarray) -> Shares:
    """Shares of `PLACES` decimals that sum to 1, each within one unit of its weight's.

    Args:
        weights: [num_domains], of any scale.
    """
    units = np.asarray(weights, np.float64) / np.sum(weights) * 10**PLACES
    whole = np.floor(units).astype(int)
    missing = 10**PLACES - whole.sum()
    whole[np.argsort(whole - units, kind="stable")[:missing]] += 1
    return {name: count / 10**PLACES for name, count in zip(names, whole.tolist())}


def share_settings(field: str, shares: Mapping[str, float]) -> dict[str, str]:
    """Each domain's field of the config and its value, e.g. `pretrain.mixture.pages`: 0.61."""
    return {f"{field}{_subfield(config_key(name))}": f"{share:.{PLACES}g}"
            for name, share in shares.items()}


def share_flags(field: str, shares: Mapping[str, float]) -> str:
    """The arguments of a command line that set these shares, as words of a shell."""
    return shlex.join(f"--config.{name}={value}"
                      for name, value in share_settings(field, shares).items())


def _subfield(key: str) -> str:
    return f".{key}" if key.isidentifier() else f"[{key!r}]"
