"""What stands still in a street: buildings, trees, bushes, fences, poles and signs.

All stand on z = 0 about the origin. What faces the street faces along -y.
"""

import numpy as np

from e3dsnn_jax.street.classes import RawLabel
from e3dsnn_jax.street.primitives import (
    SOLID,
    Kind,
    Primitives,
    Rows,
    join,
    primitives,
    rotation,
)

Rng = np.random.Generator

LEAVES = (1.0, 4.0)
"""Least and most stops per metre in a crown or a bush."""


def _shine(rng: Rng) -> float:
    """A reflectance of any material: no class is told by it."""
    return float(rng.uniform(0.08, 0.5))


def building(
    rng: Rng, width: float, depth: float, *, garden: float = 0.0
) -> Primitives:
    """A house whose front lies at y = 0 and spans x from -width / 2 to width / 2.

    A bay needs a front garden, of that many metres, to stand in.
    """
    floors = int(rng.integers(1, 5))
    storey = rng.uniform(2.6, 3.3)
    height, wall = floors * storey, _shine(rng)

    def block(
        center: Rows,
        size: Rows,
        shine: float,
        taper: tuple[float, float] = (0.0, 0.0),
    ) -> Primitives:
        return primitives(
            Kind.BOX,
            center,
            size,
            label=RawLabel.BUILDING,
            reflectance=shine,
            taper=taper,
        )

    # The foundation reaches below the ground, which may fall away beneath it.
    middle = (0, depth / 2, height / 2 - 1)
    parts = [block(middle, (width, depth, height + 2), wall)]
    if rng.random() < 0.6:
        rise = rng.uniform(1.5, 3.5)
        parts.append(
            block(
                (0, depth / 2, height + rise / 2),
                (width, depth + 0.6, rise),
                _shine(rng),
                taper=(0.0, 0.98),
            )
        )
    across = max(1, int(width / rng.uniform(2.2, 3.5)))
    xs = (np.arange(across) + 0.5) / across * width - width / 2
    panes = [(x, -0.01, floor * storey + 1.55) for floor in range(floors) for x in xs]
    entrance = int(rng.integers(across))
    panes[entrance] = (panes[entrance][0], -0.01, 1.05)
    # Glass sends almost nothing back: windows are holes in the scan.
    size = (min(1.3, 0.6 * width / across), 0.06, 1.4)
    parts.append(block(panes, size, 0.03))
    if rng.random() < 0.35 and floors > 1:
        balconies = [
            (x, -0.55, floor * storey + 0.5)
            for floor in range(1, floors)
            for x in xs[::2]
        ]
        parts.append(block(balconies, (1.9, 1.1, 1.0), _shine(rng)))
    if garden > 1.5 and rng.random() < 0.5:
        bay = rng.uniform(0.6, 1.2)
        parts.append(
            block(
                (rng.uniform(-0.2, 0.2) * width, -bay / 2, height / 2 - 1),
                (0.3 * width, bay, height + 2),
                wall,
            )
        )
    return join(parts)


def crown(
    rng: Rng, center: tuple[float, float, float], size: tuple[float, float, float]
) -> Primitives:
    """Clumps of leaves that fill an ellipsoid."""
    count = int(rng.integers(5, 10))
    offsets = rng.normal(size=(count, 3))
    offsets *= 0.3 * rng.random((count, 1)) / np.linalg.norm(offsets, axis=1)[:, None]
    centers = np.array(center) + offsets * size
    sizes = rng.uniform(0.35, 0.65, (count, 1)) * size
    return primitives(
        Kind.ELLIPSOID,
        centers,
        sizes,
        label=RawLabel.VEGETATION,
        reflectance=_shine(rng),
        density=float(rng.uniform(*LEAVES)),
    )


