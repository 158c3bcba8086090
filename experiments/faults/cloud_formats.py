"""A small valid file of every format that clouds are read from, and what reads it."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import trimesh

from e3dsnn_jax.data.clouds import PointCloud, check_cloud
from e3dsnn_jax.data.modelnet import read_hdf5_clouds
from e3dsnn_jax.data.packed import load_packed, pack_in_files
from e3dsnn_jax.data.points import read_points_file
from e3dsnn_jax.data.records import open_records
from e3dsnn_jax.data.records_writer import PackSettings, write_records
from e3dsnn_jax.data.shards import open_shards
from experiments.faults.formats import Format, Refusal
from experiments.smoke import CLASS_NAMES, write_shards

_POINTS = 12
_MESH_POINTS = 16


def _draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _columns(points: int = _POINTS) -> np.ndarray:
    normals = _draw(points, 3)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.concatenate([_draw(points, 3), normals], axis=1)


def _points_format(
    name: str,
    write: Callable[[Path], object],
    *,
    checksummed: bool = False,
    is_whole: Callable[[Path], bool] = lambda path: True,
) -> Format:
    """A format of one cloud a file."""

    def write_sample(folder: Path) -> list[Path]:
        write(folder / name)
        return [folder / name]

    def read(folder: Path) -> PointCloud:
        cloud = read_points_file(folder / name, mesh_points=_MESH_POINTS)
        return cloud._replace(name="")

    return Format(write_sample, read, checksummed, is_whole)


def _npy_is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        np.load(file, allow_pickle=False)
        return not file.read(1)


def _write_npz(path: Path, *, points: int = _POINTS) -> None:
    columns = _columns(points)
    np.savez(path, points=columns[:, :3], normals=columns[:, 3:])


def _write_compressed(path: Path) -> None:
    columns = _columns()
    np.savez_compressed(path, points=columns[:, :3], normals=columns[:, 3:])


def _write_text(path: Path) -> None:
    names = "x,y,z,nx,ny,nz"
    np.savetxt(path, _columns(), "%.6f", delimiter=",", header=names, comments="")


def _write_mesh(path: Path, **options: Any) -> None:
    path.write_bytes(_as_bytes(_mesh().export(file_type=path.suffix[1:], **options)))


def _mesh() -> trimesh.Trimesh:
    return trimesh.creation.icosahedron()


def _as_bytes(content: str | bytes | dict) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)  # pyright: ignore[reportArgumentType]


def _write_ply_points(path: Path) -> None:
    names = ("x", "y", "z", "nx", "ny", "nz")
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {_POINTS}"]
    head += [f"property float {name}" for name in names] + ["end_header", ""]
    path.write_bytes("\n".join(head).encode() + _columns().astype("<f4").tobytes())


def _write_hdf5(folder: Path) -> list[Path]:
    columns = np.stack([_columns(), _columns()])
    path = folder / "train_0.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["normal"] = columns[..., :3], columns[..., 3:]
        file["label"] = np.array([[0], [2]], np.uint8)
    return [path]


def _read_hdf5(folder: Path) -> list[PointCloud]:
    clouds = read_hdf5_clouds(folder / "train_0.h5")
    for cloud in clouds:
        check_cloud(cloud, num_classes=len(CLASS_NAMES))
    return [cloud._replace(name="") for cloud in clouds]


def _write_shard(folder: Path) -> list[Path]:
    write_shards(folder, clouds=3, points=4)
    return [folder / "train_0.npz"]


def _read_shard(folder: Path) -> list[Any]:
    clouds = open_shards(folder, "train")
    return [cloud._replace(name="") for cloud in clouds] + [clouds.class_names]


def _write_cache(folder: Path) -> list[Path]:
    columns = _columns()
    clouds = [
        PointCloud(columns[:, :3], columns[:, 3:], 0, "a"),
        PointCloud(columns[:5, :3], None, 2, "b"),
    ]
    pack_in_files(clouds, CLASS_NAMES, folder / "cache")
    return sorted(folder.iterdir())


def _read_cache(folder: Path) -> list[Any]:
    clouds = load_packed(folder / "cache")
    if clouds is None:
        raise Refusal(f"{folder}: built anew")
    return [clouds[index] for index in range(len(clouds))] + [clouds.class_names]


def _write_records(folder: Path) -> list[Path]:
    columns = _columns()
    clouds = [
        PointCloud(columns[:, :3], columns[:, 3:], 0, "a"),
        PointCloud(columns[:5, :3], None, 2, "b"),
        PointCloud(columns[5:, :3], None, 1, "c"),
    ]
    settings = PackSettings(clouds_per_shard=2)
    write_records(clouds, CLASS_NAMES, folder, "train", settings)
    return sorted(folder.iterdir())


def _read_records(folder: Path) -> list[Any]:
    clouds = open_records(folder, "train")
    known = [clouds.labels, clouds.voxels, clouds.points, clouds.class_names]
    return [clouds[index] for index in range(len(clouds))] + known


CLOUD_FORMATS: dict[str, Format] = {
    "npz": _points_format("cloud.npz", _write_npz, checksummed=True),
    # More than is read at once: what a header leaves out is never seen.
    "npz, large": _points_format(
        "cloud.npz", functools.partial(_write_npz, points=4000), checksummed=True
    ),
    "npz, compressed": _points_format("cloud.npz", _write_compressed, checksummed=True),
    "npy": _points_format(
        "cloud.npy",
        lambda path: np.save(path, _columns()),
        is_whole=_npy_is_whole,
    ),
    "txt": _points_format("cloud.txt", _write_text),
    "off": _points_format("mesh.off", _write_mesh),
    "ply, text": _points_format(
        "mesh.ply", lambda path: _write_mesh(path, encoding="ascii")
    ),
    "ply, binary": _points_format("mesh.ply", _write_mesh),
    "ply, binary points": _points_format("cloud.ply", _write_ply_points),
    "obj": _points_format("mesh.obj", _write_mesh),
    "h5": Format(_write_hdf5, _read_hdf5, checksummed=False),
    "npz shard": Format(_write_shard, _read_shard, checksummed=True),
    "cache": Format(_write_cache, _read_cache, checksummed=True),
    "records": Format(_write_records, _read_records, checksummed=True),
}
"""Everything that clouds are read from, by the name in the table."""
