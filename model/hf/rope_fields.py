"""RoPE in a `config.json`: as transformers 5 writes it, as those before did, or both."""

from __future__ import annotations

import math
from typing import Any

from model.config import ModelConfig
from model.hf.fields import Fields

# Of each kind of scaling, which of its fields are ours; beside `factor`.
TURNS = {"llama3": {"rope_low": "low_freq_factor", "rope_high": "high_freq_factor"},
         "yarn": {"rope_low": "beta_slow", "rope_high": "beta_fast"}}
YARN_TURNS = {"beta_slow": 1.0, "beta_fast": 32.0}      # where the file leaves them out
KINDS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


def read_rope(hf: Fields, *, theta: str = "rope_theta", frac: str = "partial_rotary_factor",
              frac_default: float = 1.0) -> dict[str, Any]:
    """Our fields of RoPE from `rope_parameters`, or from `rope_scaling` and `rope_theta`.

    Args:
        theta, frac: names outside of `rope_parameters`.
        frac_default: share of a head that is rotated where no field says it.

    Raises:
        UserError: a kind of scaling that we do not have, a field of it that is missing or unknown,
            or the two spellings disagree.
    """
    rope = hf.inner("rope_parameters") or hf.inner("rope_scaling")
    for name, outside in (("rope_theta", theta), ("partial_rotary_factor", frac)):
        if name in rope and outside in hf and rope[name] != hf[outside]:
            hf.refuse(outside, f"differs from the {name} of rope_parameters")
    frac_value = (rope.number("partial_rotary_factor") if "partial_rotary_factor" in rope
                  else hf.number(frac, frac_default))
    theta_value = rope.number("rope_theta") if "rope_theta" in rope else hf.number(theta)
    return {"rope_theta": float(theta_value), "rope_frac": float(frac_value)} | read_scaling(rope)


def read_scaling(rope: Fields) -> dict[str, Any]:
    """Our fields of the scaling that `rope_parameters` or `rope_scaling` asks for."""
    kind = KINDS["default"]
    for name in ("rope_type", "type"):
        if name in rope:
            kind = rope.choice(name, KINDS)
            break
    rope.pass_over("rope_theta", "partial_rotary_factor", "type")
    fields: dict[str, Any] = {}
    if kind != "none":
        fields = {"rope_scaling": kind, "rope_factor": float(rope.number("factor"))}
    if kind in TURNS:
        fields["rope_context"] = rope.count("original_max_position_embeddings")
        for ours, theirs in TURNS[kind].items():
            default = YARN_TURNS[theirs] if kind == "yarn" else None
            fields[ours] = float(rope.number(theirs, default))
    if kind == "yarn":
        rope.only("truncate", True)
        scale = 0.1 * math.log(fields["rope_factor"]) + 1
        if abs(rope.number("attention_factor", scale) - scale) > 1e-6:
            rope.refuse("attention_factor", f"is not {scale:.6g}, that of the paper")
    if kind not in TURNS:
        rope.pass_over("original_max_position_embeddings")
    for name in rope.unread():
        rope.refuse(name, f"is no field of rope_type={kind!r} that we know")
    return fields


def write_scaling(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_scaling`."""
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    rope: dict[str, Any] = {"rope_type": kinds[config.rope_scaling]}
    if config.rope_scaling != "none":
        rope["factor"] = config.rope_factor
    if config.rope_scaling in TURNS:
        rope["original_max_position_embeddings"] = config.rope_context
        rope |= {theirs: getattr(config, ours)
                 for ours, theirs in TURNS[config.rope_scaling].items()}
    return rope


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_rope` in both spellings, for readers of either."""
    rope = write_scaling(config)
    return {"rope_theta": config.rope_theta,
            "rope_scaling": None if config.rope_scaling == "none" else rope,
            "rope_parameters": rope | {"rope_theta": config.rope_theta}}
