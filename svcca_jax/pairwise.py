"""Similarity of every layer with every layer, over checkpoints and devices.

A grid of layers of a few widths is one compiled program: each layer is prepared once
(decomposed or centred), and the pairs of each combination of widths are compared in
blocks, so that nothing is padded and memory stays bounded. The devices of a mesh share
the layers to prepare, their products and the pairs, each by its cost: layers of which
no two have the same width are shared as well.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from svcca_jax.checks import LAYER, as_activations, check_datapoints, check_mask
from svcca_jax.grid import compare_matched, fill_grid, find_places, prepare_layers
from svcca_jax.measure import Measure
from svcca_jax.moments import Moments
from svcca_jax.sharing import (
    check_mesh,
    check_same,
    on_every_device,
    on_this_process,
    put_everywhere,
)
from svcca_jax.svcca import MeanSVCCA

PAPER_MEASURE = MeanSVCCA()


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
      mesh: Devices that share the work, with one axis; one device if not given. Each
        holds all layers, prepared. Where the mesh spans several processes, all of them
        call this with the same layers and settings.

    Returns:
      The grid, as an array of this process.

    Raises:
      ValueError: For no layers, fewer than 1 pair a block, a mesh of several axes,
        processes that do not give the same, and as `cca.cca` with the number of the
        layer.
    """
    if pairs_per_block < 1:
        raise ValueError(f"a block needs at least 1 pair, got {pairs_per_block}")
    rows, checked = _check_layers(layers, "layer", measure, mask)
    columns = None
    if others is not None:
        columns, _ = _check_layers(others, "other layer", measure, mask)
        check_datapoints([rows[0], columns[0]], ["layer 0", "other layer 0"])
    dtype = np.result_type(*(layer.dtype for layer in rows + (columns or [])))
    given = (
        tuple(layer.astype(dtype) for layer in rows),
        None if columns is None else tuple(layer.astype(dtype) for layer in columns),
        checked,
    )
    if mesh is not None:
        mesh = check_mesh(mesh)
        names = [f"layer {i}" for i in range(len(rows))]
        names += [f"other layer {i}" for i in range(len(columns or []))]
        settings = (measure, pairs_per_block, columns is None)
        given = _place(given, names, settings, mesh)
    grid = _grid(*given, measure=measure, pairs_per_block=pairs_per_block, mesh=mesh)
    return grid if mesh is None else on_this_process(grid)


def over_checkpoints(
    checkpoints: Iterable[Sequence[ArrayLike]],
    references: Sequence[ArrayLike],
    *,
    measure: Measure = PAPER_MEASURE,
    mask: ArrayLike | None = None,
    all_pairs: bool = False,
    mesh: Mesh | None = None,
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
      mesh: Devices that share the work of each checkpoint, as for `pairwise`. Where it
        spans several processes, all of them read the same checkpoints.

    Raises:
      ValueError: For no layers, a checkpoint with another number of layers than the
        references (any number will do for all pairs), processes that do not give the
        same, and as `cca.cca` with the numbers of checkpoint and layer.
    """
    mesh = None if mesh is None else check_mesh(mesh)
    final, checked = _check_layers(references, "reference layer", measure, mask)
    final_names = [f"reference layer {i}" for i in range(len(final))]
    dtype, prepared, placed_mask = None, None, checked
    values = []
    for number, checkpoint in enumerate(checkpoints):
        if not all_pairs and len(checkpoint) != len(final):
            raise ValueError(
                f"checkpoint {number} has {len(checkpoint)} layers and the reference "
                f"{len(final)}"
            )
        name = f"checkpoint {number}, layer"
        layers, _ = _check_layers(checkpoint, name, measure, mask)
        check_datapoints([final[0], layers[0]], ["reference layer 0", f"{name} 0"])
        common = np.result_type(*(layer.dtype for layer in final + layers))
        given = tuple(layer.astype(common) for layer in layers)
        if mesh is not None:
            names = [f"{name} {i}" for i in range(len(layers))]
            given = _place(given, names, (measure, all_pairs), mesh)
        if prepared is None or common != dtype:  # mostly at the first one alone
            dtype = common
            cast = (tuple(layer.astype(dtype) for layer in final), checked)
            if mesh is not None:
                cast = _place(cast, final_names, measure, mesh)
            prepared = _prepare(*cast, measure=measure, mesh=mesh)
            placed_mask = cast[1]
        row = _row(
            given,
            prepared,
            placed_mask,
            measure=measure,
            shapes=tuple(layer.shape for layer in final),
            all_pairs=all_pairs,
            mesh=mesh,
        )
        values.append(np.asarray(on_this_process(row)))
    if mesh is not None:
        # A process that had more of them would wait for the others for ever.
        check_same([], [], None, mesh)
    if not values:
        shape = (0, len(final), len(final)) if all_pairs else (0, len(final))
        return np.zeros(shape, np.finfo(final[0].dtype).dtype)
    return np.stack(values)


def pairwise_from_moments(
    moments: Moments, *, measure: Measure = PAPER_MEASURE
) -> Float[Array, "layers layers"]:
    """Similarity of every layer with every layer of streamed moments."""
    return _grid_of_moments(moments, measure=measure)


def _place(given: Any, names: Sequence[str], settings: object, mesh: Mesh) -> Any:
    """Puts layers with these names, and the mask behind them, on all devices."""
    leaves = jax.tree.leaves(given)
    names = [*names, "the mask"][: len(leaves)]
    check_same(leaves, names, settings, mesh)
    return put_everywhere(given, mesh)


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
    def compute(rows: Any, columns: Any, mask: Any) -> Array:
        stacks = prepare_layers(rows, mask, measure, mesh)
        places = find_places([layer.shape for layer in rows])
        others, other_places = stacks, places
        if columns is not None:
            others = prepare_layers(columns, mask, measure, mesh)
            other_places = find_places([layer.shape for layer in columns])
        return fill_grid(
            measure,
            stacks,
            places,
            others,
            other_places,
            half=columns is None,
            pairs_per_block=pairs_per_block,
            mesh=mesh,
        )

    return on_every_device(compute, mesh, rows, columns, mask)


@functools.partial(jax.jit, static_argnames=("measure", "mesh"))
def _prepare(
    layers: tuple[Array, ...],
    mask: Array | None,
    *,
    measure: Measure,
    mesh: Mesh | None,
) -> Any:
    stack = functools.partial(prepare_layers, measure=measure, mesh=mesh)
    return on_every_device(stack, mesh, layers, mask)


@functools.partial(jax.jit, static_argnames=("measure", "shapes", "all_pairs", "mesh"))
def _row(
    layers: tuple[Array, ...],
    prepared: Any,
    mask: Array | None,
    *,
    measure: Measure,
    shapes: tuple[tuple[int, ...], ...],
    all_pairs: bool,
    mesh: Mesh | None,
) -> Float[Array, " layers *references"]:
    """One checkpoint's similarities with the references, which have `shapes`."""
    places = find_places([layer.shape for layer in layers])
    references = find_places(shapes)

    def compute(layers: Any, prepared: Any, mask: Any) -> Array:
        ours = prepare_layers(layers, mask, measure, mesh)
        if all_pairs:
            return fill_grid(
                measure,
                ours,
                places,
                prepared,
                references,
                half=False,
                pairs_per_block=1,
                mesh=mesh,
            )
        return compare_matched(measure, ours, places, prepared, references, mesh)

    return on_every_device(compute, mesh, layers, prepared, mask)


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
