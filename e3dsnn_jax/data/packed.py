"""Many clouds in a few files that are memory-mapped, so that they take no memory.

Three files make a packed data set: `<stem>.points.npy` and `<stem>.normals.npy` hold
the rows of all clouds one after another, and `<stem>.json` says where each cloud
begins, its label, its name, and the checksums of everything. Each file appears under
its name only when complete, the json last.
"""

import dataclasses
import functools
import json
import os
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.data.clouds import PointCloud, check_index

POINTS, NORMALS, INDEX = ".points.npy", ".normals.npy", ".json"


class PackError(OSError):
    """The files of a packed data set cannot be written here."""


class CloudIndex(NamedTuple):
    """What is known of packed clouds besides their coordinates.

    Attributes:
      class_names: One name a class.
      sizes: Points of each cloud.
      labels: Class of each cloud.
      has_normals: Whether each cloud has normals.
      names: Name of each cloud.
      checksums: CRC-32 of the rows of the points and of the normals.
    """

    class_names: list[str]
    sizes: list[int]
    labels: list[int]
    has_normals: list[bool]
    names: list[str]
    checksums: list[int]


@dataclasses.dataclass(frozen=True)
class PackedClouds:
    """Clouds that lie one after another in files or arrays; see `ShapeDataset`.

    Pickled, a data set in files sends their paths and no coordinates.
    """

    index: CloudIndex
    source: Path | tuple[np.ndarray, np.ndarray]
    """The files' path without its endings, or the rows of points and normals."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""
        return tuple(self.index.class_names)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " clouds"]:
        """The label of every cloud."""
        return np.array(self.index.labels, np.int32)

    @functools.cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of all points, and those of all normals."""
        if not isinstance(self.source, Path):
            return self.source
        return _map(self.source, POINTS), _map(self.source, NORMALS)

    @functools.cached_property
    def starts(self) -> tuple[Int[np.ndarray, " clouds"], Int[np.ndarray, " clouds"]]:
        """The first row of each cloud among the points, and among the normals."""
        sizes = np.array(self.index.sizes, np.int64)
        normals = sizes * np.array(self.index.has_normals, bool)
        return np.cumsum(sizes) - sizes, np.cumsum(normals) - normals

    def __getstate__(self) -> dict:
        return {"index": self.index, "source": self.source}

    def __len__(self) -> int:
        return len(self.index.labels)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        position = check_index(index, len(self))
        size = self.index.sizes[position]
        points, normals = (
            np.array(rows[starts[position] : starts[position] + size])
            for rows, starts in zip(self.rows, self.starts, strict=True)
        )
        return PointCloud(
            points,
            normals if self.index.has_normals[position] else None,
            self.index.labels[position],
            self.index.names[position],
        )


def _map(stem: Path, ending: str) -> Float[np.ndarray, "rows 3"]:
    path = _with_ending(stem, ending)
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # an array without rows cannot be mapped
        return np.load(path)


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def pack_in_memory(
    clouds: Iterable[PointCloud], class_names: tuple[str, ...]
) -> PackedClouds:
    """Keeps clouds in two arrays."""
    index = CloudIndex(list(class_names), [], [], [], [], [0, 0])
    rows: tuple[list, list] = ([np.zeros((0, 3), np.float32)],) * 2
    rows = (list(rows[0]), list(rows[1]))
    for cloud in clouds:
        _append(index, cloud)
        rows[0].append(cloud.points)
        if cloud.normals is not None:
            rows[1].append(cloud.normals)
    return PackedClouds(index, (np.concatenate(rows[0]), np.concatenate(rows[1])))


def pack_in_files(
    clouds: Iterable[PointCloud], class_names: tuple[str, ...], stem: Path
) -> PackedClouds:
    """Writes clouds to `stem`'s files one by one and opens the result.

    Raises:
      PackError: If the files cannot be written; none is left behind half-written.
    """
    index = CloudIndex(list(class_names), [], [], [], [], [])
    points = normals = None
    try:
        with _writing():
            stem.parent.mkdir(parents=True, exist_ok=True)
            points = _RowFile(stem.parent)
            normals = _RowFile(stem.parent)
        for cloud in clouds:
            _append(index, cloud)
            with _writing():
                points.append(cloud.points)
                if cloud.normals is not None:
                    normals.append(cloud.normals)
        with _writing():
            for file, ending in ((points, POINTS), (normals, NORMALS)):
                index.checksums.append(file.checksum)
                file.finish(_with_ending(stem, ending))
            _write_index(index, _with_ending(stem, INDEX))
    finally:
        for file in (points, normals):
            if file is not None:
                file.discard()
    return PackedClouds(index, stem)
