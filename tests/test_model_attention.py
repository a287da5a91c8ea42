"""Norm, rotary positions, masks and grouped queries against their formulas, written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import print_saved_residuals

from model.attention.reference import attend, cache_mask, document_mask, softmax
from model.layers.norms import rms_norm
from model.layers.positions import rotate

RNG = np.random.default_rng(0)


def _softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x_BLD, scale_D = RNG.normal(size=(2, 3, 8)) * 5, RNG.normal(size=8)
    expected_BLD = x_BLD / np.sqrt((x_BLD**2).mean(-1, keepdims=True) + 0.1) * scale_D
    np.testing.assert_allclose(jax.jit(rms_norm)(x_BLD, scale_D, 0.1), expected_BLD, rtol=1e-5)


def test_rms_norm_is_computed_in_float32():
    x_BLD = np.full((1, 1, 4096), 300.0, jnp.bfloat16)  # in bfloat16 the mean square drifts
    normed_BLD = jax.jit(rms_norm)(x_BLD, np.ones(4096, np.float32), 1e-6)
    assert normed_BLD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(normed_BLD, np.float32), 1.0)


def test_rotate_is_multiplication_by_a_complex_number():
    x_BLHK = RNG.normal(size=(2, 5, 3, 8))
    positions_BL = RNG.integers(0, 1000, (2, 5))
    frequency_K = 10_000.0 ** (-np.arange(4) / 4)
    turn_BLK = np.exp(1j * positions_BL[..., None] * frequency_K)
    turned_BLHK = (x_BLHK[..., :4] + 1j * x_BLHK[..., 4:]) * turn_BLK[:, :, None]
    expected_BLHK = np.concatenate([turned_BLHK.real, turned_BLHK.imag], -1)
    np.testing.assert_allclose(jax.jit(rotate)(x_BLHK, positions_BL, frequency_K), expected_BLHK,
                               atol=1e-3)


def test_rotated_products_depend_only_on_the_distance():
    q_BLHK, k_BLHK = RNG.normal(size=(2, 1, 1, 1, 8))
    turn = jax.jit(rotate)

    def product(query_position, key_position):
        q, k = (np.asarray(turn(x, np.array([[p]]), np.array([1.0, 0.5, 0.1, 0.02])))
                for x, p in ((q_BLHK, query_position), (k_BLHK, key_position)))
        return np.sum(q * k)

    assert abs(product(9, 4) - product(105, 100)) < 1e-5
    assert abs(product(9, 4) - product(4, 9)) > 1e-2


def test_grouped_queries_equal_attention_with_repeated_heads():
    B, L, H, G, K = 2, 6, 6, 2, 4
    q_BLHK = RNG.normal(size=(B, L, H, K))
    k_BMGK, v_BMGK = RNG.normal(size=(2, B, L, G, K))
    mask_BLM = np.tril(np.ones((B, L, L), bool))
    expected_BLHK = np.zeros((B, L, H, K))
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            scores_LM = q_BLHK[b, :, h] @ k_BMGK[b, :, g].T / np.sqrt(K)
            weights_LM = _softmax(np.where(mask_BLM[b], scores_LM, -np.inf))
            expected_BLHK[b, :, h] = weights_LM @ v_BMGK[b, :, g]
    out_BLHK = jax.jit(attend)(q_BLHK, k_BMGK, v_BMGK, mask_BLM)
    np.testing.assert_allclose(out_BLHK, expected_BLHK, atol=1e-5)


def test_softmax_has_the_gradient_of_softmax():
    scores, weight = (RNG.normal(size=(2, 3, 7)) * 3).astype(np.float32)
    (actual,), (expected,) = (jax.jit(lambda f=f: jax.vjp(f, scores)[1](weight))()
                              for f in (softmax, jax.nn.softmax))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_attention_saves_one_matrix_of_weights_for_the_backward_pass(capsys):
    q_BLHK, k_BLGK = (np.ones((1, 16, heads, 8), np.float32) for heads in (4, 2))
    mask_BLM = np.ones((1, 16, 16), bool)
    print_saved_residuals(lambda *qkv: attend(*qkv, mask_BLM), q_BLHK, k_BLGK, k_BLGK)
    assert capsys.readouterr().out.count("[1,2,2,16,16]") == 1


def test_a_row_whose_mask_hides_all_keys_stays_finite():
    ones_BLHK = np.ones((1, 2, 2, 4), np.float32)
    out_BLHK = jax.jit(attend)(ones_BLHK, ones_BLHK, ones_BLHK, np.zeros((1, 2, 2), bool))
    assert np.isfinite(out_BLHK).all()


def test_document_mask_is_causal_and_inside_one_document():
    mask_LM = jax.jit(document_mask)(np.array([[1, 1, 2, 2, 0]]))[0]
    expected_LM = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0],
                   [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(mask_LM, np.array(expected_LM, bool))


def test_cache_mask_covers_cached_and_new_tokens():
    keys_BM = np.array([[0, 1, -1, -1, -1], [0, 1, 2, 3, -1]])
    mask_BLM = jax.jit(cache_mask)(np.array([[0, 1], [2, 3]]), keys_BM)
    expected_BLM = [[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]]
    np.testing.assert_array_equal(mask_BLM, np.array(expected_BLM, bool))
