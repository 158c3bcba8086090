"""One file -> one point cloud: npz, npy, txt, xyz, csv, off, ply or obj.

Meshes are sampled uniformly over their area, with a seed made of the file's own bytes:
the same mesh gives the same points wherever it lies. Their normals are those of the
triangles, as the file winds them; ModelNet winds many of its triangles inwards.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh
from jaxtyping import Float

from e3dsnn_jax.data.clouds import PointCloud, check_cloud, unit_normals
from e3dsnn_jax.npz import broken_file, load_npz

MESH_POINTS = 10_000
"""Points drawn from a mesh, as many as the resampled ModelNet40 has."""

# Not tied to one number of rows: a file may hold too few normals, which is reported.
Rows = Float[np.ndarray, "_ 3"]


def read_points_file(
    path: Path, *, label: int = -1, mesh_points: int = MESH_POINTS
) -> PointCloud:
    """Reads one cloud, or samples one mesh, by the ending of the file's name.

    npz files hold `points` and perhaps `normals`, as floats or as the integers of
    shards; npy and text files hold 3 columns (coordinates) or 6 (and normals), text
    separated by commas, semicolons or blanks, with one optional line of column names.

    Args:
      path: The file.
      label: The label that the cloud gets.
      mesh_points: How many points to draw from a mesh.

    Returns:
      The cloud, float32, called like the path.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the ending is unknown, the file is broken, cut short or of the
        wrong shape, or the cloud is malformed; the message names the file.
    """
    ending = path.suffix.lower()
    if ending in ARRAY_READERS:
        points, normals = ARRAY_READERS[ending](path)
    elif ending in MESH_ENDINGS:
        points, normals = _read_mesh(path, mesh_points)
    else:
        raise ValueError(
            f"{path}: cannot read {ending or 'files without ending'}; known are "
            + ", ".join(POINT_FILE_ENDINGS)
        )
    points = np.ascontiguousarray(points, np.float32)
    cloud = PointCloud(points, normals, label, str(path))
    check_cloud(cloud)
    if normals is None:
        return cloud
    return cloud._replace(normals=unit_normals(normals, cloud.name))


def decode(values: np.ndarray, full_scale: int) -> Float[np.ndarray, "*shape"]:
    """Stored numbers as float32; integers stand for multiples of 1 / `full_scale`."""
    decoded = values.astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        decoded /= np.float32(full_scale)
    return decoded


def _read_npz(path: Path) -> tuple[Rows, Rows | None]:
    arrays = load_npz(path)
    if "points" not in arrays:
        raise ValueError(
            f"{path}: no array called points, only {', '.join(arrays) or 'none at all'}"
        )
    shape = arrays["points"].shape
    if len(shape) == 3:
        raise ValueError(
            f"{path}: holds {shape[0]} clouds, one was expected; open its folder as a "
            "data set"
        )
    points, normals = arrays["points"], arrays.get("normals")
    for name, array in (("points", points), ("normals", normals)):
        if array is not None and (array.ndim != 2 or array.shape[1] != 3):
            raise ValueError(
                f"{path}: {name} have shape {array.shape}, expected (points, 3)"
            )
    return decode(points, 32767), None if normals is None else decode(normals, 127)


def _read_npy(path: Path) -> tuple[Rows, Rows | None]:
    try:
        with path.open("rb") as file:
            columns = np.load(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("it is longer than its header says")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise broken_file(path, "an npy file", error) from error
    if columns.ndim != 2 or columns.shape[1] not in (3, 6):
        raise ValueError(
            f"{path}: has shape {columns.shape}, expected (points, 3) or (points, 6)"
        )
    return _split_columns(columns.astype(np.float32))


def _split_columns(columns: np.ndarray) -> tuple[Rows, Rows | None]:
    return columns[:, :3], columns[:, 3:] if columns.shape[1] == 6 else None


def _read_text(path: Path) -> tuple[Rows, Rows | None]:
    lines = path.read_text(errors="replace").splitlines()
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        raise ValueError(f"{path}: the file is empty")
    first = lines[filled[0]]
    delimiter = next((mark for mark in ",;" if mark in first), None)
    if not any(_is_number(word) for word in first.split(delimiter)):
        filled = filled[1:]  # names of the columns
    if not filled:
        raise ValueError(f"{path}: names of columns, but no points")
    try:
        columns = np.loadtxt(
            (lines[number] for number in filled),
            dtype=np.float32,
            delimiter=delimiter,
            comments=None,
            ndmin=2,
        )
    except ValueError:
        raise _first_bad_line(path, lines, filled, delimiter) from None
    if columns.shape[1] not in (3, 6):
        raise ValueError(
            f"{path}, line {filled[0] + 1}: {columns.shape[1]} columns, expected 3 "
            "(x, y, z) or 6 (and the normal)"
        )
    return _split_columns(columns)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _first_bad_line(
    path: Path, lines: list[str], filled: list[int], delimiter: str | None
) -> ValueError:
    expected = len(lines[filled[0]].split(delimiter))
    for number in filled:
        words = lines[number].split(delimiter)
        where = f"{path}, line {number + 1}"
        if len(words) != expected:
            return ValueError(
                f"{where}: {len(words)} columns, expected {expected} as in line "
                f"{filled[0] + 1}"
            )
        for word in words:
            if not _is_number(word):
                return ValueError(f"{where}: {word.strip()!r} is not a number")
    return ValueError(f"{path}: cannot be read as columns of numbers")


def _read_mesh(path: Path, mesh_points: int) -> tuple[Rows, Rows | None]:
    content = path.read_bytes()
    kind = path.suffix.lower()[1:]
    if kind == "off":
        content = _check_off(path, content)
    elif kind == "ply":
        _check_ply(path, content)
    try:
        # process=False: nothing is merged, so what is counted is what is stored.
        loaded = trimesh.load(io.BytesIO(content), file_type=kind, process=False)
        if isinstance(loaded, trimesh.Scene):
            loaded = loaded.to_geometry()
    except Exception as error:  # its parsers fail in every way that Python knows
        raise broken_file(path, f"{kind} geometry", error) from error
    if isinstance(loaded, trimesh.PointCloud):
        return np.asarray(loaded.vertices), _ply_normals(loaded)
    if not isinstance(loaded, trimesh.Trimesh) or len(loaded.vertices) == 0:
        raise ValueError(f"{path}: holds neither triangles nor points")
    if not np.shape(loaded.vertices)[1:] == np.shape(loaded.faces)[1:] == (3,):
        raise ValueError(f"{path}: its vertices or triangles are no rows of 3 numbers")
    if not np.isfinite(loaded.vertices).all():
        raise ValueError(f"{path}: some vertices are NaN or infinite")
    if len(loaded.faces) and not 0 <= loaded.faces.min() <= loaded.faces.max() < len(
        loaded.vertices
    ):
        raise ValueError(
            f"{path}: a triangle names vertex {loaded.faces.max()} (from 0) of "
            f"{len(loaded.vertices)} vertices; the file may be cut short, get it again"
        )
    if not loaded.area > 0:
        raise ValueError(
            f"{path}: its {len(loaded.faces)} triangles have no area to draw points on"
        )
    points, faces = trimesh.sample.sample_surface(
        loaded, mesh_points, seed=zlib.crc32(content)
    )[:2]
    return points, loaded.face_normals[faces]


def _ply_normals(cloud: trimesh.PointCloud) -> Rows | None:
    """Normals of the vertices of a ply file without faces; trimesh keeps them raw."""
    vertex = cloud.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {})
    try:
        columns = [np.reshape(vertex[name], -1) for name in ("nx", "ny", "nz")]
    except (KeyError, ValueError, IndexError):
        return None
    return np.stack(columns, axis=1).astype(np.float32)


def _check_off(path: Path, content: bytes) -> bytes:
    """Repairs the header that ModelNet glues to the counts; counts the lines.

    A file that ends early would otherwise load as a smaller mesh.
    """
    lines = [line.split(b"#")[0].strip() for line in content.splitlines()]
    lines = [line for line in lines if line]
    head, _, rest = lines[0].partition(b"OFF") if lines else (b"", b"", b"")
    if not lines or b"OFF" not in lines[0] or len(head) > 3:
        raise ValueError(f"{path}: does not begin with OFF, so it is no off file")
    if rest.strip():
        lines[:1] = [head + b"OFF", rest.strip()]
    try:
        vertices, faces = (int(word) for word in lines[1].split()[:2])
    except (IndexError, ValueError):
        raise ValueError(
            f"{path}: after OFF the numbers of vertices and faces should follow"
        ) from None
    present = len(lines) - 2
    if present < vertices + faces:
        raise ValueError(
            f"{path}: {vertices} vertices and {faces} faces are announced but only "
            f"{present} lines follow; the file is cut short, get it again"
        )
    last = lines[1 + vertices + faces].split()
    if faces and (not last[0].isdigit() or len(last) <= int(last[0])):
        raise ValueError(f"{path}: the last face is cut short, get the file again")
    return b"\n".join(lines)


def _check_ply(path: Path, content: bytes) -> None:
    """Counts the lines of a ply file in text; the parser would take fewer."""
    head, end, body = content.partition(b"end_header")
    if not content.startswith(b"ply") or not end:
        raise ValueError(f"{path}: no ply header that begins with ply and has an end")
    words = [line.split() for line in head.splitlines()]
    if [b"format", b"ascii"] not in [line[:2] for line in words]:
        return  # the parser counts the bytes of binary files
    try:
        elements = [int(line[2]) for line in words if line[:1] == [b"element"]]
    except (IndexError, ValueError):
        raise ValueError(f"{path}: an element without a count in its header") from None
    lines = [line for line in body.splitlines() if line.strip()]
    if len(lines) < sum(elements):
        raise ValueError(
            f"{path}: {sum(elements)} elements are announced but only {len(lines)} "
            "lines follow; the file is cut short, get it again"
        )
    kinds = [line[1] for line in words if line[:1] == [b"element"]]
    if kinds[-1:] == [b"face"] and elements[-1]:
        last = lines[sum(elements) - 1].split()
        if not last[0].isdigit() or len(last) <= int(last[0]):
            raise ValueError(f"{path}: the last face is cut short, get the file again")


ARRAY_READERS: dict[str, Callable[[Path], tuple[Rows, Rows | None]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".txt": _read_text,
    ".xyz": _read_text,
    ".csv": _read_text,
}
"""Readers of files that hold points, by the ending of the name."""

MESH_ENDINGS = (".off", ".ply", ".obj")
"""Endings of files that hold a mesh, or bare vertices."""

POINT_FILE_ENDINGS = (*ARRAY_READERS, *MESH_ENDINGS)
"""Endings of all files that `read_points_file` reads."""
