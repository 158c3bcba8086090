"""What one layer did: its operations, its traffic of memory, and what they cost.

The rules are those of `energy.ASSUMPTIONS`.
"""

from typing import NamedTuple

from e3dsnn_jax.layer_shapes import LayerShape
from e3dsnn_jax.operations import LayerTotals
from e3dsnn_jax.prices import Prices, choose_memory

_WORD = 4
"""Bytes of a weight, a membrane, an address and a table entry."""


class LayerAccount(NamedTuple):
    """One layer over all clouds: whole numbers, and energies in pJ."""

    shape: LayerShape
    totals: LayerTotals
    neuron_levels: int
    """Binary steps of a time step (D)."""
    clouds: int
    """Clouds of the totals."""
    classes: int = 0
    """Classes onto which each spike is added as well, where the head takes spikes."""
    read: bool = True
    """Whether anything reads what the layer itself puts out; if not, it is left out."""

    @property
    def channels(self) -> int:
        """Channels that are computed."""
        return self.shape.c_out if self.read else 0

    @property
    def outputs(self) -> int:
        """Sums that an input is added to for each pair: channels, and classes."""
        return self.channels + self.classes

    @property
    def macs(self) -> int:
        """Multiply-accumulates: those of a layer with real-valued inputs."""
        if self.shape.takes_spikes:
            return 0
        products = self.totals.pairs * self.shape.c_in * self.outputs
        return products * self.shape.time_steps

    @property
    def synaptic_operations(self) -> int:
        """Additions of weights that spikes caused."""
        return sum(self.totals.pair_spikes) * self.outputs

    @property
    def equivalent_macs(self) -> int:
        """Products of one pass of the same layer without spikes, on these pairs.

        A network without spikes has no time steps, so that this is one of them.
        """
        return self.totals.pairs * self.shape.c_in * self.shape.c_out

    @property
    def dense_macs(self) -> int:
        """Products of a dense layer on the grid around each cloud.

        Every offset is multiplied at every output, also where it reaches out of the
        grid; an inverse convolution multiplies every input by every offset.
        """
        channels = self.shape.c_in * self.shape.c_out
        return self.totals.dense_positions * channels

    @property
    def neurons(self) -> int:
        """Neurons that send spikes into the layer, over all clouds."""
        if not self.shape.takes_spikes:
            return 0
        return self.totals.voxels_in * self.shape.c_in

    @property
    def firing_rates(self) -> tuple[tuple[float, ...], ...]:
        """Share of neurons that fire in each binary step, by time step."""
        neurons = max(self.neurons, 1)
        return tuple(tuple(n / neurons for n in step) for step in self.totals.fired)

    @property
    def firing_rate(self) -> float:
        """Spikes of a neuron and binary step."""
        steps = self.shape.time_steps * self.neuron_levels
        return self.totals.spikes / max(self.neurons * steps, 1)

    @property
    def rate_estimate(self) -> float:
        """Additions that firing rate times operations would make."""
        steps = self.shape.time_steps * self.neuron_levels
        pairs = self.totals.pairs * self.shape.c_in * self.outputs
        return self.firing_rate * steps * pairs

    @property
    def own_neurons(self) -> int:
        """Neurons that no layer before has counted."""
        return 0 if self.shape.same_input_as else self.neurons

    @property
    def membrane_bytes(self) -> int:
        """Membranes of the neurons, 4 bytes each, over all clouds."""
        return self.own_neurons * _WORD

    @property
    def updates(self) -> dict[str, int]:
        """Operations of BatchNorm's shift, biases and neurons."""
        shape, totals = self.shape, self.totals
        shifts = totals.voxels_out * shape.time_steps * self.channels
        steps = self.own_neurons * shape.time_steps
        kept = shape.time_steps > 1
        return {
            "add": shifts + steps * (self.neuron_levels + (2 if kept else 0)),
            "multiply": steps if kept else 0,
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each array of the layer, for an average cloud, rounded up."""
        shape, totals = self.shape, self.totals
        neurons = totals.voxels_in * shape.c_in if self.outputs else 0
        entries = {
            "sums": totals.voxels_out * self.channels + self.clouds * self.classes,
            "membranes": neurons,
            "inputs": totals.spikes if shape.takes_spikes else neurons,
            "table": totals.voxels_in * shape.offsets if shape.offsets > 1 else 0,
        }
        weights = {"weights": _WORD * shape.offsets * shape.c_in * self.outputs}
        return weights | {
            name: -(-_WORD * count // self.clouds) for name, count in entries.items()
        }

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes read or written of each array over all clouds, without any reuse."""
        shape, totals = self.shape, self.totals
        operations = self.macs + self.synaptic_operations
        senders = totals.voxels_in * shape.c_in * shape.time_steps
        if not self.outputs:
            senders = 0
        inputs = totals.spikes if shape.takes_spikes else senders
        kept = shape.takes_spikes and shape.time_steps > 1
        first = shape.same_input_as is None  # who receives them again only reads
        return {
            "weights": _WORD * operations,
            "sums": _WORD * 2 * operations,
            "membranes": _WORD * senders * (1 + kept) * first,
            "inputs": _WORD * inputs * (1 + first),
            "table": _WORD * self.lookups,
        }

    @property
    def lookups(self) -> int:
        """Neighbours that were asked for, an integer addition each.

        A kernel of one offset, such as a linear layer, meets its own voxel alone.
        """
        offsets = self.shape.offsets
        return self.totals.askers * offsets if offsets > 1 else 0

    def memories(self, prices: Prices) -> dict[str, str]:
        """The memory in which each array lies."""
        return {
            name: choose_memory(prices, size).name for name, size in self.sizes.items()
        }

    def energy(self, prices: Prices) -> dict[str, float]:
        """Energy of each part over all clouds, in pJ.

        `state` is that of sums, membranes and real-valued inputs, `addressing` that of
        the table and of finding the entries in it.
        """
        updates, traffic, sizes = self.updates, self.traffic, self.sizes
        moved = {
            name: choose_memory(prices, sizes[name]).pj_per_byte * count
            for name, count in traffic.items()
        }
        spiking = self.shape.takes_spikes
        state = moved["sums"] + moved["membranes"]
        return {
            "compute": prices.multiply_accumulate * self.macs
            + prices.add * self.synaptic_operations,
            "updates": prices.add * updates["add"]
            + prices.multiply * updates["multiply"],
            "weights": moved["weights"],
            "state": state if spiking else state + moved["inputs"],
            "spikes": moved["inputs"] if spiking else 0.0,
            "addressing": moved["table"] + prices.integer_add * self.lookups,
        }
