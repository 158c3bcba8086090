"""Partial least squares against numpy, for layers of any widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded, related

from svcca_jax import accumulate, pls, pls_from_moments


def test_against_numpy(rng):
    x, y = related(rng)
    found = pls(x, y)
    cross = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0)) / 119
    left, values, right = np.linalg.svd(cross, full_matrices=False)
    np.testing.assert_allclose(found.values, values, atol=1e-6 * values[0])
    for ours, theirs in ((found.directions_x, left), (found.directions_y, right.T)):
        np.testing.assert_allclose(
            np.abs(np.sum(np.asarray(ours) * theirs, axis=0)), 1, atol=1e-5
        )
    rebuilt = found.directions_x @ np.diag(found.values) @ found.directions_y.T
    np.testing.assert_allclose(rebuilt, cross, atol=1e-5)


def test_moments_padding_and_dead_layers(rng):
    x, y = related(rng)
    expected = pls(x, y).values
    moments = accumulate([(x[:50], y[:50]), (x[50:], y[50:])])
    found = pls_from_moments(moments).values
    np.testing.assert_allclose(found, expected, atol=1e-5)
    mask, wide_x, wide_y = padded(rng, x, y, rows=140)
    found = pls(wide_x, wide_y, mask=mask).values
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.asarray(pls(x, np.ones_like(y)).values).any()


def test_the_gradient_equals_differences(rng):
    with jax.enable_x64(True):
        x, y = (jnp.asarray(a, jnp.float64) for a in related(rng, 30, 4, 3))
        step = jnp.asarray(rng.standard_normal((30, 4)))
        value = jax.jit(lambda a: pls(a, y).values.sum())
        found = jnp.sum(jax.grad(value)(x) * step)
        expected = (value(x + 1e-6 * step) - value(x - 1e-6 * step)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shapes = [jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (8, 6)]
    exported = jax.export.export(jax.jit(pls), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)
