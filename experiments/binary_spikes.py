"""Whether a trained network runs on binary spikes: spikes and predictions that differ.

    python -m experiments.binary_spikes RUN [--data DIR]

runs the network of a training run over its test split with its integer spikes, and with
each of them unrolled into binary ones (`spike_driven.run_binary`), on the same voxels
and in float32. Both compute the same sums in another order, so that a membrane near a
threshold may fall to the other side; in float64 they are equal. The head is moved onto
spikes as well (`spike_readout`).

The last line of stdout is a JSON object with clouds, accuracy, flipped (share of all
spikes that differ), changed (clouds whose prediction differs), head_changed (the same
with the head on spikes), worst_logit (largest difference where no spike of a batch
flipped) and layers.
"""

import dataclasses
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.loader import BatchLayout, ShapeBatch, iterate
from e3dsnn_jax.spike_driven import compare_runs, run_binary
from e3dsnn_jax.spike_readout import classifier_on_spikes
from e3dsnn_jax.training.datasets import open_evaluation
from e3dsnn_jax.training.evaluate import make_evaluation_source
from e3dsnn_jax.training.saved import load_run


@dataclass(frozen=True)
class BinarySpikes:
    """Compares binary with integer spikes in a trained network."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: Path | None = None
    """Data whose test split is used; what the run was evaluated on if omitted."""


def run_both(model: Any, variables: Any, batch: ShapeBatch) -> Any:
    """Logits and activations of both ways, and the logits of the head on spikes."""
    options = {"num_clouds": batch.labels.shape[0], "train": False}
    inputs = batch.features, batch.levels
    integer = model.apply(variables, *inputs, **options)
    binary = run_binary(model, variables, *inputs, neuron=model.neuron, **options)
    head = classifier_on_spikes(
        model, variables, binary[1], batch.levels, num_clouds=batch.labels.shape[0]
    )
    return integer, binary, head


def run(options: BinarySpikes) -> None:
    """Compares over the test split and prints the table and the JSON line."""
    network = load_run(options.run)
    config = network.data
    if options.data is not None:
        config = dataclasses.replace(config, path=options.data, hold_out=None)
    dataset = open_evaluation(config, network.class_names)
    model = network.model
    model = model.clone(compute=model.compute._replace(rematerialise=False))
    layout = BatchLayout(
        batch_size=network.batch_size,
        num_devices=1,
        num_levels=model.architecture.num_levels,
        voxel_size=config.voxel_size,
        normals=config.normals,
    )
    compiled = jax.jit(functools.partial(run_both, model))
    flipped: dict[str, int] = {}
    neurons: dict[str, int] = {}
    right = changed = head_changed = 0
    worst = 0.0
    for stacked in iterate(make_evaluation_source(dataset, layout)):
        batch = jax.tree.map(lambda leaf: leaf[0], stacked)
        integer, binary, head = compiled(network.variables, batch)
        real = np.asarray(batch.labels) >= 0
        flips = compare_runs(integer, binary)
        for name, count in flips.spikes.items():
            flipped[name] = flipped.get(name, 0) + count
            neurons[name] = neurons.get(name, 0) + flips.neurons[name]
        logits, ours, on_spikes = (
            np.asarray(values)[real] for values in (integer[0], binary[0], head)
        )
        predicted = logits.argmax(-1)
        right += int((predicted == np.asarray(batch.labels)[real]).sum())
        changed += int((ours.argmax(-1) != predicted).sum())
        head_changed += int((on_spikes.argmax(-1) != predicted).sum())
        if not any(flips.spikes.values()):
            worst = max(worst, float(np.abs(ours - logits).max()))
    width = max(map(len, flipped))
    for name, count in flipped.items():
        print(f"{name:<{width}}{count / neurons[name]:12.6%}", file=sys.stderr)
    summary = {
        "clouds": len(dataset),
        "accuracy": right / len(dataset),
        "flipped": sum(flipped.values()) / sum(neurons.values()),
        "flipped_spikes": sum(flipped.values()),
        "changed": changed,
        "head_changed": head_changed,
        "worst_logit": worst,
        "layers": {name: flipped[name] / neurons[name] for name in flipped},
    }
    print(json.dumps(summary), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the comparison."""
    prog = "python -m experiments.binary_spikes"
    options = tyro.cli(BinarySpikes, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
