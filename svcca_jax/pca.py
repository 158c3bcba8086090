"""Principal components of one layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from svcca_jax.checks import as_activations, check_mask
from svcca_jax.linalg import center, count_datapoints, product, svd
from svcca_jax.moments import Moments
from svcca_jax.spectrum import find_rank, find_spectrum_of_covariance


class PCA(NamedTuple):
    """Principal components, by decreasing variance."""

    singular_values: Float[Array, " directions"]
    """Of the centred activations [published as `eigenvals`]."""
    variances: Float[Array, " directions"]
    """Along each component: singular_values^2 / (datapoints - 1)."""
    directions: Float[Array, "neurons directions"]
    """Unit combinations of neurons [`neuron_coefs`, there in rows]."""
    rank: Int[Array, ""]
    """Number of components that are not rounding noise."""


def pca(x: ArrayLike, *, mask: ArrayLike | None = None) -> PCA:
    """Principal components of one layer.

    Args:
      x: Activations [datapoints, neurons]; integers and booleans become floats.
      mask: True on the datapoints that count.

    Raises:
      ValueError: As `cca.cca`.

    Source: `numpy_pca.py:get_pca`.
    """
    # Differs from reference: every neuron is centred over the datapoints; the reference
    # subtracts from each datapoint the mean of its neurons.
    array = as_activations(x, "x")
    return _pca(array, check_mask(mask, array.shape[0]))


@jax.jit
def _pca(x: Array, mask: Array | None) -> PCA:
    centered = center(x, mask)
    count = count_datapoints(x, mask)
    live = jnp.sum(jnp.any(centered != 0, axis=0))
    _, values, directions = svd(centered)
    rank = find_rank(values, live, count, neurons=x.shape[1])
    return PCA(values, _variances(values, count), directions, rank)


def pca_from_moments(moments: Moments, x: int = 0) -> PCA:
    """Principal components of layer `x` of streamed moments.

    Components below the rank are returned as they are, in noise.
    """
    pair = moments.select(x, x)
    return _pca_from_comoment(pair.comoment(0, 0), pair.datapoints)


@jax.jit
def _pca_from_comoment(comoment: Array, count: Array) -> PCA:
    layer = find_spectrum_of_covariance(comoment, count)
    values = layer.singular_values
    return PCA(values, _variances(values, count), layer.loadings, layer.rank)


def _variances(values: Array, count: Array) -> Array:
    return values**2 / jnp.maximum(count - 1, 1).astype(values.dtype)


def project(x: Array, components: PCA) -> Float[Array, "datapoints directions"]:
    """Returns the centred activations along every component [`pca_dirns`]."""
    return product(center(x), components.directions)
