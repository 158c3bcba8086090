"""How long a scan takes from its files to the voxels of a network, on one core.

    python -m experiments.scan_reading                       120,000 made-up points
    python -m experiments.scan_reading sequences/08/velodyne/000000.bin

One JSON line a scan: points, voxels, and the median processor time in milliseconds of
reading points and labels, of the published changes, of cropping and voxelising, and of
all three in turn. Expected: at most 60 ms in all for a scan of 120,000 points.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from e3dsnn_jax.scans.augment import ScanAugment, augment_scan
from e3dsnn_jax.scans.crop import PUBLISHED_BOX
from e3dsnn_jax.scans.scan_voxels import voxelize_scan
from e3dsnn_jax.scans.semantic_kitti import (
    label_path,
    read_scan,
    write_labels,
    write_points,
)
from e3dsnn_jax.scans.semantic_kitti_classes import CLASS_NAMES


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the way of a scan from its files to voxels."""

    scans: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Scans (.bin) in the layout of SemanticKITTI, with their labels."""
    points: int = 120_000
    """Points of the scan that is made up where none is named."""
    grid_size: float = 0.05
    """Edge of a voxel, in metres."""
    repeats: int = 15
    """How often each part is timed; the median counts."""


def time_scan(path: Path, config: Config) -> dict[str, Any]:
    """The line of one scan."""
    rng = np.random.default_rng(0)
    changes = ScanAugment(rotate=1.0)
    scan = read_scan(path, label_path(path))
    changed = augment_scan(scan, rng, changes, box=PUBLISHED_BOX)

    def everything() -> None:
        read = read_scan(path, label_path(path))
        moved = augment_scan(read, rng, changes, box=PUBLISHED_BOX)
        voxelize_scan(moved, grid_size=config.grid_size, rng=rng)

    parts: dict[str, Callable[[], object]] = {
        "read": lambda: read_scan(path, label_path(path)),
        "augment": lambda: augment_scan(scan, rng, changes, box=PUBLISHED_BOX),
        "voxelize": lambda: voxelize_scan(changed, grid_size=config.grid_size, rng=rng),
        "all": everything,
    }
    voxels = voxelize_scan(changed, grid_size=config.grid_size, rng=rng)
    return {
        "scan": str(path),
        "points": len(scan.points),
        "voxels": len(voxels.coords),
        "milliseconds": {
            name: round(_processor_time(part, config.repeats) * 1e3, 1)
            for name, part in parts.items()
        },
    }


def _processor_time(part: Callable[[], object], repeats: int) -> float:
    """Median in seconds, over all threads: another program's share does not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        part()
        times.append(time.process_time() - start)
    return float(np.median(times))


def make_up_scan(root: Path, *, points: int) -> Path:
    """Writes rings on the ground around a sensor and scattered points above it.

    Returns:
      The file of the points; its labels lie where they belong.
    """
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi, np.pi, points)
    # Rings at equal steps of the beam, which a flat ground spreads ever wider.
    reach = 1.7 / np.tan(np.deg2rad(rng.integers(1, 25, points)))
    height = np.where(rng.random(points) < 0.6, -1.7, rng.uniform(-1.7, 2.5, points))
    height += rng.normal(scale=0.02, size=points)
    rows = [reach * np.cos(angles), reach * np.sin(angles), height, rng.random(points)]
    path = root / "sequences" / "00" / "velodyne" / "000000.bin"
    write_points(path, np.stack(rows, axis=1).astype(np.float32))
    write_labels(label_path(path), rng.integers(-1, len(CLASS_NAMES), points))
    return path


def main(arguments: list[str] | None = None) -> None:
    """Prints one line a scan."""
    config = tyro.cli(Config, args=arguments, description=__doc__)
    if config.scans:
        for path in config.scans:
            print(json.dumps(time_scan(path, config)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = make_up_scan(Path(folder), points=config.points)
        print(json.dumps(time_scan(path, config) | {"scan": "made up"}))


if __name__ == "__main__":
    main()
