"""Optimizers by name, with rules by parameter name.

Weight decay applies to the blocks, Muon to the matrices that `train.optimizer.muon` lists, and
learning rates can be scaled by name pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import ScheduleFreeState, schedule_free, schedule_free_eval_params

from core.bounds import check_numbers
from core.errors import UserError
from model.config import ModelConfig
from model.families.registry import abstract_params
from model.mup import scale_width_and_depth
from model.parallel.sharding import is_weight, letters_of, param_name
from train.optimizer.muon import MATRICES, is_matrix, matrix_shape, orthogonalise
from train.optimizer.schedules import make_schedule

# Fields that each optimizer reads, besides those that all of them read.
SHARED_FIELDS = ("learning_rate", "weight_decay", "clip_norm", "lr_multipliers",
                 "decay_multipliers", "schedule", "warmup_steps", "final_frac")
FIELDS = {"adamw": ("b1", "b2", "eps", "mu_dtype"),
          "muon": ("momentum", "adam_learning_rate", "b1", "b2", "eps", "mu_dtype"),
          "lion": ("b1", "b2", "mu_dtype"),
          "adafactor": (),
          "sgd": ("momentum", "mu_dtype"),
          "schedule_free": ("b1", "b2", "eps")}
MU_DTYPES = ("float32", "bfloat16")


def make_optimizer(section: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Makes the named optimizer, after clipping by the global norm; weight decay is decoupled.

    `adamw`: arXiv 1711.05101. `muon`: Muon for matrices (arXiv 2502.16982), NAdamW with
    `adam_learning_rate` for the rest. `lion`: arXiv 2302.06675. `adafactor`: factored second
    moments, no first; the learning rate is relative to each matrix's RMS (arXiv 1804.04235,
    algorithm 4). `sgd`: with Nesterov's momentum. `schedule_free`: AdamW's form of
    arXiv 2405.15682, whose training parameters are not those to evaluate: see `eval_params`.

    Args:
        section: `name`, `SHARED_FIELDS` and what `FIELDS` lists for the name. `clip_norm` 0 never
            clips. `lr_multipliers` maps shell patterns of parameter names to factors of the
            learning rate, `decay_multipliers` to those of the decay; the longest match applies.
            `mu_dtype` is the first moment's dtype.

    Raises:
        UserError: a field is missing or breaks a rule; or, from the optimizer's `init`, a pattern
            of `lr_multipliers` or `decay_multipliers` matches no parameter.
    """
    _check(section)
    multiplier = make_schedule(section, num_steps)

    def scheduled(learning_rate: float) -> optax.Schedule:
        return lambda step: learning_rate * multiplier(step)

    def descend(direction, learning_rate: float) -> optax.GradientTransformation:
        return optax.chain(direction, _decay(section.weight_decay, section.decay_multipliers),
                           optax.scale_by_learning_rate(scheduled(learning_rate)))

    if section.name == "muon":
        update = optax.partition(
            {"muon": descend(_muon(section), section.learning_rate),
             # Nesterov's momentum for both: 0.004 fewer bits per byte in the quickstart.
             "adamw": descend(_adam(section, nesterov=True), section.adam_learning_rate)},
            _muon_or_adamw)
    else:
        update = descend(DIRECTIONS[section.name](section), section.learning_rate)
    update = optax.chain(update, _multiply_by_name(section.lr_multipliers))
    if section.name == "schedule_free":
        update = schedule_free(update, scheduled(section.learning_rate), section.b1)
    if section.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(section.clip_norm), update)
    return update


def learning_rates(section: ConfigDict, num_steps: int, num_accepted: jax.Array,
                   params: Any) -> dict[str, jax.Array]:
    """The learning rates after `num_accepted` updates, by group of parameters.

    Returns:
        `learning_rate`; for Muon that of the matrices, and `adam_learning_rate` of the rest. A
        pattern of `lr_multipliers` has its own, e.g. `learning_rate/embed*`, for the parameters
        that it applies to.
    """
    is_muon, multipliers = section.name == "muon", section.lr_multipliers
    names = ("learning_rate",) + ("adam_learning_rate",) * is_muon
    rates = {name: section[name] for name in names}
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        if pattern := _matching(param_name(path), multipliers):
            name = names[is_muon and param_name(path) not in MATRICES]
            rates[f"{name}/{pattern}"] = section[name] * multipliers[pattern]
    multiplier = make_schedule(section, num_steps)(num_accepted)
    return {name: jnp.asarray(rate * multiplier, jnp.float32) for name, rate in rates.items()}


def eval_params(opt_state: Any, params: Any) -> Any:
    """The parameters to evaluate and to save: schedule-free's average, else `params` themselves."""
    states = jax.tree.leaves(opt_state, is_leaf=lambda leaf: isinstance(leaf, ScheduleFreeState))
    for state in states:
        if isinstance(state, ScheduleFreeState):
            return schedule_free_eval_params(state, params)
    return params


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: matrices, not norms, biases or tables."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: is_weight(path, leaf.ndim), params)


def scale_optimizer(section: ConfigDict, config: ModelConfig,
                    mup: Mapping[str, int]) -> ConfigDict:
    """The section `optimizer` of a base, as it is for a model of another width or depth.

    Args:
        mup: `base_width` and `base_depth`; see `model.mup`.

    Raises:
        UserError: the rules are those of another optimizer; or as `make_optimizer`.
    """
    if section.name != "adamw":
        raise UserError(f"optimizer.name={section.name!r}", "has no rules of muP, which are Adam's",
                        "set the optimizer's name to adamw")
    scaling, names = scale_width_and_depth(config, **mup), _param_names(abstract_params(config))
    multipliers = {"lr_multipliers": scaling.learning_rates, "decay_multipliers": scaling.decays}
    scaled = {}
    for field, factors in multipliers.items():
        _check_patterns(field, section[field], names)
        own = {name: _factor(section[field], name) * factors.get(name, 1.0)
               for name in sorted(names)}
        scaled[field] = {name: factor for name, factor in own.items() if factor != 1}
    return ConfigDict(dict(section.items()) | scaled | {"eps": section.eps * scaling.eps})


