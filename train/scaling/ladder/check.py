"""What makes a ladder unfit for a law or a forecast, refused before anything is trained."""

from __future__ import annotations

from core.entry import find_parents
from core.errors import UserError
from core.progress import format_count, log
from eval.measures.likelihood import has_heldout
from train.pretrain import STAGE
from train.scaling.checks import check_sizes
from train.scaling.forms import Form
from train.scaling.ladder.plan import Ladder, PlannedRun

MIN_DEPTHS = 5      # of a forecast; a law alone asks less, see `check_sizes`
MIN_RATIOS = 2
PLACES = 6      # of a domain's share, to which those of all runs agree


def check_ladder(ladder: Ladder, form: Form, *, with_target: bool) -> None:
    """Refuses a ladder whose runs could not be fitted, or could not be compared.

    Args:
        with_target: whether the target is to be trained too.

    Raises:
        UserError: depths or lengths are too few or too much alike, a run would read data again,
            the runs' mixtures differ, or the target is missing or no larger than they are.
    """
    depths = sorted({run.depth for run in ladder.runs})
    if ladder.target is None and with_target:
        raise UserError("--run_target", "this ladder has no target",
                        "leave it out, or set --config.ladder.target.depth")
    if ladder.target is not None and len(depths) < MIN_DEPTHS:
        raise UserError(f"ladder.depths={tuple(depths)}", f"are fewer than {MIN_DEPTHS} sizes",
                        "add some with --config.ladder.depths=(1,2,3,4,5)")
    if len(ladder.runs) < MIN_RATIOS * len(depths):
        raise UserError("ladder.tokens_per_param", "holds one number, so the effects of parameters "
                        "and tokens cannot be told apart",
                        "add one with --config.ladder.tokens_per_param=(5,20)")
    check_sizes(ladder.sizes(), form)
    _check_same_sizes(ladder)
    _check_reading(ladder, with_target)
    largest = ladder.runs[-1]
    if ladder.target is not None and ladder.target.flops <= largest.flops:
        raise UserError(f"ladder.target, {ladder.target.name}", f"takes {ladder.target.flops:.3g} "
                        f"FLOPs, no more than {largest.name} with {largest.flops:.3g}",
                        "raise --config.ladder.target.depth, or leave out large depths")


def _check_same_sizes(ladder: Ladder) -> None:
    by_size: dict[tuple[int, int], PlannedRun] = {}
    for run in ladder.runs:
        other = by_size.setdefault((run.params, run.tokens), run)
        if other is not run:
            raise UserError(f"run {run.name}", f"has the parameters and the tokens of {other.name}",
                            "leave one of the two out of --config.ladder.depths or "
                            "--config.ladder.tokens_per_param, or remove the flag that makes them "
                            "equal")


def _check_reading(ladder: Ladder, with_target: bool) -> None:
    """All runs read the same mixture, and no domain twice."""
    first = ladder.runs[0]
    for run in ladder.with_target:
        if _shares(run) != _shares(first):
            raise UserError(f"run {run.name}", f"reads another mixture than {first.name}",
                            "give more data, or set --config.pretrain.max_epochs=0")
        domain, passes = max(run.epochs.items(), key=lambda item: item[1])
        if passes <= 1 or ladder.may_repeat:
            continue
        if run is ladder.target and not with_target:
            log(f"ladder: the forecast of {run.name} is for new data: the domain {domain} would "
                f"have to hold {passes:.2f} times as much")
            continue
        raise UserError(f"run {run.name}", f"would read the domain {domain} {passes:.2f} times in "
                        f"{format_count(run.tokens)} tokens, and the law is one of new data",
                        "give more data, lower --config.ladder.tokens_per_param, or allow it with "
                        "--config.ladder.repeats=allow")


def _shares(run: PlannedRun) -> list[tuple[str, str, float]]:
    """The share of each domain in each stream."""
    return sorted((phase.stream, domain, round(share, PLACES))
                  for phase in run.reading.phases for domain, share in phase.weights.items())


def check_metric(ladder: Ladder, metric: str) -> None:
    """Refuses a measure of held-out pages where the tokens have none."""
    run = ladder.runs[0]    # all read the same
    tokens = find_parents(STAGE, run.config, run.point.folder)["tokens"]
    if metric.startswith("heldout_") and not has_heldout(tokens):
        raise UserError(f"--metric={metric}", f"{tokens} holds no page out",
                        "curate the corpus with --config.curate.heldout.frac above 0")


def note_vocabulary(ladder: Ladder) -> None:
    """Logs where the tokens have another vocabulary than the dial's."""
    config, found = ladder.runs[0].config, ladder.runs[0].reading.model["V"]
    if found != config.tokenizer.vocab_size:
        log(f"ladder: the tokens have a vocabulary of {found}, and the config's sizes are for "
            f"{config.tokenizer.vocab_size}: the table's parameters and tokens are exact")
