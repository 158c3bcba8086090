"""One layer centred once: what PLS, CKA and Procrustes distances need of it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from svcca_jax.linalg import product, sum_products


class Centered(NamedTuple):
    """A centred layer with its second-order sums."""

    coordinates: Float[Array, "datapoints neurons"] | None
    """Centred activations, 0 on datapoints that do not count; None from moments."""
    squared_norms: Float[Array, " datapoints"] | None
    """Squared length of each datapoint's centred row; None from moments."""
    variance: Float[Array, ""]
    """Sum of all squares: the squared Frobenius norm of the centred layer."""
    gram_norm: Float[Array, ""]
    """Frobenius norm of the co-moment `Xc^T Xc`, which is that of `Xc Xc^T`."""
    datapoints: Int[Array, ""]
    """Number of datapoints that count."""


def prepare(
    centered: Float[Array, "datapoints neurons"], datapoints: Int[Array, ""]
) -> Centered:
    """Takes the sums of a centred layer, 0 on datapoints that do not count."""
    squared_norms = jnp.sum(centered**2, axis=1)
    # The same norm from the smaller of the two products.
    wide = centered.shape[1] > centered.shape[0]
    gram = product(centered, centered.T) if wide else sum_products(centered, centered)
    return Centered(
        coordinates=centered,
        squared_norms=squared_norms,
        variance=jnp.sum(squared_norms),
        gram_norm=frobenius(gram),
        datapoints=datapoints,
    )


def prepare_comoment(
    comoment: Float[Array, "neurons neurons"], datapoints: Int[Array, ""]
) -> Centered:
    """Takes a layer's sums from its co-moment."""
    return Centered(
        coordinates=None,
        squared_norms=None,
        variance=jnp.trace(comoment),
        gram_norm=frobenius(comoment),
        datapoints=datapoints,
    )


def frobenius(a: Float[Array, "rows columns"]) -> Float[Array, ""]:
    """Frobenius norm; scaled first, so that squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(a))
    scale = jnp.where(largest == 0, 1, largest)
    squares = jnp.sum((a / scale) ** 2)
    # The derivative of a root at 0 is infinite, and a dead layer sits there.
    safe = jnp.where(squares == 0, 1, squares)
    return jnp.where(squares == 0, 0, scale * jnp.sqrt(safe))


def ratio(
    numerator: Float[Array, ""], denominator: Float[Array, ""]
) -> Float[Array, ""]:
    """Returns the quotient, 0 where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
