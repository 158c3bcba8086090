"""How few directions E-3DSNN needs of a unit's membranes: accuracy without retraining.

    python -m experiments.spiking.intrinsic_dimension [--training.data DIR]

Each unit of a trained network is projected, one at a time, onto its first k SVCCA
directions (against the same unit of a network of another seed), its first k principal
components, its k neurons of highest variance, or k random ones. Directions, and the way
back from them that reconstructs the unit best, come from training clouds, accuracies
from test clouds. The paper's finding: a fraction of the neurons suffices, if directions
are chosen with SVCCA.

Then all units at once are projected onto as many directions as each needs alone to stay
within `--tolerance` of the accuracy, and merged into two smaller products each
(`analysis.projected`): weights and operations of the network so compressed, and its
accuracy on other test clouds. The last line of stdout is a JSON object.

Measured with the defaults (three seeds, 192 + 192 test clouds, four to ten minutes a
seed on two busy cores, training apart): one unit alone stays within two points with 6
to 15 % of the neurons' number by PCA, 11 to 23 % by SVCCA, 8 to 24 % by variance and 12
to 25 % by random neurons, whose correlation the fitted way back makes up for: unlike in
the paper, SVCCA directions are no better than random neurons here. All units at once
lose far more, since each loss adds to the next: with 5 to 12 % of the weights and 14 to
36 % of the additions 14 to 58 % of the clouds are right (SVCCA), with 3 to 9 % of the
weights 22 to 74 % (PCA), of 92 to 95 % for the whole network.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from e3dsnn_jax.analysis.activations import make_collect
from e3dsnn_jax.analysis.datapoints import choose_voxels
from e3dsnn_jax.analysis.layers import find_layers
from e3dsnn_jax.analysis.projected import (
    Replacement,
    identity,
    replacement_of,
    run_projected,
)
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.clouds import choose_clouds
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.layer_shapes import describe_layers
from e3dsnn_jax.training.datasets import open_split
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.saved import SavedNetwork, load_run
from experiments.digits.figures import rounded, spread
from experiments.spiking.compressed import count_clouds, count_right, measure_compressed
from experiments.spiking.training import Training, train_network
from svcca_jax.projection import (
    Projector,
    highest_variance_neurons,
    leading,
    pca_projector,
    random_neurons,
    refit,
    svcca_projector,
)

Accuracy = Callable[[dict[str, Replacement]], float]


@dataclass(frozen=True)
class IntrinsicDimension:
    """Accuracy of E-3DSNN with units projected onto few directions."""

    training: Training = field(default_factory=Training)
    """The runs, those of `learning_dynamics` if `out` is the same."""
    out: Path = Path("runs/spiking")
    """Folder of the runs."""
    clouds: int = 384
    """Test clouds: half of them judge how many directions are needed, the other half
    the compressed network. A third as many training clouds give the directions."""
    most: int = 4000
    """Voxels that directions come from."""
    tolerance: float = 0.02
    """Loss of accuracy that is allowed, as a share of all clouds."""


def load_batches(network: SavedNetwork, split: Any, clouds: int) -> list[ShapeBatch]:
    """Batches of some clouds of the run's own data."""
    chosen = open_split(network.data, network.class_names, None, split)
    return list(open_batches(network, choose_clouds(chosen.dataset, clouds)).batches)


def make_accuracy(
    model: Classifier, variables: Any, batches: list[ShapeBatch]
) -> Accuracy:
    """Compiles the accuracy under any replacements of all units."""

    @jax.jit
    def count(variables: Any, batch: ShapeBatch, replacements: Any) -> Any:
        logits, _ = run_projected(
            model,
            variables,
            batch.features,
            batch.levels,
            replacements=replacements,
            num_clouds=batch.labels.shape[0],
            train=False,
        )
        return count_right(logits, batch)

    placed, held = jax.device_put(batches), jax.device_put(variables)
    clouds = count_clouds(batches)

    def accuracy(replacements: dict[str, Replacement]) -> float:
        counts = [count(held, batch, replacements) for batch in placed]
        return sum(map(int, counts)) / clouds

    return accuracy


def directions_to_try(neurons: int) -> list[int]:
    """Powers of two below the number of neurons."""
    return [2**power for power in range(neurons.bit_length()) if 2**power < neurons]


def enough_directions(
    measured: dict[int, float], least_accuracy: float, neurons: int
) -> int:
    """Fewest directions from which on the accuracy stays high enough; else all."""
    enough = neurons
    for count in sorted(measured, reverse=True):
        if measured[count] < least_accuracy:
            break
        enough = count
    return enough


