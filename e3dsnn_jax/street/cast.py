"""Casting a grid of rays on primitives: which one each ray hits first, and where.

Each primitive is tried only on the window of beams and columns that its bounding box
covers, from the nearest to the farthest, and not at all where everything in its window
is already nearer. Neither changes any result.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.street.intersect import Components, unit_interval
from e3dsnn_jax.street.primitives import SOLID, Kind, Primitives
from e3dsnn_jax.street.sensor import Rays

CORNERS = np.array(
    [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64
)


class Hits(NamedTuple):
    """What each ray of a grid meets first.

    Attributes:
      ranges: The distance, metres; infinite where the ray meets nothing.
      owner: The row of the primitive, -1 where there is none.
    """

    ranges: Float[np.ndarray, "beams columns"]
    owner: Int[np.ndarray, "beams columns"]


class Windows(NamedTuple):
    """The part of a grid of rays that can meet each primitive.

    Attributes:
      first_beam: The first beam.
      last_beam: One past the last beam; no beam where it is not above the first.
      first_column: The first column, of any sign: columns count on around the turn.
      last_column: One past the last column.
      nearest: A distance that no point of the primitive is nearer than, metres.
    """

    first_beam: Int[np.ndarray, " primitives"]
    last_beam: Int[np.ndarray, " primitives"]
    first_column: Int[np.ndarray, " primitives"]
    last_column: Int[np.ndarray, " primitives"]
    nearest: Float[np.ndarray, " primitives"]


def windows_of(table: Primitives, rays: Rays) -> Windows:
    """The beams and columns that each primitive's bounding box covers."""
    columns = len(rays.azimuths)
    arms = np.einsum("pij,pj,cj->pci", table.axes, table.half, CORNERS)
    corners = table.center[:, None] + arms

    middle = np.arctan2(table.center[:, 1], table.center[:, 0])
    # Turned so that the middle lies on the x axis: no angle then wraps around.
    c, s = np.cos(middle)[:, None], np.sin(middle)[:, None]
    x, y = corners[..., 0], corners[..., 1]
    angle = np.arctan2(c * y - s * x, c * x + s * y)
    low, high = angle.min(axis=1), angle.max(axis=1)
    step = 2 * np.pi / columns
    start = (middle + low - rays.azimuths[0]) / step
    stop = (middle + high - rays.azimuths[0]) / step
    around = high - low >= np.pi  # only where the sensor stands over or under it
    first = np.where(around, 0, np.ceil(start - 1e-6)).astype(np.int64)
    last = np.where(around, columns, np.floor(stop + 1e-6) + 1).astype(np.int64)

    flat = _distance_on_map(table, corners)
    farthest = np.hypot(x, y).max(axis=1)
    bottom, top = corners[..., 2].min(axis=1), corners[..., 2].max(axis=1)
    highest = np.arctan2(top, np.where(top > 0, flat, farthest))
    lowest = np.arctan2(bottom, np.where(bottom < 0, flat, farthest))
    falling = -rays.elevations
    first_beam = np.searchsorted(falling, -highest - 1e-9, side="left")
    last_beam = np.searchsorted(falling, -lowest + 1e-9, side="right")
    away = np.maximum(0.0, np.maximum(bottom, -top))
    return Windows(first_beam, last_beam, first, last, np.hypot(flat, away))


def _distance_on_map(
    table: Primitives, corners: Float[np.ndarray, "primitives 8 3"]
) -> Float[np.ndarray, " primitives"]:
    """Distance in the x-y plane from the origin to the bounding box, or less."""
    # In the frame of the box's own heading the bounds of its corners are tight.
    heading = np.arctan2(table.axes[:, 1, 0], table.axes[:, 0, 0])[:, None]
    c, s = np.cos(heading), np.sin(heading)
    along = c * corners[..., 0] + s * corners[..., 1]
    across = c * corners[..., 1] - s * corners[..., 0]
    gaps = [
        np.maximum(0.0, np.maximum(v.min(axis=1), -v.max(axis=1)))
        for v in (along, across)
    ]
    return np.hypot(*gaps)


def cast(table: Primitives, rays: Rays, *, farthest: float, seed: int = 0) -> Hits:
    """The first primitive that each ray from the origin meets.

    Rays do not meet a solid primitive that they start in.

    Args:
      table: The primitives, in the frame of the rays.
      rays: The grid of rays.
      farthest: Distance up to which a primitive is met, metres.
      seed: Decides where rays are stopped in primitives that are not solid.
    """
    columns = len(rays.azimuths)
    shape = (len(rays.elevations), columns)
    ranges, owner = np.full(shape, farthest), np.full(shape, -1, np.int64)
    windows = windows_of(table, rays)
    seen = (windows.last_beam > windows.first_beam) & (windows.nearest < farthest)
    seen &= windows.last_column > windows.first_column
    order = np.argsort(windows.nearest, kind="stable")
    for row in order[seen[order]]:
        beams = slice(int(windows.first_beam[row]), int(windows.last_beam[row]))
        first, last = int(windows.first_column[row]), int(windows.last_column[row])
        start, width = first % columns, last - first
        parts = [slice(start, min(start + width, columns))]
        if start + width > columns:
            parts.append(slice(0, start + width - columns))
        for part in parts:
            window = ranges[beams, part]
            if window.max() <= windows.nearest[row]:
                continue
            found = meet(table, int(row), rays, beams, part, seed)
            nearer = found < window
            np.copyto(window, found, where=nearer)
            np.copyto(owner[beams, part], row, where=nearer)
    return Hits(np.where(owner < 0, np.inf, ranges), owner)


def meet(
    table: Primitives, row: int, rays: Rays, beams: slice, columns: slice, seed: int
) -> Float[np.ndarray, "beams columns"]:
    """The distance at which each ray of a window meets one primitive, or infinity."""
    scaled = table.axes[row] / table.half[row]
    origin = -table.center[row] @ scaled
    flat = np.cos(rays.elevations[beams])[:, None]
    up = np.sin(rays.elevations[beams])[:, None]
    cosine, sine = np.cos(rays.azimuths[columns]), np.sin(rays.azimuths[columns])
    x, y, z = (
        flat * (scaled[0, axis] * cosine + scaled[1, axis] * sine)
        + scaled[2, axis] * up
        for axis in range(3)
    )
    direction: Components = (x, y, z)
    a, b, c = (float(value) for value in origin)
    taper = (float(table.taper[row, 0]), float(table.taper[row, 1]))
    entry, leave = unit_interval(Kind(table.kind[row]), (a, b, c), direction, taper)
    density = float(table.density[row])
    if density == SOLID:
        return np.where((entry <= leave) & (entry > 0), entry, np.inf)
    start = np.maximum(entry, 0.0)
    number = np.arange(len(rays.elevations))[beams, None] * len(rays.azimuths)
    number = number + np.arange(len(rays.azimuths))[columns]
    stop = start - np.log(uniform_of(number, row, seed)) / density
    return np.where(stop < leave, stop, np.inf)


def uniform_of(
    numbers: Int[np.ndarray, "beams columns"], row: int, seed: int
) -> Float[np.ndarray, "beams columns"]:
    """A number in (0, 1] for each ray and primitive, whatever else is computed.

    The finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014) on a word made of ray, primitive and seed.
    """
    mask = (1 << 64) - 1
    salt = ((row + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03) & mask
    word = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15 ^ 0x5A5A)
    word ^= np.uint64(salt)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return ((word >> np.uint64(11)).astype(np.float64) + 1.0) / 2.0**53
