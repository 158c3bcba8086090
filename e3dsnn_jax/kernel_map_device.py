"""Kernel maps and pyramids built under `jit`, equal to those built on the host.

For data that already live on the device, or pipelines without a host. Coordinates are
compared axis by axis, never packed into one key, so extents have no limit. Nothing
here can raise: what does not fit travels as `blocks_needed` and `voxels_needed`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from e3dsnn_jax.capacity import Capacity, MapCapacity
from e3dsnn_jax.kernel_map import Kernel, KernelMap, check_submanifold
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import DOWN, SUBMANIFOLD, Level


def build_submanifold_map(
    coords: Int32[Array, "voxels axes"], kernel: Kernel, capacity: MapCapacity
) -> KernelMap:
    """The map of a submanifold convolution, under `jit`.

    Args:
      coords: Sorted unique coordinates; padding rows of -1 last.
      kernel: Odd sizes, stride 1, no padding.
      capacity: Static shape of the map.

    Raises:
      ValueError: If the kernel is another, when traced.
    """
    check_submanifold(kernel)
    taps = np.array(kernel.offsets()) - np.array(kernel.size) // 2
    shifts = np.pad(taps * np.array(kernel.dilation), ((0, 0), (1, 0)))
    real = voxel_mask(coords)
    queries = coords[None] + jnp.asarray(shifts, jnp.int32)[:, None]
    senders, hit = _find_rows(coords, jnp.sum(real), queries)
    rows = jnp.arange(len(coords), dtype=jnp.int32)
    receivers = jnp.broadcast_to(rows, senders.shape)
    num = len(coords)
    return _pack(senders, receivers, hit & real[None], capacity, num, num)


def build_strided_map(
    coords: Int32[Array, "voxels axes"],
    kernel: Kernel,
    capacity: MapCapacity,
    *,
    num_out: int,
    extent: tuple[int, ...] | None = None,
) -> tuple[Int32[Array, "{num_out} axes"], Int32[Array, ""], KernelMap]:
    """Outputs and map of a strided convolution, under `jit`.

    Args:
      coords: Sorted unique coordinates; padding rows of -1 last.
      kernel: Geometry of the convolution.
      capacity: Static shape of the map.
      num_out: Row capacity of the outputs.
      extent: Cells of the input grid along each axis, or None for no upper bound.

    Returns:
      The output coordinates, how many there are (more than `num_out`: overflow), and
      the map, which is marked as overflowing too if outputs are missing.
    """
    taps = np.array(kernel.offsets()) * np.array(kernel.dilation)
    reached = (
        coords[None, :, 1:]
        + jnp.asarray(np.array(kernel.padding) - taps, jnp.int32)[:, None]
    )
    stride = jnp.asarray(kernel.stride, jnp.int32)[None, None]
    cells, rest = jnp.divmod(reached, stride)
    hit = jnp.all((rest == 0) & (cells >= 0), -1) & voxel_mask(coords)[None]
    if extent is not None:
        bound = jnp.asarray(kernel.output_extent(extent), jnp.int32)
        hit &= jnp.all(cells < bound[None, None], -1)
    batch = jnp.broadcast_to(coords[None, :, :1], (*cells.shape[:2], 1))
    cells = jnp.concatenate([batch, cells], -1)
    unique, count, receivers = _unique_rows(
        cells.reshape(-1, cells.shape[-1]), hit.reshape(-1), num_out
    )
    rows = jnp.arange(len(coords), dtype=jnp.int32)
    senders = jnp.broadcast_to(rows, hit.shape)
    packed = _pack(
        senders, receivers.reshape(hit.shape), hit, capacity, len(coords), num_out
    )
    needed = jnp.where(
        count > num_out,
        jnp.maximum(packed.blocks_needed, capacity.blocks + 1),
        packed.blocks_needed,
    )
    return unique, count, packed._replace(blocks_needed=needed)


def build_pyramid_on_device(
    coords: Int32[Array, "voxels axes"],
    *,
    capacity: Capacity,
    downs: Sequence[Kernel] | None = None,
    submanifold: Kernel = SUBMANIFOLD,
    extent: tuple[int, ...] | None = None,
) -> tuple[Level, ...]:
    """Builds every level of a batch under `jit`; see `build_pyramid` for the arguments.

    Args:
      coords: Sorted unique coordinates of the finest level, padded with -1 to the
        rows of the first capacity.
      capacity: Static shapes of the levels.
      downs: Geometry of each strided convolution; size 2, stride 2 if omitted.
      submanifold: Geometry of the convolutions on a level.
      extent: Cells of the finest grid along each axis, or None.

    Returns:
      The levels, equal to those of the host; overflow is data.
    """
    downs = [DOWN] * (len(capacity) - 1) if downs is None else downs
    if len(coords) != capacity[0].voxels:
        raise ValueError(
            f"coords have {len(coords)} rows but the capacity is {capacity[0].voxels}: "
            "pad them with -1"
        )
    count = jnp.sum(voxel_mask(coords), dtype=jnp.int32)
    levels = []
    for index, shape in enumerate(capacity):
        same = build_submanifold_map(coords, submanifold, shape.submanifold)
        if shape.down is None or index == len(capacity) - 1:
            levels.append(Level(coords, count, same, None))
            break
        coarse, coarse_count, down = build_strided_map(
            coords,
            downs[index],
            shape.down,
            num_out=capacity[index + 1].voxels,
            extent=extent,
        )
        levels.append(Level(coords, count, same, down))
        extent = None if extent is None else downs[index].output_extent(extent)
        coords, count = coarse, coarse_count
    return tuple(levels)


def _find_rows(
    table: Int[Array, "rows axes"], count: Int[Array, ""], queries: Array
) -> tuple[Int32[Array, "..."], Bool[Array, "..."]]:
    """Binary search of coordinates among the first `count` sorted rows of a table."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        row = table[middle]
        less = jnp.zeros(low.shape, bool)
        for axis in reversed(range(table.shape[1])):
            mine, wanted = row[..., axis], queries[..., axis]
            less = (mine < wanted) | ((mine == wanted) & less)
        open_ = low < high
        low = jnp.where(open_ & less, middle + 1, low)
        return low, jnp.where(open_ & ~less, middle, high)

    low = jnp.zeros(queries.shape[:-1], jnp.int32)
    high = jnp.broadcast_to(count.astype(jnp.int32), low.shape)
    steps = math.ceil(math.log2(max(len(table), 1) + 1)) + 1
    low, _ = jax.lax.fori_loop(0, steps, halve, (low, high))
    at = jnp.minimum(low, len(table) - 1)
    hit = (low < count) & jnp.all(table[at] == queries, -1)
    return at, hit


