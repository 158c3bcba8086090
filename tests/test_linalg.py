"""Centring that loses no digits, and a singular value decomposition with a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded

from svcca_jax import linalg
from svcca_jax.linalg import (
    center,
    count_datapoints,
    eigen,
    singular_values,
    sum_products,
    svd,
)


def test_a_constant_neuron_becomes_exactly_zero(rng):
    x = rng.standard_normal((1001, 3)).astype(np.float32)
    x[:, 1] = 0.1
    found = np.asarray(center(jnp.asarray(x)))
    assert not found[:, 1].any()
    np.testing.assert_allclose(found, x - x.astype(np.float64).mean(0), atol=3e-7)


def test_a_large_offset_leaves_no_mean(rng):
    x = (rng.standard_normal((5000, 2)) + 1e4).astype(np.float32)
    found = np.asarray(center(jnp.asarray(x)), np.float64)
    expected = x.astype(np.float64) - x.astype(np.float64).mean(0)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_rows_out_of_the_mask_count_for_nothing(rng):
    x = rng.standard_normal((20, 3)).astype(np.float32)
    mask, spread = padded(rng, x, rows=31)
    found = np.asarray(center(jnp.asarray(spread), jnp.asarray(mask)))
    np.testing.assert_allclose(found[mask], center(jnp.asarray(x)), atol=1e-6)
    assert not found[~mask].any()
    assert count_datapoints(jnp.asarray(spread), jnp.asarray(mask)) == 20
    nothing = center(jnp.asarray(spread), jnp.zeros(31, bool))
    assert not np.asarray(nothing).any()


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (6, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_decomposition(rng, shape, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    if dtype == np.complex64:
        x = x + 1j * rng.standard_normal(shape).astype(np.float32)
    left, values, right = (np.asarray(a) for a in svd(jnp.asarray(x)))
    np.testing.assert_allclose((left * values) @ right.conj().T, x, atol=1e-5)
    np.testing.assert_allclose(left.conj().T @ left, np.eye(min(shape)), atol=1e-5)
    np.testing.assert_allclose(values, np.linalg.svd(x)[1], atol=1e-5)
    np.testing.assert_allclose(singular_values(jnp.asarray(x)), values, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("shape", [(6, 4), (3, 5)])
def test_derivatives_of_the_decomposition(rng, shape, dtype):
    with jax.enable_x64(True):
        x, step = (
            jnp.asarray(
                rng.standard_normal(shape)
                + (1j * rng.standard_normal(shape) if dtype == np.complex128 else 0),
                dtype,
            )
            for _ in range(2)
        )

        @jax.jit
        def quantities(x):
            left, values, right = svd(x)
            # The phases of a pair of vectors are free; these do not depend on them.
            projector = left[:, :2] @ left[:, :2].conj().T
            low_rank = (left[:, :2] * values[None, :2].astype(dtype)) @ right[
                :, :2
            ].conj().T
            return values, singular_values(x), projector, low_rank

        tangents = jax.jvp(quantities, (x,), (step,))[1]
        small = 1e-6
        above, below = quantities(x + small * step), quantities(x - small * step)
        for tangent, high, low in zip(tangents, above, below, strict=True):
            np.testing.assert_allclose(tangent, (high - low) / (2 * small), atol=1e-7)


@pytest.mark.parametrize("rows", [12, 13, 24])
def test_long_sums_are_taken_in_blocks(rng, rows, monkeypatch):
    x = jnp.asarray(rng.standard_normal((rows, 5)), jnp.float32)
    y = jnp.asarray(rng.standard_normal((rows, 3)), jnp.float32)
    monkeypatch.setattr(linalg, "BLOCK", 12)
    np.testing.assert_allclose(sum_products(x, y), x.T @ y, atol=1e-5)
    # Under its own name: the decomposition may have been traced with long blocks.
    left, values, right = linalg._decompose(x)
    assert left.shape == (rows, 5)
    np.testing.assert_allclose(left.T @ left, np.eye(5), atol=1e-5)
    np.testing.assert_allclose((left * values[None]) @ right.T, x, atol=1e-5)


def test_a_million_datapoints_keep_their_digits(rng):
    x = rng.standard_normal((1_000_000, 2)).astype(np.float32)
    exact = x.astype(np.float64)
    found = sum_products(jnp.asarray(x), jnp.asarray(x))
    np.testing.assert_allclose(found, exact.T @ exact, rtol=1e-6, atol=1)
    left, _, _ = svd(jnp.asarray(x))
    squares = (np.asarray(left, np.float64) ** 2).sum(axis=0)
    np.testing.assert_allclose(squares, 1, atol=1e-6)


def test_derivatives_of_the_eigenvalues(rng):
    with jax.enable_x64(True):
        x = rng.standard_normal((9, 4))
        a = jnp.asarray(np.pad(x.T @ x, ((0, 2), (0, 2))))  # and two dead neurons

        def both(a):
            values, vectors = eigen(a)
            return jnp.sum(values**3) + jnp.sum((vectors * values[None] ** 2) @ a)

        tangent = np.zeros((6, 6))
        tangent[:4, :4] = x[:4] + x[:4].T
        found = jax.jvp(both, (a,), (jnp.asarray(tangent),))[1]
        step = 1e-6
        expected = (both(a + step * tangent) - both(a - step * tangent)) / (2 * step)
        assert np.isfinite(found)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert np.isfinite(np.asarray(jax.grad(both)(a))).all()
