"""The price of what a network does: accounts of the same counted operations.

* **exact**: every addition that a spike causes, every product of the layers with real
  inputs, and apart from them the updates of neurons and the traffic of memory.
* **rate**: the usual estimate, products of the first layer and, for the others, firing
  rate times T x D times the operations of a network without spikes. It is wrong by as
  much as voxels with many neighbours fire more, or less, than others.
* **paper compatible**: the rule of the published energy script (`energy_report`), for
  comparison with published rows.

What the exact account assumes:

* BatchNorm is folded in inference: its factor into the weights, its shift into one
  addition for each output and time step, counted as an update. Shortcuts add nothing,
  since a unit accumulates onto the membrane that it is added to.
* A neuron compares its potential D times in a time step; with more than one time step
  it also adds what it kept, subtracts what it spent, and multiplies by its leak.
* Memory: an addition fetches its weight, reads and writes its accumulator; a product
  fetches its weight, its input is read once a pair and its sum written once a pair, so
  that products keep a sum in place over the input channels and additions do not, which
  favours networks without spikes. Spikes are 32-bit addresses, written and read once.
  Every spike asks each kernel offset for its neighbour: an integer addition and an
  entry of a table; real inputs ask once a voxel and time step. Hardware that keeps
  weights or sums in place pays less, and weights that do not fit the memory of the
  prices cost more.
"""

from typing import NamedTuple

from e3dsnn_jax.layer_shapes import LayerShape
from e3dsnn_jax.operations import LayerTotals

_WORD = 4
"""Bytes of a weight, a membrane, an address and a table entry."""


class Prices(NamedTuple):
    """Energy of each operation, in pJ; replace what your hardware does otherwise."""

    name: str
    source: str
    multiply_accumulate: float
    add: float
    multiply: float
    integer_add: float
    weight_byte: float
    """Reading a weight, for each byte."""
    state_byte: float
    """Reading or writing a membrane, an accumulator or a real-valued input."""
    spike_byte: float
    """Writing or reading an address event."""
    table_byte: float
    """Reading a neighbour's row."""


HOROWITZ_45NM = Prices(
    name="45 nm CMOS, 0.9 V, float32, memories of 32 KiB",
    source=(
        "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC "
        "2014: float32 addition 0.9 pJ, multiplication 3.7 pJ, int32 addition 0.1 pJ, "
        "64 bits of a 32 KiB cache 20 pJ (8 KiB: 10, 1 MiB: 100, DRAM: 1300 to 2600)"
    ),
    multiply_accumulate=4.6,
    add=0.9,
    multiply=3.7,
    integer_add=0.1,
    weight_byte=2.5,
    state_byte=2.5,
    spike_byte=2.5,
    table_byte=2.5,
)
"""The constants that papers on spiking networks use; a product and its sum cost 4.6 pJ.
Accesses of memory are those of its 32 KiB cache, 20 pJ for 8 bytes."""


