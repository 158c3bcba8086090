"""How many directions of a layer a trained network of digits needs.

    python -m experiments.digits.intrinsic_dimension [--mnist DIR]

Every hidden layer in turn is projected on k directions, and the layers above read the
projection, without retraining. The directions are, best first: those of SVCCA (99 % of
the variance) with the same layer of a network of the next seed; principal components;
single neurons of the highest variance; single neurons at random. They come from
training images, the accuracy from test images. Each is taken back to the neurons in two
ways: by the transposed basis, so that what is left out is held at its mean, and by
least squares ("fitted"), as a projection in the space of datapoints is.

The table gives the smallest k of 1, 2, 4, ... from which on the accuracy stays within
1 % of that of the whole layer. The paper's finding, on CIFAR-10: a fraction of the
width is enough where directions are chosen by SVCCA, and neurons chosen at random or
by activation need many more.

Measured with the defaults, medians of three seeds. Dense, 300 neurons a layer (fc1,
fc2, fc3): SVCCA fitted 64, 64, 32; SVCCA 128, 128, 64 (one seed never); components 64,
16, 8; highest variance 256 each, fitted 128, 64, 16; random 300, 256, 256, fitted 128,
128, 64. Convolutional (conv1 of 16, conv2 of 32, conv3 of 32, fc1 of 64): SVCCA fitted
8, 8, 16, 16; SVCCA 16, 16, 32, 32; components 8, 8, 16, 16; random 16, 32, 32, 64,
fitted 8, 16, 32, 32. As in the paper a fraction of the width is enough, and neurons
need more. But principal components need no more than SVCCA and in the upper dense
layers fewer; and much of the advantage over neurons is the way back: random neurons,
fitted, need at most twice as many as SVCCA.
It takes about 2 minutes of processor time.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from e3dsnn_jax.cli import report_errors
from experiments.digits.data import Images, open_images
from experiments.digits.figures import plot_panels, rounded, spread
from experiments.digits.networks import Conv, Dense, Network, position_rows
from experiments.digits.training import (
    Variables,
    accuracy,
    activations,
    logits_above,
    train,
)
from svcca_jax.projection import (
    Projector,
    highest_variance_neurons,
    pca_projector,
    project,
    random_neurons,
    refit,
    svcca_projector,
)

_MOST_ROWS = 5000
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Config:
    """Accuracy of networks whose layers are projected on few directions."""

    mnist: Path | None = None
    """Folder of the IDX files of MNIST, or an mnist.npz; ../shared/data/mnist if
    omitted and there, else scikit-learn's digits."""
    out: Path = Path("runs/digits")
    """Folder for the figures."""
    seeds: int = 3
    """Networks of each kind."""
    steps: int = 600
    """Batches of 128 that each is trained on."""
    images: int = 3000
    """Training images that directions come from."""
    test_images: int = 2000
    """Test images that the accuracy is of."""
    width: int = 300
    """Neurons of the hidden layers of the dense network."""


def find_bases(
    rows: Float[Array, "rows neurons"], others: Float[Array, "rows neurons"], seed: int
) -> dict[str, Projector]:
    """All bases of one layer, against the same layer of another network."""
    return {
        "SVCCA": svcca_projector(rows, others),
        "PCA": pca_projector(rows),
        "highest variance": highest_variance_neurons(rows),
        "random": random_neurons(rows, key=jax.random.key(seed)),
    }


def counts_up_to(neurons: int) -> list[int]:
    """1, 2, 4, ... and the number of neurons itself."""
    return [*(2**i for i in range(20) if 2**i < neurons), neurons]


def first_directions(projector: Projector, count: int) -> Projector:
    """As `leading`, with 0 in place of the others: all counts then share a program."""
    directions, back, mean = (np.array(part) for part in projector)
    directions[count:], back[:, count:] = 0, 0
    return Projector(*(jnp.asarray(part) for part in (directions, back, mean)))


def find_accuracies(
    network: Network,
    variables: Variables,
    data: Images,
    name: str,
    rows: Float[Array, "rows neurons"],
    others: Float[Array, "rows neurons"],
    *,
    seed: int,
    test_images: int,
) -> Iterator[tuple[str, list[float]]]:
    """The accuracy for each number of directions, for every basis of one layer."""
    images = jnp.asarray(data.test[:test_images])
    labels = data.test_labels[:test_images]
    layer = activations(network, variables, images)[name]
    counts = counts_up_to(rows.shape[1])

    def right(projector: Projector) -> float:
        held = _project(layer, projector)
        logits = logits_above(network, variables, images, name, held)
        return float((np.asarray(logits).argmax(axis=1) == labels).mean())

    for basis, projector in find_bases(rows, others, seed).items():
        cut = [first_directions(projector, count) for count in counts]
        yield basis, [right(each) for each in cut]
        # Principal components are their own least squares.
        if basis != "PCA":
            yield f"{basis}, fitted", [right(refit(each, rows)) for each in cut]


