"""E-3DSNNs that generalise, that memorise, and of several widths: how alike are they?

    python -m experiments.spiking.memorising [--training.data DIR]

trains networks on a tenth of the embedded shapes from several seeds, with the true
labels ("gen") and with the labels dealt to other clouds ("mem", one deal for all), and
with the true labels at half and twice the width. Layers are compared between networks
on test clouds, by PWCCA and linear CKA: two that generalise, two that memorise, one of
each. The baseline is that of random activations of the same shape. The last line of
stdout is a JSON object.

The paper's finding, on CIFAR-10: low layers are alike in all pairs; higher up networks
that generalise agree more than others do; wider networks agree more.

Measured with `--widths` alone, which leaves the other widths out (three seeds, 40
epochs of 200 clouds, two to three minutes a network on two busy cores). All networks
know all of their training clouds; their test accuracies are 66 and 5 %. From the block
of the second stage on, networks that generalise are more alike than others, in every
layer: PWCCA 0.57 to 0.82 between them, 0.51 to 0.79 in both other kinds of pairs, which
do not differ: as in the paper. Below, networks that memorise are the more alike (0.47
to 0.62 against 0.38 to 0.67 and 0.42 to 0.66).
"""

import dataclasses
import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import svcca_jax
from e3dsnn_jax.analysis.activations import Layers, make_collect
from e3dsnn_jax.analysis.datapoints import choose_voxels
from e3dsnn_jax.analysis.dynamics import random_like
from e3dsnn_jax.analysis.layers import find_layers
from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.augment import Augment
from e3dsnn_jax.data.clouds import choose_clouds
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.training.datasets import open_data, open_split
from e3dsnn_jax.training.evaluate import evaluate_network
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.saved import SavedNetwork, load_run
from experiments.digits.figures import rounded, spread
from experiments.spiking.training import Training, train_network
from svcca_jax.measure import Measure

MEASURES: dict[str, Measure] = {
    "pwcca": svcca_jax.MeanPWCCA(),
    "cka": svcca_jax.CKA(),
}
SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Memorising:
    """Similarity of E-3DSNNs that generalise, memorise, and are wide or narrow."""

    training: Training = field(
        default_factory=lambda: Training(epochs=40, checkpoints=1)
    )
    """The runs; long enough to memorise."""
    fraction: float = 0.1
    """Part of the training clouds."""
    widths: tuple[float, ...] = (0.5, 2.0)
    """Widths of further networks with true labels, as multiples of T's."""
    clouds: int = 256
    """Test clouds that layers are compared on."""
    most: int = 2000
    """Voxels of each layer, at most."""
    out: Path = Path("runs/spiking")
    """Folder of the runs."""


def scale_width(width: float) -> Architecture:
    """T with every number of channels multiplied."""
    size = VARIANTS["T"]
    return dataclasses.replace(
        size,
        embed_channels=round(size.embed_channels * width),
        stage_channels=tuple(round(each * width) for each in size.stage_channels),
    )


def train_group(
    options: Memorising, name: str, *, shuffled: bool, architecture: Architecture
) -> list[SavedNetwork]:
    """Networks of one kind from all seeds."""
    networks = []
    for seed in range(options.training.seeds):
        # Networks that memorise share neither initial values nor batches with others.
        seed = seed + options.training.seeds if shuffled else seed
        run = options.out / f"{name}_seed{seed}"
        train_network(
            options.training,
            run,
            seed=seed,
            architecture=architecture,
            fraction=options.fraction,
            # Turned clouds are new ones at every epoch: nothing could be memorised.
            augment=Augment(),
            shuffle_labels=SHUFFLE_SEED if shuffled else None,
        )
        networks.append(load_run(run))
    return networks


def layers_of(
    options: Memorising, network: SavedNetwork, batches: list[ShapeBatch]
) -> tuple[list[str], Layers]:
    """Names and membranes of a network's layers on the common voxels."""
    model = open_model(network)
    found = find_layers(model, network.variables, batches[0], "membranes")
    on_voxels = tuple(layer for layer in found if layer.level is not None)
    own = choose_voxels(batches, most=options.most)
    collect = make_collect(model, batches, on_voxels, [own], clouds=False)
    names = [layer.name for layer in on_voxels]
    return names, collect(network.variables).by_choice[0]


def compare(pairs: list[tuple[Layers, Layers]], measure: Measure) -> dict[str, Any]:
    """Similarity of each layer over pairs of networks."""
    values = np.stack(
        [svcca_jax.over_checkpoints([x], y, measure=measure)[0] for x, y in pairs]
    )
    return {
        "mean": rounded(values.mean(axis=0)),
        "low": rounded(values.min(axis=0)),
        "high": rounded(values.max(axis=0)),
    }


def run(options: Memorising) -> None:
    """Trains all groups, compares them, and prints the JSON line."""
    groups = {
        "gen": train_group(options, "gen", shuffled=False, architecture=scale_width(1)),
        "mem": train_group(options, "mem", shuffled=True, architecture=scale_width(1)),
    }
    for width in options.widths:
        groups[f"width {width:g}"] = train_group(
            options, f"width{width:g}", shuffled=False, architecture=scale_width(width)
        )
    first = groups["gen"][0]
    chosen = open_split(first.data, first.class_names, None, "test")
    dataset = choose_clouds(chosen.dataset, options.clouds)
    batches = list(open_batches(first, dataset).batches)
    names: list[str] = []
    layers: dict[str, list[Layers]] = {}
    accuracies: dict[str, Any] = {}
    for group, networks in groups.items():
        for network in networks:
            names, found = layers_of(options, network, batches)
            layers.setdefault(group, []).append(found)
            test = evaluate_network(network, dataset, votes=1)
            fitted = evaluate_network(network, open_data(network.data).train, votes=1)
            for split, evaluation in (("test", test), ("train", fitted)):
                accuracies.setdefault(f"{group} {split}", []).append(
                    evaluation.accuracy
                )
    pairs = {
        f"{group} - {group}": list(itertools.combinations(found, 2))
        for group, found in layers.items()
    }
    pairs["gen - mem"] = list(itertools.product(layers["gen"], layers["mem"]))
    # Wider layers look alike by more chance: each width has its own baseline.
    for group in ("gen", *(name for name in layers if name.startswith("width"))):
        shapes = layers[group][0]
        pairs[f"random, {group}"] = [(random_like(shapes, 0), random_like(shapes, 1))]
    similarities = {
        measure: {name: compare(each, function) for name, each in pairs.items() if each}
        for measure, function in MEASURES.items()
    }
    for measure, found in similarities.items():
        print(
            f"\n{measure:<24}" + "".join(f"{name:>15}" for name in found),
            file=sys.stderr,
        )
        for place, name in enumerate(names):
            cells = "".join(f"{each['mean'][place]:>15.3f}" for each in found.values())
            print(f"{name:<24}{cells}", file=sys.stderr)
    answer = {
        "accuracy": {name: spread(each) for name, each in accuracies.items()},
        "layers": names,
        "similarity": similarities,
    }
    print(json.dumps(answer), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.spiking.memorising"
    options = tyro.cli(Memorising, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
