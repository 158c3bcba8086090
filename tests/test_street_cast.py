"""Rays against primitives, by oracles without windows, slabs or quadratics."""

import numpy as np
import pytest

from e3dsnn_jax.street.cast import cast, meet, uniform_of, windows_of
from e3dsnn_jax.street.intersect import outward_normals
from e3dsnn_jax.street.primitives import (
    SOLID,
    Kind,
    Primitives,
    join,
    place,
    primitives,
    rotation,
    seen_from,
    take,
)
from e3dsnn_jax.street.sensor import Rays, Sensor, directions, rays_of

SMALL = rays_of(Sensor(beams=16, columns=90), 0.3)
EVERY_WAY = Rays(np.radians(np.linspace(80, -80, 23)), SMALL.azimuths)


def gauge(table, row, point):
    """How far a point is out of a primitive: below 1 inside, above 1 outside."""
    local = [
        sum(
            table.axes[row, world, axis] * (point[world] - table.center[row, world])
            for world in range(3)
        )
        / table.half[row, axis]
        for axis in range(3)
    ]
    x, y, z = local
    if table.kind[row] == Kind.ELLIPSOID:
        return (x * x + y * y + z * z) ** 0.5
    if table.kind[row] == Kind.CYLINDER:
        return max((x * x + y * y) ** 0.5, abs(z))
    fall = [taper * (z + 1) / 2 for taper in table.taper[row]]
    return max(abs(x) + fall[0], abs(y) + fall[1], abs(z))


def random_table(rng, count, *, density=SOLID):
    """Primitives of every kind, size, tilt and direction, some around the sensor."""
    parts = []
    for number in range(count):
        kind = Kind(number % 3)
        turn = rotation(*rng.uniform(-np.pi, np.pi, 3))
        if number % 2:
            turn = rotation(float(rng.uniform(-np.pi, np.pi)))
        tapered = kind == Kind.BOX and number % 4 < 2
        part = primitives(
            kind,
            rng.normal(size=3) * (8, 8, 3),
            rng.uniform(0.05, 6.0, 3),
            label=10,
            reflectance=0.5,
            axes=turn,
            taper=tuple(rng.uniform(0.0, 0.9, 2)) if tapered else (0.0, 0.0),
            density=density,
        )
        parts.append(place(part, (0, 0, 0), instance=number))
    return join(parts)


def every_pair(table, rays, farthest, seed):
    """The nearest of all primitives for every ray, with no windows and no order."""
    everything = slice(0, None)
    ranges = np.full((len(rays.elevations), len(rays.azimuths)), np.inf)
    owner = np.full(ranges.shape, -1)
    for row in range(len(table.kind)):
        found = meet(table, row, rays, everything, everything, seed)
        nearer = (found < ranges) & (found < farthest)
        ranges[nearer], owner[nearer] = found[nearer], row
    return ranges, owner


@pytest.mark.parametrize("density", [SOLID, 0.8])
@pytest.mark.parametrize("rays", [SMALL, EVERY_WAY], ids=["sensor", "every way"])
def test_windows_change_nothing(rng, rays, density):
    for _ in range(4):
        table = random_table(rng, 60, density=density)
        hits = cast(table, rays, farthest=15.0, seed=7)
        ranges, owner = every_pair(table, rays, 15.0, 7)
        assert (owner >= 0).any()
        assert (owner < 0).any()
        np.testing.assert_array_equal(hits.owner, owner)
        np.testing.assert_array_equal(hits.ranges, ranges)


