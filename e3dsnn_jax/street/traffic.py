"""What moves through a street: two lanes of vehicles and a stream of people a pavement.

All of a stream move at one speed and so keep their distances for ever; where each is
follows from the time alone.
"""

import functools
from typing import NamedTuple

import numpy as np

from e3dsnn_jax.street.classes import RawLabel
from e3dsnn_jax.street.movables import Model, car, person, truck
from e3dsnn_jax.street.plan import Plan, ground_height
from e3dsnn_jax.street.snapshot import Snapshot, place_object

FIRST_NUMBER = 40_001
"""The first number of an object that moves; those at rest have smaller ones."""
NUMBERS_IN_STREAM = 4_000
"""After so many the numbers of a stream begin again."""
CLEAR = 9.0
"""Metres before and behind the sensor that its lane keeps free."""


class Stream(NamedTuple):
    """Things that move along one line at one speed.

    Attributes:
      number: Which of the four streams.
      y: The line, metres.
      speed: Metres per second along x, negative for the other direction.
      gap: Metres from one place of the stream to the next.
      share: Share of the places that are taken.
      walks: Whether people walk here, or vehicles drive.
    """

    number: int
    y: float
    speed: float
    gap: float
    share: float
    walks: bool


@functools.lru_cache(maxsize=16)
def streams_of(plan: Plan) -> tuple[Stream, ...]:
    """The four streams of a street; the first is the lane of the sensor."""
    rng = np.random.default_rng(np.random.SeedSequence((*plan.words, 2)))
    streams = [
        Stream(
            number,
            side * plan.lane / 2,
            -side * plan.speed * float(rng.uniform(0.8, 1.2) if number else 1.0),
            float(rng.uniform(15.0, 30.0)),
            float(rng.uniform(0.3, 0.8)),
            False,
        )
        for number, side in enumerate((-1, 1))
    ]
    for number, side in ((2, -1), (3, 1)):
        y = side * (plan.kerb(side) + 0.5 * plan.side(side).pavement)
        speed = float(rng.choice([-1, 1]) * rng.uniform(1.0, 1.6))
        gap = float(rng.uniform(5.0, 14.0))
        streams.append(
            Stream(number, y, speed, gap, float(rng.uniform(0.3, 0.7)), True)
        )
    return tuple(streams)


@functools.lru_cache(maxsize=512)
def _member(plan: Plan, stream: Stream, place: int) -> tuple[Model, float] | None:
    """Who has one place of a stream, and how far from the middle of that place."""
    words = (*plan.words, 3, stream.number, 2 * abs(place) + (place < 0))
    rng = np.random.default_rng(np.random.SeedSequence(words))
    if rng.random() >= stream.share:
        return None
    if stream.walks:
        model = person(rng, RawLabel.MOVING_PERSON)
    elif rng.random() < 0.15:
        model = truck(rng, RawLabel.MOVING_TRUCK)
    else:
        model = car(rng, RawLabel.MOVING_CAR)
    return model, float(rng.uniform(-0.15, 0.15)) * stream.gap


def traffic_at(
    plan: Plan, seconds: float, sensor_x: float, reach: float
) -> list[Snapshot]:
    """Everyone who moves within `reach` metres of the sensor, in the street's frame."""
    found = []
    for stream in streams_of(plan):
        origin = plan.start + stream.speed * seconds
        first = int(np.floor((sensor_x - reach - origin) / stream.gap))
        last = int(np.ceil((sensor_x + reach - origin) / stream.gap))
        for place in range(first, last + 1):
            member = _member(plan, stream, place)
            if member is None:
                continue
            model, jitter = member
            x = origin + place * stream.gap + jitter
            own = stream.number == 0
            if own and abs(x - sensor_x) < CLEAR + model.size[0] / 2:
                continue
            number = FIRST_NUMBER + stream.number * NUMBERS_IN_STREAM
            number += place % NUMBERS_IN_STREAM
            yaw = 0.0 if stream.speed > 0 else np.pi
            at = (x, stream.y, ground_height(plan, x, stream.y))
            found.append(place_object(model, at, yaw, number))
    return found
