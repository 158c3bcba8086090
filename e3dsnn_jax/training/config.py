"""What a training run is: frozen dataclasses, one for each part.

They are the command line of `e3dsnn train` (every field is an option, the text under
it is its help) and the `config.json` of a run folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.data.augment import Augment
from e3dsnn_jax.layers import Compute, Precision
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.freeze import GuidedFreeze, LinearFreeze, check_freeze
from e3dsnn_jax.training.optimizer import AdamW, Sgd
from e3dsnn_jax.training.schedule import Cosine, MultiStep, OneCycle

Variant = Literal["T", "S", "L", "H"]
# The choices of the command line, each with a line of help; their formulas stay in the
# docstrings of the classes.
_choice = tyro.conf.subcommand
OptimizerChoice = (
    Annotated[Sgd, _choice(description="SGD with momentum, as published.")]
    | Annotated[AdamW, _choice(description="Adam with decoupled weight decay.")]
)
ScheduleChoice = (
    Annotated[
        MultiStep,
        _choice(description="The rate drops by a factor at milestones, as published."),
    ]
    | Annotated[OneCycle, _choice(description="Cosine up to the peak, then down.")]
    | Annotated[Cosine, _choice(description="Linear warm-up, then a cosine down.")]
)
FreezeChoice = (
    Annotated[
        LinearFreeze,
        _choice(description="Blocks are frozen from below at evenly spaced steps."),
    ]
    | Annotated[
        GuidedFreeze,
        _choice(
            description="Blocks are frozen from below when SVCCA says they settled."
        ),
    ]
)


@dataclass(frozen=True)
class DataConfig:
    """Which clouds are used, and how they become voxels."""

    path: Path | None = None
    """Folder of the data set; its kind is found from its files. Without it, the
    embedded procedural shapes are used, which need no download."""
    points_per_cloud: int | None = None
    """Points kept of each cloud, farthest first; all of them if omitted."""
    voxel_size: float = 0.05
    """Edge of a voxel, in units of the normalised cloud (farthest point at 1)."""
    normals: bool = True
    """Feed normals beside coordinates: 6 input channels instead of 3."""
    fraction: float = 1.0
    """Part of the training clouds that is used, the same part of every class."""
    hold_out: str | None = None
    """Name of a training shard, such as train_5.npz, that is left out of training and
    evaluated instead of the test split: for choosing a recipe."""
    shuffle_labels: int | None = None
    """Deals the labels of the training clouds to other ones by this seed, the same in
    every epoch, so that they can be memorised and nothing else; those that the run is
    evaluated on stay true."""
    workers: int = 0
    """Worker processes that prepare batches; 0 prepares them in this process."""
    prefetch: int = 4
    """Batches that are prepared ahead."""
    capacity_slacks: tuple[float, ...] = (1.1, 1.6)
    """Room, above the largest of some sampled batches, of the static shapes that
    programs are compiled for; one program each, a batch takes the first that holds
    it. A run may be resumed with others; sums over other shapes may then be rounded
    differently."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network is trained."""

    variant: Variant = "T"
    """Size of the network: 1.87, 3.27, 17.3 or 46.6 million parameters."""
    neuron: Neuron = field(default_factory=Neuron)
    """What turns membranes into spikes."""
    compute_dtype: Precision = "float32"
    """Type of the convolutions' inputs, weights and outputs; parameters, statistics and
    the sums within a convolution are float32. bfloat16_split: weights in two parts that
    are together almost as good as float32, and float32 outputs; gradients are rounded
    as with bfloat16."""
    deterministic: bool = True
    """Repeat a run bit for bit on the same kind of device; without it, a GPU adds in
    any order, for less work."""
    rematerialise: bool = False
    """Keep only the membranes between blocks and compute the rest anew in the backward
    pass: about half the memory for a third more time."""
    architecture: Annotated[Architecture | None, tyro.conf.Suppress] = None
    """Layer sizes that replace those of the variant; in_channels must then be 6 with
    normals and 3 without."""

    @property
    def compute(self) -> Compute:
        """How the network is computed."""
        return Compute(self.compute_dtype, self.deterministic, self.rematerialise)

    def resolve_architecture(self, *, normals: bool) -> Architecture:
        """The layer sizes, with the input channels that the data give.

        Raises:
          ValueError: If `architecture` expects other input channels.
        """
        channels = 6 if normals else 3
        if self.architecture is None:
            return dataclasses.replace(VARIANTS[self.variant], in_channels=channels)
        if self.architecture.in_channels != channels:
            raise ValueError(
                f"model.architecture has in_channels={self.architecture.in_channels} "
                f"but data.normals={normals} gives {channels} channels a voxel"
            )
        return self.architecture


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; the defaults are the published ModelNet40 recipe."""

    epochs: int = 300
    """Passes over the training clouds."""
    batch_size: int = 16
    """Clouds of one update of the parameters, over all devices."""
    optimizer: OptimizerChoice = field(default_factory=Sgd)
    """Update rule with its peak learning rate."""
    schedule: ScheduleChoice = field(default_factory=MultiStep)
    """Shape of the learning rate over the run."""
    label_smoothing: float = 0.2
    """Probability mass spread over all classes in the targets."""
    augment: Augment = field(default_factory=Augment)
    """Random changes of the training clouds."""
    ema_decay: float | None = None
    """Decay of the moving average of the parameters that is evaluated; none if
    omitted."""
    votes: int = 1
    """Random voxelisations of a cloud whose probabilities are averaged in the
    evaluation; 1 is a single pass, as published."""
    accumulate: int = 1
    """Parts of a batch that each device works through one after the other, to save
    memory; BatchNorm then sees one part of every device at a time."""
    clip_norm: float | None = None
    """Largest global norm of a gradient; no limit if omitted."""
    freeze: FreezeChoice | None = None
    """When blocks are frozen, from the input upwards; never if omitted."""


@dataclass(frozen=True)
class TrainConfig:
    """Trains a classifier of point clouds; run the same command again to resume."""

    run: Path = Path("runs/train")
    """Folder of the run: configuration, metrics, checkpoints, figures."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    """Seed of the parameters, the order of the clouds and their augmentation."""
    devices: int | None = None
    """Devices that share each batch, over all processes. If omitted: all accelerators,
    or on a CPU as many virtual devices as there are cores and as divide the batch. A
    run may be resumed with another number."""
    evaluate_every_epochs: int = 10
    """Epochs between evaluations; there is always one at the end."""
    checkpoint_every_epochs: int = 1
    """Epochs between checkpoints."""
    checkpoint_every_steps: int | None = None
    """Steps between further checkpoints, for long epochs; none if omitted."""
    checkpoints: int | None = None
    """Checkpoints of the whole run, evenly spaced and all kept, to see how it learns
    (`e3dsnn analyse`); then those of `checkpoint_every_epochs` are left out."""
    keep: int = 2
    """Latest checkpoints that are kept, beside the best one."""
    log_every_steps: int = 10
    """Steps averaged into one line of metrics.jsonl."""


@dataclass(frozen=True)
class TrainCommand:
    """Trains a classifier of point clouds; run the same command again to resume."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=TrainConfig
    )
    processes: int | None = None
    """Start so many processes on this machine's CPU and train in all of them, for
    trial. Leave it out under a launcher (Slurm, mpirun, torchrun): its processes find
    each other. A run may be resumed with another number."""
    analyse: bool = False
    """Keep 20 checkpoints (or `--checkpoints`) and compare the layers over training
    when it is done, as `e3dsnn analyse` does."""


