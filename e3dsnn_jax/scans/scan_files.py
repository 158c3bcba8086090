"""One file -> one scan: bin, npz, las or laz. Labels are ids as stored."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.npz import broken_file, load_npz
from e3dsnn_jax.scans.label_map import LabelMap, to_classes
from e3dsnn_jax.scans.scan import IGNORED, Scan, check_scan
from e3dsnn_jax.scans.semantic_kitti import read_points
from e3dsnn_jax.whole_file import whole_file


class StoredScan(NamedTuple):
    """The arrays of one file, before anything is made of its labels."""

    points: Float[np.ndarray, "points 3"]
    features: Float[np.ndarray, "rows channels"]
    ids: Int[np.ndarray, " labels"] | None


def read_scan_file(path: Path, label_map: LabelMap | None = None) -> Scan:
    """Reads one scan, by the ending of the file's name.

    npz files hold `points` [points, 3] and perhaps `features` [points, channels] and
    `labels` [points]. las and laz files give intensity (1 is the largest number that
    they can store) as the only feature and the classification as labels; their
    coordinates, which often have seven digits before the point, are counted from the
    lowest whole metre of the file. bin files are those of SemanticKITTI.

    Args:
      path: The file.
      label_map: Which class each stored id stands for; None leaves labels out.

    Returns:
      The scan, float32, called like the path; without labels where there are none.

    Raises:
      FileNotFoundError: If there is no such file.
      ImportError: If a las file is to be read and laspy is not installed.
      ValueError: If the ending is unknown, the file is broken, empty, or not finite, or
        its arrays do not fit; the message names the file and the numbers.
    """
    stored = read_stored(path)
    points = np.ascontiguousarray(stored.points, np.float32)
    features = np.ascontiguousarray(stored.features, np.float32)
    # Before the labels are looked up: an empty file is called empty.
    scan = check_scan(Scan(points, features, None, None, str(path)))
    if label_map is None or stored.ids is None:
        return scan
    if len(stored.ids) != len(points):
        raise ValueError(
            f"{path}: {len(points)} points but {len(stored.ids)} labels; give one a "
            "point"
        )
    labels = to_classes(_without_negative(stored.ids), label_map, name=str(path))
    labels = np.where(stored.ids < 0, IGNORED, labels)
    return scan._replace(labels=labels)


def _without_negative(ids: np.ndarray) -> np.ndarray:
    """Ids to look up; negative ones, which mean no class, stand as the smallest id."""
    if ids.min(initial=0) >= 0:
        return ids
    known = ids[ids >= 0]
    return np.where(ids < 0, known.min() if len(known) else 0, ids)


def read_stored(path: Path) -> StoredScan:
    """The arrays of one file, as `read_scan_file` describes them, unchecked.

    Raises:
      As `read_scan_file`, but for what it checks of the numbers.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'files without ending'} as a scan; "
            f"known are {', '.join(SCAN_FILE_ENDINGS)}"
        )
    return reader(path)


def _read_npz(path: Path) -> StoredScan:
    arrays = load_npz(path)
    if "points" not in arrays:
        raise ValueError(
            f"{path}: no array called points, only {', '.join(arrays) or 'none at all'}"
        )
    points = arrays["points"]
    features = arrays.get("features", np.zeros((len(points), 0), np.float32))
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{path}: points have shape {points.shape}, not (points, 3)")
    if features.ndim != 2:
        raise ValueError(
            f"{path}: features have shape {features.shape}, not (points, channels)"
        )
    ids = arrays.get("labels")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
        raise ValueError(
            f"{path}: labels are {ids.dtype} of shape {ids.shape}, not whole numbers "
            "of shape (points,)"
        )
    ids = None if ids is None else ids.astype(np.int64)
    return StoredScan(points.astype(np.float32), features.astype(np.float32), ids)


def _read_bin(path: Path) -> StoredScan:
    rows = read_points(path)
    return StoredScan(rows[:, :3], rows[:, 3:], None)


def _laspy() -> Any:
    try:
        return importlib.import_module("laspy")
    except ModuleNotFoundError as error:
        raise ImportError(
            "las and laz files need laspy: pip install 'e3dsnn-jax[las]'"
        ) from error


def _read_las(path: Path) -> StoredScan:
    laspy = _laspy()
    try:
        with path.open("rb") as opened:
            file = laspy.read(opened)
        points = np.asarray(file.xyz, np.float64)
        intensity = np.asarray(file.intensity, np.float32)[:, None] / 65535
        ids = np.asarray(file.classification).astype(np.int64)
        announced = int(file.header.point_count)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise broken_file(path, "a las file", error) from error
    if announced != len(points):
        raise ValueError(
            f"{path}: {announced} points are announced but {len(points)} follow; the "
            "file is cut short, get it again"
        )
    if len(points):
        points -= np.floor(points.min(axis=0))
    return StoredScan(points.astype(np.float32), intensity, ids)


def write_las_labels(path: Path, source: Path, ids: Int[np.ndarray, " points"]) -> None:
    """Writes a copy of a las or laz file with other labels.

    Args:
      path: The file to make.
      source: The file whose points and everything else are copied.
      ids: Classification of each point.

    Raises:
      ImportError: If laspy is not installed.
      ValueError: If there are more or fewer ids than points, or one is outside
        [0, 255] (31 for the old point formats 0 to 5).
    """
    laspy = _laspy()
    with source.open("rb") as opened:
        file = laspy.read(opened)
    if len(ids) != len(file.points):
        raise ValueError(f"{source}: {len(file.points)} points but {len(ids)} labels")
    most = 31 if file.header.point_format.id < 6 else 255
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low < 0 or high > most:
        raise ValueError(
            f"{path}: label {low if low < 0 else high} is outside [0, {most}], what "
            f"point format {file.header.point_format.id} can store"
        )
    file.classification = ids.astype(np.uint8)
    with whole_file(path) as unfinished, unfinished.open("wb") as opened:
        file.write(opened, do_compress=path.suffix.lower() == ".laz")


_READERS: dict[str, Callable[[Path], StoredScan]] = {
    ".bin": _read_bin,
    ".npz": _read_npz,
    ".las": _read_las,
    ".laz": _read_las,
}

SCAN_FILE_ENDINGS = tuple(_READERS)
"""Endings of all files that `read_scan_file` reads."""
