"""Streets and their scans: what is there, where it stands, and what repeats."""

import dataclasses
import time

import numpy as np
import pytest

from e3dsnn_jax.street import REDUCED, plan_street, scan_street, view_street
from e3dsnn_jax.street.blocks import block_of
from e3dsnn_jax.street.classes import AT_REST, KITTI_TYPES, RawLabel
from e3dsnn_jax.street.movables import car, person, truck
from e3dsnn_jax.street.plan import BLOCK, ground_height, road_height
from e3dsnn_jax.street.primitives import SOLID, rotation
from e3dsnn_jax.street.scan import pose_at, street_at
from e3dsnn_jax.street.sensor import directions, echo
from e3dsnn_jax.street.snapshot import place_object, points_in_box, snapshot_from
from e3dsnn_jax.street.traffic import streams_of, traffic_at
from experiments import street_baseline
from tests.test_street_cast import gauge

SENSOR = dataclasses.replace(REDUCED, farthest=50.0)
THINGS = {*KITTI_TYPES, *AT_REST}


@pytest.fixture(scope="module")
def views():
    """Reduced views of eight streets."""
    return [
        view_street(plan_street(0, scene), 9.3 * scene, SENSOR) for scene in range(8)
    ]


def at_rest(labels):
    return {AT_REST.get(RawLabel(label), RawLabel(label)) for label in labels}


def test_every_class_has_points(views):
    seen = np.concatenate([view.scan.label for view in views])
    names, counts = np.unique(seen, return_counts=True)
    assert set(names) == set(RawLabel)
    assert counts.min() >= 20
    common = {RawLabel.ROAD, RawLabel.SIDEWALK, RawLabel.TERRAIN, RawLabel.BUILDING}
    common |= {RawLabel.CAR, RawLabel.VEGETATION, RawLabel.PERSON}
    for view in views:
        assert common <= at_rest(np.unique(view.scan.label))


def test_scans_are_sound(views):
    for scan, _, rays, _ in views:
        count = len(scan.points)
        assert 9_000 < count <= 32 * 512
        assert np.isfinite(scan.points).all()
        ranges = np.linalg.norm(scan.points, axis=1)
        assert ranges.min() >= SENSOR.nearest - 1e-9
        assert ranges.max() <= SENSOR.farthest + 1e-9
        steps = scan.intensity * 100
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
        assert 0 <= scan.intensity.min() <= scan.intensity.max() <= 0.99
        thing = np.isin(scan.label, sorted(THINGS))
        np.testing.assert_array_equal(scan.instance > 0, thing)
        # Every point lies on the ray of its beam and column, once, in order.
        ways = directions(rays)[scan.beam, scan.column]
        np.testing.assert_allclose(scan.points / ranges[:, None], ways, atol=1e-9)
        number = scan.beam * SENSOR.columns + scan.column
        assert (np.diff(number) > 0).all()


def test_objects_are_told_apart(views):
    for view in views:
        boxes, scan = view.snapshot.boxes, view.scan
        assert len(set(boxes.instance)) == len(boxes.instance)
        assert boxes.instance.min() >= 1
        assert boxes.instance.max() < 2**16
        label_of = dict(zip(boxes.instance, boxes.label, strict=True))
        for number in np.unique(scan.instance[scan.instance > 0]):
            assert set(scan.label[scan.instance == number]) == {label_of[number]}


def test_boxes_hold_what_was_hit_and_nothing_else(views):
    held = 0
    for view in views:
        table, boxes = view.snapshot.primitives, view.snapshot.boxes
        hit = view.hits.owner >= 0
        points = (view.hits.ranges[..., None] * directions(view.rays))[hit]
        owner = view.hits.owner[hit]
        number = table.instance[owner]
        solid = table.density[owner] == SOLID
        for row, instance in enumerate(boxes.instance):
            own = number == instance
            inside = points_in_box(points, boxes, row, 1e-6)
            assert inside[own].all()
            held += own.sum()
            # On a slope ground, grass or a kerb reach into a box that stands on it.
            others = inside & ~own & solid & (number > 0)
            assert not others.any()
    assert held > 10_000


