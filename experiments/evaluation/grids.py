"""Grid sampling: crop, cells, the inverse map and the fragments."""

import numpy as np

from e3dsnn_jax.data.augment import normalize
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.scans.crop import Box, clamp_scan_as_published, inside_box
from e3dsnn_jax.scans.grid import (
    fragment_points,
    num_fragments,
    published_hashes,
    sample_grid,
)
from e3dsnn_jax.scans.scan import Scan
from experiments.evaluation.contract import Case

_FIRST_HASHES = 50


def compute_grids(case: Case) -> dict[str, np.ndarray]:
    """The grids of a scan, cropped and clamped, and of an object."""
    rows = case.inputs["scan"]
    scan = Scan(rows[:, :3], rows[:, 3:], None, None, "scan")
    box = Box(
        tuple(case.constants["crop_low"]),
        tuple(case.constants["crop_high"]),
    )
    inside = inside_box(scan.points, box)
    shape = PointCloud(case.inputs["object"][:, :3], None, -1, "object")
    normalized = case.inputs["object_normalized"]
    points = {
        "seg_clip": clamp_scan_as_published(scan, box).points,
        "seg_crop": scan.points[inside],
        "cls": normalized,
        "cls_coarse": normalized,
    }
    found = {"crop_mask": inside, "object_normalized": normalize(shape).points}
    for name, rule in case.constants["cases"].items():
        grid = _sample(points[name], float(rule["grid_size"]))
        found |= {f"{name}/{key}": value for key, value in grid.items()}
    return found


def _sample(points: np.ndarray, grid_size: float) -> dict[str, np.ndarray]:
    """A grid with its voxels in the order of the published code."""
    grid = sample_grid(points, grid_size=grid_size)
    hashes = published_hashes(grid.coords)
    order = np.argsort(hashes)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    fragments = num_fragments(grid)
    with_float64 = sample_grid(points.astype(np.float64), grid_size=grid_size)
    cells = grid.coords[grid.voxel_of_point] + grid.lowest
    others = with_float64.coords[with_float64.voxel_of_point] + with_float64.lowest
    return {
        "grid_coord": grid.coords[order],
        "inverse": place[grid.voxel_of_point],
        "count": grid.counts[order],
        "min_coord": grid.lowest[None] * grid_size,
        "num_fragments": np.array(fragments),
        "fragment0_stable": fragment_points(grid, 0)[order],
        "fragment1_stable": fragment_points(grid, 1)[order],
        "fragment_last_stable": fragment_points(grid, fragments - 1)[order],
        "hash_first50": hashes[order][:_FIRST_HASHES],
        "point_grid_differs_float64": np.flatnonzero((cells != others).any(axis=1)),
    }
