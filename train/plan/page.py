"""The page of a plan: sliders beside the numbers, and what the numbers are made of.

It needs no server and loads nothing. Its numbers are the command's; a slider computes them anew by
`page.js`, whose formulas a test compares with those of `train.plan.cost`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.json_text import format_json
from core.page.charts import Scale
from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, join, tag
from train.plan.allocation import HOFFMANN
from train.plan.report import (
    PART_NAMES,
    amount,
    data_size,
    duration,
    energy,
    mass,
    number,
    percent,
    share,
)
from train.plan.tables import TABLES, chip_peak_flops

SCRIPT = Path(__file__).with_name("page.js")
STYLE = Path(__file__).with_name("page.css")
WIDTH, HEIGHT, LEFT, RIGHT, AXIS = 1080, 190, 24, 1056, 128     # of the ruler, in pixels
CHARACTER = 6.6         # width of one in a label
BYTES_PER_PARAM = 16    # float32 parameter, gradient and AdamW's two moments
# Of each slider: its name, label, least and largest value, and whether it is logarithmic.
SLIDERS = (("params", "Parameters of a token", 1e6, 1e13, True),
           ("tokens", "Tokens", 1e7, 1e14, True),
           ("num_chips", "Chips", 1, 200_000, True),
           ("mfu", "MFU", 0.05, 0.7, False),
           ("usd_per_hour", "Dollars a chip-hour", 0.1, 20.0, False),
           ("failure_chip_hours", "Chip-hours between interruptions", 1e3, 1e6, True))


def render_plan(result: Mapping[str, Any]) -> str:
    """The page of `train.plan.result.describe_run`'s result, as HTML."""
    data = page_data(result)
    bill = result["bill"]
    tiles = [("FLOPs", _live("flops", _scientific(result["planned_flops"])),
              _live("pf_days", f"{number(result['pf_days'])} PF-days")),
             ("Time", _live("days", duration(bill["days"])), _live(
                 "days_note", f"goodput {percent(bill['failures']['goodput'])}")),
             ("Cost", _live("usd", f"${number(bill['usd'])}"), _live(
                 "usd_note", f"at ${result['rates']['usd_per_hour']:.2f} a chip-hour")),
             ("Carbon", _live("carbon", _or_unknown(mass, bill["co2e_tonnes"])), _live(
                 "carbon_note", f"CO2e at {result['rates']['kg_per_kwh']:.3g} kg a kWh"))]
    return render_page(
        "Heartwood: plan", headline(
            "Plan of a pretraining run", f"{amount(result['active_params'])} parameters, "
            f"{amount(result['tokens'])} tokens", f"On {result['num_chips']:,} x "
            f"{result['chip_title']}, at {percent(result['rates']['mfu'])} of their dense peak.",
            tiles),
        section("Change the plan", "The tiles, the ruler and the thresholds follow the sliders; "
                "the other tables are those of the plan as it was made.",
                tag("div", _controls(result), _more_tiles(result, data), class_="plan")),
        section("Compute", "Published runs by 6 N D, and the thresholds of laws. A threshold "
                "counts all training of a model, so later stages come on top.",
                tag("figure", _ruler(result), class_="ruler"), _thresholds(result)),
        section("Parameters and tokens", "The same FLOPs divided otherwise, with the loss that "
                "Hoffmann's law predicts for its own data (arXiv 2203.15556, approach 3).",
                _allocations(result)),
        *_memory(result), _notes(result), _sources(result),
        style=STYLE.read_text(),
        script=f"const PLAN = {format_json(data)};\n{SCRIPT.read_text()}")


