"""muP and CompleteP: the factors of a scaled model, and the coordinate check that they pass."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_model, make_optimizer, make_preset
from core.errors import UserError
from model.families.registry import abstract_params
from model.mup import scale_width_and_depth
from model.presets import PRESETS
from model.section import read_section
from scripts.coordinate_check import (
    OWN,
    check,
    draw,
    make_section,
    measure,
    resize,
    scale,
    slopes,
)
from train.optimizer.optimizers import make_optimizer as build_optimizer
from train.optimizer.optimizers import scale_optimizer

WIDE = dataclasses.replace(OWN, D=128, H=8, G=8, F=512, N=8)


def test_the_factors_are_those_of_the_papers():
    """Four times the width and twice the depth: arXiv 2505.01618, table 1 with alpha = 1."""
    scaling = scale_width_and_depth(WIDE, 32, 4)
    rates = dict.fromkeys(("wq_DHK", "wk_DGK", "wv_DGK", "w_gate_DF", "w_up_DF"), 0.25)
    # These start smaller by the root of 1/2 as it is, so that a root remains.
    rates |= dict.fromkeys(("wo_HKD", "w_down_FD"), 0.25 * 0.5**0.5)
    assert scaling.config == dataclasses.replace(WIDE, residual_scale=0.5**0.5, logit_scale=0.25)
    assert scaling.learning_rates == rates and scaling.eps == 0.125
    assert {name: decay * rates[name] for name, decay in scaling.decays.items()} == pytest.approx(
        dict.fromkeys(rates, 1.0))


def test_a_tied_table_has_the_root_of_the_factor():
    tied = dataclasses.replace(WIDE, tied=True, embed_previous=True)
    scaling = scale_width_and_depth(tied, 32, 0)
    assert (scaling.config.logit_scale, scaling.config.embed_scale) == (0.5, 2.0)
    assert scaling.learning_rates["embed_VD"] == scaling.learning_rates["embed_previous_VD"] == 0.5
    grown = dataclasses.replace(tied, embed_scale=128**0.5)
    assert scale_width_and_depth(grown, 32, 0).config.embed_scale == 128**0.5


@pytest.mark.parametrize("changes, kept", [
    (dict(attention_bias=True, mlp_bias=True, norm="layer"), "wq_bias_HK"),
    (dict(positions="learned", max_positions=64), "embed_position_LD"),
    (dict(sinks=True, head_bias=True), "head_bias_V")])
def test_what_does_not_grow_in_both_directions_keeps_its_rate(changes, kept):
    config = dataclasses.replace(WIDE, **changes)
    names = {str(path[-1].key) for path, _ in
             jax.tree_util.tree_leaves_with_path(abstract_params(config))}
    assert kept in names and kept not in scale_width_and_depth(config, 32, 0).learning_rates


def test_the_base_itself_is_not_changed():
    scaling = scale_width_and_depth(WIDE, WIDE.D, WIDE.N)
    assert scaling == (WIDE, {}, {}, 1.0)


def test_the_optimizer_of_a_scaled_model_moves_its_matrices_less():
    section = ConfigDict(make_optimizer(learning_rate=0.5, weight_decay=0.1, clip_norm=0.0,
                                        schedule="constant", warmup_steps=0,
                                        lr_multipliers={"wq*": 0.5}))
    scaled = scale_optimizer(section, WIDE, {"base_width": 32, "base_depth": 4})
    assert (scaled.weight_decay, scaled.eps) == (0.1, pytest.approx(1.25e-9))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract_params(WIDE))
    optimizer = build_optimizer(scaled, 10)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    moved = {name: float(np.ravel(leaf)[0]) for name, leaf in
             (updates["blocks"] | {"head": updates["head_DV"]}).items()}
    assert moved["head"] == pytest.approx(-0.5, rel=1e-4)
    # Decayed by 0.05, rate times decay, like the base's.
    assert moved["w_up_DF"] == pytest.approx(-0.125 - 0.05, rel=1e-4)
    assert moved["wq_DHK"] == pytest.approx(-0.0625 - 0.025, rel=1e-4)    # by the user's factor
    assert moved["w_down_FD"] == pytest.approx(-0.125 * 0.5**0.5 - 0.05, rel=1e-4)


SIZES = {"width": (64, 256), "depth": (2, 8)}


@pytest.fixture(scope="module")
def coordinates():
    """Two widths and depths of a small decoder, as they are and scaled."""
    return check(OWN, SIZES["width"], SIZES["depth"], num_steps=6, learning_rate=3e-3)


@pytest.mark.parametrize("axis", SIZES)
def test_scaled_activations_change_as_much_at_any_size(coordinates, axis):
    found = slopes(SIZES[axis], coordinates[axis]["mup"])
    assert all(abs(slope) < 0.15 for slope in found.values()), found
    standard = slopes(SIZES[axis], coordinates[axis]["standard"])
    assert standard["all layers"] > 0.3, standard
    assert axis == "depth" or standard["logits"] > 0.4, standard


@pytest.mark.full
def test_a_tied_preset_does_not_grow_either():
    """Its logits begin as products of random numbers, which vanish as the root of the width."""
    parts, section, widths = PRESETS["smollm2-135m"], make_section(3e-3), (64, 256)
    models = [resize(parts, width, 2) for width in widths]
    assert models[0].tied and not models[0].qk_norm
    found = slopes(widths, [measure(*scale(config, section, models[0]), 6) for config in models])
    assert -0.55 < found.pop("logits") < 0.15
    assert all(abs(slope) < 0.15 for slope in found.values()), found


@pytest.mark.full
def test_the_figure_is_drawn(coordinates, tmp_path):
    pytest.importorskip("matplotlib")
    draw(tmp_path / "a" / "c.png", SIZES, coordinates)
    assert (tmp_path / "a" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_section_scales_a_preset_from_a_base():
    section = make_preset("smollm2-135m", N=60)
    assert read_section(section, 512) == dataclasses.replace(PRESETS["smollm2-135m"], V=512, N=60)
    section.mup.update(base_width=144, base_depth=15)
    config = read_section(section, 512)
    assert (config.residual_scale, config.logit_scale, config.embed_scale) == (0.5, 0.5, 2.0)
    own = make_model(D=64, N=2, H=2, G=2, K=32, F=64)
    assert read_section(own, 98).residual_scale == 1.0
    own.mup.base_width = 16
    assert read_section(own, 98).logit_scale == 0.25


@pytest.mark.parametrize("section, message", [
    (make_preset("smollm-135m"), "model.preset='smollm-135m': is no preset: name one of smollm2-1"),
    (make_preset("gpt2", Q=3), "model.Q: is no field of a model"),
    (make_preset("gpt2", H=5), "model.H=5: is not divisible by model.G=12"),
    (make_preset("gpt2", mup=dict(base_width=64, base_depth=0)),
     "model.tied=True: with tables of positions or types has no rules of muP"),
    (make_preset("gemma-2-2b", mup=dict(base_width=0, base_depth=2)),
     "model.residual='sandwich': has no rules for depth: set --config.model.mup.base_depth=0"),
    (make_preset("t5-v1.1-base", mup=dict(base_width=64, base_depth=0)),
     "model.family='encoder_decoder': has no rules of muP")], ids=lambda value: str(value)[:40])
def test_what_cannot_be_built_is_one_line(section, message):
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        read_section(section, 512)
    assert str(error.value).startswith(message)


def test_the_rules_are_those_of_adam():
    with pytest.raises(UserError, match=r"optimizer.name='muon': has no rules of muP"):
        scale_optimizer(ConfigDict(make_optimizer(name="muon")), WIDE,
                        {"base_width": 32, "base_depth": 0})
