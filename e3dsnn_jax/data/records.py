"""Packed data sets: clouds as records in shards, read at random.

A folder holds, for each split, `<split>-00000-of-00008.arrayrecord` and so on, and
`<split>.index`, which is written last. A shard is an ArrayRecord file without
compression and with one record a group. A record is one cloud, a msgpack map:

* `points`: float32, little-endian, x y z of each point, in the units of the source;
* `normals`: the same for the normals, or nil;
* `label`: class index, -1 where unknown;
* `name`: what error messages call the cloud.

The index is a line with the CRC-32 of the rest, and the rest is the JSON of
`RecordIndex`. It holds the CRC-32 of every record, so that no cloud of another file,
place or time passes for the one that was packed there.
"""

import functools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import msgpack
import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.data.clouds import PointCloud, Split, check_index

FORMAT = 1
"""Raised whenever older versions could not read the files, or read them wrongly."""

INDEX, SHARD = ".index", ".arrayrecord"

MOST_OPEN = 256
"""Shards that a data set keeps open at a time; a process may often open 1024 files."""


class RecordIndex(NamedTuple):
    """What is known of packed clouds without reading a record.

    Attributes:
      format: `FORMAT` of the version that wrote the files.
      source: Digest of the files that were packed.
      class_names: One name a class.
      voxel_size: Edge of the voxels, in units of the normalised cloud.
      points_per_voxel: Most points of a voxel that were kept, None if all were.
      shard_clouds: Clouds of each shard; cloud numbers go on from shard to shard.
      shard_bytes: Length of each shard.
      points: Number of points of each cloud.
      voxels: Number of voxels of each cloud, normalised and not augmented.
      labels: Class of each cloud.
      checksums: CRC-32 of each record.
    """

    format: int
    source: str
    class_names: list[str]
    voxel_size: float
    points_per_voxel: int | None
    shard_clouds: list[int]
    shard_bytes: list[int]
    points: list[int]
    voxels: list[int]
    labels: list[int]
    checksums: list[int]


@dataclass(frozen=True, eq=False)
class RecordClouds:
    """The clouds of one split of a packed folder; see `ShapeDataset`.

    Pickled, it sends its path alone: index and shards are opened where they are used.
    """

    folder: Path
    split: Split
    checksum: int
    """CRC-32 of the index, so that a process that opens it later has the same one."""

    @functools.cached_property
    def index(self) -> RecordIndex:
        """What is known of the clouds without reading them."""
        index, checksum = read_index(self.folder, self.split)
        if checksum != self.checksum:
            raise ValueError(
                f"{index_path(self.folder, self.split)}: has changed since it was "
                "opened; start again"
            )
        return index

    @functools.cached_property
    def _open_shard(self) -> Callable[[int], Any]:
        """Opens the records of a shard, and keeps those that were used last open."""
        # Imported here: it brings absl's flags, of no use where nothing is packed.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        def open_shard(shard: int) -> ArrayRecordDataSource:
            clouds = self.index.shard_clouds[shard]
            whole: Any = _Shard(str(self.shards[shard]), 0, clouds, clouds)
            return ArrayRecordDataSource([whole])

        return functools.lru_cache(MOST_OPEN)(open_shard)

    @property
    def shards(self) -> list[Path]:
        """The files that hold the records."""
        count = len(self.index.shard_clouds)
        return [shard_path(self.folder, self.split, i, count) for i in range(count)]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class."""
        return tuple(self.index.class_names)

    @property
    def voxel_size(self) -> float:
        """Edge of the voxels that `voxels` counts, in units of the normalised cloud."""
        return self.index.voxel_size

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " clouds"]:
        """The label of every cloud."""
        return np.array(self.index.labels, np.int32)

    @functools.cached_property
    def voxels(self) -> Int[np.ndarray, " clouds"]:
        """The number of voxels of every cloud, normalised and not augmented."""
        return np.array(self.index.voxels, np.int64)

    @functools.cached_property
    def points(self) -> Int[np.ndarray, " clouds"]:
        """The number of points of every cloud."""
        return np.array(self.index.points, np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "split": self.split,
            "checksum": self.checksum,
        }

    def __len__(self) -> int:
        return len(self.index.labels)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        position = check_index(index, len(self))
        shard = int(np.searchsorted(self._ends, position, side="right"))
        record = position - int(self._ends[shard]) + self.index.shard_clouds[shard]
        try:
            data = self._open_shard(shard)[record]
            if zlib.crc32(data) != self.index.checksums[position]:
                raise ValueError("it does not have its checksum")
        except Exception as error:  # of several kinds, and none names the record
            raise ValueError(
                f"{self.shards[shard]}: cannot read record {record}, cloud {position} "
                f"of {self.split}: {str(error) or type(error).__name__}; if the file "
                "is damaged, pack the data again"
            ) from error
        return decode_cloud(data)

    @functools.cached_property
    def _ends(self) -> Int[np.ndarray, " shards"]:
        """The number after that of the last cloud of each shard."""
        return np.cumsum(np.array(self.index.shard_clouds, np.int64))


class _Shard(NamedTuple):
    """What ArrayRecord needs in order not to open a file before it is read."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def shard_path(folder: Path, split: Split, shard: int, num_shards: int) -> Path:
    """Where a shard of a split lies."""
    return folder / f"{split}-{shard:05}-of-{num_shards:05}{SHARD}"


