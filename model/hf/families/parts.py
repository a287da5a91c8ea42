"""What the tables of several families share."""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig
from model.hf.fields import Fields
from model.hf.tables import Entry

# Activations of a single projection, by their names in transformers; the last three are one
# formula, and the first name that stands for ours is the one that is written.
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "gelu_pytorch_tanh": "gelu_tanh"}


def activation_name(mlp: str) -> str | None:
    """The name of an activation in transformers; None if it is none of a single projection."""
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == mlp), None)


def linear(ours: str, theirs: str, axes: str, *, bias: str = "", pick: str = "") -> list[Entry]:
    """A weight and, if its axes are given, its bias.

    Args:
        ours: the weight with its letters, as ``blocks/wq_DHK``.
        theirs: the module; its tensors are `weight` and `bias`.
        axes, bias: axes of the two tensors, as in `Entry`.
        pick: see `Entry`.
    """
    table = [Entry(ours, f"{theirs}.weight", axes, pick)]
    if bias:
        own = bias.strip("()").replace(pick[:1], "") if pick else bias.strip("()")
        name = f"{ours.rpartition('_')[0]}_bias_{own}"
        table.append(Entry(name, f"{theirs}.bias", bias, pick))
    return table


def layer_norm(ours: str, theirs: str) -> list[Entry]:
    """A LayerNorm's weight and bias."""
    return [Entry(f"{ours}_D", f"{theirs}.weight", "D"),
            Entry(f"{ours}_bias_D", f"{theirs}.bias", "D")]


def read_sizes(hf: Fields) -> dict[str, Any]:
    """The sizes of what is laid out like Llama."""
    width, heads = hf.count("hidden_size"), hf.count("num_attention_heads")
    head_size = hf.get("head_dim")
    if head_size is None and width % heads:
        hf.refuse("num_attention_heads", f"does not divide hidden_size={width}")
    return {"V": hf.count("vocab_size"), "D": width, "N": hf.count("num_hidden_layers"),
            "H": heads, "G": hf.count("num_key_value_heads", heads),
            "K": width // heads if head_size is None else hf.count("head_dim"),
            "F": hf.count("intermediate_size")}


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_sizes`."""
    c = config
    return {"vocab_size": c.V, "hidden_size": c.D, "num_hidden_layers": c.N,
            "num_attention_heads": c.H, "num_key_value_heads": c.G, "head_dim": c.K,
            "intermediate_size": c.F}


def read_pattern(hf: Fields, *, default: int) -> int:
    """Every how many layers one is global, of layers that are windowed otherwise.

    Args:
        default: where no field says it; 0 if none may be absent.

    Raises:
        UserError: the layers follow no such pattern.
    """
    kinds, num_layers = hf.get("layer_types"), hf.count("num_hidden_layers")
    given = hf.get("sliding_window_pattern", hf.get("_sliding_window_pattern"))
    if kinds is None:
        name = "sliding_window_pattern" if "sliding_window_pattern" in hf or not default else \
            "_sliding_window_pattern"
        return hf.count(name, default or None)
    full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    # Where no layer is global, any number above that of the layers means the same.
    every = full[0] + 1 if full else given if type(given) is int and given > num_layers else \
        num_layers + 1
    if list(kinds) != layer_types(num_layers, every):
        hf.refuse("layer_types", "is no pattern in which every so many layers one is global")
    return every


def layer_types(num_layers: int, every: int) -> list[str]:
    """The kind of each layer, of which one in so many is global."""
    return ["sliding_attention" if (i + 1) % every else "full_attention"
            for i in range(num_layers)]
