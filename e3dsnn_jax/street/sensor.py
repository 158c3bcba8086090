"""The rotating laser sensor: which rays it sends, and what it makes of their returns.

It has the two banks of beams of a 64-beam sensor: 32 from +2 to -8.3 degrees and 32
from -8.8 to -24.8 degrees. Rays form a grid of beams and columns, so all directions
follow from one row of elevations and one of azimuths.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

BANKS_DEGREES = ((2.0, -8.33), (-8.83, -24.8))
"""The first and the last elevation of the upper and of the lower bank."""


@dataclass(frozen=True)
class Sensor:
    """A rotating sensor; the defaults are the whole one."""

    beams: int = 64
    """Beams, from 1 to 64: that many of the 64 elevations, evenly chosen."""
    columns: int = 2083
    """Azimuths in a turn; 2083 is what the sensor does at ten turns a second."""
    height: float = 1.73
    """Height above the road, metres."""
    nearest: float = 1.5
    """Smallest range that is measured, metres."""
    farthest: float = 90.0
    """Largest range that is measured, metres."""
    range_noise: float = 0.02
    """Standard deviation of a range, metres."""
    lost: float = 0.03
    """Share of the returns that are lost whatever they hit."""

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= 64:
            raise ValueError(f"a sensor has 1 to 64 beams, not {self.beams}")
        if self.columns < 4:
            raise ValueError(
                f"a sensor has at least 4 columns in a turn, not {self.columns}"
            )
        if not 0 < self.nearest < self.farthest:
            raise ValueError(
                f"ranges from {self.nearest} to {self.farthest} m: the first must be "
                "positive and less than the second"
            )
        if not (0 <= self.lost < 1 and self.range_noise >= 0):
            raise ValueError(
                f"lost must lie in [0, 1) and range_noise be 0 or more, not "
                f"{self.lost} and {self.range_noise}"
            )


REDUCED = Sensor(beams=32, columns=512)
"""An eighth of the rays, for tests and for short training."""


class Rays(NamedTuple):
    """A grid of rays from the origin.

    Attributes:
      elevations: Angle above the horizon of each beam, radians, falling.
      azimuths: Angle from x towards y of each column, radians, at equal steps of a
        whole turn, rising from less than one step.
    """

    elevations: Float[np.ndarray, " beams"]
    azimuths: Float[np.ndarray, " columns"]


def rays_of(sensor: Sensor, phase: float = 0.0) -> Rays:
    """The rays of one turn, the first column `phase` of a step after straight ahead.

    Raises:
      ValueError: If `phase` lies outside [0, 1).
    """
    if not 0 <= phase < 1:
        raise ValueError(f"phase is a share of a step in [0, 1), not {phase}")
    banks = [np.linspace(first, last, 32) for first, last in BANKS_DEGREES]
    chosen = np.round(np.linspace(0, 63, sensor.beams)).astype(int)
    azimuths = 2 * np.pi * (np.arange(sensor.columns) + phase) / sensor.columns
    return Rays(np.radians(np.concatenate(banks))[chosen], azimuths)


def directions(rays: Rays) -> Float[np.ndarray, "beams columns 3"]:
    """The unit vector of every ray."""
    flat, up = np.cos(rays.elevations)[:, None], np.sin(rays.elevations)[:, None]
    x, y = flat * np.cos(rays.azimuths), flat * np.sin(rays.azimuths)
    return np.stack([x, y, np.broadcast_to(up, x.shape)], axis=-1)


def echo(
    reflectance: Float[np.ndarray, " points"],
    cosine: Float[np.ndarray, " points"],
    ranges: Float[np.ndarray, " points"],
    sensor: Sensor,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " points"], np.ndarray]:
    """The intensity of each return, and whether the sensor notices it.

    A rough surface returns some light at every angle: at grazing incidence a third.
    What a tenth reflectance returns at normal incidence is seen up to 55 m, and a
    weaker or stronger return to the square root of its share of that.

    Returns:
      Intensities between 0 and 0.99 in steps of 0.01, and a mask.
    """
    rough = 1 + 0.25 * rng.standard_normal(len(ranges))
    light = reflectance * np.clip(rough, 0.2, 2.0) * (0.35 + 0.65 * cosine)
    limit = 55.0 * np.sqrt(light / 0.1)
    fading = np.clip((ranges / np.maximum(limit, 1e-3) - 0.8) / 0.4, 0.0, 1.0)
    chance = 1 - (1 - sensor.lost) * (1 - fading)
    noticed = rng.random(len(ranges)) >= chance
    intensity = light * np.exp(-ranges / 150.0)
    return np.round(np.clip(intensity, 0.0, 0.99), 2), noticed
