"""Projection-weighted canonical correlation analysis."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.cca import from_moments
from svcca_jax.checks import as_pair
from svcca_jax.keep import AllDirections
from svcca_jax.linalg import center, count_datapoints, product, svd
from svcca_jax.measure import Both
from svcca_jax.moments import Moments
from svcca_jax.spectrum import (
    Spectrum,
    find_spectrum,
    find_spectrum_of_covariance,
    overlap,
)


class PWCCA(NamedTuple):
    """Projection-weighted correlation; distances are 1 minus these."""

    value: Float[Array, ""]
    """Weighted by the layer with fewer live neurons (x if equal), as published."""
    weighted_by_x: Float[Array, ""]
    """Weighted by x."""
    weighted_by_y: Float[Array, ""]
    """Weighted by y."""
    weights_x: Float[Array, " directions"]
    """Weights of the coefficients from x, summing to 1 (0 beyond their count)."""
    weights_y: Float[Array, " directions"]
    """Weights of the coefficients from y."""
    coefficients: Float[Array, " directions"]
    """Canonical correlations, decreasing."""
    rank_x: Int[Array, ""]
    """Directions of x that took part."""
    rank_y: Int[Array, ""]
    """Directions of y that took part."""
    from_covariance_x: Bool[Array, ""]
    """Whether x went the faster, less accurate route over its covariance."""
    from_covariance_y: Bool[Array, ""]
    """Whether y did."""


def pwcca(
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    fast: bool = False,
) -> PWCCA:
    r"""Mean canonical correlation weighted by how much of a layer each variate holds.

    .. math:: \alpha_i = \sum_j |\langle h_i, x_j \rangle|, \qquad
       \mathrm{PWCCA} = \sum_i \alpha_i \rho_i / \sum_i \alpha_i

    with the unit variates :math:`h_i` of a layer and its centred neurons :math:`x_j`.
    Where some, not all, coefficients are equal the variates among them are free and
    so is the value, within the spread of the weights there.

    Args:
      x: Activations [datapoints, neurons_x]; integers and booleans become floats.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      mask: True on the datapoints that count.
      fast: Use covariances where that is accurate; `from_covariance_x` and `_y` of the
        result say where it was, `spectrum.find_spectrum` how accurate.

    Raises:
      ValueError: As `cca.cca`.

    Source: Insights on representational similarity (NeurIPS 2018), section 3;
      `pwcca.py:compute_pwcca`.
    """
    # Differs from reference: variates and neurons are centred and the variates are
    # whitened; the reference leaves both out and is off by up to 0.2.
    first, second, checked = as_pair(x, y, mask)
    return _pwcca(first, second, checked, fast=fast)


@functools.partial(jax.jit, static_argnames=("fast",))
def _pwcca(x: Array, y: Array, mask: Array | None, *, fast: bool) -> PWCCA:
    datapoints = count_datapoints(x, mask)
    layer_x = find_spectrum(center(x, mask), datapoints, fast=fast)
    layer_y = find_spectrum(center(y, mask), datapoints, fast=fast)
    return weigh(layer_x, layer_y, overlap(layer_x, layer_y))


def pwcca_from_moments(moments: Moments, x: int = 0, y: int = 1) -> PWCCA:
    """PWCCA of layers `x` and `y` of streamed moments."""
    return _pwcca_from_moments(moments.select(x, y))


@jax.jit
def _pwcca_from_moments(moments: Moments) -> PWCCA:
    return weigh(*from_moments(moments, AllDirections()))


def weigh(
    x: Spectrum, y: Spectrum, between: Inexact[Array, "directions_x directions_y"]
) -> PWCCA:
    """Projection-weighted correlation of two decomposed layers."""
    left, values, right = svd(between)
    count = jnp.minimum(x.kept, y.kept)
    values = jnp.clip(values, 0, 1)
    exists = (jnp.arange(len(values)) < count) | jnp.isnan(values)
    values = jnp.where(exists, values, 0)
    weights_x = _weights(x, left, exists)
    weights_y = _weights(y, right, exists)
    weighted_by_x = jnp.sum(weights_x * values)
    weighted_by_y = jnp.sum(weights_y * values)
    return PWCCA(
        value=jnp.where(x.live_neurons <= y.live_neurons, weighted_by_x, weighted_by_y),
        weighted_by_x=weighted_by_x,
        weighted_by_y=weighted_by_y,
        weights_x=weights_x,
        weights_y=weights_y,
        coefficients=values,
        rank_x=x.kept,
        rank_y=y.kept,
        from_covariance_x=x.from_covariance,
        from_covariance_y=y.from_covariance,
    )


def _weights(
    layer: Spectrum,
    rotation: Inexact[Array, "directions coefficients"],
    exists: Bool[Array, " coefficients"],
) -> Float[Array, " coefficients"]:
    # <h_i, x_j> from the decomposition alone: H^T X = R^T U^T U S V^T = R^T S V^T.
    scaled = layer.singular_values.astype(rotation.dtype)[:, None] * rotation
    inner = product(layer.loadings, scaled)
    weights = jnp.where(exists, jnp.sum(jnp.abs(inner), axis=0), 0)
    total = jnp.sum(weights)
    return jnp.where(total == 0, 0, weights / jnp.where(total == 0, 1, total))


@dataclasses.dataclass(frozen=True)
class MeanPWCCA:
    """PWCCA with the published choice of side, for grids of layers (`pairwise`)."""

    fast: bool = False
    """Use covariances and eigenvectors where that is accurate."""

    def prepare(
        self,
        centered: Inexact[Array, "datapoints neurons"],
        datapoints: Int[Array, ""],
    ) -> Spectrum:
        """Decomposes one layer."""
        return find_spectrum(centered, datapoints, fast=self.fast)

    def prepare_moments(
        self, comoment: Float[Array, "neurons neurons"], datapoints: Int[Array, ""]
    ) -> Spectrum:
        """Decomposes one layer from its covariance."""
        return find_spectrum_of_covariance(comoment, datapoints)

    def compare(
        self,
        x: Spectrum,
        y: Spectrum,
        cross: Inexact[Array, "coordinates_x coordinates_y"] | None = None,
    ) -> Both:
        """Returns PWCCA both ways: layers of equal width each weigh their own."""
        result = weigh(x, y, overlap(x, y, cross))
        tie = x.live_neurons == y.live_neurons
        return result.value, jnp.where(tie, result.weighted_by_y, result.value)
