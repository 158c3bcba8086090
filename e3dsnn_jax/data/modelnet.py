"""The two point cloud distributions of ModelNet40.

`modelnet40_normal_resampled` has a comma separated text file a shape, with normals;
`modelnet40_ply_hdf5_2048` has HDF5 files of many shapes. Data sets of other names and
any number of classes that have either layout are read as well. The third distribution,
the original off meshes, is a folder of class folders and read by `data.folder`.
"""

from pathlib import Path

import h5py
import numpy as np

from e3dsnn_jax.data.cache import CloudSource
from e3dsnn_jax.data.clouds import PointCloud, Split, unit_normals
from e3dsnn_jax.data.points import read_points_file
from e3dsnn_jax.data.shards import (
    CLASS_FILE,
    check_labels,
    number_classes,
    read_class_names,
)


def is_resampled(root: Path) -> bool:
    """Whether a folder has the layout of `modelnet40_normal_resampled`."""
    return any(root.glob("modelnet40_*.txt"))


def resampled_source(root: Path, split: Split) -> CloudSource:
    """`modelnet40_normal_resampled`: `<class>/<class>_<number>.txt`, x,y,z,nx,ny,nz.

    Raises:
      FileNotFoundError: If the list of the split or a file that it names is absent.
      ValueError: If a shape's class is not among the class names.
    """
    names_file = root / "modelnet40_shape_names.txt"
    class_names = read_class_names(names_file)
    if class_names is None:
        raise FileNotFoundError(f"{names_file}: absent, so the classes are unknown")
    list_file = root / f"modelnet40_{split}.txt"
    if not list_file.exists():
        raise FileNotFoundError(f"{list_file}: absent, so there is no {split} set")
    files, labels = [], []
    for number, line in enumerate(list_file.read_text().splitlines(), start=1):
        shape = line.strip()
        if not shape:
            continue
        kind = shape.rpartition("_")[0]
        if kind not in class_names:
            raise ValueError(
                f"{list_file}, line {number}: {shape!r} is of class {kind!r}, which "
                "modelnet40_shape_names.txt does not list"
            )
        files.append(root / kind / f"{shape}.txt")
        labels.append(class_names.index(kind))
        if not files[-1].exists():
            raise FileNotFoundError(
                f"{files[-1]}: absent but listed in {list_file}, line {number}"
            )
    return CloudSource(
        root, f"resampled-{split}", class_names, tuple(files), tuple(labels), read_shape
    )


def read_shape(path: Path, label: int) -> list[PointCloud]:
    """The one cloud of a file that holds one shape."""
    return [read_points_file(path, label=label)]


def hdf5_files(root: Path, split: Split) -> list[Path]:
    """The files that `<split>_files.txt` lists, else all whose name has the split.

    Raises:
      FileNotFoundError: If a listed file is absent.
    """
    list_file = root / f"{split}_files.txt"
    if not list_file.exists():
        found = (path for path in root.glob("*.h5") if split in path.stem)
        return sorted(found, key=lambda path: (len(path.name), path))
    files = []
    for line in list_file.read_text().split():
        # The published lists name the files relative to a folder of their author's.
        files.append(root / Path(line).name)
        if not files[-1].exists():
            raise FileNotFoundError(f"{files[-1]}: absent but listed in {list_file}")
    return files


def hdf5_source(root: Path, split: Split) -> CloudSource:
    """`modelnet40_ply_hdf5_2048`: `data` [clouds, points, 3], `label`, maybe `normal`.

    Raises:
      FileNotFoundError: If no file of the split is found.
      ValueError: If a file is broken.
    """
    files = hdf5_files(root, split)
    if not files:
        raise FileNotFoundError(
            f"{root}: neither {split}_files.txt nor *{split}*.h5, so there is no "
            f"{split} set"
        )
    class_names = read_class_names(root / CLASS_FILE)
    if class_names is None:
        both = [*hdf5_files(root, "train"), *hdf5_files(root, "test")]
        class_names = number_classes(_read_hdf5(path, ["label"])[0] for path in both)
    return CloudSource(
        root,
        f"hdf5-{split}",
        class_names,
        tuple(files),
        (-1,) * len(files),
        read_hdf5_clouds,
    )


def read_hdf5_clouds(path: Path, label: int = -1) -> list[PointCloud]:
    """All clouds of an HDF5 file, called path[index].

    Args:
      path: The file.
      label: Not used: the file holds the labels.

    Raises:
      ValueError: If the file is broken, lacks an array, or its arrays do not match.
    """
    del label
    points, labels, normals = _read_hdf5(path, ["data", "label", "normal"])
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(
            f"{path}: data has shape {points.shape}, expected (clouds, points, 3)"
        )
    if len(labels) != len(points):
        raise ValueError(f"{path}: {len(points)} clouds but {len(labels)} labels")
    if normals.size and normals.shape != points.shape:
        raise ValueError(
            f"{path}: normal has shape {normals.shape} but data has {points.shape}"
        )
    clouds = []
    for index, (rows, kind) in enumerate(zip(points, labels, strict=True)):
        name = f"{path}[{index}]"
        unit = None
        if normals.size:
            unit = unit_normals(normals[index].astype(np.float32), name)
        clouds.append(PointCloud(rows.astype(np.float32), unit, int(kind), name))
    return clouds


def _read_hdf5(path: Path, keys: list[str]) -> list[np.ndarray]:
    """Arrays of an HDF5 file; an absent `normal` is empty, labels are flat."""
    try:
        with h5py.File(path) as file:
            present = list(file)
            arrays = {key: np.asarray(file[key]) for key in keys if key in file}
    except FileNotFoundError:
        raise
    except Exception as error:  # h5py has no error of its own
        raise ValueError(
            f"{path}: cannot be read as HDF5: {error}; it may be cut short, get it "
            "again"
        ) from error
    arrays.setdefault("normal", np.zeros((0, 0, 3), np.float32))
    for key in keys:
        if key not in arrays:
            raise ValueError(
                f"{path}: no array called {key}, only {', '.join(present) or 'none'}"
            )
    if "label" in arrays:
        arrays["label"] = check_labels(arrays["label"], path)
    return [arrays[key] for key in keys]
