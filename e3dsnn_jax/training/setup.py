"""What stays the same through a training run: batches, shapes, compiled steps."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import BatchLayout, BatchSource
from e3dsnn_jax.data.plan import plan_capacities
from e3dsnn_jax.training.config import TrainConfig
from e3dsnn_jax.training.datasets import RunData
from e3dsnn_jax.training.devices import choose_devices
from e3dsnn_jax.training.evaluate import make_evaluation_source
from e3dsnn_jax.training.feed import make_share
from e3dsnn_jax.training.freeze import GuidedFreeze, numbers_of_frozen_blocks
from e3dsnn_jax.training.freeze_guide import Guide
from e3dsnn_jax.training.memory import AnnouncedStep
from e3dsnn_jax.training.optimizer import make_optimizer
from e3dsnn_jax.training.processes import gather
from e3dsnn_jax.training.state import TrainState, create_state
from e3dsnn_jax.training.steps import (
    EvalStep,
    make_eval_step,
    make_mesh,
    make_train_step,
)


class RunSetup(NamedTuple):
    """A run without its state."""

    config: TrainConfig
    source: BatchSource
    """Training batches."""
    evaluation: BatchSource
    """Batches of an evaluation."""
    mesh: Mesh
    train_steps: dict[int, AnnouncedStep]
    """By the number of frozen blocks; each is compiled when it is first used."""
    eval_step: EvalStep
    total: int
    """Optimizer updates of the whole run."""
    block_names: tuple[str, ...]
    """Blocks of the network, from the input upwards."""
    guide: Guide | None
    """Tells which of them have settled, where freezing is guided."""

    def epochs_done(self, step: int) -> int:
        """Whole epochs behind update `step`."""
        return step // self.source.steps_per_epoch

    def is_due(self, step: int, every_epochs: int) -> bool:
        """Whether update `step` completed a number of epochs that `every` divides."""
        epochs, before = self.epochs_done(step), self.epochs_done(step - 1)
        return step == self.total or epochs // every_epochs > before // every_epochs


def make_setup(config: TrainConfig, data: RunData) -> tuple[RunSetup, TrainState]:
    """Plans the shapes of a run, and initialises its state.

    Raises:
      ValueError: If the data are too few for the batch, or the options do not fit.
    """
    recipe = config.recipe
    at_once = recipe.batch_size // recipe.accumulate
    devices = choose_devices(at_once, config.devices)
    mesh = make_mesh(devices)
    architecture = config.model.resolve_architecture(normals=config.data.normals)
    layout = BatchLayout(
        batch_size=recipe.batch_size,
        num_devices=devices,
        accumulate=recipe.accumulate,
        num_levels=architecture.num_levels,
        voxel_size=config.data.voxel_size,
        normals=config.data.normals,
        runs=jax.default_backend() == "tpu",
    )
    source = BatchSource(
        data.train,
        layout,
        recipe=recipe.augment,
        seed=config.seed,
        epochs=recipe.epochs,
        shuffle=True,
        share=make_share(data.train, layout),
    )
    capacities = plan_capacities(
        source, slacks=config.data.capacity_slacks, gather=gather
    )
    source = dataclasses.replace(source, capacities=capacities)
    model = Classifier(
        architecture=architecture,
        num_classes=len(data.train.class_names),
        neuron=config.model.neuron,
        compute=config.model.compute,
    )
    optimizer = make_optimizer(
        recipe.optimizer,
        recipe.schedule,
        total_steps=len(source),
        clip_norm=recipe.clip_norm,
    )
    example = jax.tree.map(lambda leaf: leaf[0], source.padded(0, 0))
    state = create_state(
        model,
        optimizer,
        example,
        initial_key(config.seed),
        ema=recipe.ema_decay is not None,
    )
    guide = None
    if isinstance(recipe.freeze, GuidedFreeze):
        guide = Guide(model, data.train, layout, clouds=recipe.freeze.clouds)
        state = state._replace(last_look=guide.blank())
    blocks = architecture.block_names
    train_steps = {
        frozen: make_train_step(
            model,
            optimizer,
            mesh,
            label_smoothing=recipe.label_smoothing,
            ema_decay=recipe.ema_decay,
            accumulate=recipe.accumulate,
            frozen_blocks=frozen,
        )
        for frozen in numbers_of_frozen_blocks(recipe.freeze, blocks=len(blocks))
    }
    whole = dataclasses.replace(layout, batch_size=at_once, accumulate=1)
    evaluation = make_evaluation_source(
        data.evaluation,
        whole,
        votes=recipe.votes,
        slacks=config.data.capacity_slacks,
    )
    setup = RunSetup(
        config=config,
        source=source,
        evaluation=evaluation,
        mesh=mesh,
        train_steps={
            frozen: AnnouncedStep(step, list(mesh.local_devices))
            for frozen, step in train_steps.items()
        },
        eval_step=make_eval_step(model, mesh),
        total=len(source),
        block_names=blocks,
        guide=guide,
    )
    return setup, state


def initial_key(seed: int) -> PRNGKeyArray:
    """`jax.random.key(seed, impl="rbg")`, without the programs that this compiles.

    The generator is XLA's own: the initial values of a network compile several times
    faster than with JAX's default.
    """
    words: Any = np.array([seed >> 32, seed & 0xFFFFFFFF] * 2, np.uint32)
    return jax.random.wrap_key_data(words, impl="rbg")
