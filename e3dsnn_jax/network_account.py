"""One call from a network and its inputs to the account of what it does."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.energy import Account, make_account
from e3dsnn_jax.layer_calls import spike_levels_of
from e3dsnn_jax.layer_shapes import LayerShape, describe_layers
from e3dsnn_jax.operations import LayerTotals, add_counts, count_operations
from e3dsnn_jax.prices import HOROWITZ_45NM, Prices
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.spike_readout import account_on_spikes, readout_units


def account(
    model: nn.Module,
    variables: dict[str, Any],
    batches: Iterable[tuple[Any, ...]],
    *,
    prices: Prices = HOROWITZ_45NM,
    spike_levels: int | None = None,
    head_on_spikes: bool = False,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> Account:
    """Counts and prices what a network does on real inputs, on one device.

    Args:
      model: Any network of `SparseConv`, `SpikeDense`, `nn.Dense` and BatchNorm.
      variables: Its variables.
      batches: What the network is called with, batch by batch: features, levels, and
        whatever else it takes by position. Batches of one capacity share a program.
      prices: Energy of each operation.
      spike_levels: Largest spike of a time step (D), for a network without `neuron`.
      head_on_spikes: Account for a classifier whose head takes spikes too.
      on_batch: Called with the batches done after each one.
      **options: Further arguments of the call, such as `num_clouds` and `train=False`.

    Returns:
      The account; `energy_report.format_account` makes a table of it, and
      `describe_account` JSON.

    Raises:
      ValueError: If the variables do not fit the network, a layer cannot be counted, an
        output is not finite, or there is no voxel.
    """
    most = spike_levels_of(model, spike_levels)
    if head_on_spikes:
        readout_units(model)  # raises where there are none

    @jax.jit
    def count(variables, *inputs):
        outputs, counts = count_operations(
            model, variables, *inputs, spike_levels=most, **options
        )
        answer = outputs[0] if isinstance(outputs, tuple) else outputs
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(answer)]
        return functools.reduce(jnp.logical_and, finite), counts

    variables = jax.device_put(variables)
    shapes: tuple[LayerShape, ...] | None = None
    totals: dict[str, LayerTotals] = {}
    clouds = 0
    for done, batch in enumerate(batches, start=1):
        levels = batch[1]
        if shapes is None:
            shapes = describe_layers(model, variables, *batch, **options)
        finite, counts = count(variables, *batch)
        if not finite:
            raise ValueError(
                f"batch {done}: the network answers with numbers that are not finite: "
                "its weights are broken or its training has diverged"
            )
        totals = add_counts(totals, counts, shapes, levels)
        cloud = np.asarray(levels[0].coords)[:, 0]
        clouds += len(np.unique(cloud[cloud >= 0]))
        if on_batch is not None:
            on_batch(done)
    found = make_account(
        shapes or (), totals, clouds=clouds, spike_levels=most, prices=prices
    )
    found = found._replace(network=describe_network(model))
    return account_on_spikes(model, found) if head_on_spikes else found


def describe_network(model: nn.Module) -> dict[str, Any]:
    """What a network is, as JSON: its size and its neurons, as far as it tells."""
    size, neuron = (getattr(model, name, None) for name in ("architecture", "neuron"))
    told: dict[str, Any] = dict.fromkeys(("time_steps", "levels", "decay", "relu"))
    if isinstance(neuron, Neuron):
        told = {name: getattr(neuron, name) for name in told}
    names: list[str] = []
    if isinstance(size, Architecture):
        told = {"architecture": dataclasses.asdict(size), **told}
        # Without normals it is the same network on fewer features.
        same = dataclasses.replace(size, in_channels=VARIANTS["T"].in_channels)
        names = [name for name, published in VARIANTS.items() if published == same]
    return {
        "model": type(model).__name__,
        "variant": names[0] if names else None,
        "architecture": None,
        **told,
    }
