"""Similarity of every layer with every layer, over checkpoints and devices.

A grid of layers of a few widths is one compiled program: each layer is prepared once
(decomposed or centred), and the pairs of each combination of widths are compared in
blocks, so that nothing is padded and memory stays bounded.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from svcca_jax.checks import LAYER, as_activations, check_datapoints, check_mask
from svcca_jax.linalg import center, count_datapoints, sum_products
from svcca_jax.measure import Both, Measure
from svcca_jax.moments import Moments
from svcca_jax.svcca import MeanSVCCA

Indices = Int[np.ndarray, "pairs 2"]


# A layer's place: its shape, and its number among the layers of that shape.
Place = tuple[tuple[int, ...], int]

PAPER_MEASURE = MeanSVCCA()
# The products of all pairs of two widths are kept at once up to this size.
CROSS_BYTES = 256 << 20


def pairwise(
    layers: Sequence[ArrayLike],
    others: Sequence[ArrayLike] | None = None,
    *,
    measure: Measure = PAPER_MEASURE,
    mask: ArrayLike | None = None,
    pairs_per_block: int = 1,
    mesh: Mesh | None = None,
) -> Float[Array, "layers others"]:
    """Similarity of every layer with every other one.

    Args:
      layers: Activations of each layer [datapoints, neurons], all on the same
        datapoints; widths may differ.
      others: Layers to compare them with. Without it each is compared with all of
        `layers`, and both halves of the grid come from one computation.
      measure: What to compute.
      mask: True on the datapoints that count.
      pairs_per_block: How many pairs are compared at once. One is best on a CPU, whose
        decompositions use all cores by themselves; more fills an accelerator and costs
        that many times the memory of a pair.
      mesh: Devices that share the pairs, with one axis; one device if not given.

    Raises:
      ValueError: For no layers, fewer than 1 pair a block, and as `cca.cca` with the
        number of the layer.
    """
    if pairs_per_block < 1:
        raise ValueError(f"a block needs at least 1 pair, got {pairs_per_block}")
    rows, checked = _check_layers(layers, "layer", measure, mask)
    columns = None
    if others is not None:
        columns, _ = _check_layers(others, "other layer", measure, mask)
        check_datapoints([rows[0], columns[0]], ["layer 0", "other layer 0"])
    dtype = np.result_type(*(layer.dtype for layer in rows + (columns or [])))
    return _grid(
        tuple(layer.astype(dtype) for layer in rows),
        None if columns is None else tuple(layer.astype(dtype) for layer in columns),
        checked,
        measure=measure,
        pairs_per_block=pairs_per_block,
        mesh=mesh,
    )


def over_checkpoints(
    checkpoints: Iterable[Sequence[ArrayLike]],
    references: Sequence[ArrayLike],
    *,
    measure: Measure = PAPER_MEASURE,
    mask: ArrayLike | None = None,
    all_pairs: bool = False,
) -> Float[np.ndarray, " checkpoints layers *references"]:
    """Similarity of every layer at every checkpoint with its reference.

    Checkpoints are read one at a time, so that a generator that loads (or computes)
    them keeps the memory of one; the references are prepared once, and all checkpoints
    run the same program.

    Args:
      checkpoints: For each checkpoint, the activations of every layer.
      references: The layers to compare with, such as those of the last checkpoint.
      measure: What to compute.
      mask: True on the datapoints that count.
      all_pairs: Compare every layer with every reference: [checkpoints, layers,
        references], the learning dynamics that `plots.plot_training` draws.

    Raises:
      ValueError: For no layers, a checkpoint with another number of layers, and as
        `cca.cca` with the numbers of checkpoint and layer.
    """
    final, checked = _check_layers(references, "reference layer", measure, mask)
    dtype, prepared = None, None
    values = []
    for number, checkpoint in enumerate(checkpoints):
        if len(checkpoint) != len(final):
            raise ValueError(
                f"checkpoint {number} has {len(checkpoint)} layers and the reference "
                f"{len(final)}"
            )
        name = f"checkpoint {number}, layer"
        layers, _ = _check_layers(checkpoint, name, measure, mask)
        check_datapoints([final[0], layers[0]], ["reference layer 0", f"{name} 0"])
        common = np.result_type(*(layer.dtype for layer in final + layers))
        if prepared is None or common != dtype:  # mostly at the first one alone
            dtype = common
            cast = tuple(layer.astype(dtype) for layer in final)
            prepared = _prepare(cast, checked, measure=measure)
        row = _row(
            tuple(layer.astype(dtype) for layer in layers),
            prepared,
            checked,
            measure=measure,
            shapes=tuple(layer.shape for layer in final),
            all_pairs=all_pairs,
        )
        values.append(np.asarray(row))
    if not values:
        shape = (0, len(final), len(final)) if all_pairs else (0, len(final))
        return np.zeros(shape, np.finfo(final[0].dtype).dtype)
    return np.stack(values)


def pairwise_from_moments(
    moments: Moments, *, measure: Measure = PAPER_MEASURE
) -> Float[Array, "layers layers"]:
    """Similarity of every layer with every layer of streamed moments."""
    return _grid_of_moments(moments, measure=measure)


@functools.partial(jax.jit, static_argnames=("measure", "pairs_per_block", "mesh"))
def _grid(
    rows: tuple[Array, ...],
    columns: tuple[Array, ...] | None,
    mask: Bool[Array, " datapoints"] | None,
    *,
    measure: Measure,
    pairs_per_block: int,
    mesh: Mesh | None,
) -> Float[Array, "layers others"]:
    stacks = _stack(rows, mask, measure)
    others = stacks if columns is None else _stack(columns, mask, measure)
    places = _find_places([layer.shape for layer in rows])
    other_places = places
    if columns is not None:
        other_places = _find_places([layer.shape for layer in columns])

    def run(compare: Any, pairs: Int[np.ndarray, "pairs 3"]) -> Any:
        return _map_pairs(compare, pairs, pairs_per_block, mesh)

    half = columns is None
    return _fill(measure, stacks, places, others, other_places, run, half=half)


def _fill(
    measure: Measure,
    x: dict[tuple[int, ...], Any],
    places: list[Place],
    y: dict[tuple[int, ...], Any],
    other_places: list[Place],
    run: Callable[..., Any],
    *,
    half: bool,
) -> Float[Array, "layers others"]:
    """The grid of prepared layers, whose pairs `run` compares."""
    cells, values = [], []
    for (shape_x, shape_y), (where, pairs) in _group_pairs(
        places, other_places, half=half
    ).items():
        compare = _make_compare(measure, x[shape_x], y[shape_y], pairs)
        there, back = run(compare, np.column_stack([pairs, np.arange(len(pairs))]))
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


def _make_compare(
    measure: Measure, x: Any, y: Any, pairs: Indices
) -> Callable[[Int[Array, "3"]], Both]:
    """Returns the comparison of pairs of entries of two stacks of prepared layers.

    Its argument is the pair's entries and the pair's number in `pairs`.
    """
    a, b = x.coordinates, y.coordinates
    size = len(pairs) * a.shape[-1] * b.shape[-1] * a.dtype.itemsize
    if a.ndim != 3 or size > CROSS_BYTES:
        return lambda pair: measure.compare(_take(x, pair[0]), _take(y, pair[1]))
    # The products of all pairs first: large matrix products, and the pairs below then
    # read a small block each instead of copying two layers.
    crosses = []
    for row in np.unique(pairs[:, 0]):
        columns = pairs[pairs[:, 0] == row, 1]
        flat = jnp.moveaxis(b[columns], 0, 1).reshape(b.shape[1], -1)
        block = sum_products(a[row], flat)
        crosses += jnp.split(block, len(columns), axis=1)
    table = jnp.stack(crosses)
    x, y = x._replace(coordinates=None), y._replace(coordinates=None)
    return lambda pair: measure.compare(
        _take(x, pair[0]), _take(y, pair[1]), table[pair[2]]
    )


@functools.partial(jax.jit, static_argnames=("measure",))
def _prepare(layers: tuple[Array, ...], mask: Array | None, *, measure: Measure) -> Any:
    return _stack(layers, mask, measure)


@functools.partial(jax.jit, static_argnames=("measure", "shapes", "all_pairs"))
def _row(
    layers: tuple[Array, ...],
    prepared: Any,
    mask: Array | None,
    *,
    measure: Measure,
    shapes: tuple[tuple[int, ...], ...],
    all_pairs: bool,
) -> Float[Array, " layers *references"]:
    """One checkpoint's similarities with the references, which have `shapes`."""
    ours = _stack(layers, mask, measure)
    places = _find_places([layer.shape for layer in layers])
    references = _find_places(shapes)
    if not all_pairs:
        values = [
            measure.compare(_take(ours[a], i), _take(prepared[b], j))[0]
            for (a, i), (b, j) in zip(places, references, strict=True)
        ]
        return jnp.stack(values)

    def run(compare: Any, pairs: Int[np.ndarray, "pairs 3"]) -> Any:
        return _map_pairs(compare, pairs, 1, None)

    return _fill(measure, ours, places, prepared, references, run, half=False)


