"""How one street is laid out: its widths, slopes and habits, drawn once for a scene.

The street runs along x without end, in blocks of 24 m; every few blocks another street
crosses it. Traffic keeps to the right, so the sensor drives along x at negative y.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BLOCK = 24.0
"""Length of a block, metres."""
KERB = 0.12
"""How much higher than the road the pavement lies, metres."""
VERGE = 75.0
"""How far to the side the ground reaches, metres."""
CROSSING = (5.0, 7.6)
"""Half the width of a crossing road, without and with its pavements, metres."""


class Side(NamedTuple):
    """One side of the street; lengths in metres.

    Attributes:
      parking: Width of the parking bays, 0 where nobody parks.
      angle: Heading of parked cars against that of the lane, radians.
      occupied: Share of the bays with a vehicle.
      pavement: Width of the pavement.
      garden: From the pavement to the buildings.
      slope: How much the ground rises for each metre beyond the pavement.
      built: Share of the plots with a building.
      hedges: Share of the plot borders that are hedges, of those with any.
    """

    parking: float
    angle: float
    occupied: float
    pavement: float
    garden: float
    slope: float
    built: float
    hedges: float


class Plan(NamedTuple):
    """One street.

    Attributes:
      words: Seed and scene, which begin the seed of all that is drawn for it.
      lane: Width of each of the two lanes, metres.
      left: The side of positive y.
      right: The side of negative y.
      crossing: A block with this number modulo `period` has a crossing.
      period: Blocks from one crossing to the next.
      amplitudes: Heights of the three waves of the road, metres.
      phases: Where those waves begin, radians.
      speed: Speed of the sensor and of its lane, metres per second.
      start: Where the sensor is at time 0, metres along x.
    """

    words: tuple[int, int]
    lane: float
    left: Side
    right: Side
    crossing: int
    period: int
    amplitudes: tuple[float, float, float]
    phases: tuple[float, float, float]
    speed: float
    start: float

    def side(self, sign: int) -> Side:
        """The side of positive or of negative y."""
        return self.left if sign > 0 else self.right

    def kerb(self, sign: int) -> float:
        """Distance of the kerb of one side from the middle of the street."""
        return self.lane + self.side(sign).parking

    def front(self, sign: int) -> float:
        """Distance of the outer edge of one pavement from the middle."""
        return self.kerb(sign) + self.side(sign).pavement

    def crosses(self, block: int) -> bool:
        """Whether another street crosses in this block."""
        return block % self.period == self.crossing


WAVELENGTHS = (310.0, 170.0, 96.0)
"""Lengths of the waves of the road, metres: multiples of nothing in common."""


def plan_street(seed: int, scene: int) -> Plan:
    """The plan of one scene.

    Raises:
      ValueError: If `seed` or `scene` is negative.
    """
    if seed < 0 or scene < 0:
        raise ValueError(f"seed and scene must not be negative, not {seed} and {scene}")
    rng = np.random.default_rng(np.random.SeedSequence((seed, scene)))
    low, middle, high = rng.uniform(0.3, 1.0, 3) * (1.6, 0.8, 0.25)
    a, b, c = rng.uniform(0, 2 * np.pi, 3)
    return Plan(
        (seed, scene),
        float(rng.uniform(3.0, 3.8)),
        _plan_side(rng),
        _plan_side(rng),
        int(rng.integers(5)),
        int(rng.integers(4, 7)),
        (float(low), float(middle), float(high)),
        (float(a), float(b), float(c)),
        float(rng.uniform(5.0, 11.0)),
        float(rng.uniform(0.0, 6 * BLOCK)),
    )


def _plan_side(rng: np.random.Generator) -> Side:
    style = rng.random()
    if style < 0.55:
        parking, angle = 2.3, 0.0
    elif style < 0.8:
        parking, angle = 5.2, float(rng.choice([np.pi / 2, -np.pi / 2, np.pi / 3]))
    else:
        parking, angle = 0.0, 0.0
    return Side(
        parking,
        angle,
        float(rng.uniform(0.3, 0.8)),
        float(rng.uniform(2.2, 4.0)),
        float(rng.choice([0.0, rng.uniform(2.0, 9.0)], p=[0.2, 0.8])),
        float(rng.uniform(-0.05, 0.08)),
        float(rng.uniform(0.35, 0.9)),
        float(rng.uniform(0.2, 0.8)),
    )


def road_height(
    plan: Plan, x: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Height of the road along x, metres: straight within a block."""
    where = np.asarray(x, np.float64) / BLOCK
    block = np.asarray(np.floor(where))
    share = where - block
    low, high = _knot(plan, block), _knot(plan, np.asarray(block + 1))
    return np.asarray(low + share * (high - low))


def _knot(plan: Plan, block: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    waves = zip(plan.amplitudes, WAVELENGTHS, plan.phases, strict=True)
    total = np.zeros_like(block)
    for amplitude, wavelength, phase in waves:
        total = total + amplitude * np.sin(
            2 * np.pi * block * BLOCK / wavelength + phase
        )
    return np.asarray(total)


def ground_height(plan: Plan, x: float, y: float) -> float:
    """Height of the ground at a place: of road, pavement or lawn."""
    sign = 1 if y >= 0 else -1
    height = float(road_height(plan, x))
    beyond = max(0.0, abs(y) - plan.front(sign))
    block = int(np.floor(x / BLOCK))
    on_road = abs(y) < plan.kerb(sign) or (
        plan.crosses(block) and abs(x - (block + 0.5) * BLOCK) < CROSSING[0]
    )
    return height + (0.0 if on_road else KERB) + plan.side(sign).slope * beyond
