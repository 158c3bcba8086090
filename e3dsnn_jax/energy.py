"""The price of what a network does: accounts of the same counted operations.

* **exact**: every addition that a spike causes, every product of the layers with real
  inputs, and apart from them the updates of neurons and the traffic of memory.
* **rate**: the usual estimate, products of the layers with real inputs (the first one
  and the head) and, for the others, firing rates times T x D times the operations of a
  network without spikes. It is wrong by as much as voxels with many neighbours fire
  more, or less, than others.
* **paper compatible**: the rule of the published energy script (`energy_report`), for
  comparison with published rows.

Memory is priced by one rule for spikes and for real values, additions and products, so
that a network can be compared with its twin without spikes: each scalar operation
fetches its weight, and reads and writes the sum that it adds to; each input is written
once and read once; each array lies in the smallest memory that holds it. `ASSUMPTIONS`
says all of it, and is printed with every account.
"""

from typing import Any, NamedTuple

from e3dsnn_jax.layer_account import LayerAccount
from e3dsnn_jax.layer_shapes import LayerShape
from e3dsnn_jax.operations import LayerTotals
from e3dsnn_jax.prices import HOROWITZ_45NM, Prices

ASSUMPTIONS = (
    "BatchNorm is folded: its factor into the weights, its shift into one addition for "
    "each output and time step, counted as an update of a neuron, whose memory traffic "
    "is left out. Shortcuts add nothing: a unit adds onto the membrane that it is "
    "added to. The mean over the voxels of a cloud is left out.",
    "A neuron compares its potential D times in a time step; with more than one time "
    "step it also adds what it kept, subtracts what it spent, and multiplies by its "
    "leak. The comparison of a ReLU is left out.",
    "Every addition of a spike and every product fetches its weight, and reads and "
    "writes its sum: nothing is kept in registers, for spikes and real values alike. "
    "Hardware that keeps weights or sums in place pays less.",
    "What sends an input, a neuron or a ReLU, reads its sum or membrane once a time "
    "step; with more than one time step it also writes back what it kept.",
    "An input is written once, and read once by each layer that takes it: a spike as "
    "an address of 4 bytes, a real value as 4 bytes. Zeros among real values are not "
    "skipped.",
    "A voxel with any spike in a binary step, or with real inputs in a time step, asks "
    "each kernel offset for its neighbour: an integer addition and 4 bytes of a table. "
    "Linear layers ask for none.",
    "Weights, sums, membranes, inputs and table of a layer each lie in the smallest "
    "memory of the prices that holds those of an average cloud, 4 bytes an entry.",
    "Membranes are counted one for each neuron, even where the hardware could share "
    "one between a shortcut and a neuron; sums that no neuron reads, those of the last "
    "block and of the pooling, are not counted among them.",
)
"""What the exact account assumes, for those who read its numbers."""


class Account(NamedTuple):
    """A network over some clouds."""

    layers: tuple[LayerAccount, ...]
    clouds: int
    prices: Prices
    notes: tuple[str, ...]
    """What a reader of the numbers must know: silent layers, no spikes."""
    network: dict[str, Any] | None = None
    """What network it is, from `network_account.describe_network`."""


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
        LayerAccount(shape, totals[shape.name], spike_levels, clouds)
        for shape in shapes
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
    """Energy of an average cloud in pJ by firing rates; computation alone.

    Layers with real-valued inputs, the head among them, count with their products.
    """
    prices, total = account.prices, 0.0
    for layer in account.layers:
        total += prices.multiply_accumulate * layer.macs
        total += prices.add * layer.rate_estimate
    return total / account.clouds


def ann_energy(account: Account) -> float:
    """Energy of an average cloud in pJ if every layer multiplied; computation alone."""
    macs = sum(layer.equivalent_macs for layer in account.layers)
    return account.prices.multiply_accumulate * macs / account.clouds