PAPER_RECIPE = Recipe()
"""SGD 0.1 with Nesterov momentum 0.9 and weight decay 1e-3, times 0.1 at 60 % and at
80 % of the steps, label smoothing 0.2, batches of 16, 300 epochs.

Source: the ModelNet40 configuration of the E-3DSNN authors' code.
"""

# Fields that change how a run goes, but not what it computes, at most how sums are
# rounded: a run may be resumed with
# other values of these.
FREE_FIELDS = (
    "run",
    "data.workers",
    "data.prefetch",
    "data.capacity_slacks",
    "devices",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "checkpoints",
    "keep",
)


def check_config(config: TrainConfig) -> None:
    """Refuses values that no run could use, before anything expensive starts.

    Raises:
      ValueError: Names the field, its value and what is expected.
    """
    data, recipe = config.data, config.recipe
    positive = {
        "data.voxel_size": data.voxel_size,
        "data.prefetch": data.prefetch,
        "recipe.epochs": recipe.epochs,
        "recipe.batch_size": recipe.batch_size,
        "recipe.votes": recipe.votes,
        "recipe.accumulate": recipe.accumulate,
        "evaluate_every_epochs": config.evaluate_every_epochs,
        "checkpoint_every_epochs": config.checkpoint_every_epochs,
        "keep": config.keep,
        "log_every_steps": config.log_every_steps,
    }
    optional = {
        "data.points_per_cloud": data.points_per_cloud,
        "recipe.clip_norm": recipe.clip_norm,
        "devices": config.devices,
        "checkpoint_every_steps": config.checkpoint_every_steps,
        "checkpoints": config.checkpoints,
    }
    positive |= {name: value for name, value in optional.items() if value is not None}
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 0 < data.fraction <= 1:
        raise ValueError(f"data.fraction must lie in (0, 1], got {data.fraction}")
    if data.workers < 0:
        raise ValueError(f"data.workers must be 0 or more, got {data.workers}")
    if not 0 <= recipe.label_smoothing < 1:
        raise ValueError(
            f"recipe.label_smoothing must lie in [0, 1), got {recipe.label_smoothing}"
        )
    if recipe.ema_decay is not None and not 0 < recipe.ema_decay < 1:
        raise ValueError(f"recipe.ema_decay must lie in (0, 1), got {recipe.ema_decay}")
    slacks = data.capacity_slacks
    if not slacks or min(slacks) < 1 or list(slacks) != sorted(set(slacks)):
        raise ValueError(
            f"data.capacity_slacks must be rising numbers from 1 on, got {slacks}"
        )
    if data.shuffle_labels is not None and data.shuffle_labels < 0:
        raise ValueError(
            f"data.shuffle_labels must be 0 or more, got {data.shuffle_labels}"
        )
    if config.seed < 0:
        raise ValueError(f"seed must be 0 or more, got {config.seed}")
    parts = recipe.accumulate * (config.devices or 1)
    if recipe.batch_size % parts:
        raise ValueError(
            f"recipe.batch_size={recipe.batch_size} must be a multiple of devices="
            f"{config.devices or 'any'} times recipe.accumulate={recipe.accumulate}"
        )
    if recipe.freeze is not None:
        architecture = config.model.resolve_architecture(normals=data.normals)
        check_freeze(recipe.freeze, blocks=len(architecture.block_names))
    if data.hold_out is not None and data.path is None:
        raise ValueError(
            f"data.hold_out={data.hold_out} needs data.path, a folder of npz shards; "
            "the embedded shapes have no shards"
        )
