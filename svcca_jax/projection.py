"""Projections of a layer onto few directions, and kernels made smaller by them.

Every basis is a `Projector`, best direction first, so that `leading` takes any number
of them: `project` is what the rest of a network then sees of the layer, and `merge`
the smaller kernels that compute the same. Activations here have no padding rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from svcca_jax.cca import canonical_variates
from svcca_jax.checks import as_activations
from svcca_jax.keep import Keep
from svcca_jax.linalg import center, find_mean, product, rank_cut, svd
from svcca_jax.pca import pca
from svcca_jax.svcca import PAPER_RULE


class Projector(NamedTuple):
    """A linear map to few directions and back, about the mean of a layer."""

    directions: Float[Array, "directions neurons"]
    """Combinations of neurons, the best first; rows beyond those that exist are 0."""
    back: Float[Array, "neurons directions"]
    """From directions to neurons: the transpose of `directions`, or see `refit`."""
    mean: Float[Array, " neurons"]
    """Mean of every neuron, which is taken off before and added after."""


class Merged(NamedTuple):
    """A kernel over `neurons`, as two smaller ones in a row."""

    first: Float[Array, "neurons directions"]
    """Applied to every position of the layer, without a bias."""
    second: Float[Array, "*window directions outputs"]
    """Applied to what `first` gives."""
    bias: Float[Array, " outputs"]
    """Added at the end."""


def svcca_projector(
    x: ArrayLike, y: ArrayLike, *, keep: Keep = PAPER_RULE
) -> Projector:
    """Orthonormal basis of the directions of x that correlate most with y.

    The first k rows span the neuron weights of the first k SVCCA variates. Against a
    layer of another network it is ordered by what the two share; against x itself all
    coefficients are 1 and the order means nothing.

    Args:
      x: Activations [datapoints, neurons] of the layer to project.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      keep: Singular directions of each layer to keep first.

    Returns:
      The projector, with min(neurons, neurons_y, datapoints) directions, of which those
      beyond the number of coefficients are 0.

    Raises:
      ValueError: As `cca.cca`.

    Source: SVCCA (NIPS 2017), section 2.2.
    """
    result, variates = canonical_variates(x, y, keep=keep)
    lengths = jnp.linalg.norm(variates.weights_x, axis=0, keepdims=True)
    weights = variates.weights_x / jnp.where(lengths == 0, 1, lengths)
    basis = jnp.linalg.qr(weights)[0]
    exists = jnp.arange(basis.shape[1]) < result.num_coefficients
    basis = jnp.where(exists[None, :], basis, 0)
    return Projector(basis.T, basis, _mean(x).astype(basis.dtype))


def pca_projector(x: ArrayLike) -> Projector:
    """Principal components of a layer, by decreasing variance.

    Args:
      x: Activations [datapoints, neurons].

    Raises:
      ValueError: As `cca.cca`.
    """
    found = pca(x)
    exists = jnp.arange(found.directions.shape[1]) < found.rank
    basis = jnp.where(exists[None, :], found.directions, 0)
    return Projector(basis.T, basis, found.mean)


def random_neurons(x: ArrayLike, *, key: Key[Array, ""]) -> Projector:
    """Single neurons in random order: those left out are held at their mean.

    Args:
      x: Activations [datapoints, neurons].
      key: The key is consumed.

    Raises:
      ValueError: As `cca.cca`.
    """
    mean = _mean(x)
    return _of_neurons(jax.random.permutation(key, mean.shape[0]), mean)


def highest_variance_neurons(x: ArrayLike) -> Projector:
    """Single neurons by decreasing variance; see `random_neurons`.

    Args:
      x: Activations [datapoints, neurons].

    Raises:
      ValueError: As `cca.cca`.
    """
    centered = center(as_activations(x, "x", shift=False))
    return _of_neurons(jnp.argsort(-jnp.sum(centered**2, axis=0)), _mean(x))


def leading(projector: Projector, directions: int) -> Projector:
    """The first directions of a projector.

    Raises:
      ValueError: For fewer than 1 direction or more than there are.
    """
    most = projector.directions.shape[0]
    if not 1 <= directions <= most:
        raise ValueError(
            f"a projector of {most} directions has no leading {directions} of them"
        )
    return Projector(
        projector.directions[:directions],
        projector.back[:, :directions],
        projector.mean,
    )


def refit(projector: Projector, x: ArrayLike) -> Projector:
    """The same directions, with the way back that reconstructs a layer best.

    By least squares over the datapoints: correlated neurons that were left out are
    predicted from the directions instead of being held at their mean. In the space of
    datapoints it is the orthogonal projection of every neuron onto the span of the
    directions' outputs. PCA does not change.

    Args:
      projector: Take `leading` first: the way back depends on all directions.
      x: Activations [datapoints, neurons].

    Raises:
      ValueError: As `cca.cca`, and for another number of neurons.
    """
    array = as_activations(x, "x", shift=False)
    if array.shape[1] != projector.mean.shape[0]:
        raise ValueError(
            f"x has {array.shape[1]} neurons but the projector is of "
            f"{projector.mean.shape[0]}"
        )
    return _refit(projector, array)


@jax.jit
def _refit(projector: Projector, x: Array) -> Projector:
    centered = center(x)
    left, values, right = svd(product(centered, projector.directions.T))
    cut = rank_cut(x.shape[0], x.shape[1], values.dtype) * values[:1]
    kept = (values > cut) & (values > 0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    back = product(product(centered.T, left) * inverse[None, :], right.T)
    return Projector(projector.directions, back, find_mean(x)[0])


def project(
    x: Float[Array, "*points neurons"], projector: Projector
) -> Float[Array, "*points neurons"]:
    """Returns activations, old or new, as the directions of a projector hold them."""
    mean = jnp.expand_dims(projector.mean, range(x.ndim - 1))
    kept = product(x - mean, projector.directions.T)
    return mean + product(kept, projector.back.T)


def merge(
    kernel: Float[Array, "*window neurons outputs"],
    bias: Float[Array, " outputs"],
    projector: Projector,
) -> Merged:
    r"""Two kernels that do to a layer what one does to its projection.

    With :math:`P` the directions and :math:`B` the way back, :math:`x W` becomes
    :math:`(x P^T)(B^T W)`; the means go into the bias. Neurons times outputs weights
    become directions times (neurons + outputs): fewer where the directions are few. Of
    a convolution it is exact where its window lies within the map (no zero padding).

    Args:
      kernel: Kernel [..., neurons, outputs] of the layer that reads the projected one.
      bias: Its bias.
      projector: A projector of the layer it reads.

    Source: SVCCA (NIPS 2017), section 4.4 (compression).
    """
    directions, back, mean = projector
    offset = mean - product(product(mean, directions.T), back.T)
    second = product(back.T, kernel)
    window = tuple(range(kernel.ndim - 2))
    return Merged(
        directions.T, second, bias + jnp.sum(product(offset, kernel), axis=window)
    )


def _mean(x: ArrayLike) -> Float[Array, " neurons"]:
    return find_mean(as_activations(x, "x", shift=False))[0]


def _of_neurons(
    order: Int[Array, " neurons"], mean: Float[Array, " neurons"]
) -> Projector:
    chosen = jax.nn.one_hot(order, mean.shape[0], dtype=mean.dtype)
    return Projector(chosen, chosen.T, mean)
