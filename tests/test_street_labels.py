"""Boxes, label lines, projection and occlusion of the street's KITTI frames."""

import dataclasses
import math
import tarfile

import numpy as np
import pytest

from e3dsnn_jax.street import REDUCED, plan_street, view_street
from e3dsnn_jax.street.annotate import (
    FEWEST_POINTS,
    LABELLED,
    annotate,
    in_image,
    visible_share,
)
from e3dsnn_jax.street.calibration import (
    IMAGE_SIZE,
    format_calibration,
    from_camera,
    project,
    street_calibration,
    to_camera,
)
from e3dsnn_jax.street.cast import cast
from e3dsnn_jax.street.classes import RawLabel
from e3dsnn_jax.street.label_lines import (
    box_of_label,
    corners_of,
    dont_care,
    format_line,
    label_of_box,
    parse_line,
    rectangle_of,
    wrap,
)
from e3dsnn_jax.street.movables import car
from e3dsnn_jax.street.primitives import Kind, join, primitives
from e3dsnn_jax.street.scan import View, measure
from e3dsnn_jax.street.sensor import rays_of
from e3dsnn_jax.street.snapshot import Boxes, Snapshot, place_object, points_in_box

CALIBRATION = street_calibration()
SENSOR = dataclasses.replace(REDUCED, farthest=80.0)


def boxes_ahead(rng, count):
    """Boxes of any heading in front of the camera, all within its image or not."""
    x = rng.uniform(3, 60, count)
    center = np.stack(
        [x, rng.uniform(-0.9, 0.9, count) * x, rng.normal(-1, 1, count)], 1
    )
    return Boxes(
        rng.choice([RawLabel.CAR, RawLabel.MOVING_TRUCK, RawLabel.PERSON], count),
        np.arange(1, count + 1),
        center,
        rng.uniform(0.5, 5.0, (count, 3)),
        rng.uniform(-np.pi, np.pi, count),
    )


def loop_to_camera(point):
    """Sensor to rectified camera, one product at a time."""
    turn = CALIBRATION.sensor_to_camera
    first = [
        sum(float(turn[i, j]) * float(point[j]) for j in range(3)) + float(turn[i, 3])
        for i in range(3)
    ]
    rect = CALIBRATION.rectification
    return [sum(float(rect[i, j]) * first[j] for j in range(3)) for i in range(3)]


def loop_pixel(point):
    whole = [*loop_to_camera(point), 1.0]
    p2 = CALIBRATION.projections[2]
    u, v, w = (sum(float(p2[i, j]) * whole[j] for j in range(4)) for i in range(3))
    return u / w, v / w


