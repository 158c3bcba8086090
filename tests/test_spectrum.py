"""One layer's directions: both routes, ranks, and what is kept of hard layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import related

from svcca_jax import FixedCount, VarianceFraction
from svcca_jax.linalg import center, product
from svcca_jax.spectrum import find_spectrum, find_spectrum_of_covariance


def spectrum_of(x, **options):
    x = jnp.asarray(x)
    return find_spectrum(center(x), jnp.asarray(len(x)), **options)


@pytest.mark.parametrize("fast", [False, True])
def test_directions_are_orthonormal_and_rebuild_the_layer(rng, fast):
    x, _ = related(rng)
    found = spectrum_of(x, fast=fast)
    directions = np.asarray(found.coordinates)
    if found.transform is not None:
        directions = directions @ np.asarray(found.transform)
    np.testing.assert_allclose(directions.T @ directions, np.eye(8), atol=1e-5)
    rebuilt = (directions * np.asarray(found.singular_values)) @ found.loadings.T
    np.testing.assert_allclose(rebuilt, x - x.mean(axis=0), atol=1e-5)
    assert found.from_covariance == fast


@pytest.mark.parametrize("fast", [False, True])
def test_ranks(rng, fast):
    x, _ = related(rng)
    layer = np.concatenate([x, x[:, :2] - x[:, 2:4], np.ones((120, 3))], axis=1)
    found = spectrum_of(layer.astype(np.float32), fast=fast)
    assert (found.rank, found.kept, found.live_neurons) == (8, 8, 10)
    assert not np.asarray(found.loadings)[:, 8:].any()
    few = spectrum_of(x[:5], fast=fast)
    assert (few.rank, few.datapoints) == (4, 5)
    one = spectrum_of(x[:1], fast=fast)
    assert (one.rank, one.live_neurons) == (0, 0)


def test_the_cut_is_the_documented_one(rng):
    x, _ = related(rng)
    for keep in (FixedCount(3), VarianceFraction(0.8)):
        found = spectrum_of(x, keep=keep)
        values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
        share = np.cumsum(values**2) / np.sum(values**2)
        expected = 3 if keep == FixedCount(3) else np.argmax(share >= 0.8) + 1
        assert found.kept == expected
        assert found.rank == 8
        columns = np.abs(np.asarray(found.coordinates)).sum(axis=0)
        assert (columns > 0).tolist() == [i < expected for i in range(8)]


def test_from_a_covariance(rng):
    x, _ = related(rng)
    centered = center(jnp.asarray(x))
    found = find_spectrum_of_covariance(
        product(centered.T, centered), jnp.asarray(120), keep=FixedCount(4)
    )
    expected = spectrum_of(x, keep=FixedCount(4))
    np.testing.assert_allclose(
        found.singular_values, expected.singular_values, rtol=1e-5
    )
    cosines = np.sum(np.asarray(found.loadings * expected.loadings), axis=0)
    np.testing.assert_allclose(np.abs(cosines), [1, 1, 1, 1, 0, 0, 0, 0], atol=1e-5)
    assert (found.rank, found.kept) == (8, 4)


def test_a_covariance_cannot_see_what_lies_below_its_digits(rng):
    x, _ = related(rng)
    x[:, 7] = x[:, 6] + 1e-4 * x[:, 7]
    centered = center(jnp.asarray(x))
    comoment = product(centered.T, centered)
    assert find_spectrum_of_covariance(comoment, jnp.asarray(120)).rank == 7
    assert spectrum_of(x).rank == 8


@pytest.mark.parametrize("fast", [False, True])
def test_a_nan_is_never_taken_for_a_dead_layer(rng, fast):
    x, _ = related(rng)
    x[3, 4] = np.nan
    found = spectrum_of(x, fast=fast)
    assert np.isnan(np.asarray(found.loadings)).any()


def test_the_rank_does_not_fall_with_the_number_of_datapoints(rng):
    x, _ = related(rng)
    centered = center(jnp.asarray(x))
    comoment = product(centered.T, centered)
    for datapoints in (120, 10_000_000):
        many = jnp.asarray(datapoints)
        assert find_spectrum_of_covariance(comoment, many).rank == 8
        assert find_spectrum(centered, many).rank == 8
