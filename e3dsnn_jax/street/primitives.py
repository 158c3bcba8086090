"""Boxes, cylinders and ellipsoids of which the street is made, as one table of arrays.

Every primitive is an affine image of a unit shape, [-1, 1]^3, the cylinder
x^2 + y^2 <= 1, |z| <= 1, or the unit ball, so one description holds for all. A box can
taper towards its top, which makes cabins and roofs. A primitive is solid, or a medium
such as leaves in which a ray is stopped after an exponentially distributed way.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SOLID = float("inf")
"""The density of what no ray enters."""


Row = Sequence[float] | np.ndarray
"""Three numbers."""
Rows = Row | Sequence[Row]
"""One row of three numbers, or several."""


class Kind(IntEnum):
    """The unit shape of a primitive."""

    BOX = 0
    CYLINDER = 1
    ELLIPSOID = 2


class Primitives(NamedTuple):
    """A table of primitives.

    Attributes:
      kind: The unit shape, a `Kind`.
      center: Where the middle of the unit shape lies, metres.
      axes: The directions of the unit shape's x, y and z axes, as orthonormal columns.
      half: Half the extent along each axis, metres.
      taper: For boxes, by which share the extent along x and y shrinks up to the top.
      density: Stops per metre along a ray inside; infinite for solid primitives.
      reflectance: Share of the light that returns at normal incidence, in (0, 1].
      label: Raw label id, a `RawLabel`.
      instance: Number of the object it belongs to, 0 for classes without objects.
    """

    kind: Int[np.ndarray, " primitives"]
    center: Float[np.ndarray, "primitives 3"]
    axes: Float[np.ndarray, "primitives 3 3"]
    half: Float[np.ndarray, "primitives 3"]
    taper: Float[np.ndarray, "primitives 2"]
    density: Float[np.ndarray, " primitives"]
    reflectance: Float[np.ndarray, " primitives"]
    label: Int[np.ndarray, " primitives"]
    instance: Int[np.ndarray, " primitives"]


def rotation(
    yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0
) -> Float[np.ndarray, "3 3"]:
    """The rotation about x by `roll`, then y by `pitch`, then z by `yaw`, radians."""
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def primitives(
    kind: Kind,
    centers: Rows,
    sizes: Rows,
    *,
    label: int,
    reflectance: float,
    axes: Float[np.ndarray, "3 3"] | None = None,
    taper: tuple[float, float] = (0.0, 0.0),
    density: float = SOLID,
) -> Primitives:
    """Primitives of one kind, one for each row of `centers` or of `sizes`.

    Args:
      kind: The unit shape.
      centers: Their middles, one row of three or several.
      sizes: Their whole extents along their own axes, one row of three or several.
      label: Raw label id.
      reflectance: Share of the light that returns at normal incidence.
      axes: The directions of their axes as columns; the coordinate axes if omitted.
      taper: For boxes, the share by which x and y shrink towards the top.
      density: Stops per metre inside; infinite for solid ones.
    """
    center, size = np.broadcast_arrays(
        np.atleast_2d(np.asarray(centers, np.float64)),
        np.atleast_2d(np.asarray(sizes, np.float64)),
    )
    rows = len(center)
    turned = np.eye(3) if axes is None else axes
    return Primitives(
        np.full(rows, kind, np.int64),
        center.copy(),
        np.repeat(turned[None], rows, axis=0),
        size / 2,
        np.tile(np.array(taper, np.float64), (rows, 1)),
        np.full(rows, density, np.float64),
        np.full(rows, reflectance, np.float64),
        np.full(rows, label, np.int64),
        np.zeros(rows, np.int64),
    )


def join(parts: Sequence[Primitives]) -> Primitives:
    """All rows of several tables, in their order."""
    if not parts:
        return take(
            primitives(Kind.BOX, (0, 0, 0), (1, 1, 1), label=0, reflectance=1.0),
            np.zeros(0, np.int64),
        )
    return Primitives(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def take(table: Primitives, rows: np.ndarray) -> Primitives:
    """Some rows of a table, by number or by mask."""
    return Primitives(*(column[rows] for column in table))


def place(
    table: Primitives, position: Row, yaw: float = 0.0, *, instance: int = 0
) -> Primitives:
    """The table turned about z by `yaw`, then shifted, as one object of that number."""
    turn = rotation(yaw)
    return table._replace(
        center=table.center @ turn.T + np.asarray(position, np.float64),
        axes=turn @ table.axes,
        instance=np.full(len(table.kind), instance, np.int64),
    )


def seen_from(
    table: Primitives, position: Float[np.ndarray, " 3"], yaw: float
) -> Primitives:
    """The table in the frame of an observer at `position` who faces along `yaw`."""
    turn = rotation(yaw)
    return table._replace(
        center=(table.center - position) @ turn, axes=turn.T @ table.axes
    )
