"""The fast route of plain CCA: a layer's span by Cholesky, without its spectrum.

The canonical correlations need any orthonormal basis of each layer's span. With
`X^T X = L L^T` the columns of `X L^-T` are one, for less work than the eigenvectors of
`X^T X`; how accurate it is follows from the condition of `L`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from svcca_jax.linalg import adjoint, product, sum_products
from svcca_jax.spectrum import FAST_ERROR, Spectrum, find_spectrum

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
    comoment = sum_products(centered, centered)
    identity = jnp.eye(neurons, dtype=centered.dtype)
    known = jax.lax.stop_gradient(comoment)
    fast = _is_accurate(known, _invert_factor(known)) & (datapoints > neurons)
    # Where the route is not taken its derivative would be NaN, and 0 times that too.
    inverse = _invert_factor(jnp.where(fast, comoment, identity))

    def by_cholesky() -> tuple:
        return centered, adjoint(inverse), jnp.asarray(neurons, datapoints.dtype)

    def by_svd() -> tuple:
        found = find_spectrum(centered, datapoints)
        return found.coordinates, identity, found.rank

    coordinates, transform, rank = jax.lax.cond(fast, by_cholesky, by_svd)
    # A NaN stays: it says that the layer cannot be compared.
    finite = jnp.isfinite(jnp.sum(jnp.abs(comoment)))
    unknown = jnp.full((neurons,), jnp.nan, jnp.finfo(centered.dtype).dtype)
    return Spectrum(
        coordinates=coordinates,
        transform=jnp.where(finite, transform, jnp.nan),
        singular_values=unknown,
        loadings=jnp.full((neurons, neurons), jnp.nan, centered.dtype),
        rank=rank,
        kept=rank,
        live_neurons=jnp.sum(jnp.any(centered != 0, axis=0)),
        datapoints=datapoints,
        from_covariance=fast,
    )


def _invert_factor(
    comoment: Inexact[Array, "neurons neurons"],
) -> Inexact[Array, "neurons neurons"]:
    identity = jnp.eye(len(comoment), dtype=comoment.dtype)
    factor = jnp.linalg.cholesky(comoment)
    return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)


def _is_accurate(
    comoment: Inexact[Array, "neurons neurons"],
    inverse: Inexact[Array, "neurons neurons"],
) -> Bool[Array, ""]:
    """Whether eps times the condition of the co-moment is at most `FAST_ERROR`."""
    unit = jnp.finfo(comoment.dtype)
    largest = _norm(lambda v: product(comoment, v), comoment)
    # A factorisation that has failed is NaN, and no comparison with it holds.
    steepest = _norm(lambda v: product(adjoint(inverse), product(inverse, v)), comoment)
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
