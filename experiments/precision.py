"""What bfloat16 convolutions change in a trained network: spikes and accuracy.

    python -m experiments.precision RUN [--data DIR]

runs the network of a training run over its test split with float32 and with bfloat16
convolutions on the same voxels: their inputs, weights and outputs are bfloat16, their
sums and everything else float32. Spikes 0..4 are exact in bfloat16, weights and outputs
are not: a membrane near a threshold may fall to the other side. Printed for every
spiking layer: the share of its spikes that differ, and then accuracy and changed
predictions.

The last line of stdout is a JSON object with flipped (share over all layers), accuracy
of both, changed (clouds whose prediction differs), clouds and layers.
"""

import dataclasses
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float, Int

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.loader import BatchLayout, ShapeBatch, iterate
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.training.datasets import open_evaluation
from e3dsnn_jax.training.evaluate import make_evaluation_source
from e3dsnn_jax.training.metrics import spike_level
from e3dsnn_jax.training.saved import load_run


@dataclass(frozen=True)
class Precision:
    """Compares bfloat16 with float32 convolutions in a trained network."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: Path | None = None
    """Data whose test split is used; what the run was evaluated on if omitted."""


class Comparison(NamedTuple):
    """One batch in both precisions."""

    logits: Float[Array, "precisions clouds classes"]
    flipped: dict[str, Int[Array, ""]]
    """Spikes that differ, for each spiking layer."""
    spikes: dict[str, Int[Array, ""]]
    """Voxels times channels and time steps, for each spiking layer."""


def compare(model: Classifier, variables: dict, batch: ShapeBatch) -> Comparison:
    """Runs both precisions on one device's batch; pure, to be compiled."""
    logits, activations = [], []
    for dtype in ("float32", "bfloat16"):
        outputs, inner = model.clone(compute_dtype=dtype).apply(
            variables,
            batch.features,
            batch.levels,
            num_clouds=batch.labels.shape[0],
            train=False,
        )
        logits.append(outputs)
        activations.append(inner)
    exact, coarse = activations
    flipped, spikes = {}, {}
    for name in (key for key in exact if key.endswith("/spikes")):
        level = batch.levels[spike_level(name.removesuffix("/spikes"))]
        real = voxel_mask(jnp.asarray(level.coords))[:, None, None]
        differs = exact[name] != coarse[name].astype(exact[name].dtype)
        flipped[name] = jnp.sum(differs & real, dtype=jnp.int32)
        spikes[name] = jnp.sum(jnp.broadcast_to(real, differs.shape), dtype=jnp.int32)
    return Comparison(jnp.stack(logits), flipped, spikes)


def run(options: Precision) -> None:
    """Compares over the test split and prints the table and the JSON line."""
    network = load_run(options.run)
    config = network.data
    if options.data is not None:
        config = dataclasses.replace(config, path=options.data, hold_out=None)
    dataset = open_evaluation(config, network.class_names)
    layout = BatchLayout(
        batch_size=network.batch_size,
        num_devices=1,
        num_levels=network.model.architecture.num_levels,
        voxel_size=network.data.voxel_size,
        normals=network.data.normals,
    )
    compiled = jax.jit(functools.partial(compare, network.model))
    flipped: dict[str, int] = {}
    spikes: dict[str, int] = {}
    right, changed = [0, 0], 0
    for stacked in iterate(make_evaluation_source(dataset, layout)):
        batch = jax.tree.map(lambda leaf: leaf[0], stacked)
        result = jax.device_get(compiled(network.variables, batch))
        for name in result.flipped:
            flipped[name] = flipped.get(name, 0) + int(result.flipped[name])
            spikes[name] = spikes.get(name, 0) + int(result.spikes[name])
        real = batch.labels >= 0
        predicted = result.logits.argmax(-1)
        for index in range(2):
            right[index] += int((predicted[index] == batch.labels)[real].sum())
        changed += int((predicted[0] != predicted[1])[real].sum())
    width = max(map(len, flipped))
    for name, count in flipped.items():
        print(f"{name:<{width}}  {count / spikes[name]:8.4%}", file=sys.stderr)
    summary = {
        "flipped": sum(flipped.values()) / sum(spikes.values()),
        "accuracy_float32": right[0] / len(dataset),
        "accuracy_bfloat16": right[1] / len(dataset),
        "changed": changed,
        "clouds": len(dataset),
        "layers": {name: count / spikes[name] for name, count in flipped.items()},
    }
    print(json.dumps(summary), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the comparison."""
    prog = "python -m experiments.precision"
    options = tyro.cli(Precision, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
