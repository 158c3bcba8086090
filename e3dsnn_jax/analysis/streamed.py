"""Layers of two networks compared on every voxel of many clouds, none of them stored.

Both networks run over each batch, and means and co-moments of each pair of layers are
added up (`svcca_jax.moments`): no activations are kept, whatever the clouds.
"""

import functools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3dsnn_jax.analysis.activations import apply_model, mean_over_time
from e3dsnn_jax.analysis.layers import LayerPlace
from e3dsnn_jax.analysis.options import Statistics
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.pooling import voxel_mask
from svcca_jax.measure import Measure
from svcca_jax.moments import Moments, init_moments, update_moments
from svcca_jax.pairwise import pairwise_from_moments


def compare_streamed(
    model: nn.Module,
    batches: Iterable[ShapeBatch],
    layers: tuple[LayerPlace, ...],
    ours: dict[str, Any],
    others: dict[str, Any],
    *,
    measure: Measure,
    statistics: Statistics = "running",
) -> Float[np.ndarray, " layers"]:
    """Similarity of each layer of a network with itself under other variables.

    Args:
      model: The network.
      batches: Clouds, in batches of one device; read once, one after the other.
      layers: Layers on voxels.
      ours: Variables of the one network.
      others: Variables of the other.
      measure: A measure that moments suffice for.
      statistics: Those that BatchNorm takes.

    Raises:
      ValueError: If there are no batches, or the measure needs activations.
    """
    moments = tuple(init_moments((layer.neurons,) * 2) for layer in layers)
    ours, others = jax.device_put((ours, others))
    seen = 0
    for batch in batches:
        moments = _update(model, layers, statistics, moments, ours, others, batch)
        seen += 1
    if not seen:
        raise ValueError("there are no clouds to compare layers on")
    grids = [pairwise_from_moments(each, measure=measure) for each in moments]
    return np.array([float(grid[0, 1]) for grid in grids], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _update(
    model: nn.Module,
    layers: tuple[LayerPlace, ...],
    statistics: Statistics,
    moments: tuple[Moments, ...],
    ours: dict[str, Any],
    others: dict[str, Any],
    batch: ShapeBatch,
) -> tuple[Moments, ...]:
    runs = [apply_model(model, each, batch, statistics) for each in (ours, others)]
    updated = []
    for (name, level, _), before in zip(layers, moments, strict=True):
        pair = [mean_over_time(jnp.asarray(activations[name])) for activations in runs]
        mask: Array = voxel_mask(batch.levels[level or 0].coords)
        updated.append(update_moments(before, pair, mask))
    return tuple(updated)
