"""Sixteen kinds of furniture and parts, each drawn at random by one function.

Every function takes a random generator and returns a surface standing on about z = 0,
in units of its own: proportions, the number of legs, boards, teeth or turns, and which
optional parts exist are all drawn anew. Nothing here is copied from a data set.
"""

from collections.abc import Callable

import numpy as np

from e3dsnn_jax.data.augment import rotation_matrix
from e3dsnn_jax.data.surfaces import (
    Surface,
    arc,
    blade,
    boxes,
    cylinder,
    ellipsoid,
    extrude,
    move,
    regular_polygon,
    revolve,
    transform,
    tube,
    union,
)

Rng = np.random.Generator


def _chance(rng: Rng, probability: float) -> bool:
    return bool(rng.random() < probability)


def _between(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _count(rng: Rng, low: int, high: int) -> int:
    return int(rng.integers(low, high + 1))


def _turned(
    surface: Surface, x: float = 0.0, y: float = 0.0, z: float = 0.0
) -> Surface:
    """The surface rotated about the origin by the rotation vector (x, y, z)."""
    return transform(surface, rotation_matrix(np.array([x, y, z])))


def _legs(rng: Rng, x: float, y: float, height: float, thickness: float) -> Surface:
    """Four legs, square or round, under the corners (+-x, +-y)."""
    corners = [(i * x, j * y) for i in (-1, 1) for j in (-1, 1)]
    if _chance(rng, 0.5):
        centers = [(a, b, height / 2) for a, b in corners]
        return boxes(centers, [(thickness, thickness, height)])
    leg = cylinder(thickness / 2, height, segments=8)
    return union([move(leg, a, b) for a, b in corners])


def _bed(rng: Rng) -> Surface:
    width, length = _between(rng, 0.8, 1.7), _between(rng, 1.8, 2.1)
    leg, frame, mattress = (
        _between(rng, *r) for r in ((0.1, 0.3), (0.1, 0.25), (0.1, 0.3))
    )
    top = leg + frame + mattress
    parts = [
        _legs(rng, width / 2 - 0.05, length / 2 - 0.05, leg, 0.08),
        boxes([(0, 0, leg + frame / 2)], [(width, length, frame)]),
        boxes([(0, 0, top - mattress / 2)], [(0.94 * width, 0.96 * length, mattress)]),
    ]
    head = top + _between(rng, 0.2, 0.6)
    parts.append(boxes([(0, length / 2 + 0.03, head / 2)], [(width, 0.06, head)]))
    if _chance(rng, 0.5):
        foot = top + _between(rng, 0.0, 0.2)
        parts.append(boxes([(0, -length / 2 - 0.03, foot / 2)], [(width, 0.06, foot)]))
    pillows = 1 if width < 1.1 else 2
    pillow = ellipsoid(0.38 * width / pillows, 0.2, 0.08)
    for number in range(pillows):
        x = (number - (pillows - 1) / 2) * width / pillows
        parts.append(move(pillow, x, length / 2 - 0.3, top + 0.03))
    return union(parts)


def _bolt(rng: Rng) -> Surface:
    radius = 0.2
    length, head = _between(rng, 0.7, 1.6), _between(rng, 0.16, 0.3)
    parts = []
    if _chance(rng, 0.6):
        hexagon = regular_polygon(6, _between(rng, 0.34, 0.46))
        parts.append(move(extrude(hexagon, head), z=length))
    else:
        wide = _between(rng, 0.34, 0.44)
        dome = [(0.0, 0.0), (wide, 0.0), (wide, 0.3 * head)]
        dome += [(0.8 * wide, 0.75 * head), (0.4 * wide, head), (0.0, head)]
        parts.append(move(revolve(dome), z=length))
    threads = _count(rng, 6, 11)
    bare = _between(rng, 0.0, 0.4) * length
    heights = np.linspace(0, length - bare, 2 * threads + 1)
    depth = _between(rng, 0.75, 0.85)
    profile = [(0.0, 0.0)]
    profile += [
        (radius * (depth if i % 2 == 0 else 1.0), float(z))
        for i, z in enumerate(heights)
    ]
    profile.append((radius, length))
    parts.append(revolve(profile, segments=16))
    if _chance(rng, 0.4):
        washer = [(radius, 0.0), (0.5, 0.0), (0.5, 0.05), (radius, 0.05)]
        parts.append(move(revolve(washer), z=length - 0.06))
    return union(parts)


def _bottle(rng: Rng) -> Surface:
    radius, body = _between(rng, 0.22, 0.42), _between(rng, 0.6, 1.1)
    neck_radius, neck = radius * _between(rng, 0.3, 0.5), _between(rng, 0.25, 0.55)
    shoulder = _between(rng, 0.08, 0.35)
    top = body + shoulder + neck
    middle = (radius + neck_radius) / 2 + _between(rng, 0.0, 0.06)
    profile = [(0.0, 0.03), (0.8 * radius, 0.0), (radius, 0.04), (radius, body)]
    profile += [(middle, body + shoulder / 2), (neck_radius, body + shoulder)]
    profile += [(neck_radius, top)]
    if _chance(rng, 0.6):
        cap = neck_radius * 1.2
        profile += [(cap, top), (cap, top + 0.1), (0.0, top + 0.1)]
    else:
        profile += [(0.8 * neck_radius, top), (0.8 * neck_radius, body + shoulder)]
    if _chance(rng, 0.25):
        return transform(revolve(profile, segments=4), np.diag([1.2, 1.2, 1.0]))
    return revolve(profile)


def _perforated_plate(
    rng: Rng, width: float, length: float, thickness: float
) -> Surface:
    """A plate in the x-y plane from y = 0 to y = length, with one or two holes."""
    holes = 1 if length < 0.8 else 2
    tile = length / holes
    square = regular_polygon(32, 1.0)
    square = square / np.abs(square).max(axis=1, keepdims=True)
    square = square * np.array([width / 2, tile / 2])
    bore = regular_polygon(32, min(width, tile) * _between(rng, 0.2, 0.34))
    plate = extrude(square, thickness, inner=bore)
    return union([move(plate, y=(number + 0.5) * tile) for number in range(holes)])


def _bracket(rng: Rng) -> Surface:
    width, thickness = _between(rng, 0.4, 0.9), _between(rng, 0.06, 0.12)
    foot, upright = _between(rng, 0.6, 1.2), _between(rng, 0.6, 1.2)
    parts = [
        _perforated_plate(rng, width, foot, thickness),
        _turned(_perforated_plate(rng, width, upright, thickness), x=np.pi / 2),
    ]
    if _chance(rng, 0.5):
        reach = 0.8 * min(foot, upright)
        # The polygon of a gusset must see the origin, so it is centred first.
        triangle = np.array([(-1, -1), (2, -1), (-1, 2)]) * reach / 3
        rib = move(extrude(triangle, 0.06), reach / 3, reach / 3, -0.03)
        # (x, y, z) -> (z, x, y): the triangle stands up in the y-z plane.
        upright_rib = transform(rib, np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))
        sides = (-0.4 * width, 0.4 * width) if _chance(rng, 0.5) else (0.0,)
        parts += [move(upright_rib, x=x) for x in sides]
    return union(parts)


