"""The fast route of plain CCA: a layer's span by Cholesky, without its spectrum.

The canonical correlations need any orthonormal basis of each layer's span. With
`X^T X = L L^T` the columns of `X L^-T` are one, for less work than the eigenvectors of
`X^T X`; how accurate it is follows from the condition of `L`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from svcca_jax.linalg import adjoint, product, sum_products
from svcca_jax.spectrum import FAST_ERROR, Spectrum, find_spectrum, overlap

# Steps of the power method for the extreme eigenvalues: the few that are far smaller
# than all others, which spoil the factor, stand out after the first of them.
_STEPS = 12


def find_whitened(
    centered: Inexact[Array, "datapoints neurons"], datapoints: Int[Array, ""]
) -> Spectrum:
    """Returns a layer's span for `correlate`, by Cholesky where that is accurate.

    It is taken where every direction would do for the covariance route of
    `find_spectrum` (which see), else QR and SVD as there. `singular_values` and
    `loadings` are not known then: they are NaN, and only coefficients can be had.

    Args:
      centered: Centred activations, 0 on datapoints that do not count.
      datapoints: Number of datapoints that count.
    """
    rows, neurons = centered.shape
    if neurons > rows:
        return find_spectrum(centered, datapoints)
    whitener = _find_whitener(centered, datapoints)
    fast, inverse = whitener.accurate, whitener.inverse

    def by_cholesky() -> tuple:
        # Each neuron adds a direction of its own: all of them live.
        every = jnp.asarray(neurons, datapoints.dtype)
        return centered, adjoint(inverse), every, every

    def by_svd() -> tuple:
        found = find_spectrum(centered, datapoints)
        live = found.live_neurons.astype(datapoints.dtype)
        return (
            found.coordinates,
            jnp.eye(neurons, dtype=centered.dtype),
            found.rank,
            live,
        )

    coordinates, transform, rank, live = jax.lax.cond(fast, by_cholesky, by_svd)
    unknown = jnp.full((neurons,), jnp.nan, jnp.finfo(centered.dtype).dtype)
    return Spectrum(
        coordinates=coordinates,
        transform=transform + whitener.poison,
        singular_values=unknown,
        loadings=jnp.full((neurons, neurons), jnp.nan, centered.dtype),
        rank=rank,
        kept=rank,
        live_neurons=live,
        datapoints=datapoints,
        from_covariance=fast,
    )


class WhitenedPair(NamedTuple):
    """Two layers' spans beside each other."""

    overlap: Inexact[Array, "directions_x directions_y"]
    """Cosines between their directions, 0 outside the ranks."""
    rank_x: Int[Array, ""]
    """Directions of x."""
    rank_y: Int[Array, ""]
    """Directions of y."""
    from_covariance: Bool[Array, ""]
    """Whether both went by Cholesky: else both went by QR and SVD."""


def find_whitened_pair(
    x: Inexact[Array, "datapoints neurons_x"],
    y: Inexact[Array, "datapoints neurons_y"],
    datapoints: Int[Array, ""],
) -> WhitenedPair:
    """As `find_whitened` of two layers and `overlap`, for one pair in less time.

    One choice of the route for both: activations are not copied on their way through.

    Args:
      x: Centred activations, 0 on datapoints that do not count.
      y: As x.
      datapoints: Number of datapoints that count.
    """

    def by_svd() -> tuple[Array, Array, Array]:
        found_x, found_y = (find_spectrum(layer, datapoints) for layer in (x, y))
        rank_x, rank_y = (f.rank.astype(datapoints.dtype) for f in (found_x, found_y))
        return overlap(found_x, found_y), rank_x, rank_y

    widths = (x.shape[1], y.shape[1])
    if max(widths) > x.shape[0]:
        return WhitenedPair(*by_svd(), jnp.asarray(False))
    first, second = (_find_whitener(layer, datapoints) for layer in (x, y))
    fast = first.accurate & second.accurate

    def by_cholesky() -> tuple[Array, Array, Array]:
        inner = product(first.inverse, sum_products(x, y))
        rank_x, rank_y = (jnp.asarray(w, datapoints.dtype) for w in widths)
        return product(inner, adjoint(second.inverse)), rank_x, rank_y

    between, rank_x, rank_y = jax.lax.cond(fast, by_cholesky, by_svd)
    between = between + first.poison + second.poison
    return WhitenedPair(between, rank_x, rank_y, fast)


class _Whitener(NamedTuple):
    """What makes a layer's columns orthonormal."""

    inverse: Inexact[Array, "neurons neurons"]
    """Of the Cholesky factor of the co-moment; the unit matrix if not `accurate`."""
    accurate: Bool[Array, ""]
    """Whether eps times the condition of the co-moment is at most `FAST_ERROR`."""
    poison: Float[Array, ""]
    """0, or NaN for a layer that holds one: it says that it cannot be compared."""


def _find_whitener(
    centered: Inexact[Array, "datapoints neurons"], datapoints: Int[Array, ""]
) -> _Whitener:
    comoment = sum_products(centered, centered)
    neurons = len(comoment)
    known = jax.lax.stop_gradient(comoment)
    fast = _is_accurate(known) & (datapoints > neurons)
    # Where the route is not taken its derivative would be NaN, and 0 times that too.
    identity = jnp.eye(neurons, dtype=comoment.dtype)
    factor = jnp.linalg.cholesky(jnp.where(fast, comoment, identity))
    inverse = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    finite = jnp.isfinite(jnp.sum(jnp.abs(known)))
    poison = jnp.where(finite, 0, jnp.nan).astype(jnp.finfo(comoment.dtype).dtype)
    return _Whitener(inverse, fast, poison)


def _is_accurate(comoment: Inexact[Array, "neurons neurons"]) -> Bool[Array, ""]:
    """Whether eps times the condition of the co-moment is at most `FAST_ERROR`."""
    unit = jnp.finfo(comoment.dtype)
    factor = jnp.linalg.cholesky(comoment)

    def divide(vector: Array) -> Array:
        vector = jax.scipy.linalg.solve_triangular(factor, vector, lower=True)
        return jax.scipy.linalg.solve_triangular(factor, vector, lower=True, trans="C")

    largest = _norm(lambda v: product(comoment, v), comoment)
    # A factorisation that has failed is NaN, and no comparison with it holds.
    steepest = _norm(divide, comoment)
    in_range = unit.eps * largest > unit.tiny
    return in_range & (unit.eps * largest * steepest <= FAST_ERROR)


def _norm(apply, like: Inexact[Array, "neurons neurons"]) -> Float[Array, ""]:
    """Largest eigenvalue of a positive map, by the power method; at most too small."""
    start = jax.random.normal(jax.random.key(0), (like.shape[0], 1))
    start = jax.lax.stop_gradient(start.astype(like.dtype))

    def step(_: Array, vector: Array) -> Array:
        image = apply(vector)
        size = jnp.linalg.norm(image)
        return image / jnp.where(size == 0, 1, size).astype(image.dtype)

    vector = jax.lax.fori_loop(0, _STEPS, step, start / jnp.linalg.norm(start))
    return jnp.linalg.norm(apply(vector))
