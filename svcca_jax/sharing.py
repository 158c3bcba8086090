"""Work shared over the devices of a mesh, which may span several processes.

A function runs on every device with the same arguments (`on_every_device`). In it each
device computes what `deal` has given it, and the results are exchanged: which device
computes an entry changes nothing in its value. Without a mesh all is computed in place.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

EVERYWHERE = PartitionSpec()


class Hand(NamedTuple):
    """Which entries of one stack each device computes."""

    entries: Int[np.ndarray, "devices most"]
    """Numbers of the entries of each device; 0 beyond its count."""
    counts: Int[np.ndarray, " devices"]
    """How many entries each device computes."""
    places: Int[np.ndarray, " entries"]
    """Where each entry's result is among those of all devices, `most` from each."""


def check_mesh(mesh: Mesh) -> Mesh:
    """Returns the mesh with its axis of type Auto, as what the work reads is not typed.

    Raises:
      ValueError: If it has several axes, or no device of this process.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(f"the mesh must have one axis, got {mesh.axis_names}")
    if jax.process_index() not in processes_of(mesh):
        raise ValueError(
            f"process {jax.process_index()} has no device of the mesh, which spans the "
            f"devices of processes {processes_of(mesh)}: let those alone call this"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def processes_of(mesh: Mesh) -> list[int]:
    """Returns the numbers of the processes whose devices are in the mesh."""
    return sorted({device.process_index for device in mesh.devices.flat})


def local_part(mesh: Mesh) -> Mesh:
    """Returns the mesh of those devices that belong to this process, in their order."""
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return Mesh(np.asarray(mine), mesh.axis_names)


def find_owners(costs: Sequence[float], *, devices: int) -> Int[np.ndarray, " tasks"]:
    """Which device computes each task: the costliest first, each to the least loaded.

    Args:
      costs: Of each task, in any unit.
      devices: Number of devices.
    """
    owners, loads = np.zeros(len(costs), int), np.zeros(devices)
    for task in sorted(range(len(costs)), key=lambda task: -costs[task]):
        owners[task] = np.argmin(loads)
        loads[owners[task]] += costs[task]
    return owners


def deal(
    sizes: Sequence[int], costs: Sequence[float], mesh: Mesh | None
) -> list[Hand | None]:
    """Deals the entries of several stacks so that all devices have the same to do.

    Args:
      sizes: Number of entries of each stack.
      costs: Of one entry of each stack, in any unit.
      mesh: The devices; without it there is nothing to deal.
    """
    if mesh is None:
        return [None] * len(sizes)
    owners = find_owners(np.repeat(costs, sizes).tolist(), devices=mesh.size)
    bounds = np.cumsum(sizes)[:-1]
    return [_hand(part, mesh.size) for part in np.split(owners, bounds)]


def _hand(owners: Int[np.ndarray, " entries"], devices: int) -> Hand:
    counts = np.bincount(owners, minlength=devices)
    entries = np.zeros((devices, counts.max()), int)
    places = np.zeros(len(owners), int)
    for device, count in enumerate(counts):
        mine = np.flatnonzero(owners == device)
        entries[device, :count] = mine
        places[mine] = device * counts.max() + np.arange(count)
    return Hand(entries, counts, places)


def on_every_device(
    function: Callable[..., Any], mesh: Mesh | None, *arguments: Any
) -> Any:
    """Calls a function with the same arguments on all devices of the mesh.

    The functions below are for use in it.

    Args:
      function: Its result must be the same on all of them.
      mesh: The devices; without it the function is called in place.
      *arguments: Trees of arrays.
    """
    if mesh is None:
        return function(*arguments)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=EVERYWHERE,
        out_specs=EVERYWHERE,
        check_vma=False,
    )(*arguments)


def take_own(
    entries: Shaped[Array, " entries *axes"], hand: Hand | None, mesh: Mesh | None
) -> Shaped[Array, " own *axes"]:
    """Returns the entries of a stack that were dealt to this device."""
    if hand is None or mesh is None:
        return entries
    return entries[jnp.asarray(hand.entries)[_this(mesh)]]


def map_own(
    function: Callable[[Any], Any],
    own: Shaped[Array, " own *axes"],
    hand: Hand | None,
    mesh: Mesh | None,
    *,
    at_once: int = 1,
) -> Any:
    """As `jax.lax.map` over a whole stack, of which each device computes its own.

    Args:
      function: Of one entry; it returns a tree of arrays.
      own: This device's entries, from `take_own`.
      hand: How the stack was dealt.
      mesh: The devices.
      at_once: How many entries a device computes at a time.

    Returns:
      The results of all entries, in the order of the stack, on every device.
    """
    batch_size = None if at_once == 1 else at_once
    if hand is None or mesh is None:
        return jax.lax.map(function, own, batch_size=batch_size)
    count = jnp.asarray(hand.counts)[_this(mesh)]
    nothing = _zeros_like(jax.eval_shape(function, own[0]))

    def compute(slot: tuple[Array, Array]) -> Any:
        # The others do not compute something useless meanwhile: the virtual devices of
        # a CPU share its cores.
        return jax.lax.cond(slot[0] < count, function, lambda _: nothing, slot[1])

    results = jax.lax.map(compute, (jnp.arange(len(own)), own), batch_size=batch_size)
    gathered = jax.lax.all_gather(results, mesh.axis_names[0], tiled=True)
    return jax.tree.map(lambda leaf: leaf[hand.places], gathered)


def only_on(owner: int, function: Callable[[], Array], mesh: Mesh | None) -> Array:
    """Returns the function's array on one device, zeros on all others; see `add_up`."""
    if mesh is None:
        return function()
    nothing = _zeros_like(jax.eval_shape(function))
    return jax.lax.cond(_this(mesh) == owner, function, lambda: nothing)


