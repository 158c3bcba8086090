"""Crop, voxels and the way back, random changes, and mixing of scans."""

import numpy as np
import pytest

from e3dsnn_jax.kernel_pairs import check_coords
from e3dsnn_jax.scans.augment import ScanAugment, augment_scan, mix_scans, rotate_scan
from e3dsnn_jax.scans.crop import (
    PUBLISHED_BOX,
    Box,
    clamp_scan_as_published,
    crop_scan,
    inside_box,
)
from e3dsnn_jax.scans.grid import fragment_points, num_fragments
from e3dsnn_jax.scans.scan import IGNORED, Scan, check_scan, take_points
from e3dsnn_jax.scans.scan_voxels import (
    grid_scan,
    take_voxels,
    to_points,
    voxelize_scan,
)

BOX = Box((-2.0, -2.0, -1.0), (2.0, 2.0, 1.0))
STILL = ScanAugment(rotate=0.0, scale=(1.0, 1.0), flip=0.0, jitter=0.0)


def make_scan(rng, number=300, name="a.bin"):
    return Scan(
        rng.uniform(-3, 3, (number, 3)).astype(np.float32),
        rng.uniform(0, 1, (number, 1)).astype(np.float32),
        rng.integers(-1, 5, number).astype(np.int32),
        rng.integers(0, 4, number).astype(np.int32),
        name,
    )


def test_the_walls_belong_to_the_box_and_nothing_beyond():
    below = np.nextafter(np.float32(35.2), np.float32(0))
    rows = [(35.2, 0, 0), (below, 0, 0), (0, 0, 2)]
    rows += [(0, 0, 2.0000002), (-36, 0, 0), (0, -35.1, -4)]
    points = np.array(rows, np.float32)
    # 35.2 in float32 is a little more than 35.2.
    expected = [False, True, True, False, False, True]
    assert inside_box(points, PUBLISHED_BOX).tolist() == expected


def test_crop_keeps_labels_with_their_points(rng):
    scan = make_scan(rng)
    cropped, kept = crop_scan(scan, BOX)
    rows = [
        row
        for row, point in enumerate(scan.points.tolist())
        if all(l <= v <= h for v, l, h in zip(point, *BOX, strict=True))
    ]
    assert 0 < len(rows) < 300
    assert np.flatnonzero(kept).tolist() == rows
    for field in ("points", "features", "labels", "instances"):
        np.testing.assert_array_equal(
            getattr(cropped, field), getattr(scan, field)[rows]
        )


def test_clamping_is_another_thing(rng):
    scan = make_scan(rng)
    clamped = clamp_scan_as_published(scan, BOX)
    inside = inside_box(scan.points, BOX)
    assert clamped.points.dtype == np.float64
    assert len(clamped.points) == 300
    np.testing.assert_array_equal(clamped.points[inside], scan.points[inside])
    on_wall = (np.abs(clamped.points[~inside]) == np.array([2, 2, 1])).any(axis=1)
    assert on_wall.all()


def test_boxes_without_points_or_extent_are_refused(rng):
    scan = make_scan(rng)
    with pytest.raises(ValueError, match=r"a.bin: none of its 300 points, from"):
        crop_scan(scan, Box((5, 5, 5), (6, 6, 6)))
    with pytest.raises(ValueError, match="has no extent"):
        clamp_scan_as_published(scan, Box((0, 0, 0), (1, 0, 1)))


@pytest.mark.parametrize("box", [None, BOX])
def test_voxels_and_the_way_back(rng, box):
    scan = make_scan(rng)
    voxels = voxelize_scan(scan, grid_size=0.7, box=box, rng=rng)
    check_coords(np.insert(voxels.coords, 0, 0, axis=1), "scan")
    inside = np.ones(300, bool) if box is None else inside_box(scan.points, box)
    assert ((voxels.voxel_of_point >= 0) == inside).all()
    rows = np.concatenate([scan.points, scan.features], axis=1)
    for voxel, (features, label) in enumerate(
        zip(voxels.features, voxels.labels, strict=True)
    ):
        members = np.flatnonzero(voxels.voxel_of_point == voxel)
        (chosen,) = [row for row in members if (rows[row] == features).all()]
        assert scan.labels[chosen] == label
    predicted = rng.integers(0, 5, len(voxels.coords)).astype(np.int32)
    back = to_points(predicted, voxels.voxel_of_point)
    for point, voxel in enumerate(voxels.voxel_of_point):
        assert back[point] == (IGNORED if voxel < 0 else predicted[voxel])


def test_the_first_point_stands_for_a_voxel_unless_chance_is_asked_for(rng):
    scan = make_scan(rng)
    first = voxelize_scan(scan, grid_size=1.0)
    again = voxelize_scan(scan, grid_size=1.0)
    np.testing.assert_array_equal(first.features, again.features)
    for voxel, features in enumerate(first.features):
        row = np.flatnonzero(first.voxel_of_point == voxel)[0]
        np.testing.assert_array_equal(features[:3], scan.points[row])
    other = voxelize_scan(scan, grid_size=1.0, rng=rng)
    np.testing.assert_array_equal(other.coords, first.coords)
    assert (other.features != first.features).any()


def test_fragments_of_a_scan_show_every_point_in_the_box(rng):
    scan = make_scan(rng)._replace(labels=None, instances=None)
    gridded = grid_scan(scan, grid_size=1.0, box=BOX)
    shown = {
        tuple(row)
        for number in range(num_fragments(gridded.grid))
        for row in take_voxels(
            gridded, fragment_points(gridded.grid, number)
        ).features.tolist()
    }
    rows = np.concatenate([scan.points, scan.features], axis=1)
    assert shown == {tuple(r) for r in rows[inside_box(scan.points, BOX)].tolist()}


