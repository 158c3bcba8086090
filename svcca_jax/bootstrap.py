"""How far a similarity would move with other clouds, images or texts: a bootstrap.

Datapoints that come in groups, such as the voxels of one cloud or the pixels of one
image, are not independent. What is drawn anew, with replacement, are therefore groups:
each draw weighs every datapoint by how often its group was drawn, and the similarity is
computed from the weighted moments.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from svcca_jax.checks import as_pair
from svcca_jax.measure import Measure


def draw_weights(
    num_groups: int, *, draws: int, key: Key[Array, ""]
) -> Int[Array, "draws num_groups"]:
    """How often each group is drawn, with replacement, as often as there are groups.

    Args:
      num_groups: Number of groups.
      draws: Number of draws.
      key: The key is consumed.

    Raises:
      ValueError: If a number is below 1.
    """
    if min(num_groups, draws) < 1:
        raise ValueError(
            f"a bootstrap needs groups and draws, got {num_groups} and {draws}"
        )
    chosen = jax.random.randint(key, (draws, num_groups), 0, num_groups)
    count = jax.vmap(lambda row: jnp.bincount(row, length=num_groups))
    return count(chosen).astype(jnp.int32)


def bootstrap(
    x: ArrayLike,
    y: ArrayLike,
    weights: ArrayLike,
    *,
    measure: Measure,
) -> Float[Array, " draws"]:
    """Similarity of two layers for each draw of their datapoints.

    It is computed from covariances (`measure.prepare_moments`), so that directions
    below the square root of the precision are noise: for intervals, not for the value.

    Args:
      x: Activations [datapoints, neurons_x].
      y: Activations [datapoints, neurons_y].
      weights: How often each datapoint counts in each draw [draws, datapoints]:
        `draw_weights(...)[:, group_of_datapoint]`.
      measure: What to compute.

    Raises:
      ValueError: As `cca.cca`, or if the weights are not those of the datapoints.

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993), section 8;
      groups as in Davison and Hinkley (1997), section 3.8.
    """
    first, second, _ = as_pair(x, y, None)
    weights = jnp.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != len(first):
        raise ValueError(
            f"the layers have {len(first)} datapoints but the weights have the shape "
            f"{weights.shape}: give [draws, datapoints]"
        )
    return _bootstrap(first, second, weights, measure=measure)


def interval(
    values: Float[np.ndarray, " *shape"],
    draws: Float[np.ndarray, " draws *shape"],
    *,
    level: float = 0.9,
) -> tuple[Float[np.ndarray, " *shape"], Float[np.ndarray, " *shape"]]:
    """Normal interval around similarities, as wide as their draws spread.

    Percentiles of the draws would not do: a draw repeats some groups and lacks a third
    of them, and with fewer different datapoints every similarity is higher, so that
    they can lie above the value altogether. Only the spread is taken from them. How far
    few datapoints lift the value itself, a random baseline tells.

    Args:
      values: The similarities, which lie in [0, 1].
      draws: Those of the draws.
      level: Share that the interval holds if the similarity is distributed normally.

    Raises:
      ValueError: If the level lies outside (0, 1), or there are fewer than 2 draws.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if len(draws) < 2:
        raise ValueError(f"a spread needs at least 2 draws, got {len(draws)}")
    reach = statistics.NormalDist().inv_cdf((1 + level) / 2) * draws.std(axis=0, ddof=1)
    low, high = (np.clip(values + sign * reach, 0, 1) for sign in (-1, 1))
    return np.asarray(low), np.asarray(high)


@functools.partial(jax.jit, static_argnames=("measure",))
def _bootstrap(x: Array, y: Array, weights: Array, *, measure: Measure) -> Array:
    def draw(weight: Array) -> Array:
        counts = weight.astype(x.dtype)
        datapoints = jnp.sum(weight)
        layers = []
        for layer in (x, y):
            mean = counts @ layer / jnp.sum(counts)
            layers.append(layer - mean[None])
        moment = lambda a, b: jnp.matmul(
            (a * counts[:, None]).T, b, precision=jax.lax.Precision.HIGHEST
        )
        prepared = [measure.prepare_moments(moment(a, a), datapoints) for a in layers]
        return measure.compare(prepared[0], prepared[1], moment(layers[0], layers[1]))[
            0
        ]

    return jax.lax.map(draw, weights)