def _unique_rows(
    rows: Int[Array, "rows axes"], valid: Bool[Array, " rows"], capacity: int
) -> tuple[Array, Array, Array]:
    """Sorted unique valid rows, their number, and each row's place among them."""
    num, axes = rows.shape
    columns = [jnp.where(valid, rows[:, axis], 2**31 - 1) for axis in range(axes)]
    order = jnp.arange(num, dtype=jnp.int32)
    *columns, order = jax.lax.sort((*columns, order), num_keys=axes)
    ordered = jnp.stack(columns, 1)
    kept = jnp.arange(num) < jnp.sum(valid)
    differs = jnp.any(ordered[1:] != ordered[:-1], axis=1)
    new = kept & jnp.concatenate([jnp.ones((1,), bool), differs])
    place = jnp.cumsum(new, dtype=jnp.int32) - 1
    unique = jnp.full((capacity, axes), -1, jnp.int32)
    unique = unique.at[jnp.where(new, place, capacity)].set(ordered, mode="drop")
    places = jnp.zeros(num, jnp.int32).at[order].set(place)
    return unique, jnp.sum(new, dtype=jnp.int32), places


def _pack(
    senders: Int32[Array, "offsets candidates"],
    receivers: Int32[Array, "offsets candidates"],
    hit: Bool[Array, "offsets candidates"],
    capacity: MapCapacity,
    num_in: int,
    num_out: int,
) -> KernelMap:
    """Cuts pairs into blocks of one offset each, as `pack_pairs` does on the host."""
    counts = jnp.sum(hit, 1, dtype=jnp.int32)
    per_offset = -(-counts // capacity.pairs)
    last_block = jnp.cumsum(per_offset)
    needed = last_block[-1]
    within = jnp.cumsum(hit, 1, dtype=jnp.int32) - 1
    slot = (last_block - per_offset)[:, None] * capacity.pairs + within
    size = capacity.blocks * capacity.pairs
    slot = jnp.where(hit, slot, size).reshape(-1)

    def place(values: Array, empty: int) -> Array:
        flat = jnp.full(size, empty, jnp.int32)
        flat = flat.at[slot].set(values.reshape(-1), mode="drop")
        return flat.reshape(capacity.blocks, capacity.pairs)

    block = jnp.arange(capacity.blocks, dtype=jnp.int32)
    offset = jnp.searchsorted(last_block, block, side="right").astype(jnp.int32)
    return KernelMap(
        place(senders, num_in),
        place(receivers, num_out),
        jnp.where(block < needed, offset, 0),
        needed,
        jnp.array([num_in, num_out], jnp.int32),
    )
