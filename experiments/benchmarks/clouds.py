"""Clouds for benchmarks: surfaces with an exact number of voxels each."""

from pathlib import Path

import numpy as np

from e3dsnn_jax.data.clouds import ShapeDataset
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.data.shapes import ProceduralShapes
from e3dsnn_jax.voxels import VoxelCloud, voxelize

# Points drawn for each voxel that is wanted. So sparsely sampled, a surface has about
# 9.5 neighbours in the 27 cells around a voxel, itself included, as real scans and
# sampled CAD models have; a dense sampling has 17.
_POINTS_PER_VOXEL = 1.46


def surface_clouds(
    num_clouds: int, *, voxels: int, voxel_size: float
) -> list[VoxelCloud]:
    """Embedded shapes, each scaled until it fills exactly so many voxels.

    Args:
      num_clouds: How many clouds.
      voxels: Voxels of each.
      voxel_size: Edge of a voxel; a shape's radius is near 1.

    Returns:
      The clouds, with coordinates and normals as features.

    Raises:
      ValueError: If no scale gives a cloud that number of voxels.
    """
    points = max(round(_POINTS_PER_VOXEL * voxels), voxels)
    shapes = ProceduralShapes("train", num_clouds, points_per_cloud=points)
    return [
        _fill(shapes, index, voxels=voxels, voxel_size=voxel_size)
        for index in range(num_clouds)
    ]


def _fill(
    shapes: ProceduralShapes, index: int, *, voxels: int, voxel_size: float
) -> VoxelCloud:
    cloud = shapes[index]
    normals = np.asarray(cloud.normals)

    def at_scale(scale: float) -> VoxelCloud:
        scaled = (cloud.points * np.float32(scale)).astype(np.float32)
        features = np.concatenate([scaled, normals], axis=1)
        return voxelize(scaled, features, voxel_size=voxel_size, name=cloud.name)

    # The count grows with the scale, in steps of one almost everywhere.
    small, large = voxel_size, 1000 * voxel_size * voxels
    for _ in range(60):
        middle = (small * large) ** 0.5
        found = at_scale(middle)
        if len(found.coords) == voxels:
            return found
        small, large = (
            (middle, large) if len(found.coords) < voxels else (small, middle)
        )
    raise ValueError(
        f"{cloud.name}: no scale gives exactly {voxels} voxels of {voxel_size}; "
        "ask for another number of voxels"
    )


def dataset_clouds(
    path: Path, num_clouds: int, *, voxel_size: float
) -> list[VoxelCloud]:
    """The first training clouds of a dataset at their own size, without augmentation.

    Raises:
      ValueError: If the dataset has fewer clouds.
    """
    dataset: ShapeDataset = open_dataset(path, "train")
    if len(dataset) < num_clouds:
        raise ValueError(f"{path} has {len(dataset)} clouds, {num_clouds} are wanted")
    return [
        voxelize_cloud(
            dataset[index],
            np.random.default_rng(index),
            voxel_size=voxel_size,
            normals=True,
            recipe=None,
        )
        for index in range(num_clouds)
    ]
