"""Grid sampling: the occupied cells of a cloud, and which points lie in each.

One point stands for each voxel. Which one is a choice: any at random, or the n-th, so
that the rounds 0, 1, 2, ... together show every point of the cloud to the network.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from e3dsnn_jax.scans.scan import check_finite


class Grid(NamedTuple):
    """The occupied cells of one cloud, sorted by (x, y, z)."""

    coords: Int[np.ndarray, "voxels 3"]
    """Cell of each voxel, counted from the lowest occupied cell of each axis."""
    lowest: Int[np.ndarray, " 3"]
    """That lowest cell, counted from the origin."""
    voxel_of_point: Int[np.ndarray, " points"]
    """Voxel of each point."""
    order: Int[np.ndarray, " points"]
    """Points grouped by voxel; those of one voxel in the order of the cloud."""
    starts: Int[np.ndarray, " voxels"]
    """Where the points of each voxel begin in `order`."""
    counts: Int[np.ndarray, " voxels"]
    """Number of points in each voxel."""


def sample_grid(
    points: Float[np.ndarray, "points 3"], *, grid_size: float, name: str = "cloud"
) -> Grid:
    """Cuts a cloud by a grid: `cell = floor(point / grid_size)`.

    The division is in the type of the points: the published code divides float32
    coordinates in float32 below NumPy 2, and of 50,000 points about one lies so near to
    a wall that this decides its cell.

    Args:
      points: Coordinates, in the unit of `grid_size`.
      grid_size: Edge of a cell.
      name: What messages call this cloud.

    Raises:
      ValueError: If the cloud is empty or not finite, `grid_size` is not positive, or
        an axis spans more than 2**31 cells.

    Source: `GridSample` of the published transforms.
    """
    if not grid_size > 0:
        raise ValueError(f"grid_size must be positive, got {grid_size}")
    if len(points) == 0:
        raise ValueError(f"{name}: the cloud is empty (0 points)")
    check_finite(points, "points", name)
    # Three rows instead of many short ones: NumPy is ten times as fast along them.
    columns = np.ascontiguousarray(points.T)
    with np.errstate(over="ignore"):  # refused just below
        cells = np.floor(columns / columns.dtype.type(grid_size))
    lowest, highest = cells.min(axis=1), cells.max(axis=1)
    spans = [
        float(high) - float(low) + 1 for low, high in zip(lowest, highest, strict=True)
    ]
    reach = max(float(np.abs(lowest).max()), float(np.abs(highest).max()))
    if not (max(spans) < 2**31 and reach < 2**62):
        raise ValueError(
            f"{name}: the cloud spans {max(spans):.3g} cells of {grid_size} along an "
            "axis, more than 2**31; use a larger grid_size or remove outliers"
        )
    lowest = lowest.astype(np.int64)
    coords = cells.astype(np.int64) - lowest[:, None]
    order, new = _group(coords, [int(span) for span in spans])
    starts = np.flatnonzero(new)
    voxel_of_point = np.empty(len(points), np.int32)
    voxel_of_point[order] = np.cumsum(new, dtype=np.int32) - 1
    return Grid(
        np.ascontiguousarray(coords[:, order[starts]].T.astype(np.int32)),
        lowest,
        voxel_of_point,
        order,
        starts,
        np.diff(starts, append=len(points)),
    )


def _group(cells: np.ndarray, spans: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows sorted by cell and then by row, and where another cell begins."""
    number = cells.shape[1]
    row_bits = max(1, (number - 1).bit_length())
    if math.prod(spans) < 2 ** (63 - row_bits):
        # Cell and row in one number: sorting numbers is three times as fast as sorting
        # rows by them, and no two are equal.
        keys = (cells[0] * spans[1] + cells[1]) * spans[2] + cells[2]
        keys = np.sort(keys << row_bits | np.arange(number))
        order = keys & ((1 << row_bits) - 1)
        keys >>= row_bits
        differs = keys[1:] != keys[:-1]
    else:
        order = np.lexsort(cells[::-1])
        ordered = cells[:, order]
        differs = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    return order, np.append(True, differs)


def random_points(grid: Grid, rng: np.random.Generator) -> Int[np.ndarray, " voxels"]:
    """One point of each voxel, each with the same chance."""
    # Differs from reference: there the first points of a voxel are favoured, unless
    # their number divides that of the fullest voxel.
    return grid.order[grid.starts + rng.integers(0, grid.counts)]


def fragment_points(grid: Grid, number: int) -> Int[np.ndarray, " voxels"]:
    """The point of each voxel in round `number`: the (number mod count)-th.

    Rounds 0 to `num_fragments(grid) - 1` hold every point of the cloud, and each round
    holds every voxel.

    Raises:
      ValueError: If the round is negative.

    Source: `GridSample(mode="test")` of the published transforms.
    """
    if number < 0:
        raise ValueError(f"fragments count from 0, got {number}")
    return grid.order[grid.starts + number % grid.counts]


def num_fragments(grid: Grid) -> int:
    """How many rounds show every point: the number of points in the fullest voxel."""
    return int(grid.counts.max())


def published_hashes(
    coords: Int[np.ndarray, "voxels 3"],
) -> UInt64[np.ndarray, " voxels"]:
    """The number by which the published code sorts its voxels, for parity.

    It multiplies before it combines: FNV-1 on 64-bit words.
    """
    hashes = np.full(len(coords), 14695981039346656037, np.uint64)
    for column in coords.T:
        hashes *= np.uint64(1099511628211)
        hashes ^= column.astype(np.uint64)
    return hashes
