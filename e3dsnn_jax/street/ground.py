"""The ground of one block: road, pavements, lawns with mounds, and a crossing road."""

import numpy as np

from e3dsnn_jax.street.classes import RawLabel
from e3dsnn_jax.street.plan import BLOCK, CROSSING, KERB, VERGE, Plan, road_height
from e3dsnn_jax.street.primitives import Kind, Primitives, join, primitives

DEEP = 3.0
"""How far the pieces reach down, metres, so that no ray sees between or under them."""

Rng = np.random.Generator


def slab(
    corner: tuple[float, float, float],
    extent: tuple[float, float],
    slopes: tuple[float, float],
    label: RawLabel,
    reflectance: float,
) -> Primitives:
    """A piece of ground whose top is a tilted rectangle.

    Args:
      corner: A corner of the top: x, y and height.
      extent: How far the top reaches from there along x and along y, any sign.
      slopes: Rise of the top for each metre along x and along y.
      label: Raw label id.
      reflectance: Share of the light that returns at normal incidence.
    """
    along = np.array([1.0, 0.0, slopes[0]]) / np.hypot(1.0, slopes[0])
    normal = np.array([-slopes[0], -slopes[1], 1.0])
    normal /= np.linalg.norm(normal)
    axes = np.stack([along, np.cross(normal, along), normal], axis=1)
    half = np.array(extent) / 2
    rise = half @ np.array(slopes)
    top = np.array([corner[0] + half[0], corner[1] + half[1], corner[2] + rise])
    size = np.abs(extent) * np.hypot(1.0, slopes)
    # A hand's width of overlap closes the cracks that slopes across slopes leave.
    whole = (size[0] + 0.1, size[1], DEEP)
    return primitives(
        Kind.BOX,
        top - normal * DEEP / 2,
        whole,
        label=label,
        reflectance=reflectance,
        axes=axes,
    )


def ground_of(plan: Plan, block: int, rng: Rng) -> Primitives:
    """All ground of a block, in the frame of the street."""
    x0 = block * BLOCK
    height = float(road_height(plan, x0))
    slope = (float(road_height(plan, x0 + BLOCK - 1e-6)) - height) / BLOCK
    road, crossing_road = rng.uniform(0.08, 0.3, 2)
    parts = [
        slab(
            (x0, -plan.kerb(-1), height),
            (BLOCK, plan.kerb(-1) + plan.kerb(1)),
            (slope, 0.0),
            RawLabel.ROAD,
            road,
        )
    ]
    for sign in (-1, 1):
        side, kerb, front = plan.side(sign), plan.kerb(sign), plan.front(sign)
        pavement, lawn = float(rng.uniform(0.15, 0.45)), float(rng.uniform(0.2, 0.5))
        grass = float(rng.uniform(0.03, 0.2))

        def piece(
            x: float,
            length: float,
            near: float,
            far: float,
            step: float,
            label: RawLabel,
            shine: float,
            sign: int = sign,
            front: float = front,
            rise: float = side.slope,
        ) -> Primitives:
            lift = height + step + slope * (x - x0) + rise * max(0.0, near - front)
            tilt = sign * rise if near >= front else 0.0
            return slab(
                (x, sign * near, lift),
                (length, sign * (far - near)),
                (slope, tilt),
                label,
                shine,
            )

        if plan.crosses(block):
            middle = x0 + BLOCK / 2
            inner, outer = CROSSING
            for near, far in ((kerb, front), (front, VERGE)):
                start, width = middle - inner, 2 * inner
                parts.append(
                    piece(start, width, near, far, 0, RawLabel.ROAD, crossing_road)
                )
                for start in (middle - outer, middle + inner):
                    parts.append(
                        piece(
                            start,
                            outer - inner,
                            near,
                            far,
                            KERB,
                            RawLabel.SIDEWALK,
                            pavement,
                        )
                    )
            stretches = [(x0, middle - outer), (middle + outer, x0 + BLOCK)]
        else:
            stretches = [(x0, x0 + BLOCK)]
        for start, stop in stretches:
            long = stop - start
            soil = piece(start, long, front, VERGE, KERB, RawLabel.TERRAIN, lawn)
            parts += [
                piece(start, long, kerb, front, KERB, RawLabel.SIDEWALK, pavement),
                soil,
                _grass(soil, grass),
            ]
            if rng.random() < 0.5:
                parts.append(_mound(rng, plan, sign, (start, stop), height, lawn))
    return join(parts)


def _grass(soil: Primitives, tall: float) -> Primitives:
    """Blades that stand on a piece of ground and stop rays at any height."""
    up = soil.axes[:, :, 2] * (DEEP + tall) / 2
    half = soil.half.copy()
    half[:, 2] = tall / 2
    density = np.full(1, 2.0 / tall)
    return soil._replace(center=soil.center + up, half=half, density=density)


def _mound(
    rng: Rng,
    plan: Plan,
    sign: int,
    stretch: tuple[float, float],
    height: float,
    shine: float,
) -> Primitives:
    """A low hill behind the gardens."""
    off = rng.uniform(20.0, 45.0)
    ground = height + KERB + plan.side(sign).slope * off
    size = (rng.uniform(8, 16), rng.uniform(8, 16), rng.uniform(1.5, 5.0))
    center = (rng.uniform(*stretch), sign * (plan.front(sign) + off), ground)
    return primitives(
        Kind.ELLIPSOID, center, size, label=RawLabel.TERRAIN, reflectance=shine
    )
