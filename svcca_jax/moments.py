"""Means and co-moments of layers, accumulated over batches of datapoints.

Activations over millions of voxels need never be stored: a measure that depends on
covariances alone reads `Moments`. Batches are merged by the pairwise formula of Chan,
Golub and LeVeque with compensated (Kahan) sums, so that float32 keeps its digits over
any number of batches; two devices' or processes' moments merge in the same way. Over a
mesh each device keeps moments of its own, which meet once, at the end.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped
from numpy.typing import ArrayLike

from svcca_jax.checks import as_activations, check_datapoints, check_mask
from svcca_jax.linalg import center, count_datapoints, find_mean, sum_products
from svcca_jax.sharing import (
    check_mesh,
    gather_from_processes,
    local_part,
    on_this_process,
    processes_of,
)


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


_update = jax.jit(update_moments, donate_argnums=0)


def accumulate(
    batches: Iterable[Sequence[ArrayLike]],
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> Moments:
    """Moments of layers over batches: `accumulate((act(batch),) for batch in data)`.

    The batches may have different numbers of datapoints, but each new number compiles
    the update again.

    Args:
      batches: For every batch, the activations [datapoints, neurons] of every layer.
      dtype: Type of the sums.
      mesh: Devices that share the datapoints of every batch, with one axis; one device
        if not given. Each holds moments, at the end those of all. Where the mesh spans
        several processes, all of them call this, each with batches of its own
        datapoints, as many and as large as it has, or none: they wait for each other
        once, when all have read theirs.

    Returns:
      The moments of all datapoints, as arrays of this process.

    Raises:
      ValueError: For no batch at all, a mesh of several axes, processes whose layers
        have other widths, and as `checks.as_activations`, with the number of the batch.
    """
    if mesh is not None:
        return _accumulate_shared(batches, dtype, check_mesh(mesh))
    moments = None
    for layers in _checked(batches, dtype):
        if moments is None:
            moments = init_moments([layer.shape[1] for layer in layers], dtype=dtype)
        moments = _update(moments, layers)
    if moments is None:
        raise ValueError("there was no batch to accumulate")
    return moments


def _checked(
    batches: Iterable[Sequence[ArrayLike]], dtype: DTypeLike
) -> Iterator[list[Array]]:
    for number, batch in enumerate(batches):
        names = [f"layer {i} of batch {number}" for i in range(len(batch))]
        layers = [
            as_activations(layer, name, shift=False).astype(dtype)
            for layer, name in zip(batch, names, strict=True)
        ]
        check_datapoints(layers, names)
        yield layers


def _accumulate_shared(
    batches: Iterable[Sequence[ArrayLike]], dtype: DTypeLike, mesh: Mesh
) -> Moments:
    local = local_part(mesh)
    split = NamedSharding(local, PartitionSpec(local.axis_names[0]))

    def start(widths: Sequence[int]) -> Moments:
        one = init_moments(widths, dtype=dtype)
        shape = (local.size,)
        each = jax.tree.map(lambda leaf: jnp.zeros(shape + leaf.shape, leaf.dtype), one)
        return jax.device_put(each, split)

    moments = None
    for layers in _checked(batches, dtype):
        datapoints = layers[0].shape[0]
        spare = -datapoints % local.size
        padded = [jnp.pad(layer, ((0, spare), (0, 0))) for layer in layers]
        mask = np.arange(datapoints + spare) < datapoints
        if moments is None:
            moments = start([layer.shape[1] for layer in layers])
        shares = jax.device_put((padded, mask), split)
        moments = _update_shares(moments, *shares, mesh=local)
    widths = None
    if moments is not None:
        widths = [mean.shape[1] for mean in moments.means]
    if len(processes_of(mesh)) > 1:
        widths = _agree_on_widths(widths, dtype, mesh)
    if widths is None:
        raise ValueError("there was no batch to accumulate")
    whole = _over_processes(start(widths) if moments is None else moments, mesh)
    return on_this_process(_merge_shares(whole, mesh=mesh))


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnums=0)
def _update_shares(
    moments: Moments, layers: list[Array], mask: Array, *, mesh: Mesh
) -> Moments:
    """Adds each device's datapoints to its own moments, one entry of a leading axis."""

    def update(moments: Moments, layers: list[Array], mask: Array) -> Moments:
        own = jax.tree.map(lambda leaf: leaf[0], moments)
        own = update_moments(own, layers, mask)
        return jax.tree.map(lambda leaf: leaf[None], own)

    split = PartitionSpec(mesh.axis_names[0])
    return jax.shard_map(
        update, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
    )(moments, layers, mask)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _merge_shares(moments: Moments, *, mesh: Mesh) -> Moments:
    """Merges the moments of all devices, in their order in the mesh."""
    axis = mesh.axis_names[0]

    def merge(moments: Moments) -> Moments:
        return merge_over_axis(jax.tree.map(lambda leaf: leaf[0], moments), axis)

    return jax.shard_map(
        merge,
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(moments)


def _over_processes(moments: Moments, mesh: Mesh) -> Moments:
    """The moments of the devices of this process as a part of those of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))

    def extend(leaf: Array) -> Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        shape = (mesh.size, *leaf.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    return jax.tree.map(extend, moments)


def _agree_on_widths(
    widths: list[int] | None, dtype: DTypeLike, mesh: Mesh
) -> list[int] | None:
    """The widths of the processes that had a batch; None if none had one."""
    bits = jnp.finfo(dtype).bits
    number = np.asarray([len(widths or []), bits], np.uint32)
    layers = gather_from_processes(number, mesh)
    mine = np.zeros(layers[:, 0].max(), np.uint32)
    mine[: len(widths or [])] = widths or []
    found = np.column_stack([layers, gather_from_processes(mine, mesh)])
    whose = [device.process_index for device in mesh.devices.flat]
    agreed: tuple[int, list[int]] | None = None
    for process, (count, their_bits, *each) in zip(whose, found.tolist(), strict=True):
        if their_bits != bits:
            raise ValueError(
                f"process {process} sums in {their_bits} bits and process "
                f"{jax.process_index()} in {bits}: give all the same dtype"
            )
        theirs = each[:count]
        if count and agreed is None:
            agreed = (process, theirs)
        if count and agreed is not None and theirs != agreed[1]:
            raise ValueError(
                f"process {agreed[0]} accumulated layers of widths {agreed[1]} and "
                f"process {process} of widths {theirs}: they must be the same layers"
            )
    return None if agreed is None else agreed[1]


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
