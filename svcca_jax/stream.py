"""Moments of a stream of batches, on one device, many devices or several processes.

Over a mesh each device keeps moments of its own, which meet once, at the end.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array
from numpy.typing import ArrayLike

from svcca_jax.checks import as_activations, check_datapoints
from svcca_jax.moments import Moments, init_moments, merge_over_axis, update_moments
from svcca_jax.sharing import (
    check_mesh,
    gather_from_processes,
    local_part,
    on_this_process,
    processes_of,
)

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