def index_path(folder: Path, split: Split) -> Path:
    """Where the index of a split lies."""
    return folder / f"{split}{INDEX}"


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed clouds, or what is left of them."""
    return any(
        index_path(folder, split).exists() or any(folder.glob(f"{split}-*-of-*{SHARD}"))
        for split in ("train", "test")
    )


def open_records(folder: Path, split: Split) -> RecordClouds:
    """Opens a split of a packed folder; reads its index, and no cloud.

    Raises:
      FileNotFoundError: If the split or one of its shards is absent.
      ValueError: If the index is damaged, or a shard is longer or shorter than it was.
    """
    index, checksum = read_index(folder, split)
    clouds = RecordClouds(folder, split, checksum)
    for path, size in zip(clouds.shards, index.shard_bytes, strict=True):
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: absent, but {split}{INDEX} lists it; pack the data again"
            )
        found = path.stat().st_size
        if found != size:
            raise ValueError(
                f"{path}: has {found} bytes, but {split}{INDEX} speaks of {size}; it "
                "may be cut short, pack the data again"
            )
    return clouds


def read_index(folder: Path, split: Split) -> tuple[RecordIndex, int]:
    """The index of a split, and its checksum.

    Raises:
      FileNotFoundError: If there is none, as after packing that was stopped.
      ValueError: If it is damaged or of another version.
    """
    path = index_path(folder, split)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: absent, so there is no {split} set; if packing was stopped, run "
            "`e3dsnn pack` again"
        )
    head, _, body = path.read_bytes().partition(b"\n")
    checksum = zlib.crc32(body)
    if head != b"%d" % checksum:
        raise ValueError(f"{path}: does not have its checksum; pack the data again")
    fields = json.loads(body)
    if fields.get("format") != FORMAT:
        raise ValueError(
            f"{path}: is of format {fields.get('format')}, this version reads format "
            f"{FORMAT}; pack the data again"
        )
    return RecordIndex(**fields), checksum


def encode_cloud(cloud: PointCloud) -> bytes:
    """The record of a cloud."""
    points, normals, label, name = cloud
    fields = {
        "points": _to_bytes(points),
        "normals": None if normals is None else _to_bytes(normals),
        "label": int(label),
        "name": name,
    }
    # As Python itself: a file's name may hold bytes that are no UTF-8.
    record = msgpack.packb(fields, unicode_errors="surrogateescape")
    assert record is not None
    return record


def decode_cloud(record: bytes) -> PointCloud:
    """The cloud of a record, in arrays of its own."""
    fields = msgpack.unpackb(record, unicode_errors="surrogateescape")
    normals = fields["normals"]
    return PointCloud(
        _to_rows(fields["points"]),
        None if normals is None else _to_rows(normals),
        fields["label"],
        fields["name"],
    )


def _to_bytes(rows: Float[np.ndarray, "points 3"]) -> bytes:
    return np.ascontiguousarray(rows, "<f4").tobytes()


def _to_rows(data: bytes) -> Float[np.ndarray, "points 3"]:
    return np.frombuffer(data, "<f4").reshape(-1, 3).astype(np.float32)
