"""CKA against its definition by kernels, and what it must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded, related, rotation
from oracles import cka_by_kernels

from svcca_jax import accumulate, linear_cka, linear_cka_from_moments


@pytest.mark.parametrize(
    ("datapoints", "x", "y"), [(120, 8, 6), (10, 30, 4), (4, 1, 2)]
)
def test_against_the_kernels(rng, datapoints, x, y):
    first, second = related(rng, datapoints, x, y)
    found = linear_cka(first, second)
    biased, unbiased = cka_by_kernels(first, second)
    np.testing.assert_allclose(found.value, biased, atol=1e-5)
    np.testing.assert_allclose(found.debiased, unbiased, atol=1e-4)


def test_unrelated_layers(rng):
    x, y = (rng.standard_normal((60, 200)).astype(np.float32) for _ in range(2))
    found = linear_cka(x, y)
    assert found.value > 0.7  # few datapoints make everything look alike
    assert abs(found.debiased) < 0.05


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rotations_scales_and_offsets_change_nothing(rng, scale):
    x, y = related(rng)
    expected = linear_cka(x, y)
    other = (scale * (x @ rotation(rng, 8) + 2)).astype(np.float32)
    found = linear_cka(other, y)
    np.testing.assert_allclose(found.value, expected.value, atol=1e-5)
    np.testing.assert_allclose(found.debiased, expected.debiased, atol=1e-5)
    np.testing.assert_allclose(linear_cka(x, other).value, 1, atol=1e-6)
    np.testing.assert_allclose(linear_cka(x, other).debiased, 1, atol=1e-5)
    np.testing.assert_allclose(linear_cka(y, x).value, expected.value, atol=1e-6)


def test_invertible_maps_do_change_it(rng):
    x, _ = related(rng)
    assert linear_cka(x, x * np.geomspace(1, 1e3, 8, dtype=np.float32)).value < 0.9


def test_hard_layers(rng):
    x, y = related(rng)
    assert tuple(linear_cka(np.ones_like(x), y)) == (0, 0)
    few = linear_cka(x[:3], y[:3])
    assert np.isfinite(few.value)
    assert np.isnan(few.debiased)
    mask, wide_x, wide_y = padded(rng, x, y, rows=140)
    found, expected = linear_cka(wide_x, wide_y, mask=mask), linear_cka(x, y)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    x[0, 0] = np.nan
    assert np.isnan(jax.jit(lambda a: linear_cka(a, y).value)(x))


def test_from_moments(rng):
    x, y = related(rng)
    moments = accumulate([(x[:50], y[:50]), (x[50:], y[50:])])
    found = linear_cka_from_moments(moments)
    np.testing.assert_allclose(found.value, linear_cka(x, y).value, atol=1e-6)
    assert np.isnan(found.debiased)


def test_the_gradient_equals_differences(rng):
    with jax.enable_x64(True):
        x, y = (jnp.asarray(a, jnp.float64) for a in related(rng, 30, 4, 3))
        step = jnp.asarray(rng.standard_normal((30, 4)))
        value = jax.jit(lambda a: sum(linear_cka(a, y)))
        found = jnp.sum(jax.grad(value)(x) * step)
        expected = (value(x + 1e-6 * step) - value(x - 1e-6 * step)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        dead = jax.grad(value)(jnp.zeros((30, 4)))
        assert np.isfinite(np.asarray(dead)).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shapes = [jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (8, 6)]
    exported = jax.export.export(jax.jit(linear_cka), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)
