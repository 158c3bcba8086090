"""Grid sampling against a dictionary of cells, and hashes in Python integers."""

import numpy as np
import pytest

from e3dsnn_jax.scans.grid import (
    fragment_points,
    num_fragments,
    published_hashes,
    random_points,
    sample_grid,
)


def cells_of(points, grid_size):
    """Cell of each point, one number at a time in the type of the points."""
    edge = points.dtype.type(grid_size)
    return [tuple(int(np.floor(value / edge)) for value in point) for point in points]


def groups_of(points, grid_size):
    groups = {}
    for row, cell in enumerate(cells_of(points, grid_size)):
        groups.setdefault(cell, []).append(row)
    return dict(sorted(groups.items()))


def clouds(rng):
    street = rng.normal(scale=(20, 20, 1), size=(400, 3))
    yield "street", street.astype(np.float32), 0.05
    yield "many points a cell", rng.uniform(-1, 1, (300, 3)).astype(np.float32), 0.4
    yield "float64", street, 0.05
    yield "one point", np.array([[1.0, -2.0, 3.0]], np.float32), 0.05
    yield "duplicates", np.repeat(street[:5], 7, axis=0).astype(np.float32), 0.1
    walls = np.arange(-20, 20)[:, None] * np.float32(0.05) * np.ones(3, np.float32)
    yield "on the walls of cells", walls.astype(np.float32), 0.05
    # Cells whose numbers do not fit into 64 bits together with the row.
    far = np.concatenate([street, street + 4e7, street])
    yield "far apart", far, 0.05


@pytest.mark.parametrize(
    "name", [name for name, _, _ in clouds(np.random.default_rng())]
)
def test_voxels_are_the_groups_of_a_dictionary(rng, name):
    points, grid_size = next((p, g) for n, p, g in clouds(rng) if n == name)
    grid = sample_grid(points, grid_size=grid_size)
    groups = groups_of(points, grid_size)
    lowest = np.array(list(groups)).min(axis=0)
    np.testing.assert_array_equal(grid.lowest, lowest)
    np.testing.assert_array_equal(grid.coords, np.array(list(groups)) - lowest)
    np.testing.assert_array_equal(grid.counts, [len(g) for g in groups.values()])
    assert num_fragments(grid) == max(len(g) for g in groups.values())
    for voxel, rows in enumerate(groups.values()):
        start = grid.starts[voxel]
        assert grid.order[start : start + len(rows)].tolist() == rows
        assert set(grid.voxel_of_point[rows]) == {voxel}


def test_fragments_hold_every_voxel_and_together_every_point(rng):
    points = rng.uniform(0, 1, (200, 3)).astype(np.float32)
    grid = sample_grid(points, grid_size=0.3)
    groups = list(groups_of(points, 0.3).values())
    seen = set()
    for number in range(num_fragments(grid)):
        chosen = fragment_points(grid, number)
        assert chosen.tolist() == [rows[number % len(rows)] for rows in groups]
        seen.update(chosen.tolist())
    assert seen == set(range(200))
    with pytest.raises(ValueError, match="from 0, got -1"):
        fragment_points(grid, -1)


def test_random_points_are_uniform_in_each_voxel(rng):
    # 3 points and 2 points: the published rule would take the first of two 2/3 of
    # the time.
    points = np.array([[0.1], [0.2], [0.3], [1.1], [1.2]]) * np.ones((1, 3))
    grid = sample_grid(points, grid_size=1.0)
    draws = np.array([random_points(grid, rng) for _ in range(3000)])
    shares = np.bincount(draws.ravel(), minlength=5) / 3000
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2], atol=0.04)


def test_hashes_multiply_before_they_combine(rng):
    coords = rng.integers(0, 2**31 - 1, size=(50, 3)).astype(np.int32)
    expected = []
    for cell in coords.tolist():
        value = 14695981039346656037
        for number in cell:
            value = value * 1099511628211 % 2**64 ^ number
        expected.append(value)
    assert published_hashes(coords).tolist() == expected


def test_single_precision_divides_in_single_precision():
    # 1.15 / 0.05 is 23 in float32 and a little less in float64.
    points = np.full((1, 3), 1.15, np.float32)
    cells = [
        int(sample_grid(points.astype(dtype), grid_size=0.05).lowest[0])
        for dtype in (np.float32, np.float64)
    ]
    assert cells == [cells_of(points, 0.05)[0][0], 22]
    assert cells[0] == 23


@pytest.mark.parametrize(
    ("points", "grid_size", "message"),
    [
        (np.zeros((0, 3), np.float32), 0.1, "scan.bin: the cloud is empty"),
        (np.zeros((2, 3), np.float32), 0.0, "must be positive, got 0.0"),
        (np.zeros((2, 3), np.float32), float("nan"), "must be positive, got nan"),
        (
            np.array([[0, 0, 0], [1, np.nan, 2]], np.float32),
            0.1,
            r"scan.bin: 1 of 2 points are NaN or infinite, the first is row 1",
        ),
        (
            np.array([[0, 0, 0], [1e9, 0, 0]], np.float32),
            0.1,
            r"spans 1e\+10 cells of 0.1 along an axis",
        ),
        (np.full((1, 3), 3e38, np.float32), 0.1, "use a larger grid_size"),
    ],
)
def test_clouds_that_cannot_be_cut_are_refused(points, grid_size, message):
    with pytest.raises(ValueError, match=message):
        sample_grid(points, grid_size=grid_size, name="scan.bin")