def _chair(rng: Rng) -> Surface:
    width, depth = _between(rng, 0.42, 0.6), _between(rng, 0.42, 0.55)
    seat, thick = _between(rng, 0.38, 0.52), _between(rng, 0.04, 0.1)
    back = _between(rng, 0.4, 0.7)
    top, rear = seat + thick, -depth / 2 + 0.03
    parts = [boxes([(0, 0, seat + thick / 2)], [(width, depth, thick)])]
    if _chance(rng, 0.75):
        parts.append(_legs(rng, width / 2 - 0.04, depth / 2 - 0.04, seat, 0.06))
    else:
        parts.append(cylinder(0.04, seat, segments=8))
        spokes = _count(rng, 4, 5)
        spoke = boxes([(width / 4, 0, 0.03)], [(width / 2, 0.06, 0.05)])
        turns = 2 * np.pi * np.arange(spokes) / spokes
        parts += [_turned(spoke, z=float(turn)) for turn in turns]
    if _chance(rng, 0.5):
        parts.append(boxes([(0, rear, top + back / 2)], [(width, 0.05, back)]))
    else:
        slats = _count(rng, 3, 6)
        xs = np.linspace(-width / 2 + 0.03, width / 2 - 0.03, slats)
        parts.append(
            boxes([(x, rear, top + back / 2) for x in xs], [(0.05, 0.04, back)])
        )
        parts.append(boxes([(0, rear, top + back)], [(width, 0.05, 0.09)]))
    if _chance(rng, 0.35):
        arm = top + _between(rng, 0.16, 0.25)
        sides = (-width / 2, width / 2)
        parts.append(boxes([(x, 0, arm) for x in sides], [(0.05, depth, 0.04)]))
        posts = [(x, depth / 2 - 0.04, (top + arm) / 2) for x in sides]
        parts.append(boxes(posts, [(0.04, 0.04, arm - top)]))
    return union(parts)


