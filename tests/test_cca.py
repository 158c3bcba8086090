"""CCA against QR in float64, its invariances, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import cca_by_qr

from svcca_jax import canonical_variates, cca, leading_mean


def related(rng, datapoints=200, x=12, y=9):
    latent = rng.standard_normal((datapoints, 5))
    first = latent @ rng.standard_normal((5, x)) + rng.standard_normal((datapoints, x))
    second = latent @ rng.standard_normal((5, y)) + rng.standard_normal((datapoints, y))
    return first.astype(np.float32), second.astype(np.float32)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("datapoints", "x", "y"),
    [(200, 12, 9), (50, 3, 20), (2, 1, 1), (10, 30, 4), (31, 20, 20)],
)
def test_against_qr(rng, datapoints, x, y, fast):
    first, second = related(rng, datapoints, x, y)
    result = cca(first, second, fast=fast)
    expected = cca_by_qr(first, second)
    assert result.num_coefficients == len(expected)
    found = np.asarray(result.coefficients)
    np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-5)
    assert not found[len(expected) :].any()
    np.testing.assert_allclose(result.mean, expected.mean(), atol=1e-5)


def test_invertible_maps_scales_and_offsets_change_nothing(rng):
    x, y = related(rng)
    mix = np.eye(12) + 0.3 * rng.standard_normal((12, 12))
    expected = cca(x, y).mean
    for other in (x @ mix + 7, 1e-6 * x, 1e6 * x, x + 100):
        found = cca(other.astype(np.float32), y).mean
        np.testing.assert_allclose(found, expected, atol=3e-5)
    np.testing.assert_allclose(cca(x, (x @ mix).astype(np.float32)).mean, 1, atol=1e-5)
    np.testing.assert_allclose(cca(y, x).mean, expected, atol=1e-6)


def test_dead_and_repeated_neurons(rng):
    x, y = related(rng)
    expected = cca(x, y)
    dead = np.concatenate([x, np.full((200, 3), 5.25, np.float32), x[:, :2]], axis=1)
    for fast in (False, True):
        found = cca(dead, y, fast=fast)
        assert found.rank_x == 12
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)


@pytest.mark.parametrize("fast", [False, True])
def test_a_dead_layer_is_similar_to_nothing(rng, fast):
    x, y = related(rng)
    found = cca(np.full_like(x, 0.1), y, fast=fast)
    assert (found.mean, found.rank_x, found.num_coefficients) == (0, 0, 0)


def test_the_route_is_told_and_left_where_it_is_inaccurate(rng):
    x, y = related(rng)
    assert cca(x, y, fast=True).from_covariance_x
    assert not cca(x, y).from_covariance_x
    near = x.copy()
    near[:, 1] = near[:, 0] + 1e-3 * near[:, 1]
    found = cca(near, near[:, :9], fast=True)
    assert not found.from_covariance_x
    np.testing.assert_allclose(found.mean, cca(near, near[:, :9]).mean, atol=1e-6)


def test_padding_counts_for_nothing(rng):
    x, y = related(rng)
    mask = np.zeros(260, bool)
    mask[rng.permutation(260)[:200]] = True
    padded = []
    for layer in (x, y):
        rows = np.full((260, layer.shape[1]), 1e3, np.float32)
        rows[mask] = layer
        padded.append(rows)
    expected = cca(x, y)
    for fast in (False, True):
        found = cca(*padded, mask=mask, fast=fast)
        np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-5)


def test_vmap_equals_loop_and_jit_equals_eager(rng):
    xs, ys = (np.stack(a) for a in zip(*(related(rng) for _ in range(3)), strict=True))
    xs[1, :, 4] = 0  # ranks differ over the batch
    together = jax.vmap(cca)(jnp.asarray(xs), jnp.asarray(ys))
    inside = jax.jit(lambda a, b: cca(a, b).mean)
    for i in range(3):
        alone = cca(xs[i], ys[i])
        np.testing.assert_allclose(together.mean[i], alone.mean, atol=1e-6)
        assert together.rank_x[i] == alone.rank_x
        np.testing.assert_allclose(inside(xs[i], ys[i]), alone.mean, atol=1e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_a_nan_inside_jit_stays_a_nan(rng, fast):
    x, y = related(rng)
    x[3, 2] = np.nan
    assert np.isnan(jax.jit(lambda a, b: cca(a, b, fast=fast).mean)(x, y))


def test_canonical_variates(rng):
    x, y = related(rng)
    x[:, 3] = x[:, 2]
    result, directions = canonical_variates(x, y)
    count = int(result.num_coefficients)
    hx, hy = (np.asarray(v)[:, :count] for v in directions[2:])
    np.testing.assert_allclose(hx.T @ hx, np.eye(count), atol=1e-5)
    np.testing.assert_allclose(hy.T @ hy, np.eye(count), atol=1e-5)
    expected = np.diag(result.coefficients[:count])
    np.testing.assert_allclose(hx.T @ hy, expected, atol=1e-5)
    for layer, weights, variates in ((x, directions.weights_x, hx),):
        centered = layer - layer.mean(axis=0)
        found = centered @ np.asarray(weights)[:, :count]
        np.testing.assert_allclose(found, variates, atol=1e-5)


def test_the_gradient_of_the_mean_equals_differences(rng):
    with jax.enable_x64(True):
        x, y = (a.astype(np.float64) for a in related(rng, 40, 5, 4))
        x[:, 4] = x[:, 3]  # a rank-deficient layer has a gradient too
        step = rng.standard_normal((40, 1)) * np.array([1.0, 1, 1, 1, 1])
        gradient = jax.grad(lambda a: cca(a, y).mean)(jnp.asarray(x))
        small = 1e-5
        expected = (cca(x + small * step, y).mean - cca(x - small * step, y).mean) / (
            2 * small
        )
        np.testing.assert_allclose(np.sum(gradient * step), expected, rtol=1e-6)


def test_leading_mean():
    values = jnp.array([0.9, 0.5, 0.1, 0.0], jnp.float32)
    np.testing.assert_allclose(leading_mean(values, 0.9), 0.7)
    np.testing.assert_allclose(leading_mean(values, 1.0), 0.5)
    assert leading_mean(jnp.zeros(3)) == 0


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("fast", [False, True])
def test_export(platform, fast):
    shapes = [jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (8, 6)]
    exported = jax.export.export(
        jax.jit(lambda a, b: cca(a, b, fast=fast)), platforms=[platform]
    )(*shapes)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_of_layers_with_dead_neurons_are_finite(rng, fast):
    x = rng.standard_normal((30, 5)).astype(np.float32)
    y = rng.standard_normal((30, 4)).astype(np.float32)
    for dead in (x * np.array([1, 1, 0, 0, 0], np.float32), x * 0):
        gradient = jax.grad(lambda x: cca(x, y, fast=fast).mean)(jnp.asarray(dead))
        assert np.isfinite(np.asarray(gradient)).all()


def test_tiny_activations_do_not_vanish_on_the_fast_route(rng):
    x = rng.standard_normal((60, 4)).astype(np.float32)
    y = x[:, :3] + rng.standard_normal((60, 3)).astype(np.float32)
    expected = cca(x, y).coefficients
    tiny = np.float32(1e-20)
    found = cca(x * tiny, y * tiny, fast=True).coefficients
    np.testing.assert_allclose(found, expected, atol=1e-5)
