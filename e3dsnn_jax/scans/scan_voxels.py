"""A scan as the network takes it: voxels with features and labels, and the way back."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.scans.crop import Box, clamp_scan_as_published, crop_scan
from e3dsnn_jax.scans.grid import Grid, fragment_points, random_points, sample_grid
from e3dsnn_jax.scans.scan import IGNORED, Scan, take_points


class ScanVoxels(NamedTuple):
    """The voxels of one scan, sorted by (x, y, z)."""

    coords: Int[np.ndarray, "voxels 3"]
    """Cell of each voxel, counted from the lowest occupied cell of each axis."""
    features: Float[np.ndarray, "voxels channels"]
    """Coordinates in metres and the scan's features of the point chosen for it."""
    labels: Int[np.ndarray, " voxels"] | None
    """Class of that point; None where the scan has no labels."""
    voxel_of_point: Int[np.ndarray, " points"]
    """Voxel of each point of the scan; -1 for points beyond the box."""


class GriddedScan(NamedTuple):
    """A scan and its grid, from which every choice of points can be made."""

    scan: Scan
    """The points that the grid holds: all, or those in the box."""
    grid: Grid
    voxel_of_point: Int[np.ndarray, " points"]
    """Voxel of each point of the scan before the crop; -1 for points beyond the box."""


def grid_scan(
    scan: Scan,
    *,
    grid_size: float,
    box: Box | None = None,
    clamp_as_published: bool = False,
) -> GriddedScan:
    """Crops a scan and finds its voxels.

    Args:
      scan: The scan.
      grid_size: Edge of a voxel, in metres.
      box: Points beyond it are dropped; None keeps all.
      clamp_as_published: Move them onto its walls instead.

    Raises:
      ValueError: If no point is left, or the cloud cannot be cut by this grid.
    """
    if box is None:
        grid = sample_grid(scan.points, grid_size=grid_size, name=scan.name)
        return GriddedScan(scan, grid, grid.voxel_of_point)
    if clamp_as_published:
        clamped = clamp_scan_as_published(scan, box)
        grid = sample_grid(clamped.points, grid_size=grid_size, name=scan.name)
        return GriddedScan(clamped, grid, grid.voxel_of_point)
    cropped, kept = crop_scan(scan, box)
    grid = sample_grid(cropped.points, grid_size=grid_size, name=scan.name)
    voxel_of_point = np.full(len(kept), -1, np.int32)
    voxel_of_point[kept] = grid.voxel_of_point
    return GriddedScan(cropped, grid, voxel_of_point)


def take_voxels(gridded: GriddedScan, chosen: Int[np.ndarray, " voxels"]) -> ScanVoxels:
    """The voxels, each with the features and the label of the point chosen for it.

    Args:
      gridded: The scan.
      chosen: One point of each voxel, from `random_points` or `fragment_points`.
    """
    points = take_points(gridded.scan, chosen)
    features = np.concatenate([points.points, points.features], axis=1)
    return ScanVoxels(
        gridded.grid.coords,
        features.astype(np.float32),
        points.labels,
        gridded.voxel_of_point,
    )


def voxelize_scan(
    scan: Scan,
    *,
    grid_size: float,
    box: Box | None = None,
    rng: np.random.Generator | None = None,
    clamp_as_published: bool = False,
) -> ScanVoxels:
    """The voxels of a scan, in one call.

    Args:
      scan: The scan.
      grid_size: Edge of a voxel, in metres.
      box: Points beyond it are dropped; None keeps all.
      rng: Chooses one point of each voxel at random, as in training; None takes the
        first of the scan, always the same.
      clamp_as_published: Move points beyond the box onto its walls instead.

    Raises:
      ValueError: If no point is left, or the cloud cannot be cut by this grid.
    """
    gridded = grid_scan(
        scan, grid_size=grid_size, box=box, clamp_as_published=clamp_as_published
    )
    if rng is None:
        chosen = fragment_points(gridded.grid, 0)
    else:
        chosen = random_points(gridded.grid, rng)
    return take_voxels(gridded, chosen)


def to_points(
    classes: Int[np.ndarray, " voxels"], voxel_of_point: Int[np.ndarray, " points"]
) -> Int[np.ndarray, " points"]:
    """Class of each point of the scan, from those of its voxels.

    Points that were dropped become `IGNORED`: unlabelled, never a guess.
    """
    # The last entry of the table is also entry -1.
    return np.append(classes, np.array(IGNORED, classes.dtype))[voxel_of_point]
