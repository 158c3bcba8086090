"""Principal components of one layer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from svcca_jax.checks import as_activations, check_mask
from svcca_jax.linalg import center, count_datapoints, find_mean, product, svd
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
    """Number of components that are not rounding noise (0 too if an activation is NaN,
    as the other fields then show)."""
    mean: Float[Array, " neurons"]
    """Mean of every neuron, which was taken off."""


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
    checked = check_mask(mask, np.shape(x)[0] if np.ndim(x) else 0)
    return _pca(as_activations(x, "x", mask=checked, shift=False), checked)


@jax.jit
def _pca(x: Array, mask: Array | None) -> PCA:
    centered = center(x, mask)
    count = count_datapoints(x, mask)
    live = jnp.sum(jnp.any(centered != 0, axis=0))
    _, values, directions = svd(centered)
    rank = find_rank(values, live, count, neurons=x.shape[1])
    mean = find_mean(x, mask)[0]
    return PCA(values, _variances(values, count), directions, rank, mean)


def pca_from_moments(moments: Moments, x: int = 0) -> PCA:
    """Principal components of layer `x` of streamed moments.

    There is one component for each neuron; those beyond the rank are 0.
    """
    return _pca_from_moments(moments.select(x, x))


@jax.jit
def _pca_from_moments(moments: Moments) -> PCA:
    count = moments.datapoints
    layer = find_spectrum_of_covariance(moments.comoment(0, 0), count)
    values = layer.singular_values
    variances = _variances(values, count)
    return PCA(values, variances, layer.loadings, layer.rank, moments.mean(0))


def _variances(values: Array, count: Array) -> Array:
    return values**2 / jnp.maximum(count - 1, 1).astype(values.dtype)


def project(
    x: Float[Array, "datapoints neurons"], components: PCA
) -> Float[Array, "datapoints directions"]:
    """Returns activations, old or new, along every component [`pca_dirns`].

    They are centred by the mean of the layer that the components are of.
    """
    return product(x - components.mean[None], components.directions)