def test_windows_hold_where_it_is_hard():
    cases = {
        "across straight ahead": ((5, 0, -1), (1, 3, 1)),
        "across straight behind": ((-5, 0, -1), (1, 3, 1)),
        "under the sensor": ((0, 0, -2), (60, 60, 1)),
        "under the sensor, to one side": ((9.9, 0.1, -2), (20, 20, 1)),
        "around the sensor": ((0.3, 0.2, 0), (3, 3, 3)),
        "a thread far away": ((40, 30, 0), (0.01, 0.01, 30)),
        "above": ((2, 1, 6), (30, 30, 0.5)),
        "touching the sensor's axis": ((1, 0, -3), (2, 2, 1)),
    }
    for name, (center, size) in cases.items():
        for kind in Kind:
            table = primitives(kind, center, size, label=1, reflectance=1.0)
            hits = cast(table, EVERY_WAY, farthest=90.0)
            ranges, owner = every_pair(table, EVERY_WAY, 90.0, 0)
            np.testing.assert_array_equal(hits.owner, owner, err_msg=name)
            np.testing.assert_array_equal(hits.ranges, ranges, err_msg=name)


def test_entries_against_membership(rng):
    table = random_table(rng, 24)
    rays = Rays(EVERY_WAY.elevations[::4], EVERY_WAY.azimuths[::6])
    ways = directions(rays).reshape(-1, 3)
    met = 0
    for row in range(len(table.kind)):
        found = meet(table, row, rays, slice(0, None), slice(0, None), 0).ravel()
        if gauge(table, row, np.zeros(3)) < 1:
            assert np.isinf(found).all()
            continue
        steps = np.arange(0.0, 30.0, 0.05)
        for way, entry in zip(ways, found, strict=True):
            end = min(entry, 30.0)
            before = steps[steps < end - 1e-9]
            along = [
                gauge(table, row, t * way) for t in before[:: 1 + len(before) // 60]
            ]
            assert min(along, default=2.0) >= 1
            if np.isfinite(entry):
                met += 1
                assert gauge(table, row, entry * way) == pytest.approx(1, abs=1e-6)
                assert gauge(table, row, (entry - 1e-4) * way) > 1
    assert met > 50


def test_a_plane_at_a_known_distance():
    wall = primitives(Kind.BOX, (11, 0, 0), (2, 80, 80), label=1, reflectance=1.0)
    hits = cast(wall, SMALL, farthest=30.0)
    ways = directions(SMALL)
    expected = np.full(hits.ranges.shape, np.inf)
    for beam in range(expected.shape[0]):
        for column in range(expected.shape[1]):
            x, y, z = ways[beam, column]
            if x > 0 and 10 / x < 30 and abs(10 * y / x) < 40 and abs(10 * z / x) < 40:
                expected[beam, column] = 10 / x
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(hits.ranges, expected, rtol=1e-12)


def test_the_nearer_wall_hides_the_farther():
    walls = primitives(
        Kind.BOX, [(20, 0, 0), (10, 0, 0)], (1, 100, 100), label=1, reflectance=1.0
    )
    owner = cast(walls, SMALL, farthest=90.0).owner
    assert set(np.unique(owner)) == {-1, 1}
    alone = cast(take(walls, np.array([0])), SMALL, farthest=90.0).owner
    assert (alone == 0).sum() > 100


def test_normals_are_gradients(rng):
    table = random_table(rng, 30)
    hits = cast(table, EVERY_WAY, farthest=40.0)
    beam, column = np.nonzero(hits.owner >= 0)
    chosen = rng.choice(len(beam), 120, replace=False)
    beam, column = beam[chosen], column[chosen]
    owner = hits.owner[beam, column]
    points = hits.ranges[beam, column, None] * directions(EVERY_WAY)[beam, column]
    normals = outward_normals(take(table, owner), points)
    assert set(table.kind[owner]) == set(Kind)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-9)
    for row, point, normal in zip(owner, points, normals, strict=True):
        slope = np.array(
            [
                gauge(table, row, point + step) - gauge(table, row, point - step)
                for step in 1e-7 * np.eye(3)
            ]
        )
        np.testing.assert_allclose(normal, slope / np.linalg.norm(slope), atol=1e-4)
        # A ray can only enter where the surface faces it.
        assert normal @ point < 0


