"""Spike voxel coding, the host part: points and features to voxels (NumPy).

The cloud is cut by a regular grid; every occupied cell becomes one voxel, with the
features of one of its points or their mean. The stem of the network turns those
real features into spikes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

PointChoice = Callable[
    [Float[np.ndarray, "points channels"], Int[np.ndarray, " voxels"]],
    Float[np.ndarray, "voxels channels"],
]
"""Features of each voxel, from points grouped by voxel and where each group starts."""


class VoxelCloud(NamedTuple):
    """The occupied cells of one cloud, sorted by (x, y, z)."""

    coords: Int[np.ndarray, "voxels 3"]
    """Cell of each voxel, counted from the lowest occupied cell of each axis."""
    features: Float[np.ndarray, "voxels channels"]
    """Features of each voxel."""
    voxel_of_point: Int[np.ndarray, " points"]
    """Row of the voxel that each point fell into."""


def first_point(
    features: Float[np.ndarray, "points channels"], starts: Int[np.ndarray, " voxels"]
) -> Float[np.ndarray, "voxels channels"]:
    """The point that came first in the cloud."""
    return features[starts]


def mean_point(
    features: Float[np.ndarray, "points channels"], starts: Int[np.ndarray, " voxels"]
) -> Float[np.ndarray, "voxels channels"]:
    """The mean over the voxel's points, as the published detector takes it."""
    counts = np.diff(starts, append=len(features))
    total = np.add.reduceat(features, starts, axis=0, dtype=np.float64)
    return (total / counts[:, None]).astype(features.dtype)


def random_point(rng: np.random.Generator) -> PointChoice:
    """A choice of one point of each voxel at random, as the published classifier."""

    def choose(features, starts):
        counts = np.diff(starts, append=len(features))
        return features[starts + rng.integers(0, counts)]

    return choose


def voxelize(
    points: Float[np.ndarray, "points 3"],
    features: Float[np.ndarray, "rows channels"],
    *,
    voxel_size: float,
    choose: PointChoice = first_point,
    name: str = "cloud",
) -> VoxelCloud:
    """Cuts a cloud by a grid: `cell = floor(point / voxel_size)`, from the lowest cell.

    Args:
      points: Coordinates, in the unit of `voxel_size`.
      features: One row a point; often the coordinates are among them.
      voxel_size: Edge of a cell.
      choose: `first_point`, `random_point(rng)` or `mean_point`.
      name: What messages call this cloud.

    Returns:
      The voxels, sorted so that neighbours are near in memory; duplicate points share
      one voxel.

    Raises:
      ValueError: On an empty cloud, a value that is not finite, features of another
        length, a voxel size that is not positive, or more than 2**31 cells an axis.

    Source: `GridSample(mode="train")` of the published pipeline (random point),
    `MeanVFE` of the detector (mean).
    """
    if not voxel_size > 0:
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
    if len(points) == 0:
        raise ValueError(f"{name}: the cloud is empty (0 points); remove or repair it")
    if len(features) != len(points):
        raise ValueError(
            f"{name}: {len(points)} points but {len(features)} rows of features"
        )
    for what, values in (("points", points), ("features", features)):
        finite = np.isfinite(values).all(1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ValueError(
                f"{name}: {int((~finite).sum())} of {len(values)} {what} are NaN or "
                f"infinite, the first is row {row}: {values[row].tolist()}; remove them"
            )
    with np.errstate(over="ignore", invalid="ignore"):  # refused just below
        cells = np.floor(points.astype(np.float64) / voxel_size)
        cells -= cells.min(0)
    if not cells.max() < 2**31 - 1:
        raise ValueError(
            f"{name}: the cloud spans {cells.max():.3g} cells of {voxel_size} along an "
            "axis, more than 2**31; use a larger voxel_size or remove outliers"
        )
    cells = cells.astype(np.int64)
    spans = [int(top) + 1 for top in cells.max(0)]
    if math.prod(spans) < 2**62:  # one key orders them; else three
        key = (cells[:, 0] * spans[1] + cells[:, 1]) * spans[2] + cells[:, 2]
        order = np.argsort(key, kind="stable")
    else:
        order = np.lexsort(cells.T[::-1])
    cells = cells[order]
    new = np.append(True, (cells[1:] != cells[:-1]).any(1))
    starts = np.flatnonzero(new)
    voxel_of_point = np.empty(len(points), np.int64)
    voxel_of_point[order] = np.cumsum(new) - 1
    return VoxelCloud(
        cells[starts].astype(np.int32), choose(features[order], starts), voxel_of_point
    )


def join_clouds(
    clouds: Sequence[VoxelCloud],
) -> tuple[Int[np.ndarray, "voxels 4"], Float[np.ndarray, "voxels channels"]]:
    """One batch of clouds: sorted (batch, x, y, z), and the features row by row.

    Raises:
      ValueError: If there is no cloud, or clouds differ in their feature channels.
    """
    if not clouds:
        raise ValueError("a batch needs at least one cloud")
    widths = [cloud.features.shape[1] for cloud in clouds]
    if len(set(widths)) > 1:
        raise ValueError(f"clouds of one batch differ in feature channels: {widths}")
    batch = np.repeat(np.arange(len(clouds)), [len(cloud.coords) for cloud in clouds])
    coords = np.concatenate([cloud.coords for cloud in clouds])
    features = np.concatenate([cloud.features for cloud in clouds])
    return np.column_stack([batch, coords]).astype(np.int32), features


def pad_features(
    features: Float[np.ndarray, "voxels channels"], *, rows: int
) -> Float[np.ndarray, "{rows} channels"]:
    """Features with rows of zeros after them, as many as a level has room for.

    Args:
      features: Features of the voxels.
      rows: Row capacity, `levels[0].coords.shape[0]` of a pyramid.

    Raises:
      ValueError: If there are more voxels than rows.
    """
    if len(features) > rows:
        raise ValueError(f"{len(features)} voxels do not fit into {rows} rows")
    padded = np.zeros((rows, features.shape[1]), features.dtype)
    padded[: len(features)] = features
    return padded
