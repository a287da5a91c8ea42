"""What FLOPs cost on chips: hours, interruptions, days, money, energy and carbon.

The page (`page.js`) computes the same on sliders; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import math

PF_DAY_FLOPS = 1e15 * 86_400    # the unit of arXiv 2001.08361 and 2005.14165
MAX_CHIPS = 10_000_000


@dataclasses.dataclass(frozen=True)
class Rates:
    """What holds for each chip and hour.

    Attributes:
        peak_flops: dense peak of a chip, in FLOP/s.
        mfu: model FLOPs utilisation, the share of the peak that model FLOPs take while steps run.
        usd_per_hour: price of a chip.
        watts: of a chip; None if unknown.
        pue: power usage effectiveness, the data centre's energy over that of its chips.
        kg_per_kwh: CO2 equivalents of the grid.
        goodput: share of the time whose steps count; None estimates it from the fields below.
        failure_chip_hours: mean hours of a chip between interruptions of the job.
        save_secs: that a checkpoint stops the step.
        restart_secs: from an interruption to the next step.
    """

    peak_flops: float
    mfu: float
    usd_per_hour: float
    watts: float | None
    pue: float
    kg_per_kwh: float
    goodput: float | None
    failure_chip_hours: float
    save_secs: float
    restart_secs: float


@dataclasses.dataclass(frozen=True)
class Interruptions:
    """How a job of some size gets on between failures.

    Attributes:
        mean_hours: between two interruptions of the job.
        save_every_secs: the interval between checkpoints that loses least.
        goodput: share of the time whose steps count; 0 if the job gets nowhere.
    """

    mean_hours: float
    save_every_secs: float
    goodput: float


def expect_interruptions(num_chips: float, rates: Rates) -> Interruptions:
    """Interruptions of a job on `num_chips`, to first order in their rate.

    With M seconds between failures, a save of d seconds and a restart of R, checkpoints are best
    T = sqrt(2 d M) apart. A second of steps takes 1 + d/T with the saves; a failure costs the
    restart and half an interval, so goodput = (1 - (R + (T + d)/2) / M) / (1 + d/T).

    Source: Young 1974, doi 10.1145/361147.361115; Daly 2006, doi 10.1016/j.future.2004.11.016.
    """
    mean_secs = 3600 * rates.failure_chip_hours / num_chips
    every = math.sqrt(2 * rates.save_secs * mean_secs)
    lost = (rates.restart_secs + (every + rates.save_secs) / 2) / mean_secs
    goodput = max(0.0, (1 - lost) / (1 + rates.save_secs / every))
    return Interruptions(mean_secs / 3600, every,
                         goodput if rates.goodput is None else rates.goodput)


@dataclasses.dataclass(frozen=True)
class Bill:
    """What a run takes.

    Attributes:
        chip_hours: of steps that count, at the MFU.
        paid_chip_hours: with what interruptions cost.
        days: from the first step to the last, interruptions included.
        num_interruptions: to expect.
        usd, kwh, co2e_tonnes: of the paid hours; the latter two None where watts are unknown.
        failures: of the job.
    """

    chip_hours: float
    paid_chip_hours: float
    days: float
    num_interruptions: float
    usd: float
    kwh: float | None
    co2e_tonnes: float | None
    failures: Interruptions


def make_bill(flops: float, num_chips: float, rates: Rates) -> Bill:
    """What `flops` take on `num_chips`; infinite if interruptions leave no time for steps."""
    failures = expect_interruptions(num_chips, rates)
    hours = flops / (rates.peak_flops * rates.mfu * 3600)
    paid = hours / failures.goodput if failures.goodput else math.inf
    kwh = None if rates.watts is None else paid * rates.watts / 1000 * rates.pue
    return Bill(hours, paid, paid / num_chips / 24, paid / num_chips / failures.mean_hours,
                paid * rates.usd_per_hour, kwh,
                None if kwh is None else kwh * rates.kg_per_kwh / 1000, failures)


def flops_of_hours(paid_chip_hours: float, num_chips: float, rates: Rates) -> float:
    """FLOPs that paid hours of chips are good for: the inverse of `make_bill`."""
    goodput = expect_interruptions(num_chips, rates).goodput
    return paid_chip_hours * goodput * rates.peak_flops * rates.mfu * 3600


def fewest_chips(flops: float, days: float, rates: Rates) -> int | None:
    """The fewest chips that finish in `days`, or None if no number does.

    More chips fail more often, so that beyond some number a job becomes slower.
    """
    low, high = 0, 1
    while make_bill(flops, high, rates).days > days:
        low, high = high, 2 * high
        if high > MAX_CHIPS or not expect_interruptions(high, rates).goodput:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if make_bill(flops, middle, rates).days <= days else (middle,
                                                                                        high)
    return high


def whole_hosts(num_chips: float, chips_per_host: int) -> int:
    """The next larger number of chips that a cluster is built of: whole hosts, and 4, 5, 6 or 7
    times a power of two, so that a mesh can divide it; a power of two within a host."""
    if num_chips <= chips_per_host:
        return 2 ** math.ceil(math.log2(max(1, num_chips)))
    hosts = math.ceil(num_chips / chips_per_host)
    unit = 2 ** max(0, (hosts - 1).bit_length() - 3)
    return chips_per_host * unit * math.ceil(hosts / unit)
