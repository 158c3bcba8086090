"""The two datasets of a run: what it trains on and what it is evaluated on."""

from pathlib import Path
from typing import NamedTuple

from e3dsnn_jax.data.clouds import (
    CloudSubset,
    ShapeDataset,
    Split,
    shuffle_labels,
    take_fraction,
)
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.data.shards import shard_files
from e3dsnn_jax.training.config import DataConfig


class RunData(NamedTuple):
    """Datasets of a run, with one list of classes."""

    train: ShapeDataset
    evaluation: ShapeDataset
    """The test split, or the shard held out of training."""


def open_data(config: DataConfig) -> RunData:
    """Opens both datasets of a run.

    Raises:
      FileNotFoundError: If the folder, a split or the held-out shard does not exist.
      ValueError: If a file is broken or the splits have other classes.
    """
    train = open_dataset(config.path, "train", points_per_cloud=config.points_per_cloud)
    if config.hold_out is not None:
        train, evaluation = _hold_out(train, config)
    else:
        evaluation = open_evaluation(config, train.class_names)
    if config.fraction < 1:
        train = take_fraction(train, config.fraction)
    if config.shuffle_labels is not None:
        train = shuffle_labels(train, config.shuffle_labels)
    return RunData(train, evaluation)


def open_evaluation(config: DataConfig, class_names: tuple[str, ...]) -> ShapeDataset:
    """The clouds that a run with these classes is evaluated on.

    Raises:
      FileNotFoundError: If the folder or split does not exist.
      ValueError: If a file is broken or the classes are others.
    """
    if config.hold_out is not None:
        whole = open_dataset(
            config.path, "train", points_per_cloud=config.points_per_cloud
        )
        found = _hold_out(whole, config)[1]
    else:
        found = open_dataset(
            config.path, "test", points_per_cloud=config.points_per_cloud
        )
    check_classes(found, class_names, where=str(config.path or "the embedded shapes"))
    return found


class SplitData(NamedTuple):
    """A part of a data set that a trained network is looked at on."""

    dataset: ShapeDataset
    name: str | None
    """What tells it apart from others: `DATA_SPLIT`; None for the clouds that the run
    is evaluated on."""


def open_split(
    config: DataConfig, class_names: tuple[str, ...], data: Path | None, split: Split
) -> SplitData:
    """The clouds of another data set or split, or those that a run is evaluated on.

    Args:
      config: Data of the run.
      class_names: Its classes.
      data: Folder of a data set; that of the run if omitted.
      split: Part of it.

    Raises:
      FileNotFoundError: If the folder or split does not exist.
      ValueError: If a file is broken, or the classes of the run's own data are others.
    """
    if data is None and split == "test":
        return SplitData(open_evaluation(config, class_names), None)
    path = data or config.path
    dataset = open_dataset(path, split, points_per_cloud=config.points_per_cloud)
    name = path.resolve().name if path else "shapes"
    return SplitData(dataset, f"{name}_{split}")


def check_classes(
    dataset: ShapeDataset, class_names: tuple[str, ...], *, where: str
) -> None:
    """Refuses a dataset whose classes are not those of the network.

    Raises:
      ValueError: With both numbers of classes, or the first name that differs.
    """
    found = dataset.class_names
    if len(found) != len(class_names):
        raise ValueError(
            f"{where} has {len(found)} classes, but the network was trained on "
            f"{len(class_names)}"
        )
    for index, (name, expected) in enumerate(zip(found, class_names, strict=True)):
        if name != expected:
            raise ValueError(
                f"class {index} is {name!r} in {where}, but the network was trained "
                f"with {expected!r} there; use data with the same classes in the same "
                "order"
            )


def _hold_out(
    train: ShapeDataset, config: DataConfig
) -> tuple[CloudSubset, CloudSubset]:
    """The training clouds outside and inside of the held-out shard."""
    if config.path is None:
        raise ValueError("data.hold_out needs data.path, a folder of npz shards")
    shards = shard_files(config.path, "train")
    if config.hold_out not in [path.name for path in shards]:
        present = ", ".join(path.name for path in shards) or "no train_*.npz at all"
        raise FileNotFoundError(
            f"{config.path}: no training shard {config.hold_out} to hold out; there "
            f"is {present}"
        )
    if len(shards) == 1:
        raise ValueError(
            f"{config.path}: {config.hold_out} is the only training shard; without it "
            "nothing is left to train on"
        )
    # Clouds of shards are called path[index], with the path as it was given first.
    mark = f"/{config.hold_out}["
    inside = [mark in f"/{train[index].name}" for index in range(len(train))]
    kept = tuple(index for index, held in enumerate(inside) if not held)
    held = tuple(index for index, held in enumerate(inside) if held)
    return CloudSubset(train, kept), CloudSubset(train, held)
