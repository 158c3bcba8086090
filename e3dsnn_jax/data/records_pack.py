"""Any data set -> a packed one: which clouds are read, and whether they are there."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from e3dsnn_jax.data.cache import read_clouds, source_key
from e3dsnn_jax.data.clouds import PointCloud, Split
from e3dsnn_jax.data.open import find_source, open_dataset
from e3dsnn_jax.data.records import RecordClouds, is_packed
from e3dsnn_jax.data.records_writer import (
    PackSettings,
    check_settings,
    find_records,
    write_records,
)


class Packed(NamedTuple):
    """A split that has been packed."""

    clouds: RecordClouds
    source_bytes: int | None
    """Length of the files that were packed; None if the clouds come from no file."""
    already: bool
    """Whether it had been packed before, in the same way, and nothing was written."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A split that is to be packed."""

    class_names: tuple[str, ...]
    key: str
    source_bytes: int | None
    num_clouds: int | None
    """How many clouds there are, if that is known before they are read."""
    read: Callable[[], Iterable[PointCloud]]


def pack_dataset(
    data: Path | None,
    folder: Path,
    splits: Sequence[Split],
    settings: PackSettings,
    *,
    points_per_cloud: int | None = None,
) -> Iterator[Packed]:
    """Packs splits of a data set, from its own files and without making a cache.

    A split that is there already, of the same data and with the same settings, is left
    as it is, so a call that was stopped can be repeated.

    Args:
      data: The data folder, of any layout. None: the embedded procedural shapes.
      folder: Where to write: a new folder, or one that an earlier call has made.
      splits: What to pack.
      settings: How clouds become records.
      points_per_cloud: As in `open_dataset`.

    Yields:
      Each split when it is done.

    Raises:
      FileExistsError: If the folder holds something else.
      FileNotFoundError: If the data or a split are absent.
      OSError: If a file cannot be read or written.
      ValueError: If a file, a cloud or a setting is malformed.
    """
    check_settings(settings)
    parts = [_find_part(data, split, points_per_cloud) for split in splits]
    # All of it is looked at before anything is written.
    present = [
        find_records(part.class_names, folder, split, settings, source=part.key)
        for part, split in zip(parts, splits, strict=True)
    ]
    for part, split, clouds in zip(parts, splits, present, strict=True):
        if clouds is not None:
            yield Packed(clouds, part.source_bytes, already=True)
            continue
        # disable=None: no bar where stderr is no terminal.
        bar = tqdm(part.read(), f"packing {split}", part.num_clouds, disable=None)
        written = write_records(
            iter(bar), part.class_names, folder, split, settings, source=part.key
        )
        yield Packed(written, part.source_bytes, already=False)


def _find_part(data: Path | None, split: Split, points_per_cloud: int | None) -> _Part:
    if data is not None and data.is_dir() and is_packed(data):
        clouds = open_dataset(data, split, points_per_cloud=points_per_cloud)
        assert isinstance(clouds, RecordClouds)
        return _Part(
            clouds.class_names,
            f"{clouds.checksum:08x}",
            sum(clouds.index.shard_bytes),
            len(clouds),
            lambda: (clouds[index] for index in range(len(clouds))),
        )
    source = find_source(data, split, points_per_cloud=points_per_cloud)
    one_a_file = -1 not in source.labels
    return _Part(
        source.class_names,
        source_key(source, points_per_cloud),
        sum(path.stat().st_size for path in source.files) if source.root else None,
        len(source.files) if one_a_file else None,
        lambda: read_clouds(source, points_per_cloud, progress=False),
    )
