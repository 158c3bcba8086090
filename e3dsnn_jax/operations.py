"""Counting what a network does on real inputs, inside of its own forward pass.

`count_operations` runs a network and counts, for every linear layer, the pairs of its
kernel map and the spikes that it received: a spike of a sender is one addition for each
pair of that sender and output channel, so that

    synaptic operations = sum over pairs of (spikes of the sender) * c_out

exactly, an integer spike of n counting n. `event_executor` arrives at the same number
by counting additions, without a map. A linear layer pairs every voxel, or cloud, with
itself, the silent ones too. All counts are whole numbers: what a device adds
is split so that each part stays below 2**31, and the host adds the parts as Python
integers, so that no count is ever rounded, however large.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from e3dsnn_jax.events import are_spikes
from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.layer_calls import LayerCall, replace_layers, spike_levels_of
from e3dsnn_jax.layer_shapes import (
    LayerShape,
    Places,
    check_called_once,
    map_places,
    place_of,
)
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import Level

_LARGEST = 2**31 - 1


class LayerCounts(NamedTuple):
    """What one layer did on one batch, as parts that the host adds up."""

    pairs: Int32[Array, ""]
    """Pairs of its map; of a linear layer its voxels. Negative: the map was cut."""
    voxels_in: Int32[Array, ""]
    voxels_out: Int32[Array, ""]
    fired: Int32[Array, "parts time levels"]
    """Neurons that sent a spike in each binary step."""
    pair_spikes: Int32[Array, "parts time"]
    """Spikes, each times the pairs of its voxel."""
    askers: Int32[Array, ""]
    """Voxels that sent any spike, added over the binary steps; of real inputs, all
    voxels in each time step."""
    no_spikes: Int32[Array, " channels"]
    """Values that are no spike, where spikes should be: not a whole number 0..D."""


class LayerTotals(NamedTuple):
    """What one layer did on all batches; Python integers do not overflow."""

    pairs: int = 0
    voxels_in: int = 0
    voxels_out: int = 0
    dense_positions: int = 0
    """Cells of the grids around the outputs, times the kernel's offsets; of an inverse
    convolution around the inputs, each of which meets every offset."""
    fired: tuple[tuple[int, ...], ...] = ()
    """Spikes of each time step and binary step."""
    pair_spikes: tuple[int, ...] = ()
    """Spikes of each time step, each times the pairs of its voxel."""
    askers: int = 0
    """Voxels that asked for their neighbours, added over the (binary) steps."""

    @property
    def spikes(self) -> int:
        """Binary spikes that the layer received."""
        return sum(map(sum, self.fired))


def count_operations(
    model: nn.Module,
    variables: dict[str, Any],
    features: Float[Array, "voxels channels"],
    levels: tuple[Level, ...],
    *arguments: Any,
    spike_levels: int | None = None,
    **options: Any,
) -> tuple[Any, dict[str, LayerCounts]]:
    """Runs a network and counts what it does; pure, to be compiled as one program.

    Args:
      model: The network, called with features and levels.
      variables: Its variables.
      features: Features of a batch.
      levels: Its levels.
      *arguments: What the network is called with behind these.
      spike_levels: Largest spike of a time step (D); that of the network's `neuron` if
        omitted.
      **options: Further arguments of the call.

    Returns:
      What the network returns, and the counts by layer.

    Raises:
      ValueError: If a layer is called twice, its voxels are not known, or
        `spike_levels` is not what the network has.
    """
    most = spike_levels_of(model, spike_levels)
    counts: dict[str, LayerCounts] = {}
    levels = jax.tree.map(jnp.asarray, levels)  # the network passes these very arrays
    places = map_places(levels, options.get("num_clouds"))
    degrees: dict[int, Int32[Array, " rows"]] = {}

    def layer(call: LayerCall) -> Array:
        check_called_once(call.name, counts)
        counts[call.name] = _count_layer(call, levels, places, degrees, most)
        return call.run()

    inputs = features, levels, *arguments
    outputs = replace_layers(model, variables, *inputs, layer=layer, **options)
    return outputs, counts


def count_spikes_and_pairs(
    spikes: Float[Array, "rows time channels"],
    degree: Int32[Array, " rows"],
    real: Bool[Array, " rows"],
    *,
    levels: int,
    most_pairs: int,
) -> tuple[
    Int32[Array, "parts time levels"], Int32[Array, "parts time"], Int32[Array, ""]
]:
    """Counts the spikes of a layer's inputs.

    Args:
      spikes: Whole numbers 0..levels.
      degree: Pairs that each row takes part in.
      real: Rows that are no padding.
      levels: Largest spike (D).
      most_pairs: Upper bound of `degree`.

    Returns:
      Spikes of each binary step, and spikes times pairs of each time step, in parts;
      and rows with any spike, added over the binary steps.
    """
    rows, time, channels = spikes.shape
    per_part = max(_LARGEST // max(most_pairs * channels * levels, 1), 1)
    parts = max(-(-rows // per_part), 1)
    per_part = min(per_part, max(rows, 1))
    slots = jnp.arange(levels).astype(spikes.dtype)
    above = spikes[..., None] > slots[None, None, None]
    # Rows by binary steps first: few numbers are left to be weighed and split.
    by_row = jnp.sum(above & real[:, None, None, None], axis=2, dtype=jnp.int32)
    weighed = jnp.sum(by_row, axis=2) * degree[:, None]
    askers = jnp.sum(by_row > 0, dtype=jnp.int32)
    pad = parts * per_part - rows
    by_row = jnp.pad(by_row, ((0, pad), (0, 0), (0, 0)))
    weighed = jnp.pad(weighed, ((0, pad), (0, 0)))
    fired = by_row.reshape(parts, per_part, time, levels).sum(1)
    return fired, weighed.reshape(parts, per_part, time).sum(1), askers


def pairs_of_senders(kernel_map: KernelMap, rows: int) -> Int32[Array, " {rows}"]:
    """Pairs that each input row takes part in."""
    start = jnp.zeros(rows, jnp.int32)
    return start.at[jnp.ravel(kernel_map.senders)].add(1, mode="drop")


def add_counts(
    totals: dict[str, LayerTotals],
    counts: dict[str, LayerCounts],
    shapes: tuple[LayerShape, ...],
    levels: tuple[Level, ...],
) -> dict[str, LayerTotals]:
    """Adds one batch to the totals of the batches before, in the order of the layers.

    Args:
      totals: Totals so far; an empty dictionary before the first batch.
      counts: From `count_operations`.
      shapes: The layers.
      levels: The batch's levels, on the host.

    Raises:
      ValueError: If a map was too small for its pairs, or a layer that takes spikes
        received other values.
    """
    cells = [grid_cells(np.asarray(level.coords)) for level in levels]
    added = {}
    for shape in shapes:
        count = jax.device_get(counts[shape.name])
        if int(count.pairs) < 0:
            raise ValueError(
                f"{shape.name}: its kernel map overflows, so that pairs are missing; "
                "raise the capacity of the levels"
            )
        wrong = int(count.no_spikes.astype(object).sum())
        if wrong:
            raise ValueError(
                f"{shape.name}: {wrong} of its inputs are no spikes, which are whole "
                f"numbers from 0 to {count.fired.shape[-1]}; give the levels of the "
                "network's neurons as spike_levels"
            )
        before = totals.get(shape.name, LayerTotals())
        fired = count.fired.astype(object).sum(0).tolist()
        pair_spikes = count.pair_spikes.astype(object).sum(0).tolist()
        if before.fired:
            fired = [
                [a + b for a, b in zip(one, other, strict=True)]
                for one, other in zip(before.fired, fired, strict=True)
            ]
            pair_spikes = [
                a + b for a, b in zip(before.pair_spikes, pair_spikes, strict=True)
            ]
        voxels_out = int(count.voxels_out)
        if shape.level_in is None or shape.level_out is None:
            grid = voxels_out
        else:  # of an inverse convolution the inputs, which are the coarser ones
            grid = cells[max(shape.level_in, shape.level_out)]
        added[shape.name] = LayerTotals(
            pairs=before.pairs + int(count.pairs),
            voxels_in=before.voxels_in + int(count.voxels_in),
            voxels_out=before.voxels_out + voxels_out,
            dense_positions=before.dense_positions + grid * shape.offsets,
            fired=tuple(map(tuple, fired)),
            pair_spikes=tuple(pair_spikes),
            askers=before.askers + int(count.askers),
        )
    return added


def grid_cells(coords: Int[np.ndarray, "voxels axes"]) -> int:
    """Cells of the grids, from 0 to the last voxel, of all clouds of a batch."""
    real = coords[coords[:, 0] >= 0].astype(np.int64)
    if not len(real):
        return 0
    ends = np.zeros((real[:, 0].max() + 1, real.shape[1] - 1), np.int64)
    np.maximum.at(ends, real[:, 0], real[:, 1:] + 1)
    # Python integers: a grid may have more cells than 64 bits count.
    return sum(math.prod(cells) for cells in ends.tolist())


def _count_layer(
    call: LayerCall,
    levels: tuple[Level, ...],
    places: Places,
    degrees: dict[int, Array],
    spike_levels: int,
) -> LayerCounts:
    inputs = call.inputs if call.inputs.ndim == 3 else call.inputs[:, None]
    level_in, level_out = place_of(call, places)
    if level_in is None or level_out is None:
        real = real_out = _cloud_mask(jnp.asarray(levels[0].coords), len(inputs))
    else:
        real, real_out = (voxel_mask(levels[n].coords) for n in (level_in, level_out))
    voxels_in, voxels_out = (jnp.sum(m, dtype=jnp.int32) for m in (real, real_out))
    if call.kernel_map is None:
        degree, pairs, most = real.astype(jnp.int32), voxels_in, 1
    else:
        key = id(call.kernel_map.senders)
        if key not in degrees:
            degrees[key] = pairs_of_senders(call.kernel_map, len(inputs))
        degree = degrees[key]
        cut = call.kernel_map.blocks_needed > call.kernel_map.capacity
        pairs = jnp.where(cut, -1, jnp.sum(degree))
        most = call.kernel.shape[0]
    time = inputs.shape[1]
    if call.takes_spikes:
        fired, pair_spikes, askers = count_spikes_and_pairs(
            inputs, degree, real, levels=spike_levels, most_pairs=most
        )
        held = jnp.asarray(are_spikes(inputs, spike_levels))
        no_spikes = jnp.sum(~held, (0, 1), dtype=jnp.int32)
    else:
        fired = jnp.zeros((1, time, spike_levels), jnp.int32)
        pair_spikes = jnp.zeros((1, time), jnp.int32)
        askers, no_spikes = voxels_in * time, jnp.zeros(1, jnp.int32)
    return LayerCounts(
        pairs, voxels_in, voxels_out, fired, pair_spikes, askers, no_spikes
    )


def _cloud_mask(
    coords: Int32[Array, "voxels axes"], clouds: int
) -> Bool[Array, " {clouds}"]:
    """Clouds that have voxels; the others fill up the batch."""
    batch = jnp.where(coords[:, 0] < 0, clouds, coords[:, 0])
    return jnp.zeros(clouds, bool).at[batch].set(True, mode="drop")
