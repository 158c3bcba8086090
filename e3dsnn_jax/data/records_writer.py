"""Writing packed data sets: what `e3dsnn pack` does; see `data.records`."""

import contextlib
import itertools
import json
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e3dsnn_jax.data.clouds import PointCloud, Split
from e3dsnn_jax.data.records import (
    FORMAT,
    INDEX,
    SHARD,
    RecordClouds,
    RecordIndex,
    encode_cloud,
    index_path,
    open_records,
    read_index,
    shard_path,
)
from e3dsnn_jax.data.records_groups import group_by_voxel, thin_voxels
from e3dsnn_jax.whole_file import naming, whole_file

# A reader that wants one cloud reads one group. Floats hardly shrink, and to unpack
# them would take longer than all the rest of reading.
_OPTIONS = "group_size:1,uncompressed"
# Chooses the points that thinning out keeps.
_SEED = 0


class PackSettings(NamedTuple):
    """How clouds become records."""

    voxel_size: float = 0.05
    """Edge of the voxels whose points lie side by side, in units of the normalised
    cloud."""
    points_per_voxel: int | None = None
    """Most points that are kept of a voxel; all if None."""
    clouds_per_shard: int = 1024
    """Clouds of a file; the last one holds what is left."""


def check_settings(settings: PackSettings) -> None:
    """Refuses settings that make no sense, naming the field and its value.

    Raises:
      ValueError: If a number is not positive.
    """
    if not 0 < settings.voxel_size < np.inf:
        raise ValueError(f"voxel_size must be positive, got {settings.voxel_size}")
    for field in ("points_per_voxel", "clouds_per_shard"):
        value = getattr(settings, field)
        if value is not None and value < 1:
            raise ValueError(f"{field} must be 1 or more, got {value}")