def tree(rng: Rng) -> Primitives:
    """A trunk, leaning a little, with a crown over it."""
    bare, thick = rng.uniform(1.8, 3.2), rng.uniform(0.2, 0.5)
    spread, tall = rng.uniform(2.2, 5.5), rng.uniform(2.5, 6.0)
    lean = rotation(yaw=rng.uniform(-np.pi, np.pi), pitch=rng.uniform(0.0, 0.05))
    long = bare + 0.45 * tall
    trunk = primitives(
        Kind.CYLINDER,
        lean @ np.array([0, 0, long / 2]),
        (thick, thick, long + 0.4),
        label=RawLabel.TRUNK,
        reflectance=_shine(rng),
        axes=lean,
    )
    top = lean @ np.array([0, 0, bare + tall / 2])
    return join([trunk, crown(rng, tuple(top), (spread, spread, tall))])


def bush(rng: Rng) -> Primitives:
    """Leaves down to the ground, up to as high as a car or a person."""
    wide, tall = rng.uniform(0.8, 3.5), rng.uniform(0.6, 2.8)
    return crown(rng, (0, 0, 0.42 * tall), (wide, wide, tall))


def hedge(rng: Rng, width: float) -> Primitives:
    """A clipped hedge along x."""
    tall, deep = rng.uniform(0.7, 2.0), rng.uniform(0.4, 0.9)
    return primitives(
        Kind.BOX,
        (0, 0, tall / 2 - 0.2),
        (width, deep, tall + 0.4),
        label=RawLabel.VEGETATION,
        reflectance=_shine(rng),
        density=float(rng.uniform(3.0, 7.0)),
    )


def fence(rng: Rng, width: float) -> Primitives:
    """A garden wall, a board fence with posts, or wire, along x."""
    tall = rng.uniform(0.7, 2.0)
    style = int(rng.integers(3))
    deep, density = ((0.24, SOLID), (0.05, SOLID), (0.06, 12.0))[style]
    shine = _shine(rng)
    panel = primitives(
        Kind.BOX,
        (0, 0, tall / 2 - 0.3),
        (width, deep, tall + 0.6),
        label=RawLabel.FENCE,
        reflectance=shine,
        density=density,
    )
    if style == 0:
        return panel
    count = max(2, round(width / 2) + 1)
    posts = [(x, 0, tall / 2) for x in np.linspace(-width / 2, width / 2, count)]
    size = (0.1, 0.1, tall + 0.1)
    return join(
        [
            panel,
            primitives(Kind.BOX, posts, size, label=RawLabel.FENCE, reflectance=shine),
        ]
    )


def _post(rng: Rng, thick: float, tall: float) -> Primitives:
    return primitives(
        Kind.CYLINDER,
        (0, 0, tall / 2 - 0.2),
        (thick, thick, tall + 0.4),
        label=RawLabel.POLE,
        reflectance=_shine(rng),
    )


def lamp(rng: Rng) -> Primitives:
    """A lamp post whose arm reaches over the street."""
    tall, thick = rng.uniform(4.5, 8.0), rng.uniform(0.1, 0.22)
    reach = rng.uniform(0.6, 2.0)
    arm = primitives(
        Kind.BOX,
        [(0, -reach / 2, tall), (0, -reach, tall)],
        [(0.08, reach, 0.08), (0.25, 0.6, 0.14)],
        label=RawLabel.POLE,
        reflectance=_shine(rng),
    )
    return join([_post(rng, thick, tall), arm])


def sign(rng: Rng) -> Primitives:
    """A post with one or two plates that face along x."""
    tall = rng.uniform(2.0, 3.4)
    post = _post(rng, rng.uniform(0.06, 0.12), tall)
    plates = int(rng.integers(1, 3))
    wide = rng.uniform(0.5, 0.9)
    heights = [tall - 0.35 - 0.8 * plate for plate in range(plates)]
    facing = rotation(yaw=float(rng.normal(0.0, 0.15)))
    boards = primitives(
        Kind.BOX,
        [(-0.07, 0, z) for z in heights],
        (0.03, wide, 0.7),
        label=RawLabel.TRAFFIC_SIGN,
        reflectance=float(rng.uniform(0.35, 0.95)),
        axes=facing,
    )
    return join([post, boards])