def add_up(x: Array, mesh: Mesh | None) -> Array:
    """Returns, on every device, arrays of which each entry is of `only_on` one."""
    return x if mesh is None else jax.lax.psum(x, mesh.axis_names[0])


def _this(mesh: Mesh) -> Array:
    return jax.lax.axis_index(mesh.axis_names[0])


def _zeros_like(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def put_everywhere(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays of this process on all devices of the mesh; traced ones stay.

    With several processes all must hold the same arrays: see `check_same`.
    """
    sharding = NamedSharding(mesh, EVERYWHERE)

    def put(x: Array) -> Array:
        if isinstance(x, jax.core.Tracer):
            return x
        if len(processes_of(mesh)) == 1:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree)


def on_this_process(tree: Any) -> Any:
    """Returns arrays that are whole on every device as arrays of this process alone."""

    def take(x: Array) -> Array:
        return x if isinstance(x, jax.core.Tracer) else x.addressable_data(0)

    return jax.tree.map(take, tree)


def check_same(
    arrays: Sequence[Array],
    names: Sequence[str],
    settings: object,
    mesh: Mesh,
) -> None:
    """Raises a `ValueError` in all processes if they want to compute different things.

    They would wait for each other for ever, or mix their layers without a word. With
    one process, and for arrays that are being traced, there is nothing to check.

    Args:
      arrays: What each process has, compared by its checksum.
      names: What an error calls them.
      settings: All else that must be equal: its `repr` is compared.
      mesh: The devices of the processes.
    """
    traced = any(isinstance(array, jax.core.Tracer) for array in arrays)
    if traced or len(processes_of(mesh)) == 1:
        return
    counts = gather_from_processes(np.asarray([len(arrays)], np.uint32), mesh)[:, 0]
    whose = [device.process_index for device in mesh.devices.flat]
    for number, count in zip(whose, counts, strict=True):
        if count != counts[0]:
            raise ValueError(
                f"process {whose[0]} has {counts[0]} layers and masks and process "
                f"{number} has {count}: all processes of the mesh must give the same"
            )
    sums = [zlib.crc32(repr(settings).encode())] + [_checksum(a) for a in arrays]
    found = gather_from_processes(np.asarray(sums, np.uint32), mesh)
    for number, row in zip(whose, found, strict=True):
        for name, first, other in zip(
            ("the settings", *names), found[0], row, strict=True
        ):
            if first != other:
                raise ValueError(
                    f"{name} of process {number} differs from that of process "
                    f"{whose[0]}: all processes of the mesh must give the same"
                )


def _checksum(array: Array) -> int:
    host = np.ascontiguousarray(array)
    start = zlib.crc32(repr((host.shape, host.dtype.str)).encode())
    return zlib.crc32(host.tobytes(), start)


def gather_from_processes(
    row: Shaped[np.ndarray, " numbers"], mesh: Mesh
) -> Shaped[np.ndarray, "devices numbers"]:
    """Returns the numbers that the process of each device of the mesh has given."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    shape = (mesh.size, len(row))
    given = jax.make_array_from_callback(shape, sharding, lambda _: row[None])
    return np.asarray(on_this_process(gather(given, mesh=mesh)))


@partial(jax.jit, static_argnames=("mesh",))
def gather(
    x: Shaped[Array, " devices *axes"], *, mesh: Mesh
) -> Shaped[Array, " devices *axes"]:
    """Returns, on every device, an array of which each device holds one row."""
    axis = mesh.axis_names[0]
    return jax.shard_map(
        lambda own: jax.lax.all_gather(own, axis, tiled=True),
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=EVERYWHERE,
        check_vma=False,
    )(x)
