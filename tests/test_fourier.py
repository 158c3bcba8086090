"""CCA by Fourier transform, and the theorem that makes it exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import padded
from oracles import cca_by_qr

from svcca_jax import MeanFourierCCA, cca, fourier_cca
from svcca_jax.fourier import common_frequencies


def make_maps(rng, datapoints=40, shapes=((4, 3, 3), (4, 3, 2))):
    return [rng.standard_normal((datapoints, *s)).astype(np.float32) for s in shapes]


def complex_cca(x, y):
    bases = [np.linalg.qr(a - a.mean(axis=0))[0] for a in (x, y)]
    return np.linalg.svd(bases[0].conj().T @ bases[1], compute_uv=False)


def test_every_frequency_is_a_complex_cca(rng):
    x, y = make_maps(rng)
    found = fourier_cca(x, y)
    assert found.coefficients.shape == (4, 3, 2)
    for i in range(4):
        for j in range(3):
            a, b = (np.fft.fft2(m, axes=(1, 2))[:, i, j] for m in (x, y))
            expected = complex_cca(a, b)
            np.testing.assert_allclose(found.coefficients[i, j], expected, atol=1e-5)
            np.testing.assert_allclose(found.means[i, j], expected.mean(), atol=1e-5)
    np.testing.assert_allclose(found.mean, np.mean(found.means), atol=1e-6)


def test_on_images_closed_under_shifts_it_is_the_cca_of_the_flat_maps(rng):
    def all_shifts(maps):
        return np.concatenate(
            [np.roll(maps, (i, j), axis=(1, 2)) for i in range(3) for j in range(2)]
        )

    # Layers that treat all positions alike: channels are mixed at every position.
    images = all_shifts(rng.standard_normal((8, 3, 2, 5)))
    x = images @ rng.standard_normal((5, 3))
    y = np.roll(images, 1, axis=1) @ rng.standard_normal((5, 2))
    found = fourier_cca(x, y)
    together = np.sort(np.asarray(found.coefficients).ravel())[::-1]
    flat = cca_by_qr(x.reshape(48, -1), y.reshape(48, -1))
    np.testing.assert_allclose(together[: len(flat)], flat, atol=2e-5)


def test_maps_of_different_sizes_meet_at_their_common_frequencies(rng):
    x, y = make_maps(rng, shapes=((4, 3, 3), (2, 5, 2)))
    found = fourier_cca(x, y)
    assert found.coefficients.shape == (2, 3, 2)
    # Frequency (-1, -1): entry 3 of 4 rows, 1 of 2; 2 of 3 columns, 4 of 5.
    a = np.fft.fft2(x, axes=(1, 2))[:, 3, 2]
    b = np.fft.fft2(y, axes=(1, 2))[:, 1, 4]
    np.testing.assert_allclose(found.coefficients[1, 2], complex_cca(a, b), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "smaller", "expected"),
    [
        (4, 4, [0, 1, 2, 3]),
        (4, 2, [0, 3]),
        (5, 2, [0, 4]),
        (5, 3, [0, 1, 4]),
        (7, 4, [0, 1, 5, 6]),
        (3, 1, [0]),
        (1, 1, [0]),
    ],
)
def test_common_frequencies(size, smaller, expected):
    assert common_frequencies(size, smaller).tolist() == expected


def test_one_position_is_plain_cca_and_padding_counts_for_nothing(rng):
    x, y = make_maps(rng, shapes=((1, 1, 4), (1, 1, 3)))
    found = fourier_cca(x, y)
    expected = cca(x[:, 0, 0], y[:, 0, 0]).coefficients
    np.testing.assert_allclose(found.coefficients[0, 0], expected, atol=1e-5)
    mask, wide_x, wide_y = padded(rng, x, y, rows=50)
    found = fourier_cca(wide_x, wide_y, mask=mask)
    np.testing.assert_allclose(found.coefficients[0, 0], expected, atol=1e-5)


def test_dead_maps_and_wrong_shapes(rng):
    x, y = make_maps(rng)
    found = fourier_cca(np.ones_like(x), y)
    assert (found.mean, np.asarray(found.num_coefficients).max()) == (0, 0)
    with pytest.raises(ValueError, match=r"x must have 4 axes .* got 2"):
        fourier_cca(x[:, 0, 0], y)
    with pytest.raises(ValueError, match="x has 40 datapoints and y has 39"):
        fourier_cca(x, y[:39])
    with pytest.raises(ValueError, match="frequencies"):
        MeanFourierCCA().prepare_moments(jnp.eye(3), jnp.asarray(5))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    shapes = [jax.ShapeDtypeStruct((16, 2, 2, n), jnp.float32) for n in (3, 2)]
    exported = jax.export.export(jax.jit(fourier_cca), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("size", [5, 6, 7])
def test_frequencies_without_energy_are_not_correlated(rng, size):
    x = np.broadcast_to(rng.standard_normal((40, 1, 1, 3)), (40, size, size, 3))
    found = fourier_cca(x.astype(np.float32), (2 * x).astype(np.float32))
    expected = np.zeros((size, size))
    expected[0, 0] = 3
    np.testing.assert_array_equal(found.num_coefficients, expected)
    np.testing.assert_allclose(found.mean, 1 / size**2, rtol=1e-5)
