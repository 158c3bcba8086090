"""CCA of convolution maps by discrete Fourier transform."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.cca import correlate, mean_coefficient
from svcca_jax.checks import MAPS, as_pair
from svcca_jax.linalg import center, count_datapoints, rank_cut
from svcca_jax.measure import Both
from svcca_jax.spectrum import Spectrum, find_spectrum, overlap


class FourierCCA(NamedTuple):
    """Canonical correlations across channels at every common spatial frequency."""

    coefficients: Float[Array, "height width directions"]
    """Decreasing at each frequency, 0 from `num_coefficients` on; frequencies in the
    order of a DFT: 0, 1, ..., -1."""
    num_coefficients: Int[Array, "height width"]
    """Number of coefficients at each frequency."""
    means: Float[Array, "height width"]
    """Mean coefficient at each frequency."""
    mean: Float[Array, ""]
    """Mean over the frequencies; one at which a layer has nothing counts as 0."""


def fourier_cca(
    x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None
) -> FourierCCA:
    """CCA of two layers of maps, frequency by frequency.

    On a set of images that is closed under cyclic shifts, different frequencies do not
    correlate, and the coefficients of all frequencies together are exactly those of
    CCA on the flattened maps, for `height * width` problems of the size of the channels
    instead of one of `height * width * channels`. Maps of different sizes are compared
    over the frequencies -k/2 <= f < k/2 with k the smaller size of each axis.

    Args:
      x: Maps [datapoints, height, width, channels]; need not be square.
      y: Maps for the same datapoints, of any size and number of channels.
      mask: True on the datapoints that count.

    Raises:
      ValueError: As `cca.cca`.

    Source: SVCCA (NIPS 2017), section 3 and theorem 1; `dft_ccas.py:fourier_ccas`.
    """
    # Differs from reference: maps need not be square, each axis is cropped by itself.
    first, second, checked = as_pair(x, y, mask, axes=MAPS)
    return _fourier_cca(first, second, checked)


@jax.jit
def _fourier_cca(x: Array, y: Array, mask: Array | None) -> FourierCCA:
    datapoints = count_datapoints(x, mask)
    layer_x = _prepare(center(x, mask), datapoints)
    return _compare(layer_x, _prepare(center(y, mask), datapoints))


def common_frequencies(size: int, smaller: int) -> Int[np.ndarray, " frequencies"]:
    """Returns where a DFT of `size` holds the frequencies of one of `smaller`."""
    frequencies = np.fft.fftfreq(size, d=1 / size)
    kept = (frequencies >= -smaller / 2) & (frequencies < smaller / 2)
    return np.flatnonzero(kept)


def transform(
    x: Float[Array, "datapoints height width channels"],
) -> Complex[Array, "height width datapoints channels"]:
    """Returns the DFT of every map, frequencies first."""
    return jnp.moveaxis(jnp.fft.fft2(x, axes=(1, 2)), 0, 2)


def _prepare(centered: Array, datapoints: Array) -> Spectrum:
    # Every frequency is a layer of its own; leading axes: height, width.
    decompose = functools.partial(find_spectrum, datapoints=datapoints)
    layer = jax.vmap(jax.vmap(decompose))(transform(centered))
    # What is a rounding error beside the strongest frequency is none of the layer's.
    values = layer.singular_values
    cut = rank_cut(datapoints, centered.shape[-1], values.dtype) * jnp.max(values)
    kept = jnp.minimum(layer.kept, jnp.sum(values > cut, axis=-1))
    index = jnp.arange(values.shape[-1])
    columns = (index[None, None] < kept[..., None])[:, :, None]
    assert layer.coordinates is not None
    coordinates = jnp.where(
        columns | jnp.isnan(layer.coordinates), layer.coordinates, 0
    )
    return layer._replace(coordinates=coordinates, rank=kept, kept=kept)


def _compare(x: Spectrum, y: Spectrum) -> FourierCCA:
    height = min(x.kept.shape[0], y.kept.shape[0])
    width = min(x.kept.shape[1], y.kept.shape[1])

    def crop(layer: Spectrum) -> Spectrum:
        rows = common_frequencies(layer.kept.shape[0], height)
        columns = common_frequencies(layer.kept.shape[1], width)
        return jax.tree.map(lambda leaf: leaf[rows[:, None], columns[None, :]], layer)

    def one(a: Spectrum, b: Spectrum) -> tuple[Array, Array]:
        result = correlate(a, b, overlap(a, b))
        return result.coefficients, result.num_coefficients

    values, counts = jax.vmap(jax.vmap(one))(crop(x), crop(y))
    means = jax.vmap(jax.vmap(mean_coefficient))(values, counts)
    return FourierCCA(values, counts, means, jnp.mean(means))


@dataclasses.dataclass(frozen=True)
class MeanFourierCCA:
    """Mean Fourier CCA of maps, for grids of layers (`pairwise`)."""

    axes: ClassVar[str] = MAPS

    def prepare(
        self,
        centered: Inexact[Array, "datapoints height width channels"],
        datapoints: Int[Array, ""],
    ) -> Spectrum:
        """Decomposes one layer at every frequency."""
        return _prepare(centered, datapoints)

    def prepare_moments(
        self, comoment: Float[Array, "neurons neurons"], datapoints: Int[Array, ""]
    ) -> Spectrum:
        """Refuses: moments do not hold the frequencies.

        Raises:
          ValueError: Always.
        """
        raise ValueError("Fourier CCA needs the maps: moments hold no frequencies")

    def compare(
        self,
        x: Spectrum,
        y: Spectrum,
        cross: Inexact[Array, "coordinates_x coordinates_y"] | None = None,
    ) -> Both:
        """Returns the mean over the common frequencies, both ways."""
        del cross
        value = _compare(x, y).mean
        return value, value
