"""Finds the quantities of a run that are not given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from core.errors import UserError
from train.plan.allocation import by_ratio
from train.plan.cost import Bill, Rates, fewest_chips, flops_of_hours, make_bill, whole_hosts
from train.plan.request import DAYS, LIMITS, Request


@dataclasses.dataclass(frozen=True)
class Run:
    """A run with all its quantities.

    Attributes:
        params, active_params, tokens: see `Request`.
        flops: by the count that hours and cost follow from.
        num_chips: that train at a time.
        bill: what it takes.
        chosen: of each quantity that neither was given nor follows, what it was chosen by.
    """

    params: float
    active_params: float
    tokens: float
    flops: float
    num_chips: int
    bill: Bill
    chosen: dict[str, str]


def solve(request: Request, rates: Rates, chips_per_host: int,
          flops_per_token: Callable[[float], float]) -> Run:
    """The run that a request asks for.

    Args:
        chips_per_host: to round a number of chips that is not given.
        flops_per_token: of a training step, by the parameters that a token meets; proportional to
            them where the request does not give them.

    Raises:
        UserError: the request decides too little or too much, or what follows is impossible.
    """
    request.check()
    chosen: dict[str, str] = {}
    flops, num_chips = _work(request, rates, chips_per_host, chosen)
    params, active, tokens = _sizes(request, flops, flops_per_token, chosen)
    for name, value in (("params", params), ("tokens", tokens)):
        if getattr(request, name) is None and not LIMITS[name][0].hold(value):
            raise UserError(f"--{name}: {value:.3g} follow", "no run is of such a size",
                            "check the units of what is given")
    if flops is None:
        flops = flops_per_token(active) * tokens
    if num_chips is None:
        num_chips = _chips(request, flops, rates, chips_per_host, chosen)
    bill = make_bill(flops, num_chips, rates)
    _check_progress(num_chips, rates)
    return Run(params, active, tokens, flops, num_chips, bill, chosen)


def _work(request: Request, rates: Rates, chips_per_host: int,
          chosen: dict[str, str]) -> tuple[float | None, int | None]:
    """FLOPs and chips, where the request decides them before sizes are known."""
    num_chips = request.num_chips
    if request.compute is not None:
        return request.compute, num_chips
    if request.budget_usd is not None:
        if not rates.usd_per_hour:
            raise UserError("--price_usd=0", "a budget buys any number of hours at no price",
                            "give --compute instead of --budget_usd")
        hours = request.budget_usd / rates.usd_per_hour
        if num_chips is None:
            if request.days is None:
                chosen["num_chips"] = f"whole hosts that finish in {DAYS:g} days"
            num_chips = whole_hosts(hours / 24 / (request.days or DAYS), chips_per_host)
    elif request.days is not None and num_chips is not None:
        hours = request.days * 24 * num_chips
    else:
        return None, num_chips
    _check_progress(num_chips, rates)
    return flops_of_hours(hours, num_chips, rates), num_chips


def _sizes(request: Request, flops: float | None, flops_per_token: Callable[[float], float],
           chosen: dict[str, str]) -> tuple[float, float, float]:
    """All parameters, those that a token meets, and tokens."""
    params, tokens, ratio = request.params, request.tokens, request.tokens_per_param
    active = request.active_params or params
    if params is None and tokens is None:
        found = by_ratio(flops * 6 / flops_per_token(1.0), ratio)
        params = active = found.params
        tokens = found.tokens
        chosen["tokens"] = chosen["params"] = f"{ratio:g} tokens a parameter"
    elif tokens is None:
        tokens = flops / flops_per_token(active) if flops else ratio * active
        if not flops:
            chosen["tokens"] = f"{ratio:g} tokens a parameter"
    elif params is None:
        params = active = flops / flops_per_token(1.0) / tokens if flops else tokens / ratio
        if not flops:
            chosen["params"] = f"{ratio:g} tokens a parameter"
    return params, active, tokens


def _chips(request: Request, flops: float, rates: Rates, chips_per_host: int,
           chosen: dict[str, str]) -> int:
    """Whole hosts that finish in time."""
    days = request.days or DAYS
    fewest = fewest_chips(flops, days, rates)
    if fewest is None:
        raise UserError(f"--days={days:g}", "no number of these chips finishes in time: the more, "
                        "the more often one fails", "give more days, or --num_chips")
    rounded = whole_hosts(fewest, chips_per_host)
    is_late = make_bill(flops, rounded, rates).days > days
    if request.days is None:
        chosen["num_chips"] = f"whole hosts that finish in {DAYS:g} days"
    return fewest if is_late else rounded


def _check_progress(num_chips: int, rates: Rates) -> None:
    """Raises `UserError` if interruptions leave no time for steps."""
    if not make_bill(1.0, num_chips, rates).failures.goodput:
        raise UserError(f"--num_chips={num_chips}", "one fails before a restart has paid off",
                        "give fewer, or the --goodput that is reached")
