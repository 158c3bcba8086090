"""SemanticKITTI and data in its layout: scans, labels with instances, predictions.

A folder holds `sequences/NN/velodyne/*.bin` (x, y, z and remission as float32) and,
but for the test split, `sequences/NN/labels/*.label` (uint32: instance in the upper 16
bits, label id in the lower). Predictions go to `sequences/NN/predictions/*.label`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int, UInt32

from e3dsnn_jax.data.clouds import check_index
from e3dsnn_jax.scans.label_map import LabelMap, to_classes, to_ids
from e3dsnn_jax.scans.scan import Scan, check_scan
from e3dsnn_jax.scans.semantic_kitti_classes import (
    CLASS_NAMES,
    LABELS,
    SPLITS,
    SequenceSplit,
)
from e3dsnn_jax.whole_file import whole_file

_POINT_BYTES = 16
_LABEL_BYTES = 4
_ID_BITS = 16


@dataclass(frozen=True)
class SemanticKitti:
    """Scans of some sequences, in the order of sequences and then of frames."""

    root: Path
    """The folder that holds `sequences`."""
    sequences: tuple[int, ...]
    """Sequences that were found."""
    missing: tuple[int, ...]
    """Sequences that were asked for and are not there: say so beside every number."""
    scans: tuple[Path, ...]
    """Every scan."""
    labelled: bool
    """Whether labels are read."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 19 classes."""
        return CLASS_NAMES

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: SupportsIndex, /) -> Scan:
        path = self.scans[check_index(index, len(self))]
        return read_scan(path, label_path(path) if self.labelled else None)


def open_semantic_kitti(
    root: Path,
    split: SequenceSplit | None = None,
    *,
    sequences: Sequence[int] | None = None,
    labelled: bool | None = None,
) -> SemanticKitti:
    """The scans of an official split, or of chosen sequences.

    Args:
      root: The folder that holds `sequences`.
      split: An official split; those of its sequences are taken that are there.
      sequences: Sequences by number, all of which must be there; instead of a split.
      labelled: Whether to read labels; by default for all but the test split.

    Raises:
      FileNotFoundError: If there is no folder `sequences`, none of the split's
        sequences, one of the chosen ones is missing, or a sequence has no scan.
      ValueError: Unless either a split or sequences are given, or if scans lack labels.
    """
    folder = root / "sequences"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give the folder that holds `sequences`"
        )
    if (split is None) == (sequences is None):
        raise ValueError("give either a split or sequences of SemanticKITTI, not both")
    asked = SPLITS[split] if split is not None else tuple(sequences or ())
    there = tuple(number for number in asked if (folder / f"{number:02d}").is_dir())
    missing = tuple(number for number in asked if number not in there)
    if not there or (missing and sequences is not None):
        raise FileNotFoundError(
            f"{folder}: lacks the sequences {_names(missing)}; it holds "
            f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        )
    labelled = split != "test" if labelled is None else labelled
    scans: list[Path] = []
    for number in there:
        found = sorted((folder / f"{number:02d}" / "velodyne").glob("*.bin"))
        if not found:
            raise FileNotFoundError(f"{folder}/{number:02d}/velodyne: holds no .bin")
        scans.extend(found)
        unlabelled = [path for path in found if not label_path(path).is_file()]
        if labelled and unlabelled:
            raise ValueError(
                f"{folder}/{number:02d}: {len(unlabelled)} of {len(found)} scans have "
                f"no labels, the first is {unlabelled[0].name}: {unlabelled[0]} needs "
                f"{label_path(unlabelled[0])}"
            )
    return SemanticKitti(root, there, missing, tuple(scans), labelled)


def _names(sequences: Sequence[int]) -> str:
    return ", ".join(f"{number:02d}" for number in sequences)


def label_path(scan: Path) -> Path:
    """Where the labels of `sequences/NN/velodyne/FRAME.bin` lie."""
    return scan.parent.parent / "labels" / f"{scan.stem}.label"


