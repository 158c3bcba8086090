"""The label lines of one view: what is in the image, and how visible it is."""

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.street.calibration import IMAGE_SIZE, Calibration, project, to_camera
from e3dsnn_jax.street.cast import cast
from e3dsnn_jax.street.label_lines import CLOSEST, LabelLine, dont_care, label_of_box
from e3dsnn_jax.street.primitives import take
from e3dsnn_jax.street.scan import View

LABELLED = 70.0
"""Depth up to which an object is labelled, metres; beyond it nothing is judged."""
FEWEST_POINTS = 3
"""Points an object needs within the image to be labelled."""
VISIBLE = (0.75, 0.4)
"""Least visible share of an object that counts as visible, and as partly occluded."""


def in_image(
    calibration: Calibration, points: Float[np.ndarray, "points 3"]
) -> np.ndarray:
    """Which points of the sensor's frame camera 2 sees."""
    seen = to_camera(calibration, points)
    front = seen[:, 2] > CLOSEST
    pixels = project(calibration, np.where(front[:, None], seen, (0.0, 0.0, 1.0)))
    width, height = IMAGE_SIZE
    inside = (pixels >= 0).all(axis=1) & (pixels < (width, height)).all(axis=1)
    return front & inside


def visible_share(view: View, instance: int) -> float:
    """The share of the rays towards an object that nothing nearer stops.

    Returns:
      0 for an object that no ray would meet if it stood alone.
    """
    table = view.snapshot.primitives
    alone = take(table, table.instance == instance)
    met = cast(alone, view.rays, farthest=np.inf).owner >= 0
    owner = view.hits.owner[met]
    reached = (owner >= 0) & (table.instance[owner] == instance)
    return float(reached.mean()) if len(reached) else 0.0


def points_in_image(view: View, calibration: Calibration) -> Int[np.ndarray, " boxes"]:
    """How many points within the image each object of a view has."""
    scan = view.scan
    seen = scan.instance[(scan.instance > 0) & in_image(calibration, scan.points)]
    counts = np.bincount(seen, minlength=1)
    numbers = view.snapshot.boxes.instance
    return np.where(
        numbers < len(counts), counts[np.minimum(numbers, len(counts) - 1)], 0
    )


def annotate(view: View, calibration: Calibration) -> list[LabelLine]:
    """The label lines of a view, nearest object first, DontCare last.

    An object in the image that no ray reaches gets no line. One that is too far, or
    that has too few points, becomes a DontCare.
    """
    boxes = view.snapshot.boxes
    counts = points_in_image(view, calibration)
    found, ignored = [], []
    for row in np.argsort(np.linalg.norm(boxes.center, axis=1), kind="stable"):
        line = label_of_box(boxes, int(row), calibration, 0)
        if line is None:
            continue
        share = visible_share(view, int(boxes.instance[row]))
        if share == 0:
            continue
        if line.bottom[2] > LABELLED or counts[row] < FEWEST_POINTS:
            ignored.append(dont_care(line.rectangle))
        else:
            occluded = sum(share < least for least in VISIBLE)
            found.append(line._replace(occluded=occluded))
    return [*found, *ignored]
