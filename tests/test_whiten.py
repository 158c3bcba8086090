"""The span by Cholesky: the same correlations, and when it is left for QR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import cca_by_qr

from svcca_jax import MeanCCA, cca, pairwise
from svcca_jax.linalg import center
from svcca_jax.whiten import find_whitened


def whitened(x):
    return find_whitened(center(jnp.asarray(x)), jnp.asarray(len(x)))


def spread(rng, ratio, weak, *, datapoints=400, neurons=12):
    """A layer whose last `weak` neurons are `ratio` times weaker than the others."""
    x = np.linalg.qr(rng.standard_normal((datapoints, neurons)))[0]
    x[:, neurons - weak :] /= ratio
    return x.astype(np.float32)


def test_the_columns_are_an_orthonormal_basis_of_the_span(rng):
    x = spread(rng, 10, 3)
    found = whitened(x)
    assert found.from_covariance
    basis = np.asarray(found.coordinates) @ np.asarray(found.transform)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-4)
    centered = x - x.mean(axis=0)
    rest = centered - basis @ (basis.T @ centered)
    assert np.abs(rest).max() < 1e-5


@pytest.mark.parametrize("weak", [1, 6, 11])
@pytest.mark.parametrize("ratio", [5, 20, 60, 1000, 1e6])
def test_the_route_is_left_where_it_is_inaccurate(rng, ratio, weak):
    x = spread(rng, ratio, weak)
    y = (x.astype(np.float64) @ rng.standard_normal((12, 5))).astype(np.float32)
    y += rng.standard_normal(y.shape).astype(np.float32)
    found = cca(x, y, fast=True)
    assert bool(found.from_covariance_x) == (ratio <= 20)
    expected = cca(x, y).coefficients
    np.testing.assert_allclose(found.coefficients, expected, atol=2e-5)
    if ratio < 1e6:
        np.testing.assert_allclose(expected, cca_by_qr(x, y), atol=2e-5)


def test_hard_layers(rng):
    x = rng.standard_normal((60, 4)).astype(np.float32)
    for layer in (
        x * 0,
        np.concatenate([x, x], axis=1),
        np.pad(x, ((0, 0), (0, 2))),
        x[:, :1],
        x[:3],
        x[:5],
    ):
        other = x[: len(layer)]
        found, expected = cca(layer, other, fast=True), cca(layer, other)
        np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-5)
        assert found.rank_x == expected.rank_x
    nan = jnp.asarray(x).at[0, 0].set(jnp.nan)
    assert np.isnan(jax.jit(lambda x, y: cca(x, y, fast=True).mean)(nan, x))


def test_grids(rng):
    layers = [spread(rng, ratio, 4).astype(np.float32) for ratio in (2, 100, 2)]
    layers[1] = layers[1][:, :7] + layers[0][:, :7]
    found = pairwise(layers, measure=MeanCCA(fast=True))
    np.testing.assert_allclose(found, pairwise(layers, measure=MeanCCA()), atol=2e-5)
