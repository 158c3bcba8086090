"""Canonical correlation analysis of two layers."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.checks import as_pair
from svcca_jax.keep import AllDirections, Keep
from svcca_jax.linalg import (
    center,
    count_datapoints,
    product,
    singular_values,
    svd,
)
from svcca_jax.measure import Both
from svcca_jax.moments import Moments
from svcca_jax.spectrum import (
    Spectrum,
    find_spectrum,
    find_spectrum_of_covariance,
    overlap,
)
from svcca_jax.whiten import find_whitened, find_whitened_pair

EVERY = AllDirections()


class CCA(NamedTuple):
    """How two layers correlate; the published dict's key is in brackets."""

    coefficients: Float[Array, " directions"]
    """Canonical correlations [`cca_coef1`], decreasing, in [0, 1], 0 beyond
    `num_coefficients`."""
    num_coefficients: Int[Array, ""]
    """Number of coefficients that exist: the smaller of the two ranks."""
    mean: Float[Array, ""]
    """Their mean; 0 if there is none."""
    rank_x: Int[Array, ""]
    """Directions of x that took part."""
    rank_y: Int[Array, ""]
    """Directions of y that took part."""
    from_covariance_x: Bool[Array, ""]
    """Whether x went the faster, less accurate route over its covariance."""
    from_covariance_y: Bool[Array, ""]
    """Whether y did."""


class Variates(NamedTuple):
    """The canonical directions of two layers, one column a coefficient of `CCA`."""

    weights_x: Inexact[Array, "neurons_x directions"]
    """Combinations of neurons: `center(x) @ weights_x` are the variates."""
    weights_y: Inexact[Array, "neurons_y directions"]
    """As `weights_x`, for y."""
    variates_x: Inexact[Array, "datapoints directions"]
    """Orthonormal columns [`cca_dirns1`, there neurons in rows]."""
    variates_y: Inexact[Array, "datapoints directions"]
    """As `variates_x`, for y; column i correlates with that of x by coefficient i."""


def cca(
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    fast: bool = False,
) -> CCA:
    r"""Canonical correlations of two layers.

    With thin SVDs of the centred layers, :math:`X = U_x S_x V_x^T`, they are the
    singular values of :math:`U_x^T U_y`, over the directions of each layer's numerical
    rank. A constant layer has rank 0 and gives mean 0.

    Largest error of a coefficient over the cases of tests/golden/svcca: float32 8e-7
    (neurons 1e-3 from collinear: 5e-6), float64 7e-15 (1e-6 from collinear: 3e-11).
    float32 cannot resolve neurons that differ by less than about 1e-6 of their size,
    a signal below 1e-6 of its offset, or directions whose singular value is below
    `linalg.rank_cut` of the largest, which are cut from the rank (10,000 datapoints:
    1.2e-3): where `rank_x` is less than you expect, use float64.

    Args:
      x: Activations [datapoints, neurons_x]; integers and booleans become floats.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      mask: True on the datapoints that count (padding is False).
      fast: Use covariances where that is accurate; see `whiten`. Both layers go
        the same way.

    Raises:
      ValueError: For shapes that do not match, empty layers and values that are not
        finite (not inside a caller's `jit`: there the result is NaN).

    Source: SVCCA (NIPS 2017), section 2; `cca_core.py:get_cca_similarity`.
    """
    # Differs from reference: QR and SVD of the activations with a rank cut, instead of
    # inverse square roots of covariances, which fail for rank-deficient layers.
    first, second, checked = as_pair(x, y, mask, complex_too=True)
    return _cca(first, second, checked, fast=fast)


@functools.partial(jax.jit, static_argnames=("fast",))
def _cca(x: Array, y: Array, mask: Array | None, *, fast: bool) -> CCA:
    datapoints = count_datapoints(x, mask)
    x, y = center(x, mask), center(y, mask)
    if fast:
        pair = find_whitened_pair(x, y, datapoints)
        return _correlate(*pair, pair.from_covariance)
    layer_x, layer_y = (find_spectrum(layer, datapoints) for layer in (x, y))
    return correlate(layer_x, layer_y, overlap(layer_x, layer_y))


def canonical_variates(
    x: ArrayLike,
    y: ArrayLike,
    *,
    keep: Keep = EVERY,
    mask: ArrayLike | None = None,
) -> tuple[CCA, Variates]:
    """Canonical correlations of two layers with their directions.

    Args:
      x: Activations [datapoints, neurons_x].
      y: Activations [datapoints, neurons_y] for the same datapoints.
      keep: Singular directions of each layer to keep first: all of them is CCA, a rule
        of `keep` is SVCCA.
      mask: True on the datapoints that count.

    Raises:
      ValueError: As `cca`.
    """
    first, second, checked = as_pair(x, y, mask, complex_too=True)
    return _canonical_variates(first, second, checked, keep=keep)


