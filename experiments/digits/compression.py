"""Networks of digits made smaller by reading layers through few directions.

    python -m experiments.digits.compression [--mnist DIR]

Every kernel that reads a hidden layer is replaced by two smaller ones: from the neurons
to a share of them as directions, and from those to the outputs
(`svcca_jax.projection.merge`), wherever the two have fewer weights than the one. All
hidden layers are compressed at once, without retraining. Directions are those of SVCCA
with a network of the next seed, and principal components, both taken back by least
squares; beside them neurons of the highest variance and random neurons, likewise.

Size is the number of parameters and operations the compiler's count of floating-point
operations for an image, both as shares of the whole network's. The paper's finding:
parameters and operations go down to about k/n; top layers to 0.35 of their size with
hardly any loss.

Measured with the defaults, mean accuracy of three seeds where a share of the neurons is
kept as directions. Dense (419,110 parameters, 0.966 whole): at 0.35 the network has
0.87 of its size, SVCCA 0.962, components 0.963, neurons by variance 0.949, at random
0.947; at 0.1 0.66 of its size, 0.945, 0.952, 0.850, 0.845 (the kernel that reads the
pixels, 0.56 of all parameters, is left whole). Convolutional (33,450 parameters, 0.979
whole): at 0.5 0.55 of its size and 0.70 of its operations, 0.967, 0.974, 0.934, 0.937;
at 0.35 0.40 and 0.60, 0.950, 0.960, 0.852, 0.845; at 0.2 0.23 and 0.45, 0.794, 0.819,
0.460, 0.417. Components lose less than SVCCA's directions wherever kernels shrink, and
both far less than neurons. About 2.5 minutes of processor time.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from e3dsnn_jax.cli import report_errors
from experiments.digits.data import Images, open_images
from experiments.digits.figures import plot_panels, rounded, spread
from experiments.digits.intrinsic_dimension import find_bases, first_directions
from experiments.digits.networks import Conv, Dense, Network, position_rows
from experiments.digits.training import (
    Variables,
    accuracy,
    activations,
    count_flops,
    train,
)
from svcca_jax.projection import Projector, leading, merge, refit

_MOST_ROWS = 5000


@dataclass(frozen=True)
class Config:
    """Size and accuracy of networks with merged projections."""

    mnist: Path | None = None
    """Folder of the IDX files of MNIST, or an mnist.npz; ../shared/data/mnist if
    omitted and there, else scikit-learn's digits."""
    out: Path = Path("runs/digits")
    """Folder for the figures."""
    shares: tuple[float, ...] = (0.5, 0.35, 0.2, 0.1, 0.05)
    """Directions that are kept, as shares of the neurons."""
    seeds: int = 3
    """Networks of each kind."""
    steps: int = 600
    """Batches of 128 that each is trained on."""
    images: int = 3000
    """Training images that directions come from."""
    width: int = 300
    """Neurons of the hidden layers of the dense network."""


def compress(
    network: Network, variables: Variables, projectors: dict[str, Projector]
) -> tuple[Network, Variables]:
    """A network that reads layers through projectors, and its variables.

    Args:
      network: The whole network.
      variables: Its variables.
      projectors: For hidden layers the directions that the next layer reads; a layer
        for which that would not save parameters is left as it is.
    """
    names = network.layer_names()
    parameters = dict(variables["params"])
    ranks = []
    for name, reader in itertools.pairwise(names):
        if name not in projectors:
            continue
        projector = projectors[name]
        kernel, bias = (parameters[reader][part] for part in ("kernel", "bias"))
        first, second, bias = merge(kernel, bias, projector)
        if first.size + second.size >= kernel.size:
            continue
        window = (1,) * (kernel.ndim - 2)
        parameters[f"{name}_directions"] = {
            "kernel": first.reshape(window + first.shape)
        }
        parameters[reader] = {"kernel": second, "bias": bias}
        ranks.append((name, first.shape[1]))
    smaller = dataclasses.replace(network, ranks=tuple(ranks))
    return smaller, {**variables, "params": parameters}


