"""The box around the sensor: points beyond it are dropped, and found again afterwards.

The published code moves them onto the walls of the box instead, where they pile up: of
the original scan 08/000000, 9,332 points. That is here by name, for parity.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from e3dsnn_jax.scans.scan import Scan, take_points


class Box(NamedTuple):
    """An axis-aligned box; its walls belong to it."""

    low: tuple[float, float, float]
    """Lowest x, y, z, in metres."""
    high: tuple[float, float, float]
    """Highest x, y, z, in metres."""


PUBLISHED_BOX = Box((-35.2, -35.2, -4.0), (35.2, 35.2, 2.0))
"""The box of the published SemanticKITTI configuration."""


def inside_box(
    points: Float[np.ndarray, "points 3"], box: Box
) -> Bool[np.ndarray, " points"]:
    """Whether each point lies in the box, compared in float64.

    Raises:
      ValueError: If the box has no extent along an axis.
    """
    _check_box(box)
    inside = np.ones(len(points), bool)
    # A column at a time: NumPy reduces short rows slowly.
    for column, low, high in zip(points.T, box.low, box.high, strict=True):
        exact = column.astype(np.float64)
        inside &= (exact >= low) & (exact <= high)
    return inside


def crop_scan(scan: Scan, box: Box) -> tuple[Scan, Bool[np.ndarray, " points"]]:
    """Drops the points beyond the box.

    Returns:
      The scan, and which of its points were kept.

    Raises:
      ValueError: If no point is left.
    """
    # Differs from reference: there points beyond are moved onto the walls of the box
    # and keep their labels, see `clamp_scan_as_published`.
    kept = inside_box(scan.points, box)
    if not kept.any():
        low, high = scan.points.min(0).tolist(), scan.points.max(0).tolist()
        raise ValueError(
            f"{scan.name}: none of its {len(kept)} points, from {low} to {high}, lies "
            f"in the box from {list(box.low)} to {list(box.high)}; are they metres?"
        )
    return take_points(scan, kept), kept


def clamp_scan_as_published(scan: Scan, box: Box) -> Scan:
    """Moves the points beyond the box onto its walls, as the published code does.

    Differs from the crop on purpose: no point is dropped, and the points become
    float64, which decides the cell of some.

    Raises:
      ValueError: If the box has no extent along an axis.

    Source: `PointClip` of the published transforms.
    """
    _check_box(box)
    points = np.clip(scan.points.astype(np.float64), box.low, box.high)
    return scan._replace(points=points)


def _check_box(box: Box) -> None:
    if not all(low < high for low, high in zip(*box, strict=True)):
        raise ValueError(f"the box from {box.low} to {box.high} has no extent")