def fit_directions(projector: Projector, count: int, layer: np.ndarray) -> Projector:
    """The first directions, with the way back that reconstructs the layer best."""
    return refit(leading(projector, min(count, len(projector.directions))), layer)


def find_projectors(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int
) -> dict[str, Projector]:
    """Directions of a unit's membranes by each method."""
    return {
        "svcca": svcca_projector(ours, theirs),
        "pca": pca_projector(ours),
        "highest variance": highest_variance_neurons(ours),
        "random": random_neurons(ours, key=jax.random.key(seed)),
    }


def measure_seed(options: IntrinsicDimension, seed: int) -> dict[str, Any]:
    """Projects every unit of one network, and then all of them."""
    other = (seed + 1) % max(options.training.seeds, 2)
    runs = [options.out / f"seed{number}" for number in (seed, other)]
    for number, run in zip((seed, other), runs, strict=True):
        train_network(options.training, run, seed=number)
    networks = [load_run(run) for run in runs]
    model, variables = open_model(networks[0]), networks[0].variables
    fit = load_batches(networks[0], "train", max(options.clouds // 3, 1))
    layers = find_layers(model, variables, fit[0], "membranes")
    shapes = {
        shape.name
        for shape in describe_layers(
            model,
            variables,
            fit[0].features,
            fit[0].levels,
            num_clouds=fit[0].labels.shape[0],
            train=False,
        )
    }
    units = [each for each in layers if each.level is not None and each.name in shapes]
    own = choose_voxels(fit, most=options.most)
    collect = make_collect(model, fit, tuple(units), [own], clouds=False)
    ours, theirs = (collect(each.variables).by_choice[0] for each in networks)
    test = load_batches(networks[0], "test", options.clouds)
    half = max(len(test) // 2, 1)
    accuracy = make_accuracy(model, variables, test[:half])
    none = {unit.name: identity(unit.neurons) for unit in units}
    full = accuracy(none)
    curves: dict[str, Any] = {}
    needed: dict[str, dict[str, int]] = {}
    chosen: dict[str, dict[str, Projector]] = {}
    for unit, x, y in zip(units, ours, theirs, strict=True):
        projectors = find_projectors(x, y, seed=seed)
        for method, projector in projectors.items():
            measured = {}
            for count in directions_to_try(unit.neurons):
                few = replacement_of(fit_directions(projector, count, x))
                measured[count] = accuracy(none | {unit.name: few})
            curves.setdefault(method, {})[unit.name] = measured
            least = enough_directions(measured, full - options.tolerance, unit.neurons)
            needed.setdefault(method, {})[unit.name] = least
            if least < unit.neurons:
                found = fit_directions(projector, least, x)
                chosen.setdefault(method, {})[unit.name] = found
        print(f"seed {seed}: {unit.name} done", file=sys.stderr)
    together = {
        method: measure_compressed(
            model, variables, test[half:] or test, chosen.get(method, {})
        )
        for method in ("svcca", "pca")
    }
    return {
        "accuracy": full,
        "neurons": {unit.name: unit.neurons for unit in units},
        "curves": curves,
        "needed": needed,
        "together": together,
    }


def run(options: IntrinsicDimension) -> None:
    """Measures every seed, and prints the table and the JSON line."""
    found = [measure_seed(options, seed) for seed in range(options.training.seeds)]
    methods, neurons = list(found[0]["needed"]), found[0]["neurons"]
    print(f"{'unit':<24}{'neurons':>8}  " + "  ".join(methods), file=sys.stderr)
    for name, count in neurons.items():
        means = [
            np.mean([each["needed"][method][name] for each in found])
            for method in methods
        ]
        cells = "  ".join(
            f"{mean:>{len(method)}.1f}"
            for mean, method in zip(means, methods, strict=True)
        )
        print(f"{name:<24}{count:>8}  {cells}", file=sys.stderr)
    shares = {
        method: rounded(
            [
                sum(each["needed"][method].values()) / sum(neurons.values())
                for each in found
            ]
        )
        for method in methods
    }
    answer = {
        "accuracy": spread([each["accuracy"] for each in found]),
        "tolerance": options.tolerance,
        "share_of_neurons_needed": shares,
        "needed": {
            method: {
                name: [each["needed"][method][name] for each in found]
                for name in neurons
            }
            for method in methods
        },
        "together": {
            method: [each["together"][method] for each in found]
            for method in found[0]["together"]
        },
        "neurons": neurons,
    }
    (options.out / "intrinsic_dimension.json").write_text(
        json.dumps([each["curves"] for each in found])
    )
    print(json.dumps(answer), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.spiking.intrinsic_dimension"
    options = tyro.cli(IntrinsicDimension, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
