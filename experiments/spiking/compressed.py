"""A network with units as two smaller products each: weights, operations, accuracy."""

from typing import Any

import jax

import e3dsnn_jax
from e3dsnn_jax.analysis.projected import run_small, shrink_units
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from svcca_jax.projection import Projector


def count_right(logits: Any, batch: ShapeBatch) -> Any:
    """Clouds of a batch whose largest logit is their class."""
    return ((logits.argmax(-1) == batch.labels) & (batch.labels >= 0)).sum()


def count_clouds(batches: list[ShapeBatch]) -> int:
    """Clouds of some batches, those of padding left out."""
    return sum(int((batch.labels >= 0).sum()) for batch in batches)


def measure_compressed(
    model: Classifier,
    variables: Any,
    batches: list[ShapeBatch],
    projectors: dict[str, Projector],
) -> dict[str, Any]:
    """Replaces units by their two factors, and counts what is left of the network.

    Operations are those of the units' convolutions on these clouds: additions that the
    spikes of the whole network cause, and for the second factors products, one a voxel,
    direction and output channel.

    Args:
      model: The network.
      variables: Its variables.
      batches: Clouds.
      projectors: Of the membranes of the units to replace. A unit that would have more
        weights stays as it is.
    """
    options: dict[str, Any] = {"num_clouds": batches[0].labels.shape[0], "train": False}
    inputs = [(batch.features, batch.levels) for batch in batches]
    account = e3dsnn_jax.account(model, variables, inputs, **options)
    whole = {
        layer.shape.name: layer
        for layer in account.layers
        if layer.shape.level_out is not None
    }
    smaller = {}
    for name, unit in shrink_units(variables, projectors).items():
        shape = whole[name].shape
        if unit.weights < shape.offsets * shape.c_in * shape.c_out:
            smaller[name] = unit
    # Of the whole network, and of what is left.
    weights, additions, products = [0, 0], [0, 0], [0, 0]
    for name, layer in whole.items():
        shape, totals = layer.shape, layer.totals
        one = shape.offsets * shape.c_in * shape.c_out
        kept = smaller[name].second.shape[0] if name in smaller else shape.c_out
        sends = (
            sum(totals.pair_spikes)
            if shape.takes_spikes
            else totals.pairs * shape.c_in * shape.time_steps
        )
        sums = additions if shape.takes_spikes else products
        sums[0] += sends * shape.c_out
        sums[1] += sends * kept
        if name in smaller:
            products[1] += totals.voxels_out * shape.time_steps * kept * shape.c_out
        weights[0] += one
        weights[1] += smaller[name].weights if name in smaller else one

    @jax.jit
    def count(variables: Any, batch: ShapeBatch) -> Any:
        logits, _ = run_small(
            model, variables, batch.features, batch.levels, units=smaller, **options
        )
        return count_right(logits, batch)

    @jax.jit
    def count_whole(variables: Any, batch: ShapeBatch) -> Any:
        outputs: Any = model.apply(variables, batch.features, batch.levels, **options)
        return count_right(outputs[0], batch)

    clouds = count_clouds(batches)
    right, right_whole = (
        sum(int(function(variables, batch)) for batch in batches)
        for function in (count, count_whole)
    )
    return {
        "accuracy": right / clouds,
        "accuracy_whole": right_whole / clouds,
        "units": len(smaller),
        "weights": weights,
        "additions_per_cloud": [number / clouds for number in additions],
        "products_per_cloud": [number / clouds for number in products],
        "share_of_weights": weights[1] / weights[0],
        "share_of_additions": additions[1] / max(additions[0], 1),
    }
