"""Many clouds in three files that are memory-mapped, so that they take no memory.

`<stem>.points.npy` and `<stem>.normals.npy` hold the rows of all clouds one after
another; `<stem>.json` says how many rows each cloud has, its label, its name, and the
checksums of everything. Each file appears under its name only when it is complete, the
json last.
"""

import contextlib
import dataclasses
import functools
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.data.clouds import PointCloud, check_index
from e3dsnn_jax.whole_file import whole_file

POINTS, NORMALS, INDEX = ".points.npy", ".normals.npy", ".json"


class PackError(Exception):
    """The files of a packed data set cannot be written where they should be."""


class CloudIndex(NamedTuple):
    """What is known of packed clouds besides their coordinates, as the json holds it.

    Attributes:
      class_names: One name a class.
      sizes: Points of each cloud.
      labels: Class of each cloud.
      has_normals: Whether each cloud has normals.
      names: Name of each cloud.
      checksums: CRC-32 of the rows of the points and of those of the normals.
    """

    class_names: list[str]
    sizes: list[int]
    labels: list[int]
    has_normals: list[bool]
    names: list[str]
    checksums: list[int]


@dataclasses.dataclass(frozen=True, eq=False)
class PackedClouds:
    """Clouds that lie one after another in files or arrays; see `ShapeDataset`.

    Pickled, a data set in files sends their path and no coordinates.
    """

    index: CloudIndex
    source: Path | tuple[np.ndarray, np.ndarray]
    """The files' path without its ending, or the rows of the points and normals."""

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
        return _map_rows(self.source, POINTS), _map_rows(self.source, NORMALS)

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


def pack_in_memory(
    clouds: Iterable[PointCloud], class_names: tuple[str, ...]
) -> PackedClouds:
    """Keeps clouds in two arrays."""
    index = CloudIndex(list(class_names), [], [], [], [], [])
    points, normals = ([np.zeros((0, 3), np.float32)] for _ in range(2))
    for cloud in clouds:
        _append(index, cloud)
        points.append(cloud.points)
        if cloud.normals is not None:
            normals.append(cloud.normals)
    return PackedClouds(index, (np.concatenate(points), np.concatenate(normals)))


def pack_in_files(
    clouds: Iterable[PointCloud], class_names: tuple[str, ...], stem: Path
) -> PackedClouds:
    """Writes clouds one by one, so that they need not fit in memory, and opens them.

    Raises:
      PackError: If the files cannot be written; nothing half-written is left behind.
    """
    index = CloudIndex(list(class_names), [], [], [], [], [])
    with contextlib.ExitStack() as stack:
        with _writing():
            stem.parent.mkdir(parents=True, exist_ok=True)
            points = stack.enter_context(_row_file(_path(stem, POINTS)))
            normals = stack.enter_context(_row_file(_path(stem, NORMALS)))
        for cloud in clouds:
            _append(index, cloud)
            with _writing():
                points.append(cloud.points)
                if cloud.normals is not None:
                    normals.append(cloud.normals)
        with _writing():
            index.checksums.extend([points.finish(), normals.finish()])
            stack.close()  # the files get their names before the index speaks of them
            _write_index(index, stem)
    return PackedClouds(index, stem)


def load_packed(stem: Path) -> PackedClouds | None:
    """Opens packed clouds, or returns None if they are absent, cut short or altered.

    Every byte is read once for its checksum, about a second a gigabyte.
    """
    try:
        checksum, _, body = _path(stem, INDEX).read_bytes().partition(b"\n")
        if int(checksum) != zlib.crc32(body):
            return None
        clouds = PackedClouds(CloudIndex(**json.loads(body)), stem)
        for rows, expected in zip(clouds.rows, clouds.index.checksums, strict=True):
            if _checksum(rows) != expected:
                return None
    except Exception:  # a damaged header fails in many ways
        return None
    return clouds


def _append(index: CloudIndex, cloud: PointCloud) -> None:
    index.sizes.append(len(cloud.points))
    index.labels.append(int(cloud.label))
    index.has_normals.append(cloud.normals is not None)
    index.names.append(cloud.name)


def _checksum(rows: np.ndarray) -> int:
    value = 0
    for start in range(0, len(rows), 1 << 20):  # not all of it in memory at once
        value = zlib.crc32(
            np.ascontiguousarray(rows[start : start + (1 << 20)]).data, value
        )
    return value


def _path(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _map_rows(stem: Path, ending: str) -> Float[np.ndarray, "rows 3"]:
    path = _path(stem, ending)
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    # The checksum is of the bytes alone, not of what they stand for.
    if by_column or dtype != np.dtype("<f4") or shape[1:] != (3,):
        raise ValueError(f"{path}: holds {shape} of {dtype}, not rows of 3 float32")
    if shape[0] == 0:  # an empty array cannot be mapped
        return np.zeros(shape, dtype)
    return np.load(path, mmap_mode="r")


@contextlib.contextmanager
def _writing():
    """Turns errors of the file system into PackError, and no others."""
    try:
        yield
    except OSError as error:
        raise PackError(str(error)) from error


class _RowFile:
    """An npy file of float32 rows that grows."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._count, self._checksum = 0, 0
        self._header_end = self._write_header()

    def _write_header(self) -> int:
        self._file.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, 3)}
        # NumPy leaves room in it for the first axis to grow to any length.
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def append(self, rows: Float[np.ndarray, "points 3"]) -> None:
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        self._file.write(data)
        self._count += len(rows)
        self._checksum = zlib.crc32(data, self._checksum)

    def finish(self) -> int:
        """Writes the final header; returns the checksum of the rows."""
        if self._write_header() != self._header_end:
            raise OSError(f"the header of {self._file.name} outgrew its place")
        return self._checksum


@contextlib.contextmanager
def _row_file(path: Path) -> Iterator[_RowFile]:
    with whole_file(path) as unfinished:
        file = unfinished.open("xb")
        try:
            yield _RowFile(file)
        except BaseException:
            # What is left in its buffer may fail once more, and hide the first error.
            with contextlib.suppress(OSError):
                file.close()
            raise
        file.close()


def _write_index(index: CloudIndex, stem: Path) -> None:
    body = json.dumps(index._asdict()).encode()
    path = _path(stem, INDEX)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(b"%d\n" % zlib.crc32(body) + body)