@pytest.mark.parametrize("make", [car, truck, person])
def test_boxes_are_tight(rng, make):
    labels = [None] if make is not person else [None, RawLabel.MOVING_PERSON]
    for _ in range(20):
        for label in labels:
            model = make(rng) if label is None else make(rng, label)
            table, (length, width, height) = model.primitives, model.size
            axes = np.einsum("pij,pj->pij", table.axes, table.half)
            # Balls and lids reach less far than the corners of their bounding boxes.
            lying = (table.kind != 0)[:, None]
            reach = np.where(
                lying, np.sqrt((axes**2).sum(axis=2)), np.abs(axes).sum(axis=2)
            )
            low, high = (table.center - reach).min(0), (table.center + reach).max(0)
            limit = np.array([length / 2, width / 2, height])
            assert (high <= limit + 1e-9).all()
            assert (-low[:2] <= limit[:2] + 1e-9).all()
            assert low[2] >= -1e-9
            assert high[2] >= height - 0.02
            assert (high - low)[1] >= 0.85 * width
            assert (high - low)[0] >= (0.97 if make is not person else 0.5) * length


def test_objects_keep_clear_of_each_other():
    """No box of an object holds a point of a grid through another one."""
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 9)] * 3), -1).reshape(-1, 3)
    for scene in range(10):
        plan = plan_street(3, scene)
        boxes = street_at(plan, 2.0 * scene, SENSOR).boxes
        for row in range(len(boxes.yaw)):
            near = np.linalg.norm(boxes.center - boxes.center[row], axis=1) < 12
            points = grid * boxes.size[row] @ rotation(float(boxes.yaw[row])).T
            points = points + boxes.center[row]
            for other in np.nonzero(near)[0]:
                if other != row:
                    clash = points_in_box(points, boxes, int(other))
                    assert not clash.any(), (scene, boxes.center[[row, other]])


def test_a_scan_is_a_function_of_its_arguments():
    plan = plan_street(1, 2)
    first = scan_street(plan, 1.5, SENSOR)
    scan_street(plan_street(1, 3), 0.0, SENSOR)
    block_of.cache_clear()
    streams_of.cache_clear()
    again = scan_street(plan_street(1, 2), 1.5, SENSOR)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    others = [
        scan_street(plan_street(2, 2), 1.5, SENSOR),
        scan_street(plan_street(1, 4), 1.5, SENSOR),
        scan_street(plan, 1.6, SENSOR),
    ]
    for other in others:
        same = other.points.shape == first.points.shape
        assert not (same and np.allclose(other.points, first.points))


def test_frames_of_a_sequence_see_one_street():
    plan = plan_street(0, 5)
    places = []
    for seconds in (0.0, 0.5, 2.0):
        boxes = view_street(plan, seconds, SENSOR).snapshot.boxes
        pose = pose_at(plan, seconds, SENSOR)
        world = boxes.center @ rotation(pose.yaw).T + pose.position
        places.append(dict(zip(boxes.instance, world, strict=True)))
    still = [n for n in places[0] if n < 40_000 and n in places[2]]
    moving = [n for n in places[0] if n > 40_000 and n in places[1]]
    assert len(still) > 10
    assert len(moving) > 5
    for number in still:
        np.testing.assert_allclose(places[0][number], places[2][number], atol=1e-9)
    for number in moving:
        way = places[1][number] - places[0][number]
        assert 0.4 < abs(way[0]) < 8
        assert abs(way[1]) < 1e-9
    # The sensor moves along x, within its lane.
    start, stop = (pose_at(plan, t, SENSOR).position for t in (0.0, 2.0))
    assert stop[0] - start[0] == pytest.approx(2 * plan.speed)
    assert -plan.lane < stop[1] < 0


def test_traffic_does_not_depend_on_how_far_one_looks():
    plan = plan_street(0, 1)
    x = plan.start + 50
    near, far = (traffic_at(plan, 4.0, x, reach) for reach in (30.0, 200.0))
    known = {int(part.boxes.instance[0]): part for part in far}
    assert 0 < len(near) < len(far)
    for part in near:
        twin = known[int(part.boxes.instance[0])]
        np.testing.assert_array_equal(part.boxes.center, twin.boxes.center)


def test_the_road_has_no_steps_and_gentle_slopes():
    for scene in range(5):
        plan = plan_street(0, scene)
        x = np.linspace(-500, 900, 20_001)
        slope = np.diff(road_height(plan, x)) / np.diff(x)
        assert np.abs(slope).max() < 0.09
        assert np.abs(slope).max() > 0.005