def page_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the script computes from."""
    chip, rates, sizes = result["chip"], result["rates"], result["checkpoint_bytes"]
    whole = 6 * result["active_params"] * result["tokens"]
    held = BYTES_PER_PARAM * result["params"]
    if sizes:       # what a checkpoint has, and the gradient
        held = sizes["state"] + sizes["weights_float32"]
    peaks = {name: chip_peak_flops(name) for name in TABLES["chips"]}
    peaks[chip] = rates["peak_flops"]       # of the plan's own dtype
    chips = {name: {"peak_flops": peaks[name], **{field: row[field] for field in
                                                  ("watts", "memory_gb", "usd_per_hour")}}
             for name, row in TABLES["chips"].items()}
    chips[chip]["watts"] = rates["watts"]
    return {"law": dataclasses.asdict(HOFFMANN), "chips": chips, "rates": rates,
            "thresholds": TABLES["thresholds"], "ruler": [*_decades(result), LEFT, RIGHT],
            "flops_ratio": result["planned_flops"] / whole,
            "bytes_per_param": held / result["active_params"],
            "start": {"params": result["active_params"], "tokens": result["tokens"],
                      "num_chips": result["num_chips"], "chip": chip,
                      **{name: rates[name] for name in
                         ("mfu", "usd_per_hour", "kg_per_kwh", "failure_chip_hours")}}}


def _live(name: str, text: str) -> Markup:
    """A text that the script replaces."""
    return tag("span", text, id=name)


def _scientific(value: float) -> str:
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")


def _or_unknown(form: Any, value: float | None) -> str:
    return "unknown" if value is None else form(value)


def _controls(result: Mapping[str, Any]) -> Markup:
    """Sliders, and the choices of chip and grid."""
    rates = result["rates"]
    values = {"params": result["active_params"], "tokens": result["tokens"],
              "num_chips": result["num_chips"], **rates}
    texts = {"params": amount, "tokens": amount, "mfu": percent,
             "usd_per_hour": lambda value: f"${value:.2f}"}
    sliders = []
    for name, label, low, high, is_log in SLIDERS:
        value, low, high = ((math.log10(x) for x in (values[name], low, high)) if is_log
                            else (values[name], low, high))
        sliders.append(tag(
            "div", tag("label", label, for_=name),
            tag("output", texts.get(name, number)(values[name]), id=f"{name}_shown", for_=name),
            tag("input", type="range", id=name, min=low, max=high, step=0.005,
                value=round(value, 4), data_scale="log" if is_log else "linear"),
            class_="control"))
    grids = {row["title"]: row["kg_per_kwh"] for row in TABLES["grids"].values()}
    if rates["kg_per_kwh"] not in grids.values():
        grids = {"as given": rates["kg_per_kwh"], **grids}
    return tag("div", _select("chip", "Chip", {row["title"]: name for name, row in
                                               TABLES["chips"].items()}, result["chip"]),
               sliders, _select("grid", "Electricity", grids, rates["kg_per_kwh"]))


def _select(name: str, label: str, options: Mapping[str, Any], chosen: Any) -> Markup:
    return tag("div", tag("label", label, for_=name), tag("select", [
        tag("option", title, value=value, selected="" if value == chosen else None)
        for title, value in options.items()], id=name), class_="control")


def _more_tiles(result: Mapping[str, Any], data: Mapping[str, Any]) -> Markup:
    """The numbers beside the sliders."""
    bill, rates = result["bill"], result["rates"]
    held = data["bytes_per_param"] * result["active_params"] / result["num_chips"]
    memory_gb = TABLES["chips"][result["chip"]]["memory_gb"]
    loss = HOFFMANN.loss(result["active_params"], result["tokens"])
    rows = [
        ("Chip-hours", "chip_hours", number(bill["paid_chip_hours"]), "chip_hours_note",
         f"{number(bill['chip_hours'])} without interruptions"),
        ("Energy", "energy", _or_unknown(energy, bill["kwh"]), "energy_note",
         "no power is published" if bill["kwh"] is None else
         f"{rates['watts']:g} W a chip, PUE {rates['pue']:g}"),
        ("Ratio", "ratio", number(result["tokens_per_param"]), "ratio_note",
         f"tokens a parameter; predicted loss {loss:.3f} nats"),
        ("State of a chip", "memory", f"{number(held / 1e9)} GB", "memory_note",
         f"of {memory_gb} GB: parameters, optimizer, gradient, cut evenly"),
        ("Interruptions", "interruptions", number(bill["num_interruptions"]),
         "interruptions_note", f"one in {duration(bill['failures']['mean_hours'] / 24)}"),
        ("Checkpoint", "checkpoint",
         f"every {duration(bill['failures']['save_every_secs'] / 86_400)}", "checkpoint_note",
         "the interval that loses least to interruptions")]
    return tag("dl", [tag("div", tag("dt", name), tag("dd", text, class_="number", id=place),
                          tag("dd", note, id=note_place))
                      for name, place, text, note_place, note in rows], class_="tiles two")


def _decades(result: Mapping[str, Any]) -> tuple[int, int]:
    """The ruler's ends as powers of ten: all published runs and the plan lie between."""
    exponent = math.log10(result["planned_flops"])
    return min(22, math.floor(exponent)), max(27, math.ceil(exponent))


