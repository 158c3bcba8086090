"""Batches of voxelised clouds, each a pure function of (seed, step).

Nothing is remembered between batches: batch `step` draws its clouds from the
permutation of its epoch and its randomness from (seed, epoch, cloud), so a run that
starts again at step n sees exactly what it would have seen. Kernel maps are built
here too, in the loader's workers, ahead of the training step.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from e3dsnn_jax.capacity import Capacity
from e3dsnn_jax.data.augment import Augment, augment, normalize
from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset, check_cloud
from e3dsnn_jax.data.read_ahead import read_ahead
from e3dsnn_jax.kernel_runs import add_runs_to_levels
from e3dsnn_jax.pyramid import (
    Level,
    LevelPairs,
    capacity_of,
    find_levels,
    fits,
    mark_overflow,
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
    accumulate: int = 1
    """Parts of a batch that the devices share one after the other; the leading axis of
    a batch is then devices * accumulate, the parts of a device beside each other."""
    runs: bool = False
    """Whether kernel maps have their `runs`, which a TPU reads and others do not."""

    def __post_init__(self):
        """Raises ValueError if the devices cannot share the batch equally."""
        parts = max(self.num_devices, 1) * max(self.accumulate, 1)
        if self.batch_size < 1 or self.batch_size % parts:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared equally by "
                f"num_devices={self.num_devices} times accumulate={self.accumulate}; "
                "make it a multiple"
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


class Share(NamedTuple):
    """One process's part of every batch.

    Who makes which cloud must be known before any cloud is read, so clouds are dealt by
    the voxels that they are expected to have; alone, by those that they turn out to
    have.
    """

    devices: range
    """Places of this process's devices among all of the layout."""
    voxels: Int[np.ndarray, " clouds"]
    """Voxels that each cloud of the dataset has without augmentation."""


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
    share: Share | None = None
    """The part of every batch that is made here; None: all of it."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the dataset."""
        full, rest = divmod(len(self.dataset), self.layout.batch_size)
        return full if self.shuffle else full + (rest > 0)

    def __len__(self) -> int:
        """Batches of all epochs."""
        return self.steps_per_epoch * self.epochs

    def __getitem__(self, step: int) -> ShapeBatch:
        """Batch number `step`, padded to the first capacity that holds it.

        Raises:
          CapacityError: If none does, and all of the batch is made here. A share of it
            is marked as too large instead, see `mark_overflow`.
        """
        if not self.capacities:
            raise ValueError("this source has no capacities: plan_capacities first")
        shards = self.shards(step)
        for capacity in self.capacities:
            if all(fits(levels, capacity) for levels in shards.levels):
                return _pack(shards, capacity, self.layout)
        return self._pack_too_large(shards)

    def padded(self, step: int, choice: int) -> ShapeBatch:
        """Batch number `step`, padded to the capacity of that number."""
        shards, capacity = self.shards(step), self.capacities[choice]
        if all(fits(levels, capacity) for levels in shards.levels):
            return _pack(shards, capacity, self.layout)
        return self._pack_too_large(shards)

    def choice_of(self, batch: ShapeBatch) -> int:
        """Number of the capacity that a batch of this source was padded to."""
        return self.capacities.index(capacity_of(batch.levels))

    def shards(self, step: int) -> _Shards:
        """The clouds of batch `step`, voxelised and dealt to the devices."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a run of {len(self)} steps")
        size, devices = self.layout.batch_size, self.layout.num_devices
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        chosen: list[int] = order[within * size : (within + 1) * size].tolist()
        if self.share is None:
            made = {index: self._make(index, epoch) for index in chosen}
            sizes = {index: len(made[index][0].coords) for index in chosen}
            hands = self._deal(chosen, sizes, range(devices))
        else:
            sizes = {index: int(self.share.voxels[index]) for index in chosen}
            hands = self._deal(chosen, sizes, self.share.devices)
            made = {index: self._make(index, epoch) for hand in hands for index in hand}
        features, levels = [], []
        slots = size // (devices * self.layout.accumulate)
        labels = np.full((len(hands), slots), -1, np.int32)
        indices = labels.copy()
        for number, hand in enumerate(hands):
            coords = np.zeros((0, 4), np.int32)
            rows = np.zeros((0, self.layout.channels), np.float32)
            if hand:
                coords, rows = join_clouds([made[index][0] for index in hand])
            indices[number, : len(hand)] = hand
            labels[number, : len(hand)] = [made[index][1] for index in hand]
            features.append(rows)
            levels.append(find_levels(coords, num_levels=self.layout.num_levels))
        return _Shards(features, levels, labels, indices)

    def _deal(
        self, chosen: list[int], sizes: dict[int, int], devices: range
    ) -> list[list[int]]:
        """The clouds of each hand of some devices: one for each part of the batch.

        A part holds the same clouds whatever the number of devices, since BatchNorm
        normalises each part by itself.
        """
        parts = self.layout.accumulate
        length = self.layout.batch_size // parts
        dealt = []
        for part in range(parts):
            members = chosen[part * length : (part + 1) * length]
            hands = deal([sizes[index] for index in members], self.layout.num_devices)
            dealt.append([[members[m] for m in hand] for hand in hands])
        return [dealt[part][device] for device in devices for part in range(parts)]

    def _make(self, index: int, epoch: int) -> tuple[VoxelCloud, int]:
        """A cloud's voxels in an epoch, and its label."""
        cloud = self.dataset[index]
        voxels = voxelize_cloud(
            cloud,
            np.random.default_rng((self.seed, epoch, index, 1)),
            voxel_size=self.layout.voxel_size,
            normals=self.layout.normals,
            recipe=self.recipe,
        )
        return voxels, cloud.label

    def _pack_too_large(self, shards: _Shards) -> ShapeBatch:
        capacity = self.capacities[-1]
        if self.share is None:
            return _pack(shards, capacity, self.layout)  # which raises
        rows = np.zeros((capacity[0].voxels, self.layout.channels), np.float32)
        return _stack(
            [mark_overflow(found, capacity) for found in shards.levels],
            [rows] * len(shards.levels),
            shards,
            self.layout,
        )


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


def _pack(shards: _Shards, capacity: Capacity, layout: BatchLayout) -> ShapeBatch:
    levels = [pack_levels(found, capacity) for found in shards.levels]
    features = [pad_features(rows, rows=capacity[0].voxels) for rows in shards.features]
    return _stack(levels, features, shards, layout)


def _stack(
    levels: list[tuple[Level, ...]],
    features: list[np.ndarray],
    shards: _Shards,
    layout: BatchLayout,
) -> ShapeBatch:
    if layout.runs:
        levels = [add_runs_to_levels(each) for each in levels]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *levels)
    return ShapeBatch(np.stack(features), stacked, shards.labels, shards.indices)


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
    yield from read_ahead(
        source.__getitem__, start, len(source), workers=workers, prefetch=prefetch
    )
