"""Data sets in npz shards: `train_*.npz`, `test_*.npz` and `shape_names.txt`.

A shard holds `points` [clouds, points, 3] and `label` [clouds], and may hold `normals`
[clouds, points, 3] and `name` [clouds]. Floating point arrays are taken as they are;
int16 points stand for multiples of 1/32767 and int8 normals for multiples of 1/127.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int

from e3dsnn_jax.data.cache import CloudSource
from e3dsnn_jax.data.clouds import (
    PointCloud,
    Split,
    check_cloud,
    check_index,
    unit_normals,
)
from e3dsnn_jax.data.points import decode
from e3dsnn_jax.npz import load_npz

CLASS_FILE = "shape_names.txt"
"""File with one class name a line, in the order of the labels."""


@dataclass(frozen=True, eq=False)
class ShardClouds:
    """The clouds of shards, kept in memory as they are stored; see `ShapeDataset`."""

    class_names: tuple[str, ...]
    points: tuple[np.ndarray, ...]
    """Of each shard, [clouds, points, 3], int16 or floating point."""
    normals: tuple[np.ndarray | None, ...]
    """Of each shard, [clouds, points, 3], int8 or floating point."""
    labels: Int[np.ndarray, " clouds"]
    """The label of every cloud."""
    names: tuple[str, ...]
    """The name of every cloud."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        position = check_index(index, len(self))
        ends = np.cumsum([len(points) for points in self.points])
        shard = int(np.searchsorted(ends, position, side="right"))
        row = position - int(ends[shard])  # negative: counted from the shard's end
        name, normals = self.names[position], self.normals[shard]
        points = decode(self.points[shard][row], 32767)
        if normals is not None:
            normals = decode(normals[row], 127)
            if normals.shape == points.shape:  # else `check_cloud` refuses the cloud
                normals = unit_normals(normals, name)
        return PointCloud(points, normals, int(self.labels[position]), name)


def shard_files(root: Path, split: Split) -> list[Path]:
    """The shards of a split, shard 10 after shard 2."""
    return sorted(root.glob(f"{split}_*.npz"), key=lambda path: (len(path.name), path))


def open_shards(root: Path, split: Split) -> ShardClouds:
    """Opens the shards of a split and checks every cloud in them.

    Args:
      root: Folder with `train_*.npz`, `test_*.npz` and perhaps `shape_names.txt`. Where
        that is absent, the classes are numbered up to the largest label of any shard.
      split: Which shards to read.

    Returns:
      The clouds, called path[index] and then by their own name.

    Raises:
      FileNotFoundError: If there is no shard of the split.
      ValueError: If a file is broken, its arrays disagree or a cloud is malformed; the
        message names the file and the reason.
    """
    files = shard_files(root, split)
    if not files:
        raise FileNotFoundError(f"{root}: no {split}_*.npz, so there is no {split} set")
    shards = [_read_shard(path) for path in files]
    class_names = read_class_names(root / CLASS_FILE)
    if class_names is None:
        others = shard_files(root, "test" if split == "train" else "train")
        class_names = number_classes(
            shard["label"] for shard in (*shards, *map(_read_shard, others))
        )
    clouds = _join(class_names, files, shards)
    for position in range(len(clouds)):
        check_cloud(clouds[position], num_classes=len(class_names))
    return clouds


def shards_source(
    root: Path, split: Split, class_names: tuple[str, ...]
) -> CloudSource:
    """The same clouds as those of `open_shards`, to be thinned out and cached."""
    files = tuple(shard_files(root, split))
    labels = (-1,) * len(files)
    return CloudSource(
        root, f"shards-{split}", class_names, files, labels, read_shard_clouds
    )


def read_shard_clouds(path: Path, label: int = -1) -> list[PointCloud]:
    """All clouds of a shard; `label` is not used, as the shard holds the labels."""
    del label
    clouds = _join((), [path], [_read_shard(path)])
    return [clouds[position] for position in range(len(clouds))]


def _join(
    class_names: tuple[str, ...], files: list[Path], shards: list[dict[str, np.ndarray]]
) -> ShardClouds:
    return ShardClouds(
        class_names,
        tuple(shard["points"] for shard in shards),
        tuple(shard.get("normals") for shard in shards),
        np.concatenate([shard["label"] for shard in shards]),
        tuple(
            f"{path}[{row}] {name}".rstrip()
            for path, shard in zip(files, shards, strict=True)
            for row, name in enumerate(shard["name"].tolist())
        ),
    )


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """The class names of a text file, one a line; None if there is no such file."""
    if not path.exists():
        return None
    lines = [line.strip() for line in path.read_text().splitlines()]
    return tuple(line for line in lines if line)


def number_classes(labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """Names for classes that have none: class_0 to class_<largest label>."""
    largest = max(int(array.max()) for array in labels if array.size)
    return tuple(f"class_{label}" for label in range(largest + 1))


def _read_shard(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard, `label` flat and `name` present."""
    arrays = load_npz(path)
    missing = [name for name in ("points", "label") if name not in arrays]
    if missing:
        raise ValueError(
            f"{path}: no array called {' or '.join(missing)}, only "
            f"{', '.join(arrays) or 'none at all'}"
        )
    arrays["label"] = check_labels(arrays["label"], path)
    arrays.setdefault("name", np.full(len(arrays["label"]), ""))
    for name in ("points", "normals"):
        shape = arrays[name].shape if name in arrays else (0, 0, 3)
        if len(shape) != 3 or shape[2] != 3:
            raise ValueError(
                f"{path}: {name} have shape {shape}, expected (clouds, points, 3)"
            )
    lengths = {
        name: len(arrays[name])
        for name in ("points", "label", "normals", "name")
        if name in arrays
    }
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"{path}: the arrays differ in their number of clouds: {found}"
        )
    return arrays


def check_labels(labels: np.ndarray, path: Path) -> Int[np.ndarray, " clouds"]:
    """Labels as a flat array; files hold them as [clouds] or [clouds, 1].

    Raises:
      ValueError: If they are no integers or have another shape.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: label is {labels.dtype} of shape {labels.shape}, expected one "
            "integer a cloud"
        )
    return labels.astype(np.int64)
