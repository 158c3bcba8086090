"""A folder of class folders with one file a shape: a person's own data, or ModelNet.

The split is that of folders called train and test, inside each class folder
(`chair/train/chair_0001.off`, the layout of the original ModelNet10 and ModelNet40
meshes) or around them (`train/chair/chair_0001.off`). Where there are neither, about a
fifth of the files is set aside for testing: those whose path, relative to the data
folder, has a small hash. That choice never changes when files are added.
"""

import functools
import hashlib
from pathlib import Path

from e3dsnn_jax.data.cache import CloudSource
from e3dsnn_jax.data.clouds import PointCloud, Split
from e3dsnn_jax.data.points import MESH_POINTS, POINT_FILE_ENDINGS, read_points_file

TEST_SHARE = 0.2
"""Share of the files that become the test set where the folders do not say."""

_SPLITS = ("train", "test")


def is_class_folder_tree(root: Path) -> bool:
    """Whether some folder below `root` holds point or mesh files as described above."""
    return any(_class_files(root).values())


def folder_source(
    root: Path, split: Split, *, mesh_points: int = MESH_POINTS
) -> CloudSource:
    """The shapes of a folder of class folders; classes are sorted by name.

    Args:
      root: The data folder.
      split: Which shapes to take.
      mesh_points: How many points to draw from each mesh.

    Raises:
      FileNotFoundError: If the split is empty.
    """
    by_class = _class_files(root)
    files, labels = [], []
    for label, paths in enumerate(by_class.values()):
        chosen = [path for path in paths if split_of(path, root) == split]
        files.extend(chosen)
        labels.extend([label] * len(chosen))
    if not files:
        total = sum(len(paths) for paths in by_class.values())
        raise FileNotFoundError(
            f"{root}: none of its {total} point and mesh files belongs to the {split} "
            f"set; put some into folders called {split}"
        )
    return CloudSource(
        root,
        f"folder-{mesh_points}-{split}",
        tuple(by_class),
        tuple(files),
        tuple(labels),
        functools.partial(read_sampled_shape, mesh_points),
    )


def read_sampled_shape(mesh_points: int, path: Path, label: int) -> list[PointCloud]:
    """The one cloud of a file, drawn from the surface if it is a mesh."""
    return [read_points_file(path, label=label, mesh_points=mesh_points)]


def split_of(path: Path, root: Path) -> Split:
    """The split of a file: from a folder called train or test, else from its hash."""
    relative = path.relative_to(root)
    if "train" in relative.parts[:-1]:
        return "train"
    if "test" in relative.parts[:-1]:
        return "test"
    digest = hashlib.sha256(relative.as_posix().encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return "test" if share < TEST_SHARE else "train"


def _class_files(root: Path) -> dict[str, list[Path]]:
    """The point and mesh files of each class, both sorted."""
    tops = [root / name for name in _SPLITS if (root / name).is_dir()]
    by_class: dict[str, list[Path]] = {}
    for top in tops or [root]:
        for folder in _subfolders(top):
            inner = [folder / name for name in _SPLITS if (folder / name).is_dir()]
            paths = [
                path for place in inner or [folder] for path in _shape_files(place)
            ]
            by_class.setdefault(folder.name, []).extend(paths)
    return {name: sorted(by_class[name]) for name in sorted(by_class) if by_class[name]}


def _subfolders(folder: Path) -> list[Path]:
    """Folders inside, but no hidden ones: caches and repositories live there."""
    return [
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    ]


def _shape_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in POINT_FILE_ENDINGS and not path.name.startswith(".")
    ]