def test_projection_against_loops(rng):
    points = rng.normal(size=(50, 3)) * (20, 10, 2) + (40, 0, 0)
    camera = to_camera(CALIBRATION, points)
    pixels = project(CALIBRATION, camera)
    for point, seen, pixel in zip(points, camera, pixels, strict=True):
        np.testing.assert_allclose(seen, loop_to_camera(point), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(pixel, loop_pixel(point), rtol=1e-10)
    np.testing.assert_allclose(from_camera(CALIBRATION, camera), points, atol=1e-12)


def test_the_camera_looks_ahead():
    right, down, ahead = to_camera(
        CALIBRATION, np.array([[20.0, -3, 0], [20.0, 0, -3], [20.0, 0, 0]])
    ) - to_camera(CALIBRATION, np.array([[20.0, 0, 0], [20.0, 0, 0], [0.0, 0, 0]]))
    np.testing.assert_allclose(right, (3, 0, 0), atol=0.06)
    np.testing.assert_allclose(down, (0, 3, 0), atol=0.06)
    np.testing.assert_allclose(ahead, (0, 0, 20), atol=0.4)
    for matrix in (CALIBRATION.rectification, CALIBRATION.sensor_to_camera[:, :3]):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_calibration_text_gives_the_numbers_back(shared):
    text = format_calibration(CALIBRATION)
    real = (shared / "data/kitti/training/calib/000001.txt").read_text()
    heads = [
        [line.split(":")[0] for line in page.splitlines()] for page in (text, real)
    ]
    assert heads[0] == heads[1]
    widths = [
        [len(line.split()) for line in page.splitlines()] for page in (text, real)
    ]
    assert widths[0] == widths[1]
    rows = dict(line.split(": ") for line in text.splitlines() if line)
    p2 = np.array(rows["P2"].split(), float).reshape(3, 4)
    np.testing.assert_allclose(p2, CALIBRATION.projections[2], rtol=1e-12)


def test_lines_and_boxes_go_round(rng):
    boxes = boxes_ahead(rng, 200)
    seen = 0
    for row in range(200):
        line = label_of_box(boxes, row, CALIBRATION, 1)
        if line is None:
            continue
        seen += 1
        center, size, yaw = box_of_label(line, CALIBRATION)
        # The camera leans against the sensor by less than a hundredth, and headings
        # lie in its level plane.
        np.testing.assert_allclose(center, boxes.center[row], atol=1e-9)
        np.testing.assert_allclose(size, boxes.size[row], rtol=1e-12)
        assert abs(wrap(yaw - boxes.yaw[row])) < 2e-4

        read = parse_line(format_line(line))
        assert read.kind == line.kind
        assert read.occluded == 1
        center, size, yaw = box_of_label(read, CALIBRATION)
        np.testing.assert_allclose(center, boxes.center[row], atol=0.011)
        np.testing.assert_allclose(size, boxes.size[row], atol=0.0051)
        assert abs(wrap(yaw - boxes.yaw[row])) < 0.0055
        np.testing.assert_allclose(read.rectangle, line.rectangle, atol=0.0051)
        assert format_line(read) == format_line(line)
    assert seen > 100


def test_headings_as_the_benchmark_has_them():
    """A car that faces as the sensor does has rotation_y -pi/2; facing right, 0."""
    for yaw, rotation_y in ((0, -np.pi / 2), (-np.pi / 2, 0), (np.pi / 2, np.pi)):
        boxes = Boxes(
            np.array([10]),
            np.array([1]),
            np.array([[20.0, 0.0, -1.0]]),
            np.array([[4.0, 1.6, 1.5]]),
            np.array([float(yaw)]),
        )
        line = label_of_box(boxes, 0, CALIBRATION, 0)
        assert line is not None
        assert abs(wrap(line.rotation_y - rotation_y)) < 0.02
        x, _, z = line.bottom
        expected = wrap(line.rotation_y - math.atan2(x, z))
        assert line.alpha == pytest.approx(expected)
        assert line.size == pytest.approx((1.5, 1.6, 4.0))
        # The bottom's height under the camera, which is 8 cm over the sensor's.
        assert line.bottom[1] == pytest.approx(1.75 - 0.08, abs=0.35)


def test_rectangles_hold_the_box_and_touch_it(rng):
    boxes = boxes_ahead(rng, 120)
    width, height = IMAGE_SIZE
    limits = np.array([width, height]) - 1
    cut = 0
    for row in range(120):
        found = rectangle_of(boxes, row, CALIBRATION)
        corners = corners_of(boxes, row)
        if min(loop_to_camera(corner)[2] for corner in corners) < 0.1:
            continue
        pixels = np.array([loop_pixel(corner) for corner in corners])
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        if found is None:
            assert (high <= 0).any() or (low >= limits).any()
            continue
        rectangle, outside = found
        expected = [*np.clip(low, 0, limits), *np.clip(high, 0, limits)]
        np.testing.assert_allclose(rectangle, expected, rtol=1e-9, atol=1e-9)
        # The share that is outside, counted on a grid over the whole rectangle.
        steps = (np.arange(400) + 0.5) / 400
        u = low[0] + steps * (high[0] - low[0])
        v = low[1] + steps * (high[1] - low[1])
        inside = ((u > 0) & (u < limits[0])).mean() * ((v > 0) & (v < limits[1])).mean()
        assert outside == pytest.approx(1 - inside, abs=0.006)
        cut += 0.01 < outside < 1
    assert cut > 5


def test_a_box_that_passes_the_camera_plane_is_cut_there():
    # Its far end is beside and before the camera, its near end behind.
    def beside(y):
        return Boxes(
            np.array([10]),
            np.array([1]),
            np.array([[1.5, y, -1.0]]),
            np.array([[5.0, 1.6, 1.5]]),
            np.array([0.0]),
        )

    line = label_of_box(beside(2.5), 0, CALIBRATION, 0)
    assert line is not None
    assert line.truncated > 0.8
    assert line.rectangle[0] == 0
    right = max(
        loop_pixel(corner)[0]
        for corner in corners_of(beside(2.5), 0)
        if loop_to_camera(corner)[2] > 0.1
    )
    assert line.rectangle[2] == pytest.approx(right, abs=1e-6)
    behind = beside(2.5)._replace(center=np.array([[-6.0, 2.5, -1.0]]))
    assert label_of_box(behind, 0, CALIBRATION, 0) is None
    # In front, but far to the side of the image.
    aside = beside(2.5)._replace(center=np.array([[5.0, 40.0, -1.0]]))
    assert label_of_box(aside, 0, CALIBRATION, 0) is None


def view_of(parts):
    """A view of some objects and walls, without a street."""
    snapshot = Snapshot(
        join(
            [part.primitives if isinstance(part, Snapshot) else part for part in parts]
        ),
        Boxes(
            *(
                np.concatenate(column)
                for column in zip(
                    *(part.boxes for part in parts if isinstance(part, Snapshot)),
                    strict=True,
                )
            )
        ),
    )
    rays = rays_of(SENSOR)
    hits = cast(snapshot.primitives, rays, farthest=SENSOR.farthest)
    scan = measure(snapshot, rays, hits, SENSOR, np.random.default_rng(0))
    return View(scan, snapshot, rays, hits)


def wall(x, y, width):
    return primitives(
        Kind.BOX, (x, y, 0), (0.1, width, 10), label=RawLabel.BUILDING, reflectance=0.3
    )


def test_visible_share(rng):
    model = car(rng)
    parked = place_object(model, (14.0, 0.0, -1.73), 0.0, 7)
    assert visible_share(view_of([parked]), 7) == 1
    assert visible_share(view_of([parked, wall(8, 0, 8)]), 7) == 0
    assert visible_share(view_of([parked, wall(20, 0, 8)]), 7) == 1
    # The wall ends in the line of sight to the middle of the car's rear.
    half = visible_share(view_of([parked, wall(8, 4.0, 8)]), 7)
    assert half == pytest.approx(0.5, abs=0.12)
    over_the_rays = place_object(model, (14.0, 0.0, 20.0), 0.0, 8)
    assert visible_share(view_of([parked, over_the_rays]), 8) == 0
    out_of_range = place_object(model, (90.0, 5.0, -1.73), 0.0, 9)
    assert visible_share(view_of([parked, out_of_range]), 9) == 0


def test_annotations_of_simple_scenes(rng):
    near = place_object(car(rng), (14.0, 0.0, -1.73), 0.0, 1)
    hidden = place_object(car(rng), (22.0, 0.0, -1.73), 0.0, 2)
    beyond = place_object(car(rng), (76.0, -8.0, -1.73), 1.0, 3)
    behind = place_object(car(rng), (-14.0, 0.0, -1.73), 0.0, 4)
    lines = annotate(view_of([near]), CALIBRATION)
    assert [(line.kind, line.occluded) for line in lines] == [("Car", 0)]
    lines = annotate(view_of([hidden, near, behind]), CALIBRATION)
    assert lines[0].bottom[2] == pytest.approx(14 - 0.28, abs=0.3)
    assert all(line.occluded in (1, 2) for line in lines[1:])
    assert annotate(view_of([hidden, wall(8, 0, 12)]), CALIBRATION) == []
    assert annotate(view_of([behind]), CALIBRATION) == []
    lines = annotate(view_of([beyond]), CALIBRATION)
    assert [line.kind for line in lines] == ["DontCare"]
    half = view_of([near, wall(8, 4.15, 8)])
    assert annotate(half, CALIBRATION)[0].occluded == 1


def test_annotations_of_streets():
    kinds, levels, close = set(), set(), []
    for scene in range(3):
        view = view_street(plan_street(4, scene), 3.0, SENSOR)
        lines = annotate(view, CALIBRATION)
        texts = [format_line(line) for line in lines]
        assert [format_line(parse_line(text)) for text in texts] == texts
        boxes, scan = view.snapshot.boxes, view.scan
        seen = in_image(CALIBRATION, scan.points)
        for line in lines:
            left, top, right, bottom = line.rectangle
            assert 0 <= left < right <= IMAGE_SIZE[0] - 1
            assert 0 <= top < bottom <= IMAGE_SIZE[1] - 1
            if line.kind == "DontCare":
                continue
            kinds.add(line.kind)
            levels.add(line.occluded)
            assert 0 < line.bottom[2] <= LABELLED
            assert 0 <= line.truncated < 1
            center, size, yaw = box_of_label(line, CALIBRATION)
            row = int(np.linalg.norm(boxes.center - center, axis=1).argmin())
            own = scan.instance == boxes.instance[row]
            assert (own & seen).sum() >= FEWEST_POINTS
            # A reader's box holds its points, up to the noise of the ranges.
            read = Boxes(
                boxes.label[[row]],
                boxes.instance[[row]],
                center[None],
                size[None],
                np.array([yaw]),
            )
            assert points_in_box(scan.points[own], read, 0, 0.1).all()
            close.append(points_in_box(scan.points[own], read, 0, 0.04))
    assert kinds == {"Car", "Truck", "Pedestrian"}
    assert levels == {0, 1, 2}
    # Two standard deviations on one side.
    assert np.concatenate(close).mean() > 0.97


def test_in_image_against_loops(rng):
    points = rng.normal(size=(300, 3)) * (15, 10, 3)
    for point, seen in zip(points, in_image(CALIBRATION, points), strict=True):
        u, v = loop_pixel(point)
        inside = 0 <= u < IMAGE_SIZE[0] and 0 <= v < IMAGE_SIZE[1]
        assert seen == (loop_to_camera(point)[2] > 0.1 and inside)


def test_real_label_files_go_round(shared):
    archive = shared / "data/kitti/label_2_all_7481.tar.gz"
    read = 0
    with tarfile.open(archive) as files:
        for member in files:
            page = files.extractfile(member) if member.isfile() else None
            if page is None or not member.name.endswith(".txt") or read > 300:
                continue
            for text in page.read().decode().splitlines():
                # Our own lines have two decimals, as those of the benchmark.
                assert format_line(parse_line(text)) == text
                read += 1
    assert read > 300


def test_dont_care_and_bad_lines():
    text = format_line(dont_care((1.0, 2.0, 30.5, 40.25)))
    assert text == (
        "DontCare -1 -1 -10 1.00 2.00 30.50 40.25 -1 -1 -1 -1000 -1000 -1000 -10"
    )
    assert parse_line(text).rectangle == (1.0, 2.0, 30.5, 40.25)
    with pytest.raises(ValueError, match="15 columns, not 3"):
        parse_line("Car 0.00 0")
    with pytest.raises(ValueError, match=r"not a number .*'x'"):
        parse_line("Car 0 0 0 x 0 0 0 0 0 0 0 0 0 0")
