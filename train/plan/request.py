"""What the planner is asked: quantities of a run, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from absl import flags

from core.bounds import MAX_INT32, Bounds
from core.errors import UserError
from train.plan.allocation import TRAINING_RATIO
from train.plan.cost import MAX_CHIPS, PF_DAY_FLOPS, Rates
from train.plan.tables import DTYPES, TABLES, chip_peak_flops, find_row

DAYS = 30.0                 # of a run where neither days nor chips are given
COMPUTE = Bounds(1e12, 1e30)
# Of each flag: its bounds, and what to write instead of a number beyond them.
LIMITS = {
    "params": (Bounds(1e5, 1e14), "count them one by one: 70 billion are --params=70e9"),
    "active_params": (Bounds(1e5, 1e14), "count them one by one: 37 billion are "
                      "--active_params=37e9"),
    "tokens": (Bounds(1e6, 1e16), "count them one by one: 15 trillion are --tokens=15e12"),
    "compute": (COMPUTE, "give FLOPs: 1 PF-day is --compute=8.64e19"),
    "budget_usd": (Bounds(1.0, 1e12), "give US dollars: a million are --budget_usd=1e6"),
    "days": (Bounds(1e-3, 36_500.0), "give days: an hour is --days=0.042"),
    "num_chips": (Bounds(1, MAX_CHIPS, whole=True), "count chips, not hosts: --num_chips=1024"),
    "mfu": (Bounds(high=1.0, without=0.0), "40 % are --mfu=0.4"),
    "goodput": (Bounds(high=1.0, without=0.0), "95 % are --goodput=0.95"),
    "price_usd": (Bounds(0.0, 1000.0), "give US dollars of one chip for an hour: --price_usd=2.5"),
    "watts": (Bounds(10.0, 20_000.0), "give watts of one chip: 0.7 kW are --watts=700"),
    "pue": (Bounds(1.0, 5.0), "it is the energy of the data centre over that of its chips: "
            "--pue=1.1"),
    "tokens_per_param": (Bounds(0.01, 1e6), "20 trains best: --tokens_per_param=20"),
    "inference_tokens": (Bounds(1e6, 1e18), "count them one by one: 2 trillion are "
                         "--inference_tokens=2e12"),
    "batch_tokens": (Bounds(1.0, 1e9), "count them one by one: 4 million are --batch_tokens=4e6"),
    "row_length": (Bounds(2, MAX_INT32, whole=True), "give tokens of a row: --row_length=8192"),
}
GRID = Bounds(0.0, 2.0)     # kg of CO2 equivalents a kWh; coal alone has 1
SIZES, WORK = ("params", "tokens"), ("compute", "budget_usd")


@dataclasses.dataclass(frozen=True)
class Request:
    """Quantities of a run; None is to be found.

    Attributes:
        params: all parameters.
        active_params: those that a token meets, fewer than all in a mixture of experts.
        tokens: of training.
        compute: FLOPs.
        budget_usd: for the chips, interruptions included.
        days: from the first step to the last, interruptions included.
        num_chips: that train at a time.
        tokens_per_param: where one of parameters and tokens, or FLOPs alone, are known.
        inference_tokens: of the model's life, for the allocation of arXiv 2401.00448.
        params_flag: the flag that gives the parameters, for messages.
    """

    params: float | None = None
    active_params: float | None = None
    tokens: float | None = None
    compute: float | None = None
    budget_usd: float | None = None
    days: float | None = None
    num_chips: int | None = None
    tokens_per_param: float = TRAINING_RATIO
    inference_tokens: float | None = None
    params_flag: str = "--params"

    def given(self, *names: str) -> list[str]:
        """Those of the quantities that are known."""
        return [name for name in names if getattr(self, name) is not None]

    def work(self) -> list[str]:
        """The quantities that decide the FLOPs by themselves: compute, budget, days with chips."""
        both = len(self.given("days", "num_chips")) == 2
        return self.given(*WORK) + (["days"] if both else [])

    def check(self) -> None:
        """Raises `UserError` if the quantities decide too little or too much."""
        sizes, work = self.given(*SIZES), self.work()
        if not sizes and not work:
            raise UserError("--params", "nothing says how large the run is",
                            "give one or two of --params, --tokens, --compute, --budget_usd, or "
                            "--days with --num_chips")
        named = [self.params_flag if name == "params" else f"--{name}" for name in (*sizes, *work)]
        if "days" in work:
            named[-1] = "--days with --num_chips"
        if len(work) > 1:
            raise UserError(" and ".join(named[len(sizes):]), "each decides the FLOPs by itself",
                            f"leave out {named[-1] if 'days' not in work else '--days'}")
        if len(sizes) + len(work) > 2:
            raise UserError(", ".join(named), "two of them decide the third",
                            f"leave out {named[-1] if 'days' not in work else '--days'}")
        if self.active_params and (self.params is None or self.active_params > self.params):
            raise UserError(f"--active_params={self.active_params:g}",
                            "is part of all parameters, and cannot be more of them",
                            "give all of them as --params")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Declares the flags of a run's quantities and of its rates."""
    own = dict(flag_values=values)
    flags.DEFINE_float("params", None, "Parameters.", **own)
    flags.DEFINE_float("active_params", None, "Those that a token meets, of a mixture of experts.",
                       **own)
    flags.DEFINE_float("tokens", None, "Tokens of training.", **own)
    flags.DEFINE_float("compute", None, "FLOPs of training.", **own)
    flags.DEFINE_float("budget_usd", None, "Dollars for the chips.", **own)
    flags.DEFINE_float("days", None, "Days until the last step.", **own)
    flags.DEFINE_float("num_chips", None, "Chips that train at a time.", **own)
    flags.DEFINE_float("tokens_per_param", TRAINING_RATIO, "Tokens for each parameter, where the "
                       "rest does not decide it: 20 trains best, 150 serves better.", **own)
    flags.DEFINE_float("inference_tokens", None, "Tokens that the model will serve in its life: "
                       "plans the cheapest model of equal loss.", **own)
    flags.DEFINE_float("mfu", 0.4, "Model FLOPs utilisation, of the dense peak.", **own)
    flags.DEFINE_float("goodput", None, "Share of the time whose steps count; estimated by "
                       "default.", **own)
    flags.DEFINE_float("price_usd", None, "Dollars of a chip for an hour; by default the table's.",
                       **own)
    flags.DEFINE_float("watts", None, "Power of a chip; by default the table's.", **own)
    flags.DEFINE_float("pue", 1.1, "Energy of the data centre over that of its chips.", **own)
    flags.DEFINE_float("batch_tokens", None, "Tokens of a step; by default a config's, or those of "
                       "a published law.", **own)
    flags.DEFINE_float("row_length", None, "Tokens of a row; by default those of the model's "
                       "training.", **own)
    flags.DEFINE_string("chip", "h100", f"One of {', '.join(TABLES['chips'])}.", **own)
    flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "Whose peak MFU is relative to.", **own)
    flags.DEFINE_string("grid", "us", f"One of {', '.join(TABLES['grids'])}; or kg of CO2 "
                        "equivalents a kWh.", **own)


