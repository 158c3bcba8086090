"""A grid of similarities from prepared layers, whose work the devices of a mesh share.

Layers of one shape are prepared as a stack, and the pairs of each combination of shapes
are compared in a loop of their own, so that nothing is padded. `deal` gives every
device its part of all of them by their costs: layers of which no two have the same
shape are shared as well. What is here runs inside `sharing.on_every_device`.
"""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from svcca_jax.linalg import center, count_datapoints, sum_products
from svcca_jax.measure import Both, Measure
from svcca_jax.sharing import add_up, deal, find_owners, map_own, only_on, take_own

Indices = Int[np.ndarray, "pairs 2"]

# A layer's place: its shape, and its number among the layers of that shape.
Place = tuple[tuple[int, ...], int]
# The prepared layers of each shape, with a leading axis.
Stacks = dict[tuple[int, ...], Any]
# Of the two layers of a pair.
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
# The products of all pairs of two widths are kept at once up to this size.
CROSS_BYTES = 256 << 20


def find_places(shapes: Sequence[tuple[int, ...]]) -> list[Place]:
    """Returns where the stacks of layers of these shapes hold each of them."""
    return [
        (shape, list(shapes[:number]).count(shape))
        for number, shape in enumerate(shapes)
    ]


def prepare_layers(
    layers: tuple[Array, ...], mask: Array | None, measure: Measure, mesh: Mesh | None
) -> Stacks:
    """Prepares the layers of each shape, as one stack in their order.

    Args:
      layers: Activations of every layer.
      mask: True on the datapoints that count.
      measure: What to prepare them for.
      mesh: Devices that share the layers; all of them get the stacks.
    """
    groups: dict[tuple[int, ...], list[Array]] = defaultdict(list)
    for layer in layers:
        groups[layer.shape].append(layer)
    # Decomposed one at a time: a mapped loop keeps the data-dependent choice of a fast
    # measure, of which `vmap` would compute both branches. Centred all at once: in the
    # body of a loop the CPU gives elementwise work to one core.
    prepare = functools.partial(
        measure.prepare, datapoints=count_datapoints(layers[0], mask)
    )
    centered = jax.vmap(functools.partial(center, mask=mask))
    sizes = [len(group) for group in groups.values()]
    costs = [math.prod(shape) * min(shape[0], math.prod(shape[1:])) for shape in groups]
    stacks = {}
    for (shape, group), hand in zip(
        groups.items(), deal(sizes, costs, mesh), strict=True
    ):
        own = take_own(jnp.stack(group), hand, mesh)
        stacks[shape] = map_own(prepare, centered(own), hand, mesh)
    return stacks


def fill_grid(
    measure: Measure,
    x: Stacks,
    places: list[Place],
    y: Stacks,
    other_places: list[Place],
    *,
    half: bool,
    pairs_per_block: int,
    mesh: Mesh | None,
) -> Float[Array, "layers others"]:
    """The similarities of all prepared layers with all others.

    Args:
      measure: What to compute.
      x: The stacks of the layers, from `prepare_layers`.
      places: Where the layer of each row is in `x`.
      y: The stacks of the layers to compare them with.
      other_places: Where the layer of each column is in `y`.
      half: Whether both are the same layers: each pair is then compared once.
      pairs_per_block: How many pairs a device compares at once.
      mesh: Devices that share the pairs; all of them get the grid.
    """
    groups = _group_pairs(places, other_places, half=half)
    sizes = [len(pairs) for _, pairs in groups.values()]
    hands = deal(sizes, [_cost(*shapes) for shapes in groups], mesh)
    owners = _share_products(groups, mesh)
    cells, values = [], []
    for (shapes, (where, pairs)), hand in zip(groups.items(), hands, strict=True):
        stacks = (x[shapes[0]], y[shapes[1]])
        compare = _make_compare(measure, *stacks, pairs, owners[shapes], mesh)
        numbered = jnp.asarray(np.column_stack([pairs, np.arange(len(pairs))]))
        own = take_own(numbered, hand, mesh)
        there, back = map_own(compare, own, hand, mesh, at_once=pairs_per_block)
        if half:
            # Before the other direction: on the diagonal they are one cell.
            cells.append(where[:, ::-1])
            values.append(back)
        cells.append(where)
        values.append(there)
    grid = jnp.zeros((len(places), len(other_places)), values[0].dtype)
    for where, part in zip(cells, values, strict=True):
        grid = grid.at[where[:, 0], where[:, 1]].set(part)
    return grid


