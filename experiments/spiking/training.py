"""Runs of E-3DSNN over seeds, with enough checkpoints to see them learn.

A run is trained once: called again with the same options, it is read from its folder.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.data.augment import Augment
from e3dsnn_jax.training.config import DataConfig, ModelConfig, TrainConfig
from e3dsnn_jax.training.loop import TrainResult, train
from experiments import quickstart, smoke


@dataclass(frozen=True)
class Training:
    """The runs of an experiment; the recipe is that of the quickstart."""

    data: Path | None = None
    """Folder of a data set; the embedded shapes if omitted."""
    epochs: int = 6
    """Passes over the training clouds."""
    voxel_size: float = 0.07
    """Edge of a voxel, in units of the normalised cloud."""
    seeds: int = 3
    """Runs of each kind; seeds of parameters, order and augmentation are 0, 1, ..."""
    checkpoints: int = 20
    """Checkpoints of a run, evenly spaced."""
    smoke: bool = False
    """Train tiny networks on a few synthetic clouds for two epochs: a test."""


def train_network(
    training: Training,
    run: Path,
    *,
    seed: int,
    architecture: Architecture | None = None,
    fraction: float = 1.0,
    augment: Augment = quickstart.RECIPE.augment,
    shuffle_labels: int | None = None,
) -> TrainResult:
    """Trains one run, or reads it where it was trained before.

    Args:
      training: What the runs have in common.
      run: Its folder.
      seed: Its seed.
      architecture: Size of the network, T if omitted.
      fraction: Part of the training clouds.
      augment: How training clouds are changed at random.
      shuffle_labels: Seed by which the training labels are dealt to other clouds.
    """
    epochs = training.epochs
    recipe = dataclasses.replace(quickstart.RECIPE, epochs=epochs, augment=augment)
    config = TrainConfig(
        run=run,
        data=DataConfig(
            path=training.data,
            voxel_size=training.voxel_size,
            fraction=fraction,
            shuffle_labels=shuffle_labels,
        ),
        model=ModelConfig(architecture=architecture),
        recipe=recipe,
        seed=seed,
        evaluate_every_epochs=epochs,
        checkpoints=training.checkpoints,
    )
    if training.smoke:
        data = smoke.write_shards(run.parent / "data")
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data, path=data, voxel_size=smoke.VOXEL_SIZE, fraction=1.0
            ),
            model=ModelConfig(architecture=smoke.ARCHITECTURE),
            recipe=dataclasses.replace(recipe, epochs=2, batch_size=smoke.BATCH_SIZE),
        )
    return train(config)
