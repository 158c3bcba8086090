"""Whether a similarity is more than chance: a random baseline and Bartlett's test."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaincc
from jaxtyping import Array, Float, Int, Key

from svcca_jax.cca import CCA, EVERY, correlate
from svcca_jax.keep import Keep
from svcca_jax.linalg import center
from svcca_jax.measure import Measure
from svcca_jax.spectrum import find_spectrum, overlap


class Bartlett(NamedTuple):
    """Test of how many canonical correlations differ from 0."""

    statistics: Float[Array, " directions"]
    """Entry k tests that coefficients k and later are all 0."""
    degrees: Float[Array, " directions"]
    """Degrees of freedom of its chi-squared distribution."""
    p_values: Float[Array, " directions"]
    """Probability of a larger statistic under that hypothesis; 1 beyond the count."""

    def significant(self, level: float = 0.05) -> Int[Array, ""]:
        """Returns how many leading coefficients are significant, tested in turn."""
        return jnp.sum(jnp.cumprod(self.p_values < level))


def bartlett_test(result: CCA, datapoints: int | Int[Array, ""]) -> Bartlett:
    r"""Bartlett's sequential test of canonical correlations.

    .. math:: \chi^2_k = -\left(m - 1 - \frac{p + q + 1}{2}\right)
       \sum_{i > k} \ln(1 - \rho_i^2), \qquad (p - k)(q - k) \text{ degrees of freedom}

    with p and q the ranks of the layers. It assumes independent, roughly normal
    datapoints: for activations take it as a guide, beside `random_baseline`.

    Args:
      result: Canonical correlations of two layers.
      datapoints: Number of datapoints that they came from.

    Returns:
      The test; NaN throughout with fewer datapoints than 1 + p + q, where any two
      layers share directions and nothing can be tested.

    Raises:
      ValueError: If there are fewer than 2 datapoints.

    Source: Bartlett, Further aspects of the theory of multiple regression (1938).
    """
    if isinstance(datapoints, int) and datapoints < 2:
        raise ValueError(f"the test needs at least 2 datapoints, got {datapoints}")
    values = result.coefficients
    dtype = values.dtype
    index = jnp.arange(len(values))
    exists = index < result.num_coefficients
    # A correlation of exactly 1 has an infinite statistic and p-value 0.
    logs = jnp.where(exists, -jnp.log1p(-(values**2)), 0)
    tails = jnp.cumsum(logs[::-1])[::-1]
    rank_x, rank_y = result.rank_x.astype(dtype), result.rank_y.astype(dtype)
    freedom = jnp.asarray(datapoints, dtype) - 1
    factor = freedom - (rank_x + rank_y + 1) / 2
    factor = jnp.where(freedom < rank_x + rank_y, jnp.nan, factor)
    statistics = jnp.where(tails > 0, factor * tails, 0 * factor)
    degrees = (rank_x - index.astype(dtype)) * (rank_y - index.astype(dtype))
    degrees = jnp.where(exists, degrees, 1)
    tail = gammaincc(degrees / 2, jnp.where(jnp.isinf(statistics), 0, statistics) / 2)
    p_values = jnp.where(jnp.isinf(statistics), 0, tail)
    p_values = jnp.where(exists | jnp.isnan(factor), p_values, 1)
    return Bartlett(statistics, degrees, p_values)


def random_baseline(
    measure: Measure,
    shape_x: Sequence[int],
    shape_y: Sequence[int],
    *,
    key: Key[Array, ""],
    repeats: int = 5,
) -> Float[Array, " repeats"]:
    """Similarity of independent normal activations of the same shapes.

    With few datapoints for the neurons, unrelated layers look similar: a similarity
    means something only above these values.

    Args:
      measure: What to compute, such as `MeanSVCCA()`.
      shape_x: Shape of x, [datapoints, neurons_x].
      shape_y: Shape of y, [datapoints, neurons_y].
      key: The key is consumed.
      repeats: Number of independent draws.

    Raises:
      ValueError: If the numbers of datapoints differ.

    Source: google/svcca, tutorial 001.
    """
    _check_shapes(shape_x, shape_y)
    shapes = (tuple(shape_x), tuple(shape_y))
    return _draw(key, measure=measure, shapes=shapes, repeats=repeats)


def random_coefficients(
    shape_x: Sequence[int],
    shape_y: Sequence[int],
    *,
    key: Key[Array, ""],
    keep: Keep = EVERY,
    repeats: int = 5,
) -> Float[Array, "repeats directions"]:
    """Canonical correlations of independent normal activations of the same shapes.

    The baseline of a curve of coefficients (`plots.plot_coefficients`).

    Args:
      shape_x: Shape of x, [datapoints, neurons_x].
      shape_y: Shape of y, [datapoints, neurons_y].
      key: The key is consumed.
      keep: Singular directions to keep of each, as for the layers themselves.
      repeats: Number of independent draws.

    Raises:
      ValueError: If the numbers of datapoints differ.
    """
    _check_shapes(shape_x, shape_y)
    shapes = (tuple(shape_x), tuple(shape_y))
    return _draw_coefficients(key, shapes=shapes, keep=keep, repeats=repeats)


def _check_shapes(shape_x: Sequence[int], shape_y: Sequence[int]) -> None:
    if shape_x[0] != shape_y[0]:
        raise ValueError(
            f"x has {shape_x[0]} datapoints and y has {shape_y[0]}: they must be equal"
        )


@functools.partial(jax.jit, static_argnames=("shapes", "keep", "repeats"))
def _draw_coefficients(
    key: Array, *, shapes: tuple[tuple[int, ...], ...], keep: Keep, repeats: int
) -> Float[Array, "repeats directions"]:
    def draw(key: Array) -> Array:
        x, y = (
            find_spectrum(
                center(jax.random.normal(key, shape)),
                jnp.asarray(shape[0]),
                keep=keep,
                fast=True,
            )
            for key, shape in zip(jax.random.split(key), shapes, strict=True)
        )
        return correlate(x, y, overlap(x, y)).coefficients

    return jax.lax.map(draw, jax.random.split(key, repeats))


@functools.partial(jax.jit, static_argnames=("measure", "shapes", "repeats"))
def _draw(
    key: Array, *, measure: Measure, shapes: tuple[tuple[int, ...], ...], repeats: int
) -> Float[Array, " repeats"]:
    datapoints = jnp.asarray(shapes[0][0])

    def draw(key: Array) -> Array:
        layers = (
            measure.prepare(center(jax.random.normal(key, shape)), datapoints)
            for key, shape in zip(jax.random.split(key), shapes, strict=True)
        )
        return measure.compare(*layers)[0]

    return jax.lax.map(draw, jax.random.split(key, repeats))
