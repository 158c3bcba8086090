"""The guide of freeze training: how much the outputs of each block still change.

It looks at the membranes that every block hands on, voxels as datapoints and channels
as neurons, for clouds of the training split that stay the same, in inference mode: as a
frozen block would run. All blocks are looked at in equally many voxels, chosen once;
SVCCA tells how similar they are to those of the look before. Process 0 looks, on one
device, and tells the others, so that the answer does not depend on how many share a
batch.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from e3dsnn_jax.analysis.activations import make_collect
from e3dsnn_jax.analysis.datapoints import choose_voxels
from e3dsnn_jax.analysis.layers import LayerPlace
from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.clouds import CloudSubset, ShapeDataset
from e3dsnn_jax.data.loader import BatchLayout, BatchSource, ShapeBatch
from e3dsnn_jax.data.plan import plan_capacities
from e3dsnn_jax.training.freeze import Frozen, GuidedFreeze, settle
from e3dsnn_jax.training.processes import broadcast, is_first, told_by_first
from e3dsnn_jax.training.state import TrainState
from svcca_jax import MeanSVCCA, over_checkpoints

MOST_DATAPOINTS = 2048
"""Voxels of each resolution that are looked at, where there are so many."""
DATAPOINTS_A_NEURON = 4
"""Fewer datapoints for each neuron would make any two layers look alike."""

Look = tuple[Float32[Array | np.ndarray, "datapoints _"], ...]
"""Of every block, on the same number of voxels; `_` are its channels."""


class Advice(NamedTuple):
    """What comes of a look."""

    look: Look
    """What was seen, to be remembered until the next look."""
    frozen: Frozen
    """What is frozen from now on."""
    similarities: tuple[float, ...]
    """Of each block with itself at the look before; empty at the first."""


class Guide:
    """Sees what every block makes of clouds that stay the same.

    Args:
      model: The network.
      dataset: The training clouds; evenly spaced ones are looked at.
      layout: Of a training batch.
      clouds: How many of them.

    Raises:
      ValueError: If the clouds have too few voxels on some resolution for SVCCA.
    """

    def __init__(
        self,
        model: Classifier,
        dataset: ShapeDataset,
        layout: BatchLayout,
        *,
        clouds: int,
    ):
        batches, counts = held_batches(dataset, layout, clouds)
        blocks = _blocks_of(model.architecture)
        widest = max(block.neurons for block in blocks)
        scarcest = int(np.argmin(counts))
        needed = DATAPOINTS_A_NEURON * widest
        if counts[scarcest] < needed:
            more = math.ceil(min(clouds, len(dataset)) * needed / counts[scarcest])
            raise ValueError(
                f"the {clouds} clouds that guide the freezing have {counts[scarcest]} "
                f"voxels on level {scarcest}, but to compare {widest} channels SVCCA "
                f"needs {needed}: try --recipe.freeze.clouds {more}, of {len(dataset)} "
                "training clouds, or LinearFreeze"
            )
        chosen = choose_voxels(batches, most=max(MOST_DATAPOINTS, needed))
        self.datapoints = chosen.size
        self._shapes = [(chosen.size, block.neurons) for block in blocks]
        self._collect = make_collect(model, batches, blocks, [chosen], clouds=False)

    def blank(self) -> Look:
        """A look of the right shapes at nothing."""
        return tuple(np.zeros(shape, np.float32) for shape in self._shapes)

    def look(self, variables: dict[str, Any]) -> Look:
        """What the blocks hand on, on the chosen voxels.

        Args:
          variables: `{"params": ..., "batch_stats": ...}`, as arrays of this process.
        """
        return tuple(self._collect(variables).by_choice[0])


def advise(
    guide: Guide,
    freeze: GuidedFreeze,
    state: TrainState,
    frozen: Frozen,
    *,
    first: bool,
) -> Advice:
    """Looks, compares with the look before, and tells what has settled.

    Args:
      guide: The clouds.
      freeze: The options.
      state: The state after an update, with the look before.
      frozen: What is frozen so far.
      first: Whether this is the first look.

    Raises:
      ValueError: If the state was made for no guide.
    """
    before = state.last_look
    if before is None:
        raise ValueError("the state has no last look: it was made for no guide")
    now = guide.blank()
    if is_first():
        host = jax.tree.map(np.asarray, (state.params, state.batch_stats))
        now = guide.look({"params": host[0], "batch_stats": host[1]})
    now = broadcast(now)
    if first:
        return Advice(now, frozen, ())
    similarities = tuple(told_by_first(lambda: compare(before, now)))
    return Advice(now, settle(freeze, frozen, similarities), similarities)


def compare(before: Look, now: Look) -> list[float]:
    """Mean SVCCA coefficient of each block with itself at the look before."""
    host = [np.asarray(layer) for layer in before]
    grid: Float[np.ndarray, "1 blocks"] = over_checkpoints(
        [now], host, measure=MeanSVCCA()
    )
    return grid[0].tolist()


def _blocks_of(sizes: Architecture) -> tuple[LayerPlace, ...]:
    """The outputs of the blocks, with their levels and channels."""
    places = [(0, sizes.embed_channels)]
    stages = zip(sizes.stage_channels, sizes.stage_depths, strict=True)
    for stage, (channels, depth) in enumerate(stages, start=1):
        places += [(stage, channels)] * (1 + depth)
    return tuple(
        LayerPlace(name, *place)
        for name, place in zip(sizes.block_names, places, strict=True)
    )


def held_batches(
    dataset: ShapeDataset, layout: BatchLayout, clouds: int
) -> tuple[list[ShapeBatch], list[int]]:
    """Batches of evenly spaced clouds for one device, and their voxels by level."""
    count = min(clouds, len(dataset))
    held = np.linspace(0, len(dataset) - 1, count).astype(int)
    layout = dataclasses.replace(
        layout,
        batch_size=layout.batch_size // layout.accumulate,
        num_devices=1,
        accumulate=1,
    )
    source = BatchSource(CloudSubset(dataset, tuple(held.tolist())), layout)
    capacities = plan_capacities(source, num_batches=len(source), slacks=(1.0,))
    source = dataclasses.replace(source, capacities=capacities)
    first = lambda stacked: jax.tree.map(lambda leaf: leaf[0], stacked)
    batches = [first(source[step]) for step in range(len(source))]
    voxels = [[int(level.voxels_needed) for level in each.levels] for each in batches]
    return batches, np.sum(voxels, axis=0).tolist()
