"""What a run must know of its batches before the first one: sizes, on the host."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Int

from e3dsnn_jax.capacity import Capacity, LevelCounts, fit_counts
from e3dsnn_jax.data.augment import normalize
from e3dsnn_jax.data.clouds import ShapeDataset, voxels_of
from e3dsnn_jax.data.loader import BatchSource
from e3dsnn_jax.pyramid import count_levels
from e3dsnn_jax.voxels import voxelize

Counts = tuple[LevelCounts, ...]


def plan_capacities(
    source: BatchSource,
    *,
    num_batches: int = 8,
    slacks: tuple[float, ...] = (1.1, 1.6),
    gather: Callable[[Counts], Counts] | None = None,
) -> tuple[Capacity, ...]:
    """Static shapes for a run, from its first batches: usual, and large.

    They follow from the dataset, the layout and the seed alone, so every process of a
    run plans the same ones.

    Args:
      source: The run's batches.
      num_batches: How many of them are looked at.
      slacks: Room above the largest of those, one a capacity.
      gather: Where the source makes a share of each batch: a function that joins what
        all processes have counted.

    Raises:
      ValueError: If the source has no batch.
    """
    if not len(source):
        raise ValueError(
            f"the dataset has {len(source.dataset)} clouds, fewer than a batch of "
            f"{source.layout.batch_size}: use a smaller batch_size"
        )
    steps = np.linspace(0, len(source) - 1, min(num_batches, len(source))).astype(int)
    seen = [
        count_levels(levels)
        for step in steps.tolist()
        for levels in source.shards(step).levels
    ]
    counts: Counts = jax.tree.map(lambda *leaves: np.stack(leaves), *seen)
    if gather is not None:
        counts = gather(counts)
    return tuple(fit_counts(counts, slack=slack) for slack in slacks)


def expected_voxels(
    dataset: ShapeDataset,
    voxel_size: float,
    *,
    part: int = 0,
    parts: int = 1,
    gather: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Int[np.ndarray, " clouds"]:
    """Voxels that each cloud has when it is not augmented, to deal clouds evenly.

    Packed records know theirs, of the edge that they were packed with, whose order of
    sizes serves as well; of other datasets every cloud is read once.

    Args:
      dataset: The clouds.
      voxel_size: Edge of a voxel.
      part: Which process this is, of `parts`: each reads its part of the clouds.
      parts: Number of processes.
      gather: Joins the arrays of all processes, one after the other.
    """
    known = voxels_of(dataset)
    if known is not None:
        return known
    rows = -(-len(dataset) // parts)
    counts = np.zeros(rows, np.int32)  # all parts of one length
    for row, index in enumerate(range(part, len(dataset), parts)):
        cloud = normalize(dataset[index])
        voxels = voxelize(
            cloud.points, cloud.points, voxel_size=voxel_size, name=cloud.name
        )
        counts[row] = len(voxels.coords)
    if gather is not None:
        counts = gather(counts)
    return counts.reshape(parts, rows).T.reshape(-1)[: len(dataset)]
