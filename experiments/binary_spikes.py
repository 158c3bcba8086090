"""Whether a trained network runs on binary spikes: spikes and predictions that differ.

    python -m experiments.binary_spikes RUN [--data DIR]

runs the network of a training run over its test split with its integer spikes, and with
each of them unrolled into binary ones (`spike_driven.run_binary`), on the same voxels
and in float32; the head is moved onto spikes as well (`spike_readout`). All compute the
same sums in another order, so that a membrane near a threshold may fall to the other
side. In float64, where they agree but for rounding, the same is done for some of the
clouds.

The last line of stdout is a JSON object:

* `clouds`, `accuracy`: with integer spikes
* `flipped_spikes`: neurons and time steps whose spikes differ; `flipped` is their share
  of the neurons (and time steps, silent ones too), `flipped_of_spikes` their number
  over that of the binary spikes
* `changed`, `head_changed`: clouds whose prediction differs on binary spikes, and with
  the head on spikes too
* `batches`, `batches_without_flips`, `worst_logit`: the largest difference of a logit
  in those without flips; null if there are none
* `float64`: clouds, flipped spikes, of which one is refused, and the largest difference
  of any logit or activation, which is refused above `limit` and if it is not a number;
  null if it was not asked for
* `layers`: share of the neurons of each layer that differ
"""

import dataclasses
import functools
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.clouds import ShapeDataset, choose_clouds
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.spike_driven import compare_runs, in_float64, run_binary, run_integer
from e3dsnn_jax.spike_readout import classifier_on_spikes
from e3dsnn_jax.training.datasets import open_evaluation
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.saved import SavedNetwork, load_run

FLOAT64_LIMIT = 1e-9


@dataclass(frozen=True)
class BinarySpikes:
    """Compares binary with integer spikes in a trained network."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run."""
    data: Path | None = None
    """Data whose test split is used; what the run was evaluated on if omitted."""
    float64_clouds: int = 32
    """Clouds that are compared in float64 too; 0 for none."""


def run_all(model: Classifier, variables: Any, batch: ShapeBatch) -> Any:
    """Logits and activations of both ways, and the logits of the head on spikes."""
    clouds = batch.labels.shape[0]
    options = {"num_clouds": clouds, "train": False}
    inputs = variables, batch.features, batch.levels
    integer = run_integer(model, *inputs, **options)
    binary = run_binary(model, *inputs, **options)
    head = classifier_on_spikes(
        model, variables, binary[1], batch.levels, num_clouds=clouds
    )
    return integer, binary, head


def compare(network: SavedNetwork, dataset: ShapeDataset) -> dict[str, Any]:
    """Compares over a dataset in float32; the answer but for its part in float64."""
    model = open_model(network)
    compiled = jax.jit(functools.partial(run_all, model))
    flipped, neurons, found = Counter(), Counter(), Counter()
    differences: list[float] = []
    batches = open_batches(network, dataset)
    for batch in batches.batches:
        integer, binary, head = compiled(network.variables, batch)
        if not all(np.isfinite(x).all() for x in (integer[0], binary[0], head)):
            raise ValueError(
                f"{network.source} answers with numbers that are not finite: its "
                "weights are broken or its training has diverged"
            )
        flips = compare_runs(integer, binary, batch.levels)
        flipped.update(flips.spikes)
        neurons.update(flips.neurons)
        real = np.asarray(batch.labels) >= 0
        logits, ours, on_spikes = (
            np.asarray(values)[real] for values in (integer[0], binary[0], head)
        )
        predicted = logits.argmax(-1)
        found["sent"] += sum(flips.sent.values())
        found["right"] += int((predicted == np.asarray(batch.labels)[real]).sum())
        found["changed"] += int((ours.argmax(-1) != predicted).sum())
        found["head_changed"] += int((on_spikes.argmax(-1) != predicted).sum())
        if not any(flips.spikes.values()):
            differences.append(float(np.abs(ours - logits).max()))
    return {
        "clouds": len(dataset),
        "accuracy": found["right"] / len(dataset),
        "flipped": flipped.total() / neurons.total(),
        "flipped_of_spikes": flipped.total() / max(found["sent"], 1),
        "flipped_spikes": flipped.total(),
        "changed": found["changed"],
        "head_changed": found["head_changed"],
        "batches": batches.number,
        "batches_without_flips": len(differences),
        "worst_logit": max(differences, default=None),
        "float64": None,
        "layers": {name: flipped[name] / neurons[name] for name in flipped},
    }


def compare_in_float64(network: SavedNetwork, dataset: ShapeDataset) -> dict[str, Any]:
    """The same over a dataset in float64: all logits and activations."""
    flipped, worst = 0, 0.0
    with jax.enable_x64(True):
        compiled = jax.jit(functools.partial(run_all, open_model(network)))
        variables = in_float64(network.variables)
        for batch in open_batches(network, dataset).batches:
            batch = in_float64(batch)
            integer, binary, head = compiled(variables, batch)
            flips = compare_runs(integer, binary, batch.levels)
            flipped += sum(flips.spikes.values())
            pairs = [(head, integer[0]), (binary[0], integer[0])]
            pairs += [(binary[1][name], values) for name, values in integer[1].items()]
            for ours, theirs in pairs:
                # Unlike max, this keeps what is not a number.
                worst = float(np.maximum(worst, np.abs(ours - theirs).max()))
    return {
        "clouds": len(dataset),
        "flipped_spikes": flipped,
        "worst": worst,
        "limit": FLOAT64_LIMIT,
    }


def run(options: BinarySpikes) -> None:
    """Compares over the test split and prints the table and the JSON line.

    Raises:
      ValueError: If the network has no spikes, or differs in float64.
    """
    if options.float64_clouds < 0:
        raise ValueError(
            f"--float64-clouds must be 0 or more, got {options.float64_clouds}"
        )
    network = load_run(options.run)
    config = network.data
    if options.data is not None:
        config = dataclasses.replace(config, path=options.data, hold_out=None)
    dataset = open_evaluation(config, network.class_names)
    summary = compare(network, dataset)
    width = max(map(len, summary["layers"]))
    for name, share in summary["layers"].items():
        print(f"{name:<{width}}{share:12.6%} of the neurons", file=sys.stderr)
    wide = None
    if options.float64_clouds:
        some = choose_clouds(dataset, options.float64_clouds)
        wide = compare_in_float64(network, some)
    print(json.dumps(summary | {"float64": wide}), flush=True)
    if wide is None:
        return
    if wide["flipped_spikes"]:
        raise ValueError(
            f"in float64 {wide['flipped_spikes']} spikes differ, which must be none"
        )
    # Not a number is no agreement either.
    if not wide["worst"] <= wide["limit"]:
        raise ValueError(
            f"in float64 binary and integer runs differ by {wide['worst']:.1e}, more "
            f"than {wide['limit']:.0e}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the comparison."""
    prog = "python -m experiments.binary_spikes"
    options = tyro.cli(BinarySpikes, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
