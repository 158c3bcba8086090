"""One scan of a street: what the sensor measures, and what the truth is.

    plan = plan_street(seed=0, scene=3)
    scan = scan_street(plan, seconds=1.5)

Everything is a pure function of the plan, the time and the sensor.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.street.blocks import block_of
from e3dsnn_jax.street.cast import Hits, cast
from e3dsnn_jax.street.intersect import outward_normals
from e3dsnn_jax.street.plan import BLOCK, Plan, road_height
from e3dsnn_jax.street.primitives import SOLID, take
from e3dsnn_jax.street.sensor import Rays, Sensor, directions, echo, rays_of
from e3dsnn_jax.street.snapshot import Snapshot, join_snapshots, snapshot_from
from e3dsnn_jax.street.traffic import traffic_at


class Pose(NamedTuple):
    """Where the sensor is in the frame of the street.

    Attributes:
      position: Metres.
      yaw: Heading, the angle from x towards y, radians.
    """

    position: Float[np.ndarray, " 3"]
    yaw: float


class Scan(NamedTuple):
    """One turn of the sensor, in its frame: x ahead, y to the left, z up.

    Points follow beam by beam from the highest down, each counter-clockwise from
    straight ahead.

    Attributes:
      points: Coordinates, metres.
      intensity: From 0 to 0.99 in steps of 0.01.
      label: Raw label id of what was hit.
      instance: Number of the object that was hit, 0 for none.
      beam: Which beam, counted from the highest.
      column: Which column.
    """

    points: Float[np.ndarray, "points 3"]
    intensity: Float[np.ndarray, " points"]
    label: Int[np.ndarray, " points"]
    instance: Int[np.ndarray, " points"]
    beam: Int[np.ndarray, " points"]
    column: Int[np.ndarray, " points"]


class View(NamedTuple):
    """A scan with all that it was made of, in the frame of the sensor.

    Attributes:
      scan: What was measured.
      snapshot: What was there.
      rays: The rays that were sent.
      hits: What each ray met, before noise and losses.
    """

    scan: Scan
    snapshot: Snapshot
    rays: Rays
    hits: Hits


def pose_at(plan: Plan, seconds: float, sensor: Sensor) -> Pose:
    """The pose of the sensor at a time; it sways a little in its lane."""
    x = plan.start + plan.speed * seconds
    turn = 2 * np.pi / 60.0
    y = -plan.lane / 2 + 0.2 * np.sin(turn * x)
    yaw = float(np.arctan(0.2 * turn * np.cos(turn * x)))
    height = float(road_height(plan, x)) + sensor.height
    return Pose(np.array([x, y, height]), yaw)


def street_at(plan: Plan, seconds: float, sensor: Sensor) -> Snapshot:
    """All within the sensor's range at a time, in the frame of the street."""
    x = float(pose_at(plan, seconds, sensor).position[0])
    first = int(np.floor((x - sensor.farthest) / BLOCK))
    last = int(np.floor((x + sensor.farthest) / BLOCK))
    parts = [block_of(plan, block) for block in range(first, last + 1)]
    return join_snapshots([*parts, *traffic_at(plan, seconds, x, sensor.farthest)])


def view_street(plan: Plan, seconds: float, sensor: Sensor | None = None) -> View:
    """A scan of the street at a time, with what it was made of.

    Args:
      plan: The street.
      seconds: Time since the sensor started, 0 or more.
      sensor: The sensor; the whole one if omitted.

    Raises:
      ValueError: If `seconds` is negative or not finite.
    """
    if not (np.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a scan is taken at a time of 0 s or later, not {seconds} s")
    sensor = Sensor() if sensor is None else sensor
    # A microsecond tells any two times apart that a sensor could.
    words = (*plan.words, 4, round(seconds * 1e6))
    rng = np.random.default_rng(np.random.SeedSequence(words))
    rays = rays_of(sensor, float(rng.random()))
    pose = pose_at(plan, seconds, sensor)
    snapshot = snapshot_from(street_at(plan, seconds, sensor), pose.position, pose.yaw)
    hits = cast(
        snapshot.primitives,
        rays,
        farthest=sensor.farthest,
        seed=int(rng.integers(2**32)),
    )
    return View(measure(snapshot, rays, hits, sensor, rng), snapshot, rays, hits)


def scan_street(plan: Plan, seconds: float, sensor: Sensor | None = None) -> Scan:
    """A scan of the street at a time; arguments as for `view_street`."""
    return view_street(plan, seconds, sensor).scan


def measure(
    snapshot: Snapshot,
    rays: Rays,
    hits: Hits,
    sensor: Sensor,
    rng: np.random.Generator,
) -> Scan:
    """What the sensor makes of its hits: noise, intensity, and lost returns."""
    beam, column = np.nonzero(hits.owner >= 0)
    owner, ranges = hits.owner[beam, column], hits.ranges[beam, column]
    ray = directions(rays)[beam, column]
    struck = take(snapshot.primitives, owner)
    normals = outward_normals(struck, ranges[:, None] * ray)
    cosine = np.abs(np.einsum("px,px->p", normals, ray))
    # Leaves and wires face anywhere.
    loose = struck.density != SOLID
    cosine[loose] = rng.uniform(0.2, 1.0, len(ranges))[loose]
    measured = ranges + sensor.range_noise * rng.standard_normal(len(ranges))
    intensity, noticed = echo(struck.reflectance, cosine, ranges, sensor, rng)
    kept = noticed & (measured >= sensor.nearest) & (measured <= sensor.farthest)
    return Scan(
        measured[kept, None] * ray[kept],
        intensity[kept],
        struck.label[kept],
        struck.instance[kept],
        beam[kept],
        column[kept],
    )
