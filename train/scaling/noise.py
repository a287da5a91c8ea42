"""The command `noise`: the noise scale of a model, and what it implies for its batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from core.artifacts import read_json, read_lineage, write_json
from core.errors import UserError, require_file
from core.progress import format_count, log
from data.batch import Batch, stack
from data.domains import POOLS
from data.tokens.mixture import count_drawn, mixture
from data.tokens.rows import TokenRows, check_tokenizer
from eval.respond.loaded import LoadedModel, load_model
from model.execution import Execution
from train.loss import next_token_loss
from train.scaling.figures import draw_noise, load_matplotlib
from train.scaling.gradients import measure_norms
from train.scaling.noise_scale import (
    GradientNorms,
    noise_intervals,
    relative_examples,
    relative_steps,
)

LIMITS = ("B_simple is the critical batch of SGD where the Hessian is a multiple of the identity "
          "(arXiv 1812.06162, section 2.2). With Adam or Muon, and with curvature that differs by "
          "direction, larger batches can stop paying off at a batch several times smaller or "
          "larger. It is of this checkpoint, and grows as the loss falls.")
SEED = 1    # of the rows; runs of pretraining draw theirs with seed 0 by default
FACTORS = (1 / 16, 1 / 4, 1, 4, 16)     # of the noise scale: batches in the table


def noise(values: Any) -> dict[str, Any]:
    """Runs the command with these flags: measures, writes `noise.json`, and returns it.

    Raises:
        UserError: a flag is missing or does not fit, the tokens are another tokenizer's or too
            few, the model does not continue text, or noise hides its gradient.
    """
    folder, tokens, out = (_folder(values, name) for name in ("model", "tokens", "out"))
    small, large = _batch_rows(values.batch_rows)
    if values.figures:
        load_matplotlib()   # it is missed now, and not after the measurement
    model = load_model(folder, Execution(loss_chunks=0))
    check_tokenizer(tokens, model.tokenizer.fingerprint, "--tokens")
    section = read_lineage(folder)["config"].get("pretrain") or {}
    weights = _weights(values.domains, tokens, section)
    batches = draw_batches(tokens, weights, model.context_tokens, large, values.batches)
    norms = measure_model(model, batches, large // small)
    row_tokens = norms.batch_tokens / small
    training = section.get("batch_size", 0) * section.get("row_length", 0)
    result = {"model": str(folder), "tokens": str(tokens), "mixture": weights,
              "row_length": model.context_tokens, "batch_rows": [small, large],
              "batches": values.batches, "tokens_per_row": row_tokens,
              } | describe_noise(norms, training) | {"limits": LIMITS}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "noise.json", result)
    print(show_noise(result), flush=True)
    log(f"noise: {LIMITS}")
    return result | ({"figures": [str(draw_noise(out, result))]} if values.figures else {})


def draw_batches(tokens: Path, weights: Mapping[str, float], row_length: int, num_rows: int,
                 num_batches: int) -> list[Batch]:
    """Disjoint batches of random rows of a token folder.

    Args:
        weights: share of rows from each domain.

    Raises:
        UserError: a domain is not in the folder, or has too few rows.
    """
    total = num_rows * num_batches
    rows = mixture(tokens, weights, row_length, num_rows=total, seed=SEED)
    for name, drawn in count_drawn(weights, total, {}).items():
        held = len(TokenRows(tokens, name, row_length))
        if drawn["rows"] > held:
            raise UserError(
                f"{num_batches} batches of {num_rows} rows", f"need {drawn['rows']:,} rows of "
                f"{name}, which has {held:,} of {row_length} tokens",
                "lower --batches or --batch_rows, or name more --domains")
    return [stack([rows[number] for number in range(first, first + num_rows)])
            for first in range(0, total, num_rows)]


def measure_model(model: LoadedModel, batches: Sequence[Batch], num_small: int) -> GradientNorms:
    """Norms of the gradients of a model's cross-entropy; errors as `measure_norms`."""
    loss_fn = partial(next_token_loss, config=model.config, execution=model.execution)
    return measure_norms(loss_fn, model.params, batches, num_small=num_small,
                         key=jax.random.key(0))