def _drawers(rng: Rng) -> Surface:
    width, depth = _between(rng, 0.5, 1.4), _between(rng, 0.4, 0.6)
    height, leg = _between(rng, 0.6, 1.3), _between(rng, 0.0, 0.2)
    rows, columns = _count(rng, 2, 5), 1 if width < 0.8 else _count(rng, 1, 2)
    parts = [boxes([(0, 0, leg + height / 2)], [(width, depth, height)])]
    if leg > 0.05:
        parts.append(_legs(rng, width / 2 - 0.05, depth / 2 - 0.05, leg, 0.06))
    if _chance(rng, 0.5):
        top = (width + 0.08, depth + 0.08, 0.04)
        parts.append(boxes([(0, 0, leg + height + 0.02)], [top]))
    cell_x, cell_z = width / columns, height / rows
    cells = [
        ((column + 0.5) * cell_x - width / 2, leg + (row + 0.5) * cell_z)
        for row in range(rows)
        for column in range(columns)
    ]
    front, out = (0.86 * cell_x, 0.08, 0.74 * cell_z), -depth / 2 - 0.04
    parts.append(boxes([(x, out, z) for x, z in cells], [front]))
    grip = (0.07, 0.1, 0.07) if _chance(rng, 0.5) else (0.5 * cell_x, 0.07, 0.05)
    parts.append(boxes([(x, out - 0.08, z) for x, z in cells], [grip]))
    return union(parts)


def _gear(rng: Rng) -> Surface:
    teeth, height = _count(rng, 8, 18), _between(rng, 0.15, 0.55)
    depth, bore = _between(rng, 0.7, 0.84), _between(rng, 0.15, 0.4)
    # Eight directions a tooth: three at the root, flank, three at the tip, flank.
    radius = np.tile([depth, depth, depth, 1.0, 1.0, 1.0, 1.0, depth], teeth)
    corners = 8 * teeth
    inner = regular_polygon(corners, bore)
    parts = [extrude(regular_polygon(corners, radius), height, inner=inner)]
    if _chance(rng, 0.6):
        rim = bore + _between(rng, 0.08, 0.15)
        hub = [(rim, 0.0), (rim, 1.0), (bore, 1.0), (bore, 0.0)]
        hub_height = height * _between(rng, 1.3, 1.8)
        parts.append(transform(revolve(hub), np.diag([1.0, 1.0, hub_height])))
    return union(parts)


def _lamp(rng: Rng) -> Surface:
    height, base = _between(rng, 0.8, 1.8), _between(rng, 0.2, 0.35)
    shade, wide = _between(rng, 0.25, 0.5), _between(rng, 0.25, 0.45)
    narrow = wide * _between(rng, 0.4, 1.0)
    parts = [cylinder(base, _between(rng, 0.03, 0.1))]
    if _chance(rng, 0.4):
        legs = 3
        reach = np.array([[0, 0, 0.4 * height], [base * 1.2, 0, 0.0]])
        parts = [
            _turned(tube(reach, 0.03, segments=6), z=2 * np.pi * leg / legs)
            for leg in range(legs)
        ]
    parts.append(cylinder(_between(rng, 0.02, 0.05), height, segments=8))
    low = height - 0.3 * shade
    outside = [(wide, low), (narrow, low + shade)]
    parts.append(revolve([*outside, *outside[::-1]]))
    if _chance(rng, 0.5):
        parts.append(move(ellipsoid(0.07, 0.07, 0.1), z=height + 0.05))
    return union(parts)


def _mug(rng: Rng) -> Surface:
    radius, height = _between(rng, 0.35, 0.5), _between(rng, 0.6, 1.15)
    foot = radius * _between(rng, 0.7, 1.0)
    wall = 0.06
    profile = [(0.0, 0.0), (foot, 0.0), (radius, height), (radius - wall, height)]
    profile += [(foot - wall, wall), (0.0, wall)]
    stretch = _between(rng, 0.55, 0.8) * height / 2
    curve = arc(1.0, -np.pi / 2, np.pi / 2) * np.array([radius * 0.8, 1, stretch])
    middle = (foot + radius) / 2 - 0.03
    handle = tube(curve, _between(rng, 0.05, 0.08), segments=8)
    return union([revolve(profile), move(handle, middle, 0.0, height / 2)])


