"""Plans a pretraining run: size, FLOPs, chips, days, money, energy, carbon, memory.

    python -m train.plan --params=70e9 --tokens=15e12 --chip=h100 --num_chips=1024
    python -m train.plan --budget_usd=1e6 --html=plan.html
    python -m train.plan --preset=llama-3.1-405b --tokens=15.6e12 --num_chips=16384
    python -m train.plan --config=configs/quickstart.py:accelerator --days=1

One or two of parameters, tokens, compute, budget, and days with chips decide a run; the rest
follows, or is chosen as the table says. A config or preset gives its own parameters and exact
FLOPs; with parameters alone, FLOPs are 6 N D. Nothing is compiled: `python -m train.fit` measures
memory. Chips, prices and grids are rows of train/plan/tables.json, with sources and dates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import flags

from core import entry
from core.errors import UserError
from core.overrides import define_config_flag
from core.progress import log
from model.summary import show
from train.plan.page import render_plan
from train.plan.report import rows_of
from train.plan.request import Request, checked, define_flags, read_rates, read_request
from train.plan.result import describe_run
from train.plan.solve import solve
from train.plan.subject import Subject, open_subject, stand_in_subject
from train.plan.tables import find_row


def make_plan(values: flags.FlagValues) -> dict[str, Any]:
    """The plan that the flags ask for; see `train.plan.result.describe_run`.

    Raises:
        UserError: the flags decide too little, too much or what is impossible.
    """
    request, rates = read_request(values), read_rates(values)
    chip = values.chip.strip().lower()
    row_length = checked("row_length", values.row_length)
    subject, count = open_subject(values, row_length), "6ND"
    if subject is not None:
        request, count = _with_model(request, subject, values), "causal"
    run = solve(request, rates, find_row("chips", chip, "--chip")["chips_per_host"],
                lambda active: 6 * active if subject is None else subject.flops_per_token("causal"))
    if subject is None and run.active_params == run.params:
        subject = stand_in_subject(run.params, row_length)
    return describe_run(run, request, rates, chip, subject=subject, count=count,
                        batch_tokens=checked("batch_tokens", values.batch_tokens))


def _with_model(request: Request, subject: Subject, values: flags.FlagValues) -> Request:
    """The request with the parameters of a model and, where nothing else decides the tokens, those
    of its config's schedule."""
    total, active = subject.params()
    given = next(name for name in ("preset", "model", "config") if values[name].value)
    request = dataclasses.replace(request, params=total, active_params=active,
                                  params_flag=f"--{given}")
    if request.tokens is None and not request.work():
        request = dataclasses.replace(request, tokens=subject.tokens)
    return request


def main() -> dict[str, Any]:
    """Reads the flags, shows the table, writes the page and returns the numbers."""
    jax.config.update("jax_platforms", "cpu")
    path = Path(flags.FLAGS.html) if flags.FLAGS.html else None
    if path and not path.parent.is_dir():
        raise UserError(f"--html={str(path)!r}", "its folder does not exist",
                        "make the folder, or choose another")
    result = make_plan(flags.FLAGS)
    show("plan", rows_of(result))
    for text in result["notes"]:
        log(f"note: {text}")
    if path:
        path.write_text(render_plan(result))
        log(f"page: {path}")
    return result


if __name__ == "__main__":
    define_config_flag()
    define_flags()
    flags.DEFINE_string("preset", None, "Name of a published architecture; see model/presets.py.")
    flags.DEFINE_string("model", None, "Model directory.")
    flags.DEFINE_string("html", None, "File of a page with sliders, which needs no server.")
    entry.run(main)
