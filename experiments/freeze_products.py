"""Products of multiplication that training takes, layer by layer, with layers frozen.

For `freeze_training`: those of the forward pass, of the backward pass above the lowest
layer that learns, and of the looks of a guide.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.clouds import ShapeDataset
from e3dsnn_jax.data.loader import BatchLayout, ShapeBatch
from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.layer_shapes import describe_layers
from e3dsnn_jax.training.config import TrainConfig
from e3dsnn_jax.training.freeze import Freeze, GuidedFreeze, is_look
from e3dsnn_jax.training.freeze_guide import held_batches


class Products(NamedTuple):
    """Products of one training step, by layer, in the order of the network."""

    forward: list[int]
    """Products of the forward pass."""
    blocks: list[int]
    """The block that each layer belongs to; past the last one for the head."""

    def of_step(self, frozen_blocks: int) -> tuple[int, int]:
        """Products of a step, forward and backward, with some blocks frozen."""
        backward = 0
        learning = False
        for forward, block in zip(self.forward, self.blocks, strict=True):
            if block >= frozen_blocks:
                # Below the lowest layer that learns nothing needs a gradient.
                backward += forward * (2 if learning else 1)
                learning = True
        return sum(self.forward), backward


def count_products(config: TrainConfig, batch: ShapeBatch, classes: int) -> Products:
    """Products of a training step on one batch, given without an axis of devices."""
    architecture = config.model.resolve_architecture(normals=config.data.normals)
    model = Classifier(architecture, classes, config.model.neuron)
    clouds, features = len(batch.labels), jnp.asarray(batch.features)
    options: dict[str, Any] = {"num_clouds": clouds, "train": False}
    variables = jax.eval_shape(
        lambda key: model.init(key, features, batch.levels, **options),
        jax.random.key(0),
    )
    layers = describe_layers(model, variables, features, batch.levels, **options)
    names = architecture.block_names
    products = Products([], [])
    for layer in layers:
        places = clouds
        if layer.level_in is not None and layer.level_out is not None:
            level = batch.levels[layer.level_in]
            same = layer.level_in == layer.level_out
            kernel_map = level.submanifold if same else level.down
            assert kernel_map is not None
            places = count_pairs(kernel_map, len(level.coords))
        count = places * layer.time_steps * layer.c_in * layer.c_out
        owner = [
            block
            for block, name in enumerate(names)
            if layer.name == name or layer.name.startswith(f"{name}/")
        ]
        block = owner[0] if owner else len(names)
        products.forward.append(count)
        products.blocks.append(block)
    return products


def count_look(config: TrainConfig, dataset: ShapeDataset, layout: BatchLayout) -> int:
    """Products of one look of the guide; 0 without one.

    A look is a pass over all of its clouds, up to the last block.
    """
    freeze = config.recipe.freeze
    if not isinstance(freeze, GuidedFreeze):
        return 0
    batches, _ = held_batches(dataset, layout, freeze.clouds)
    head = len(config.model.resolve_architecture(normals=layout.normals).block_names)
    products = 0
    for batch in batches:
        counted = count_products(config, batch, len(dataset.class_names))
        pairs = zip(counted.forward, counted.blocks, strict=True)
        products += sum(forward for forward, block in pairs if block < head)
    return products


def count_pairs(kernel_map: KernelMap, rows: int) -> int:
    """Pairs of voxels that a map holds; the others point at the row past the last."""
    return int((np.asarray(kernel_map.senders) < rows).sum())


def count_looks(freeze: Freeze | None, *, total: int) -> int:
    """How often a guide looks in a run; 0 without one."""
    if not isinstance(freeze, GuidedFreeze):
        return 0
    return sum(is_look(freeze, step, total=total) for step in range(1, total + 1))


def add_computation(
    row: dict[str, Any], products: Products, *, looking: int
) -> dict[str, Any]:
    """The row with its products, as parts of those without freezing.

    Args:
      row: The row.
      products: Of a training step.
      looking: Products of all looks of its guide.
    """
    stages = [(0, 0), *map(tuple, row["freezings"])]
    ends = [step for step, _ in stages[1:]] + [row["steps"]]
    forward, whole = (part * row["steps"] for part in products.of_step(0))
    backward = sum(
        (end - start) * products.of_step(frozen)[1]
        for (start, frozen), end in zip(stages, ends, strict=True)
    )
    return row | {
        "backward_products": backward / whole,
        "products": (forward + backward + looking) / (forward + whole),
        "looks": looking / (forward + whole),
    }
