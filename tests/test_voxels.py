"""Voxelisation against a dict of points, and every kind of broken cloud."""

import numpy as np
import pytest

from e3dsnn_jax.voxels import (
    first_point,
    join_clouds,
    mean_point,
    pad_features,
    random_point,
    voxelize,
)


def cloud(rng, points=300):
    return rng.normal(size=(points, 3)).astype(np.float32)


def cells_of(points, size):
    cells = np.floor(points.astype(np.float64) / size)
    return (cells - cells.min(0)).astype(int)


@pytest.mark.parametrize("size", [0.05, 0.3, 10.0])
def test_voxels_are_the_occupied_cells_sorted(rng, size):
    points = cloud(rng)
    voxels = voxelize(points, points, voxel_size=size)
    cells = cells_of(points, size)
    expected = sorted({tuple(cell) for cell in cells.tolist()})
    assert [tuple(cell) for cell in voxels.coords.tolist()] == expected
    np.testing.assert_array_equal(voxels.coords[voxels.voxel_of_point], cells)


def test_first_point_is_the_first_of_the_cloud(rng):
    points = cloud(rng)
    voxels = voxelize(points, points, voxel_size=0.5, choose=first_point)
    seen = {}
    for point, cell in zip(points, cells_of(points, 0.5).tolist(), strict=True):
        seen.setdefault(tuple(cell), point)
    expected = [seen[tuple(cell)] for cell in voxels.coords.tolist()]
    np.testing.assert_array_equal(voxels.features, expected)


def test_mean_point_is_the_mean(rng):
    points = cloud(rng)
    voxels = voxelize(points, points, voxel_size=0.5, choose=mean_point)
    cells = cells_of(points, 0.5)
    for cell, mean in zip(voxels.coords, voxels.features, strict=True):
        members = points[(cells == cell).all(1)].astype(np.float64)
        np.testing.assert_allclose(mean, members.mean(0), rtol=1e-6, atol=1e-7)


def test_random_point_is_a_member_repeats_and_reaches_every_member(rng):
    points = rng.uniform(0, 1, (8, 3)).astype(np.float32)
    picks = set()
    for seed in range(100):
        choose = random_point(np.random.default_rng(seed))
        again = random_point(np.random.default_rng(seed))
        one = voxelize(points, points, voxel_size=2.0, choose=choose).features
        two = voxelize(points, points, voxel_size=2.0, choose=again).features
        np.testing.assert_array_equal(one, two)
        picks.add(tuple(one[0].tolist()))
    assert picks == {tuple(point) for point in points.tolist()}


def test_one_point_and_duplicate_points():
    one = np.zeros((1, 3), np.float32)
    assert voxelize(one, one, voxel_size=1.0).coords.tolist() == [[0, 0, 0]]
    same = np.repeat(one, 9, 0)
    voxels = voxelize(same, same, voxel_size=1.0)
    assert voxels.coords.tolist() == [[0, 0, 0]]
    assert voxels.voxel_of_point.tolist() == [0] * 9


def test_huge_extents_do_not_overflow_a_key():
    points = np.array([[0, 0, 0], [4e8, 4e8, 4e8], [4e8, 0, 4e8]], np.float32)
    voxels = voxelize(points, points, voxel_size=0.25)
    cells = [[0, 0, 0], [1_600_000_000, 0, 1_600_000_000], [1_600_000_000] * 3]
    assert voxels.coords.tolist() == cells


def test_join_keeps_clouds_apart(rng):
    clouds = [voxelize(p, p, voxel_size=0.4) for p in (cloud(rng, 40), cloud(rng, 60))]
    coords, features = join_clouds(clouds)
    for index, part in enumerate(clouds):
        mine = coords[:, 0] == index
        np.testing.assert_array_equal(coords[mine, 1:], part.coords)
        np.testing.assert_array_equal(features[mine], part.features)


NAN = np.array([[0, 0, 0], [np.nan, 0, 0]], np.float32)
INFINITE = np.array([[0, 0, np.inf]], np.float32)
FAR = np.array([[0, 0, 0], [3e9, 0, 0]], np.float32)
GOOD = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("points", "features", "size", "message"),
    [
        (GOOD[:0], GOOD[:0], 1.0, r"chair_7: the cloud is empty \(0 points\)"),
        (NAN, GOOD, 1.0, "chair_7: 1 of 2 points are NaN or infinite.* row 1"),
        (INFINITE, GOOD[:1], 1.0, "chair_7: 1 of 1 points are NaN or infinite"),
        (GOOD, NAN, 1.0, "chair_7: 1 of 2 features are NaN or infinite"),
        (GOOD, GOOD[:1], 1.0, "chair_7: 2 points but 1 rows of features"),
        (FAR, FAR, 1.0, r"chair_7: the cloud spans 3e\+09 cells of 1.0"),
        (GOOD, GOOD, 0.0, "voxel_size must be positive, got 0.0"),
        (GOOD, GOOD, np.nan, "voxel_size must be positive, got nan"),
    ],
)
def test_broken_clouds_are_named(points, features, size, message):
    with pytest.raises(ValueError, match=message):
        voxelize(points, features, voxel_size=size, name="chair_7")


def test_join_rejects_nothing_and_mixed_features(rng):
    with pytest.raises(ValueError, match="at least one cloud"):
        join_clouds([])
    points = cloud(rng, 5)
    three = voxelize(points, points, voxel_size=1.0)
    six = voxelize(points, np.hstack([points, points]), voxel_size=1.0)
    with pytest.raises(ValueError, match=r"feature channels: \[3, 6\]"):
        join_clouds([three, six])


def test_padding_features():
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    padded = pad_features(features, rows=4)
    np.testing.assert_array_equal(padded[:2], features)
    np.testing.assert_array_equal(padded[2:], 0)
    assert padded.dtype == np.float32
    with pytest.raises(ValueError, match="2 voxels do not fit into 1 rows"):
        pad_features(features, rows=1)