def compare_matched(
    measure: Measure,
    x: Stacks,
    places: list[Place],
    y: Stacks,
    references: list[Place],
    mesh: Mesh | None,
) -> Float[Array, " layers"]:
    """Similarity of every prepared layer with its own reference."""
    pairs = list(zip(places, references, strict=True))
    costs = [_cost(a, b) for (a, _), (b, _) in pairs]
    owners = find_owners(costs, devices=1 if mesh is None else mesh.size)

    def compare(number: int) -> Array:
        (a, i), (b, j) = pairs[number]
        return measure.compare(_take(x[a], i), _take(y[b], j))[0]

    values = [
        only_on(int(owner), functools.partial(compare, number), mesh)
        for number, owner in enumerate(owners)
    ]
    return add_up(jnp.stack(values), mesh)


def _cost(shape_x: tuple[int, ...], shape_y: tuple[int, ...]) -> float:
    """What a pair of layers costs beside others: an SVD of their products."""
    wide, narrow = (math.prod(shape[1:]) for shape in (shape_x, shape_y))
    return wide * narrow * min(wide, narrow)


def _share_products(
    groups: dict[Shapes, tuple[Indices, Indices]],
    mesh: Mesh | None,
) -> dict[Shapes, dict[int, int]]:
    """Which device multiplies each row of each group with its columns."""
    rows = [(shapes, i) for shapes, (_, pairs) in groups.items() for i in pairs[:, 0]]
    costs = Counter(rows)
    for shapes, i in costs:
        costs[shapes, i] *= math.prod(shapes[0][1:]) * math.prod(shapes[1][1:])
    devices = 1 if mesh is None else mesh.size
    found = find_owners(list(costs.values()), devices=devices)
    owners: dict[Shapes, dict[int, int]] = defaultdict(dict)
    for (shapes, i), owner in zip(costs, found, strict=True):
        owners[shapes][int(i)] = int(owner)
    return owners


def _make_compare(
    measure: Measure,
    x: Any,
    y: Any,
    pairs: Indices,
    owners: dict[int, int],
    mesh: Mesh | None,
) -> Callable[[Int[Array, "3"]], Both]:
    """Returns the comparison of pairs of entries of two stacks of prepared layers.

    Its argument is the pair's entries and the pair's number in `pairs`. `owners` says
    which device multiplies each entry of `x` with those of `y`.
    """
    a, b = x.coordinates, y.coordinates
    size = len(pairs) * a.shape[-1] * b.shape[-1] * a.dtype.itemsize
    if a.ndim != 3 or size > CROSS_BYTES:
        return lambda pair: measure.compare(_take(x, pair[0]), _take(y, pair[1]))

    def multiply(row: int, columns: Int[np.ndarray, " columns"]) -> Array:
        flat = jnp.moveaxis(b[columns], 0, 1).reshape(b.shape[1], -1)
        return sum_products(a[row], flat)

    # The products of all pairs first: large matrix products, and the pairs below then
    # read a small block each instead of copying two layers.
    crosses = []
    for row, owner in owners.items():
        columns = pairs[pairs[:, 0] == row, 1]
        block = only_on(owner, functools.partial(multiply, row, columns), mesh)
        crosses += jnp.split(block, len(columns), axis=1)
    table = add_up(jnp.stack(crosses), mesh)
    x, y = x._replace(coordinates=None), y._replace(coordinates=None)
    return lambda pair: measure.compare(
        _take(x, pair[0]), _take(y, pair[1]), table[pair[2]]
    )


def _group_pairs(
    rows: list[Place], columns: list[Place], *, half: bool
) -> dict[Shapes, tuple[Indices, Indices]]:
    """Groups the pairs by their two shapes: where in the grid, where in the stacks."""
    where, pairs = defaultdict(list), defaultdict(list)
    for i in range(len(rows)):
        for j in range(i if half else 0, len(columns)):
            (shape_x, x), (shape_y, y) = rows[i], columns[j]
            cell = (i, j)
            if half and shape_x > shape_y:
                # (a, b) and (b, a) are one group.
                (shape_x, x), (shape_y, y) = (shape_y, y), (shape_x, x)
                cell = (j, i)
            where[shape_x, shape_y].append(cell)
            pairs[shape_x, shape_y].append((x, y))
    groups = {}
    for key, entries in pairs.items():
        order = sorted(range(len(entries)), key=entries.__getitem__)
        groups[key] = (np.asarray(where[key])[order], np.asarray(entries)[order])
    return groups


def _take(stack: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], stack)
