"""A folder of scans with labels: npz, las or laz files, in folders named by split.

`classes.txt` in the folder names the classes, one a line: the id in the files, a blank
and a name. Several ids may share a name, and `-` as a name means that points of this id
are not learned. Without it every id in the files is a class of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from e3dsnn_jax.data.clouds import check_index
from e3dsnn_jax.scans.label_map import LabelMap, make_label_map
from e3dsnn_jax.scans.scan import IGNORED, Scan
from e3dsnn_jax.scans.scan_files import read_scan_file, read_stored
from e3dsnn_jax.scans.semantic_kitti_classes import SequenceSplit

_ENDINGS = (".npz", ".las", ".laz")
_NOT_LEARNED = "-"


@dataclass(frozen=True)
class ScanFolder:
    """The scans of a folder, sorted by path."""

    scans: tuple[Path, ...]
    """Every scan."""
    class_names: tuple[str, ...]
    """The classes."""
    label_map: LabelMap
    """Which class each stored id stands for."""

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: SupportsIndex, /) -> Scan:
        path = self.scans[check_index(index, len(self))]
        return read_scan_file(path, self.label_map)


def open_scan_folder(root: Path, split: SequenceSplit | None = None) -> ScanFolder:
    """The scans of a folder and of the folders in it.

    Args:
      root: The folder.
      split: Take only scans below a folder of this name; None takes all.

    Raises:
      FileNotFoundError: If there is no scan, or none of this split.
      ValueError: If `classes.txt` is malformed, or it is absent and no file has labels.
    """
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in _ENDINGS)
    scans = tuple(
        path
        for path in found
        if split is None or split in path.relative_to(root).parts[:-1]
    )
    if not scans:
        below = "" if split is None else f" below a folder called {split}"
        raise FileNotFoundError(
            f"{root}: no {', '.join(_ENDINGS)} files{below} ({len(found)} in all); put "
            "some there"
        )
    if (root / "classes.txt").is_file():
        names, label_map = read_classes(root / "classes.txt")
    else:
        # All files, so that every split has the same classes.
        names, label_map = _classes_of_files(root, found)
    return ScanFolder(scans, names, label_map)


def read_classes(path: Path) -> tuple[tuple[str, ...], LabelMap]:
    """Class names, in the order of their first line, and the map of their ids.

    Raises:
      ValueError: If a line is no id and name, an id occurs twice, or no class is named.
    """
    names: list[str] = []
    own: list[int] = []
    class_of_id: dict[int, int] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        word, _, name = line.strip().partition(" ")
        name = name.strip()
        if not word.isdecimal() or not name:
            raise ValueError(f"{path}, line {number}: {line!r} is no id and name")
        if int(word) in class_of_id:
            raise ValueError(f"{path}, line {number}: id {word} occurs a second time")
        if name == _NOT_LEARNED:
            class_of_id[int(word)] = IGNORED
            continue
        if name not in names:
            names.append(name)
            own.append(int(word))
        class_of_id[int(word)] = names.index(name)
    if not names:
        raise ValueError(f"{path}: names no class; write lines such as '2 ground'")
    ignored = [number for number, index in class_of_id.items() if index == IGNORED]
    label_map = make_label_map(
        class_of_id, tuple(own), id_of_ignored=min(ignored, default=0)
    )
    return tuple(names), label_map


def _classes_of_files(
    root: Path, paths: list[Path]
) -> tuple[tuple[str, ...], LabelMap]:
    ids: set[int] = set()
    for path in paths:
        stored = read_stored(path).ids
        if stored is not None:
            ids.update(np.unique(stored[stored >= 0]).tolist())
    if not ids:
        raise ValueError(
            f"{root}: none of its {len(paths)} files has labels; write classes.txt to "
            "say which classes there are"
        )
    ordered = sorted(ids)
    class_of_id = {number: index for index, number in enumerate(ordered)}
    names = tuple(f"class {number}" for number in ordered)
    return names, make_label_map(class_of_id, tuple(ordered))
