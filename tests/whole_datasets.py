"""All clouds of a dataset, and normals that must exist, as the data tests need them."""

import numpy as np

from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset


def all_clouds(dataset: ShapeDataset | None) -> list[PointCloud]:
    """Every cloud in order; a dataset of None is a failure."""
    assert dataset is not None
    return [dataset[index] for index in range(len(dataset))]


def normals_of(cloud: PointCloud) -> np.ndarray:
    """The normals of a cloud that has to have them."""
    assert cloud.normals is not None
    return cloud.normals
