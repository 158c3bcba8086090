"""Clouds read once and kept as one memory-mapped file beside the data.

A cache is two files: `<name>-<key>.npy` holds the rows (x, y, z and, where any cloud has
them, the normal) of all clouds one after another, and `<name>-<key>.json` says where
each cloud begins, its label and its name, and the checksums of both. The key digests
the names, sizes and times of the source files, the options and `FORMAT`; a cache that
does not match, is cut short or fails its checksum is built anew.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from e3dsnn_jax.data.clouds import PointCloud, check_cloud, check_index
from e3dsnn_jax.data.sampling import thin_out

FORMAT = 1
"""Version of the files' layout; another number makes every older cache stale."""

FOLDER = ".e3dsnn_cache"
"""Folder of the caches inside a data folder."""

MANY_FILES = 256
"""From this many source files on, several processes read them."""


class CloudSource(NamedTuple):
    """What a cache is built from.

    Attributes:
      root: The data folder, or None if the clouds come from no folder.
      name: First part of the cache's file names: the split and what it was made of.
      class_names: One name a class.
      files: Source files; each gives one or more clouds.
      labels: The label of each file's clouds, or -1 if `read` knows them.
      read: Reads the clouds of one file, given the file and its label. It can be
        pickled, and gives the same clouds every time.
    """

    root: Path | None
    name: str
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    read: Callable[[Path, int], list[PointCloud]]


class _Index(NamedTuple):
    """What the json file of a cache holds."""

    class_names: tuple[str, ...]
    starts: tuple[int, ...]
    labels: tuple[int, ...]
    has_normals: tuple[bool, ...]
    names: tuple[str, ...]
    rows_checksum: int


@dataclasses.dataclass(frozen=True)
class PackedClouds:
    """Clouds in one array, on disk or in memory; see `ShapeDataset`.

    When pickled, a dataset on disk sends only the path of its rows.
    """

    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " clouds"]
    starts: Int[np.ndarray, " boundaries"]
    has_normals: tuple[bool, ...]
    names: tuple[str, ...]
    source: Path | np.ndarray
    """The npy file, or the rows themselves."""

    @functools.cached_property
    def rows(self) -> Float[np.ndarray, "rows columns"]:
        """Coordinates and normals of all clouds, one after another."""
        if isinstance(self.source, Path):
            return np.load(self.source, mmap_mode="r")
        return self.source

    def __getstate__(self) -> dict:
        return {key: self.__dict__[key] for key in self.__dataclass_fields__}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        position = check_index(index, len(self))
        rows = self.rows[self.starts[position] : self.starts[position + 1]]
        points, normals = np.array(rows[:, :3]), None
        if self.has_normals[position]:
            normals = np.array(rows[:, 3:])
        label = int(self.labels[position])
        return PointCloud(points, normals, label, self.names[position])


def cached(source: CloudSource, *, points_per_cloud: int | None = None) -> PackedClouds:
    """The clouds of a source, from its cache if that is sound, else read and cached.

    The cache lies in the data folder, or, where that cannot be written, in the user's
    cache folder (`XDG_CACHE_HOME`, by default `~/.cache`); where neither can, the
    clouds stay in memory. Each step down is announced on stderr.

    Args:
      source: What to read.
      points_per_cloud: If given, clouds with more points are thinned out to this many
        by farthest point sampling before they are stored.

    Raises:
      ValueError: If a cloud is malformed.
      OSError: If a source file cannot be read.
    """
    key = _key(source, points_per_cloud)
    stem = f"{source.name}-{points_per_cloud or 'all'}"
    folders = _folders(source.root)
    for folder in folders:
        found = _load(folder / f"{stem}-{key}")
        if found is not None:
            return found
    for folder in folders:
        try:
            return _build(source, points_per_cloud, folder, stem, key)
        except _UnwritableError as error:
            print(
                f"warning: cannot keep a cache in {folder} ({error}); "
                "trying the next place",
                file=sys.stderr,
            )
    print(
        f"warning: no place for a cache; {source.name} stays in memory and will be "
        "read again next time; set XDG_CACHE_HOME to a folder that can be written",
        file=sys.stderr,
    )
    clouds = list(_clouds(source, points_per_cloud))
    index = _index(source.class_names, clouds)
    rows = [_row_block(cloud, any(index.has_normals)) for cloud in clouds]
    return _packed(index, np.concatenate(rows))


def _key(source: CloudSource, points_per_cloud: int | None) -> str:
    root = source.root or Path()
    described: list[object] = [FORMAT, points_per_cloud, source.class_names]
    for file, label in zip(source.files, source.labels, strict=True):
        status = file.stat()
        described.append(
            (os.path.relpath(file, root), status.st_size, status.st_mtime_ns, label)
        )
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _folders(root: Path | None) -> list[Path]:
    """Where the cache may lie, best place first."""
    folders = [] if root is None else [root / FOLDER]
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        user = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home folder
        return folders
    user /= "e3dsnn_jax"
    if root is None:
        return [user / "embedded"]
    place = str(root.resolve())
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    return [*folders, user / f"{Path(place).name}-{digest}"]


def _clouds(
    source: CloudSource, points_per_cloud: int | None
) -> Iterator[PointCloud]:
    """All clouds in the order of the files, checked and thinned out."""
    read = functools.partial(
        _read_one, source.read, len(source.class_names), points_per_cloud
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with concurrent.futures.ProcessPoolExecutor(
        cores,
        # Forking a process that runs JAX's threads can deadlock.
        mp_context=multiprocessing.get_context("spawn"),
    ) as pool:
        # A daemon (a loader's worker) may not have children of its own.
        alone = multiprocessing.current_process().daemon or cores == 1
        if alone or len(source.files) < MANY_FILES:
            per_file = map(read, source.files, source.labels)
        else:
            per_file = pool.map(read, source.files, source.labels, chunksize=8)
        total = len(source.files)
        # disable=None: no bar where stderr is no terminal.
        quiet = None if total >= MANY_FILES else True
        label = f"reading {source.name}"
        for clouds in tqdm(per_file, label, total, disable=quiet):
            yield from clouds


def _read_one(
    read: Callable[[Path, int], list[PointCloud]],
    num_classes: int,
    points_per_cloud: int | None,
    file: Path,
    label: int,
) -> list[PointCloud]:
    clouds = read(file, label)
    for cloud in clouds:
        check_cloud(cloud, num_classes=num_classes)
    return [thin_out(cloud, points_per_cloud) for cloud in clouds]


def _row_block(cloud: PointCloud, with_normals: bool) -> Float[np.ndarray, "points _"]:
    """A cloud as rows; zeros stand where it alone lacks normals."""
    if not with_normals:
        return cloud.points
    normals = np.zeros_like(cloud.points) if cloud.normals is None else cloud.normals
    return np.concatenate([cloud.points, normals], axis=1)


def _index(
    class_names: tuple[str, ...], clouds: Sequence[PointCloud], checksum: int = 0
) -> _Index:
    sizes = [len(cloud.points) for cloud in clouds]
    return _Index(
        class_names,
        (0, *np.cumsum(sizes, dtype=np.int64).tolist()),
        tuple(cloud.label for cloud in clouds),
        tuple(cloud.normals is not None for cloud in clouds),
        tuple(cloud.name for cloud in clouds),
        checksum,
    )


def _packed(index: _Index, source: Path | np.ndarray) -> PackedClouds:
    return PackedClouds(
        index.class_names,
        np.array(index.labels, np.int32),
        np.array(index.starts, np.int64),
        index.has_normals,
        index.names,
        source,
    )
