"""What bfloat16 convolutions change in a trained network: spikes and accuracy.

    python -m experiments.precision RUN [--data DIR]

runs the network of a training run over its test split with float32 convolutions and
with each policy of bfloat16 (`layers.Compute`) on the same voxels. Spikes 0..4 are
exact in bfloat16, weights and outputs are not: a membrane near a threshold may fall to
the other side. With `bfloat16` inputs, weights and outputs are rounded; with
`bfloat16_split` a weight is the sum of two bfloat16 numbers and outputs are float32.
Printed for every spiking layer: the share of its spikes that differ.

The last line of stdout is a JSON object with clouds, accuracy (of float32) and, for
each policy, flipped (share over all layers), accuracy, changed (clouds whose prediction
differs) and layers.
"""

import dataclasses
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int

from e3dsnn_jax import layers
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
    """Compares the policies of bfloat16 with float32 in a trained network."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: Path | None = None
    """Data whose test split is used; what the run was evaluated on if omitted."""


POLICIES: tuple[layers.Precision, ...] = ("bfloat16", "bfloat16_split")


class Comparison(NamedTuple):
    """One batch in float32 and under each policy."""

    logits: Float[Array, "policies clouds classes"]
    """Of float32 first."""
    flipped: dict[str, Int[Array, " policies"]]
    """Spikes that differ from those of float32, for each spiking layer."""
    spikes: dict[str, Int[Array, ""]]
    """Voxels times channels and time steps, for each spiking layer."""


def compare(model: Classifier, variables: dict, batch: ShapeBatch) -> Comparison:
    """Runs every policy on one device's batch; pure, to be compiled."""
    logits, activations = [], []
    for policy in ("float32", *POLICIES):
        compute = model.compute._replace(precision=policy)
        outputs, inner = model.clone(compute=compute).apply(
            variables,
            batch.features,
            batch.levels,
            num_clouds=batch.labels.shape[0],
            train=False,
        )
        logits.append(outputs)
        activations.append(inner)
    exact, *coarse = activations
    flipped, spikes = {}, {}
    for name in (key for key in exact if key.endswith("/spikes")):
        level = batch.levels[spike_level(name.removesuffix("/spikes"))]
        real = voxel_mask(jnp.asarray(level.coords))[:, None, None]
        differs = jnp.stack(
            [exact[name] != other[name].astype(exact[name].dtype) for other in coarse]
        )
        flipped[name] = jnp.sum(differs & real[None], axis=(1, 2, 3), dtype=jnp.int32)
        everywhere = jnp.broadcast_to(real, exact[name].shape)
        spikes[name] = jnp.sum(everywhere, dtype=jnp.int32)
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
    flipped: dict[str, np.ndarray] = {}
    spikes: dict[str, int] = {}
    right, changed = np.zeros(1 + len(POLICIES), int), np.zeros(len(POLICIES), int)
    for stacked in iterate(make_evaluation_source(dataset, layout)):
        batch = jax.tree.map(lambda leaf: leaf[0], stacked)
        result = jax.device_get(compiled(network.variables, batch))
        for name in result.flipped:
            flipped[name] = flipped.get(name, 0) + result.flipped[name].astype(int)
            spikes[name] = spikes.get(name, 0) + int(result.spikes[name])
        real = batch.labels >= 0
        predicted = result.logits.argmax(-1)
        right += (predicted == batch.labels)[:, real].sum(axis=1)
        changed += (predicted[1:] != predicted[:1])[:, real].sum(axis=1)
    width = max(map(len, flipped))
    header = "".join(f"{policy:>16}" for policy in POLICIES)
    print(f"{'':{width}}{header}", file=sys.stderr)
    for name, counts in flipped.items():
        shares = "".join(f"{count / spikes[name]:16.4%}" for count in counts)
        print(f"{name:<{width}}{shares}", file=sys.stderr)
    summary: dict[str, Any] = {
        "clouds": len(dataset),
        "accuracy": int(right[0]) / len(dataset),
    }
    for index, policy in enumerate(POLICIES):
        shares = {name: flipped[name][index] / spikes[name] for name in flipped}
        summary[policy] = {
            "flipped": sum(f[index] for f in flipped.values()) / sum(spikes.values()),
            "accuracy": int(right[1 + index]) / len(dataset),
            "changed": int(changed[index]),
            "layers": {name: float(share) for name, share in shares.items()},
        }
    print(json.dumps(summary), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the comparison."""
    prog = "python -m experiments.precision"
    options = tyro.cli(Precision, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
