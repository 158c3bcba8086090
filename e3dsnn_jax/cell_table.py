"""Cells of a batch as whole numbers, and a table over all of them where it is small.

A cell's number counts the cells of the bounding box in row-major order, so that numbers
ascend as sorted coordinates do and a step in space is one addition.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

# A table of more cells a voxel costs more to clear and to miss than the searches it
# saves (measured: clouds of 16 surfaces have 20 to 40 cells a voxel, LiDAR scans 1000).
_CELLS_PER_VOXEL = 128
# Tables of up to so many cells are cheap however few voxels they hold.
_SMALL = 2**15
_LARGEST_NUMBER = 2**62


class CellNumbers(NamedTuple):
    """The number of each row's cell in a box with room for steps out of it."""

    numbers: Int[np.ndarray, " voxels"]
    """Number of each cell, ascending if the coordinates are sorted."""
    strides: tuple[int, ...]
    """What one step along each axis adds."""
    size: int
    """One more than the largest number that a step from a cell can reach."""


def number_cells(
    coords: Int[np.ndarray, "voxels axes"], reach: tuple[int, ...]
) -> CellNumbers | None:
    """Numbers the cells of coordinates.

    Args:
      coords: At least one row, at least 0.
      reach: Longest step along each axis that must not run into another row of the
        box; the batch axis is the first.

    Returns:
      The numbers, or None if they do not fit into 64 bits.
    """
    # A column at a time: a reduction along the first axis takes ten times as long.
    lowest = [int(column.min()) for column in coords.T]
    highest = [int(column.max()) for column in coords.T]
    # One margin serves the end of a row and the beginning of the next.
    spans = [
        top - bottom + 1 + margin
        for bottom, top, margin in zip(lowest, highest, reach, strict=True)
    ]
    strides = [math.prod(spans[axis + 1 :]) for axis in range(len(spans))]
    margin = sum(m * stride for m, stride in zip(reach, strides, strict=True))
    size = spans[0] * strides[0] + 2 * margin
    if size >= _LARGEST_NUMBER:
        return None
    numbers = np.full(len(coords), margin, np.int64)
    for column, bottom, stride in zip(coords.T, lowest, strides, strict=True):
        numbers += np.subtract(column, bottom, dtype=np.int64) * stride
    return CellNumbers(numbers, tuple(strides), size)


def is_small(cells: CellNumbers) -> bool:
    """Whether a table over the whole box is worth its memory."""
    return cells.size <= max(_SMALL, _CELLS_PER_VOXEL * len(cells.numbers))


def make_table(cells: CellNumbers) -> Int32[np.ndarray, " cells"]:
    """The row that holds each cell of the box, -1 where there is none."""
    table = np.full(cells.size, -1, np.int32)
    table[cells.numbers] = np.arange(len(cells.numbers), dtype=np.int32)
    return table


def unique_numbers(
    cells: CellNumbers,
) -> tuple[Int[np.ndarray, " unique"], Int[np.ndarray, " rows"]]:
    """A row of each distinct cell, ascending by cell, and each row's place among them.

    The counterpart of `np.unique(..., return_index=True, return_inverse=True)`, without
    a sort where a table is small.
    """
    if not is_small(cells):
        _, first, place = np.unique(
            cells.numbers, return_index=True, return_inverse=True
        )
        return first, place
    taken = np.full(cells.size, -1, np.int32)
    # Rows are written in reverse, so that the first of each cell stays.
    taken[cells.numbers[::-1]] = np.arange(len(cells.numbers), dtype=np.int32)[::-1]
    occupied = np.flatnonzero(taken >= 0)
    first = taken[occupied]
    taken[occupied] = np.arange(len(occupied), dtype=np.int32)
    return first, taken[cells.numbers]
