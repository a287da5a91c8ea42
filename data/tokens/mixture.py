"""Mixtures of domains: the tokens of each domain, and the order of its rows.

A plan holds the tokens that a run draws from each domain and the resulting epochs. Its weights
are passed to `mixture`, whose every prefix follows them to within a few rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import grain
import numpy as np

from core.errors import UserError
from data.tokens.rows import PACKINGS

MAX_DENOMINATOR = 10**12     # of a weight written as a fraction

# What was drawn from each domain: {"pages": {"order": 0, "rows": 5600}}. `order` tells the shuffles
# of the domains apart; the first `rows` of it were drawn.
Drawn = Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class MixturePlan:
    """Tokens that a run draws from each domain.

    Attributes:
        weights: share of the run's tokens; they sum to 1. Where no cap is reached they are the
            requested ones, whatever the run's length.
        tokens: tokens to draw; they sum to the run's.
        epochs: passes over each domain at the end of the run, earlier phases included.
        warnings: one line for each domain that departs from its requested share or is repeated.
    """

    weights: dict[str, float]
    tokens: dict[str, int]
    epochs: dict[str, float]
    warnings: tuple[str, ...]


def plan_mixture(sizes_tokens: Mapping[str, int], *, total_tokens: int,
                 weights: Mapping[str, float] | None = None, temperature: float | None = None,
                 upweight: Mapping[str, float] | None = None,
                 max_epochs: float | Mapping[str, float] = math.inf,
                 used_tokens: Mapping[str, int] | None = None) -> MixturePlan:
    """Distributes a budget of tokens over domains.

    Tokens that a domain cannot supply within its cap are distributed over the others in proportion
    to their shares. A uniform mixture (temperature 0) with a cap is UniMax
    (arXiv:2304.09151, algorithm 1); temperature 1 is the natural mixture, 0.5 the prior of RegMix
    (arXiv:2407.01492).

    Args:
        sizes_tokens: tokens of each domain.
        weights: manual shares, of any scale. A domain that is not named is excluded, with a
            warning.
        temperature: instead of weights: a share is proportional to size ** temperature. The
            default, with neither, is temperature 1.
        upweight: factors on the shares of some domains, e.g. ``{"code": 2.0}``.
        max_epochs: the cap, for all domains or for some.
        used_tokens: tokens drawn by earlier phases of the run; they count towards the cap.

    Raises:
        UserError: a domain is unknown, a number is invalid, no domain has a share, or the caps
            allow fewer than `total_tokens`.
    """
    names = sorted(sizes_tokens)
    caps = max_epochs if isinstance(max_epochs, Mapping) else dict.fromkeys(names, max_epochs)
    upweight, used_tokens = upweight or {}, used_tokens or {}
    for field, given in (("sizes_tokens", sizes_tokens), ("mixture", weights or {}),
                         ("upweight", upweight), ("max_epochs", caps),
                         ("used_tokens", used_tokens)):
        _check_numbers(field, given, names)
    if total_tokens < 1:
        raise UserError(f"total_tokens={total_tokens}", "must be positive", "set a larger budget")
    sizes = np.array([float(sizes_tokens[name]) for name in names])
    used = np.array([float(used_tokens.get(name, 0)) for name in names])
    shares = _shares_by_size(sizes, temperature) if weights is None else np.array(
        [float(weights.get(name, 0)) for name in names])
    if weights is not None and temperature is not None:
        raise UserError(f"temperature={temperature}", "cannot be combined with a mixture",
                        "give one of the two")
    shares = shares * [upweight.get(name, 1.0) for name in names]
    if not shares.sum() > 0:
        raise UserError(f"mixture={dict(weights or {})}", "gives no domain a positive share",
                        "give one that holds tokens a positive weight")
    shares /= shares.sum()
    rooms = np.array([caps.get(name, math.inf) * size if size else 0.0
                      for name, size in zip(names, sizes)])
    rooms = np.maximum(np.floor(rooms) - used, 0)
    tokens = _fill(shares, rooms, total_tokens)
    epochs = (used + tokens) / np.maximum(sizes, 1)
    is_capped = (np.abs(tokens - shares * total_tokens) >= 1).any()
    weights = tokens / total_tokens if is_capped else shares
    return MixturePlan(
        weights=dict(zip(names, weights.tolist())),
        tokens={name: int(count) for name, count in zip(names, tokens)},
        epochs=dict(zip(names, epochs.tolist())),
        warnings=tuple(_warnings(names, shares, tokens, rooms, epochs)))


def _shares_by_size(sizes: np.ndarray, temperature: float | None) -> np.ndarray:
    if temperature is None:
        temperature = 1.0
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature}", "must be a number that is not negative",
                        "set one from 0 (uniform) to 1 (natural)")
    return np.where(sizes > 0, (sizes / max(sizes.max(initial=0), 1)) ** temperature, 0.0)


def _check_numbers(field: str, given: Mapping[str, float], names: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in names:
            raise UserError(f"{field}.{name}", f"the domains are {', '.join(names)}",
                            "name one of these")
        if not value >= 0 or (math.isinf(value) and field != "max_epochs"):
            raise UserError(f"{field}.{name}={value}", "must be a number that is not negative",
                            f"set {field}.{name}")


def _fill(shares: np.ndarray, rooms: np.ndarray, total: int) -> np.ndarray:
    """Whole tokens by share, no domain above its entry of `rooms`; they sum to `total`."""
    given, open_ = np.zeros(len(shares)), shares > 0
    available = rooms[open_].sum()
    if available < total:
        raise UserError(f"total_tokens={total}",
                        f"the domains give {available:.0f} within max_epochs",
                        "raise max_epochs, give more domains a share, or lower num_steps")
    while open_.any():
        level = (total - given[~open_].sum()) / shares[open_].sum()
        full = open_ & (shares * level >= rooms)
        if not full.any():
            given[open_] = (shares * level)[open_]
            break
        given[full] = rooms[full]
        open_ &= ~full
    tokens = np.floor(given)
    rest = np.where(tokens < rooms, given - tokens, -1)
    tokens[np.argsort(-rest, kind="stable")[:int(total - tokens.sum())]] += 1
    return tokens


def _warnings(names: Sequence[str], shares: np.ndarray, tokens: np.ndarray, rooms: np.ndarray,
              epochs: np.ndarray) -> list[str]:
    total, lines = tokens.sum(), []
    for name, share, count, room, times in zip(names, shares, tokens, rooms, epochs):
        if not share:
            lines.append(f"{name} is left out: its share is 0")
        elif count >= room and share > count / total:
            lines.append(f"{name} gives {count / total:.2%} instead of {share:.2%}: it is seen "
                         f"{times:.4g} times, which is its cap")
        elif times > 1:
            lines.append(f"{name} is seen {times:.4g} times")
    return lines


class Interleave:
    """Maps an index to a domain and a row of that domain; a Grain selection map.

    In every prefix the rows of each domain match its share to within a few, and exactly where
    the share is a whole number. Grain's own `mix` rounds shares to a hundredth of the smallest,
    which in a long run is many rows; where that rounding is exact, the two agree.

    Args:
        weights: of the domains, positive; read as decimal fractions, so that 0.1 is 1/10.
        num_rows: length of the mixture; it does not affect the order.
        drawn: rows of each domain that come before; by default none. Where they were drawn with
            the same weights, this is the rest of that mixture.
    """

    def __init__(self, weights: Sequence[float], num_rows: int, drawn: Sequence[int] = ()):
        exact = [Fraction(weight).limit_denominator(MAX_DENOMINATOR) or Fraction(weight)
                 for weight in weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        self._proportions = [int(weight * scale) for weight in exact]
        self._num_rows, self._first = num_rows, sum(drawn)
        self._drawn = [rows - count for rows, count in zip(
            drawn or [0] * len(weights), self.counts(self._first))]

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after = self.counts(self._first + index), self.counts(self._first + index + 1)
        domain = next(i for i, count in enumerate(before) if count != after[i])
        return domain, before[domain] + self._drawn[domain]

    def counts(self, num_rows: int) -> list[int]:
        """Rows of each domain among the first `num_rows` of a mixture of these weights."""
        counts, rest, left = [], int(num_rows), sum(self._proportions)
        for proportion in self._proportions:
            behind = rest * (left - proportion) // left
            counts.append(rest - behind)
            rest, left = behind, left - proportion
        return counts

    def __repr__(self) -> str:  # Grain compares it on restore
        return f"Interleave({self._proportions}, {self._num_rows}, {self._first}, {self._drawn})"


def mixture(folder: Path, weights: Mapping[str, float], row_length: int, *, num_rows: int,
            seed: int, packing: str = "concatenate",
            drawn: Drawn | None = None, stored: Path | None = None) -> grain.MapDataset:
    """A shuffled, deterministic mix of domains; each further epoch of a domain is reshuffled.

    No row is repeated before all rows of its domain have been drawn.

    Args:
        folder: token folder.
        weights: share of rows from each domain; domains of weight 0 are excluded.
        packing: how documents become rows, one of `data.tokens.rows.PACKINGS`.
        drawn: what `count_drawn` gives for the mixtures, with the same seed, that this one goes on
            from, whatever their weights.
        stored: folder for what a packing derives from the tokens; None holds it in memory.

    Raises:
        UserError: no weight is positive, a domain is not in the folder, or the packing is
            unknown.
    """
    shares = _shares(weights)
    if packing not in PACKINGS:
        raise UserError(f"packing={packing!r}", "there is no such packing",
                        f"choose one of {', '.join(PACKINGS)}")
    begun = _go_on(shares, drawn or {})
    opened = {name: PACKINGS[packing](folder, name, row_length, stored) for name in shares}
    parts = [grain.MapDataset.source(rows).seed(seed + begun[name]["order"]).shuffle().repeat()
             for name, rows in opened.items()]
    return grain.MapDataset.select_from_datasets(parts, _interleave(shares, num_rows, begun))


def count_drawn(weights: Mapping[str, float], num_rows: int, drawn: Drawn) -> Drawn:
    """What has been drawn behind `num_rows` rows of the mixture that goes on from `drawn`."""
    shares = _shares(weights)
    begun = _go_on(shares, drawn)
    interleave = _interleave(shares, num_rows, begun)
    first = sum(entry["rows"] for entry in begun.values())
    counts = zip(interleave.counts(first), interleave.counts(first + num_rows))
    return {**drawn, **{name: entry | {"rows": entry["rows"] + after - before}
                        for (name, entry), (before, after) in zip(begun.items(), counts)}}


def _go_on(shares: Mapping[str, float], drawn: Drawn) -> dict[str, dict[str, int]]:
    """The entry of each domain; one that is new gets the first order that no other has."""
    taken = {entry["order"] for entry in drawn.values()}
    free = (order for order in itertools.count() if order not in taken)
    return {name: dict(drawn[name]) if name in drawn else {"order": next(free), "rows": 0}
            for name in shares}


def _interleave(shares: Mapping[str, float], num_rows: int, begun: Drawn) -> Interleave:
    return Interleave([*shares.values()], num_rows, [begun[name]["rows"] for name in shares])


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    shares = {name: float(weight) for name, weight in sorted(weights.items()) if weight != 0}
    if not shares:
        raise UserError(f"mixture={dict(weights)}", "gives no domain a positive weight",
                        "set one, e.g. --config.pretrain.mixture.pages=1.0")
    for name, share in shares.items():
        if not 0 < share < math.inf:
            raise UserError(f"mixture.{name}={share}", "must be a number that is not negative",
                            f"set --config.pretrain.mixture.{name}")
    return shares
