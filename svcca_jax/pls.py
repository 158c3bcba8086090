"""Partial least squares: directions of largest covariance between two layers."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.centered import Centered, prepare, prepare_comoment
from svcca_jax.checks import as_pair
from svcca_jax.linalg import (
    center,
    count_datapoints,
    cross_product,
    singular_values,
    sum_products,
    svd,
)
from svcca_jax.measure import Both
from svcca_jax.moments import Moments


class PLS(NamedTuple):
    """Partial least squares of two layers; the published key is in brackets."""

    values: Float[Array, " directions"]
    """Covariances along the directions [`eigenvals`], decreasing."""
    directions_x: Float[Array, "neurons_x directions"]
    """Unit combinations of the neurons of x [`neuron_coeffs1`, there in rows]."""
    directions_y: Float[Array, "neurons_y directions"]
    """Unit combinations of the neurons of y; signs are shared with `directions_x`."""


def pls(x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None) -> PLS:
    r"""Singular value decomposition of the cross-covariance of two layers.

    .. math:: X_c^T Y_c / (m - 1) = U \, \mathrm{diag}(\text{values}) \, V^T

    Args:
      x: Activations [datapoints, neurons_x]; integers and booleans become floats.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      mask: True on the datapoints that count.

    Raises:
      ValueError: As `cca.cca`.

    Source: `numpy_pls.py:get_pls_similarity`.
    """
    # Differs from reference: layers may have different widths.
    first, second, checked = as_pair(x, y, mask)
    return _pls(first, second, checked)


@jax.jit
def _pls(x: Array, y: Array, mask: Array | None) -> PLS:
    comoment = sum_products(center(x, mask), center(y, mask))
    return _decompose(comoment, count_datapoints(x, mask))


def pls_from_moments(moments: Moments, x: int = 0, y: int = 1) -> PLS:
    """Partial least squares of layers `x` and `y` of streamed moments."""
    pair = moments.select(x, y)
    return _pls_from_comoment(pair.comoment(0, 1), pair.datapoints)


def _decompose(comoment: Array, count: Array) -> PLS:
    left, values, right = svd(comoment)
    degrees = jnp.maximum(count - 1, 1).astype(values.dtype)
    return PLS(values / degrees, left, right)


_pls_from_comoment = jax.jit(_decompose)


@dataclasses.dataclass(frozen=True)
class TotalPLS:
    """Sum of the PLS covariances, for grids of layers (`pairwise`).

    In units of the product of the two layers' activations: not normalised.
    """

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
        """Returns the sum of the covariances of two layers, both ways."""
        if cross is None:
            cross = cross_product(x, y)
        total = jnp.sum(singular_values(cross))
        value = total / jnp.maximum(x.datapoints - 1, 1).astype(total.dtype)
        return value, value
