"""The LSTM: equal to a loop, and to torch; documents apart; decode equal to the full forward."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention.kind import kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.families import lstm
from model.families.registry import extend, forward, init
from model.heads.language import logits
from model.parallel.sharding import make_mesh, param_shardings

CONFIG = ModelConfig(V=31, D=8, N=2, H=1, G=1, K=8, F=16, family="lstm", positions="none")
EXECUTION = Execution()
LENGTHS = [5, 1, 8, 10]


@pytest.fixture(scope="module")
def params():
    """Parameters of a size that no gate ignores."""
    params = jax.device_get(jax.jit(partial(init, CONFIG))(jax.random.key(0)))
    return jax.tree.map(lambda leaf: 2 * leaf, params)


@pytest.fixture(scope="module")
def run():
    return jax.jit(partial(forward, config=CONFIG, execution=EXECUTION))


@pytest.fixture(scope="module")
def documents():
    """Documents, their states when each is alone in a padded row, and the rows."""
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(0, CONFIG.V, (4, max(LENGTHS)))
    segment_ids_BL = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(int)
    return tokens_BL, np.broadcast_to(np.arange(max(LENGTHS)), tokens_BL.shape), segment_ids_BL


def _layer(params, n):
    return {name: np.asarray(leaf[n], np.float64) for name, leaf in params["blocks"].items()}


def _loop(own, x_LD):
    """The recurrence over one document, in float64."""
    h_D, c_F, out_LD = np.zeros(CONFIG.D), np.zeros(CONFIG.F), []
    for x_D in x_LD:
        enter_F, forget_F, candidate_F, leave_F = (
            np.einsum("D,DQF->QF", x_D, own["w_in_DQF"])
            + np.einsum("O,OQF->QF", h_D, own["w_state_OQF"]) + own["gates_bias_QF"])
        c_F = c_F / (1 + np.exp(-forget_F)) + np.tanh(candidate_F) / (1 + np.exp(-enter_F))
        h_D = (np.tanh(c_F) / (1 + np.exp(-leave_F))) @ own["w_out_FD"]
        out_LD.append(h_D)
    return np.stack(out_LD)


def _normed(x_LD, scale_D):
    return x_LD / np.sqrt((x_LD**2).mean(-1, keepdims=True) + CONFIG.norm_eps) * scale_D


def test_a_forward_pass_equals_a_loop(params, run, documents):
    tokens_BL, *places = documents
    x_LD = np.asarray(params["embed_VD"], np.float64)[tokens_BL[3]]
    for own in (_layer(params, n) for n in range(CONFIG.N)):
        x_LD = x_LD + _loop(own, _normed(x_LD, own["lstm_norm_D"]))
    x_LD = _normed(x_LD, np.asarray(params["final_norm_D"]))
    np.testing.assert_allclose(np.asarray(run(params, tokens_BL, *places))[3], x_LD, atol=1e-5)


def test_packed_documents_equal_separate_ones(params, run, documents):
    tokens_BL, positions_BL, segment_ids_BL = documents
    alone_BLD = np.asarray(run(params, *documents))
    is_token_BL = segment_ids_BL > 0
    packed = [leaf[is_token_BL][None] for leaf in (
        tokens_BL, positions_BL, np.broadcast_to(np.arange(1, 5)[:, None], tokens_BL.shape))]
    np.testing.assert_allclose(np.asarray(run(params, *packed))[0], alone_BLD[is_token_BL],
                               atol=1e-6 * np.abs(alone_BLD).max())


def test_decode_after_prompts_of_different_length_equals_the_full_forward(params, run, documents):
    tokens_BL, positions_BL, _ = documents
    prompt = np.array([3, 1, 4, 2])
    read_logits = jax.jit(partial(logits, config=CONFIG, execution=EXECUTION))
    full_BLV = np.asarray(read_logits(params, run(params, *documents[:2],
                                                  np.ones_like(tokens_BL))))

    step = jax.jit(partial(extend, config=CONFIG, execution=EXECUTION))

    def read(cache, tokens_BL, count_B):
        x_BLD, cache = step(params, tokens_BL, count_B, cache)
        last_BLD = np.asarray(x_BLD)[np.arange(4)[:, None], count_B[:, None] - 1]
        return (np.asarray(read_logits(params, last_BLD))[:, 0],
                cache.advance(tokens_BL, count_B))

    padded_BL = np.where(positions_BL < prompt[:, None], tokens_BL, 7)[:, :4]
    logits_BV, cache = read(lstm.make_cache(CONFIG, EXECUTION, 4, 0), padded_BL, prompt)
    rows = np.arange(4)
    for place in range(6):
        np.testing.assert_allclose(logits_BV, full_BLV[rows, prompt + place - 1], atol=1e-5)
        logits_BV, cache = read(cache, tokens_BL[rows, prompt + place][:, None], np.ones(4, int))


def test_a_mesh_changes_neither_states_nor_gradients(params, documents):
    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        x_BLD = forward(params, *documents, config=CONFIG, execution=EXECUTION)
        return jnp.mean(jnp.sin(x_BLD)), x_BLD

    expected = loss(params)
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
    with jax.set_mesh(mesh):
        found = loss(jax.device_put(params, param_shardings(params, mesh)))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)


@pytest.mark.full
@pytest.mark.filterwarnings("default")      # of the other library
def test_the_recurrence_equals_that_of_torch_forward_and_backward():
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(CONFIG, N=1)
    c, rng = config, np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32),
                          init(config, jax.random.key(0))["blocks"])
    own = jax.tree.map(lambda leaf: leaf[0], params)
    block = lstm.RecurrentBlock(config, EXECUTION, kind_of(config))
    x_BLD = jnp.asarray(rng.normal(size=(3, 7, c.D)), jnp.float32)
    direction_BLD = rng.normal(size=x_BLD.shape).astype("float32")

    def total(own, x_BLD):
        _, (h_BLD, c_BLF) = block.apply({"params": own}, x_BLD,
                                        np.arange(7)[None].repeat(3, 0) == 0)
        return jnp.sum(h_BLD * direction_BLD), (h_BLD, c_BLF)

    (gradient, dx_BLD), (h_BLD, c_BLF) = jax.grad(total, argnums=(0, 1), has_aux=True)(own, x_BLD)
    theirs = torch.nn.LSTM(c.D, c.F, proj_size=c.D, batch_first=True)
    rows = {"weight_ih_l0": ("w_in_DQF", c.D), "weight_hh_l0": ("w_state_OQF", c.D),
            "bias_ih_l0": ("gates_bias_QF", None), "weight_hr_l0": ("w_out_FD", c.F)}

    def their_layout(name, leaf):
        ours, size = rows[name]
        flat = np.asarray(leaf[ours]).reshape(size or 1, -1).T
        return flat if size else flat[:, 0]

    with torch.no_grad():
        theirs.bias_hh_l0.zero_()
        for name in rows:
            getattr(theirs, name).copy_(torch.tensor(their_layout(name, own)))
    their_x_BLD = torch.tensor(np.asarray(x_BLD), requires_grad=True)
    normed_BLD = their_x_BLD * torch.rsqrt((their_x_BLD**2).mean(-1, keepdim=True) + c.norm_eps)
    out_BLD, (_, last_BF) = theirs(normed_BLD * torch.tensor(np.asarray(own["lstm_norm_D"])))
    (out_BLD * torch.tensor(direction_BLD)).sum().backward()
    np.testing.assert_allclose(h_BLD, out_BLD.detach(), atol=1e-5)
    np.testing.assert_allclose(c_BLF[:, -1], last_BF[0].detach(), atol=1e-5)
    np.testing.assert_allclose(dx_BLD, their_x_BLD.grad, atol=2e-4)
    for name in rows:
        np.testing.assert_allclose(their_layout(name, gradient), getattr(theirs, name).grad,
                                   atol=2e-4, err_msg=name)
