"""PWCCA against its definition, both sides, and the published choice of side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded, related, rotation
from oracles import pwcca_by_definition

from svcca_jax import accumulate, pwcca
from svcca_jax.pwcca import pwcca_from_moments


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("x", "y"), [(8, 6), (6, 8), (8, 8)])
def test_against_the_definition(rng, x, y, fast):
    first, second = related(rng, x=x, y=y)
    found = pwcca(first, second, fast=fast)
    by_x, by_y = pwcca_by_definition(first, second)
    np.testing.assert_allclose(found.weighted_by_x, by_x, atol=1e-5)
    np.testing.assert_allclose(found.weighted_by_y, by_y, atol=1e-5)
    np.testing.assert_allclose(found.value, by_x if x <= y else by_y, atol=1e-5)
    np.testing.assert_allclose(np.sum(found.weights_x), 1, atol=1e-6)
    assert found.from_covariance_x == fast


def test_dead_neurons_do_not_choose_the_side(rng):
    x, y = related(rng)
    _, by_y = pwcca_by_definition(x, y)
    wide = np.concatenate([y, np.ones((120, 9), np.float32)], axis=1)
    np.testing.assert_allclose(pwcca(x, wide).value, by_y, atol=1e-5)


def test_a_dead_layer_is_similar_to_nothing(rng):
    x, y = related(rng)
    found = pwcca(np.zeros_like(x), y)
    assert (found.value, found.weighted_by_x, found.weighted_by_y) == (0, 0, 0)


def test_what_changes_nothing(rng):
    x, y = related(rng)
    expected = pwcca(x, y)
    turned = 1e-5 * (y @ rotation(rng, 6)) + 0.1
    found = pwcca(x, turned.astype(np.float32))
    # Weights are sums over the neurons, so a rotation of a layer changes its own.
    np.testing.assert_allclose(found.weighted_by_x, expected.weighted_by_x, atol=1e-4)
    np.testing.assert_allclose(pwcca(y, x).value, expected.value, atol=1e-5)
    np.testing.assert_allclose(pwcca(x, x).value, 1, atol=1e-5)
    mask, wide_x, wide_y = padded(rng, x, y, rows=140)
    found = pwcca(wide_x, wide_y, mask=mask).value
    np.testing.assert_allclose(found, expected.value, atol=1e-5)


def test_from_moments_and_over_a_batch(rng):
    x, y = related(rng)
    expected = pwcca(x, y).value
    moments = accumulate([(x[:50], y[:50]), (x[50:], y[50:])])
    np.testing.assert_allclose(pwcca_from_moments(moments).value, expected, atol=1e-5)
    both = jax.vmap(pwcca)(jnp.stack([x, -x]), jnp.stack([y, 2 * y])).value
    np.testing.assert_allclose(both, [expected, expected], atol=1e-5)


def test_the_gradient_equals_differences(rng):
    with jax.enable_x64(True):
        x, y = (jnp.asarray(a, jnp.float64) for a in related(rng, 30, 4, 3))
        step = jnp.asarray(rng.standard_normal((30, 4)))
        value = jax.jit(lambda a: pwcca(a, y).value)
        found = jnp.sum(jax.grad(value)(x) * step)
        expected = (value(x + 1e-6 * step) - value(x - 1e-6 * step)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shapes = [jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (8, 6)]
    exported = jax.export.export(jax.jit(pwcca), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)