def checked(name: str, value: float | None) -> float | None:
    """A flag's number within its limits, whole where it counts.

    Raises:
        UserError: it is out of them, or not a number.
    """
    if value is None:
        return None
    bounds, remedy = LIMITS[name]
    if name == "compute" and 0 < value < COMPUTE.low:
        remedy = f"if these are PF-days, write --compute={value * PF_DAY_FLOPS:.6g}"
    if bounds.whole and math.isfinite(value) and value == int(value):
        value = int(value)
    if not bounds.hold(value):
        raise UserError(f"--{name}={value:g}", bounds.rule(), remedy)
    return value


def read_request(values: flags.FlagValues) -> Request:
    """The quantities that the flags give; what they decide together is checked by `Request.check`.

    Raises:
        UserError: a number is out of its limits.
    """
    return Request(**{field.name: checked(field.name, values[field.name].value)
                      for field in dataclasses.fields(Request) if field.name in LIMITS})


def read_rates(values: flags.FlagValues) -> Rates:
    """Prices, power and speed of the chip that the flags name.

    Raises:
        UserError: the chip or grid is unknown, or a number is out of its limits.
    """
    chip, failures = find_row("chips", values.chip, "--chip"), TABLES["failures"]

    def own_or(name: str, default: float | None) -> Any:
        found = checked(name, values[name].value)
        return default if found is None else found

    return Rates(chip_peak_flops(values.chip, values.dtype), own_or("mfu", None),
                 own_or("price_usd", chip["usd_per_hour"]), own_or("watts", chip["watts"]),
                 own_or("pue", None), grid_intensity(values.grid), own_or("goodput", None),
                 failures["chip_hours"], failures["save_secs"], failures["restart_secs"])


def grid_intensity(text: str) -> float:
    """Kilograms of CO2 equivalents a kWh: of a grid by its name, or the number itself.

    Raises:
        UserError: no such grid, or no such number.
    """
    try:
        number = float(text)
    except ValueError:
        return find_row("grids", text, "--grid")["kg_per_kwh"]
    if not GRID.hold(number):
        raise UserError(f"--grid={text}", GRID.rule(),
                        "give kilograms a kWh: 369 grams are --grid=0.369")
    return number