def test_published_clamping_keeps_every_point(rng):
    scan = make_scan(rng)
    voxels = voxelize_scan(scan, grid_size=0.5, box=BOX, clamp_as_published=True)
    assert (voxels.voxel_of_point >= 0).all()
    assert voxels.features.dtype == np.float32
    assert voxels.coords.max() == 8  # the wall at 2 m is a cell of its own


def test_rotation_turns_counter_clockwise_about_the_sensor():
    scan = Scan(np.array([[1, 0, 5]], np.float32), np.zeros((1, 0)), None, None, "x")
    turned = rotate_scan(scan, np.pi / 2)
    np.testing.assert_allclose(turned.points, [[0, 1, 5]], atol=1e-7)
    assert turned.points.dtype == np.float32


def test_changes_stay_in_their_ranges_and_leave_labels_alone(rng):
    scan = make_scan(rng)
    assert (augment_scan(scan, rng, STILL).points == scan.points).all()
    config = ScanAugment(jitter=0.0)
    factors, signs, angles = [], [], []
    for _ in range(200):
        changed = augment_scan(scan, rng, config)
        assert changed.labels is scan.labels
        assert changed.features is scan.features
        matrix, *_ = np.linalg.lstsq(scan.points, changed.points, rcond=None)
        np.testing.assert_allclose(matrix[2, :2], 0, atol=1e-5)
        factor = matrix[2, 2]
        np.testing.assert_allclose(
            matrix @ matrix.T, factor**2 * np.eye(3), atol=1e-5
        )  # one factor for all axes
        factors.append(factor)
        signs.append(round(np.linalg.det(matrix) / factor**3))
        angles.append(abs(matrix[0, 1]) > 1e-4)
    assert 0.9 <= min(factors) < 0.91
    assert 1.09 < max(factors) <= 1.1
    assert 70 < signs.count(-1) < 130  # one of the two mirrors
    assert 70 < sum(angles) < 130


def test_jitter_is_clipped(rng):
    scan = make_scan(rng, 4000)
    config = ScanAugment(rotate=0, scale=(1, 1), flip=0, jitter=0.005, jitter_clip=0.01)
    noise = augment_scan(scan, rng, config).points - scan.points
    assert np.abs(noise).max() == pytest.approx(0.01, abs=1e-6)
    assert noise.std() == pytest.approx(0.0048, abs=2e-4)


def test_the_crop_comes_after_the_rotation_and_before_the_scale(rng):
    # Turned by up to 180 degrees, the corner of the box leaves it at most angles.
    corner = Scan(
        np.array([[1.9, 1.9, 0], [0, 0, 0]], np.float32),
        np.zeros((2, 0), np.float32),
        np.array([1, 2], np.int32),
        None,
        "corner",
    )
    config = ScanAugment(rotate=1.0, scale=(3.0, 3.0), flip=0.0, jitter=0.0)
    lengths = set()
    for _ in range(50):
        changed = augment_scan(corner, rng, config, box=BOX)
        assert len(changed.points) == len(changed.labels)
        lengths.add(len(changed.points))
    assert lengths == {1, 2}
    clamped = augment_scan(corner, rng, config, box=BOX, clamp_as_published=True)
    assert len(clamped.points) == 2
    assert clamped.points.dtype == np.float32


def test_the_same_seed_makes_the_same_scan(rng):
    scan = make_scan(rng)
    one, two = (
        augment_scan(scan, np.random.default_rng(3), ScanAugment()) for _ in range(2)
    )
    np.testing.assert_array_equal(one.points, two.points)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.0, 1.0)),
        ("scale", (1.2, 1.0)),
        ("rotate", 1.5),
        ("flip", -0.1),
        ("jitter", float("nan")),
        ("rotate_degrees", -1.0),
    ],
)
def test_settings_out_of_range_are_refused(rng, field, value):
    with pytest.raises(ValueError, match=f"{field} is"):
        augment_scan(make_scan(rng), rng, ScanAugment(**{field: value}))


def test_mixed_scans_share_one_grid(rng):
    first, second = make_scan(rng, 50), make_scan(rng, 70, "b.bin")
    mixed = check_scan(mix_scans(first, second))
    assert mixed.name == "a.bin + b.bin"
    for field in ("points", "features", "labels"):
        expected = np.concatenate([getattr(first, field), getattr(second, field)])
        np.testing.assert_array_equal(getattr(mixed, field), expected)
    both = {(0, i) for i in first.instances} | {(1, i) for i in second.instances}
    objects = {pair for pair in both if pair[1] > 0}
    assert len(set(mixed.instances[mixed.instances > 0].tolist())) == len(objects)
    assert (mixed.instances == 0).sum() == (
        (first.instances == 0).sum() + (second.instances == 0).sum()
    )
    coords = voxelize_scan(mixed, grid_size=0.5).coords
    assert len(np.unique(coords, axis=0)) == len(coords)


def test_unlike_scans_are_not_mixed(rng):
    scan = make_scan(rng)
    with pytest.raises(ValueError, match=r"1 feature channels but .* has 2"):
        mix_scans(scan, scan._replace(features=np.zeros((300, 2), np.float32)))
    with pytest.raises(ValueError, match=r"b.bin has no labels"):
        mix_scans(scan, scan._replace(labels=None, name="b.bin"))


def test_malformed_scans_are_refused(rng):
    scan = make_scan(rng)
    broken = scan.features.copy()
    broken[7] = np.inf
    cases = [
        (take_points(scan, np.zeros(300, bool)), r"a.bin: the scan is empty"),
        (scan._replace(labels=scan.labels[:9]), "300 points but 9 labels"),
        (scan._replace(features=broken), "1 of 300 features are NaN .* row 7"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            check_scan(wrong)