def describe_noise(norms: GradientNorms, training_tokens: float) -> dict[str, Any]:
    """The estimates with their intervals, and what they imply for some batch sizes.

    Args:
        training_tokens: the batch that the model was trained with; 0 where it is not known.

    Raises:
        UserError: as `train.scaling.noise_scale.noise_intervals`.
    """
    found = noise_intervals(norms)
    scale = found["noise_scale"]
    batches = sorted([(scale.value * factor, False) for factor in FACTORS]
                     + [(float(training_tokens), True)] * bool(training_tokens))
    return {"squared_norm": found["squared_norm"]._asdict(), "trace": found["trace"]._asdict(),
            "noise_scale_tokens": scale._asdict(),
            "norms": [{"batch_tokens": size, "squared_norm": squared}
                      for size, squared in norms.squared_norms().items()],
            "implied": [{"batch_tokens": size, "is_training": is_training,
                         "relative_steps": float(relative_steps(size, scale.value)),
                         "relative_tokens": float(relative_examples(size, scale.value))}
                        for size, is_training in batches]}


def show_noise(result: Mapping[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    squared, trace, scale = (result[name] for name in ("squared_norm", "trace",
                                                       "noise_scale_tokens"))
    lines = ["| | estimate | 95 % interval |", "|---|---|---|"]
    for name, each in (("&#124;G&#124;^2", squared), ("tr(Sigma), of a token", trace),
                       ("B_simple, tokens", scale)):
        lines.append(f"| {name} | {each['value']:.4g} | {each['low']:.4g} to {each['high']:.4g} |")
    lines += ["", "| batch, tokens | squared norm | by the law |", "|---|---|---|"]
    for each in result["norms"]:
        law = squared["value"] + trace["value"] / each["batch_tokens"]
        lines.append(f"| {each['batch_tokens']:,.0f} | {each['squared_norm']:.4g} | {law:.4g} |")
    lines += ["", "| batch, tokens | steps over the fewest | tokens over the fewest |",
              "|---|---|---|"]
    for each in result["implied"]:
        size = format_count(each["batch_tokens"]) + ", in training" * each["is_training"]
        lines.append(f"| {size} | {each['relative_steps']:.2f} | {each['relative_tokens']:.2f} |")
    return "\n".join(lines)


def _folder(values: Any, name: str) -> Path:
    given = getattr(values, name)
    if not given:
        raise UserError(f"--{name}", "is missing", f"name a folder: --{name}=PATH")
    return Path(given) if name == "out" else require_file(
        f"--{name}", given, "name a folder that a stage wrote")


def _batch_rows(words: Sequence[str]) -> tuple[int, int]:
    """Rows of small and large batches."""
    sizes = [int(word) if word.isdecimal() else 0 for word in words]
    if len(sizes) != 2 or not 0 < sizes[0] < sizes[1] or sizes[1] % sizes[0]:
        raise UserError(f"--batch_rows={','.join(words)}", "are no two numbers of rows of which "
                        "the second is a multiple of the first", "write --batch_rows=8,64")
    return sizes[0], sizes[1]


def _weights(domains: Sequence[str], tokens: Path, section: Mapping[str, Any]) -> dict[str, float]:
    """Shares of rows: of the named domains by their tokens, else those of the model's training."""
    held = {name: entry["tokens"] for name, entry in
            read_json(tokens / "tokens.json")["domains"].items()}
    if domains:
        if unknown := [name for name in domains if name not in held]:
            raise UserError(f"--domains={unknown[0]}", f"{tokens} holds {', '.join(sorted(held))}",
                            "name some of these")
        total = sum(held[name] for name in domains)
        return {name: held[name] / total for name in domains}
    weights = {name: weight for name, weight in (section.get("mixture") or {}).items() if weight}
    if not weights or not set(weights) <= set(held):
        raise UserError("--domains", "is missing, as the model's lineage names no mixture of these "
                        "tokens", f"name some of {', '.join(sorted(set(held) - {*POOLS}))}")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
