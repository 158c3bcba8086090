"""Batches of voxelised clouds, each a pure function of (seed, step).

Nothing is remembered between batches: batch `step` draws its clouds from the
permutation of its epoch and its randomness from (seed, epoch, cloud), so a run that
starts again at step n sees exactly what it would have seen. Kernel maps are built
here too, in the loader's workers, ahead of the training step.
"""

import dataclasses
import signal
from collections.abc import Iterator
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int32

from e3dsnn_jax.data.augment import Augment, augment, normalize
from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset, check_cloud
from e3dsnn_jax.pyramid import (
    Capacity,
    Level,
    LevelPairs,
    find_levels,
    fit_capacity,
    fits,
    pack_levels,
)
from e3dsnn_jax.voxels import (
    VoxelCloud,
    join_clouds,
    pad_features,
    random_point,
    voxelize,
)


class ShapeBatch(NamedTuple):
    """A batch of clouds; from the loader, every array has a leading devices axis."""

    features: Float[np.ndarray | Array, "voxels channels"]
    """Coordinates, and normals if used, of the point that stands for each voxel."""
    levels: tuple[Level, ...]
    """Voxels and kernel maps of every resolution."""
    labels: Int32[np.ndarray | Array, " clouds"]
    """Class of each cloud; -1 marks a padding cloud, which has no voxels."""
    indices: Int32[np.ndarray | Array, " clouds"]
    """Place of each cloud in the dataset; -1 for a padding cloud."""


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """What fixes the shapes of a batch."""

    batch_size: int
    """Clouds in a batch, over all devices."""
    num_devices: int
    """Devices that share a batch, an equal number of clouds each."""
    num_levels: int
    """Resolutions that the network works on."""
    voxel_size: float
    """Edge of a voxel in units of the normalised cloud (its radius is 1)."""
    normals: bool = True
    """Whether normals follow the coordinates in the features."""

    def __post_init__(self):
        """Raises ValueError if the devices cannot share the batch equally."""
        if self.batch_size < 1 or self.batch_size % max(self.num_devices, 1):
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared equally by "
                f"num_devices={self.num_devices}; make it a multiple"
            )

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return 6 if self.normals else 3


def voxelize_cloud(
    cloud: PointCloud,
    rng: np.random.Generator,
    *,
    voxel_size: float,
    normals: bool,
    recipe: Augment | None,
) -> VoxelCloud:
    """Normalises (and augments, given a recipe) a cloud and cuts it into voxels.

    One random point stands for each voxel, when evaluating too, as in the published
    pipeline; the given generator makes that repeatable.

    Raises:
      ValueError: On a broken cloud, or one without normals where they are asked for.
    """
    check_cloud(cloud)
    if normals and cloud.normals is None:
        raise ValueError(
            f"{cloud.name}: the cloud has no normals but normals are used as features; "
            "use data with normals, or train without them"
        )
    cloud = normalize(cloud) if recipe is None else augment(cloud, rng, recipe)
    features = cloud.points
    if normals and cloud.normals is not None:
        features = np.concatenate([cloud.points, cloud.normals], axis=1)
    return voxelize(
        cloud.points,
        features,
        voxel_size=voxel_size,
        choose=random_point(rng),
        name=cloud.name,
    )