@functools.partial(jax.jit, static_argnames=("keep",))
def _canonical_variates(
    x: Array, y: Array, mask: Array | None, *, keep: Keep
) -> tuple[CCA, Variates]:
    datapoints = count_datapoints(x, mask)
    layer_x = find_spectrum(center(x, mask), datapoints, keep=keep)
    layer_y = find_spectrum(center(y, mask), datapoints, keep=keep)
    between = overlap(layer_x, layer_y)
    result = correlate(layer_x, layer_y, between)
    left, _, right = svd(between)
    exists = (jnp.arange(left.shape[1]) < result.num_coefficients).astype(x.dtype)

    def weigh(layer: Spectrum, rotation: Array) -> tuple[Array, Array]:
        values = layer.singular_values
        kept = jnp.arange(len(values)) < layer.kept
        inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0).astype(x.dtype)
        assert layer.coordinates is not None
        rotation = rotation * exists[None, :]
        weights = product(layer.loadings * inverse[None, :], rotation)
        return weights, product(layer.coordinates, rotation)

    weights_x, variates_x = weigh(layer_x, left)
    weights_y, variates_y = weigh(layer_y, right)
    return result, Variates(weights_x, weights_y, variates_x, variates_y)


def cca_from_moments(moments: Moments, x: int = 0, y: int = 1) -> CCA:
    """Canonical correlations of layers `x` and `y` of streamed moments.

    See `spectrum.find_spectrum_of_covariance` for what the covariance cannot resolve.
    """
    return _cca_from_moments(moments.select(x, y))


@jax.jit
def _cca_from_moments(moments: Moments) -> CCA:
    return correlate(*from_moments(moments, AllDirections()))


def from_moments(
    moments: Moments, keep: Keep
) -> tuple[Spectrum, Spectrum, Inexact[Array, "directions_x directions_y"]]:
    """Returns both layers of a pair's moments and the cosines between them."""
    layer_x, layer_y = (
        find_spectrum_of_covariance(
            moments.comoment(i, i), moments.datapoints, keep=keep
        )
        for i in (0, 1)
    )
    return layer_x, layer_y, overlap(layer_x, layer_y, moments.comoment(0, 1))


def correlate(
    x: Spectrum, y: Spectrum, between: Inexact[Array, "directions_x directions_y"]
) -> CCA:
    """Canonical correlations over the kept directions of two decomposed layers."""
    return _correlate(between, x.kept, y.kept, x.from_covariance, y.from_covariance)


def _correlate(
    between: Inexact[Array, "directions_x directions_y"],
    rank_x: Int[Array, ""],
    rank_y: Int[Array, ""],
    from_covariance_x: Bool[Array, ""],
    from_covariance_y: Bool[Array, ""],
) -> CCA:
    count = jnp.minimum(rank_x, rank_y)
    values = jnp.clip(singular_values(between), 0, 1)
    exists = jnp.arange(len(values)) < count
    values = jnp.where(exists | jnp.isnan(values), values, 0)
    return CCA(
        coefficients=values,
        num_coefficients=count,
        mean=mean_coefficient(values, count),
        rank_x=rank_x,
        rank_y=rank_y,
        from_covariance_x=from_covariance_x,
        from_covariance_y=from_covariance_y,
    )


# Numbers of directions, as shares of the width, that are worth a program of their own.
_WIDTHS = (0.125, 0.25, 0.5, 0.75, 0.875)


def correlate_kept(
    x: Spectrum, y: Spectrum, between: Inexact[Array, "directions_x directions_y"]
) -> CCA:
    """As `correlate`, at the cost of the kept directions instead of all.

    The number kept is known only when the program runs: one of a few widths is chosen
    then. Under `vmap` all of them would be computed; use `correlate` there.
    """
    full = min(between.shape)
    widths = sorted({math.ceil(share * full) for share in _WIDTHS} - {full})

    def correlate_first(width: int | None) -> CCA:
        result = correlate(x, y, between[:width, :width])
        spare = full - result.coefficients.shape[0]
        return result._replace(coefficients=jnp.pad(result.coefficients, (0, spare)))

    branches = [functools.partial(correlate_first, width) for width in (*widths, None)]
    if not widths:
        return branches[0]()
    needed = jnp.maximum(x.kept, y.kept).astype(jnp.int32)
    limits = jnp.asarray(widths, jnp.int32)
    return jax.lax.switch(jnp.searchsorted(limits, needed), branches)


def mean_coefficient(
    coefficients: Float[Array, " directions"], count: Int[Array, ""]
) -> Float[Array, ""]:
    """Returns the mean of the first `count` coefficients, 0 if there is none."""
    return jnp.sum(coefficients) / jnp.maximum(count, 1).astype(coefficients.dtype)


def leading_mean(
    coefficients: Float[Array, " directions"], share: float = 0.98
) -> Float[Array, ""]:
    """Mean of the fewest leading coefficients that hold a share of their sum.

    It discards trailing zeros; 0 if all are 0.

    Source: `cca_core.py:get_cca_similarity`, key `mean`, as documented.
    """
    total = jnp.cumsum(coefficients)
    # Differs from reference: its search never tries all of them and returns none then.
    count = jnp.argmax(total >= share * total[-1:]) + 1
    used = jnp.arange(len(coefficients)) < count
    return jnp.sum(jnp.where(used, coefficients, 0)) / count.astype(coefficients.dtype)


@dataclasses.dataclass(frozen=True)
class MeanCCA:
    """Mean canonical correlation, for grids of layers (`pairwise`)."""

    fast: bool = False
    """Use covariances where that is accurate."""

    def prepare(
        self,
        centered: Inexact[Array, "datapoints neurons"],
        datapoints: Int[Array, ""],
    ) -> Spectrum:
        """Decomposes one layer."""
        find = find_whitened if self.fast else find_spectrum
        return find(centered, datapoints)

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
        """Returns the mean correlation of two layers, both ways."""
        value = correlate(x, y, overlap(x, y, cross)).mean
        return value, value