_project = jax.jit(project)


def smallest_count(
    accuracies: Float[np.ndarray, " counts"], counts: list[int], whole: float
) -> float:
    """Fewest directions from which on the accuracy stays within 1 % of the whole's."""
    enough = accuracies >= whole - _TOLERANCE
    stays = np.logical_and.accumulate(enough[::-1])[::-1]
    return float(counts[int(stays.argmax())]) if stays.any() else float("nan")


def study(network: Network, kind: str, data: Images, config: Config) -> dict[str, Any]:
    """Trains networks of one kind and projects all their hidden layers."""
    seeds = range(config.seeds + 1)
    trained = []
    for seed in seeds:
        print(f"{kind}: training seed {seed}", file=sys.stderr)
        key = jax.random.key(seed)
        steps = [config.steps]
        trained += train(network, data.train, data.train_labels, steps=steps, key=key)
    some = jnp.asarray(data.train[: config.images])
    layers = [activations(network, each, some) for each in trained]
    test = data.test[: config.test_images], data.test_labels[: config.test_images]
    whole = [accuracy(network, each, *test) for each in trained[:-1]]
    result: dict[str, Any] = {"accuracy": spread(whole), "layers": {}}
    for name in network.layer_names()[:-1]:
        curves: dict[str, list[list[float]]] = {}
        print(f"{kind}: projecting {name}", file=sys.stderr)
        for seed in range(config.seeds):
            rows, others = (
                position_rows(layers[s][name], most=_MOST_ROWS)
                for s in (seed, seed + 1)
            )
            found = find_accuracies(
                network,
                trained[seed],
                data,
                name,
                rows,
                others,
                seed=seed,
                test_images=config.test_images,
            )
            for basis, accuracies in found:
                curves.setdefault(basis, []).append(accuracies)
        neurons = layers[0][name].shape[-1]
        counts = counts_up_to(neurons)
        smallest = {
            basis: [
                smallest_count(np.asarray(each), counts, full)
                for each, full in zip(values, whole, strict=True)
            ]
            for basis, values in curves.items()
        }
        result["layers"][name] = {
            "neurons": neurons,
            "counts": counts,
            "smallest": {basis: rounded(k) for basis, k in smallest.items()},
            "accuracies": {basis: rounded(v) for basis, v in curves.items()},
        }
    return result


def format_table(kind: str, result: dict[str, Any]) -> str:
    """The smallest sufficient number of directions in each seed."""
    full = result["accuracy"]
    lines = [
        f"{kind}: accuracy {full['mean']:.4f} ({full['low']:.4f}-{full['high']:.4f}); "
        "fewest directions within 1 % of it, each seed (None: never)"
    ]
    for name, layer in result["layers"].items():
        lines.append(f"  {name} ({layer['neurons']} neurons)")
        for basis, counts in layer["smallest"].items():
            lines.append(f"    {basis:<26}{counts}")
    return "\n".join(lines)


def run(config: Config) -> None:
    """Studies both kinds of network and prints the tables and the JSON line."""
    began = time.perf_counter()
    data = open_images(config.mnist)
    kinds = {"dense": Dense(width=config.width), "conv": Conv()}
    results = {kind: study(net, kind, data, config) for kind, net in kinds.items()}
    for kind, result in results.items():
        print(format_table(kind, result))
        panels = {
            name: {
                basis: (layer["counts"], values)
                for basis, values in layer["accuracies"].items()
            }
            for name, layer in result["layers"].items()
        }
        path = config.out / f"intrinsic_dimension_{kind}.png"
        y_label = "test accuracy"
        plot_panels(panels, path, x_label="directions", y_label=y_label, log_x=True)
    seconds = round(time.perf_counter() - began, 1)
    out = str(config.out)
    print(json.dumps({"data": data.name, **results, "out": out, "seconds": seconds}))


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.digits.intrinsic_dimension"
    config = tyro.cli(Config, args=arguments, prog=prog)
    return report_errors(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