def write_records(
    clouds: Iterable[PointCloud],
    class_names: tuple[str, ...],
    folder: Path,
    split: Split,
    settings: PackSettings,
    *,
    source: str = "",
) -> RecordClouds:
    """Writes a split of a packed folder, one cloud at a time, and opens it.

    Every file gets its name when all clouds are written and have been read back, the
    index last; until then the split cannot be opened. What an earlier call for the
    same split left unfinished is removed, so only one may run at a time.

    Args:
      clouds: Valid clouds; they need not fit in memory.
      class_names: One name a class.
      folder: Where to write; made if it is absent.
      split: Which split the clouds are.
      settings: How clouds become records.
      source: Digest of what the clouds come from, for `find_records`.

    Raises:
      FileExistsError: If the split is there already.
      OSError: If a file cannot be written; nothing of this call is left then.
      ValueError: If the settings make no sense or a cloud cannot be cut into voxels.
    """
    check_settings(settings)
    if index_path(folder, split).exists():
        raise FileExistsError(
            f"{index_path(folder, split)}: is there already; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder, split)
    index = RecordIndex(
        format=FORMAT,
        source=source,
        class_names=list(class_names),
        voxel_size=settings.voxel_size,
        points_per_voxel=settings.points_per_voxel,
        **{name: [] for name in _LISTS},
    )
    unfinished: list[Path] = []
    try:
        rest = _prepare(clouds, settings, index)
        for first in rest:
            path = folder / f".{split}-{len(unfinished):05}.{uuid.uuid4().hex[:8]}.tmp"
            unfinished.append(path)
            others = itertools.islice(rest, settings.clouds_per_shard - 1)
            checksums = _write_shard(path, itertools.chain([first], others))
            index.checksums.extend(checksums)
            index.shard_clouds.append(len(checksums))
            index.shard_bytes.append(path.stat().st_size)
        for shard, path in enumerate(unfinished):
            final = shard_path(folder, split, shard, len(unfinished))
            with naming(final):
                os.replace(path, final)
        body = json.dumps(index._asdict()).encode()
        with whole_file(index_path(folder, split)) as path:
            path.write_bytes(b"%d\n" % zlib.crc32(body) + body)
    except BaseException:
        if not index_path(folder, split).exists():
            _remove_unfinished(folder, split)
        raise
    return open_records(folder, split)


_LISTS = ("shard_clouds", "shard_bytes", "points", "voxels", "labels", "checksums")


def find_records(
    class_names: tuple[str, ...],
    folder: Path,
    split: Split,
    settings: PackSettings,
    *,
    source: str,
) -> RecordClouds | None:
    """The split if it has been packed before in the same way; None if it has not been.

    Raises:
      FileExistsError: If something else lies in the folder: other files, or the same
        split of other data or with other settings.
      ValueError: If the index of the split is damaged.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: a file, not a folder; choose another name")
    for path in sorted(folder.iterdir()):
        if not _ours(path.name):
            raise FileExistsError(
                f"{folder}: holds {path.name}, which is no part of a packed data set; "
                "choose another folder"
            )
    if not index_path(folder, split).exists():
        return None
    index, _ = read_index(folder, split)
    largest = max(index.shard_clouds, default=0)
    wanted = {
        "source": source,
        "class_names": list(class_names),
        "voxel_size": settings.voxel_size,
        "points_per_voxel": settings.points_per_voxel,
        "clouds a shard": min(settings.clouds_per_shard, len(index.labels)),
    }
    present = index._asdict() | {"clouds a shard": largest}
    for field, value in wanted.items():
        if present[field] != value:
            what = (
                "other data"
                if field in ("source", "class_names")
                else (f"{field} {present[field]}, not {value}")
            )
            raise FileExistsError(
                f"{folder}: holds {split} packed before with {what}; remove it or "
                "choose another folder"
            )
    return open_records(folder, split)


def _prepare(
    clouds: Iterable[PointCloud], settings: PackSettings, index: RecordIndex
) -> Iterator[bytes]:
    """The record of each cloud; what is known of it is added to the index."""
    for position, cloud in enumerate(clouds):
        if settings.points_per_voxel is not None:
            cloud = thin_voxels(
                cloud,
                voxel_size=settings.voxel_size,
                points_per_voxel=settings.points_per_voxel,
                rng=np.random.default_rng((_SEED, position)),
            )
        cloud, voxels = group_by_voxel(cloud, voxel_size=settings.voxel_size)
        index.points.append(len(cloud.points))
        index.voxels.append(voxels)
        index.labels.append(int(cloud.label))
        yield encode_cloud(cloud)


def _write_shard(path: Path, records: Iterable[bytes]) -> list[int]:
    """Writes records into a file and reads them back; returns their checksums."""
    from array_record.python import (
        array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
    )

    checksums = []
    with _writing(path):
        writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
    try:
        for record in records:
            checksums.append(zlib.crc32(record))
            with _writing(path):
                writer.write(record)
    except BaseException:
        with contextlib.suppress(Exception):  # it would hide the first error
            writer.close()
        raise
    with _writing(path):
        # The writer keeps errors to itself until it closes, and perhaps then too.
        writer.close()
        reader = array_record_module.ArrayRecordReader(str(path))
        found = [zlib.crc32(reader.read([i])[0]) for i in range(reader.num_records())]
        reader.close()
        if found != checksums:
            raise RuntimeError("it does not hold what was written")
    return checksums


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns ArrayRecord's errors into those of a file that cannot be written."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error


def _ours(name: str) -> bool:
    return any(
        re.fullmatch(pattern, name)
        for split in ("train", "test")
        for pattern in (re.escape(split + INDEX), *_unfinished_names(split))
    )


def _unfinished_names(split: Split) -> tuple[str, ...]:
    """Patterns of the files that a split may consist of before it has an index."""
    return (
        rf"{split}-\d{{5,}}-of-\d{{5,}}{re.escape(SHARD)}",
        rf"\.{split}-\d{{5,}}\.[0-9a-f]{{8}}\.tmp",
        rf"\.{split}{re.escape(INDEX)}\.[0-9a-f]{{8}}\.tmp",
    )


def _remove_unfinished(folder: Path, split: Split) -> None:
    for path in list(folder.iterdir()):
        if any(re.fullmatch(name, path.name) for name in _unfinished_names(split)):
            path.unlink()
