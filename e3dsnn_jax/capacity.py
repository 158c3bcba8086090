"""Static shapes of a batch: how large, and what a batch needs of them.

Programs are compiled for shapes, and batches differ in their voxels and pairs; so all
batches are padded to a capacity, fitted to some of them with room to spare.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from e3dsnn_jax.kernel_map import block_size


@dataclasses.dataclass(frozen=True)
class MapCapacity:
    """Static shape of one kernel map."""

    blocks: int
    """Number of blocks."""
    pairs: int
    """Pairs in a block."""


@dataclasses.dataclass(frozen=True)
class LevelCapacity:
    """Static shapes of one level."""

    voxels: int
    """Number of rows."""
    submanifold: MapCapacity
    """Shape of the submanifold map."""
    down: MapCapacity | None
    """Shape of the map to the next level; None on the last one."""


Capacity = tuple[LevelCapacity, ...]
"""Static shapes of all levels, finest first."""


class CapacityError(ValueError):
    """A batch does not fit the static shapes that a program was compiled for."""


def bucket_size(count: int, *, multiple: int = 256, growth: float = 1.25) -> int:
    """The smallest bucket that holds `count` rows.

    Buckets are multiples of `multiple` that grow by at least the factor `growth`, so
    that counts from 1 to n meet at most about log(n) / log(growth) shapes.

    Raises:
      ValueError: If `multiple` is below 1 or `growth` does not exceed 1.
    """
    if multiple < 1 or growth <= 1:
        raise ValueError(
            f"buckets need multiple >= 1 and growth > 1, got {multiple=} {growth=}"
        )
    size = multiple
    while size < count:
        size = -(-max(int(size * growth), size + 1) // multiple) * multiple
    return size


class LevelCounts(NamedTuple):
    """How much one level holds: all that decides the capacity it needs."""

    voxels: Int[np.ndarray, "*batches"]
    submanifold: Int[np.ndarray, "*batches offsets"]
    """Pairs under each kernel offset."""
    down: Int[np.ndarray, "*batches offsets"] | None
    """Those of the map to the next level; None on the last one."""


def fit_counts(counts: tuple[LevelCounts, ...], *, slack: float = 1.0) -> Capacity:
    """As `fit_capacity`, from the counts of all batches, stacked along a first axis."""

    def rows(voxels: Int[np.ndarray, " batches"]) -> int:
        return bucket_size(math.ceil(int(voxels.max()) * slack), multiple=64)

    def shape(pairs: Int[np.ndarray, "batches offsets"]) -> MapCapacity:
        size = block_size(int(pairs.sum(axis=1).max()), pairs.shape[1])
        needed = int((-(-pairs // size)).sum(axis=1).max())
        return MapCapacity(bucket_size(math.ceil(needed * slack), multiple=8), size)

    return tuple(
        LevelCapacity(
            rows(level.voxels),
            shape(level.submanifold),
            None if level.down is None else shape(level.down),
        )
        for level in counts
    )


class Need(NamedTuple):
    """One static size, and what a batch needs of it."""

    what: str
    """"level 1", "level 1 down map"."""
    unit: str
    """"voxels" or "blocks"."""
    needed: int
    held: int


def list_needs(counts: tuple[LevelCounts, ...], capacity: Capacity) -> Iterator[Need]:
    """Every static size of a capacity beside what one batch needs of it."""
    for index, (level, shape) in enumerate(zip(counts, capacity, strict=True)):
        yield Need(f"level {index}", "voxels", int(level.voxels), shape.voxels)
        maps = [("submanifold", level.submanifold, shape.submanifold)]
        if level.down is not None and shape.down is not None:
            maps.append(("down", level.down, shape.down))
        for name, pairs, size in maps:
            needed = int(np.sum(-(-pairs // size.pairs)))
            yield Need(f"level {index} {name} map", "blocks", needed, size.blocks)
