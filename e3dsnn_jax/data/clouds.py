"""Point clouds, datasets of them, and the checks that every cloud must pass."""

import operator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

Split = Literal["train", "test"]


class PointCloud(NamedTuple):
    """One shape as points on its surface.

    Attributes:
      points: Positions, float32, in the units of the source.
      normals: Outward unit vectors, float32, or None where the source has none. A
        zero row stands for a normal that the source leaves undefined.
      label: Class index, -1 where unknown.
      name: What error messages call this cloud: a path, or path[index].
    """

    points: Float[np.ndarray, "points 3"]
    normals: Float[np.ndarray, "points 3"] | None
    label: int
    name: str


@runtime_checkable
class ShapeDataset(Protocol):
    """Random access to labelled clouds.

    Implementations can be pickled cheaply, because data loaders send them to worker
    processes, and raise IndexError beyond their length. The datasets of this package
    also carry `labels`, which `labels_of` reads instead of the clouds.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class; a cloud's label is an index into them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud: ...


def check_index(index: SupportsIndex, length: int) -> int:
    """Returns `index` as an int in [0, length); negative indices count from the end.

    Raises:
      IndexError: If the index lies outside the dataset.
    """
    position = operator.index(index)
    if not -length <= position < length:
        raise IndexError(f"cloud {position} of a dataset of {length} clouds")
    return position % length


def check_cloud(cloud: PointCloud, *, num_classes: int | None = None) -> None:
    """Rejects a cloud that cannot be trained on, naming it and what is wrong.

    Args:
      cloud: The cloud to check.
      num_classes: If given, the label must lie in [0, num_classes).

    Raises:
      ValueError: If the cloud is empty, its points are not `[points, 3]`, its normals
        have another shape than its points, a number is NaN or infinite, or its label
        is not one of the classes.
    """
    points, normals, label, name = cloud
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(
            f"{name}: points have shape {points.shape}, expected (points, 3)"
        )
    if len(points) == 0:
        raise ValueError(f"{name}: the cloud is empty; it needs at least one point")
    _check_finite(points, "point", name)
    if normals is not None:
        if normals.shape != points.shape:
            raise ValueError(
                f"{name}: normals have shape {normals.shape} but points have shape "
                f"{points.shape}; give one normal a point"
            )
        _check_finite(normals, "normal", name)
    if num_classes is not None and not 0 <= label < num_classes:
        raise ValueError(
            f"{name}: label {label} is outside [0, {num_classes}), the range of the "
            f"{num_classes} classes"
        )


def _check_finite(values: np.ndarray, what: str, name: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(values)} {what}s are NaN or infinite, "
            f"the first is {what} {first}: {values[first].tolist()}; remove or repair "
            "them"
        )


def unit_normals(
    normals: Float[np.ndarray, "points 3"], name: str
) -> Float[np.ndarray, "points 3"]:
    """Scales normals to length 1, as rounding in files leaves them up to 1 % off.

    Rows of zeros stay zeros. Colours that sit where normals are expected are refused
    rather than scaled: if most lengths are off by more than 5 %, it is no rounding.

    Args:
      normals: Normals as stored.
      name: The cloud's name, for the error.

    Returns:
      Normals of length 1, float32.

    Raises:
      ValueError: If the length of more than half of the rows that are not zero lies
        outside [0.95, 1.05].
    """
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    given = lengths[lengths > 0]
    off = int((np.abs(given - 1) > 0.05).sum())
    if 2 * off > len(given) and np.isfinite(given).all():
        raise ValueError(
            f"{name}: {off} of {len(given)} normals are not of length 1 but "
            f"{np.median(given):.3g} (median); are these columns colours? Drop them if "
            "so"
        )
    return (normals / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def labels_of(dataset: ShapeDataset) -> Int[np.ndarray, " clouds"]:
    """The label of every cloud; reads all the clouds if the dataset has no `labels`."""
    labels = getattr(dataset, "labels", None)
    if labels is None:
        labels = [dataset[index].label for index in range(len(dataset))]
    return np.asarray(labels, np.int32)


def voxels_of(dataset: ShapeDataset) -> Int[np.ndarray, " clouds"] | None:
    """Voxels of each cloud, of some edge, where the dataset knows them; else None."""
    if isinstance(dataset, RelabelledClouds):
        return voxels_of(dataset.dataset)
    if isinstance(dataset, CloudSubset):
        whole = voxels_of(dataset.dataset)
        return None if whole is None else whole[list(dataset.indices)]
    return getattr(dataset, "voxels", None)


@dataclass(frozen=True)
class CloudSubset:
    """Some clouds of a dataset, in the order of `indices`."""

    dataset: ShapeDataset
    indices: tuple[int, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the whole dataset, also those that the subset lacks."""
        return self.dataset.class_names

    @property
    def labels(self) -> Int[np.ndarray, " clouds"]:
        """The label of every cloud of the subset."""
        return labels_of(self.dataset)[list(self.indices)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        return self.dataset[self.indices[check_index(index, len(self.indices))]]


@dataclass(frozen=True)
class RelabelledClouds:
    """The clouds of a dataset under other labels."""

    dataset: ShapeDataset
    labels: Int[np.ndarray, " clouds"]
    """The label of every cloud."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the dataset."""
        return self.dataset.class_names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        place = check_index(index, len(self))
        return self.dataset[place]._replace(label=int(self.labels[place]))


def shuffle_labels(dataset: ShapeDataset, seed: int) -> RelabelledClouds:
    """The same clouds with their labels dealt to one another, by a seed.

    As many clouds bear each label as before, and which ones says nothing about them.
    """
    labels = np.random.default_rng(seed).permutation(labels_of(dataset))
    return RelabelledClouds(dataset, labels)


def take_fraction(dataset: ShapeDataset, fraction: float, seed: int = 0) -> CloudSubset:
    """A random part of a dataset with the same share of every class.

    Each class keeps `round(fraction * size)` of its clouds, at least one. With one
    seed, the clouds of a smaller fraction are among those of every larger one, and the
    order of the dataset is kept.

    Args:
      dataset: The whole dataset.
      fraction: Part to keep, in (0, 1].
      seed: Chooses which clouds are kept.

    Returns:
      The subset, which keeps all the class names.

    Raises:
      ValueError: If `fraction` lies outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, expected a number in (0, 1]")
    labels = labels_of(dataset)
    kept: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # A label of -1 (unknown) is legal, a negative word of a seed is not.
        rng = np.random.default_rng([seed, int(label) + 1])
        count = max(1, round(fraction * len(members)))
        kept.extend(rng.permutation(members)[:count].tolist())
    return CloudSubset(dataset, tuple(sorted(kept)))


def choose_clouds(dataset: ShapeDataset, count: int | None) -> ShapeDataset:
    """Some clouds of a dataset, always the same ones; all if there are no more.

    Raises:
      ValueError: If none is asked for, or the dataset has none.
    """
    if count is not None and count < 1:
        raise ValueError(f"--clouds must be 1 or more, got {count}")
    if not len(dataset):
        raise ValueError("the dataset has no clouds, and nothing to look at")
    if count is None or count >= len(dataset):
        return dataset
    # At random: every n-th cloud may be of one class.
    places = np.random.default_rng(0).permutation(len(dataset))[:count]
    return CloudSubset(dataset, tuple(sorted(places.tolist())))