class LayerAccount(NamedTuple):
    """One layer over all clouds: whole numbers, and energies in pJ."""

    shape: LayerShape
    totals: LayerTotals
    neuron_levels: int
    """Binary steps of a time step (D)."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates: those of a layer with real-valued inputs."""
        if self.shape.takes_spikes:
            return 0
        return self.equivalent_macs * self.shape.time_steps

    @property
    def synaptic_operations(self) -> int:
        """Additions of weights that spikes caused."""
        return sum(self.totals.pair_spikes) * self.shape.c_out

    @property
    def equivalent_macs(self) -> int:
        """Products of one pass of the same layer without spikes, on these pairs.

        A network without spikes has no time steps, so that this is one of them.
        """
        return self.totals.pairs * self.shape.c_in * self.shape.c_out

    @property
    def dense_macs(self) -> int:
        """Products of a dense layer on the grid around each cloud, padding included."""
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
        return self.firing_rate * steps * self.equivalent_macs

    @property
    def state_bytes(self) -> int:
        """Membranes of the neurons, 4 bytes each."""
        return self.neurons * _WORD

    @property
    def updates(self) -> dict[str, int]:
        """Operations of BatchNorm's shift, biases and neurons."""
        shape, totals = self.shape, self.totals
        shifts = totals.voxels_out * shape.time_steps * shape.c_out
        steps = self.neurons * shape.time_steps
        kept = shape.time_steps > 1
        return {
            "add": shifts + steps * (self.neuron_levels + (2 if kept else 0)),
            "multiply": steps if kept else 0,
        }

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes moved, without reuse, and integer additions that find neighbours."""
        shape, totals = self.shape, self.totals
        if shape.takes_spikes:
            operations = self.synaptic_operations
            updates = 2 * self.neurons * shape.time_steps
            lookups = totals.spikes * shape.offsets
            return {
                "weights": _WORD * operations,
                "state": _WORD * (2 * operations + updates),
                "spikes": _WORD * 2 * totals.spikes,
                "addressing": _WORD * lookups,
                "address_additions": lookups,
            }
        moved = totals.pairs * (shape.c_in + 2 * shape.c_out) * shape.time_steps
        lookups = totals.voxels_in * shape.time_steps * shape.offsets
        return {
            "weights": _WORD * self.macs,
            "state": _WORD * moved,
            "spikes": 0,
            "addressing": _WORD * lookups,
            "address_additions": lookups,
        }

    def energy(self, prices: Prices) -> dict[str, float]:
        """Energy of each part over all clouds, in pJ."""
        updates, traffic = self.updates, self.traffic
        return {
            "compute": prices.multiply_accumulate * self.macs
            + prices.add * self.synaptic_operations,
            "updates": prices.add * updates["add"]
            + prices.multiply * updates["multiply"],
            "weights": prices.weight_byte * traffic["weights"],
            "state": prices.state_byte * traffic["state"],
            "spikes": prices.spike_byte * traffic["spikes"],
            "addressing": prices.table_byte * traffic["addressing"]
            + prices.integer_add * traffic["address_additions"],
        }


class Account(NamedTuple):
    """A network over some clouds."""

    layers: tuple[LayerAccount, ...]
    clouds: int
    prices: Prices
    notes: tuple[str, ...]
    """What a reader of the numbers must know: silent layers, no spikes."""


def make_account(
    shapes: tuple[LayerShape, ...],
    totals: dict[str, LayerTotals],
    *,
    clouds: int,
    spike_levels: int,
    prices: Prices = HOROWITZ_45NM,
) -> Account:
    """Joins the layers of a network with what they did.

    Args:
      shapes: From `describe_layers`.
      totals: From `add_counts`, over all batches.
      clouds: Clouds of those batches.
      spike_levels: Largest spike of a time step (D).
      prices: Energy of each operation.

    Raises:
      ValueError: If there was no cloud or no voxel.
    """
    if clouds < 1 or not totals or not next(iter(totals.values())).voxels_in:
        raise ValueError(f"no account of {clouds} clouds without any voxel: give some")
    spiking = any(shape.takes_spikes for shape in shapes)
    layers = tuple(
        LayerAccount(shape, totals[shape.name], spike_levels) for shape in shapes
    )
    return Account(layers, clouds, prices, _notes(layers, spiking))


def _notes(layers: tuple[LayerAccount, ...], spiking: bool) -> tuple[str, ...]:
    if not spiking:
        return (
            "This network does not spike: its neurons are ReLU, every layer has "
            "real-valued inputs, and every operation is a multiply-accumulate.",
        )
    taking = [layer for layer in layers if layer.shape.takes_spikes]
    silent = [layer.shape.name for layer in taking if not layer.totals.spikes]
    if len(silent) == len(taking):
        return (
            "No neuron of this network fired: it is untrained, or these are no clouds "
            "of the kind it was trained on. Its energy is that of the layers with "
            "real-valued inputs.",
        )
    if silent:
        return (
            f"{len(silent)} of {len(taking)} spiking layers never fired: "
            f"{', '.join(silent)}.",
        )
    return ()


def exact_energy(account: Account) -> dict[str, float]:
    """Energy of an average cloud in pJ, by part; `total` is their sum."""
    parts: dict[str, float] = {}
    for layer in account.layers:
        for part, energy in layer.energy(account.prices).items():
            parts[part] = parts.get(part, 0.0) + energy / account.clouds
    return parts | {"total": sum(parts.values())}


def rate_energy(account: Account) -> float:
    """Energy of an average cloud in pJ by firing rates; computation alone."""
    prices, total = account.prices, 0.0
    for layer in account.layers:
        total += prices.multiply_accumulate * layer.macs
        total += prices.add * layer.rate_estimate
    return total / account.clouds


def ann_energy(account: Account) -> float:
    """Energy of an average cloud in pJ if every layer multiplied; computation alone."""
    macs = sum(layer.equivalent_macs for layer in account.layers)
    return account.prices.multiply_accumulate * macs / account.clouds
