"""What a model is made of and what it costs: parameters, bytes, FLOPs and cache.

    python -m model.summary --preset=qwen3-0.6b
    python -m model.summary --model=runs/quickstart-cpu/rl
    python -m model.summary --config=configs/pretrain.py:12 --context=4096

Nothing is made or loaded: the counts are those of shapes. FLOPs are per token, at rows of
`--context` tokens; for an encoder-decoder, of both rows over the tokens of one.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from absl import flags

from core import entry
from core.errors import UserError
from core.overrides import define_config_flag
from core.progress import format_count, log
from model.config import ModelConfig
from model.directory import read_description
from model.families.registry import abstract_params
from model.flops import (
    ATTENTION_COUNTS,
    forward_flops_per_token,
    num_global_layers,
    train_flops_per_token,
)
from model.generation.cache import PIECE, layer_capacity
from model.parallel.sharding import leaf_name, param_name
from model.presets import find_preset
from model.section import read_section

CONTEXT = 2048      # of a preset, unless its table of positions is shorter
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}    # of a parameter; scales of int8 not included
EXPERTS = ("w_gate_EDF", "w_up_EDF", "w_down_EFD")


def summarise(config: ModelConfig, context: int) -> dict[str, Any]:
    """Everything that the command prints.

    Args:
        context: tokens of a row, and of a cache.

    Returns:
        `parameters`, `bytes`, `flops_per_token`, `cache_bytes` and `parts`; counts are whole.
    """
    return {"parameters": count_parameters(config),
            "bytes": {dtype: size * count_parameters(config)["total"]
                      for dtype, size in BYTES.items()},
            "context": context,
            "flops_per_token": {
                name: {attention: round(flops(config, context, attention))
                       for attention in ATTENTION_COUNTS}
                for name, flops in (("forward", forward_flops_per_token),
                                    ("training", train_flops_per_token))},
            "cache_bytes": cache_bytes(config, context),
            "parts": describe(config)}


def count_parameters(config: ModelConfig) -> dict[str, Any]:
    """Parameters: `total`, `without_embedding` (its tables), `active` (those that a token of a
    mixture of experts meets, tables included) and `by_part`."""
    by_part: Counter[str] = Counter()
    total = idle = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        by_part[_part(leaf_name(path), param_name(path))] += leaf.size
        total += leaf.size
        if param_name(path) in EXPERTS:
            idle += leaf.size // config.E * (config.E - config.experts_per_token)
    return {"total": total, "without_embedding": total - by_part["embedding"],
            "active": total - idle, "by_part": dict(by_part)}


def cache_bytes(config: ModelConfig, context: int) -> dict[str, int]:
    """Bytes of a row's cache in bfloat16.

    Returns:
        per_token: of each token, as long as no window is full.
        at_context: of a row of so many tokens, where a layer with a window keeps that window.
        held: what `make_cache` holds for it, which is of a window some tokens more.
        For an LSTM, `at_context` is its state; an encoder has none.
    """
    c = config
    if c.family == "encoder":
        return {"per_token": 0, "at_context": 0, "held": 0}
    if c.family == "lstm":
        state = c.N * (2 * c.D + 4 * c.F)
        return {"per_token": 0, "at_context": state, "held": state}
    layer = 2 * c.G * c.K * BYTES["bfloat16"]
    num_global = num_global_layers(c, c.N)
    source = c.N * layer * context if c.family == "encoder_decoder" else 0
    kept = num_global * context + (c.N - num_global) * min(c.window, context)
    return {"per_token": c.N * layer, "at_context": layer * kept + source,
            "held": layer * sum(layer_capacity(c, n, context, PIECE) for n in range(c.N)) + source}


def describe(config: ModelConfig) -> dict[str, str]:
    """The parts by name."""
    c = config
    heads = "MHA" if c.G == c.H else "MQA" if c.G == 1 else "GQA"
    positions = c.positions
    if c.positions == "rope":
        positions += f" {c.rope_theta:g}" + f", {c.rope_frac:g} of a head" * (c.rope_frac < 1)
        positions += f", {c.rope_scaling} x {c.rope_factor:g}" * (c.rope_scaling != "none")
    attention = [f"{heads} {c.H}/{c.G} x {c.K}"] + [text for text, is_so in (
        ("QK-norm", c.qk_norm), (f"window {c.window}", c.window),
        (f"1 of {c.global_every} layers global", c.global_every),
        (f"cap {c.attention_softcap:g}", c.attention_softcap), ("sinks", c.sinks),
        ("biases", c.attention_bias)) if is_so]
    mlp = f"{c.mlp} {c.F}" + ", biases" * c.mlp_bias
    if c.E:
        mlp += f", {c.experts_per_token} of {c.E} experts"
        mlp += f" and {c.shared_experts} shared" * bool(c.shared_experts)
    parts = {"family": c.family, "layers": str(c.N), "width": str(c.D), "vocabulary": str(c.V),
             "norm": c.norm, "residual": c.residual, "positions": positions,
             "attention": ", ".join(attention), "mlp": mlp,
             "head": "one score" if c.score_head else "tied" if c.tied else "untied"}
    if c.family == "encoder_decoder":
        parts["layers"] = f"{c.encoder_layers} and {c.N}"
    if c.family == "lstm":
        parts |= {"mlp": "", "attention": "", "positions": "", "state": str(c.F)}
    return {name: text for name, text in parts.items() if text}


def _part(path: str, name: str) -> str:
    """The part of a model that a parameter belongs to."""
    stack = "encoder " * path.startswith("encoder/")
    if name.startswith("embed_") and "norm" not in name:
        return "embedding"
    if "norm" in name:
        return f"{stack}norms"
    if name.startswith(("head_", "transform_", "score_")):
        return "head"
    if name.startswith("router"):
        return f"{stack}router"
    if name.startswith(("shared_w", "w_gate", "w_up", "w_down")):
        return f"{stack}mlp"
    if name.startswith("cross_"):
        return "cross attention"
    if name.startswith(("w_in", "w_state", "w_out", "gates_")):
        return "lstm"
    return f"{stack}attention"


def rows_of(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the table: what, and how much."""
    parameters, context = result["parameters"], result["context"]
    rows = [*result["parts"].items(), ("parameters", f"{parameters['total']:,}"),
            ("  without embedding", f"{parameters['without_embedding']:,}")]
    if parameters["active"] != parameters["total"]:
        rows.append(("  active for a token", f"{parameters['active']:,}"))
    rows += [(f"  {part}", f"{count:,}") for part, count in parameters["by_part"].items() if count]
    rows += [(dtype, _bytes(count)) for dtype, count in result["bytes"].items()]
    rows += [(f"{name} FLOPs a token at {context:,}", ", ".join(
        f"{format_count(count)} ({attention})" for attention, count in flops.items()))
        for name, flops in result["flops_per_token"].items()]
    cache = result["cache_bytes"]
    if cache["at_context"]:
        rows += [("cache of a token", _bytes(cache["per_token"])),
                 (f"cache at {context:,}", _bytes(cache["at_context"])
                  + f", {_bytes(cache['held'])} held" * (cache["held"] != cache["at_context"]))]
    return rows


