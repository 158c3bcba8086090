"""Opening a data set: what kind it is follows from the files in its folder."""

from pathlib import Path

from e3dsnn_jax.data import solids, surfaces
from e3dsnn_jax.data.cache import CloudSource, cached
from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset, Split
from e3dsnn_jax.data.folder import folder_source, is_class_folder_tree
from e3dsnn_jax.data.modelnet import (
    hdf5_files,
    hdf5_source,
    is_resampled,
    resampled_source,
)
from e3dsnn_jax.data.points import MESH_POINTS
from e3dsnn_jax.data.shards import open_shards, shard_files
