"""Activations of a sparse network as `[datapoints, neurons]`, on one set of clouds.

A neuron is a channel; over several time steps its value is the mean of them, of spikes
the firing rate in spikes a step, so that networks with other time steps have the same
neurons. Only the rows that are datapoints leave the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from e3dsnn_jax.analysis.datapoints import Datapoints
from e3dsnn_jax.analysis.layers import LayerPlace
from e3dsnn_jax.analysis.options import Statistics
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.pooling import cloud_mean

Layers = list[Float[np.ndarray, "datapoints _neurons"]]
"""Activations of each layer, all on the same datapoints."""


class Collected(NamedTuple):
    """What one pass of a network over the clouds gave."""

    by_choice: tuple[Layers, ...]
    """For each choice of datapoints the layers of voxels, in their order."""
    pooled: Layers
    """Every layer, those of clouds included, as means over the voxels of a cloud."""


Collect = Callable[[dict[str, Any]], Collected]


def make_collect(
    model: nn.Module,
    batches: Sequence[ShapeBatch],
    layers: tuple[LayerPlace, ...],
    choices: Sequence[Datapoints],
    *,
    clouds: bool,
    statistics: Statistics = "running",
) -> Collect:
    """Compiles the pass over a set of clouds, for variables of many checkpoints.

    Args:
      model: A network that returns logits and activations by name.
      batches: Its clouds, in batches of one device; they stay on the device.
      layers: From `find_layers`.
      choices: Datapoints of the layers of voxels, one or several sets of them.
      clouds: Collect means over clouds too.
      statistics: Those that BatchNorm takes.

    Returns:
      A function from variables to activations.
    """
    num_clouds = batches[0].labels.shape[0]
    on_voxels = [layer for layer in layers if layer.level is not None]

    @jax.jit
    def forward(
        variables: dict[str, Any],
        batch: ShapeBatch,
        rows: tuple[tuple[Int32[Array, " _slots"], ...], ...],
    ) -> tuple[list[list[Array]], list[Array]]:
        activations = apply_model(model, variables, batch, statistics)
        taken = [
            [
                mean_over_time(activations[layer.name][choice[layer.level]])
                for layer in on_voxels
                if layer.level is not None
            ]
            for choice in rows
        ]
        pooled = []
        if clouds:
            for name, level, _ in layers:
                value = activations[name]
                if level is not None:
                    value = mean_over_time(value)
                    coords = batch.levels[level].coords
                    value = cloud_mean(value, coords, num_clouds=num_clouds)
                pooled.append(value)
        return taken, pooled

    placed = [jax.device_put(batch) for batch in batches]
    rows = [
        tuple(choice.rows[number] for choice in choices)
        for number in range(len(batches))
    ]

    def collect(variables: dict[str, Any]) -> Collected:
        variables = jax.device_put(variables)
        found = [
            jax.device_get(forward(variables, batch, each))
            for batch, each in zip(placed, rows, strict=True)
        ]
        by_choice = tuple(
            [
                np.concatenate(
                    [
                        taken[place][number][each[place][layer.level] >= 0]
                        for (taken, _), each in zip(found, rows, strict=True)
                    ]
                )
                for number, layer in enumerate(on_voxels)
                if layer.level is not None
            ]
            for place in range(len(choices))
        )
        pooled = [
            np.concatenate(
                [
                    values[number][np.asarray(batch.labels) >= 0]
                    for (_, values), batch in zip(found, batches, strict=True)
                ]
            )
            for number in range(len(layers) if clouds else 0)
        ]
        return Collected(by_choice, pooled)

    return collect


def cloud_labels(
    batches: Sequence[ShapeBatch],
) -> tuple[Int[np.ndarray, " clouds"], Int[np.ndarray, " clouds"]]:
    """Class and place in the dataset of every cloud, in the order of the batches."""
    labels = np.concatenate([np.asarray(batch.labels) for batch in batches])
    indices = np.concatenate([np.asarray(batch.indices) for batch in batches])
    return labels[labels >= 0], indices[labels >= 0]


def apply_model(
    model: nn.Module,
    variables: dict[str, Any],
    batch: ShapeBatch,
    statistics: Statistics,
) -> dict[str, Array]:
    """Activations of a network by name, `logits` among them; pure.

    Args:
      model: A network that returns logits and activations by name.
      variables: Its variables.
      batch: A batch of one device.
      statistics: Those that BatchNorm takes.
    """
    by_batch = statistics == "batch"
    outputs: Any = model.apply(
        variables,
        batch.features,
        batch.levels,
        num_clouds=batch.labels.shape[0],
        train=by_batch,
        mutable=["batch_stats"] if by_batch else False,
    )
    logits, activations = outputs[0] if by_batch else outputs
    return activations | {"logits": logits}


def mean_over_time(
    values: Float[Array, "rows *time channels"],
) -> Float[Array, "rows channels"]:
    """The values of a neuron as one: their mean over the time steps, if it has any."""
    return values if values.ndim == 2 else jnp.mean(values, axis=1)
