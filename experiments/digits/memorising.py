"""Networks that generalise and networks that memorise digits, and their widths.

    python -m experiments.digits.memorising [--mnist DIR]

Trains dense networks of several widths on the same few images from several seeds, with
the true labels ("gen") and with one fixed permutation of them ("mem"), and compares
each layer between networks on test images, by PWCCA and linear CKA: two that
generalise, two that memorise, one of each; mean over the pairs, with the least and the
greatest. Beside it stands the baseline: random activations of the same shape.

The paper's finding, on CIFAR-10: low layers are as similar within groups as between;
higher up networks that generalise agree more than networks that memorise, which agree
with each other no more than with those that generalise; and wider networks agree more.

Measured with the defaults, mean of three seeds (fc1, fc2, fc3, logits) at width 100:
PWCCA gen-gen 0.81, 0.83, 0.85, 0.97; mem-mem 0.71, 0.67, 0.65, 0.72; gen-mem 0.75,
0.73, 0.68, 0.32; random 0.19, logits 0.06. CKA gen-gen 0.97, 0.96, 0.94, 0.92; mem-mem
0.82, 0.77, 0.62, 0.38; gen-mem 0.72, 0.57, 0.29, 0.07. As in the paper gen-gen is the
highest, by more the deeper; by PWCCA gen-mem is about mem-mem in hidden layers (up to
0.06 above it), by CKA it is below. From width 50 to 200 gen-gen CKA rises (fc3 0.87 to
0.96) and mem-mem by both measures; gen-gen PWCCA does not (fc1 0.82 to 0.81, fc3 0.85
to 0.85), though its baseline does (0.14 to 0.27). About 1 minute of processor time.
"""

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

import svcca_jax
from e3dsnn_jax.cli import report_errors
from experiments.digits.data import Images, open_images
from experiments.digits.figures import plot_panels, rounded, spread
from experiments.digits.networks import Dense, position_rows
from experiments.digits.training import accuracy, activations, train

_MEASURES: dict[str, svcca_jax.Measure] = {
    "pwcca": svcca_jax.MeanPWCCA(),
    "cka": svcca_jax.CKA(),
}


@dataclass(frozen=True)
class Config:
    """Similarity between networks that generalise and networks that memorise."""

    mnist: Path | None = None
    """Folder of the IDX files of MNIST, or an mnist.npz; ../shared/data/mnist if
    omitted and there, else scikit-learn's digits."""
    out: Path = Path("runs/digits")
    """Folder for the figures."""
    seeds: int = 3
    """Networks of each group and width."""
    widths: tuple[int, ...] = (50, 100, 200)
    """Neurons of each of the three hidden layers."""
    steps: int = 800
    """Batches of 128 that each is trained on."""
    train_images: int = 1000
    """Images that are trained on."""
    images: int = 2000
    """Test images that are the datapoints."""


def study(width: int, data: Images, config: Config) -> dict[str, Any]:
    """Trains both groups of one width and compares all pairs of networks."""
    network = Dense(width=width)
    images = data.train[: config.train_images]
    labels = data.train_labels[: config.train_images]
    permuted = np.random.default_rng(0).permutation(labels)
    shown = jnp.asarray(data.test[: config.images])
    accuracies: dict[str, list[float]] = {"gen": [], "mem": []}
    fits: dict[str, list[float]] = {"gen": [], "mem": []}
    layers, groups = [], []
    for group, given in (("gen", labels), ("mem", permuted)):
        for seed in range(config.seeds):
            print(f"width {width}, {group}, seed {seed}", file=sys.stderr)
            # Other seeds than the other group's: no two networks start alike.
            key = jax.random.key(seed + (config.seeds if group == "mem" else 0))
            (last,) = train(network, images, given, steps=[config.steps], key=key)
            fits[group].append(accuracy(network, last, images, given))
            test = accuracy(network, last, data.test, data.test_labels)
            accuracies[group].append(test)
            layers.append(activations(network, last, shown))
            groups.append(group)
    result: dict[str, Any] = {
        "width": width,
        "layers": network.layer_names(),
        "train_accuracy": {group: spread(v) for group, v in fits.items()},
        "test_accuracy": {group: spread(v) for group, v in accuracies.items()},
    }
    for name, measure in _MEASURES.items():
        pairs: dict[str, list] = {"gen-gen": [], "mem-mem": [], "gen-mem": []}
        baseline = []
        for layer in network.layer_names():
            rows = [position_rows(each[layer]) for each in layers]
            grid = np.asarray(svcca_jax.pairwise(rows, measure=measure))
            found: dict[str, list[float]] = {kind: [] for kind in pairs}
            for i, j in itertools.combinations(range(len(rows)), 2):
                found[f"{groups[i]}-{groups[j]}"].append(float(grid[i, j]))
            for kind, values in found.items():
                pairs[kind].append(values)
            shape = rows[0].shape
            draws = svcca_jax.random_baseline(
                measure, shape, shape, key=jax.random.key(0), repeats=2
            )
            baseline.append(float(np.asarray(draws).mean()))
        result[name] = {kind: rounded(values) for kind, values in pairs.items()}
        result[name]["random"] = rounded(baseline)
    return result


def format_table(result: dict[str, Any]) -> str:
    """Accuracies of a width, and the similarity of each kind of pair by layer."""
    fit, test = result["train_accuracy"], result["test_accuracy"]
    lines = [
        f"width {result['width']}: "
        + ", ".join(
            f"{g} train {fit[g]['mean']:.3f} test {test[g]['mean']:.3f}" for g in fit
        )
        + "".join(f"{name:>20}" for name in result["layers"])
    ]
    for name in _MEASURES:
        for kind, values in result[name].items():
            cells = ""
            for each in values:
                found = spread(each)
                cells += (
                    f"  {found['mean']:.3f} ({found['low']:.2f}-{found['high']:.2f})"
                )
            lines.append(f"  {name:<6}{kind:<8}{cells}")
    return "\n".join(lines)


def run(config: Config) -> None:
    """Studies all widths and prints the tables and the JSON line."""
    began = time.perf_counter()
    data = open_images(config.mnist)
    results = [study(width, data, config) for width in config.widths]
    panels = {}
    for result in results:
        print(format_table(result))
        depth = list(range(1, len(result["layers"]) + 1))
        for name in _MEASURES:
            panels[f"{name.upper()}, width {result['width']}"] = {
                kind: (depth, np.atleast_2d(np.asarray(values).T))
                for kind, values in result[name].items()
            }
    path = config.out / "memorising.png"
    plot_panels(panels, path, x_label="layer", y_label="similarity")
    seconds = round(time.perf_counter() - began, 1)
    summary = {"data": data.name, "widths": results, "figure": str(path)}
    print(json.dumps({**summary, "seconds": seconds}))


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.digits.memorising"
    config = tyro.cli(Config, args=arguments, prog=prog)
    return report_errors(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
