"""LiDAR-like voxels for benchmarks: a street seen by a simulated 64-beam sensor."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.voxels import VoxelCloud, voxelize

_BEAMS = 64
_SENSOR_HEIGHT = 1.73
_RANGE = 80.0
# Rays cast for each voxel that is wanted: with 1.4, a voxel of the embedded street has
# 5.4 neighbours in the 27 cells around it, itself included, at 50,000 voxels; a real
# scan of SemanticKITTI cut into so many voxels has 5.8.
_RAYS_PER_VOXEL = 1.4


def street_coords(voxels: int, *, seed: int = 0) -> Int[np.ndarray, "{voxels} 4"]:
    """Sorted (batch, x, y, z) of exactly so many voxels of one simulated scan."""
    points = cast_rays(round(_RAYS_PER_VOXEL * voxels / _BEAMS), seed=seed)
    return _cut(points, voxels)


def scan_coords(path: Path, voxels: int) -> Int[np.ndarray, "{voxels} 4"]:
    """The same of a real scan in KITTI's layout (x, y, z, remission as float32).

    Raises:
      ValueError: If the scan has too few points for so many voxels.
    """
    points = np.fromfile(path, "<f4").reshape(-1, 4)[:, :3]
    if len(points) < voxels:
        raise ValueError(
            f"{path} has {len(points)} points, too few for {voxels} voxels"
        )
    return _cut(points, voxels)


def _cut(
    points: Float[np.ndarray, "points 3"], voxels: int
) -> Int[np.ndarray, "{voxels} 4"]:
    """The coarsest grid with at least so many voxels, less those seen last."""

    def at_size(size: float) -> VoxelCloud:
        return voxelize(points, points, voxel_size=size, name="scan")

    small, large = 1e-3, 10.0
    for _ in range(30):
        middle = (small * large) ** 0.5
        if len(at_size(middle).coords) < voxels:
            large = middle
        else:
            small = middle
    found = at_size(small)
    if len(found.coords) < voxels:
        raise ValueError(f"no grid gives {voxels} voxels of {len(points)} points")
    # A row for each voxel, in the order in which the sensor turned.
    _, first = np.unique(found.voxel_of_point, return_index=True)
    kept = np.sort(np.argsort(first, kind="stable")[:voxels])
    coords = found.coords[kept]
    return np.pad(coords, ((0, 0), (1, 0))).astype(np.int32)


def cast_rays(columns: int, *, seed: int = 0) -> Float[np.ndarray, "points 3"]:
    """Where the rays of one turn of the sensor meet a street.

    Args:
      columns: Directions of one turn; each has 64 beams.
      seed: Of the street and the noise.

    Returns:
      The points that lie in range, in metres from the sensor, column by column.
    """
    rng = np.random.default_rng(seed)
    azimuth = np.linspace(0, 2 * np.pi, columns, endpoint=False)[:, None]
    elevation = np.radians(np.linspace(2.0, -24.8, _BEAMS))[None, :]
    directions = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ),
        axis=-1,
    ).reshape(-1, 3)
    with np.errstate(divide="ignore"):
        steps = 1 / directions
    distance = np.where(directions[:, 2] < 0, -_SENSOR_HEIGHT * steps[:, 2], np.inf)
    for low, high in _boxes(rng):
        near, far = low * steps, high * steps
        enter = np.minimum(near, far).max(1)
        leave = np.maximum(near, far).min(1)
        hit = (enter > 0) & (enter <= leave)
        distance = np.where(hit, np.minimum(distance, enter), distance)
    distance = distance + rng.normal(0, 0.02, len(distance))
    seen = (distance > 1) & (distance < _RANGE)
    return (directions[seen] * distance[seen, None]).astype(np.float32)


def _boxes(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Opposite corners of houses on both sides, cars, and poles."""
    boxes = []

    def add(x: float, y: float, size: tuple[float, float, float]) -> None:
        middle, half = np.array([x, y]), np.array(size[:2]) / 2
        low = np.append(middle - half, -_SENSOR_HEIGHT)
        high = np.append(middle + half, size[2] - _SENSOR_HEIGHT)
        boxes.append((low, high))

    for side in (-1, 1):
        for x in range(-80, 80, 16):
            depth = rng.uniform(8, 12)
            height = rng.uniform(4, 12)
            add(x, side * (rng.uniform(9, 13) + depth / 2), (14.0, depth, height))
        for _ in range(12):
            add(rng.uniform(-60, 60), side * rng.uniform(4, 6), (4.2, 1.8, 1.5))
        for x in range(-60, 60, 20):
            add(x + rng.uniform(-2, 2), side * 7.5, (0.3, 0.3, 6.0))
    return boxes
