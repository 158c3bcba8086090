"""Where a ray enters and leaves a primitive, and the normal where it enters.

All three unit shapes are convex, so a ray meets each in one interval; its ends follow
from half-spaces for a box, from a quadratic for a ball, and from both for a cylinder.
"""

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.street.primitives import Kind, Primitives

Vector = tuple[float, float, float]
Components = tuple[
    Float[np.ndarray, "beams columns"],
    Float[np.ndarray, "beams columns"],
    Float[np.ndarray, "beams columns"],
]
Interval = tuple[Float[np.ndarray, "beams columns"], Float[np.ndarray, "beams columns"]]

TINY = 1e-30
"""Stands for a zero slope, so that parallel rays need no case of their own."""


def unit_interval(
    kind: Kind, origin: Vector, direction: Components, taper: tuple[float, float]
) -> Interval:
    """Ray parameters where rays from one origin enter and leave a unit shape.

    Args:
      kind: Which unit shape.
      origin: Where all rays start, in the coordinates of the unit shape.
      direction: x, y and z of the rays' directions in those coordinates, any length.
      taper: For boxes, the share by which x and y shrink up to z = 1.

    Returns:
      Entry and exit in units of the directions; a ray misses where entry > exit.
    """
    if kind == Kind.ELLIPSOID:
        return _quadratic(origin, direction)
    z_slab = _slab(origin[2], direction[2])
    if kind == Kind.CYLINDER:
        sides = [_quadratic(origin[:2], direction[:2])]
    else:
        sides = [
            _tapered_slab(origin[i], direction[i], origin[2], direction[2], taper[i])
            if taper[i]
            else _slab(origin[i], direction[i])
            for i in range(2)
        ]
    entry, leave = z_slab
    for low, high in sides:
        entry, leave = np.maximum(entry, low), np.minimum(leave, high)
    return entry, leave


def _nonzero(slope: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where(np.abs(slope) < TINY, TINY, slope)


def _slab(origin: float, direction: Float[np.ndarray, "..."]) -> Interval:
    """The interval within -1 <= x <= 1."""
    inverse = 1.0 / _nonzero(direction)
    middle, reach = -origin * inverse, np.abs(inverse)
    return middle - reach, middle + reach


def _tapered_slab(
    origin: float,
    direction: Float[np.ndarray, "..."],
    origin_z: float,
    direction_z: Float[np.ndarray, "..."],
    taper: float,
) -> Interval:
    """The interval within |x| <= 1 - taper (z + 1) / 2, above z = -1."""
    entry = np.full(direction.shape, -np.inf)
    leave = np.full(direction.shape, np.inf)
    for sign in (-1.0, 1.0):
        room = 1.0 - sign * origin - taper * (origin_z + 1.0) / 2
        slope = _nonzero(sign * direction + taper / 2 * direction_z)
        bound = room / slope
        rising = slope > 0
        leave = np.where(rising, np.minimum(leave, bound), leave)
        entry = np.where(rising, entry, np.maximum(entry, bound))
    return entry, leave


def _quadratic(
    origin: tuple[float, ...], direction: tuple[Float[np.ndarray, "..."], ...]
) -> Interval:
    """The interval within the unit circle or ball."""
    square = np.maximum(sum(d * d for d in direction), TINY)
    nearest = -sum(o * d for o, d in zip(origin, direction, strict=True)) / square
    # From the point nearest to the middle: far from it, b^2 - ac loses all digits.
    miss = sum((o + nearest * d) ** 2 for o, d in zip(origin, direction, strict=True))
    inside = 1.0 - miss
    reach = np.sqrt(np.maximum(inside, 0.0) / square)
    return (
        np.where(inside < 0, np.inf, nearest - reach),
        np.where(inside < 0, -np.inf, nearest + reach),
    )


def outward_normals(
    table: Primitives, points: Float[np.ndarray, "primitives 3"]
) -> Float[np.ndarray, "primitives 3"]:
    """The unit normal of each primitive at the point of its surface nearest to a row.

    Args:
      table: One primitive for each point.
      points: Points on, or almost on, the surfaces.
    """
    local = np.einsum("pji,pj->pi", table.axes, points - table.center) / table.half
    x, y, z = local.T
    fall = table.taper * (z[:, None] + 1) / 2
    gradient = np.zeros_like(local)
    # How far each side, the round and the lids are from containing the point: the
    # largest is the surface the point lies on.
    box = np.stack(
        [np.abs(x) + fall[:, 0], np.abs(y) + fall[:, 1], np.abs(z)], axis=1
    ).argmax(axis=1)
    rows = np.arange(len(local))
    gradient[rows, box] = np.sign(local[rows, box])
    leaning = box < 2
    gradient[leaning, 2] = table.taper[leaning, box[leaning]] / 2

    round_side = (table.kind == Kind.CYLINDER) & (np.hypot(x, y) >= np.abs(z))
    gradient[round_side] = local[round_side] * (1.0, 1.0, 0.0)
    lid = (table.kind == Kind.CYLINDER) & ~round_side
    gradient[lid] = np.sign(z[lid])[:, None] * np.array([0.0, 0.0, 1.0])
    ball = table.kind == Kind.ELLIPSOID
    gradient[ball] = local[ball]

    normals = np.einsum("pij,pj->pi", table.axes, gradient / table.half)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), TINY)
