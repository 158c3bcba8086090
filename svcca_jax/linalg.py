"""Centring, products and decompositions that every measure shares.

All products ask for full precision: the default of a TPU (bfloat16) and of recent
GPUs (TF32) would leave three digits of a correlation.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Inexact, Int

_MOST_DATAPOINTS = 16384
# Sums over more datapoints are taken in blocks of so many, whose results are added: one
# long float32 sum of 8 million products has three digits left.
BLOCK = 65536


def product(
    a: Inexact[Array, "..."], b: Inexact[Array, "..."]
) -> Inexact[Array, "..."]:
    """Returns the matrix product of `a` and `b` in full precision."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def adjoint(a: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Returns the conjugate transpose of the last two axes."""
    return jnp.conj(jnp.swapaxes(a, -1, -2))


def sum_products(
    a: Inexact[Array, "datapoints columns_a"], b: Inexact[Array, "datapoints columns_b"]
) -> Inexact[Array, "columns_a columns_b"]:
    """Returns `adjoint(a) @ b`, the products summed over the datapoints."""
    if a.shape[0] <= BLOCK:
        return product(adjoint(a), b)
    return jnp.sum(product(adjoint(_split(a)), _split(b)), axis=0)


def _split(x: Inexact[Array, "rows columns"]) -> Inexact[Array, "blocks _ columns"]:
    rows, columns = x.shape
    blocks = -(-rows // BLOCK)
    padded = jnp.pad(x, ((0, blocks * BLOCK - rows), (0, 0)))
    return padded.reshape(blocks, BLOCK, columns)


@runtime_checkable
class HasCoordinates(Protocol):
    """A prepared layer; its coordinates are None if it was made from moments."""

    @property
    def coordinates(self) -> Inexact[Array, "datapoints coordinates"] | None:
        """Columns over the datapoints."""
        ...


def cross_product(
    x: HasCoordinates, y: HasCoordinates
) -> Inexact[Array, "coordinates_x coordinates_y"]:
    """Returns the products of two layers' coordinates, summed over the datapoints.

    Raises:
      ValueError: For layers made from moments, which do not hold it.
    """
    if x.coordinates is None or y.coordinates is None:
        raise ValueError("layers made from moments need their cross co-moment")
    return sum_products(x.coordinates, y.coordinates)


def count_datapoints(
    x: Inexact[Array, " datapoints *axes"],
    mask: Bool[Array, " datapoints"] | None = None,
) -> Int[Array, ""]:
    """Returns how many datapoints count."""
    return jnp.asarray(x.shape[0]) if mask is None else jnp.sum(mask)


def center(
    x: Inexact[Array, " datapoints *neurons"],
    mask: Bool[Array, " datapoints"] | None = None,
) -> Inexact[Array, " datapoints *neurons"]:
    """Activations less their mean over the datapoints; rows out of `mask` become 0.

    The mean is taken of the differences from the first datapoint: a constant neuron
    becomes exactly 0, and a large common offset cancels before anything is summed. The
    small mean that rounding leaves is subtracted as well.

    Args:
      x: Activations.
      mask: True on the datapoints that count; all of them if not given.
    """
    if x.shape[0] == 0:
        return x
    x = _where(mask, x - find_mean(x, mask))
    # No offset is left: this is the small mean that rounding has left.
    return _where(mask, x - _plain_mean(x, mask))


def find_mean(
    x: Inexact[Array, " datapoints *neurons"],
    mask: Bool[Array, " datapoints"] | None = None,
) -> Inexact[Array, " 1 *neurons"]:
    """Mean over the datapoints, of the differences from the first that counts.

    It is finite, and means nothing, if no datapoint counts.
    """
    start = 0 if mask is None else jnp.argmax(mask)
    first = jax.lax.dynamic_index_in_dim(x, start, keepdims=True)
    return first + _plain_mean(x - first, mask)


def _plain_mean(x: Array, mask: Array | None) -> Array:
    if mask is None:
        return jnp.mean(x, axis=0, keepdims=True)
    count = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    return jnp.sum(_where(mask, x), axis=0, keepdims=True) / count


def _where(mask: Array | None, x: Array) -> Array:
    """Zeroes the datapoints that do not count."""
    if mask is None:
        return x
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, 0)


def rank_cut(
    datapoints: Int[Array, ""] | int, neurons: int, dtype: DTypeLike
) -> Float[Array, ""]:
    """Share of the largest singular value below which another is a rounding error.

    It is max(datapoints, neurons) * eps, the customary bound, with no more than 16,384
    datapoints: the bound goes on to grow until it swallows every direction (float32:
    at 8 million), while the rounding errors do not (measured: 3 * eps for up to a
    million datapoints).
    """
    size = jnp.maximum(jnp.minimum(datapoints, _MOST_DATAPOINTS), neurons)
    return jnp.asarray(size, dtype) * jnp.finfo(dtype).eps


