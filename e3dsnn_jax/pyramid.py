"""The levels of a sparse network for one batch: coordinates and kernel maps.

A level holds the voxels of one resolution, the map of the submanifold convolutions
on it, and the map of the strided convolution to the next level. It is built once a
batch and passed down the network, so that layers share maps by receiving them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, Int32

from e3dsnn_jax.capacity import (
    Capacity,
    CapacityError,
    LevelCapacity,
    LevelCounts,
    MapCapacity,
    fit_counts,
    list_needs,
)
from e3dsnn_jax.kernel_map import (
    Kernel,
    KernelMap,
    Pairs,
    blocks_needed,
    make_kernel,
    pack_pairs,
)
from e3dsnn_jax.kernel_pairs import check_coords, strided_pairs, submanifold_pairs

SUBMANIFOLD = make_kernel(3)
DOWN = make_kernel(2, stride=2)


class Level(NamedTuple):
    """Voxels of one resolution and the kernel maps that start from them."""

    coords: Int32[np.ndarray | Array, "voxels axes"]
    """Batch index and cell of each voxel; padding rows are -1 and come last."""
    voxels_needed: Int32[np.ndarray | Array, ""]
    """Number of voxels of the batch; larger than the capacity means overflow."""
    submanifold: KernelMap
    """Map of the 3x3x3 convolutions on this level."""
    down: KernelMap | None
    """Map of the strided convolution to the next level; None on the last one."""


class LevelPairs(NamedTuple):
    """One level before it is padded: what decides the capacity it needs."""

    coords: Int[np.ndarray, "voxels axes"]
    submanifold: Pairs
    down: Pairs | None


def find_levels(
    coords: Int[np.ndarray, "voxels axes"],
    *,
    num_levels: int,
    downs: Sequence[Kernel] | None = None,
    submanifold: Kernel = SUBMANIFOLD,
    extent: tuple[int, ...] | None = None,
) -> tuple[LevelPairs, ...]:
    """Finds the voxels and pairs of every level of a batch.

    Args:
      coords: Sorted unique (batch, x, y, z) of the finest level, without padding.
      num_levels: Number of levels.
      downs: Geometry of each strided convolution; size 2, stride 2 if omitted.
      submanifold: Geometry of the convolutions on a level.
      extent: Cells of the finest grid along each axis. None: no upper bound, so that
        no voxel is ever dropped on the way down.

    Raises:
      ValueError: On coordinates that are not sorted and unique, or if the number of
        strided kernels is not one less than that of levels.
    """
    downs = [DOWN] * (num_levels - 1) if downs is None else downs
    if len(downs) != num_levels - 1:
        raise ValueError(
            f"{num_levels} levels need {num_levels - 1} strided kernels, got "
            f"{len(downs)}"
        )
    check_coords(coords, "finest level")
    found = []
    for down in downs:  # outputs are sorted and unique by construction
        same = submanifold_pairs(coords, submanifold, check=False)
        coarse, pairs = strided_pairs(coords, down, extent=extent, check=False)
        found.append(LevelPairs(coords, same, pairs))
        coords = coarse
        extent = None if extent is None else down.output_extent(extent)
    same = submanifold_pairs(coords, submanifold, check=False)
    found.append(LevelPairs(coords, same, None))
    return tuple(found)


def count_levels(levels: tuple[LevelPairs, ...]) -> tuple[LevelCounts, ...]:
    """How much each level of a batch holds."""
    return tuple(
        LevelCounts(
            np.asarray(len(level.coords)),
            level.submanifold.counts,
            None if level.down is None else level.down.counts,
        )
        for level in levels
    )


def fit_capacity(
    batches: Sequence[tuple[LevelPairs, ...]], *, slack: float = 1.0
) -> Capacity:
    """Static shapes that hold each of these batches, `slack` times as large.

    Raises:
      ValueError: If there is no batch to fit.
    """
    if not batches:
        raise ValueError("fit_capacity needs at least one batch to fit")
    counts = [count_levels(levels) for levels in batches]
    return fit_counts(
        jax.tree.map(lambda *leaves: np.stack(leaves), *counts), slack=slack
    )


def fits(levels: tuple[LevelPairs, ...], capacity: Capacity) -> bool:
    """Whether a batch can be packed into a capacity."""
    return not any(
        need.needed > need.held for need in list_needs(count_levels(levels), capacity)
    )


def pack_levels(
    levels: tuple[LevelPairs, ...], capacity: Capacity
) -> tuple[Level, ...]:
    """Pads every level to static shapes.

    Raises:
      CapacityError: If the batch does not fit, with both numbers.
      ValueError: If the capacity is of another number of levels.
    """
    if len(levels) != len(capacity):
        raise ValueError(f"{len(levels)} levels, but a capacity of {len(capacity)}")
    for what, unit, needed, held in list_needs(count_levels(levels), capacity):
        if needed > held:
            raise CapacityError(
                f"{what} needs {needed} {unit} but the capacity is {held}: raise the "
                "capacity or use fewer clouds a batch"
            )

    def pack(pairs: Pairs, size: MapCapacity, num_in: int, num_out: int) -> KernelMap:
        return pack_pairs(
            pairs,
            num_in=num_in,
            num_out=num_out,
            pairs_per_block=size.pairs,
            blocks_capacity=size.blocks,
        )

    packed = []
    for index, (level, shape) in enumerate(zip(levels, capacity, strict=True)):
        rows = shape.voxels
        coords = np.full((rows, level.coords.shape[1]), -1, np.int32)
        coords[: len(level.coords)] = level.coords
        down = None
        if level.down is not None and shape.down is not None:
            down = pack(level.down, shape.down, rows, capacity[index + 1].voxels)
        same = pack(level.submanifold, shape.submanifold, rows, rows)
        count = np.asarray(len(level.coords), np.int32)
        packed.append(Level(coords, count, same, down))
    return tuple(packed)


def capacity_of(levels: tuple[Level, ...]) -> Capacity:
    """The static shapes of packed levels, perhaps with axes before them."""

    def shape(kernel_map: KernelMap) -> MapCapacity:
        blocks, pairs = kernel_map.senders.shape[-2:]
        return MapCapacity(blocks, pairs)

    return tuple(
        LevelCapacity(
            level.coords.shape[-2],
            shape(level.submanifold),
            None if level.down is None else shape(level.down),
        )
        for level in levels
    )


def mark_overflow(
    levels: tuple[LevelPairs, ...], capacity: Capacity
) -> tuple[Level, ...]:
    """Static shapes that are too small for a batch, with nothing in them but its needs.

    Where several devices run one program, a device whose batch does not fit must take
    part all the same: the program then tells all of them what was needed where.
    """
    nothing = tuple(
        LevelPairs(
            level.coords[:0],
            _no_pairs(level.submanifold),
            None if level.down is None else _no_pairs(level.down),
        )
        for level in levels
    )

    def mark(kernel_map: KernelMap, pairs: Pairs) -> KernelMap:
        needed = blocks_needed(pairs, pairs_per_block=kernel_map.senders.shape[1])
        return kernel_map._replace(blocks_needed=np.asarray(needed, np.int32))

    marked = []
    for level, found in zip(pack_levels(nothing, capacity), levels, strict=True):
        down = level.down
        if down is not None and found.down is not None:
            down = mark(down, found.down)
        marked.append(
            level._replace(
                voxels_needed=np.asarray(len(found.coords), np.int32),
                submanifold=mark(level.submanifold, found.submanifold),
                down=down,
            )
        )
    return tuple(marked)


def _no_pairs(pairs: Pairs) -> Pairs:
    return Pairs(pairs.senders[:0], pairs.receivers[:0], np.zeros_like(pairs.counts))


def build_pyramid(
    coords: Int[np.ndarray, "voxels axes"],
    *,
    num_levels: int,
    capacity: Capacity | None = None,
    downs: Sequence[Kernel] | None = None,
    submanifold: Kernel = SUBMANIFOLD,
    extent: tuple[int, ...] | None = None,
) -> tuple[Level, ...]:
    """Builds every level of a batch on the host: `find_levels`, then `pack_levels`.

    Args:
      coords: Sorted unique (batch, x, y, z) of the finest level, without padding.
      num_levels: Number of levels.
      capacity: Static shapes; fitted to this batch if omitted.
      downs: Geometry of each strided convolution; size 2, stride 2 if omitted.
      submanifold: Geometry of the convolutions on a level.
      extent: Cells of the finest grid along each axis. None: no upper bound.

    Returns:
      The levels, finest first, padded to the capacity.

    Raises:
      CapacityError: If the batch does not fit, with both numbers.
      ValueError: As `find_levels`.
    """
    found = find_levels(
        coords,
        num_levels=num_levels,
        downs=downs,
        submanifold=submanifold,
        extent=extent,
    )
    return pack_levels(found, capacity or fit_capacity([found]))
