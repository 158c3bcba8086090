"""Counting what a network does on real inputs, inside of its own forward pass.

`count_operations` runs a network and counts, for every linear layer, the pairs of its
kernel map and the spikes that it received: a spike of a sender is one addition for each
pair of that sender and output channel, so that

    synaptic operations = sum over pairs of (spikes of the sender) * c_out

exactly, an integer spike of n counting n. `event_executor` arrives at the same number
by counting additions, without a map. All counts are whole numbers: what a device adds
is split so that each part stays below 2**31, and the host adds the parts as Python
integers, so that no count is ever rounded, however large.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.layer_calls import LayerCall, replace_layers
from e3dsnn_jax.layer_shapes import LayerShape, Places, map_places, place_of
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import Level

_LARGEST = 2**31 - 1


class LayerCounts(NamedTuple):
    """What one layer did on one batch, as parts that the host adds up."""

    pairs: Int32[Array, ""]
    """Pairs of its map; for a linear layer, its rows. Negative: the map was cut."""
    voxels_in: Int32[Array, ""]
    voxels_out: Int32[Array, ""]
    fired: Int32[Array, "parts time levels"]
    """Neurons that sent a spike in each binary step."""
    pair_spikes: Int32[Array, "parts time"]
    """Spikes, each times the pairs of its voxel."""


class LayerTotals(NamedTuple):
    """What one layer did on all batches; Python integers do not overflow."""

    pairs: int = 0
    voxels_in: int = 0
    voxels_out: int = 0
    dense_positions: int = 0
    """Cells of the grids around the outputs, times the kernel's offsets."""
    fired: tuple[tuple[int, ...], ...] = ()
    """Spikes of each time step and binary step."""
    pair_spikes: tuple[int, ...] = ()
    """Spikes of each time step, each times the pairs of its voxel."""

    @property
    def spikes(self) -> int:
        """Binary spikes that the layer received."""
        return sum(map(sum, self.fired))


def count_operations(
    model: nn.Module,
    variables: dict[str, Any],
    features: Float[Array, "voxels channels"],
    levels: tuple[Level, ...],
    *,
    spike_levels: int,
    **options: Any,
) -> tuple[Any, dict[str, LayerCounts]]:
    """Runs a network and counts what it does; pure, to be compiled as one program.

    Args:
      model: The network, called with features and levels.
      variables: Its variables.
      features: Features of a batch.
      levels: Its levels.
      spike_levels: Largest spike of a time step (D).
      **options: Further arguments of the call.

    Returns:
      What the network returns, and the counts by layer.
    """
    counts: dict[str, LayerCounts] = {}
    levels = jax.tree.map(jnp.asarray, levels)  # the network passes these very arrays
    places = map_places(levels)
    degrees: dict[int, Int32[Array, " rows"]] = {}

    def layer(call: LayerCall) -> Array:
        counts[call.name] = _count_layer(call, levels, places, degrees, spike_levels)
        return call.run()

    outputs = replace_layers(model, variables, features, levels, layer=layer, **options)
    return outputs, counts


def count_spikes_and_pairs(
    spikes: Float[Array, "rows time channels"],
    degree: Int32[Array, " rows"],
    real: Bool[Array, " rows"],
    *,
    levels: int,
    most_pairs: int,
) -> tuple[Int32[Array, "parts time levels"], Int32[Array, "parts time"]]:
    """Spikes of each binary step, and spikes times pairs of each time step, in parts.

    Args:
      spikes: Whole numbers 0..levels.
      degree: Pairs that each row takes part in.
      real: Rows that are no padding.
      levels: Largest spike (D).
      most_pairs: Upper bound of `degree`.
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
    pad = parts * per_part - rows
    by_row = jnp.pad(by_row, ((0, pad), (0, 0), (0, 0)))
    weighed = jnp.pad(weighed, ((0, pad), (0, 0)))
    fired = by_row.reshape(parts, per_part, time, levels).sum(1)
    return fired, weighed.reshape(parts, per_part, time).sum(1)


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
      ValueError: If a map was too small for its pairs.
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
        grid = voxels_out if shape.level_out is None else cells[shape.level_out]
        added[shape.name] = LayerTotals(
            before.pairs + int(count.pairs),
            before.voxels_in + int(count.voxels_in),
            before.voxels_out + voxels_out,
            before.dense_positions + grid * shape.offsets,
            tuple(map(tuple, fired)),
            tuple(pair_spikes),
        )
    return added


def grid_cells(coords: Int[np.ndarray, "voxels axes"]) -> int:
    """Cells of the grids, from 0 to the last voxel, of all clouds of a batch."""
    real = coords[coords[:, 0] >= 0].astype(object)
    total = 0
    for cloud in sorted(set(real[:, 0])):
        top = real[real[:, 0] == cloud, 1:].max(0)
        total += int(np.prod(top + 1))
    return total


def _count_layer(
    call: LayerCall,
    levels: tuple[Level, ...],
    places: Places,
    degrees: dict[int, Array],
    spike_levels: int,
) -> LayerCounts:
    inputs = call.inputs if call.inputs.ndim == 3 else call.inputs[:, None]
    if call.kernel_map is None:
        # Padding rows and padding clouds hold zeros alone.
        real = (inputs != 0).any((1, 2))
        degree = real.astype(jnp.int32)
        pairs = voxels_in = voxels_out = jnp.sum(real, dtype=jnp.int32)
        most = 1
    else:
        level_in, level_out = place_of(call, places)
        assert level_in is not None
        assert level_out is not None
        real = voxel_mask(levels[level_in].coords)
        key = id(call.kernel_map.senders)
        if key not in degrees:
            degrees[key] = pairs_of_senders(call.kernel_map, len(inputs))
        degree = degrees[key]
        cut = call.kernel_map.blocks_needed > call.kernel_map.capacity
        pairs = jnp.where(cut, -1, jnp.sum(degree))
        voxels_in = jnp.sum(real, dtype=jnp.int32)
        voxels_out = jnp.sum(voxel_mask(levels[level_out].coords), dtype=jnp.int32)
        most = call.kernel.shape[0]
    if call.takes_spikes:
        fired, pair_spikes = count_spikes_and_pairs(
            inputs, degree, real, levels=spike_levels, most_pairs=most
        )
    else:
        fired = jnp.zeros((1, inputs.shape[1], spike_levels), jnp.int32)
        pair_spikes = jnp.zeros((1, inputs.shape[1]), jnp.int32)
    return LayerCounts(pairs, voxels_in, voxels_out, fired, pair_spikes)