def _bytes(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit),
                      (1e3, "kB"))
    return f"{count / unit:.4g} {name}"


def show(title: str, rows: list[tuple[str, str]]) -> None:
    """Shows a table on stderr: with lines on a terminal, in plain columns elsewhere."""
    if not sys.stderr.isatty():
        width = max(len(name) for name, _ in rows)
        log("\n".join([title, *(f"  {name:{width}}  {text}" for name, text in rows)]))
        return
    from rich.console import Console
    from rich.table import Table
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)


def open_config() -> tuple[str, ModelConfig, int]:
    """The title, architecture and context of the model that the flags name.

    Raises:
        UserError: not exactly one is named, or it is unknown.
    """
    values = flags.FLAGS
    given = [name for name in ("preset", "model", "config") if values[name].value]
    if len(given) != 1:
        raise UserError(" ".join(f"--{name}" for name in given) or "--preset",
                        "exactly one of --preset, --model and --config names the model",
                        "give one, for example --preset=gpt2")
    if given == ["preset"]:
        config = find_preset(values.preset)
        return values.preset, config, min(CONTEXT, config.max_positions or CONTEXT)
    if given == ["model"]:
        described = read_description(Path(values.model))
        return values.model, described.config, described.context_tokens
    for name in ("model", "tokenizer", "pretrain"):
        if name not in values.config:
            raise UserError(f"config.{name}", "this config has no such section",
                            "use a config that pretrains")
    config = read_section(values.config.model, values.config.tokenizer.vocab_size)
    return "config", config, values.config.pretrain.row_length


def main() -> dict[str, Any]:
    """Reads the flags, shows the table and returns its numbers."""
    title, config, context = open_config()
    context = flags.FLAGS.context or context
    if config.max_positions and context > config.max_positions:
        raise UserError(f"--context={context}", f"exceeds max_positions={config.max_positions} of "
                        "this model", f"give at most {config.max_positions}")
    result = summarise(config, context)
    show(title, rows_of(result))
    return result


if __name__ == "__main__":
    define_config_flag()
    flags.DEFINE_string("preset", None, "Name of a published architecture; see model/presets.py.")
    flags.DEFINE_string("model", None, "Model directory.")
    flags.DEFINE_integer("context", None, "Tokens of a row, for FLOPs and cache; by default those "
                         "that a model was trained on.", lower_bound=1)
    entry.run(main)