def _ruler(result: Mapping[str, Any]) -> Markup:
    """Published runs, thresholds and the plan on a logarithmic axis of FLOPs."""
    low, high = _decades(result)
    scale = Scale(low, high, LEFT, RIGHT)

    def place(flops: float) -> float:
        return scale(math.log10(flops))

    ticks = [join(tag("line", x1=scale(n), x2=scale(n), y1=AXIS - 4, y2=AXIS + 4, class_="axis"),
                  tag("text", f"1e{n}", x=scale(n), y=AXIS + 20, text_anchor="middle"))
             for n in range(low, high + 1)]
    laws = [join(tag("line", x1=place(one["flops"]), x2=place(one["flops"]), y1=AXIS - 16,
                     y2=AXIS + 32, class_="law"),
                 tag("text", one["name"], x=place(one["flops"]), y=AXIS + 46, text_anchor="middle",
                     class_="law-name")) for one in TABLES["thresholds"]]
    runs = sorted((6 * run["params"] * run["tokens"], run["name"]) for run in TABLES["runs"])
    levels: list[float] = []        # where the last label of each height ends
    dots = []
    for flops, name in runs:
        x, half = place(flops), CHARACTER * len(name) / 2
        level = next((n for n, end in enumerate(levels) if end < x - half), len(levels))
        levels[level:level + 1] = [x + half]
        y = AXIS - 18 - 17 * level
        dots += [tag("line", x1=x, x2=x, y1=y + 3, y2=AXIS, class_="grid"),
                 tag("circle", cx=x, cy=AXIS, r=5, class_="run"),
                 tag("text", name, x=x, y=y, text_anchor="middle", class_="run-name")]
    marker = tag("g", tag("line", x1=0, x2=0, y1=26, y2=AXIS + 8, class_="plan-line"),
                 tag("text", "this plan", x=0, y=18, text_anchor="middle", class_="plan-name"),
                 id="marker", transform=f"translate({place(result['planned_flops'])} 0)")
    return tag("svg", tag("line", x1=LEFT, x2=RIGHT, y1=AXIS, y2=AXIS, class_="axis"), ticks, laws,
               marker, dots, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img",
               aria_label="FLOPs of published runs, thresholds and this plan")


def _thresholds(result: Mapping[str, Any]) -> Markup:
    reached = {one["name"]: one["frac"] for one in result["thresholds"]}
    return table(["threshold", "this plan", "what the rule says", "source"], [
        [f"{one['name']}, {one['flops']:.0e}".replace("+", ""),
         _live(f"threshold_{index}", share(reached[one["name"]])), one["rule"],
         f"{one['source']}, {one['date']}"] for index, one in enumerate(TABLES["thresholds"])],
        "limit")