def _pipe_elbow(rng: Rng) -> Surface:
    radius, bend = _between(rng, 0.2, 0.32), _between(rng, 0.4, 0.7)
    angle = _between(rng, 0.4 * np.pi, 0.65 * np.pi)
    straight = _between(rng, 0.1, 0.4)
    curve = arc(bend, 0.0, angle) - np.array([bend, 0, 0])
    end = np.array([-np.sin(angle), 0, np.cos(angle)])
    path = np.concatenate([[[0, 0, -straight]], curve, [curve[-1] + straight * end]])
    parts = [tube(path, radius, segments=16)]
    # The bore is seen from inside, so its normals point at the axis.
    bore = tube(path, 0.8 * radius, segments=16)
    parts.append(Surface(bore.corners, -bore.normals))
    wide, thick = radius * _between(rng, 1.4, 1.8), _between(rng, 0.06, 0.14)
    ring = [(0.8 * radius, 0.0), (wide, 0.0), (wide, thick), (0.8 * radius, thick)]
    flange = revolve(ring)
    parts.append(move(flange, z=-straight))
    # Seen along y, the far end has turned by minus the angle of the bend.
    x, y, z = (path[-1] - thick * end).tolist()
    parts.append(move(_turned(flange, y=-angle), x, y, z))
    return union(parts)


def _propeller(rng: Rng) -> Surface:
    blades, hub = _count(rng, 2, 5), _between(rng, 0.1, 0.2)
    height = _between(rng, 0.2, 0.5)
    root = _between(rng, 0.5, 1.1)
    one = blade(
        1.0, _between(rng, 0.25, 0.45), 0.04, (root, root * _between(rng, 0.2, 0.6))
    )
    one = move(one, hub * 0.8, 0.0, height / 2)
    parts = [_turned(one, z=2 * np.pi * turn / blades) for turn in range(blades)]
    if _chance(rng, 0.5):
        nose = _between(rng, 0.1, 0.25)
        profile = [(0.0, 0.0), (hub, 0.0), (hub, height)]
        profile += [(0.6 * hub, height + 0.7 * nose), (0.0, height + nose)]
        parts.append(revolve(profile))
    else:
        parts.append(cylinder(hub, height))
    if _chance(rng, 0.3):
        edge = 1.02 + hub
        parts.append(revolve([(edge, 0.0), (edge, height), (edge, 0.0)]))
    return union(parts)


def _shelf(rng: Rng) -> Surface:
    width, depth = _between(rng, 0.6, 1.2), _between(rng, 0.25, 0.45)
    height, boards = _between(rng, 1.0, 1.9), _count(rng, 3, 6)
    thick = 0.04
    levels = np.linspace(thick / 2, height - thick / 2, boards)
    parts = [boxes([(0, 0, z) for z in levels], [(width, depth, thick)])]
    edge = width / 2
    if _chance(rng, 0.7):
        sides = [(-edge, 0, height / 2), (edge, 0, height / 2)]
        parts.append(boxes(sides, [(thick, depth, height)]))
    else:
        parts.append(_legs(rng, edge, depth / 2, height, 0.06))
    if _chance(rng, 0.4):
        parts.append(boxes([(0, depth / 2, height / 2)], [(width, 0.02, height)]))
    if _chance(rng, 0.4):
        parts.append(boxes([(0, 0, height / 2)], [(thick, depth, height)]))
    return union(parts)


def _spring(rng: Rng) -> Surface:
    turns, radius = _between(rng, 3.5, 7.5), _between(rng, 0.3, 0.7)
    height, wire = _between(rng, 1.0, 1.8), _between(rng, 0.04, 0.08)
    cone = _between(rng, 0.6, 1.0)
    angle = np.linspace(0, 2 * np.pi * turns, int(14 * turns))
    share = angle / angle[-1]
    reach = radius * (1 + (cone - 1) * share)
    path = np.stack(
        [reach * np.cos(angle), reach * np.sin(angle), height * share], axis=1
    )
    return tube(path, wire, segments=6)


