"""Bad input is named before anything is computed."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from svcca_jax import cca, linear_cka, pca
from svcca_jax.checks import as_activations, check_mask


def test_shapes_that_cannot_be_layers():
    with pytest.raises(ValueError, match=r"x must have 2 axes .* got 1: shape \(5,\)"):
        cca(np.zeros(5), np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"y is empty: it has 0 neurons"):
        cca(np.zeros((5, 2)), np.zeros((5, 0)))
    with pytest.raises(ValueError, match=r"x is empty: it has 0 datapoints"):
        pca(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="x has 5 datapoints and y has 6"):
        linear_cka(np.zeros((5, 2)), np.zeros((6, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(rng, bad):
    x = rng.standard_normal((6, 3))
    x[4, 1] = x[5, 0] = bad
    with pytest.raises(ValueError, match=r"y holds 2 .* datapoints=4, neurons=1"):
        cca(np.zeros((6, 1)), x)


def test_integers_booleans_and_half_precision_become_float32():
    for dtype in (np.int8, np.uint16, np.int64, np.bool_, np.float16, np.float64):
        assert as_activations(np.ones((2, 2), dtype), "x").dtype == jnp.float32
    half = np.ones((2, 2), ml_dtypes.bfloat16)
    assert as_activations(half, "x").dtype == jnp.float32
    with jax.enable_x64(True):
        assert as_activations(np.ones((2, 2)), "x").dtype == jnp.float64
        assert as_activations(np.ones((2, 2), np.int64), "x").dtype == jnp.float64
        assert as_activations(np.ones((2, 2), np.int8), "x").dtype == jnp.float32


def test_spikes_give_the_numbers_of_their_floats(rng):
    spikes = rng.integers(0, 5, (50, 4)).astype(np.int8)
    other = rng.random((50, 4)) < 0.3
    expected = cca(spikes.astype(np.float32), other.astype(np.float32))
    assert cca(spikes, other).mean == expected.mean


def test_masks():
    assert check_mask(None, 3) is None
    with pytest.raises(ValueError, match=r"3 booleans.* shape \(4,\) of bool"):
        check_mask(np.ones(4, bool), 3)
    with pytest.raises(ValueError, match="int"):
        check_mask(np.ones(3, np.int32), 3)


def test_known_values_are_checked_inside_a_jit_too(rng):
    x = rng.standard_normal((6, 3)).astype(np.float32)
    other = jnp.asarray(x).at[2, 1].set(jnp.nan)
    with pytest.raises(ValueError, match="y holds 1"):
        jax.jit(lambda a: cca(a, other).mean)(x)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_an_offset_that_float32_cannot_hold_leaves_the_signal(rng, dtype):
    signal = rng.integers(-50, 50, (40, 3))
    y = signal[:, :2] + rng.standard_normal((40, 2))
    shifted = (signal + 10**12).astype(dtype)
    np.testing.assert_allclose(
        cca(shifted, y).coefficients, cca(signal, y).coefficients, atol=1e-6
    )


def test_numbers_beyond_float32_and_complex_ones_are_refused(rng):
    x = rng.standard_normal((6, 3))
    with pytest.raises(ValueError, match=r"x holds 15 .* \(in float32\)"):
        cca(x * 1e200, x)
    with pytest.raises(ValueError, match="x is complex64: this takes real"):
        linear_cka(x + 1j, x)


def test_rows_out_of_the_mask_may_hold_anything(rng):
    x = rng.standard_normal((9, 3)).astype(np.float32)
    mask = np.arange(9) != 4
    expected = cca(x[mask], x[mask] ** 2).mean
    x[4] = np.nan
    np.testing.assert_allclose(cca(x, x**2, mask=mask).mean, expected, atol=1e-6)
    with pytest.raises(ValueError, match="x holds 3"):
        cca(x, x)