def count_parameters(variables: Variables) -> int:
    """Number of parameters of all layers."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_operations(network: Network, variables: Variables, images: Any) -> float:
    """Floating-point operations of a network for one image."""
    some = jnp.asarray(images[:64])
    forward = functools.partial(network.apply, variables)
    return count_flops(lambda x: forward(x)[0], some) / len(some)


def study(network: Network, kind: str, data: Images, config: Config) -> dict[str, Any]:
    """Trains networks of one kind and compresses them to every share."""
    trained = []
    for seed in range(config.seeds + 1):
        print(f"{kind}: training seed {seed}", file=sys.stderr)
        key = jax.random.key(seed)
        steps = [config.steps]
        trained += train(network, data.train, data.train_labels, steps=steps, key=key)
    hidden = network.layer_names()[:-1]
    some = jnp.asarray(data.train[: config.images])
    layers = [activations(network, each, some) for each in trained]
    parameters = count_parameters(trained[0])
    operations = count_operations(network, trained[0], data.test)
    whole = [accuracy(network, v, data.test, data.test_labels) for v in trained[:-1]]
    accuracies: dict[str, list[list[float]]] = {}
    sizes: dict[float, tuple[float, float]] = {}
    for seed, variables in enumerate(trained[:-1]):
        print(f"{kind}: compressing seed {seed}", file=sys.stderr)
        rows = {
            name: position_rows(layers[seed][name], most=_MOST_ROWS) for name in hidden
        }
        bases = {
            name: find_bases(
                rows[name],
                position_rows(layers[seed + 1][name], most=_MOST_ROWS),
                seed,
            )
            for name in hidden
        }
        for basis in bases[hidden[0]]:
            curve = []
            for share in config.shares:
                kept = {
                    name: max(1, round(share * rows[name].shape[1])) for name in hidden
                }
                projectors = {}
                for name in hidden:
                    first = first_directions(bases[name][basis], kept[name])
                    projectors[name] = leading(refit(first, rows[name]), kept[name])
                small, merged = compress(network, variables, projectors)
                curve.append(accuracy(small, merged, data.test, data.test_labels))
                if share not in sizes:
                    sizes[share] = (
                        count_parameters(merged) / parameters,
                        count_operations(small, merged, data.test) / operations,
                    )
            accuracies.setdefault(basis, []).append(curve)
    return {
        "parameters": parameters,
        "operations": operations,
        "accuracy": spread(whole),
        "shares": list(config.shares),
        "size": rounded([sizes[share][0] for share in config.shares]),
        "work": rounded([sizes[share][1] for share in config.shares]),
        "accuracies": {basis: rounded(v) for basis, v in accuracies.items()},
    }


def format_table(kind: str, result: dict[str, Any]) -> str:
    """Size, operations and mean accuracy at every share."""
    bases = list(result["accuracies"])
    lines = [
        f"{kind}: {result['parameters']:,} parameters, {result['operations']:,.0f} "
        f"operations an image, accuracy {result['accuracy']['mean']:.4f}",
        "  kept    size    work" + "".join(f"{basis:>18}" for basis in bases),
    ]
    for i, share in enumerate(result["shares"]):
        cells = ""
        for basis in bases:
            found = spread(np.asarray(result["accuracies"][basis])[:, i])
            cells += f"  {found['mean']:.3f} ({found['low']:.2f}-{found['high']:.2f})"
        sizes = f"{result['size'][i]:8.3f}{result['work'][i]:8.3f}"
        lines.append(f"{share:6.2f}{sizes}{cells}")
    return "\n".join(lines)


def run(config: Config) -> None:
    """Studies both kinds of network and prints the tables and the JSON line."""
    began = time.perf_counter()
    data = open_images(config.mnist)
    kinds = {"dense": Dense(width=config.width), "conv": Conv()}
    results = {kind: study(net, kind, data, config) for kind, net in kinds.items()}
    panels = {}
    for kind, result in results.items():
        print(format_table(kind, result))
        panels[kind] = {
            basis: (result["size"], values)
            for basis, values in result["accuracies"].items()
        }
    path = config.out / "compression.png"
    plot_panels(panels, path, x_label="parameters, share", y_label="test accuracy")
    summary = {"data": data.name, **results, "figure": str(path)}
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({**summary, "seconds": seconds}))


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.digits.compression"
    config = tyro.cli(Config, args=arguments, prog=prog)
    return report_errors(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
