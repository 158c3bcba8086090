"""Surfaces made of triangles with a normal at each corner, and points drawn on them.

The solids of the embedded dataset are unions of these. Curved primitives carry smooth
normals, so a few dozen triangles are enough for a round cylinder. Parts may overlap;
the points inside other parts stay, as they do in scanned CAD models.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

ROUND = 24
"""How many straight pieces stand for a full circle."""


class Surface(NamedTuple):
    """Triangles in space.

    Attributes:
      corners: The three corners of each triangle.
      normals: The outward unit normal at each corner.
    """

    corners: Float[np.ndarray, "triangles 3 3"]
    normals: Float[np.ndarray, "triangles 3 3"]


def sample_surface(
    surface: Surface, num_points: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points 3"]]:
    """Points spread uniformly over the area, and the unit normals there."""
    a, b, c = np.moveaxis(surface.corners, 1, 0)
    area = row_norms(np.cross(b - a, c - a))
    cumulative = np.cumsum(area)
    drawn = rng.random(num_points) * cumulative[-1]
    # Only the inner boundaries: a draw that rounds up to the whole area stays inside.
    triangle = np.searchsorted(cumulative[:-1], drawn, side="right")
    u, v = rng.random((2, num_points))
    # Folding the square's upper triangle onto the lower one keeps the density even.
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    weights = np.stack([1 - u - v, u, v], axis=1)
    points, normals = (
        np.einsum("pk,pkx->px", weights, values[triangle]) for values in surface
    )
    return points, normals / row_norms(normals)[:, None]


def row_norms(vectors: Float[np.ndarray, "rows 3"]) -> Float[np.ndarray, " rows"]:
    """The length of each row; several times as fast as the general `norm`."""
    return np.sqrt(np.einsum("px,px->p", vectors, vectors))


def union(parts: Sequence[Surface]) -> Surface:
    """All triangles of several surfaces."""
    corners, normals = zip(*parts, strict=True)
    return Surface(np.concatenate(corners), np.concatenate(normals))


def transform(
    surface: Surface,
    linear: Float[np.ndarray, "3 3"],
    offset: Sequence[float] = (0.0, 0.0, 0.0),
) -> Surface:
    """The image under `x -> linear x + offset`; `linear` must be invertible."""
    normals = surface.normals @ np.linalg.inv(linear)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    # Each normal is a covector and follows the inverse transpose.
    return Surface(surface.corners @ linear.T + np.asarray(offset), normals)


def move(surface: Surface, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Surface:
    """The surface shifted by (x, y, z)."""
    return Surface(surface.corners + np.array([x, y, z]), surface.normals)


def _grid(
    points: Float[np.ndarray, "rows columns 3"],
    normals: Float[np.ndarray, "rows columns 3"],
) -> Surface:
    """Two triangles for each cell of a grid of points."""

    def triangles(values: np.ndarray) -> np.ndarray:
        low, right = values[:-1, :-1], values[:-1, 1:]
        up, far = values[1:, :-1], values[1:, 1:]
        halves = [np.stack([low, right, up], 2), np.stack([far, up, right], 2)]
        return np.concatenate([half.reshape(-1, 3, 3) for half in halves])

    return Surface(triangles(points), triangles(normals))


_SIDES = np.concatenate([np.eye(3), -np.eye(3)])
_SQUARE = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1], [-1, 1], [1, -1]])


def _unit_box() -> Surface:
    """The cube [-1/2, 1/2]^3."""
    corners = []
    for side in _SIDES:
        axis = int(np.abs(side).argmax())
        u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
        corners.append((side + _SQUARE[:, :1] * u + _SQUARE[:, 1:] * v) / 2)
    normals = np.repeat(_SIDES, 6, axis=0)
    return Surface(np.reshape(corners, (12, 3, 3)), normals.reshape(12, 3, 3))


_UNIT_BOX = _unit_box()


def boxes(
    centers: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]]
) -> Surface:
    """Boxes along the axes; a single size serves all centres."""
    center = np.asarray(centers, np.float64)[:, None, None, :]
    size = np.asarray(sizes, np.float64)[:, None, None, :]
    corners = center + size * _UNIT_BOX.corners
    normals = np.broadcast_to(_UNIT_BOX.normals, corners.shape)
    return Surface(corners.reshape(-1, 3, 3), normals.reshape(-1, 3, 3))


def revolve(
    profile: Sequence[tuple[float, float]], *, segments: int = ROUND
) -> Surface:
    """The surface swept by a profile of (radius, z) turning about the z axis.

    Each straight piece of the profile is a cone, cylinder, disc or ring of its own,
    with sharp edges between pieces. The outside lies to the right of the direction of
    travel: a profile that climbs at positive radius faces outwards, and one that
    moves inwards at the top faces up.
    """
    radius, height = np.asarray(profile, np.float64).T
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    around = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    pieces = []
    for start, end in zip(range(len(radius) - 1), range(1, len(radius)), strict=True):
        run, rise = radius[end] - radius[start], height[end] - height[start]
        length = np.hypot(run, rise)
        if length == 0:
            continue
        ends = [start, end]
        points = np.empty((2, segments + 1, 3))
        points[:, :, :2] = radius[ends, None, None] * around
        points[:, :, 2] = height[ends, None]
        normals = np.empty_like(points)
        normals[:, :, :2] = rise / length * around
        normals[:, :, 2] = -run / length
        pieces.append(_grid(points, normals))
    return union(pieces)


def cylinder(radius: float, height: float, *, segments: int = ROUND) -> Surface:
    """A closed cylinder from z = 0 to z = height."""
    profile = [(0.0, 0.0), (radius, 0.0), (radius, height), (0.0, height)]
    return revolve(profile, segments=segments)


def ellipsoid(x: float, y: float, z: float) -> Surface:
    """An ellipsoid about the origin with the given half axes."""
    longitude = np.linspace(0, 2 * np.pi, 17)
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 9)[:, None]
    ball = np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude) * np.ones_like(longitude),
        ],
        axis=-1,
    )
    return transform(_grid(ball, ball), np.diag([x, y, z]))


def extrude(
    outer: Float[np.ndarray, "corners 2"],
    height: float,
    *,
    inner: Float[np.ndarray, "corners 2"] | None = None,
) -> Surface:
    """A prism from z = 0 to z = height, with a through hole if `inner` is given.

    Args:
      outer: The outline, counter-clockwise, every corner visible from the origin.
      height: Height of the prism.
      inner: The outline of the hole, with as many corners at about the same angles.
    """
    ring = np.concatenate([outer, outer[:1]])
    if inner is None:
        hole = np.zeros_like(ring)
        parts = [_wall(ring, height)]
    else:
        hole = np.concatenate([inner, inner[:1]])
        parts = [_wall(ring, height), _wall(hole[::-1], height)]
    for z, facing in ((0.0, -1.0), (height, 1.0)):
        lid = np.full((2, len(ring), 3), z)
        lid[:, :, :2] = hole, ring
        normals = np.zeros_like(lid)
        normals[:, :, 2] = facing
        parts.append(_grid(lid, normals))
    return union(parts)


def _wall(outline: Float[np.ndarray, "corners 2"], height: float) -> Surface:
    """The upright faces above an outline; the outside lies to its right."""
    start, end = outline[:-1], outline[1:]
    along = end - start
    out = np.stack([along[:, 1], -along[:, 0], np.zeros(len(along))], axis=1)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    low, right, up, far = (
        np.insert(corner, 2, z, axis=1)
        for corner, z in ((start, 0.0), (end, 0.0), (start, height), (end, height))
    )
    corners = np.stack([low, right, up, far, up, right], axis=1)
    normals = np.repeat(out[:, None], 6, axis=1)
    return Surface(corners.reshape(-1, 3, 3), normals.reshape(-1, 3, 3))


def tube(
    path: Float[np.ndarray, "steps 3"], radius: float, *, segments: int = 10
) -> Surface:
    """A round tube along a path that never turns back on itself; its ends are open."""
    direction = np.gradient(path, axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    # The frame is carried along by removing what points along the path, which keeps
    # the tube from twisting.
    side = np.eye(3)[np.abs(direction[0]).argmin()]
    sides = np.empty_like(path)
    for step, forward in enumerate(direction):
        side = side - forward * (side @ forward)
        side = side / np.linalg.norm(side)
        sides[step] = side
    other = np.cross(direction, sides)
    angle = np.linspace(0, 2 * np.pi, segments + 1)[:, None]
    normals = np.cos(angle) * sides[:, None, :] + np.sin(angle) * other[:, None, :]
    return _grid(path[:, None, :] + radius * normals, normals)


def arc(
    radius: float, start: float, end: float, *, steps: int = 12
) -> Float[np.ndarray, "steps 3"]:
    """Points of a circle about the origin in the x-z plane, angles from the x axis."""
    angle = np.linspace(start, end, steps)
    return radius * np.stack([np.cos(angle), np.zeros(steps), np.sin(angle)], axis=1)


def regular_polygon(
    corners: int, radius: float | Float[np.ndarray, " corners"]
) -> Float[np.ndarray, "corners 2"]:
    """Counter-clockwise corners at equal angles, at one radius or one radius each."""
    angle = 2 * np.pi * np.arange(corners) / corners
    radii = np.broadcast_to(radius, (corners,))[:, None]
    return radii * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def blade(
    length: float, width: float, thickness: float, pitch: tuple[float, float]
) -> Surface:
    """A twisted blade along x from 0 to `length`, both faces.

    Args:
      length: Length along x.
      width: Largest width, halfway along; the tip is rounded.
      thickness: Distance between the two faces.
      pitch: Angle between the blade and the x-y plane at root and tip, radians.
    """
    along = np.linspace(0, 1, 9)[:, None]
    across = np.linspace(-0.5, 0.5, 5)
    chord = width * np.sqrt(np.clip(1 - np.abs(2 * along - 1) ** 3, 0.02, None))
    turn = pitch[0] + (pitch[1] - pitch[0]) * along
    y, z = chord * across * np.cos(turn), chord * across * np.sin(turn)
    middle = np.stack([np.broadcast_to(length * along, y.shape), y, z], axis=-1)
    normal = np.stack([0 * y, -np.sin(turn) + 0 * y, np.cos(turn) + 0 * y], axis=-1)
    faces = [
        _grid(middle + sign * thickness / 2 * normal, sign * normal)
        for sign in (1.0, -1.0)
    ]
    return union(faces)
