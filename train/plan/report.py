"""The table of a plan."""

from __future__ import annotations

from typing import Any

from train.plan.cost import PF_DAY_FLOPS

PART_NAMES = {"params": "parameters", "opt_state": "optimizer state", "ema": "running average",
              "gradient": "gradient", "activations": "activations, about",
              "gathered": "gathered weights, about", "logits": "logits, about"}


def rows_of(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table: what, and how much."""
    params = amount(result["params"])
    if result["active_params"] != result["params"]:
        params += f", {amount(result['active_params'])} of them for a token"
    rows = [("parameters", params + _chosen(result, "params")),
            ("tokens", f"{amount(result['tokens'])}, {number(result['tokens_per_param'])} a "
             "parameter" + _chosen(result, "tokens"))]
    rows += _flops_rows(result) + _bill_rows(result) + _memory_rows(result)
    rows += [(f"threshold {one['flops']:.0e}".replace("+", ""),
              f"{share(one['frac'])}: {one['name']}") for one in result["thresholds"]]
    return rows + [(one["name"], f"{amount(one['params'])} on {amount(one['tokens'])} "
              f"({number(one['tokens_per_param'])}), loss {one['loss_nats']:.3f} nats"
              + (f", {one['lifetime_flops']:.3g} FLOPs of its life"
                 if one["lifetime_flops"] > one["flops"] else ""))
             for one in result["allocations"]]


def _chosen(result: dict[str, Any], name: str) -> str:
    return f" (chosen: {result['chosen'][name]})" if name in result["chosen"] else ""


def _flops_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    six = result["flops"]["6ND"]
    rows = [("FLOPs, 6 N D", f"{six:.4g}, {number(six / PF_DAY_FLOPS)} PF-days")]
    rows += [(f"FLOPs, exact, {name} attention", f"{flops:.4g} ({flops / six - 1:+.1%})")
             for name, flops in result["flops"].items() if name != "6ND"]
    return [*rows, ("hours follow from", "6 N D" if result["count"] == "6ND" else
                    f"the exact count, {result['count']}")]


def _bill_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    bill, rates = result["bill"], result["rates"]
    failures = bill["failures"]
    rows = [("chips", f"{result['num_chips']:,} x {result['chip_title']}"
             + _chosen(result, "num_chips")),
            ("MFU", f"{percent(rates['mfu'])} of {rates['peak_flops'] / 1e12:,.0f} TFLOP/s, dense; "
             f"{percent(result['effective_mfu'])} with interruptions"),
            ("chip-hours", f"{number(bill['chip_hours'])}; {number(bill['paid_chip_hours'])} with "
             "interruptions"),
            ("time", duration(bill["days"])),
            ("interruptions", f"{number(bill['num_interruptions'])}, one in "
             f"{duration(failures['mean_hours'] / 24)}; goodput {percent(failures['goodput'])}"),
            ("checkpoint every", duration(failures["save_every_secs"] / 86_400)),
            ("cost", f"${number(bill['usd'])} at ${rates['usd_per_hour']:.2f} a chip-hour")]
    if bill["kwh"] is not None:
        rows += [("energy", f"{energy(bill['kwh'])} at {rates['watts']:g} W a chip, PUE "
                  f"{rates['pue']:g}"),
                 ("carbon", f"{mass(bill['co2e_tonnes'])} CO2e at {rates['kg_per_kwh']:g} kg a "
                  "kWh")]
    return rows


def _memory_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if memory := result["memory"]:
        mesh = " x ".join(f"{axis} {size}" for axis, size in memory["mesh"].items()) or "one device"
        rows += [("mesh", mesh), ("step", f"{memory['batch_rows']:,} rows of "
                                  f"{memory['row_length']:,}, {amount(memory['tokens_per_step'])} "
                                  f"tokens; {memory['num_steps']:,} steps"),
                 ("memory of a chip", f"{memory['peak_bytes'] / 1e9:.1f} of "
                  f"{memory['limit_bytes'] / 1e9:g} GB, rows at a time: {memory['rows']}")]
        rows += [(f"  {PART_NAMES[name]}", f"{size / 1e9:.2f} GB")
                 for name, size in memory["bytes"].items() if size]
    if sizes := result["checkpoint_bytes"]:
        rows += [("checkpoint to resume from", data_size(sizes["state"])),
                 ("weights alone", f"{data_size(sizes['weights_float32'])} in float32, "
                  f"{data_size(sizes['weights_bfloat16'])} in bfloat16")]
    return rows


def amount(number: float) -> str:
    """A count with the field's own units: ``70B``, ``15.6T``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * (1 - 5e-4):
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def data_size(num_bytes: float) -> str:
    """Bytes in decimal units up to TB."""
    unit, name = next(((unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
                       if num_bytes >= unit), (1e3, "kB"))
    return f"{number(num_bytes / unit)} {name}"


def energy(kwh: float) -> str:
    """Energy in GWh, MWh or kWh."""
    unit, name = next(((unit, name) for unit, name in ((1e6, "GWh"), (1e3, "MWh"))
                       if kwh >= unit), (1, "kWh"))
    return f"{number(kwh / unit)} {name}"


def number(value: float) -> str:
    """Whole from 1,000 on, with three digits below, and as ``<0.001`` where it is less."""
    if 0 < value < 1e-3:
        return "<0.001"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def duration(days: float) -> str:
    """A time in the unit in which it has some."""
    unit, name = next(((unit, name) for unit, name in ((1, "days"), (1 / 24, "hours"),
                                                       (1 / 1440, "minutes")) if days >= unit),
                      (1 / 86_400, "seconds"))
    return f"{number(days / unit)} {name}"


def mass(tonnes: float) -> str:
    """Tonnes, kilograms or grams."""
    unit, name = next(((unit, name) for unit, name in ((1, "t"), (1e-3, "kg")) if tonnes >= unit),
                      (1e-6, "g"))
    return f"{number(tonnes / unit)} {name}"


def share(frac: float) -> str:
    """How a run stands to a threshold."""
    if frac >= 1:
        return f"REACHED, {number(frac)} times"
    return f"not reached, {percent(frac)} of it" if frac >= 1e-3 else "far below"


def percent(fraction: float) -> str:
    """A fraction in percent with three digits."""
    return f"{100 * fraction:.3g} %"
