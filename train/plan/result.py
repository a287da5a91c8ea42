"""Everything that the planner prints, as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from model.flops import ATTENTION_COUNTS
from train.plan.allocation import (
    HOFFMANN,
    INFERENCE_RATIO,
    TRAINING_RATIO,
    Allocation,
    by_ratio,
    lifetime_optimum,
)
from train.plan.cost import PF_DAY_FLOPS, Rates
from train.plan.memory import USABLE_FRAC, checkpoint_bytes, find_mesh
from train.plan.request import Request
from train.plan.solve import Run
from train.plan.subject import Subject
from train.plan.tables import TABLES

MOST_TOKENS = 40e12         # published runs read up to 36T (arXiv 2505.09388)
MOST_MFU = 0.6
LAW_RATIO = 5000.0          # tokens a parameter, beyond which no law was tested


def describe_run(run: Run, request: Request, rates: Rates, chip: str, *,
                 subject: Subject | None, batch_tokens: float | None,
                 count: str) -> dict[str, Any]:
    """The command's result.

    Args:
        chip: its name in the table.
        subject: the model; None where there is no shape of the size.
        count: of FLOPs, that the hours follow from: `6ND`, or `causal`.
    """
    row = TABLES["chips"][chip]
    result = {
        "params": run.params, "active_params": run.active_params, "tokens": run.tokens,
        "tokens_per_param": run.tokens / run.active_params, "chosen": run.chosen,
        "flops": count_flops(run, subject), "count": count, "planned_flops": run.flops,
        "pf_days": run.flops / PF_DAY_FLOPS, "chip": chip, "chip_title": row["title"],
        "num_chips": run.num_chips,
        "rates": dataclasses.asdict(rates), "bill": dataclasses.asdict(run.bill),
        "effective_mfu": rates.mfu * run.bill.failures.goodput,
        "thresholds": [{"name": one["name"], "flops": one["flops"],
                        "frac": run.flops / one["flops"]} for one in TABLES["thresholds"]],
        "allocations": list_allocations(run, request),
        "model": subject.title if subject else None,
        "is_stand_in": subject.is_stand_in if subject else None}
    result |= describe_memory(run, subject, row, batch_tokens)
    return result | {"notes": list_notes(result, rates)}


def count_flops(run: Run, subject: Subject | None) -> dict[str, float]:
    """FLOPs of the run by convention: `6ND`, and the exact counts of matrix products with
    attention `causal` and `full`; of a stand-in, in proportion to its parameters."""
    counts = {"6ND": 6 * run.active_params * run.tokens}
    if subject is None:
        return counts
    scale = run.active_params / subject.params()[1]
    return counts | {attention: scale * run.tokens * subject.flops_per_token(attention)
                     for attention in ATTENTION_COUNTS}


def list_allocations(run: Run, request: Request) -> list[dict[str, Any]]:
    """Ways to divide the same FLOPs, and the cheapest life of a model as good as the planned one,
    where its inference is known; with the loss that Hoffmann's law predicts."""
    flops = 6 * run.active_params * run.tokens
    rows = [("this plan", Allocation(run.active_params, run.tokens)),
            (f"best to train, {TRAINING_RATIO:g} tokens a parameter",
             by_ratio(flops, TRAINING_RATIO)),
            ("best to train, Hoffmann's law", HOFFMANN.optimum(flops)),
            (f"to serve much, {INFERENCE_RATIO:g} tokens a parameter",
             by_ratio(flops, INFERENCE_RATIO))]
    if request.inference_tokens:
        loss = HOFFMANN.loss(run.active_params, run.tokens)
        rows.append((f"as good, cheapest with {request.inference_tokens:.3g} tokens served",
                     lifetime_optimum(loss, request.inference_tokens)))
    served = 2 * (request.inference_tokens or 0)
    return [{"name": name, "params": one.params, "tokens": one.tokens,
             "tokens_per_param": one.tokens / one.params, "flops": one.flops,
             "lifetime_flops": one.flops + served * one.params,
             "loss_nats": HOFFMANN.loss(one.params, one.tokens)} for name, one in rows]


def describe_memory(run: Run, subject: Subject | None, chip: dict[str, Any],
                    batch_tokens: float | None) -> dict[str, Any]:
    """`memory` of a device on a mesh that fits, None if none does; and `checkpoint_bytes`."""
    if subject is None:
        return {"memory": None, "checkpoint_bytes": None}
    training = subject.training(run.tokens, batch_tokens)
    sizes = checkpoint_bytes(training)
    limit = 1e9 * chip["memory_gb"]
    fit = find_mesh(training, run.num_chips, chip["chips_per_host"], limit)
    if fit is None:
        return {"memory": None, "checkpoint_bytes": sizes}
    tokens_per_step = fit.batch_rows * subject.row_length
    return {"checkpoint_bytes": sizes, "memory": {
        "mesh": fit.mesh, "bytes": fit.parts(), "peak_bytes": fit.peak, "limit_bytes": limit,
        "usable_frac": USABLE_FRAC, "rows": fit.rows, "row_length": subject.row_length,
        "num_microbatches": fit.num_microbatches, "batch_rows": fit.batch_rows,
        "tokens_per_step": tokens_per_step,
        "num_steps": math.ceil(run.tokens / tokens_per_step)}}


def list_notes(result: dict[str, Any], rates: Rates) -> list[str]:
    """What is unusual or uncertain about a plan, each in a line."""
    tokens, ratio = result["tokens"], result["tokens_per_param"]
    bill, active = result["bill"], result["active_params"]
    cases = [
        (tokens > MOST_TOKENS, f"{tokens:.3g} tokens are more than any published run has read "
         f"(36T): if they are bytes, about {tokens / 4.5:.2g} tokens"),
        (ratio < 1, f"fewer tokens ({tokens:.3g}) than parameters ({active:.3g}): are they "
         "exchanged?"),
        (ratio > LAW_RATIO, f"{ratio:,.0f} tokens a parameter: the law's loss is an extrapolation"),
        (rates.mfu > MOST_MFU, f"an MFU of {rates.mfu:g} is above what is published: PaLM 0.46, "
         "Llama 3 0.38 to 0.43"),
        (bill["days"] > 365, f"{bill['days']:,.0f} days: more chips, or a smaller run"),
        (bill["failures"]["goodput"] < 0.8, f"interruptions leave {bill['failures']['goodput']:.0%}"
         " of the time: fewer chips, or a faster restart"),
        (rates.watts is None, "no power of this chip is published: energy and carbon are unknown "
         "without --watts"),
        (result["memory"] is None, "no mesh of these chips was found: the model does not fit or "
         "the batch has too few rows for them" if result["model"] else "without a shape, "
         "memory and exact FLOPs are unknown: --preset or --config names one"),
        (bool(result["is_stand_in"]), f"only the size is known: memory and exact FLOPs are those "
         f"of {result['model']}; --preset or --config names another")]
    reached = [one["name"] for one in result["thresholds"] if one["frac"] >= 1]
    notes = [text for holds, text in cases if holds]
    return notes + ([f"reaches the thresholds: {', '.join(reached)}"] if reached else [])