@functools.partial(jax.jit, static_argnames=("measure",))
def _grid_of_moments(moments: Moments, *, measure: Measure) -> Array:
    number = len(moments.means)
    layers = [
        measure.prepare_moments(moments.comoment(i, i), moments.datapoints)
        for i in range(number)
    ]
    grid: list[list[Any]] = [[None] * number for _ in range(number)]
    for i in range(number):
        for j in range(i, number):
            cross = moments.comoment(i, j)
            there, back = measure.compare(layers[i], layers[j], cross)
            grid[j][i] = back
            grid[i][j] = there
    return jnp.stack([jnp.stack(row) for row in grid])


def _find_places(shapes: Sequence[tuple[int, ...]]) -> list[Place]:
    return [
        (shape, list(shapes[:number]).count(shape))
        for number, shape in enumerate(shapes)
    ]


def _stack(
    layers: tuple[Array, ...], mask: Array | None, measure: Measure
) -> dict[tuple[int, ...], Any]:
    """Prepares the layers of each shape together, in their order."""
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
    return {
        shape: jax.lax.map(prepare, centered(jnp.stack(group)))
        for shape, group in groups.items()
    }


def _group_pairs(
    rows: list[Place], columns: list[Place], *, half: bool
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[Indices, Indices]]:
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