def svd(
    x: Inexact[Array, "rows columns"],
) -> tuple[
    Inexact[Array, "rows directions"],
    Inexact[Array, " directions"],
    Inexact[Array, "columns directions"],
]:
    """Thin singular value decomposition `x = left @ diag(values) @ adjoint(right)`.

    A tall or wide matrix is first reduced by QR: the decomposition of its triangle
    costs as much as that of a square one. The derivative leaves out the rotation
    among equal singular values and out of the null space (`1/0` in the textbook
    formula), so that it is finite for rank-deficient layers and right for every
    quantity that does not depend on the choice of basis there, as no similarity does.

    Returns:
      The left vectors, the singular values in decreasing order, the right vectors.
    """
    return _svd(x)


def _decompose(
    x: Inexact[Array, "rows columns"],
) -> tuple[Inexact[Array, "..."], Inexact[Array, "..."], Inexact[Array, "..."]]:
    rows, columns = x.shape
    if rows < columns:
        right, values, left = _decompose(adjoint(x))
        return left, values, right
    if 4 * rows < 5 * columns:
        left, values, right_adjoint = jnp.linalg.svd(x, full_matrices=False)
        return left, values, adjoint(right_adjoint)
    q, r = _qr(x)
    left, values, right_adjoint = jnp.linalg.svd(r, full_matrices=False)
    return product(q, left), values, adjoint(right_adjoint)


def _qr(
    x: Inexact[Array, "rows columns"],
) -> tuple[Inexact[Array, "rows columns"], Inexact[Array, "columns columns"]]:
    rows, columns = x.shape
    if rows <= BLOCK or columns > BLOCK:
        return jnp.linalg.qr(x)
    # Each block by itself, then their triangles: no sum is longer than a block.
    q, r = jax.lax.map(jnp.linalg.qr, _split(x))
    outer, triangle = jnp.linalg.qr(r.reshape(-1, columns))
    q = product(q, outer.reshape(r.shape))
    return q.reshape(-1, columns)[:rows], triangle


_svd = jax.custom_jvp(_decompose)


@_svd.defjvp
def _svd_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    left, values, right = _svd(x)
    epsilon = jnp.finfo(x.dtype).eps
    scale = values[:1] if values.size else values
    inner = product(adjoint(left), product(dx, right))
    d_values = jnp.real(jnp.diagonal(inner))
    squared = values**2
    gap = squared[None, :] - squared[:, None]
    apart = jnp.abs(gap) > 8 * epsilon * (squared[None, :] + squared[:, None])
    factor = jnp.where(apart, 1 / jnp.where(apart, gap, 1), 0).astype(x.dtype)
    s = values.astype(x.dtype)
    scaled = inner * s[None, :]
    left_rotation = factor * (scaled + adjoint(scaled))
    scaled = s[:, None] * inner
    right_rotation = factor * (scaled + adjoint(scaled))
    real = values > rank_cut(max(x.shape), min(x.shape), values.dtype) * scale
    inverse = jnp.where(real, 1 / jnp.where(real, values, 1), 0).astype(x.dtype)
    if jnp.iscomplexobj(x):
        # The phase of each pair of vectors is free: all of its change goes to the left.
        turn = jnp.imag(jnp.diagonal(inner))
        phase = jax.lax.complex(jnp.zeros_like(turn), turn) * inverse
        left_rotation = left_rotation + jnp.diag(phase)
    outside = product(dx, right) - product(left, inner)
    d_left = product(left, left_rotation) + outside * inverse[None, :]
    back = product(adjoint(dx), left)
    outside = back - product(right, adjoint(inner))
    d_right = product(right, right_rotation) + outside * inverse[None, :]
    return (left, values, right), (d_left, d_values, d_right)


@jax.custom_jvp
def eigen(
    a: Inexact[Array, "neurons neurons"],
) -> tuple[Float[Array, " neurons"], Inexact[Array, "neurons neurons"]]:
    """Eigenvalues of a symmetric matrix, decreasing, and its eigenvectors.

    As with `svd`, the derivative leaves out the rotation among equal eigenvalues, such
    as those of dead neurons.
    """
    values, vectors = jnp.linalg.eigh(a)
    return values[::-1], vectors[:, ::-1]


@eigen.defjvp
def _eigen_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    values, vectors = eigen(a)
    inner = product(adjoint(vectors), product(da, vectors))
    gap = values[None, :] - values[:, None]
    size = jnp.abs(values[None, :]) + jnp.abs(values[:, None])
    noise = rank_cut(1, a.shape[0], values.dtype) * jnp.max(jnp.abs(values))
    apart = jnp.abs(gap) > jnp.maximum(8 * jnp.finfo(values.dtype).eps * size, noise)
    factor = jnp.where(apart, 1 / jnp.where(apart, gap, 1), 0).astype(a.dtype)
    d_values = jnp.real(jnp.diagonal(inner))
    return (values, vectors), (d_values, product(vectors, factor * inner))


@jax.custom_jvp
def singular_values(x: Inexact[Array, "rows columns"]) -> Inexact[Array, " directions"]:
    """Returns the singular values of a matrix alone, in decreasing order."""
    return jnp.linalg.svd(x, compute_uv=False)


@singular_values.defjvp
def _singular_values_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    left, values, right = _svd(x)
    inner = jnp.sum(jnp.conj(left) * product(dx, right), axis=0)
    return values, jnp.real(inner)
