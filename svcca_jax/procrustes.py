"""Orthogonal Procrustes distances."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.centered import (
    Centered,
    prepare,
    prepare_comoment,
    ratio,
)
from svcca_jax.checks import as_pair
from svcca_jax.linalg import (
    center,
    count_datapoints,
    cross_product,
    product,
    singular_values,
    sum_products,
    svd,
)
from svcca_jax.measure import Both
from svcca_jax.moments import Moments


class Procrustes(NamedTuple):
    """How far two layers are from each other after the best rotation."""

    squared: Float[Array, ""]
    """Squared distance in the units of the activations, not normalised. From moments
    it is the difference of nearly equal sums: distances below about 1e-3 of the layer's
    norm are rounding there (float32)."""
    similarity: Float[Array, ""]
    """Cosine between the layers after the best rotation, in [0, 1]."""
    distance: Float[Array, ""]
    """1 - similarity."""
    angle: Float[Array, ""]
    """Angular distance in radians, a metric; near similarity 1 it resolves only about
    the square root of the rounding error (float32: 5e-4)."""


def procrustes_distance(
    x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None
) -> Procrustes:
    r"""Procrustes distances of two layers, of equal or different widths.

    .. math:: \min_Q \|X_c - Y_c Q\|_F^2 = \|X_c\|_F^2 + \|Y_c\|_F^2
       - 2 \|X_c^T Y_c\|_*, \qquad
       \text{similarity} = \frac{\|X_c^T Y_c\|_*}{\|X_c\|_F \|Y_c\|_F}

    The narrower layer counts as padded with constant neurons. A constant layer has
    similarity 0.

    Args:
      x: Activations [datapoints, neurons_x]; integers and booleans become floats.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      mask: True on the datapoints that count.

    Raises:
      ValueError: As `cca.cca`.

    Source: Generalized shape metrics on neural representations (NeurIPS 2021).
    """
    first, second, checked = as_pair(x, y, mask)
    return _procrustes(first, second, checked)


@jax.jit
def _procrustes(x: Array, y: Array, mask: Array | None) -> Procrustes:
    datapoints = count_datapoints(x, mask)
    layer_x = prepare(center(x, mask), datapoints)
    layer_y = prepare(center(y, mask), datapoints)
    wide, narrow = layer_x.coordinates, layer_y.coordinates
    assert wide is not None
    assert narrow is not None
    if x.shape[1] < y.shape[1]:
        wide, narrow = narrow, wide
    left, values, right = svd(sum_products(wide, narrow))
    # The residual itself: near 0, the difference of the norms would be all rounding.
    residual = wide - product(narrow, product(right, left.T))
    return _summarise(layer_x, layer_y, jnp.sum(values), jnp.sum(residual**2))


def procrustes_from_moments(moments: Moments, x: int = 0, y: int = 1) -> Procrustes:
    """Procrustes distances of layers `x` and `y` of streamed moments."""
    return _procrustes_from_moments(moments.select(x, y))


@jax.jit
def _procrustes_from_moments(moments: Moments) -> Procrustes:
    layer_x, layer_y = (
        prepare_comoment(moments.comoment(i, i), moments.datapoints) for i in (0, 1)
    )
    return _compare(layer_x, layer_y, moments.comoment(0, 1))


def _compare(x: Centered, y: Centered, cross: Array) -> Procrustes:
    nuclear = jnp.sum(singular_values(cross))
    squared = jnp.maximum(x.variance + y.variance - 2 * nuclear, 0)
    return _summarise(x, y, nuclear, squared)


def _summarise(x: Centered, y: Centered, nuclear: Array, squared: Array) -> Procrustes:
    # A root of each factor: their product would leave float32 for large activations.
    norms = _root(x.variance) * _root(y.variance)
    similarity = jnp.clip(ratio(nuclear, norms), 0, 1)
    return Procrustes(squared, similarity, 1 - similarity, jnp.arccos(similarity))


def _root(variance: Array) -> Array:
    zero = variance == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, variance)))


@dataclasses.dataclass(frozen=True)
class ProcrustesSimilarity:
    """Procrustes similarity, for grids of layers (`pairwise`)."""

    def prepare(
        self,
        centered: Inexact[Array, "datapoints neurons"],
        datapoints: Int[Array, ""],
    ) -> Centered:
        """Takes the sums of one layer."""
        return prepare(centered, datapoints)

    def prepare_moments(
        self, comoment: Float[Array, "neurons neurons"], datapoints: Int[Array, ""]
    ) -> Centered:
        """Reads one layer's statistics from its covariance."""
        return prepare_comoment(comoment, datapoints)

    def compare(
        self,
        x: Centered,
        y: Centered,
        cross: Inexact[Array, "coordinates_x coordinates_y"] | None = None,
    ) -> Both:
        """Returns the similarity of two layers, both ways."""
        if cross is None:
            cross = cross_product(x, y)
        value = _compare(x, y, cross).similarity
        return value, value
