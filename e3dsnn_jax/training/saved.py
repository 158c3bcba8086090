"""Trained networks, read from run folders and from weight files."""

from pathlib import Path
from typing import Any, NamedTuple

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.interop import ImportReport, import_weights
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.checkpoints import Which, restore_variables
from e3dsnn_jax.training.config import DataConfig
from e3dsnn_jax.training.run_folder import read_class_names, read_config

PUBLISHED_VOXEL_SIZE = 0.01
"""Edge of a voxel in the published ModelNet40 configuration."""


class SavedNetwork(NamedTuple):
    """A network with its variables, and what it expects of its input."""

    source: str
    """What messages call it: the run folder or the weights file."""
    model: Classifier
    variables: dict[str, Any]
    """`{"params": ..., "batch_stats": ...}`."""
    class_names: tuple[str, ...]
    data: DataConfig
    """How clouds become voxels; its path is that of the training data."""
    votes: int
    """Voxelisations of a cloud that are averaged."""
    batch_size: int
    step: int | None
    """Optimizer updates behind the variables; None if nobody noted them."""
    report: ImportReport | None = None
    """For a weights file: what matched in it."""


def load_run(run: Path, *, which: Which = "last") -> SavedNetwork:
    """Reads the network of a run folder.

    Args:
      run: Folder that a training wrote.
      which: The latest checkpoint, or the most accurate one.

    Raises:
      RunFolderError: If the folder is not that of a run.
      CheckpointError: If no checkpoint can be read.
      ConfigError: If the configuration cannot be read.
    """
    config, class_names = read_config(run), read_class_names(run)
    restored = restore_variables(run, which=which)
    model = Classifier(
        architecture=config.model.resolve_architecture(normals=config.data.normals),
        num_classes=len(class_names),
        neuron=config.model.neuron,
        compute=config.model.compute,
    )
    return SavedNetwork(
        source=str(run),
        model=model,
        variables=restored.variables,
        class_names=class_names,
        data=config.data,
        votes=config.recipe.votes,
        batch_size=config.recipe.batch_size // config.recipe.accumulate,
        step=restored.step,
    )


def load_weights(
    path: Path,
    *,
    class_names: tuple[str, ...] | None = None,
    voxel_size: float = PUBLISHED_VOXEL_SIZE,
    neuron: Neuron | None = None,
) -> SavedNetwork:
    """Reads a weights file: `.pth` in the published layout, or our `.npz`.

    Args:
      path: The file.
      class_names: Classes in the order of the outputs; numbered if omitted.
      voxel_size: Edge of a voxel that the network was trained with.
      neuron: Its neurons, which such files do not tell; the published one if omitted.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is not one whole classifier of 3 or 6 input channels, or the
        names are not as many as its outputs.
    """
    variables, report = import_weights(path)
    architecture, num_classes = architecture_of(variables)
    if architecture.decoder_channels is not None:
        raise ValueError(f"{path}: this is a network of segmentation, no classifier")
    if architecture.in_channels not in (3, 6):
        raise ValueError(
            f"{path}: the network takes {architecture.in_channels} channels a voxel; "
            "3 (coordinates) or 6 (and normals) can be given"
        )
    if class_names is None:
        class_names = tuple(f"class_{label}" for label in range(num_classes))
    if len(class_names) != num_classes:
        raise ValueError(
            f"{path}: the network tells {num_classes} classes apart, but "
            f"{len(class_names)} class names are given"
        )
    return SavedNetwork(
        source=str(path),
        model=Classifier(architecture, num_classes, neuron or Neuron()),
        variables=variables,
        class_names=class_names,
        data=DataConfig(voxel_size=voxel_size, normals=architecture.in_channels == 6),
        votes=1,
        batch_size=16,
        step=None,
        report=report,
    )