def _check(section: ConfigDict) -> None:
    name = section.get("name")
    if name not in FIELDS:
        raise UserError(f"optimizer.name={name!r}", f"is none of {', '.join(FIELDS)}",
                        "set the optimizer's name")
    needed = SHARED_FIELDS + FIELDS[name]
    if missing := [field for field in needed if field not in section]:
        raise UserError(f"optimizer.{missing[0]}", f"is missing, and {name} needs it",
                        "start from make_optimizer in configs/common.py, which has every field")
    if "mu_dtype" in needed and section.mu_dtype not in MU_DTYPES:
        raise UserError(f"optimizer.mu_dtype={section.mu_dtype!r}",
                        f"is none of {', '.join(MU_DTYPES)}", "set the optimizer's mu_dtype")
    check_numbers(section, "SECTION.optimizer")
    if name == "schedule_free" and section.schedule != "constant":
        raise UserError(f"optimizer.schedule={section.schedule!r}",
                        "schedule_free averages instead of decaying", "set schedule to constant")
    if name == "schedule_free" and not section.b1:
        raise UserError("optimizer.b1=0.0", "must be above 0 for schedule_free", "set b1 to 0.9")


def _adam(section: ConfigDict, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.scale_by_adam(section.b1, section.b2, section.eps,
                               mu_dtype=jnp.dtype(section.mu_dtype), nesterov=nesterov)


def _lion(section: ConfigDict) -> optax.GradientTransformation:
    return optax.scale_by_lion(section.b1, section.b2, mu_dtype=jnp.dtype(section.mu_dtype))


def _sgd(section: ConfigDict) -> optax.GradientTransformation:
    if not section.momentum:
        return optax.identity()
    return optax.trace(section.momentum, nesterov=True,
                       accumulator_dtype=jnp.dtype(section.mu_dtype))


def _muon(section: ConfigDict) -> optax.GradientTransformation:
    return optax.chain(_sgd(section), orthogonalise())


def _muon_or_adamw(params: Any) -> Any:
    return jax.tree.map(lambda muon: "muon" if muon else "adamw", is_matrix(params))


def _adafactor(_: ConfigDict) -> optax.GradientTransformation:
    return _by_matrix(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0),
                                  optax.scale_by_param_block_rms()))


def _schedule_free(section: ConfigDict) -> optax.GradientTransformation:
    """Adam without its first moment, which the averaging replaces."""
    return optax.scale_by_rms(section.b2, section.eps, eps_in_sqrt=False, bias_correction=True)


DIRECTIONS: Mapping[str, Callable[[ConfigDict], optax.GradientTransformation]] = {
    "adamw": _adam, "lion": _lion, "adafactor": _adafactor, "sgd": _sgd,
    "schedule_free": _schedule_free}


def _by_matrix(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to each layer's and each expert's matrix separately."""
    def apply(function, path, leaf, *others):
        shape = matrix_shape(path, leaf)
        num_counts = (len(shape) - 2 if param_name(path) in MATRICES
                      else letters_of(path, leaf.ndim).count("N"))
        for _ in range(num_counts):
            function = jax.vmap(function)
        return function(leaf.reshape(shape), *others)

    def init(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: apply(transformation.init, path, leaf), params)

    def update(updates, state, params):
        def update_leaf(path, leaf, state, param):
            param = param.reshape(matrix_shape(path, param))
            update, state = apply(transformation.update, path, leaf, state, param)
            return update.reshape(leaf.shape), state

        pairs = jax.tree_util.tree_map_with_path(update_leaf, updates, state, params)
        tree = jax.tree.structure(updates)
        new_updates, new_state = zip(*tree.flatten_up_to(pairs))
        return tree.unflatten(new_updates), tree.unflatten(new_state)

    return optax.GradientTransformation(init, update)


def _matching(name: str, patterns: Iterable[str]) -> str | None:
    """The longest shell pattern that the name matches."""
    return max((pattern for pattern in patterns if fnmatchcase(name, pattern)), key=len,
               default=None)


def _decay(weight_decay: float, multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Adds the decay of those parameters that have one, times the factor of their name."""
    if not multipliers:
        return optax.add_decayed_weights(weight_decay, decayed)

    def init(params):
        _check_patterns("decay_multipliers", multipliers, _param_names(params))
        return optax.EmptyState()

    def add(path, update, param, is_decayed):
        factor = weight_decay * _factor(multipliers, param_name(path))
        return update + factor * param if is_decayed else update

    def update(updates, state, params):
        return jax.tree_util.tree_map_with_path(add, updates, params, decayed(params)), state

    return optax.GradientTransformation(init, update)


def _multiply_by_name(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the update of each parameter by the factor of the longest pattern it matches."""
    def init(params):
        _check_patterns("lr_multipliers", multipliers, _param_names(params))
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _factor(multipliers, param_name(path)) * leaf, updates), state

    return optax.GradientTransformation(init, update)


def _factor(multipliers: Mapping[str, float], name: str) -> float:
    pattern = _matching(name, multipliers)
    return 1.0 if pattern is None else multipliers[pattern]


def _check_patterns(field: str, multipliers: Mapping[str, float], names: set[str]) -> None:
    for pattern in multipliers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"optimizer.{field}={pattern!r}", "matches no parameter",
                            f"choose among {', '.join(sorted(names))}")


def _param_names(params: Any) -> set[str]:
    return {param_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
