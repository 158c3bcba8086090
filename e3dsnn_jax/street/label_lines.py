"""Lines of KITTI label files: from a box to a line, and from a line to a box.

A line holds type, truncation, occlusion, observation angle, the rectangle in the image
(left, top, right, bottom), height, width and length, the middle of the box's bottom in
camera coordinates, and the rotation about the camera's y axis.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.street.calibration import (
    IMAGE_SIZE,
    Calibration,
    from_camera,
    project,
    to_camera,
)
from e3dsnn_jax.street.classes import AT_REST, KITTI_TYPES, RawLabel
from e3dsnn_jax.street.primitives import rotation
from e3dsnn_jax.street.snapshot import Boxes

CLOSEST = 0.1
"""Depth in front of the camera from which on a box is drawn, metres."""

Rectangle = tuple[float, float, float, float]


class LabelLine(NamedTuple):
    """One line of a label file; metres, pixels and radians.

    Attributes:
      kind: "Car", "Truck", "Pedestrian" or "DontCare".
      truncated: Share of the rectangle outside the image; -1 for DontCare.
      occluded: 0 wholly visible, 1 partly, 2 largely occluded; -1 for DontCare.
      alpha: Heading against the line of sight; -10 for DontCare.
      rectangle: Left, top, right and bottom within the image.
      size: Height, width and length.
      bottom: Middle of the bottom in rectified camera coordinates.
      rotation_y: Heading about the camera's y axis; -10 for DontCare.
    """

    kind: str
    truncated: float
    occluded: int
    alpha: float
    rectangle: Rectangle
    size: tuple[float, float, float]
    bottom: tuple[float, float, float]
    rotation_y: float


def wrap(angle: float) -> float:
    """The same angle in (-pi, pi]."""
    return float(np.pi - (np.pi - angle) % (2 * np.pi))


def corners_of(boxes: Boxes, row: int) -> Float[np.ndarray, "8 3"]:
    """The corners of one box; those of its bottom come first."""
    signs = np.array([(x, y, z) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)])
    turn = rotation(float(boxes.yaw[row]))
    return signs * boxes.size[row] / 2 @ turn.T + boxes.center[row]


def rectangle_of(
    boxes: Boxes, row: int, calibration: Calibration
) -> tuple[Rectangle, float] | None:
    """The rectangle around a box in the image, and the share of it outside the image.

    Returns:
      None if no part of the box is in front of the camera and in the image.
    """
    corners = to_camera(calibration, corners_of(boxes, row))
    edges = [(a, b) for a in range(8) for b in (a ^ 1, a ^ 2, a ^ 4) if a < b]
    visible = [corners[corners[:, 2] >= CLOSEST]]
    # Where an edge passes the plane in front of the camera it is cut there.
    for a, b in edges:
        start, stop = corners[a], corners[b]
        if (start[2] < CLOSEST) != (stop[2] < CLOSEST):
            share = (CLOSEST - start[2]) / (stop[2] - start[2])
            visible.append((start + share * (stop - start))[None])
    outline = np.concatenate(visible)
    if not len(outline):
        return None
    pixels = project(calibration, outline)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    limit = np.array(IMAGE_SIZE) - 1.0
    left, right = np.clip(low, 0, limit), np.clip(high, 0, limit)
    if not (right > left).all():
        return None
    outside = 1 - np.prod((right - left) / (high - low))
    rectangle = (float(left[0]), float(left[1]), float(right[0]), float(right[1]))
    return rectangle, float(outside)


def label_of_box(
    boxes: Boxes, row: int, calibration: Calibration, occluded: int
) -> LabelLine | None:
    """The line of one box in the sensor's frame, or None where it is not in the image.

    Nothing is labelled whose middle lies behind the camera.
    """
    found = rectangle_of(boxes, row, calibration)
    length, width, height = (float(value) for value in boxes.size[row])
    bottom = boxes.center[row] - np.array([0, 0, height / 2])
    x, y, z = (float(v) for v in to_camera(calibration, bottom[None])[0])
    if found is None or z <= CLOSEST:
        return None
    rectangle, truncated = found
    yaw = float(boxes.yaw[row])
    ahead = np.array([[0.0, 0.0, 0.0], [np.cos(yaw), np.sin(yaw), 0.0]])
    heading = np.diff(to_camera(calibration, ahead), axis=0)[0]
    rotation_y = float(np.arctan2(-heading[2], heading[0]))
    raw = RawLabel(int(boxes.label[row]))
    return LabelLine(
        KITTI_TYPES[AT_REST.get(raw, raw)],
        truncated,
        occluded,
        wrap(rotation_y - float(np.arctan2(x, z))),
        rectangle,
        (height, width, length),
        (x, y, z),
        rotation_y,
    )


def box_of_label(
    line: LabelLine, calibration: Calibration
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"], float]:
    """Center, (length, width, height) and yaw in the sensor's frame of a line's box."""
    height, width, length = line.size
    center = from_camera(calibration, np.array([line.bottom]))[0]
    center[2] += height / 2
    ahead = np.array(
        [[0.0, 0.0, 0.0], [np.cos(line.rotation_y), 0.0, -np.sin(line.rotation_y)]]
    )
    heading = np.diff(from_camera(calibration, ahead), axis=0)[0]
    yaw = float(np.arctan2(heading[1], heading[0]))
    return center, np.array([length, width, height]), yaw


def dont_care(rectangle: Rectangle) -> LabelLine:
    """A line for a part of the image in which nothing is judged."""
    nowhere = (-1000.0, -1000.0, -1000.0)
    return LabelLine(
        "DontCare", -1, -1, -10, rectangle, (-1.0, -1.0, -1.0), nowhere, -10
    )


def format_line(line: LabelLine) -> str:
    """The text of a line, without its end, with two decimals as the benchmark has."""
    if line.kind == "DontCare":
        numbers = (-1, -1, -10, *line.rectangle, -1, -1, -1, -1000, -1000, -1000, -10)
        texts = [f"{n:.2f}" if isinstance(n, float) else str(n) for n in numbers]
        return " ".join([line.kind, *texts])
    rest = (line.alpha, *line.rectangle, *line.size, *line.bottom, line.rotation_y)
    texts = [f"{value:.2f}" for value in rest]
    return " ".join([line.kind, f"{line.truncated:.2f}", str(line.occluded), *texts])


def parse_line(text: str) -> LabelLine:
    """The line that a text holds.

    Raises:
      ValueError: If there are not 15 columns, or one is no number.
    """
    columns = text.split()
    if len(columns) != 15:
        raise ValueError(f"a label line has 15 columns, not {len(columns)}: {text!r}")
    try:
        v = [float(column) for column in columns[1:]]
    except ValueError as error:
        raise ValueError(f"not a number in the label line {text!r}: {error}") from None
    return LabelLine(
        columns[0],
        v[0],
        int(v[1]),
        v[2],
        (v[3], v[4], v[5], v[6]),
        (v[7], v[8], v[9]),
        (v[10], v[11], v[12]),
        v[13],
    )
