"""Cars, trucks and people, each drawn at random and built of primitives.

A model stands on z = 0 with the middle of its box over the origin and faces along x.
Its primitives never leave the box, which is as tight as its class is annotated: from
the ground to the top, without mirrors.
"""

from typing import NamedTuple

import numpy as np

from e3dsnn_jax.street.classes import RawLabel
from e3dsnn_jax.street.primitives import (
    Kind,
    Primitives,
    join,
    primitives,
    rotation,
)

Rng = np.random.Generator


class Model(NamedTuple):
    """An object without a place.

    Attributes:
      primitives: What it is made of.
      size: Length, width and height of its box, metres.
    """

    primitives: Primitives
    size: tuple[float, float, float]


def _wheels(
    label: RawLabel, xs: list[float], width: float, radius: float
) -> Primitives:
    """Wheels at several places along a vehicle, on both sides."""
    thick = 0.22
    side = width / 2 - thick / 2
    centers = [(x, y, radius) for x in xs for y in (-side, side)]
    size = (2 * radius, 2 * radius, thick)
    # A cylinder stands along z: turned about x, it rolls along x.
    axle = rotation(roll=np.pi / 2)
    return primitives(
        Kind.CYLINDER, centers, size, label=label, reflectance=0.05, axes=axle
    )


def car(rng: Rng, label: RawLabel = RawLabel.CAR) -> Model:
    """A hatchback, saloon, estate or van-like car with a box of usual size."""
    length, width = rng.uniform(3.5, 4.9), rng.uniform(1.55, 1.9)
    height = rng.uniform(1.4, 1.7)
    if tall := rng.random() < 0.12:
        height = rng.uniform(1.75, 2.1)
    paint = rng.uniform(0.05, 0.6)
    glass = rng.uniform(0.02, 0.06)
    radius = rng.uniform(0.29, 0.35)
    belt = height * rng.uniform(0.55, 0.62)
    floor = rng.uniform(0.16, 0.24)

    bonnet = length * (rng.uniform(0.1, 0.18) if tall else rng.uniform(0.22, 0.3))
    boot = length * float(rng.choice([0.01, 0.03, 0.16]))
    cabin = length - bonnet - boot
    middle = (boot - bonnet) / 2
    roof = rng.uniform(0.05, 0.1)
    glazed = height - roof - belt
    lean = (rng.uniform(0.25, 0.4), rng.uniform(0.12, 0.25))

    def block(
        x: float, z: float, size: tuple, shine: float, taper: tuple
    ) -> Primitives:
        return primitives(
            Kind.BOX, (x, 0, z), size, label=label, reflectance=shine, taper=taper
        )

    nose = 0.9 * belt
    parts = [
        block(
            0, (floor + nose) / 2, (length, width, nose - floor), paint, (0.03, 0.03)
        ),
        block(
            middle,
            (nose + belt) / 2,
            (cabin, 0.96 * width, belt - nose),
            paint,
            (0.0, 0.0),
        ),
        block(middle, belt + glazed / 2, (cabin, 0.94 * width, glazed), glass, lean),
        block(
            middle,
            height - roof / 2,
            (cabin * (1 - lean[0]), 0.94 * width * (1 - lean[1]), roof),
            paint,
            (0.1, 0.1),
        ),
        _wheels(label, [-0.31 * length, 0.31 * length], width, radius),
    ]
    plate = primitives(
        Kind.BOX,
        [(x, 0, floor + 0.35) for x in (-length / 2 + 0.02, length / 2 - 0.02)],
        (0.04, 0.5, 0.11),
        label=label,
        reflectance=0.9,
    )
    return Model(join([*parts, plate]), (length, width, height))


def truck(rng: Rng, label: RawLabel = RawLabel.TRUCK) -> Model:
    """A cab and a box body on three or four pairs of wheels."""
    length, width = rng.uniform(6.0, 10.5), rng.uniform(2.2, 2.55)
    height = rng.uniform(2.6, 3.8)
    cab, floor = rng.uniform(1.6, 2.2), rng.uniform(0.5, 0.75)
    cab_height = height * rng.uniform(0.75, 0.95)
    paint, tarpaulin = rng.uniform(0.05, 0.6), rng.uniform(0.1, 0.65)
    gap = 0.25
    body = length - cab - gap
    xs = [length / 2 - 0.9, -length / 2 + 1.2]
    if length > 8:
        xs.append(-length / 2 + 2.4)

    def block(
        x: float, low: float, size: tuple, shine: float, taper: tuple
    ) -> Primitives:
        middle = (x, 0, low + size[2] / 2)
        return primitives(
            Kind.BOX, middle, size, label=label, reflectance=shine, taper=taper
        )

    front = length / 2 - cab / 2
    waist = floor + 0.45 * (cab_height - floor)
    parts = [
        block(
            front, floor - 0.2, (cab, 0.95 * width, waist - floor + 0.2), paint, (0, 0)
        ),
        block(
            front, waist, (cab, 0.95 * width, cab_height - waist), 0.06, (0.18, 0.06)
        ),
        block(
            -length / 2 + body / 2,
            floor + 0.3,
            (body, width, height - floor - 0.3),
            tarpaulin,
            (0, 0),
        ),
        block(0, floor, (length - 0.2, 0.5 * width, 0.3), 0.08, (0, 0)),
        _wheels(label, xs, width, 0.45),
    ]
    return Model(join(parts), (length, width, height))


def person(rng: Rng, label: RawLabel = RawLabel.PERSON) -> Model:
    """Someone who stands, or who walks if the label is of the moving class."""
    height = rng.uniform(1.5, 1.92)
    head = 0.13 * height
    hip, shoulder = 0.48 * height, 0.82 * height
    broad = rng.uniform(0.4, 0.52)
    stride = rng.uniform(0.12, 0.3) if label == RawLabel.MOVING_PERSON else 0.04
    top_shine, leg_shine = rng.uniform(0.05, 0.6, 2)

    def limb(
        x: float,
        y: float,
        low: float,
        high: float,
        lean: float,
        thick: float,
        shine: float,
    ) -> Primitives:
        size = (thick, thick, (high - low) / np.cos(lean))
        return primitives(
            Kind.CYLINDER,
            (x, y, (low + high) / 2),
            size,
            label=label,
            reflectance=shine,
            axes=rotation(pitch=lean),
        )

    swing = float(np.arctan2(stride, hip))
    arms = 0.7 * swing
    sway = 0.5 * (shoulder - hip) * np.tan(arms)
    parts = [
        limb(sign * stride / 2, sign * 0.1, 0.08, hip, -sign * swing, 0.15, leg_shine)
        for sign in (-1, 1)
    ]
    parts += [
        limb(
            -sign * sway, sign * broad / 2, hip, shoulder, sign * arms, 0.09, top_shine
        )
        for sign in (-1, 1)
    ]
    torso = (0.26, broad - 0.06, shoulder - hip + 0.14)
    parts.append(
        primitives(
            Kind.ELLIPSOID,
            [(0, 0, (shoulder + hip) / 2)],
            torso,
            label=label,
            reflectance=top_shine,
        )
    )
    parts.append(
        primitives(
            Kind.ELLIPSOID,
            (0, 0, height - head / 2),
            (0.19, 0.16, head),
            label=label,
            reflectance=rng.uniform(0.2, 0.5),
        )
    )
    # The neck closes the gap between the torso and the head.
    parts.append(limb(0, 0, shoulder - 0.1, height - head / 2, 0, 0.1, top_shine))
    deep = 2 * (stride + 0.12)
    return Model(join(parts), (deep, broad + 0.12, height))
