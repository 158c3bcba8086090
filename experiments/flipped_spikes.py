"""How many spikes differ when a training batch is spread over other numbers of devices.

    python -m experiments.flipped_spikes RUN

runs a forward pass in training mode, as in a step, from the last parameters of a run
on its first batches: on one device, and on two and four whose BatchNorm statistics are
merged. Sums are rounded differently, so a membrane near a threshold may fall to its
other side. The last line of stdout is a JSON object: share of all spikes by devices.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Int

from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.loader import BatchLayout, BatchSource, ShapeBatch
from e3dsnn_jax.data.plan import plan_capacities
from e3dsnn_jax.training.datasets import open_data
from e3dsnn_jax.training.metrics import SPIKES_SUFFIX, spike_level
from e3dsnn_jax.training.run_folder import read_config
from e3dsnn_jax.training.saved import SavedNetwork, load_run
from e3dsnn_jax.training.steps import DEVICES, make_mesh, shard_batch

Spikes = dict[str, Int[np.ndarray, "voxels neurons"]]


@dataclass(frozen=True)
class FlippedSpikes:
    """Counts the spikes that differ between numbers of devices."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    devices: tuple[int, ...] = (1, 2, 4)
    """Numbers of devices, all compared with the first."""
    batches: int = 8
    """Batches that are counted."""


def count_flips(
    run: Path, devices: Sequence[int], *, batches: int = 8
) -> dict[int, float]:
    """Share of the spikes that differ from those on `devices[0]` devices.

    Raises:
      ValueError: If there are fewer devices.
    """
    jax.config.update("jax_num_cpu_devices", max(devices))
    network, config = load_run(run), read_config(run)
    data = open_data(config.data)
    found: dict[int, list[Spikes]] = {}
    for count in devices:
        layout = BatchLayout(
            batch_size=config.recipe.batch_size,
            num_devices=count,
            num_levels=network.model.architecture.num_levels,
            voxel_size=config.data.voxel_size,
            normals=config.data.normals,
        )
        source = BatchSource(
            data.train,
            layout,
            recipe=config.recipe.augment,
            seed=config.seed,
            epochs=config.recipe.epochs,
            shuffle=True,
        )
        source = dataclasses.replace(
            source, capacities=plan_capacities(source, slacks=(1.6,))
        )
        forward, mesh = make_forward(network, count)
        found[count] = [
            sort_spikes(source[step], forward(shard_batch(source[step], mesh)))
            for step in range(min(batches, len(source)))
        ]
    reference = found[devices[0]]
    total = sum(spikes.size for batch in reference for spikes in batch.values())
    return {
        count: sum(
            int((spikes[name] != expected[name]).sum())
            for spikes, expected in zip(each, reference, strict=True)
            for name in expected
        )
        / total
        for count, each in found.items()
    }


def make_forward(network: SavedNetwork, devices: int) -> tuple[Any, Mesh]:
    """The forward pass of a training step on a mesh, which gives activations."""
    mesh = make_mesh(devices)
    model = network.model.clone(batch_axis=DEVICES if devices > 1 else None)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec(DEVICES),
        out_specs=PartitionSpec(DEVICES),
        check_vma=False,
    )
    def forward(batch: ShapeBatch) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        outputs: Any = model.apply(
            network.variables,
            batch.features,
            batch.levels,
            num_clouds=batch.labels.shape[0],
            train=True,
            mutable=["batch_stats"],
        )
        (_, activations), _ = outputs
        return jax.tree.map(lambda leaf: leaf[None], activations)

    return jax.jit(forward), mesh


def sort_spikes(batch: ShapeBatch, activations: dict[str, Any]) -> Spikes:
    """Spikes of every layer, rows in the order of clouds and cells."""
    spikes = {}
    for name, values in jax.device_get(activations).items():
        if name.endswith(SPIKES_SUFFIX):
            level = batch.levels[spike_level(name.removesuffix(SPIKES_SUFFIX))]
            coords = np.asarray(level.coords)
            real = coords[..., 0] >= 0
            device = np.nonzero(real)[0]
            cells = coords[real]
            clouds = np.asarray(batch.indices)[device, cells[:, 0]]
            order = np.lexsort((*cells.T[:0:-1], clouds))
            spikes[name] = values[real].reshape(len(cells), -1)[order]
    return spikes


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and prints the shares."""
    prog = "python -m experiments.flipped_spikes"
    options = tyro.cli(FlippedSpikes, args=arguments, prog=prog)

    def run() -> None:
        print(
            json.dumps(
                count_flips(options.run, options.devices, batches=options.batches)
            ),
            flush=True,
        )

    return report_errors(run)


if __name__ == "__main__":
    sys.exit(main())