def test_things_stand_on_the_ground_that_rays_hit(views):
    """The height that places objects is the height of the pieces of ground."""
    checked = 0
    for scene in range(4):
        plan = plan_street(0, scene)
        table = street_at(plan, 0.0, SENSOR).primitives
        soil = np.isin(
            table.label, [RawLabel.ROAD, RawLabel.SIDEWALK, RawLabel.TERRAIN]
        )
        soil &= (table.kind == 0) & (table.density == SOLID)
        rows = np.nonzero(soil)[0]
        x0 = plan.start
        rng = np.random.default_rng(scene)
        for _ in range(12):
            x, y = x0 + rng.uniform(-40, 40), rng.uniform(-30, 30)
            height = ground_height(plan, x, y)
            above, below = (
                min(gauge(table, row, (x, y, height + step)) for row in rows)
                for step in (0.05, -0.05)
            )
            assert below < 1
            assert above > 1 - 1e-3
            checked += 1
    assert checked == 48


def test_snapshots_turn_with_the_observer():
    model = car(np.random.default_rng(0))
    made = place_object(model, (10.0, 5.0, 0.0), np.pi - 0.1, 3)
    seen = snapshot_from(made, np.array([10.0, 0.0, 1.0]), -0.3)
    boxes = seen.boxes
    assert boxes.yaw[0] == pytest.approx(np.pi - 0.1 + 0.3 - 2 * np.pi)
    c, s = np.cos(0.3), np.sin(0.3)
    expected = [-s * 5, c * 5, model.size[2] / 2 - 1]
    np.testing.assert_allclose(boxes.center[0], expected, atol=1e-12)


def test_weak_and_far_returns_are_lost(rng):
    ones = np.ones(4000)

    def share(reflectance, distance):
        _, noticed = echo(reflectance * ones, ones, distance * ones, REDUCED, rng)
        return noticed.mean()

    assert share(0.1, 20) == pytest.approx(1 - SENSOR.lost, abs=0.015)
    assert share(0.1, 55) == pytest.approx(0.5, abs=0.1)
    assert share(0.1, 85) < 0.1
    assert share(0.5, 85) > 0.9
    bright, _ = echo(ones, ones, ones, SENSOR, rng)
    assert bright.max() == 0.99
    steep, _ = echo(0.3 * ones, ones, 10 * ones, SENSOR, rng)
    grazing, _ = echo(0.3 * ones, 0 * ones, 10 * ones, SENSOR, rng)
    assert grazing.mean() == pytest.approx(0.35 * steep.mean(), rel=0.05)


def test_a_reduced_scan_is_quick():
    scan_street(plan_street(0, 9), 0.0, SENSOR)
    began = time.process_time()
    scan_street(plan_street(0, 9), 0.1, SENSOR)
    assert time.process_time() - began < 1.0


def test_blocks_behind_the_start_differ_from_those_ahead():
    plan = plan_street(0, 0)
    assert not np.array_equal(
        block_of(plan, -2).boxes.size[:2], block_of(plan, 2).boxes.size[:2]
    )
    centers = block_of(plan, -2).boxes.center[:, 0]
    assert (centers > -2 * BLOCK - 1).all()
    assert (centers < -BLOCK + 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_street(-1, 0), "seed and scene must not be negative, not -1"),
        (lambda: plan_street(0, -3), "not be negative, not 0 and -3"),
        (lambda: scan_street(plan_street(0, 0), -0.1), "not -0.1 s"),
        (lambda: scan_street(plan_street(0, 0), float("nan")), "not nan s"),
    ],
)
def test_what_there_is_no_street_for(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_height_and_intensity_tell_little():
    config = street_baseline.Config(
        train_scenes=4, test_scenes=2, beams=16, columns=256
    )
    result = street_baseline.baseline(config)
    assert result["points"] > 20_000
    assert result["best"] < 0.35
    assert result["best"] == max(result[k] for k in ("counts", "roots", "shares"))
    with pytest.raises(ValueError, match="not 0 and 3"):
        street_baseline.baseline(street_baseline.Config(train_scenes=0, test_scenes=3))


def test_mean_iou_by_hand():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    mean, each = street_baseline.mean_iou(confusion)
    np.testing.assert_allclose(each, [3 / 6, 4 / 7, 0])
    assert mean == pytest.approx((3 / 6 + 4 / 7) / 2)
