"""Convolutions and linear layers from events alone, by additions alone (NumPy).

What accumulate hardware does: an event of (voxel, channel) finds the outputs that it
reaches by a hash of their coordinates, and adds one row of weights to each. There is no
kernel map, no matrix product and no multiplication by a spike or a weight; index
arithmetic aside, everything is an addition, and each addition increments a counter
beside its accumulator. Events that were loaded from a file with coordinates bring all
that is needed but the weights (`events`). It is the reference for `sparse_conv` on
spikes and for the synaptic operations of `energy`, slow and independent of both.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64

from e3dsnn_jax.events import Events, check_events
from e3dsnn_jax.kernel_map import Kernel, check_submanifold

_Cell = tuple[int, ...]
_Reach = Callable[[_Cell, _Cell], _Cell | None]
"""The output cell, without batch index, that an input cell meets under an offset."""


class Accumulated(NamedTuple):
    """Input currents of the next neurons, before BatchNorm."""

    coords: Int[np.ndarray, "voxels_out axes"]
    """Batch index and cell of each output."""
    currents: Float[np.ndarray, "voxels_out time channels"]
    """Sums of weight rows in float64, over the binary steps of each time step."""
    additions: Int64[np.ndarray, "voxels_out time channels"]
    """Additions into each accumulator."""

    @property
    def synaptic_operations(self) -> int:
        """Scalar additions of the layer; BatchNorm and biases are none of them."""
        return int(self.additions.sum())


def submanifold_events(
    events: Events,
    coords: Int[np.ndarray, "voxels axes"],
    kernel: Float[np.ndarray, "offsets c_in c_out"],
    geometry: Kernel,
) -> Accumulated:
    """A submanifold convolution: outputs sit exactly on the inputs.

    Args:
      events: Spikes of the inputs.
      coords: Batch index and cell of every input voxel, the silent ones too.
      kernel: One matrix an offset, row-major over the offsets.
      geometry: Odd sizes, stride 1, no padding.

    Raises:
      ValueError: If events, coordinates and kernel do not fit together.
    """
    _check_layer(events, coords, kernel, geometry)
    check_submanifold(geometry)

    def reach(cell: _Cell, offset: _Cell) -> _Cell:
        return tuple(
            c - (k - size // 2) * d
            for c, k, size, d in zip(
                cell, offset, geometry.size, geometry.dilation, strict=True
            )
        )

    return _accumulate(events, coords, coords, kernel, geometry, reach)


def strided_events(
    events: Events,
    coords: Int[np.ndarray, "voxels axes"],
    kernel: Float[np.ndarray, "offsets c_in c_out"],
    geometry: Kernel,
    *,
    extent: tuple[int, ...] | None = None,
) -> Accumulated:
    """A strided convolution: outputs wherever an active voxel reaches.

    Args:
      events: Spikes of the inputs.
      coords: Batch index and cell of every input voxel, the silent ones too.
      kernel: One matrix an offset, row-major over the offsets.
      geometry: Of the convolution.
      extent: Cells of the input grid along each axis, which bound the outputs.

    Returns:
      The currents, on the outputs in the order of their coordinates.

    Raises:
      ValueError: If events, coordinates and kernel do not fit together.
    """
    _check_layer(events, coords, kernel, geometry)
    bound = None if extent is None else geometry.output_extent(extent)

    def reach(cell: _Cell, offset: _Cell) -> _Cell | None:
        reached = []
        for axis, c in enumerate(cell):
            at = c + geometry.padding[axis] - offset[axis] * geometry.dilation[axis]
            out, rest = divmod(at, geometry.stride[axis])
            if rest or out < 0 or (bound is not None and out >= bound[axis]):
                return None
            reached.append(out)
        return tuple(reached)

    outputs = sorted(
        {
            (batch, *out)
            for batch, *cell in coords.tolist()
            for offset in geometry.offsets()
            if (out := reach(tuple(cell), offset)) is not None
        }
    )
    coords_out = np.array(outputs, np.int64).reshape(-1, coords.shape[1])
    return _accumulate(events, coords, coords_out, kernel, geometry, reach)


def inverse_events(
    events: Events,
    coords: Int[np.ndarray, "voxels_in axes"],
    coords_out: Int[np.ndarray, "voxels_out axes"],
    kernel: Float[np.ndarray, "offsets c_in c_out"],
    geometry: Kernel,
) -> Accumulated:
    """The inverse of a strided convolution: from its outputs back to its inputs.

    Args:
      events: Spikes of the coarse voxels.
      coords: Batch index and cell of every coarse voxel.
      coords_out: Those of every fine voxel; one that the strided convolution dropped
        stays at 0.
      kernel: One matrix an offset, row-major over the offsets.
      geometry: Of the strided convolution.

    Raises:
      ValueError: If events, coordinates and kernel do not fit together.
    """
    _check_layer(events, coords, kernel, geometry)
    _check_coords(coords_out, "output voxels", axes=len(geometry.size))

    def reach(cell: _Cell, offset: _Cell) -> _Cell:
        return tuple(
            c * s - p + k * d
            for c, k, s, p, d in zip(
                cell,
                offset,
                geometry.stride,
                geometry.padding,
                geometry.dilation,
                strict=True,
            )
        )

    return _accumulate(events, coords, coords_out, kernel, geometry, reach)


def linear_events(
    events: Events,
    coords: Int[np.ndarray, "voxels axes"],
    kernel: Float[np.ndarray, "c_in c_out"],
) -> Accumulated:
    """A linear layer on every voxel: an event adds the row of its channel.

    Raises:
      ValueError: If events, coordinates and kernel do not fit together.
    """
    _check_coords(coords, "input voxels")
    axes = coords.shape[1] - 1
    point = Kernel(*((value,) * axes for value in (1, 1, 0, 1)))
    return submanifold_events(events, coords, kernel[None], point)


def _accumulate(
    events: Events,
    coords_in: Int[np.ndarray, "voxels_in axes"],
    coords_out: Int[np.ndarray, "voxels_out axes"],
    kernel: Float[np.ndarray, "offsets c_in c_out"],
    geometry: Kernel,
    reach: _Reach,
) -> Accumulated:
    rows = {tuple(cell): row for row, cell in enumerate(coords_out.tolist())}
    shape = len(coords_out), events.time_steps, kernel.shape[2]
    currents, additions = np.zeros(shape), np.zeros(shape, np.int64)
    weights = kernel.astype(np.float64)
    step = events.time // events.levels  # which accumulator; no spike is divided
    cells = [(row[0], tuple(row[1:])) for row in coords_in.tolist()]
    for number, offset in enumerate(geometry.offsets()):
        hash_hits = np.full(len(cells), -1)
        for voxel, (batch, cell) in enumerate(cells):
            out = reach(cell, offset)
            hash_hits[voxel] = -1 if out is None else rows.get((batch, *out), -1)
        target = hash_hits[events.voxel]
        hits = np.flatnonzero(target >= 0)
        place = target[hits], step[hits]
        # Unbuffered: one addition after the other, also where events meet in a place.
        np.add.at(currents, place, weights[number][events.channel[hits]])
        np.add.at(additions, place, 1)  # one for each of those scalar additions
    return Accumulated(coords_out, currents, additions)


def _check_layer(
    events: Events, coords: np.ndarray, kernel: np.ndarray, geometry: Kernel
) -> None:
    """Refuses what does not fit, before any of it is used."""
    check_events(events)
    _check_coords(coords, "input voxels", axes=len(geometry.size))
    if len(coords) != events.num_voxels:
        raise ValueError(
            f"{len(coords)} voxels have coordinates but the events are those of "
            f"{events.num_voxels}: leave padding rows out of both"
        )
    if kernel.ndim != 3:
        raise ValueError(
            f"a kernel needs shape [offsets, c_in, c_out], got {kernel.shape}"
        )
    if kernel.shape[1] != events.num_channels:
        raise ValueError(
            f"events have {events.num_channels} channels but the kernel takes "
            f"{kernel.shape[1]}"
        )
    if kernel.shape[0] != geometry.num_offsets:
        raise ValueError(
            f"the kernel has {kernel.shape[0]} offsets but its geometry "
            f"{geometry.num_offsets}"
        )


def _check_coords(coords: np.ndarray, what: str, *, axes: int | None = None) -> None:
    """Raises ValueError unless these are distinct cells, in any order."""
    flat = coords.ndim != 2 or coords.shape[1] < 2
    if flat or not np.issubdtype(coords.dtype, np.integer):
        raise ValueError(
            f"{what}: coordinates need whole numbers of shape [voxels, 1 + axes], got "
            f"{coords.dtype}{list(coords.shape)}"
        )
    if axes is not None and coords.shape[1] != 1 + axes:
        raise ValueError(
            f"{what}: coordinates have {coords.shape[1] - 1} axes beside the batch "
            f"index but the geometry has {axes}"
        )
    below = (coords < 0).any(1)
    if below.any():
        row = int(below.argmax())
        raise ValueError(
            f"{what}: row {row} is {coords[row].tolist()}, but batch index and "
            "coordinates start at 0: leave padding rows out, of the spikes too"
        )
    distinct = len(np.unique(coords, axis=0))
    if distinct < len(coords):
        raise ValueError(
            f"{what}: {len(coords)} rows but {distinct} distinct cells: merge "
            "duplicates first, as voxelize does"
        )
