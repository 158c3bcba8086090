"""Means and co-moments of layers, accumulated over batches of datapoints.

Activations over millions of voxels need never be stored: a measure that depends on
covariances alone reads `Moments`. Batches are merged by the pairwise formula of Chan,
Golub and LeVeque with compensated (Kahan) sums, so that float32 keeps its digits over
any number of batches; two devices' or processes' moments merge in the same way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from svcca_jax.checks import check_datapoints, check_mask
from svcca_jax.linalg import center, count_datapoints, find_mean, sum_products


class Moments(NamedTuple):
    """Sums over the datapoints seen so far, for one or more layers.

    Pairs of layers are kept once: entry `[i][j - i]` of the tables is the pair of
    layer i with layer j >= i.
    """

    datapoints: Int[Array, ""]
    """Number of datapoints; int32: beyond 2,147,483,647 the moments are NaN."""
    means: tuple[Float[Array, " _neurons"], ...]
    """Mean of every neuron, one array a layer."""
    comoments: tuple[tuple[Float[Array, "_neurons_i _neurons_j"], ...], ...]
    """Sums of the products of centred neurons: (datapoints - 1) covariances."""
    mean_errors: tuple[Float[Array, " _neurons"], ...]
    """What rounding has left out of `means` so far."""
    comoment_errors: tuple[tuple[Float[Array, "_neurons_i _neurons_j"], ...], ...]
    """What rounding has left out of `comoments` so far."""

    def comoment(self, i: int, j: int) -> Float[Array, "neurons_i neurons_j"]:
        """Returns the sum of the centred products of layer i with layer j."""
        if i > j:
            return self.comoment(j, i).T
        return self.comoments[i][j - i] + self.comoment_errors[i][j - i]

    def mean(self, i: int) -> Float[Array, " neurons"]:
        """Returns the means of the neurons of layer i."""
        return self.means[i] + self.mean_errors[i]

    def select(self, i: int, j: int) -> "Moments":
        """Returns the moments of the pair (layer i, layer j).

        Raises:
          ValueError: If there is no such layer.
        """
        for layer in (i, j):
            if not 0 <= layer < len(self.means):
                raise ValueError(
                    f"there is no layer {layer} in moments of {len(self.means)} layers"
                )
        table = (
            (self.comoment(i, i), self.comoment(i, j)),
            (self.comoment(j, j),),
        )
        means = (self.mean(i), self.mean(j))
        zeros = jax.tree.map(jnp.zeros_like, (means, table))
        return Moments(self.datapoints, means, table, *zeros)


def init_moments(widths: Sequence[int], *, dtype: DTypeLike = jnp.float32) -> Moments:
    """Returns the moments of no datapoints, for layers of these numbers of neurons.

    Raises:
      ValueError: If a width is below 1.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"layers need at least 1 neuron each, got widths {widths}")
    means = tuple(jnp.zeros(width, dtype) for width in widths)
    table = tuple(
        tuple(jnp.zeros((a, b), dtype) for b in widths[i:])
        for i, a in enumerate(widths)
    )
    zeros = jax.tree.map(jnp.zeros_like, (means, table))
    return Moments(jnp.zeros((), jnp.int32), means, table, *zeros)


def update_moments(
    moments: Moments,
    layers: Sequence[Shaped[Array, "_datapoints _neurons"]],
    mask: Bool[Array, " _datapoints"] | None = None,
) -> Moments:
    """Adds a batch of datapoints; pure, for use inside a caller's `jit`.

    Args:
      moments: Moments so far.
      layers: Activations of every layer on the batch; they become of the type of the
        moments.
      mask: True on the datapoints that count; all of them if not given.

    Raises:
      ValueError: If the number of layers or a width is not that of the moments, or
        layers have other numbers of datapoints than each other, or none.
    """
    dtype = moments.means[0].dtype
    names = [f"layer {i}" for i in range(len(layers))]
    arrays = [jnp.asarray(layer).astype(dtype) for layer in layers]
    widths = [mean.shape[0] for mean in moments.means]
    got = [array.shape[1] for array in arrays]
    if got != widths:
        raise ValueError(f"moments are of layers of widths {widths}, got {got}")
    if arrays[0].shape[0] == 0:
        raise ValueError("the batch has 0 datapoints; leave it out")
    check_datapoints(arrays, names)
    return merge_moments(moments, _moments_of_batch(arrays, mask))


