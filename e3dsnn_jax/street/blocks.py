"""What stands in one block of a street: a pure function of the plan and the block."""

import functools

import numpy as np

from e3dsnn_jax.street import fixtures
from e3dsnn_jax.street.ground import ground_of
from e3dsnn_jax.street.movables import Model, car, person, truck
from e3dsnn_jax.street.plan import BLOCK, CROSSING, Plan, ground_height
from e3dsnn_jax.street.primitives import Primitives, join, place
from e3dsnn_jax.street.snapshot import Boxes, Snapshot, join_boxes, place_object

Rng = np.random.Generator

OBJECTS_IN_BLOCK = 100
"""Most objects that a block may number."""
NUMBERED_BLOCKS = 400
"""After so many blocks the numbers of objects begin again."""


class _Block:
    """Collects what a block holds; objects are numbered as they come."""

    def __init__(self, plan: Plan, block: int) -> None:
        self.plan = plan
        self.start, self.middle = block * BLOCK, (block + 0.5) * BLOCK
        self.stop = self.start + BLOCK
        self.first = 1 + (block % NUMBERED_BLOCKS) * OBJECTS_IN_BLOCK
        self.primitives: list[Primitives] = []
        self.boxes: list[Boxes] = []

    def fixture(self, table: Primitives, x: float, y: float, yaw: float = 0.0) -> None:
        """Puts something without a box on the ground."""
        position = (x, y, ground_height(self.plan, x, y))
        self.primitives.append(place(table, position, yaw))

    def vehicle(self, rng: Rng, heavy: bool, x: float, y: float, yaw: float) -> float:
        """Puts a car or a truck on the ground and returns its length."""
        model = truck(rng) if heavy else car(rng)
        self._object(model, x + (model.size[0] / 2 if heavy else 0.0), y, yaw)
        return model.size[0]

    def person(self, rng: Rng, x: float, y: float) -> None:
        """Puts someone who stands on the ground."""
        self._object(person(rng), x, y, float(rng.uniform(-np.pi, np.pi)))

    def _object(self, model: Model, x: float, y: float, yaw: float) -> None:
        number = self.first + len(self.boxes)
        position = (x, y, ground_height(self.plan, x, y))
        made = place_object(model, position, yaw, number)
        self.primitives.append(made.primitives)
        self.boxes.append(made.boxes)


@functools.lru_cache(maxsize=64)
def block_of(plan: Plan, block: int) -> Snapshot:
    """All that stands still in a block, in the frame of the street."""
    # Numbers of blocks behind the start are negative; a seed takes none of those.
    words = (*plan.words, 1, 2 * abs(block) + (block < 0))
    rng = np.random.default_rng(np.random.SeedSequence(words))
    content = _Block(plan, block)
    content.primitives.append(ground_of(plan, block, rng))
    for sign in (-1, 1):
        if plan.crosses(block):
            _fill_corner(content, sign, rng)
        else:
            _park(content, sign, rng)
            _line_kerb(content, sign, rng)
            _fill_plots(content, sign, rng)
            _fill_background(content, sign, rng)
            # In places of 1.2 m, each taken once, so that nobody stands in another.
            for spot in rng.permutation(20)[: rng.poisson(1.0)]:
                x = content.start + 0.6 + 1.2 * float(spot)
                content.person(rng, x, sign * (plan.front(sign) - 0.35))
    return Snapshot(join(content.primitives), join_boxes(content.boxes))


def _park(content: _Block, sign: int, rng: Rng) -> None:
    """Vehicles in the parking bays along one side."""
    side = content.plan.side(sign)
    if not side.parking:
        return
    y = sign * (content.plan.lane + side.parking / 2)
    heading = (0.0 if sign < 0 else np.pi) + side.angle
    across = abs(np.sin(side.angle))
    x = content.start + 1.5
    while x < content.stop - 5.5:
        heavy = not across and rng.random() < 0.12 and x < content.stop - 12.0
        length = 2.9 / across if across else 5.6
        if rng.random() < side.occupied:
            jitter = rng.normal(size=3) * (0.15, 0.08, 0.03)
            turn = np.pi if rng.random() < 0.15 else 0.0
            yaw = heading + float(jitter[2]) * (0.3 if heavy else 1.0) + turn
            if heavy:
                length = content.vehicle(rng, True, x, y, yaw) + 1.2
            else:
                middle = x + (1.2 if across else 2.4) + float(jitter[0])
                content.vehicle(rng, False, middle, y + float(jitter[1]), yaw)
        x += length


