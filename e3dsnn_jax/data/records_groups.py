"""The order of a cloud's points in a record: those of a voxel side by side.

Voxels are those of the normalised cloud, as `data.loader.voxelize_cloud` cuts it, so
that its sort meets keys in order and a voxel's points come from one place in memory.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from e3dsnn_jax.data.augment import normalize
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.voxels import VoxelCloud, voxelize


class GroupedCloud(NamedTuple):
    """A cloud whose points may lie in another order than in its source."""

    cloud: PointCloud
    """The cloud, in the units of the source."""
    voxels: int
    """Number of voxels that the normalised cloud fills."""


def group_by_voxel(cloud: PointCloud, *, voxel_size: float) -> GroupedCloud:
    """Sorts points by the voxel of the normalised cloud, in it by their old order.

    Voxelising the result gives the same bits as voxelising the cloud: coordinates,
    features, and the point that `random_point` chooses with the same generator. The
    mean of a cloud, summed in another order, can differ in its last bit and move a
    normalised coordinate by one; a cloud to which that happens keeps its old order.

    Args:
      cloud: A valid cloud.
      voxel_size: Edge of a voxel in units of the normalised cloud (its radius is 1).

    Returns:
      The cloud in its new order, and its number of voxels.

    Raises:
      ValueError: If the voxel size is not positive, or so small that coordinates of
        voxels overflow.
    """
    unit = normalize(cloud)
    found = _voxels(unit, voxel_size)
    order = np.argsort(found.voxel_of_point, kind="stable")
    grouped = _take(cloud, order)
    if normalize(grouped).points.tobytes() != unit.points[order].tobytes():
        grouped = cloud
    return GroupedCloud(grouped, len(found.coords))


def thin_voxels(
    cloud: PointCloud,
    *,
    voxel_size: float,
    points_per_voxel: int,
    rng: np.random.Generator,
) -> PointCloud:
    """Keeps at most so many points of each voxel, chosen at random, in their old order.

    What is left has another mean and perhaps another radius: normalised again, its
    points fall into voxels that differ a little from those that were thinned out.

    Args:
      cloud: A valid cloud.
      voxel_size: Edge of a voxel in units of the normalised cloud.
      points_per_voxel: Most points of a voxel, 1 or more.
      rng: The source of all randomness; its state advances.

    Returns:
      The cloud without the other points.
    """
    voxel = _voxels(normalize(cloud), voxel_size).voxel_of_point
    order = np.lexsort((rng.random(len(voxel)), voxel))
    counts = np.bincount(voxel)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(voxel)) - starts[voxel[order]]
    return _take(cloud, np.sort(order[place < points_per_voxel]))


def _voxels(unit: PointCloud, voxel_size: float) -> VoxelCloud:
    return voxelize(unit.points, unit.points, voxel_size=voxel_size, name=unit.name)


def _take(cloud: PointCloud, rows: Int[np.ndarray, " rows"]) -> PointCloud:
    normals = None if cloud.normals is None else cloud.normals[rows]
    return cloud._replace(points=cloud.points[rows], normals=normals)
