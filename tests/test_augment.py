import dataclasses

import numpy as np
import pytest

from e3dsnn_jax.data.augment import Augment, augment, normalize, rotation_matrix
from e3dsnn_jax.data.clouds import PointCloud
from tests.whole_datasets import normals_of

NOTHING = Augment(scale=(1.0, 1.0), shift=0.0, shuffle=False)


@pytest.fixture
def cloud(rng):
    normals = rng.normal(size=(50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = rng.normal(size=(50, 3)) * 7 + 30
    return PointCloud(points.astype(np.float32), normals.astype(np.float32), 4, "cup")


def check_same_map(before, after, linear):
    """Points and normals both followed `linear` (points after normalising)."""
    unit = normalize(before)
    np.testing.assert_allclose(after.points, unit.points @ linear.T, atol=1e-5)
    np.testing.assert_allclose(after.normals, before.normals @ linear.T, atol=1e-5)


def fitted(before, after):
    """The linear map between the normalised and the augmented points."""
    unit = normalize(before).points.astype(np.float64)
    return np.linalg.lstsq(unit, after.points.astype(np.float64), rcond=None)[0].T


def test_normalize_centres_and_scales_to_the_unit_ball(cloud):
    unit = normalize(cloud)
    np.testing.assert_allclose(unit.points.mean(axis=0), 0, atol=1e-6)
    assert np.linalg.norm(unit.points, axis=1).max() == pytest.approx(1, abs=1e-6)
    assert unit.points.dtype == np.float32
    np.testing.assert_array_equal(unit.normals, cloud.normals)
    np.testing.assert_allclose(normalize(unit).points, unit.points, atol=1e-6)


def test_normalize_of_one_place_is_finite():
    points = np.full((3, 3), 5, np.float32)
    assert (normalize(PointCloud(points, None, 0, "dot")).points == 0).all()


def test_normalize_far_from_the_origin_is_precise():
    near = np.random.default_rng(1).normal(size=(100, 3)).astype(np.float32)
    far = PointCloud(np.float32(4096) + np.round(near * 64) / 64, None, 0, "far")
    close = PointCloud(np.round(near * 64) / 64, None, 0, "close")
    np.testing.assert_allclose(
        normalize(far).points, normalize(close).points, atol=1e-6
    )


def test_default_recipe_is_one_scale_one_shift_and_an_order(cloud, rng):
    scales, shifts = [], []
    for _ in range(200):
        changed = augment(cloud, rng, Augment())
        assert changed.points.dtype == normals_of(changed).dtype == np.float32
        # Every normal is still there, once: it tells which point is which.
        order = np.lexsort(normals_of(changed).T)[
            np.argsort(np.lexsort(cloud.normals.T))
        ]
        np.testing.assert_array_equal(normals_of(changed)[order], cloud.normals)
        unit, points = normalize(cloud).points, changed.points[order]
        scale = (points[0] - points[1]) / (unit[0] - unit[1])
        np.testing.assert_allclose(scale, scale[0], rtol=1e-4)
        shift = points[0] - scale[0] * unit[0]
        np.testing.assert_allclose(points, scale[0] * unit + shift, atol=1e-5)
        scales.append(scale[0])
        shifts.append(shift)
    assert 0.9 <= min(scales) < 0.91
    assert 1.09 < max(scales) <= 1.1001
    shifts = np.array(shifts)
    assert np.abs(shifts).max() <= 0.2001
    assert (shifts.min(axis=0) < -0.18).all()
    assert (shifts.max(axis=0) > 0.18).all()


def test_nothing_asked_is_only_normalising(cloud, rng):
    changed = augment(cloud, rng, NOTHING)
    np.testing.assert_array_equal(changed.points, normalize(cloud).points)
    np.testing.assert_array_equal(changed.normals, cloud.normals)
    assert (changed.label, changed.name) == (4, "cup")


def test_the_generator_decides_all(cloud):
    everything = Augment(
        anisotropic=True,
        rotate_z_degrees=180,
        tilt_degrees=5,
        flip=0.5,
        jitter=0.01,
        dropout=0.5,
    )
    first, again, other = (
        augment(cloud, np.random.default_rng(seed), everything) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.normals, again.normals)
    assert (
        first.points.shape != other.points.shape or (first.points != other.points).any()
    )


def test_augment_leaves_its_input_alone(cloud, rng):
    before = cloud._replace(points=cloud.points.copy(), normals=cloud.normals.copy())
    augment(cloud, rng, Augment(rotate_z_degrees=90, jitter=0.1))
    np.testing.assert_array_equal(cloud.points, before.points)
    np.testing.assert_array_equal(cloud.normals, before.normals)


def test_rotation_about_z_covers_its_range(cloud, rng):
    config = dataclasses.replace(NOTHING, rotate_z_degrees=30)
    angles = []
    for _ in range(100):
        changed = augment(cloud, rng, config)
        linear = fitted(cloud, changed)
        check_same_map(cloud, changed, linear)
        angle = np.arctan2(linear[1, 0], linear[0, 0])
        expected = rotation_matrix(np.array([0, 0, angle]))
        np.testing.assert_allclose(linear, expected, atol=1e-4)
        angles.append(np.rad2deg(angle))
    assert -30.01 < min(angles) < -27
    assert 27 < max(angles) < 30.01


def test_quarter_turns_are_the_four(cloud, rng):
    config = dataclasses.replace(NOTHING, quarter_turns=True)
    seen = set()
    for _ in range(60):
        changed = augment(cloud, rng, config)
        linear = fitted(cloud, changed)
        np.testing.assert_allclose(linear, np.round(linear), atol=1e-4)
        check_same_map(cloud, changed, np.round(linear))
        seen.add((round(linear[0, 0]), round(linear[1, 0])))
    assert seen == {(1, 0), (0, 1), (-1, 0), (0, -1)}


def test_tilt_is_a_small_rotation(cloud, rng):
    config = dataclasses.replace(NOTHING, tilt_degrees=4)
    angles = []
    for _ in range(100):
        changed = augment(cloud, rng, config)
        linear = fitted(cloud, changed)
        check_same_map(cloud, changed, linear)
        np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-4)
        assert np.linalg.det(linear) == pytest.approx(1, abs=1e-4)
        angles.append(np.rad2deg(np.arccos((np.trace(linear) - 1) / 2)))
    assert 0 < np.median(angles) < 12
    assert max(angles) <= np.sqrt(3) * 12 + 0.01


def test_flips_mirror_x_and_y_with_their_normals(cloud, rng):
    config = dataclasses.replace(NOTHING, flip=0.5)
    seen = set()
    for _ in range(60):
        changed = augment(cloud, rng, config)
        linear = np.round(fitted(cloud, changed))
        check_same_map(cloud, changed, linear)
        np.testing.assert_array_equal(linear, np.diag(np.diag(linear)))
        seen.add(tuple(np.diag(linear).astype(int).tolist()))
    assert seen == {(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)}


def test_anisotropic_scale_keeps_normals_perpendicular(rng):
    plane = rng.uniform(-1, 1, size=(60, 2))
    points = np.stack([plane[:, 0], plane[:, 1], plane[:, 0] + 2 * plane[:, 1]], axis=1)
    normal = np.array([-1, -2, 1]) / np.sqrt(6)
    cloud = PointCloud(
        points.astype(np.float32),
        np.tile(normal, (60, 1)).astype(np.float32),
        0,
        "plane",
    )
    config = dataclasses.replace(
        NOTHING, scale=(0.5, 2.0), anisotropic=True, rotate_z_degrees=180
    )
    changed = augment(cloud, rng, config)
    edges = changed.points - changed.points[0]
    np.testing.assert_allclose(edges @ normals_of(changed)[0], 0, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(normals_of(changed), axis=1), 1, atol=1e-5
    )
    singular = np.linalg.svd(fitted(cloud, changed), compute_uv=False)
    assert singular.max() / singular.min() > 1.01


def test_jitter_is_cut(cloud, rng):
    config = dataclasses.replace(NOTHING, jitter=0.02, jitter_clip=0.03)
    noise = augment(cloud, rng, config).points - normalize(cloud).points
    assert 0.01 < noise.std() < 0.03
    assert np.abs(noise).max() <= 0.03 + 1e-6


def test_dropout_draws_its_share_anew(cloud, rng):
    config = dataclasses.replace(NOTHING, dropout=0.8)
    left = [len(augment(cloud, rng, config).points) for _ in range(200)]
    assert min(left) < 20
    assert max(left) > 45


def test_dropout_never_empties_a_cloud(rng):
    one = PointCloud(np.ones((1, 3), np.float32), None, 0, "dot")
    config = dataclasses.replace(NOTHING, dropout=0.99)
    assert all(len(augment(one, rng, config).points) == 1 for _ in range(50))


def test_clouds_without_normals(cloud, rng):
    config = Augment(anisotropic=True, flip=0.5, dropout=0.3, rotate_z_degrees=180)
    assert augment(cloud._replace(normals=None), rng, config).normals is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", (1.1, 0.9), r"augment.scale is \(1.1, 0.9\)"),
        ("scale", (0.0, 1.0), "augment.scale"),
        ("shift", -0.1, "augment.shift is -0.1, expected 0 or more"),
        ("dropout", 1.0, r"augment.dropout is 1.0, expected \[0, 1\)"),
        ("flip", 1.2, "augment.flip is 1.2"),
        ("rotate_z_degrees", float("nan"), "augment.rotate_z_degrees is nan"),
        ("jitter", -1.0, "augment.jitter is -1.0"),
    ],
)
def test_settings_out_of_range(cloud, rng, field, value, message):
    with pytest.raises(ValueError, match=message):
        augment(cloud, rng, dataclasses.replace(Augment(), **{field: value}))
