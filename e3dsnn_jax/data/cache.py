"""Clouds read once from their source files and kept, packed, beside the data.

The files of a cache are called `<name>-<points>-<key>`. The key digests the names,
sizes and times of the source files, the classes, the options and `FORMAT`: whatever
changes, the cache is built anew, as it is when it is cut short or altered.
"""

import concurrent.futures
import concurrent.futures.process
import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from e3dsnn_jax.data.clouds import PointCloud, check_cloud
from e3dsnn_jax.data.packed import (
    PackedClouds,
    PackError,
    load_packed,
    pack_in_files,
    pack_in_memory,
)
from e3dsnn_jax.data.sampling import thin_out

FORMAT = 1
"""Raised whenever the same sources would give other clouds than before."""

FOLDER = ".e3dsnn_cache"
"""Folder of the caches inside a data folder."""

MANY_FILES = 256
"""From this many source files on, several processes read them."""


class CloudSource(NamedTuple):
    """Files, and how clouds are read from them.

    Attributes:
      root: The data folder, or None if the clouds come from no folder.
      name: First part of the cache's file names: the layout and the split.
      class_names: One name a class.
      files: Source files; each gives one or more clouds.
      labels: The label of each file's clouds, -1 where `read` finds it in the file.
      read: Reads the clouds of a file, given its path and label: always the same
        clouds, and a function that can be pickled.
      depends_on: Further files whose change makes the cache stale.
    """

    root: Path | None
    name: str
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    read: Callable[[Path, int], list[PointCloud]]
    depends_on: tuple[Path, ...] = ()


def cached(source: CloudSource, *, points_per_cloud: int | None = None) -> PackedClouds:
    """The clouds of a source, from its cache if that is sound, else read and cached.

    The cache lies in the data folder; where that cannot be written, in the user's cache
    folder (`$XDG_CACHE_HOME/e3dsnn_jax`, by default under `~/.cache`); where neither
    can, the clouds stay in memory. Each step down is announced on stderr.

    Args:
      source: What to read.
      points_per_cloud: If given, clouds with more points are thinned out to this many
        by farthest point sampling before they are kept.

    Returns:
      The clouds in the order of the source files.

    Raises:
      ValueError: If a file or a cloud is malformed.
      OSError: If a source file cannot be read.
    """
    prefix = f"{source.name}-{points_per_cloud or 'all'}-"
    stem = prefix + source_key(source, points_per_cloud)
    folders = _folders(source.root)
    for folder in folders:
        found = load_packed(folder / stem)
        if found is not None:
            return found
    for folder in folders:
        clouds = read_clouds(source, points_per_cloud)
        try:
            _respect_read_only(folder.parent)
            packed = pack_in_files(clouds, source.class_names, folder / stem)
        except PackError as error:
            _warn(f"cannot keep a cache in {folder}: {error}")
            continue
        _remove_stale(folder, prefix, stem)
        return packed
    _warn(
        f"{source.name} of {source.root or 'the embedded shapes'} stays in memory and "
        "is read anew next time; let XDG_CACHE_HOME name a folder that can be written"
    )
    return pack_in_memory(read_clouds(source, points_per_cloud), source.class_names)


def _respect_read_only(folder: Path) -> None:
    """Refuses a folder that nobody may write, which the system lets root write."""
    if folder.exists() and not folder.stat().st_mode & 0o222:
        raise PackError(f"{folder} is marked read-only")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def source_key(source: CloudSource, points_per_cloud: int | None) -> str:
    """A digest of all that the clouds of a source follow from, but for its place.

    Args:
      source: What would be read.
      points_per_cloud: How many points would be kept of each cloud, or None.

    Returns:
      16 hexadecimal digits; others when a file has another size or time.
    """
    described: list[object] = [FORMAT, points_per_cloud, source.class_names]
    described.append(source.labels)
    for file in (*source.files, *source.depends_on):
        status = file.stat()
        name = os.path.relpath(file, source.root or file.parent)
        described.append((name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _folders(root: Path | None) -> list[Path]:
    """Where the cache may lie, the best place first."""
    folders = [] if root is None else [root / FOLDER]
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        user = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # a user without a home folder
        return folders
    place = "embedded"
    if root is not None:
        path = root.resolve()
        place = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return [*folders, user / "e3dsnn_jax" / place]


def _remove_stale(folder: Path, prefix: str, stem: str) -> None:
    """Deletes what the same question was answered with before its sources changed."""
    for path in folder.glob(f"{prefix}*"):
        if not path.name.startswith(stem):
            path.unlink(missing_ok=True)


def read_clouds(
    source: CloudSource, points_per_cloud: int | None, *, progress: bool = True
) -> Iterator[PointCloud]:
    """All clouds in the order of the files, checked and thinned out; keeps no cache.

    Args:
      source: What to read. Of many files, several processes read some at a time.
      points_per_cloud: If given, the most points of a cloud, chosen farthest first.
      progress: Show how far reading is, where there are many files.

    Raises:
      ValueError: If a file or a cloud is malformed.
      OSError: If a source file cannot be read.
    """
    read = functools.partial(
        _read_file, source.read, len(source.class_names), points_per_cloud
    )
    jobs = list(zip(source.files, source.labels, strict=True))
    # A daemon, such as a loader's worker process, may not have children of its own.
    alone = multiprocessing.current_process().daemon or (os.cpu_count() or 1) == 1
    done = 0
    if len(jobs) >= MANY_FILES and not alone:
        try:
            for clouds in _read_in_parallel(read, jobs, source.name, progress):
                yield from clouds
                done += 1
        except concurrent.futures.process.BrokenProcessPool:
            _warn(
                "the processes that read files have died; reading goes on in this one. "
                "A script that starts processes should keep its calls under "
                'if __name__ == "__main__"'
            )
    for file, label in jobs[done:]:
        yield from read(file, label)


def _read_in_parallel(
    read: Callable[[Path, int], list[PointCloud]],
    jobs: list[tuple[Path, int]],
    name: str,
    progress: bool,
) -> Iterator[list[PointCloud]]:
    # "spawn", because forking a process in which JAX runs threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(mp_context=context) as pool:
        results = pool.map(read, *zip(*jobs, strict=True), chunksize=8)
        # disable=None: no bar where stderr is no terminal.
        hidden = None if progress else True
        yield from tqdm(results, f"reading {name}", len(jobs), disable=hidden)


def _read_file(
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
