"""Principal components against numpy, and from moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded, related

from svcca_jax import accumulate, pca, pca_from_moments
from svcca_jax.pca import project


def test_against_numpy(rng):
    x, _ = related(rng)
    found = pca(x)
    _, values, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.singular_values, values, rtol=1e-5)
    np.testing.assert_allclose(found.variances, values**2 / 119, rtol=1e-5)
    cosines = np.sum(right.T * np.asarray(found.directions), axis=0)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-5)
    assert found.rank == 8
    projected = np.asarray(project(jnp.asarray(x), found))
    part = np.asarray(project(jnp.asarray(x[:7]), found))
    np.testing.assert_allclose(part, projected[:7], atol=1e-5)
    np.testing.assert_allclose(
        np.cov(projected.T), np.diag(found.variances), atol=1e-5 * values[0]
    )


def test_moments_and_padding(rng):
    x, _ = related(rng)
    expected = pca(x)
    moments = accumulate([(x[:50],), (x[50:],)])
    found = pca_from_moments(moments)
    np.testing.assert_allclose(found.variances, expected.variances, rtol=1e-5)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
    cosines = np.sum(np.asarray(found.directions * expected.directions), axis=0)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-5)
    mask, wide = padded(rng, x, rows=140)
    found = pca(wide, mask=mask).variances
    np.testing.assert_allclose(found, expected.variances, rtol=1e-5)


def test_components_of_a_dead_layer():
    found = pca(np.full((10, 3), 0.1, np.float32))
    assert found.rank == 0
    assert not np.asarray(found.variances).any()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shape = jax.ShapeDtypeStruct((64, 8), jnp.float32)
    exported = jax.export.export(jax.jit(pca), platforms=[platform])(shape)
    assert exported.platforms == (platform,)