def test_leaves_stop_as_many_rays_as_their_density_says():
    leaves = primitives(
        Kind.BOX, (6, 0, 0), (2, 200, 200), label=70, reflectance=0.3, density=0.5
    )
    rays = Rays(np.radians(np.linspace(5, -5, 60)), rays_of(Sensor()).azimuths)
    ways = directions(rays)[..., 0]
    ahead = ways > 0.5
    stop = meet(leaves, 0, rays, slice(0, None), slice(0, None), 3)
    depth = stop * ways - 5
    stopped = np.isfinite(stop) & ahead
    assert (depth[stopped] >= -1e-9).all()
    assert (depth[stopped] < 2).all()
    passed = np.exp(-0.5 * 2 / ways[ahead])
    expected = 1 - passed.mean()
    error = np.sqrt(expected * (1 - expected) / ahead.sum())
    assert stopped.sum() / ahead.sum() == pytest.approx(expected, abs=4 * error)


def test_random_numbers_are_uniform_and_tell_everything_apart():
    rays = np.arange(40_000).reshape(200, 200)
    draws = [uniform_of(rays, row, seed) for row, seed in ((0, 0), (1, 0), (0, 1))]
    for values in draws:
        assert values.min() > 0
        assert values.max() <= 1
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)
        assert abs(np.corrcoef(values.ravel()[1:], values.ravel()[:-1])[0, 1]) < 0.03
    for a, b in ((0, 1), (0, 2), (1, 2)):
        corr = np.corrcoef(draws[a].ravel(), draws[b].ravel())[0, 1]
        assert abs(corr) < 0.03


def test_no_primitives_no_hits():
    none = join([])
    assert isinstance(none, Primitives)
    hits = cast(none, SMALL, farthest=10.0)
    assert np.isinf(hits.ranges).all()
    assert (hits.owner == -1).all()


def test_most_primitives_get_small_windows(rng):
    table = random_table(rng, 60)
    windows = windows_of(table, SMALL)
    away = np.linalg.norm(table.center[:, :2], axis=1) > 8
    width = windows.last_column - windows.first_column
    assert (width[away] < 60).all()
    assert (width <= 90).all()


def test_frames(rng):
    table = random_table(rng, 9)
    moved = place(table, (3.0, -2.0, 1.0), 0.7, instance=5)
    assert (moved.instance == 5).all()
    # Seen from where it was put, it is what it was.
    back = seen_from(moved, np.array([3.0, -2.0, 1.0]), 0.7)
    np.testing.assert_allclose(back.center, table.center, atol=1e-12)
    np.testing.assert_allclose(back.axes, table.axes, atol=1e-12)
    # A quarter turn takes what lies ahead to the left.
    ahead = primitives(Kind.BOX, (2, 0, 0), (1, 1, 1), label=1, reflectance=1.0)
    left = place(ahead, (0, 0, 0), np.pi / 2).center
    np.testing.assert_allclose(left, [[0, 2, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 65}, "1 to 64 beams, not 65"),
        ({"beams": 0}, "1 to 64 beams, not 0"),
        ({"columns": 3}, "at least 4 columns in a turn, not 3"),
        ({"nearest": 5.0, "farthest": 4.0}, "ranges from 5.0 to 4.0 m"),
        ({"lost": 1.0}, "lost must lie in"),
    ],
)
def test_impossible_sensors(change, message):
    with pytest.raises(ValueError, match=message):
        Sensor(**change)


def test_beams_of_the_whole_sensor():
    rays = rays_of(Sensor())
    degrees = np.degrees(rays.elevations)
    assert len(degrees) == 64
    assert (np.diff(degrees) < 0).all()
    np.testing.assert_allclose(degrees[[0, 31, 32, 63]], [2, -8.33, -8.83, -24.8])
    np.testing.assert_allclose(np.linalg.norm(directions(rays), axis=-1), 1)
    with pytest.raises(ValueError, match="phase"):
        rays_of(Sensor(), 1.0)
