"""The section `model` of a config: every field, or a preset with what differs from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig, make_model_config
from model.mup import is_on, mup_of, scale_width_and_depth
from model.presets import find_preset


def read_section(section: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The architecture that a section asks for.

    Args:
        section: all fields of `ModelConfig` but V; or `preset`, a name, and any fields that
            replace those of the preset. `mup` may name a base to scale from.
        vocab_size: of the tokenizer, which a preset has too.

    Raises:
        UserError: the preset is unknown; or a field is missing, unknown or breaks a rule.
    """
    mup, fields = mup_of(section), {name: section[name] for name in section if name != "mup"}
    if "preset" in fields:
        preset = dataclasses.asdict(find_preset(fields.pop("preset"), "model.preset"))
        del preset["V"]
        fields = preset | fields
    config = make_model_config(fields, vocab_size)
    return scale_width_and_depth(config, **mup).config if is_on(mup) else config
