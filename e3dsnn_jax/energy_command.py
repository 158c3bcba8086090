"""`e3dsnn energy`: the account of a trained network on the clouds of a data set."""

import sys
from collections.abc import Callable
from pathlib import Path

from e3dsnn_jax import figures
from e3dsnn_jax.data.clouds import ShapeDataset, Split, choose_clouds
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.energy import Account
from e3dsnn_jax.energy_report import describe_account
from e3dsnn_jax.network_account import account
from e3dsnn_jax.prices import HOROWITZ_45NM, Prices, read_prices
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.checkpoints import Which
from e3dsnn_jax.training.datasets import open_split
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.run_folder import write_json
from e3dsnn_jax.training.saved import (
    PUBLISHED_VOXEL_SIZE,
    SavedNetwork,
    load_run,
    load_weights,
)


def account_network(
    network: SavedNetwork,
    dataset: ShapeDataset,
    *,
    prices: Prices = HOROWITZ_45NM,
    head_on_spikes: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> Account:
    """Counts what a network does on every cloud of a dataset, on one device.

    Args:
      network: From `load_run` or `load_weights`.
      dataset: Clouds, each voxelised once as in an evaluation.
      prices: Energy of each operation.
      head_on_spikes: Account for the network with a head that takes spikes.
      on_batch: Called with the batches done and their number after each one.

    Raises:
      ValueError: If the variables do not fit the network, or a cloud is empty, not
        finite, or larger than coordinates can tell.
    """
    batches, number = open_batches(network, dataset)
    return account(
        open_model(network),
        network.variables,
        ((batch.features, batch.levels) for batch in batches),
        prices=prices,
        head_on_spikes=head_on_spikes,
        on_batch=None if on_batch is None else lambda done: on_batch(done, number),
        num_clouds=network.batch_size,
        train=False,
    )


def run_energy(
    source: Path,
    *,
    data: Path | None = None,
    split: Split = "test",
    clouds: int | None = None,
    checkpoint: Which = "last",
    voxel_size: float = PUBLISHED_VOXEL_SIZE,
    neuron: Neuron | None = None,
    head_on_spikes: bool = False,
    prices: Path | None = None,
    out: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[Account, Path]:
    """Accounts for a saved network; writes `energy.json` and `figures/energy.png`.

    Args:
      source: Folder of a run, or a weights file.
      data: Folder of a data set; the run's own, or the embedded shapes, if omitted.
      split: Part of it.
      clouds: How many of its clouds; all of them if omitted.
      checkpoint: For a run: the latest checkpoint or the best one.
      voxel_size: For a weights file: the edge of a voxel.
      neuron: For a weights file: its neurons, which it does not tell; the published
        ones, with a note, if omitted.
      head_on_spikes: Account for the network with a head that takes spikes.
      prices: JSON file with the fields of `Prices`; those of `HOROWITZ_45NM` if
        omitted.
      out: Folder to write to; if omitted the run, for other data or another split
        `energy_<data>_<split>` in it, or `<weights>_energy`. With `head_on_spikes`
        `energy_head_on_spikes`, or such a name behind it.
      on_batch: Called with the batches done and their number after each one.

    Returns:
      The account, and the folder.

    Raises:
      ValueError: As `account_network`, if network, data or prices cannot be read, or
        neurons are given for a run.
    """
    table = HOROWITZ_45NM if prices is None else read_prices(prices)
    notes: list[str] = []
    if source.suffix in (".pth", ".npz"):
        network = load_weights(source, voxel_size=voxel_size, neuron=neuron)
        print(network.report, file=sys.stderr)
        if neuron is None:
            taken = network.model.neuron
            notes.append(
                "The file does not tell its neurons; taken as T x D = "
                f"{taken.time_steps} x {taken.levels}, those of the published network. "
                "Name others by --neuron.time-steps, --neuron.levels, --neuron.relu."
            )
        folder = source.with_name(f"{source.stem}_energy")
        dataset = open_dataset(data, split)
    else:
        if neuron is not None:
            raise ValueError(
                f"{source}: a run tells its own neurons, so leave --neuron.* out; they "
                "are for weights files"
            )
        network = load_run(source, which=checkpoint)
        dataset, name = open_split(network.data, network.class_names, data, split)
        # As evaluations of other data: the run's own account stays.
        folder = source / f"energy_{name}" if name else source
    if head_on_spikes:  # the account of the network as it is stays
        of_run = folder == source
        name = "energy" if of_run else folder.name
        folder = (folder if of_run else folder.parent) / f"{name}_head_on_spikes"
    found = account_network(
        network,
        choose_clouds(dataset, clouds),
        prices=table,
        head_on_spikes=head_on_spikes,
        on_batch=on_batch,
    )
    if network.step == 0:
        notes.append(
            "The run has not been trained yet: this is its checkpoint of step 0."
        )
    found = found._replace(notes=(*notes, *found.notes))
    folder = out or folder
    folder.mkdir(parents=True, exist_ok=True)
    path = data or network.data.path
    held_out = network.data.hold_out if data is None and split == "test" else None
    details = {
        "source": network.source,
        "step": network.step,
        "data": "embedded shapes" if path is None else str(path),
        "split": split,
        "hold_out": held_out,
        "voxel_size": network.data.voxel_size,
    }
    write_json(folder / "energy.json", describe_account(found, **details))
    figures.draw_energy(found, folder / "figures" / "energy.png")
    return found, folder
