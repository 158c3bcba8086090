"""`e3dsnn energy`: the account of a trained network on the clouds of a data set."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e3dsnn_jax import figures
from e3dsnn_jax.data.clouds import ShapeDataset, Split, choose_clouds
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.energy import Account, make_account
from e3dsnn_jax.energy_report import describe_account
from e3dsnn_jax.layer_shapes import describe_layers
from e3dsnn_jax.operations import (
    LayerTotals,
    add_counts,
    count_operations,
)
from e3dsnn_jax.prices import HOROWITZ_45NM, Prices, read_prices
from e3dsnn_jax.training.checkpoints import Which
from e3dsnn_jax.training.datasets import open_evaluation
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
    on_batch: Callable[[int, int], None] | None = None,
) -> Account:
    """Counts what a network does on every cloud of a dataset, on one device.

    Args:
      network: From `load_run` or `load_weights`.
      dataset: Clouds, each voxelised once as in an evaluation.
      prices: Energy of each operation.
      on_batch: Called with the batches done and their number after each one.

    Raises:
      ValueError: If the variables do not fit the network, or a cloud is empty, not
        finite, or larger than coordinates can tell.
    """
    model, (batches, number) = open_model(network), open_batches(network, dataset)
    options: dict[str, Any] = {"num_clouds": network.batch_size, "train": False}
    count = jax.jit(
        functools.partial(
            count_operations, model, spike_levels=model.neuron.levels, **options
        )
    )
    variables = jax.device_put(network.variables)
    shapes, clouds = None, 0
    totals: dict[str, LayerTotals] = {}
    for done, batch in enumerate(batches, start=1):
        inputs = batch.features, batch.levels
        if shapes is None:
            shapes = describe_layers(model, variables, *inputs, **options)
        (logits, _), counts = count(variables, *inputs)
        real = batch.labels >= 0
        if not np.isfinite(np.asarray(logits)[real]).all():
            raise ValueError(
                f"{network.source} answers with numbers that are not finite: its "
                "weights are broken or its training has diverged"
            )
        totals = add_counts(totals, counts, shapes, batch.levels)
        clouds += int(real.sum())
        if on_batch is not None:
            on_batch(done, number)
    return make_account(
        shapes or (),
        totals,
        clouds=clouds,
        spike_levels=model.neuron.levels,
        prices=prices,
    )


def run_energy(
    source: Path,
    *,
    data: Path | None = None,
    split: Split = "test",
    clouds: int | None = None,
    checkpoint: Which = "last",
    voxel_size: float = PUBLISHED_VOXEL_SIZE,
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
      prices: JSON file with the fields of `Prices`; those of `HOROWITZ_45NM` if
        omitted.
      out: Folder to write to; if omitted the run, for other data or another split
        `energy_<data>_<split>` in it, or `<weights>_energy`.
      on_batch: Called with the batches done and their number after each one.

    Returns:
      The account, and the folder.

    Raises:
      ValueError: As `account_network`, or if network, data or prices cannot be read.
    """
    table = HOROWITZ_45NM if prices is None else read_prices(prices)
    if source.suffix in (".pth", ".npz"):
        network = load_weights(source, voxel_size=voxel_size)
        print(network.report, file=sys.stderr)
        folder = source.with_name(f"{source.stem}_energy")
        dataset = open_dataset(data, split)
    else:
        network, folder = load_run(source, which=checkpoint), source
        if data is None and split == "test":
            dataset = open_evaluation(network.data, network.class_names)
        else:
            path = data or network.data.path
            dataset = open_dataset(
                path, split, points_per_cloud=network.data.points_per_cloud
            )
            # As evaluations of other data: the run's own account stays.
            name = path.resolve().name if path else "shapes"
            folder = source / f"energy_{name}_{split}"
    account = account_network(
        network, choose_clouds(dataset, clouds), prices=table, on_batch=on_batch
    )
    if network.step == 0:
        note = "The run has not been trained yet: this is its checkpoint of step 0."
        account = account._replace(notes=(note, *account.notes))
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
    write_json(folder / "energy.json", describe_account(account, **details))
    figures.draw_energy(account, folder / "figures" / "energy.png")
    return account, folder