def _line_kerb(content: _Block, sign: int, rng: Rng) -> None:
    """Trees, lamps and signs along the kerb of one side."""
    y = sign * (content.plan.kerb(sign) + 0.5)
    facing = 0.0 if sign > 0 else np.pi
    for slot in range(4):
        x = content.start + (slot + 0.5) * BLOCK / 4 + float(rng.uniform(-1.5, 1.5))
        choice = rng.random()
        if choice < 0.34:
            content.fixture(fixtures.tree(rng), x, y)
        elif choice < 0.54:
            content.fixture(fixtures.lamp(rng), x, y, facing)
        elif choice < 0.8:
            content.fixture(fixtures.sign(rng), x, y, facing + np.pi)


def _fill_plots(content: _Block, sign: int, rng: Rng) -> None:
    """Borders, gardens and buildings along one side."""
    side, front = content.plan.side(sign), content.plan.front(sign)
    facing = 0.0 if sign > 0 else np.pi
    plots = int(rng.integers(2, 4))
    width = BLOCK / plots
    for plot in range(plots):
        x = content.start + (plot + 0.5) * width
        if rng.random() < side.built:
            wide, deep = width * rng.uniform(0.75, 1.0), rng.uniform(8, 13)
            house = fixtures.building(rng, wide, deep, garden=side.garden)
            content.fixture(house, x, sign * (front + side.garden + 0.1), facing)
        else:
            _plant(content, rng, 6, (x, sign * front), (width, 18.0))
            if side.garden < 1:
                continue
        if rng.random() < 0.8:
            make = fixtures.hedge if rng.random() < side.hedges else fixtures.fence
            piece = make(rng, width * rng.uniform(0.7, 0.95))
            content.fixture(piece, x, sign * (front + 0.5), facing)
        if side.garden > 1:
            space = (width, max(side.garden - 0.5, 1.6))
            _plant(content, rng, side.garden / 2.5, (x, sign * front), space)


def _plant(
    content: _Block,
    rng: Rng,
    amount: float,
    middle: tuple[float, float],
    space: tuple[float, float],
) -> None:
    """Trees and bushes, about `amount`, within a width and a depth of a place."""
    width, deep = space
    for _ in range(rng.poisson(amount)):
        grown = fixtures.tree(rng) if rng.random() < 0.35 else fixtures.bush(rng)
        x = middle[0] + float(rng.uniform(-0.45, 0.45)) * width
        away = float(rng.uniform(1.5, deep))
        content.fixture(grown, x, middle[1] + np.copysign(away, middle[1]))


def _fill_background(content: _Block, sign: int, rng: Rng) -> None:
    """Trees and large buildings behind the plots of one side."""
    front = content.plan.front(sign) + content.plan.side(sign).garden
    for _ in range(rng.poisson(3.0)):
        x = float(rng.uniform(content.start, content.stop))
        grown = fixtures.tree(rng) if rng.random() < 0.7 else fixtures.bush(rng)
        content.fixture(grown, x, sign * (front + float(rng.uniform(15, 40))))
    if rng.random() < 0.4:
        hall = fixtures.building(rng, rng.uniform(14, 23), rng.uniform(8, 13))
        y = sign * (front + float(rng.uniform(25, 45)))
        content.fixture(hall, content.middle, y, 0.0 if sign > 0 else np.pi)


def _fill_corner(content: _Block, sign: int, rng: Rng) -> None:
    """Waiting vehicles, signs, people and planting along the crossing street."""
    front = content.plan.front(sign)
    lane = CROSSING[0] / 2
    # Traffic keeps to the right: from negative y it comes on the side of larger x.
    x, yaw = content.middle - sign * lane, -sign * np.pi / 2
    for place_in_queue in range(4):
        if rng.random() < 0.4:
            off = front + 3.5 + 7.0 * place_in_queue + float(rng.uniform(0, 1.5))
            content.vehicle(rng, False, x, sign * off, yaw)
    parked = content.middle + sign * lane
    for bay in range(5):
        if rng.random() < 0.35:
            off = front + 6.0 + 6.5 * bay + float(rng.uniform(0, 1.0))
            content.vehicle(rng, False, parked + sign * 1.2, sign * off, -yaw)
    inner, outer = CROSSING
    for step in (-1, 1):
        x = content.middle + step * (inner + 0.45)
        make = fixtures.sign if rng.random() < 0.6 else fixtures.lamp
        content.fixture(make(rng), x, sign * (front - 0.4), 0.0 if sign > 0 else np.pi)
        for spot in rng.permutation(12)[: rng.poisson(0.8)]:
            at = content.middle + step * float(rng.uniform(inner + 0.9, outer - 0.4))
            content.person(rng, at, sign * (front + 0.4 + 1.2 * float(spot)))
        for _ in range(rng.poisson(1.0)):
            grown = fixtures.tree(rng) if rng.random() < 0.5 else fixtures.bush(rng)
            off = float(rng.uniform(3, 40))
            at = content.middle + step * (outer + 2.2)
            content.fixture(grown, at, sign * (front + off))
