"""One layer decomposed once: what CCA, SVCCA and PWCCA need of it.

With centred activations `X = U diag(s) V^H`, the canonical correlations of two layers
are the singular values of `U_x^H U_y`: everything else about a layer can be computed
before it meets another one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from svcca_jax.keep import AllDirections, Keep
from svcca_jax.linalg import (
    adjoint,
    cross_product,
    eigen,
    product,
    rank_cut,
    sum_products,
    svd,
)

# The covariance route loses accuracy as (largest / smallest kept singular value)^2; it
# is taken where that square times the rounding unit is at most this.
FAST_ERROR = 1e-4

# From a covariance, a coefficient is off by up to eps * (largest / its singular value)
# squared: directions whose error could exceed one part in this are cut from the rank.
COVARIANCE_SIZE = 1000


class Spectrum(NamedTuple):
    """The singular directions of one layer, the kept ones first.

    Columns from `kept` on are 0, so that products need no slicing. A layer with a NaN
    or infinite activation is NaN throughout.
    """

    coordinates: Inexact[Array, "datapoints coordinates"] | None
    """`coordinates @ transform` are the orthonormal directions over the datapoints;
    None if made from a covariance."""
    transform: Inexact[Array, "coordinates directions"] | None
    """None where the coordinates are the directions themselves."""
    singular_values: Float[Array, " directions"]
    """Of the centred activations, decreasing; none is set to 0."""
    loadings: Inexact[Array, "neurons directions"]
    """Unit combinations of neurons, one for each direction."""
    rank: Int[Array, ""]
    """Number of singular values that are not rounding errors, see `find_rank`."""
    kept: Int[Array, ""]
    """Number of leading directions that take part, at most `rank`."""
    live_neurons: Int[Array, ""]
    """Number of neurons that are not constant."""
    datapoints: Int[Array, ""]
    """Number of datapoints that count."""
    from_covariance: Bool[Array, ""]
    """True if the faster route over the covariance was taken."""


def find_spectrum(
    centered: Inexact[Array, "datapoints neurons"],
    datapoints: Int[Array, ""],
    *,
    keep: Keep = AllDirections(),  # noqa: B008 (frozen)
    fast: bool = False,
) -> Spectrum:
    """Decomposes one layer by QR and SVD, or by its covariance where that is accurate.

    Args:
      centered: Centred activations, 0 on datapoints that do not count.
      datapoints: Number of datapoints that count.
      keep: How many directions to keep.
      fast: Try the eigenvectors of the covariance first and keep them where the ratio
        of the largest to the smallest kept singular value is at most 29 (float64:
        670,000), else do the QR decomposition as well. The coefficient of the weakest
        direction can then be off by about 1e-4 (found at ratio 28 in float32, where
        half of the directions were so weak: 1.4e-4, their mean 1.2e-5, the accurate
        route 3e-7; float64 at ratio 600,000: 4e-8). Under `vmap` both are computed.
    """
    rows, neurons = centered.shape
    live = jnp.sum(jnp.any(centered != 0, axis=0))

    def accurate() -> tuple:
        left, values, right = svd(centered)
        rank = find_rank(values, live, datapoints, neurons=neurons)
        return left, values, right, rank

    if not fast or neurons > rows:
        left, values, right, rank = accurate()
        transform, from_covariance = None, jnp.asarray(False)
        source = centered
    else:
        source = comoment = sum_products(centered, centered)
        values, right, rank = _eigen(comoment, live, datapoints)
        from_covariance = _is_accurate(values, keep.count(values, rank))
        # The directions are not formed: their products with those of another layer
        # cost less through the product of the activations.
        left, values, right, rank, transform = jax.lax.cond(
            from_covariance,
            lambda: (centered, values, right, rank, _whitening(values, right)),
            lambda: (*accurate(), jnp.eye(neurons, dtype=centered.dtype)),
        )
    kept, columns = _kept_columns(values, rank, keep, source)
    return Spectrum(
        coordinates=left * columns if transform is None else left,
        transform=None if transform is None else transform * columns,
        singular_values=values,
        loadings=right * columns,
        rank=rank,
        kept=kept,
        live_neurons=live,
        datapoints=datapoints,
        from_covariance=from_covariance,
    )


def find_spectrum_of_covariance(
    comoment: Inexact[Array, "neurons neurons"],
    datapoints: Int[Array, ""],
    *,
    keep: Keep = AllDirections(),  # noqa: B008 (frozen)
) -> Spectrum:
    """Decomposes one layer from the sum of its centred products over the datapoints.

    The squares in the covariance halve the digits: a direction whose singular value
    is below sqrt(max(neurons, 1000) * eps) of the largest (float32: 1.1 %) is cut from
    the rank. Those just above have coefficients good to 1e-3, at 10 % of the largest
    to 1e-5. Rounding noise lay at 3 * eps of the largest eigenvalue in every layer
    tried (8 to 512 neurons, 1,000 to 1,000,000 datapoints).
    """
    live = jnp.sum(jnp.diagonal(comoment).real > 0)
    values, right, rank = _eigen(comoment, live, datapoints, noisy=True)
    kept, columns = _kept_columns(values, rank, keep, comoment)
    return Spectrum(
        coordinates=None,
        transform=_whitening(values, right) * columns,
        singular_values=values,
        loadings=right * columns,
        rank=rank,
        kept=kept,
        live_neurons=live,
        datapoints=datapoints,
        from_covariance=jnp.asarray(True),
    )


def find_rank(
    values: Float[Array, " directions"],
    live: Int[Array, ""],
    datapoints: Int[Array, ""],
    *,
    neurons: int,
) -> Int[Array, ""]:
    """Returns the number of singular values above `rank_cut` of the first.

    It is at most the number of live neurons and one less than the datapoints: centred
    rows sum to 0.
    """
    rank = jnp.sum(values > rank_cut(datapoints, neurons, values.dtype) * values[0])
    return jnp.minimum(jnp.minimum(rank, live), jnp.maximum(datapoints - 1, 0))


def overlap(
    x: Spectrum,
    y: Spectrum,
    cross: Inexact[Array, "coordinates_x coordinates_y"] | None = None,
) -> Inexact[Array, "directions_x directions_y"]:
    """Cosines between the kept directions of two layers, 0 outside the kept block.

    Args:
      x: One layer.
      y: Another layer on the same datapoints.
      cross: The products of their coordinates, `x.coordinates^H y.coordinates`, where
        they are known already; for layers made from covariances, the co-moment of
        their neurons.
    """
    inner = cross_product(x, y) if cross is None else cross
    if x.transform is not None:
        inner = product(adjoint(x.transform), inner)
    return inner if y.transform is None else product(inner, y.transform)


def _whitening(
    values: Float[Array, " directions"], right: Inexact[Array, "neurons directions"]
) -> Inexact[Array, "neurons directions"]:
    inverse = jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
    return right * inverse.astype(right.dtype)[None, :]


def _eigen(
    comoment: Inexact[Array, "neurons neurons"],
    live: Int[Array, ""],
    count: Int[Array, ""],
    *,
    noisy: bool = False,
) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."], Int[Array, ""]]:
    squared, right = eigen(comoment)
    # A NaN stays: it says that the layer cannot be compared.
    # The derivative of a root at 0 is infinite.
    positive = ~(squared <= 0)
    values = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)
    most = jnp.minimum(live, jnp.maximum(count - 1, 0))
    if not noisy:
        return values, right, most
    size = max(COVARIANCE_SIZE, comoment.shape[0])
    above = jnp.sum(squared > size * jnp.finfo(values.dtype).eps * squared[0])
    return values, right, jnp.minimum(above, most)


def _is_accurate(
    values: Float[Array, " directions"], kept: Int[Array, ""]
) -> Bool[Array, ""]:
    unit = jnp.finfo(values.dtype)
    last = jnp.take(values, jnp.maximum(kept - 1, 0))
    error = unit.eps * values[0] ** 2
    # Of tiny activations the squares are denormal, with fewer digits, or 0.
    return (error <= FAST_ERROR * last**2) & (error > unit.tiny)


def _kept_columns(
    values: Float[Array, " directions"],
    rank: Int[Array, ""],
    keep: Keep,
    source: Inexact[Array, "rows neurons"],
) -> tuple[Int[Array, ""], Inexact[Array, "1 directions"]]:
    kept = keep.count(values, rank)
    columns = (jnp.arange(len(values)) < kept).astype(source.dtype)
    # Without this a NaN would end as rank 0 and be reported as "not similar".
    finite = jnp.isfinite(jnp.sum(jnp.abs(source)))
    return kept, jnp.where(finite, columns, jnp.nan)[None, :]
