"""Which voxels of which clouds are the datapoints of a comparison.

A similarity needs the same datapoints in both layers. Three choices are offered:

* **voxels** (`choose_voxels`): every layer on voxels of its own level, as many for each
  layer. For one layer at two times, in two runs, or in two networks.
* **carried voxels** (`carry_voxels`): voxels of the finest level, each carried to its
  parent on every coarser one, through the maps of the strided convolutions. For layers
  of different resolution; a coarse voxel counts once for each fine one in it.
* **clouds**: every layer averaged over the voxels of a cloud (`activations`). For
  layers against labels, or against what the head makes of a cloud; what a layer knows
  of places is lost.

Voxels of one cloud resemble each other: there are fewer independent datapoints than
voxels, and intervals must come from drawing clouds anew, not voxels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.pyramid import Level


class Datapoints(NamedTuple):
    """Rows of every level that are the datapoints of its layers."""

    rows: tuple[tuple[Int32[np.ndarray, " _slots"], ...], ...]
    """For each batch and level its rows, -1 beyond them; slots are those of a level."""
    clouds: tuple[Int[np.ndarray, " datapoints"], ...]
    """For each level the cloud of every datapoint, in the order of the batches."""

    @property
    def size(self) -> int:
        """Datapoints of every layer."""
        return len(self.clouds[0])


def choose_voxels(
    batches: Sequence[ShapeBatch], *, most: int, seed: int = 0
) -> Datapoints:
    """Draws as many voxels of every level, each level's own.

    Args:
      batches: Batches of one device, on the host.
      most: Datapoints at most; fewer if a level has fewer voxels.
      seed: Chooses them, the same ones for the same batches.

    Raises:
      ValueError: If `most` is below 1, or there are no voxels.
    """
    _check(batches, most)
    counts = [
        [_real_rows(level) for level in batch.levels] for batch in batches
    ]  # by batch and level
    totals = np.sum(counts, axis=0)
    number = min(most, int(totals.min()))
    rng = np.random.default_rng(seed)
    by_level = [
        _split(np.sort(rng.permutation(total)[:number]), [row[place] for row in counts])
        for place, total in enumerate(totals)
    ]
    return _collect(batches, by_level)


def carry_voxels(
    batches: Sequence[ShapeBatch], *, most: int, seed: int = 0
) -> Datapoints:
    """Draws voxels of the finest level, and carries each to its parents.

    Where strided kernels overlap a voxel has several parents: the one of the first
    offset of the map is taken. A voxel that a level has no parent for is left out.

    Args:
      batches: Batches of one device, on the host.
      most: Datapoints at most; fewer if there are fewer voxels.
      seed: Chooses them, the same ones for the same batches.

    Raises:
      ValueError: If `most` is below 1, or there are no voxels.
    """
    _check(batches, most)
    ancestors = []
    for batch in batches:
        carried = [np.arange(_real_rows(batch.levels[0]))]
        for level in batch.levels[:-1]:
            if level.down is None:
                raise ValueError("a level has no map to the next: nothing to carry by")
            parent = _parents(level.down, len(level.coords))
            known = carried[-1] >= 0
            carried.append(np.where(known, parent[carried[-1]], -1))
        whole = np.stack(carried)
        ancestors.append(whole[:, whole[-1] >= 0])
    sizes = [found.shape[1] for found in ancestors]
    chosen = np.random.default_rng(seed).permutation(sum(sizes))[:most]
    parts = _split(np.sort(chosen), sizes)
    levels = range(len(batches[0].levels))
    by_level = [
        [found[place, part] for found, part in zip(ancestors, parts, strict=True)]
        for place in levels
    ]
    return _collect(batches, by_level)


def _check(batches: Sequence[ShapeBatch], most: int) -> None:
    if most < 1:
        raise ValueError(f"most must be 1 or more datapoints, got {most}")
    if not sum(_real_rows(batch.levels[-1]) for batch in batches):
        raise ValueError("the clouds have no voxels to compare layers on")


def _real_rows(level: Level) -> int:
    return int((np.asarray(level.coords)[:, 0] >= 0).sum())


def _split(
    chosen: Int[np.ndarray, " datapoints"], sizes: Sequence[int]
) -> list[Int[np.ndarray, " _rows"]]:
    """Places in the concatenation of batches as rows of each batch."""
    ends = np.cumsum([0, *sizes])
    parts = np.split(chosen, np.searchsorted(chosen, ends[1:-1]))
    return [part - start for part, start in zip(parts, ends[:-1], strict=True)]


def _parents(down: KernelMap, rows: int) -> Int[np.ndarray, " rows"]:
    senders, receivers = (
        np.ravel(np.asarray(x)) for x in (down.senders, down.receivers)
    )
    real = senders < rows  # a block is filled up with a row past the end
    parent = np.full(rows, -1)
    # In reverse: the first offset's parent is written last, and stays.
    parent[senders[real][::-1]] = receivers[real][::-1]
    return parent


def _collect(
    batches: Sequence[ShapeBatch], by_level: list[list[Int[np.ndarray, " _rows"]]]
) -> Datapoints:
    clouds, padded = [], []
    for place, parts in enumerate(by_level):
        slots = max(map(len, parts))
        padded.append(
            [np.pad(p, (0, slots - len(p)), constant_values=-1) for p in parts]
        )
        owners = [
            np.asarray(batch.indices)[np.asarray(batch.levels[place].coords)[part, 0]]
            for batch, part in zip(batches, parts, strict=True)
        ]
        clouds.append(np.concatenate(owners))
    rows = tuple(
        tuple(level[number].astype(np.int32) for level in padded)
        for number in range(len(batches))
    )
    return Datapoints(rows, tuple(clouds))