def _stairs(rng: Rng) -> Surface:
    steps, width = _count(rng, 4, 8), _between(rng, 0.5, 1.3)
    rise, run = _between(rng, 0.14, 0.22), _between(rng, 0.2, 0.3)
    numbers = np.arange(steps)
    y, z = (numbers + 0.5) * run, (numbers + 1) * rise
    if _chance(rng, 0.6):
        centers = [(0, a, b / 2) for a, b in zip(y, z, strict=True)]
        parts = [boxes(centers, [(width, run, b) for b in z])]
    else:
        centers = [(0, a, b) for a, b in zip(y, z, strict=True)]
        parts = [boxes(centers, [(width, run * 1.1, 0.05)])]
        length = np.hypot(steps * rise, steps * run)
        stringer = boxes([(0, length / 2, 0)], [(0.05, length, 0.12)])
        stringer = _turned(stringer, x=float(np.arctan2(rise, run)))
        parts += [move(stringer, side * width / 2) for side in (-1, 1)]
    if _chance(rng, 0.4):
        rail = _between(rng, 0.4, 0.6)
        side = width / 2 - 0.04
        ends = np.array([(side, y[0], z[0] + rail), (side, y[-1], z[-1] + rail)])
        parts.append(tube(ends, 0.03, segments=6))
        posts = [(side, a, b + rail / 2) for a, b in zip(y, z, strict=True)]
        parts.append(boxes(posts, [(0.03, 0.03, rail)]))
    return union(parts)


def _stool(rng: Rng) -> Surface:
    radius, height = _between(rng, 0.17, 0.26), _between(rng, 0.5, 0.9)
    thick, legs = _between(rng, 0.04, 0.12), _count(rng, 3, 5)
    splay = radius * _between(rng, 1.1, 1.6)
    parts = [move(cylinder(radius, thick), z=height)]
    leg = tube(
        np.array([[splay, 0, 0.0], [0.75 * radius, 0, height]]), 0.025, segments=6
    )
    parts += [_turned(leg, z=2 * np.pi * turn / legs) for turn in range(legs)]
    if _chance(rng, 0.7):
        share = _between(rng, 0.25, 0.5)
        rest = splay + (0.75 * radius - splay) * share
        ring = arc(rest, 0.0, 2 * np.pi, steps=17)[:, [0, 2, 1]]
        parts.append(move(tube(ring, 0.018, segments=6), z=height * share))
    return union(parts)


def _table(rng: Rng) -> Surface:
    width, depth = _between(rng, 0.9, 1.8), _between(rng, 0.7, 1.0)
    height, thick = _between(rng, 0.45, 0.8), _between(rng, 0.03, 0.08)
    if _chance(rng, 0.35):
        radius = width / 2
        parts = [move(cylinder(radius, thick), z=height)]
        parts.append(cylinder(_between(rng, 0.05, 0.12), height, segments=12))
        parts.append(cylinder(radius * _between(rng, 0.4, 0.6), 0.05))
        return union(parts)
    parts = [boxes([(0, 0, height + thick / 2)], [(width, depth, thick)])]
    x, y = width / 2 - 0.06, depth / 2 - 0.06
    if _chance(rng, 0.75):
        parts.append(_legs(rng, x, y, height, _between(rng, 0.05, 0.1)))
        if _chance(rng, 0.5):
            apron = height - 0.06
            parts.append(boxes([(0, -y, apron), (0, y, apron)], [(2 * x, 0.03, 0.12)]))
            parts.append(boxes([(-x, 0, apron), (x, 0, apron)], [(0.03, 2 * y, 0.12)]))
    else:
        sides = [(-x, 0, height / 2), (x, 0, height / 2)]
        parts.append(boxes(sides, [(0.06, 2 * y, height)]))
    return union(parts)


SOLIDS: dict[str, Callable[[Rng], Surface]] = {
    "bed": _bed,
    "bolt": _bolt,
    "bottle": _bottle,
    "bracket": _bracket,
    "chair": _chair,
    "drawers": _drawers,
    "gear": _gear,
    "lamp": _lamp,
    "mug": _mug,
    "pipe_elbow": _pipe_elbow,
    "propeller": _propeller,
    "shelf": _shelf,
    "spring": _spring,
    "stairs": _stairs,
    "stool": _stool,
    "table": _table,
}
"""Class name -> function that draws one such solid, in the order of the labels."""

LYING = frozenset(
    ("bolt", "bottle", "bracket", "gear", "mug", "pipe_elbow", "propeller", "spring")
)
"""Classes whose solids may as well lie on their side; furniture stands."""
