"""One scan: points with features and labels, and the checks that it must pass."""

from typing import NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

IGNORED = -1
"""Label of a point that belongs to no class: it takes no part in losses and scores."""


class Scan(NamedTuple):
    """One cloud with a label a point.

    Attributes:
      points: Positions in metres, float32 as read; a LiDAR scan has its sensor at the
        origin and z upwards.
      features: What else was measured, such as intensity; may have no channel.
      labels: Class of each point, `IGNORED` where it has none; None where unknown.
      instances: Number of the object each point belongs to, 0 for none; None where
        unknown.
      name: What error messages call this scan: a path.
    """

    points: Float[np.ndarray, "points 3"]
    features: Float[np.ndarray, "points channels"]
    labels: Int[np.ndarray, " points"] | None
    instances: Int[np.ndarray, " points"] | None
    name: str


@runtime_checkable
class ScanDataset(Protocol):
    """Random access to scans; cheap to pickle, because workers get copies."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; a point's label is an index into them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> Scan: ...


def take_points(
    scan: Scan, chosen: Bool[np.ndarray, " points"] | Int[np.ndarray, " chosen"]
) -> Scan:
    """Some points of a scan, by a mask or by their rows."""
    return scan._replace(
        points=scan.points[chosen],
        features=scan.features[chosen],
        labels=None if scan.labels is None else scan.labels[chosen],
        instances=None if scan.instances is None else scan.instances[chosen],
    )


def check_scan(scan: Scan) -> Scan:
    """Returns the scan unless it is malformed.

    Raises:
      ValueError: If it is empty, its arrays differ in length, or a coordinate or a
        feature is NaN or infinite; the message names the scan and the numbers.
    """
    number = len(scan.points)
    if number == 0:
        raise ValueError(
            f"{scan.name}: the scan is empty (0 points); remove it or get it again"
        )
    for what in ("features", "labels", "instances"):
        values = getattr(scan, what)
        if values is not None and len(values) != number:
            raise ValueError(
                f"{scan.name}: {number} points but {len(values)} {what}; give one row "
                "a point"
            )
    check_finite(scan.points, "points", scan.name)
    check_finite(scan.features, "features", scan.name)
    return scan


def check_finite(
    values: Float[np.ndarray, "rows columns"], what: str, name: str
) -> None:
    """Raises ValueError with the first row that is NaN or infinite, if there is one."""
    # Whole at first: row by row it takes ten times as long.
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values).all(axis=1)
    first = int(bad.argmax())
    raise ValueError(
        f"{name}: {int(bad.sum())} of {len(values)} {what} are NaN or infinite, the "
        f"first is row {first}: {values[first].tolist()}; remove or repair them"
    )