def _allocations(result: Mapping[str, Any]) -> Markup:
    rows = [[one["name"], amount(one["params"]), amount(one["tokens"]),
             number(one["tokens_per_param"]), _scientific(one["flops"]),
             f"{one['loss_nats']:.3f}"] for one in result["allocations"]]
    head = ["", "parameters", "tokens", "tokens a parameter", "FLOPs", "loss, nats"]
    if any(one["lifetime_flops"] > one["flops"] for one in result["allocations"]):
        head.append("FLOPs of its life")
        rows = [[*row, _scientific(one["lifetime_flops"])]
                for row, one in zip(rows, result["allocations"])]
    return table(head, rows, "numbers")


def _memory(result: Mapping[str, Any]) -> list[Markup]:
    """Memory of a chip by part, with the mesh, and sizes on disk."""
    memory, sizes = result["memory"], result["checkpoint_bytes"]
    parts = []
    if memory:
        limit = memory["limit_bytes"]
        held = [(PART_NAMES[name], size, f"tint{index % 7}") for index, (name, size) in
                enumerate((name, size) for name, size in memory["bytes"].items() if size)]
        bar = tag("div", [tag("div", class_=f"segment {tint}",
                              style=f"width:{100 * size / limit:.2f}%", title=name)
                          for name, size, tint in held], class_="stack")
        keys = tag("ul", [tag("li", tag("span", class_=f"swatch {tint}"), f"{name} ",
                              tag("b", data_size(size))) for name, size, tint in held],
                   class_="keys")
        mesh = " x ".join(f"{axis} {size}" for axis, size in memory["mesh"].items())
        rows = [["mesh", mesh or "one device"],
                ["step", f"{memory['batch_rows']:,} rows of {memory['row_length']:,}: "
                 f"{amount(memory['tokens_per_step'])} tokens; {memory['num_steps']:,} steps"],
                ["at a time", f"{memory['rows']:,} rows a chip, {memory['num_microbatches']:,} "
                 "micro-batches"]]
        parts = [tag("div", bar, class_="bytes"), keys, table(["", ""], rows, "limit")]
    if sizes:
        parts.append(table(["on disk", "size"], [
            ["a checkpoint to resume from", data_size(sizes["state"])],
            ["the weights in float32", data_size(sizes["weights_float32"])],
            ["the weights in bfloat16", data_size(sizes["weights_bfloat16"])]], "limit"))
    if not parts:
        return []
    lede = (f"{data_size(memory['peak_bytes'])} of {data_size(memory['limit_bytes'])}. Parameters, "
            "optimizer state and gradient are exact; the rest is an estimate, which python -m "
            "train.fit measures." if memory else "No mesh of these chips was found.")
    return [section("Memory", lede, *parts)]


def _notes(result: Mapping[str, Any]) -> Markup:
    return section("Notes", "What is unusual or uncertain about this plan.",
                   tag("ul", [tag("li", text) for text in result["notes"]])
                   if result["notes"] else tag("p", "Nothing."))


def _sources(result: Mapping[str, Any]) -> Markup:
    """Where the numbers come from, with dates."""
    chip, failures = TABLES["chips"][result["chip"]], TABLES["failures"]
    six = result["flops"]["6ND"]
    rows = [["FLOPs", ", ".join(f"{_scientific(flops)} "
                                f"({'6 N D' if name == '6ND' else f'exact, {name} attention'}"
                                f"{'' if name == '6ND' else f', {flops / six - 1:+.1%}'})"
                                for name, flops in result["flops"].items()), ""],
            ["Counted with", result["model"] or "the size alone", ""],
            ["Hours follow from", "6 N D" if result["count"] == "6ND" else
             f"the exact count, {result['count']}", ""],
            ["Peak and power", chip["source"], chip["date"]],
            ["Price by default", chip["price_source"], chip["price_date"]],
            ["Carbon by default", TABLES["grids_source"], TABLES["grids"]["world"]["date"]],
            ["Interruptions by default", failures["source"], failures["date"]],
            ["Assumed", failures["assumed"], ""],
            *([run["name"], run["source"], ""] for run in TABLES["runs"])]
    return section("Sources", "Rows of train/plan/tables.json, which may be changed there.",
                   table(["", "source", "date"], rows, "sources"))