def _map_pairs(
    compare: Any,
    pairs: Int[np.ndarray, "pairs 3"],
    pairs_per_block: int,
    mesh: Mesh | None,
) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    def run(indices: Int[Array, "pairs 3"]) -> Any:
        if pairs_per_block == 1:
            return jax.lax.map(compare, indices)
        return jax.lax.map(compare, indices, batch_size=pairs_per_block)

    if mesh is None:
        return run(jnp.asarray(pairs))
    if len(mesh.axis_names) != 1:
        raise ValueError(f"the mesh must have one axis, got {mesh.axis_names}")
    spare = -len(pairs) % mesh.size
    padded = np.concatenate([pairs, np.repeat(pairs[:1], spare, axis=0)])
    split = PartitionSpec(mesh.axis_names[0])
    # With axes of type Auto, as the layers that the pairs read are not sharded by type.
    plain = Mesh(mesh.devices, mesh.axis_names)
    shared = jax.shard_map(
        run, mesh=plain, in_specs=split, out_specs=split, check_vma=False
    )
    return jax.tree.map(lambda leaf: leaf[: len(pairs)], shared(jnp.asarray(padded)))


def _check_layers(
    layers: Sequence[ArrayLike], name: str, measure: Measure, mask: ArrayLike | None
) -> tuple[list[Array], Bool[Array, " datapoints"] | None]:
    """Returns layers on the same datapoints, with the axes of the measure; the mask."""
    if len(layers) == 0:
        raise ValueError(f"there is no {name} to compare")
    names = [f"{name} {i}" for i in range(len(layers))]
    check_datapoints(layers, names)
    datapoints = np.shape(layers[0])[:1]
    checked = check_mask(mask, datapoints[0] if datapoints else 0)
    # A measure of maps says so; all others are of neurons.
    axes = getattr(measure, "axes", LAYER)
    return [
        as_activations(layer, each, axes=axes, mask=checked)
        for layer, each in zip(layers, names, strict=True)
    ], checked
