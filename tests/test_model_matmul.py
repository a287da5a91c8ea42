"""Matmuls: error bounds of each precision, and equality of the plain one with einsum."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from model.execution import Execution
from model.families.registry import init
from model.layers.matmul import project
from train.loss import next_token_loss

EQUATIONS = {"BLD,DHK->BLHK": ((2, 8, 32), (32, 4, 8)), "BLHK,HKD->BLD": ((2, 8, 4, 8), (4, 8, 32)),
             "BLD,DF->BLF": ((2, 8, 32), (32, 64))}


def _operands(equation, dtype="float32"):
    """Rows and channels of very different size."""
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=shape) for shape in EQUATIONS[equation])
    x = x * np.exp(rng.normal(size=(*x.shape[:2], *[1] * (x.ndim - 2))))
    weight = weight * np.exp(rng.normal(size=weight.shape[-1]))
    return x.astype(jnp.dtype(dtype)), weight.astype(np.float32)


project_ = jax.jit(project, static_argnames=("equation", "execution"))


@partial(jax.jit, static_argnames=("equation", "executions"))
def _gradients(equation, x, weight, dout, executions):
    """Those of the operands, by execution."""
    def pull_back(execution):
        out, pull = jax.vjp(partial(project, equation, execution=execution), x, weight)
        return pull(dout.astype(out.dtype))

    return list(map(pull_back, executions))


def _dout(equation, x, weight):
    shape = jax.eval_shape(partial(jnp.einsum, equation), x, weight).shape
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_compute_dtype_is_a_plain_einsum(equation, dtype):
    execution = Execution(compute_dtype=dtype)
    x, weight = _operands(equation, dtype)

    def plain(x, weight):
        return jnp.einsum(equation, x, weight.astype(dtype))

    assert str(jax.make_jaxpr(partial(project, equation, execution=execution))(x, weight)) == str(
        jax.make_jaxpr(plain)(x, weight))


def _error_bound(equation, x, weight, matmul):
    """Elementwise bound of the error from rounding both operands."""
    letters = equation.split("->")[0].split(",")
    if matmul == "int8":  # half a step of each operand's scale
        dx, dweight = (np.abs(a).max(axis=tuple(i for i, c in enumerate(own) if c in other),
                                     keepdims=True) / 254 + 0 * np.abs(a)
                       for a, own, other in ((x, *letters), (weight, *reversed(letters))))
    else:  # three bits after the leading one, down to a fixed step
        dx, dweight = (np.maximum(np.abs(a) / 16, np.abs(a).max() / 448 * 2.0**-10)
                       for a in (x, weight))
    return sum(np.einsum(equation, a, b) for a, b in (
        (dx, np.abs(weight)), (np.abs(x), dweight), (dx, dweight)))


@pytest.mark.parametrize("matmul", ["int8", "fp8"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_products_are_as_close_as_rounding_allows(equation, matmul):
    x, weight = _operands(equation)
    actual = project_(equation, x, weight, Execution(matmul=matmul))
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    exact = np.einsum(equation, x, weight)
    assert np.all(np.abs(actual - exact) <= 1.001 * _error_bound(equation, x, weight, matmul))
    error = np.linalg.norm(actual - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < {"int8": 0.01, "fp8": 0.05}[matmul], "rounding does happen"


@pytest.mark.parametrize("matmul, largest", [("int8", 127), ("fp8", 448)])
def test_representable_values_are_exact(matmul, largest):
    rng = np.random.default_rng(2)
    x_BLD, weight_DF = rng.integers(-8, 9, (2, 8, 32)), rng.integers(-8, 9, (32, 64))
    x_BLD[:, :, 0], weight_DF[0] = largest, largest  # so that scales are 1
    # Not compiled, where a division may become a product with a rounded reciprocal.
    actual = project("BLD,DF->BLF", jnp.float32(x_BLD), jnp.float32(weight_DF),
                     Execution(matmul=matmul))
    np.testing.assert_array_equal(actual, x_BLD @ weight_DF)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_gradients_are_those_of_the_matmul(equation, dtype):
    """The gradient of int8 is in the compute dtype; that of fp8 in e5m2, with two mantissa bits."""
    x, weight = _operands(equation, dtype)
    executions = tuple(Execution(matmul=matmul, compute_dtype=dtype)
                       for matmul in ("compute", "int8", "fp8"))
    actual = _gradients(equation, x, weight, _dout(equation, x, weight), executions)
    for plain, int8, fp8 in zip(*actual):
        assert plain.dtype == int8.dtype == fp8.dtype
        plain, int8, fp8 = (np.asarray(g, np.float64).ravel() for g in (plain, int8, fp8))
        np.testing.assert_allclose(int8, plain, atol=(1e-6 if dtype == "float32" else 2**-8)
                                   * np.abs(plain).max())
        assert np.linalg.norm(fp8) == pytest.approx(np.linalg.norm(plain), rel=0.05)
        cosine = fp8 @ plain / np.linalg.norm(fp8) / np.linalg.norm(plain)
        assert 0.99 < cosine < 0.9999999


@pytest.mark.parametrize("matmul", ["int8", "fp8"])
def test_zeros_stay_zeros_and_non_finite_values_propagate(matmul):
    execution = Execution(matmul=matmul)
    x_BLD, weight_DF = np.zeros((2, 8, 32), np.float32), np.ones((32, 64), np.float32)
    for value in (np.nan, np.inf, 0.0):
        x_BLD[0, 0, 0] = value
        out_BLF = np.asarray(project_("BLD,DF->BLF", x_BLD, weight_DF, execution))
        assert np.isfinite(out_BLF[0, 0]).all() == (value == 0) == np.isfinite(out_BLF[0, 0]).any()
    assert not np.any(out_BLF)


def test_fp8_refuses_sizes_that_the_hardware_does_not_support():
    execution = Execution(matmul="fp8")
    with pytest.raises(UserError, match=r"^matmul='fp8': H x K = 24 is no multiple of 16: "
                                        r"change --config.model.H or --config.model.K"):
        project("BLD,DHK->BLHK", np.ones((2, 8, 32)), np.ones((32, 3, 8)), execution)
    with pytest.raises(UserError, match=r"F = 24 is no multiple of 16: change --config.model.F"):
        project("BLF,FD->BLD", np.ones((2, 8, 24)), np.ones((24, 32)), execution)


def _losses(config, execution, batch):
    """Losses of 20 steps of Adam on one batch."""
    optimizer = optax.adam(3e-3)

    def loss_fn(params):
        loss_sum, metrics = next_token_loss(params, batch, config=config, execution=execution,
                                            key=None)
        return loss_sum / metrics["loss"][1]

    @jax.jit
    def train(params):
        def step(carry, _):
            params, opt_state = carry
            loss, gradient = jax.value_and_grad(loss_fn)(params)
            update, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, update), opt_state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), length=20)[1]

    return train(jax.jit(partial(init, config))(jax.random.key(0)))


@pytest.mark.full
def test_a_tiny_model_learns_as_well_in_low_precision(config, batch):
    config = dataclasses.replace(config, N=1)
    losses = {name: _losses(config, Execution(matmul=name), batch)
              for name in ("compute", "int8", "fp8")}
    fall = losses["compute"][0] - losses["compute"][-1]
    assert fall > 1
    for name in ("int8", "fp8"):
        np.testing.assert_allclose(losses[name], losses["compute"], atol=0.03 * fall, err_msg=name)
        assert np.any(losses[name] != losses["compute"]), name