class _Shards(NamedTuple):
    """One batch, before it is padded: its clouds and pairs on each device."""

    features: list[Float[np.ndarray, "voxels channels"]]
    levels: list[tuple[LevelPairs, ...]]
    labels: Int32[np.ndarray, "devices clouds"]
    indices: Int32[np.ndarray, "devices clouds"]


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Random access to the batches of a run: `source[step]`. Can be pickled."""

    dataset: ShapeDataset
    layout: BatchLayout
    capacities: tuple[Capacity, ...] = ()
    """Static shapes, smallest first; a batch takes the first that holds it."""
    recipe: Augment | None = None
    """How clouds are changed; None leaves them as they are (evaluation)."""
    seed: int = 0
    epochs: int = 1
    shuffle: bool = False
    """Draw each epoch in its own order and leave out its incomplete last batch;
    otherwise clouds come in order and the last batch is filled with padding."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the dataset."""
        full, rest = divmod(len(self.dataset), self.layout.batch_size)
        return full if self.shuffle else full + (rest > 0)

    def __len__(self) -> int:
        """Batches of all epochs."""
        return self.steps_per_epoch * self.epochs

    def __getitem__(self, step: int) -> ShapeBatch:
        """Batch number `step`, padded to the first capacity that holds it."""
        shards = self.shards(step)
        for capacity in self.capacities:
            if all(fits(levels, capacity) for levels in shards.levels):
                return _pack(shards, capacity, self.layout.channels)
        if not self.capacities:
            raise ValueError("this source has no capacities: plan_capacities first")
        return _pack(shards, self.capacities[-1], self.layout.channels)

    def shards(self, step: int) -> _Shards:
        """The clouds of batch `step`, voxelised and dealt to the devices."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a run of {len(self)} steps")
        size, devices = self.layout.batch_size, self.layout.num_devices
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        chosen = order[within * size : (within + 1) * size].tolist()
        clouds, labels = [], []
        for index in chosen:
            cloud = self.dataset[index]
            rng = np.random.default_rng((self.seed, epoch, index, 1))
            clouds.append(
                voxelize_cloud(
                    cloud,
                    rng,
                    voxel_size=self.layout.voxel_size,
                    normals=self.layout.normals,
                    recipe=self.recipe,
                )
            )
            labels.append(cloud.label)
        dealt = deal([len(cloud.coords) for cloud in clouds], devices)
        features, levels = [], []
        slots = np.full((devices, size // devices), -1, np.int32)
        for device, members in enumerate(dealt):
            coords = np.zeros((0, 4), np.int32)
            rows = np.zeros((0, self.layout.channels), np.float32)
            if members:
                coords, rows = join_clouds([clouds[member] for member in members])
            slots[device, : len(members)] = members
            features.append(rows)
            levels.append(find_levels(coords, num_levels=self.layout.num_levels))
        padded_labels = np.append(np.array(labels, np.int32), np.int32(-1))
        padded_indices = np.append(np.array(chosen, np.int32), np.int32(-1))
        return _Shards(features, levels, padded_labels[slots], padded_indices[slots])


def deal(sizes: list[int], num_hands: int) -> list[list[int]]:
    """Deals clouds so that hands hold near-equal voxels and equal numbers of clouds.

    Largest first, back and forth. Returns the members of each hand, ascending.
    """
    order = sorted(range(len(sizes)), key=lambda member: (-sizes[member], member))
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    for place, member in enumerate(order):
        turn, seat = divmod(place, num_hands)
        hands[seat if turn % 2 == 0 else num_hands - 1 - seat].append(member)
    return [sorted(hand) for hand in hands]


def _pack(shards: _Shards, capacity: Capacity, channels: int) -> ShapeBatch:
    levels = [pack_levels(found, capacity) for found in shards.levels]
    features = [pad_features(rows, rows=capacity[0].voxels) for rows in shards.features]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *levels)
    return ShapeBatch(np.stack(features), stacked, shards.labels, shards.indices)


def plan_capacities(
    source: BatchSource, *, num_batches: int = 8, slacks: tuple[float, ...] = (1.1, 1.6)
) -> tuple[Capacity, ...]:
    """Static shapes for a run, from its first batches: usual, and large.

    They follow from the dataset, the layout and the seed alone, so every process of a
    run plans the same ones.

    Args:
      source: The run's batches.
      num_batches: How many of them are looked at.
      slacks: Room above the largest of those, one a capacity.

    Raises:
      ValueError: If the source has no batch.
    """
    if not len(source):
        raise ValueError(
            f"the dataset has {len(source.dataset)} clouds, fewer than a batch of "
            f"{source.layout.batch_size}: use a smaller batch_size"
        )
    steps = np.linspace(0, len(source) - 1, min(num_batches, len(source))).astype(int)
    seen = [levels for step in steps.tolist() for levels in source.shards(step).levels]
    return tuple(fit_capacity(seen, slack=slack) for slack in slacks)


def iterate(
    source: BatchSource, *, start: int = 0, workers: int = 0, prefetch: int = 4
) -> Iterator[ShapeBatch]:
    """Batches `start`, `start + 1`, ... of a source, read ahead by grain.

    Args:
      source: The batches.
      start: First step, where a resumed run goes on.
      workers: Worker processes; 0 reads ahead in threads of this process.
      prefetch: Batches kept ready.

    Yields:
      Each batch once, in order, whatever the number of workers.
    """
    steps = grain.MapDataset.range(start, len(source)).map(source.__getitem__)
    threads = grain.ReadOptions(
        num_threads=1 if workers else 2, prefetch_buffer_size=max(prefetch, 1)
    )
    batches = steps.to_iter_dataset(threads)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags
            flags.FLAGS.mark_as_parsed()
        ahead = -(-max(prefetch, 1) // workers)
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=ahead
            ),
            worker_init_fn=_leave_ctrl_c_to_the_parent,
        )
    yield from batches


def _leave_ctrl_c_to_the_parent(worker: int, num_workers: int) -> None:
    """Ctrl-C reaches every process of the terminal; the parent ends its workers."""
    del worker, num_workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
