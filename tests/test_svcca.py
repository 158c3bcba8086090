"""SVCCA against CCA of the projected layers, its three rules, and its widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded, related, rotation
from oracles import cca_by_qr, centered

from svcca_jax import FixedCount, SumFraction, VarianceFraction, accumulate, svcca
from svcca_jax.cca import correlate, correlate_kept
from svcca_jax.linalg import center
from svcca_jax.spectrum import find_spectrum, overlap
from svcca_jax.svcca import svcca_from_moments


def cut(x, keep):
    left, values, _ = np.linalg.svd(centered(x), full_matrices=False)
    if isinstance(keep, FixedCount):
        count = keep.directions
    else:
        masses = values if isinstance(keep, SumFraction) else values**2
        count = int(np.argmax(np.cumsum(masses) >= keep.fraction * masses.sum())) + 1
    return left[:, :count]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "keep", [VarianceFraction(0.8), SumFraction(0.8), FixedCount(4)], ids=str
)
def test_the_rules(rng, keep, fast):
    x, y = related(rng)
    found = svcca(x, y, keep=keep, fast=fast)
    first, second = cut(x, keep), cut(y, keep)
    expected = cca_by_qr(first, second)
    count = int(found.num_coefficients)
    assert (found.rank_x, found.rank_y) == (first.shape[1], second.shape[1])
    np.testing.assert_allclose(found.coefficients[:count], expected, atol=1e-5)
    np.testing.assert_allclose(found.mean, expected.mean(), atol=1e-5)
    assert found.from_covariance_x == fast


def test_rotations_scales_offsets_order_and_padding_change_nothing(rng):
    x, y = related(rng)
    expected = svcca(x, y).mean
    turned = 1e4 * (x @ rotation(rng, 8)) + 3
    np.testing.assert_allclose(svcca(turned, y).mean, expected, atol=1e-5)
    np.testing.assert_allclose(svcca(x, turned).mean, 1, atol=1e-5)
    order = rng.permutation(120)
    np.testing.assert_allclose(svcca(x[order], y[order]).mean, expected, atol=1e-5)
    np.testing.assert_allclose(svcca(y, x).mean, expected, atol=1e-6)
    mask, wide_x, wide_y = padded(rng, x, y, rows=150)
    found = svcca(wide_x, wide_y, mask=mask).mean
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dead_layers_and_single_datapoints_are_similar_to_nothing(rng):
    x, y = related(rng)
    for first, second in ((np.zeros_like(x), y), (x[:1], y[:1])):
        found = svcca(first, second)
        assert (found.mean, found.num_coefficients) == (0, 0)


@pytest.mark.parametrize("directions", [1, 3, 8, 15, 20])
def test_the_cost_follows_the_directions_kept(rng, directions):
    x, y = related(rng, x=20, y=24)
    layers = [
        find_spectrum(
            center(jnp.asarray(a)), jnp.asarray(120), keep=FixedCount(directions)
        )
        for a in (x, y)
    ]
    between = overlap(*layers)
    found = jax.jit(correlate_kept)(*layers, between)
    expected = correlate(*layers, between)
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-6)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)


def test_from_moments(rng):
    x, y = related(rng)
    moments = accumulate([(x[:50], y[:50]), (x[50:], y[50:])])
    found = svcca_from_moments(moments, keep=FixedCount(4))
    expected = svcca(x, y, keep=FixedCount(4))
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-5)
    assert found.from_covariance_x
    swapped = svcca_from_moments(moments, 1, 0, keep=FixedCount(4))
    np.testing.assert_allclose(swapped.mean, expected.mean, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shapes = [jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (8, 6)]
    for fast in (False, True):
        exported = jax.export.export(
            jax.jit(lambda a, b, fast=fast: svcca(a, b, fast=fast)),
            platforms=[platform],
        )(*shapes)
        assert exported.platforms == (platform,)
