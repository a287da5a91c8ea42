"""muP and CompleteP: what carries hyperparameters over from a small model to a wide or deep one.

Tune at a base width and depth, then train with the same learning rate and decay at any other. With
m_D = D / base width and m_L = N / base depth (arXiv 2203.03466, table 8; arXiv 2505.01618, table 1
with alpha = 1):

    what attention and MLP add      times 1 / m_L
    logits                          times 1 / m_D
    learning rate                   of the layers' matrices 1 / m_D; of all else 1
    weight decay                    of the layers' matrices m_D: its product with the rate stays
    Adam's eps                      times 1 / (m_D m_L), as gradients shrink

Where first weights are smaller than in these tables, the factor moves to them, which Adam does not
notice: projections back to the stream start with a further (2 N) ** -0.5, so m_L ** -0.5 remains of
the factor of what they add, and their rate has m_L ** -0.5 too. A tied table starts at D ** -0.5:
m_D ** 0.5 for the embedding (which has it already if `embed_scale` is the root of D), m_D ** -0.5
for logits and rate. The head starts at 0.1 D ** -0.5, nearer to the zero that muP recommends
(arXiv 2203.03466, appendix D.2), and keeps that.

Head size, F / D and H K / D are meant to be the same at all widths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from model.config import ModelConfig
from model.families.registry import abstract_params
from model.parallel.sharding import is_weight, param_name

# Projections back to the stream, whose first weights have `Block.depth_scale`.
TO_STREAM = ("wo_HKD", "w_down_FD", "w_down_EFD", "shared_w_down_ZFD")


class Scaling(NamedTuple):
    """What differs from the base.

    Attributes:
        config: the architecture, with the factors of the forward pass.
        learning_rates, decays: factors by name of the parameter, where they are not 1.
        eps: factor of the optimizer's field.
    """

    config: ModelConfig
    learning_rates: Mapping[str, float]
    decays: Mapping[str, float]
    eps: float


def mup_of(section: Mapping[str, Any]) -> Mapping[str, int]:
    """The subsection `mup` of a section `model`, which may lack it."""
    return dict(section.get("mup") or {"base_width": 0, "base_depth": 0})


def is_on(mup: Mapping[str, int]) -> bool:
    """Whether a base is named."""
    return bool(mup["base_width"] or mup["base_depth"])


def scale_width_and_depth(config: ModelConfig, base_width: int, base_depth: int) -> Scaling:
    """Scales from a base of the same architecture; 0 leaves width or depth unscaled.

    Raises:
        UserError: there are no rules for this architecture.
    """
    _check(config, base_width, base_depth)
    wider = config.D / base_width if base_width else 1.0
    deeper = config.N / base_depth if base_depth else 1.0
    fields: dict[str, Any] = {"residual_scale": config.residual_scale * deeper**-0.5,
                              "logit_scale": config.logit_scale / wider}
    rates = {name: deeper**-0.5 / wider if name in TO_STREAM else 1 / wider
             for name in _matrices(config)}
    decays = {name: 1 / rate for name, rate in rates.items()}
    if config.tied:
        fields["logit_scale"] = config.logit_scale * wider**-0.5
        if not math.isclose(config.embed_scale, config.D**0.5):
            fields["embed_scale"] = config.embed_scale * wider**0.5
        rates |= {name: wider**-0.5 for name in ("embed_VD", "embed_previous_VD")
                  if name in abstract_params(config)}
    rates, decays = ({name: factor for name, factor in factors.items() if factor != 1}
                     for factors in (rates, decays))
    return Scaling(dataclasses.replace(config, **fields), rates, decays, 1 / (wider * deeper))


def _matrices(config: ModelConfig) -> set[str]:
    """Names of the matrices of which both sides grow with the width, and of routers."""
    return {param_name(path) for path, leaf in
            jax.tree_util.tree_leaves_with_path(abstract_params(config))
            if is_weight(path, leaf.ndim)}


def _check(c: ModelConfig, base_width: int, base_depth: int) -> None:
    if c.family not in ("decoder", "encoder"):
        raise UserError(f"model.family={c.family!r}", "has no rules of muP",
                        "set --config.model.mup.base_width=0 and base_depth=0")
    if base_width and c.tied and (c.positions == "learned" or c.token_types):
        raise UserError("model.tied=True", "with tables of positions or types has no rules of muP",
                        "set --config.model.tied=False")
    if base_depth and c.residual not in ("pre", "parallel"):
        raise UserError(f"model.residual={c.residual!r}", "has no rules for depth",
                        "set --config.model.mup.base_depth=0")
