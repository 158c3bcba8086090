"""Projections onto few directions, against least squares and convolutions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svcca_jax import projection
from svcca_jax.keep import AllDirections, FixedCount
from svcca_jax.projection import leading, merge, project, refit
from tests.layers_of_activations import related
from tests.oracles import cca_by_qr, centered


@pytest.fixture
def layers(rng) -> tuple[np.ndarray, np.ndarray]:
    x, y = related(rng, datapoints=60, x=9, y=7)
    return (x + 3).astype(np.float32), y.astype(np.float32)


def all_bases(x, y, key) -> dict[str, projection.Projector]:
    return {
        "svcca": projection.svcca_projector(x, y, keep=AllDirections()),
        "pca": projection.pca_projector(x),
        "random": projection.random_neurons(x, key=key),
        "variance": projection.highest_variance_neurons(x),
    }


def test_bases_are_orthonormal_and_nested(layers, getkey):
    x, y = layers
    for name, found in all_bases(x, y, getkey()).items():
        count = 7 if name == "svcca" else 9
        gram = found.directions @ found.directions.T
        np.testing.assert_allclose(gram, np.eye(count), atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(found.back, found.directions.T)
        np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-5)
        first = leading(found, 3)
        np.testing.assert_array_equal(first.directions, found.directions[:3])
        np.testing.assert_array_equal(first.back, found.back[:, :3])


def test_svcca_directions_hold_the_shared_variates(layers):
    x, y = layers
    found = projection.svcca_projector(x, y, keep=AllDirections())
    expected = cca_by_qr(x, y)
    for k in (1, 2, 5, 7):
        kept = centered(x) @ np.asarray(found.directions[:k], np.float64).T
        np.testing.assert_allclose(cca_by_qr(kept, y), expected[:k], atol=1e-4)


def test_svcca_rows_beyond_the_kept_are_zero(layers):
    x, y = layers
    found = projection.svcca_projector(x, y, keep=FixedCount(4))
    lengths = np.linalg.norm(np.asarray(found.directions), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0, 0, 0], atol=1e-5)
    # They lie in the span of the first four components.
    span = np.linalg.svd(centered(x))[2][:4]
    np.testing.assert_allclose(
        found.directions @ span.T @ span, found.directions, atol=1e-4
    )


def test_neurons_by_variance_and_at_random(rng, getkey):
    x = (rng.standard_normal((50, 5)) * [2, 9, 0, 5, 1]).astype(np.float32)
    order = projection.highest_variance_neurons(x).directions.argmax(axis=1)
    np.testing.assert_array_equal(order, [1, 3, 0, 4, 2])
    random = [
        tuple(projection.random_neurons(x, key=getkey()).directions.argmax(1).tolist())
        for _ in range(6)
    ]
    assert len(set(random)) > 1
    assert all(sorted(order) == list(range(5)) for order in random)
    held = project(jnp.asarray(x), leading(projection.highest_variance_neurons(x), 2))
    np.testing.assert_allclose(held[:, [1, 3]], x[:, [1, 3]], rtol=1e-5)
    means = np.broadcast_to(x.mean(0)[[0, 2, 4]], (50, 3))
    np.testing.assert_allclose(held[:, [0, 2, 4]], means, atol=1e-6)


def test_all_directions_change_nothing(layers, getkey):
    x, y = layers
    bases = all_bases(x, x, getkey()) | {"y": projection.svcca_projector(y, x)}
    for name, found in bases.items():
        layer = jnp.asarray(y if name == "y" else x)
        if name == "y":  # 99 % of the variance is less than all of it
            found = projection.svcca_projector(y, x, keep=AllDirections())
        np.testing.assert_allclose(project(layer, found), layer, atol=2e-4)
        maps = layer[:8].reshape(2, 4, -1)
        np.testing.assert_allclose(project(maps, found), maps, atol=2e-4)


@pytest.mark.parametrize("k", [1, 4, 7])
def test_refit_is_least_squares(layers, getkey, k):
    x, y = layers
    for name, basis in all_bases(x, y, getkey()).items():
        found = refit(leading(basis, k), x)
        outputs = centered(x) @ np.asarray(found.directions, np.float64).T
        weights = np.linalg.lstsq(outputs, centered(x), rcond=1e-6)[0]
        np.testing.assert_allclose(found.back.T, weights, atol=2e-3, err_msg=name)
        np.testing.assert_array_equal(found.directions, basis.directions[:k])
        twice = project(project(jnp.asarray(x), found), found)
        np.testing.assert_allclose(twice, project(jnp.asarray(x), found), atol=1e-3)


def test_refit_of_missing_and_constant_directions(rng):
    x = rng.standard_normal((40, 4)).astype(np.float32)
    x[:, 2] = 7
    x[:, 3] = x[:, 0]
    order = projection.random_neurons(x, key=jax.random.key(1))
    assert np.isfinite(np.asarray(refit(order, x).back)).all()
    np.testing.assert_allclose(project(jnp.asarray(x), refit(order, x)), x, atol=1e-4)
    constant = np.ones((10, 3), np.float32)
    for found in (
        projection.svcca_projector(constant, x[:10]),
        projection.pca_projector(constant),
        refit(projection.highest_variance_neurons(constant), constant),
    ):
        held = project(jnp.asarray(constant), found)
        np.testing.assert_allclose(held, constant, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_merged_dense_kernels_are_the_projection(layers, rng, k):
    x, y = layers
    kernel = rng.standard_normal((9, 4)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    for found in (
        leading(projection.svcca_projector(x, y), k),
        refit(leading(projection.highest_variance_neurons(x), k), x),
    ):
        merged = merge(jnp.asarray(kernel), jnp.asarray(bias), found)
        assert merged.first.shape == (9, k)
        assert merged.second.shape == (k, 4)
        outputs = x @ np.asarray(merged.first) @ np.asarray(merged.second)
        expected = np.asarray(project(jnp.asarray(x), found)) @ kernel + bias
        np.testing.assert_allclose(
            outputs + np.asarray(merged.bias), expected, atol=2e-4
        )


def test_merged_convolutions_are_the_projection(rng):
    maps = (rng.standard_normal((3, 5, 6, 4)) + 2).astype(np.float32)
    kernel = jnp.asarray(rng.standard_normal((2, 3, 4, 5)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(5), jnp.float32)
    found = leading(projection.pca_projector(maps.reshape(-1, 4)), 2)
    merged = merge(kernel, bias, found)

    def convolve(x, kernel):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=axes
        )

    outputs = convolve(jnp.asarray(maps) @ merged.first, merged.second)
    expected = convolve(project(jnp.asarray(maps), found), kernel)
    np.testing.assert_allclose(
        outputs + merged.bias[None, None, None],
        expected + bias[None, None, None],
        atol=1e-4,
    )


def test_what_does_not_fit_is_named(layers):
    x, y = layers
    found = projection.pca_projector(x)
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"of 9 directions has no leading {k}"):
            leading(found, k)
    with pytest.raises(ValueError, match="x has 7 neurons but the projector is of 9"):
        refit(found, y)
    with pytest.raises(ValueError, match="x has 60 datapoints and y has 59"):
        projection.svcca_projector(x, y[1:])