def merge_moments(a: Moments, b: Moments) -> Moments:
    r"""Moments of the datapoints of both.

    .. math:: M = M_a + M_b + \delta_x \delta_y^T \frac{n_a n_b}{n_a + n_b}, \qquad
       \delta = \mu_b - \mu_a

    Raises:
      ValueError: If they are of layers of other widths.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for
      computing sample variances (1979), eq. 2.1.
    """
    dtype = a.means[0].dtype
    widths = [[mean.shape[0] for mean in moments.means] for moments in (a, b)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"moments of layers of widths {widths[0]} and {widths[1]} cannot be merged"
        )
    count = a.datapoints + b.datapoints
    share = b.datapoints.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
    share = jnp.where(count < 0, jnp.nan, share)  # the count has overflowed
    weight = a.datapoints.astype(dtype) * share
    number = len(a.means)
    delta = [
        (b.means[i] - a.means[i]) + (b.mean_errors[i] - a.mean_errors[i])
        for i in range(number)
    ]
    means, mean_errors = zip(
        *(
            _add(a.means[i], a.mean_errors[i], delta[i] * share, 0 * delta[i])
            for i in range(number)
        ),
        strict=True,
    )
    rows, row_errors = [], []
    for i in range(number):
        row = []
        for j in range(i, number):
            shift = weight * delta[i][:, None] * delta[j][None, :]
            total, error = _add(
                a.comoments[i][j - i],
                a.comoment_errors[i][j - i],
                b.comoments[i][j - i],
                b.comoment_errors[i][j - i],
            )
            row.append(_add(total, error, shift, jnp.zeros_like(shift)))
        rows.append(tuple(total for total, _ in row))
        row_errors.append(tuple(error for _, error in row))
    return Moments(count, means, tuple(rows), mean_errors, tuple(row_errors))


def merge_over_axis(moments: Moments, axis_name: str) -> Moments:
    """Merges the moments of all devices of a mesh axis, inside `shard_map`."""
    gathered = jax.lax.all_gather(moments, axis_name)
    parts = jax.tree.leaves(gathered)[0].shape[0]
    merged = jax.tree.map(lambda leaf: leaf[0], gathered)
    for part in range(1, parts):
        merged = merge_moments(
            merged, jax.tree.map(lambda leaf, part=part: leaf[part], gathered)
        )
    return merged


def _moments_of_batch(
    layers: Sequence[Float[Array, "datapoints _neurons"]],
    mask: Bool[Array, " datapoints"] | None,
) -> Moments:
    if mask is not None:
        mask = check_mask(mask, layers[0].shape[0])
    centered = [center(layer, mask) for layer in layers]
    count = count_datapoints(layers[0], mask).astype(jnp.int32)
    means = tuple(
        jnp.where(count > 0, find_mean(layer, mask)[0], 0) for layer in layers
    )
    table = tuple(
        tuple(sum_products(a, b) for b in centered[i:]) for i, a in enumerate(centered)
    )
    zeros = jax.tree.map(jnp.zeros_like, (means, table))
    return Moments(count, means, table, *zeros)


def _add(
    total: Array, error: Array, term: Array, term_error: Array
) -> tuple[Array, Array]:
    # Two-sum: the rounding error of the addition is itself exact in floating point.
    new = total + term
    virtual = new - total
    lost = (total - (new - virtual)) + (term - virtual)
    return new, error + term_error + lost
