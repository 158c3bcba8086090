"""Linear centred kernel alignment."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.centered import (
    Centered,
    frobenius,
    prepare,
    prepare_comoment,
    ratio,
)
from svcca_jax.checks import as_pair
from svcca_jax.linalg import center, count_datapoints, cross_product
from svcca_jax.measure import Both
from svcca_jax.moments import Moments


class LinearCKA(NamedTuple):
    """Linear centred kernel alignment of two layers."""

    value: Float[Array, ""]
    """Biased estimate, in [0, 1]; 0 if a layer is constant."""
    debiased: Float[Array, ""]
    """With unbiased estimates of each term: about 0 for unrelated layers of any width,
    and possibly below 0. NaN with fewer than 4 datapoints, where it is not defined,
    and from moments, which do not hold what it needs."""


def linear_cka(
    x: ArrayLike, y: ArrayLike, *, mask: ArrayLike | None = None
) -> LinearCKA:
    r"""Linear CKA of two layers.

    .. math:: \frac{\|Y_c^T X_c\|_F^2}{\|X_c^T X_c\|_F \, \|Y_c^T Y_c\|_F}

    The debiased form replaces each term by the unbiased estimator of Song et al., which
    leaves the diagonal of the kernels out.

    Args:
      x: Activations [datapoints, neurons_x]; integers and booleans become floats.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      mask: True on the datapoints that count.

    Raises:
      ValueError: As `cca.cca`.

    Source: Similarity of neural network representations revisited (ICML 2019), eq. 3;
      Feature selection via dependence maximization (JMLR 2012), eq. 5.
    """
    first, second, checked = as_pair(x, y, mask)
    return _linear_cka(first, second, checked)


@jax.jit
def _linear_cka(x: Array, y: Array, mask: Array | None) -> LinearCKA:
    datapoints = count_datapoints(x, mask)
    layer_x = prepare(center(x, mask), datapoints)
    layer_y = prepare(center(y, mask), datapoints)
    cross = cross_product(layer_x, layer_y)
    return LinearCKA(
        _biased(layer_x, layer_y, cross), _debiased(layer_x, layer_y, cross)
    )


def linear_cka_from_moments(moments: Moments, x: int = 0, y: int = 1) -> LinearCKA:
    """Linear CKA of layers `x` and `y` of streamed moments; not debiased."""
    return _linear_cka_from_moments(moments.select(x, y))


@jax.jit
def _linear_cka_from_moments(moments: Moments) -> LinearCKA:
    layer_x, layer_y = (
        prepare_comoment(moments.comoment(i, i), moments.datapoints) for i in (0, 1)
    )
    value = _biased(layer_x, layer_y, moments.comoment(0, 1))
    return LinearCKA(value, jnp.full_like(value, jnp.nan))


def _biased(x: Centered, y: Centered, cross: Array) -> Array:
    norm = frobenius(cross)
    # The two quotients keep tiny and huge activations within range.
    return jnp.clip(ratio(norm, x.gram_norm) * ratio(norm, y.gram_norm), 0, 1)


def _debiased(x: Centered, y: Centered, cross: Array) -> Array:
    if x.squared_norms is None or y.squared_norms is None:
        raise ValueError(
            "debiased CKA needs the activations: moments do not hold the lengths of "
            "single datapoints"
        )
    # Scaled to total variance 1: fourth powers of activations leave float32.
    scale_x = jnp.where(x.variance == 0, 1, x.variance)
    scale_y = jnp.where(y.variance == 0, 1, y.variance)
    norms_x, norms_y = x.squared_norms / scale_x, y.squared_norms / scale_y
    count = x.datapoints.astype(x.variance.dtype)

    def hsic(norm: Array, a: Array, b: Array) -> Array:
        # With centred rows K 1 = 0, so that K without its diagonal d has row sums -d.
        diagonal = jnp.sum(a * b)
        spread = jnp.sum(a) * jnp.sum(b) / ((count - 1) * (count - 2))
        return norm**2 - diagonal + spread - 2 * diagonal / (count - 2)

    between = frobenius(cross) / (jnp.sqrt(scale_x) * jnp.sqrt(scale_y))
    value = hsic(between, norms_x, norms_y)
    own_x = hsic(x.gram_norm / scale_x, norms_x, norms_x)
    own_y = hsic(y.gram_norm / scale_y, norms_y, norms_y)
    known = (own_x > 0) & (own_y > 0)
    root = jnp.sqrt(jnp.where(known, own_x, 1) * jnp.where(known, own_y, 1))
    value = jnp.where(known | jnp.isnan(value), value / root, 0)
    return jnp.where(count < 4, jnp.nan, value)


@dataclasses.dataclass(frozen=True)
class CKA:
    """Linear CKA, for grids of layers (`pairwise`)."""

    debiased: bool = False
    """Use the unbiased estimates."""

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
        """Returns the CKA of two layers, both ways."""
        if cross is None:
            cross = cross_product(x, y)
        value = (_debiased if self.debiased else _biased)(x, y, cross)
        return value, value