def prediction_path(scan: Path, root: Path) -> Path:
    """Where the submission under `root` has the predictions for a scan."""
    sequence = scan.parent.parent.name
    return root / "sequences" / sequence / "predictions" / f"{scan.stem}.label"


def read_scan(
    path: Path, labels: Path | None = None, *, label_map: LabelMap = LABELS
) -> Scan:
    """One scan, with remission as its only feature.

    Args:
      path: The points, `.bin`.
      labels: The labels, `.label`; None leaves them unknown.
      label_map: Which class each id stands for.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If the points are cut short, empty, NaN or infinite, or the labels are
        cut short, of another number, or of unknown ids; the message names the file.
    """
    rows = read_points(path)
    classes = instances = None
    if labels is not None:
        ids, instances = read_labels(labels)
        if len(ids) != len(rows):
            raise ValueError(
                f"{labels}: {len(ids)} labels but {path} has {len(rows)} points; the "
                "two belong to different scans or one is cut short"
            )
        classes = to_classes(ids, label_map, name=str(labels))
    return check_scan(Scan(rows[:, :3], rows[:, 3:], classes, instances, str(path)))


def read_points(path: Path) -> Float[np.ndarray, "points 4"]:
    """The rows x, y, z, remission of a `.bin` file.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If its size is no whole number of points.
    """
    size = path.stat().st_size
    if size % _POINT_BYTES:
        raise ValueError(
            f"{path}: {size} bytes are {size // _POINT_BYTES} points of {_POINT_BYTES} "
            f"bytes and {size % _POINT_BYTES} bytes more; the file is cut short, get "
            "it again"
        )
    return np.fromfile(path, "<f4").astype(np.float32, copy=False).reshape(-1, 4)


def read_labels(
    path: Path,
) -> tuple[Int[np.ndarray, " points"], Int[np.ndarray, " points"]]:
    """Label ids and instances of a `.label` file.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If its size is no whole number of labels.
    """
    size = path.stat().st_size
    if size % _LABEL_BYTES:
        raise ValueError(
            f"{path}: {size} bytes are {size // _LABEL_BYTES} labels of {_LABEL_BYTES} "
            f"bytes and {size % _LABEL_BYTES} bytes more; the file is cut short, get "
            "it again"
        )
    return split_labels(np.fromfile(path, "<u4").astype(np.uint32, copy=False))


def split_labels(
    words: UInt32[np.ndarray, " points"],
) -> tuple[Int[np.ndarray, " points"], Int[np.ndarray, " points"]]:
    """Label ids (lower 16 bits) and instances (upper 16 bits) of stored words."""
    ids = (words & np.uint32(2**_ID_BITS - 1)).astype(np.int32)
    return ids, (words >> np.uint32(_ID_BITS)).astype(np.int32)


def write_labels(
    path: Path,
    classes: Int[np.ndarray, " points"],
    instances: Int[np.ndarray, " points"] | None = None,
    *,
    label_map: LabelMap = LABELS,
) -> None:
    """Writes a `.label` file, for predictions or for a data set of one's own.

    Args:
      path: The file; its folder is made.
      classes: Class of each point, `IGNORED` for none.
      instances: Object of each point; 0 everywhere by default.
      label_map: Which id is written for each class.

    Raises:
      ValueError: If a class is not in the map, or an instance needs over 16 bits.
    """
    words = to_ids(classes, label_map).astype(np.uint32)
    if instances is not None:
        low, high = int(instances.min(initial=0)), int(instances.max(initial=0))
        if low < 0 or high >= 2**_ID_BITS:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{path}: instance {wrong} is outside [0, {2**_ID_BITS}), the range of "
                "the label format"
            )
        words |= instances.astype(np.uint32) << np.uint32(_ID_BITS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        words.astype("<u4").tofile(unfinished)


def write_points(path: Path, rows: Float[np.ndarray, "points 4"]) -> None:
    """Writes a `.bin` file of rows x, y, z, remission; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        np.ascontiguousarray(rows, "<f4").tofile(unfinished)
