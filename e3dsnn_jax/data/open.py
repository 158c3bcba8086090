"""Opening a data set: what kind it is follows from the files in its folder."""

from pathlib import Path

from e3dsnn_jax.data.cache import CloudSource, cached
from e3dsnn_jax.data.clouds import ShapeDataset, Split
from e3dsnn_jax.data.folder import folder_source, is_class_folder_tree
from e3dsnn_jax.data.modelnet import (
    hdf5_files,
    hdf5_source,
    is_resampled,
    resampled_source,
)
from e3dsnn_jax.data.points import MESH_POINTS, POINT_FILE_ENDINGS
from e3dsnn_jax.data.records import RecordClouds, is_packed, open_records
from e3dsnn_jax.data.shapes import shapes_source
from e3dsnn_jax.data.shards import open_shards, shard_files, shards_source


def open_dataset(
    path: Path | None, split: Split, *, points_per_cloud: int | None = None
) -> ShapeDataset:
    """Opens one split of a data set, whatever its layout.

    Known layouts, in the order in which they are looked for:

    * packed records, as `e3dsnn pack` writes them: `train.index`, `test.index`;
    * `modelnet40_normal_resampled`: text files and `modelnet40_shape_names.txt`;
    * `modelnet40_ply_hdf5_2048`: HDF5 files called after their split;
    * npz shards: `train_*.npz` and `test_*.npz`;
    * class folders with off, ply, obj, npz, npy, txt, xyz or csv files, which includes
      the original ModelNet meshes; see `data.folder` for how they are split.

    All but records and small shards are kept in a cache after the first use; see
    `data.cache`.

    Args:
      path: The data folder. None: the embedded procedural shapes.
      split: Which part to open.
      points_per_cloud: Clouds with more points are thinned out to this many by farthest
        point sampling; clouds with fewer are left as they are. The embedded shapes have
        as many points as asked, 1024 if None; from a mesh at least 10,000 points are
        drawn first. Records that have more are refused: they were made to be read
        often, and this would take longer than all the rest of it.

    Returns:
      The clouds, not yet normalised.

    Raises:
      FileNotFoundError: If the folder or the split is absent, or holds nothing known.
      ValueError: If a file is broken or a cloud malformed; the message names it.
    """
    _check(path, points_per_cloud)
    if path is not None and is_packed(path):
        return _open_packed(path, split, points_per_cloud)
    if path is not None and _is_sharded(path):
        shards = open_shards(path, split)
        most = max(points.shape[1] for points in shards.points)
        if points_per_cloud is None or most <= points_per_cloud:
            return shards
        source = shards_source(path, split, shards.class_names)
    else:
        source = find_source(path, split, points_per_cloud=points_per_cloud)
    if path is None:  # generated with that many points
        return cached(source)
    return cached(source, points_per_cloud=points_per_cloud)


def find_source(
    path: Path | None, split: Split, *, points_per_cloud: int | None = None
) -> CloudSource:
    """The files of a split, and how they are read, of all layouts but records.

    Args:
      path: The data folder. None: the embedded procedural shapes.
      split: Which part.
      points_per_cloud: Points of an embedded shape, 1024 if None, and the least number
        of points to draw from a mesh above 10,000; clouds are not thinned out.

    Raises:
      FileNotFoundError: If the folder or the split is absent, or holds nothing known.
      ValueError: If a file that had to be read is broken.
    """
    _check(path, points_per_cloud)
    if path is None:
        return shapes_source(split, points_per_cloud=points_per_cloud or 1024)
    if is_resampled(path):
        return resampled_source(path, split)
    if _is_hdf5(path):
        return hdf5_source(path, split)
    if _is_sharded(path):
        return shards_source(path, split, open_shards(path, split).class_names)
    if is_class_folder_tree(path):
        drawn = max(MESH_POINTS, points_per_cloud or 0)
        return folder_source(path, split, mesh_points=drawn)
    raise FileNotFoundError(_describe_unknown(path))


def _check(path: Path | None, points_per_cloud: int | None) -> None:
    if points_per_cloud is not None and points_per_cloud < 1:
        raise ValueError(f"points_per_cloud is {points_per_cloud}, expected 1 or more")
    if path is not None and not path.is_dir():
        what = "a file, not a folder" if path.exists() else "no such folder"
        raise FileNotFoundError(f"{path}: {what}; a data set is a folder")


def _is_hdf5(path: Path) -> bool:
    return bool(hdf5_files(path, "train") or hdf5_files(path, "test"))


def _is_sharded(path: Path) -> bool:
    if is_resampled(path) or _is_hdf5(path):
        return False
    return bool(shard_files(path, "train") or shard_files(path, "test"))


def _open_packed(
    path: Path, split: Split, points_per_cloud: int | None
) -> RecordClouds:
    clouds = open_records(path, split)
    most = int(clouds.points.max(initial=0))
    if points_per_cloud is not None and most > points_per_cloud:
        raise ValueError(
            f"{path}: its packed clouds have up to {most} points, more than "
            f"points_per_cloud={points_per_cloud}; leave that out, or pack the data "
            f"again with --points-per-cloud {points_per_cloud}"
        )
    return clouds


def _describe_unknown(path: Path) -> str:
    present = sorted(
        entry.name + "/" * entry.is_dir()
        for entry in path.iterdir()
        if not entry.name.startswith(".")
    )
    shown = ", ".join(present[:10]) or "nothing"
    if len(present) > 10:
        shown += f" and {len(present) - 10} more"
    return (
        f"{path}: not a known data set. Looked for train.index and test.index of "
        "packed records; for modelnet40_shape_names.txt with modelnet40_train.txt and "
        "modelnet40_test.txt; for train_files.txt, test_files.txt, *train*.h5 and "
        "*test*.h5; for train_*.npz and test_*.npz; for "
        f"class folders (perhaps inside train and test) with "
        f"{', '.join(POINT_FILE_ENDINGS)} files. The folder holds {shown}."
    )
