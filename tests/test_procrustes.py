"""Procrustes distances against the explicit rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded, related, rotation
from oracles import procrustes_by_rotation

from svcca_jax import accumulate, procrustes_distance, procrustes_from_moments


@pytest.mark.parametrize(("datapoints", "neurons"), [(120, 8), (6, 8)])
def test_against_the_rotation(rng, datapoints, neurons):
    x, y = related(rng, datapoints, neurons, neurons)
    found = procrustes_distance(x, y)
    squared, cosine = procrustes_by_rotation(x, y)
    np.testing.assert_allclose(found.squared, squared, rtol=1e-5)
    np.testing.assert_allclose(found.similarity, cosine, atol=1e-5)
    np.testing.assert_allclose(found.distance, 1 - cosine, atol=1e-5)
    np.testing.assert_allclose(found.angle, np.arccos(cosine), atol=1e-4)


def test_the_narrower_layer_counts_as_padded(rng):
    x, y = related(rng)
    wide = np.concatenate([y, np.zeros((120, 2), np.float32)], axis=1)
    squared, cosine = procrustes_by_rotation(x, wide)
    for first, second in ((x, y), (y, x)):
        found = procrustes_distance(first, second)
        np.testing.assert_allclose(found.squared, squared, rtol=1e-5)
        np.testing.assert_allclose(found.similarity, cosine, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rotated_and_scaled_layers(rng, scale):
    x, y = related(rng)
    turned = (scale * (x @ rotation(rng, 8) + 2)).astype(np.float32)
    np.testing.assert_allclose(procrustes_distance(x, turned).similarity, 1, atol=1e-6)
    np.testing.assert_allclose(
        procrustes_distance(turned, y).similarity,
        procrustes_distance(x, y).similarity,
        atol=1e-5,
    )
    same = (x @ rotation(rng, 8)).astype(np.float32)
    norm = np.sum((x - x.mean(axis=0)) ** 2)
    # The residual keeps its digits where the difference of the norms would not.
    assert procrustes_distance(x, same).squared < 1e-11 * norm


def test_dead_layers_padding_and_moments(rng):
    x, y = related(rng)
    dead = procrustes_distance(np.ones_like(x), y)
    assert (dead.similarity, dead.distance) == (0, 1)
    expected = procrustes_distance(x, y)
    mask, wide_x, wide_y = padded(rng, x, y, rows=140)
    found = procrustes_distance(wide_x, wide_y, mask=mask)
    np.testing.assert_allclose(found.squared, expected.squared, rtol=1e-5)
    moments = accumulate([(x[:50], y[:50]), (x[50:], y[50:])])
    found = procrustes_from_moments(moments)
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-5)
    np.testing.assert_allclose(found.squared, expected.squared, rtol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shapes = [jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (8, 6)]
    exported = jax.export.export(jax.jit(procrustes_distance), platforms=[platform])(
        *shapes
    )
    assert exported.platforms == (platform,)
