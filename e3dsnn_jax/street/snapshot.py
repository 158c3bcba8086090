"""The street at one moment: its primitives, and the boxes of what can move."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.street.movables import Model
from e3dsnn_jax.street.primitives import Primitives, join, place, rotation, seen_from


class Boxes(NamedTuple):
    """Upright boxes around objects, as they are detected.

    Attributes:
      label: Raw label id.
      instance: The number of the object, from 1 to 65535.
      center: The middle of the box, metres.
      size: Length, width and height, metres.
      yaw: Heading, the angle from x towards y, radians.
    """

    label: Int[np.ndarray, " boxes"]
    instance: Int[np.ndarray, " boxes"]
    center: Float[np.ndarray, "boxes 3"]
    size: Float[np.ndarray, "boxes 3"]
    yaw: Float[np.ndarray, " boxes"]


class Snapshot(NamedTuple):
    """Everything in a street at one moment, all in one frame.

    Attributes:
      primitives: What rays can hit.
      boxes: One box for each object.
    """

    primitives: Primitives
    boxes: Boxes


def place_object(
    model: Model, position: tuple[float, float, float], yaw: float, instance: int
) -> Snapshot:
    """One object standing at a place on the ground, with its box."""
    label = model.primitives.label[:1]
    lift = np.array([0.0, 0.0, model.size[2] / 2])
    boxes = Boxes(
        label.copy(),
        np.array([instance]),
        np.array([position], np.float64) + lift,
        np.array([model.size], np.float64),
        np.array([yaw], np.float64),
    )
    return Snapshot(place(model.primitives, position, yaw, instance=instance), boxes)


def join_boxes(parts: Sequence[Boxes]) -> Boxes:
    """All boxes of several tables, in their order."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Boxes(none, none, np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    return Boxes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def take_boxes(boxes: Boxes, rows: np.ndarray) -> Boxes:
    """Some rows of a table of boxes, by number or by mask."""
    return Boxes(*(column[rows] for column in boxes))


def join_snapshots(parts: Sequence[Snapshot]) -> Snapshot:
    """The union of several snapshots of one moment."""
    return Snapshot(
        join([part.primitives for part in parts]),
        join_boxes([part.boxes for part in parts]),
    )


def snapshot_from(
    snapshot: Snapshot, position: Float[np.ndarray, " 3"], yaw: float
) -> Snapshot:
    """The snapshot in the frame of an observer at `position` who faces along `yaw`."""
    boxes = snapshot.boxes
    turned = boxes._replace(
        center=(boxes.center - position) @ rotation(yaw),
        yaw=np.pi - (np.pi - (boxes.yaw - yaw)) % (2 * np.pi),
    )
    return Snapshot(seen_from(snapshot.primitives, position, yaw), turned)


def points_in_box(
    points: Float[np.ndarray, "points 3"], boxes: Boxes, row: int, margin: float = 0.0
) -> np.ndarray:
    """Which points lie in one box grown by `margin` metres on every side."""
    local = (points - boxes.center[row]) @ rotation(float(boxes.yaw[row]))
    return (np.abs(local) <= boxes.size[row] / 2 + margin).all(axis=1)
