"""The numbers of the SVCCA tutorial, on activations that can be had.

    python -m experiments.svcca_tutorial [--activations DIR] [--mnist DIR|FILE]

compares the same layer of two networks of different seeds: the published activations
(`model_0_*.p` and `model_1_*.p` in DIR and its subfolders), and the layers of two dense
networks as in the tutorial, trained here for some seconds on MNIST, or on
scikit-learn's digits without it. Both are looked for in ../shared/data if omitted.

It prints a table with, for every pair of layers, mean CCA, the mean of the 20 largest
coefficients, SVCCA of 20 directions, SVCCA of 99 % of the variance, PWCCA, and the
same for random activations of that shape; then the tutorial's own numbers, of a layer
whose activations do not ship. Expected: every similarity of trained layers lies above
its baseline, and mean CCA of the hidden layers well below SVCCA of 20 directions. The
coefficients are drawn to `--out`, one PNG for each shape of layers.

The last line of stdout is a JSON object with pairs, published, figure (the PNG of the
widest layers; each pair names its own) and networks (data and test accuracies).
"""

import functools
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Array, Float

import svcca_jax
from e3dsnn_jax.cli import report_errors
from experiments.activations import Pair, read_pairs
from experiments.mnist import (
    Digits,
    forward,
    read_mnist,
    read_small_digits,
    train_network,
)

PUBLISHED = {
    "name": "MNIST 784-500-500-500-10, layer 2",
    "datapoints": 10_000,
    "neurons": [500, 500],
    "mean_cca": 0.406766710156,
    "top_20": 0.9575,
    "svcca_20": 0.7331,
    "pwcca": 0.7154,
    "singular_sum_20": 0.507615,
    "baseline": {
        "mean_cca": 0.1906,
        "top_20": 0.4115,
        "svcca_20": 0.0352,
        "pwcca": 0.1924,
    },
}
"""The tutorial's numbers. `singular_sum_20` is a share of the sum of the singular
values, not of their squares; for the baseline of SVCCA it centred the wrong axis.

Source: google/svcca, tutorial 001."""

_TOP = svcca_jax.FixedCount(20)
_COLUMNS = {
    "mean_cca": "mean CCA",
    "top_20": "top 20",
    "svcca_20": "SVCCA-20",
    "svcca_99": "SVCCA-99%",
    "pwcca": "PWCCA",
    "explained_20": "var. 20",
    "singular_sum_20": "sum 20",
}
_MEASURES: dict[str, svcca_jax.Measure] = {
    "mean_cca": svcca_jax.MeanCCA(fast=True),
    "svcca_20": svcca_jax.MeanSVCCA(keep=_TOP, fast=True, one_at_a_time=False),
    "svcca_99": svcca_jax.MeanSVCCA(fast=True, one_at_a_time=False),
    "pwcca": svcca_jax.MeanPWCCA(fast=True),
}
_DRAWS = 3


@dataclass(frozen=True)
class Tutorial:
    """Reproduces the results of the SVCCA tutorial."""

    activations: Path | None = None
    """Folder of published activations; ../shared/data/svcca_activations if omitted and
    there."""
    mnist: Path | None = None
    """Folder of the IDX files of MNIST, or an mnist.npz; ../shared/data/mnist if
    omitted and there, else scikit-learn's digits."""
    out: Path = Path("runs/svcca_tutorial")
    """Folder for the figures."""
    seed: int = 0
    """Seed of the first network and of the baselines; the second network has the
    next."""
    steps: int = 1200
    """Batches of 128 that each network is trained on."""


def train_pairs(
    digits: Digits, *, seed: int, steps: int
) -> tuple[list[Pair], list[float]]:
    """Returns the layers of two trained networks on the test images, and accuracies."""
    # At least ten datapoints for each neuron, as the tutorial advises.
    width = min(500, max(10, len(digits.test_images) // 10))
    layers, accuracies = [], []
    for number in (seed, seed + 1):
        key = jax.random.key(number)
        parameters = train_network(digits, width=width, steps=steps, key=key)
        outputs = jax.jit(forward)(parameters, digits.test_images)
        layers.append([np.asarray(layer) for layer in outputs])
        right = layers[-1][-1].argmax(axis=1) == digits.test_labels
        accuracies.append(float(right.mean()))
    pairs = [
        Pair(f"{digits.name} dense {number}", x, y)
        for number, (x, y) in enumerate(zip(*layers, strict=True), 1)
    ]
    return pairs, accuracies


@jax.jit
def _measure(x: Array, y: Array) -> dict[str, Array]:
    # One program, in which XLA finds the decompositions that the measures share.
    plain = svcca_jax.cca(x, y)
    return {
        "coefficients": plain.coefficients,
        "mean_cca": plain.mean,
        "svcca_20": svcca_jax.svcca(x, y, keep=_TOP).mean,
        "svcca_99": svcca_jax.svcca(x, y).mean,
        "pwcca": svcca_jax.pwcca(x, y).value,
        "singular_values": svcca_jax.pca(x).singular_values,
    }


def measure(pair: Pair) -> tuple[dict[str, float], Float[np.ndarray, " directions"]]:
    """Returns the similarities of a pair, and its canonical correlations.

    `explained_20` is the share of the variance of x that its first 20 directions hold,
    `singular_sum_20` their share of the sum of singular values, as in the tutorial.
    """
    # Rectified layers are close to singular: float32 would cut real directions.
    with jax.enable_x64(True):
        found = jax.device_get(_measure(*(np.float64(a) for a in (pair.x, pair.y))))
    coefficients, values = found.pop("coefficients"), found.pop("singular_values")
    similarities = {name: float(value) for name, value in found.items()}
    return similarities | {
        "top_20": float(coefficients[:20].mean()),
        "explained_20": _leading_share(values**2),
        "singular_sum_20": _leading_share(values),
    }, coefficients


def _leading_share(masses: Float[np.ndarray, " directions"]) -> float:
    return float(masses[:20].sum() / (masses.sum() or 1))


@functools.cache
def measure_baseline(
    shape_x: tuple[int, int], shape_y: tuple[int, int], seed: int
) -> tuple[dict[str, float], Float[np.ndarray, "samples directions"]]:
    """Returns the similarities of random activations, and coefficients of each draw.

    Args:
      shape_x: Shape of x, [datapoints, neurons_x].
      shape_y: Shape of y, [datapoints, neurons_y].
      seed: Seed of the draws.
    """
    key, other = jax.random.split(jax.random.key(seed))
    baseline = functools.partial(
        svcca_jax.random_baseline, shape_x=shape_x, shape_y=shape_y, repeats=_DRAWS
    )
    found = {
        name: float(baseline(similarity, key=key).mean())
        for name, similarity in _MEASURES.items()
    }
    samples = np.asarray(
        svcca_jax.random_coefficients(shape_x, shape_y, key=other, repeats=_DRAWS)
    )
    return found | {"top_20": float(samples[:, :20].mean())}, samples


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns the table: for each row its similarities, and its baseline below.

    Args:
      rows: Entries of `pairs` of the JSON object, or `PUBLISHED`.
    """
    width = max(len(row["name"]) for row in rows)
    head = "".join(f"{title:>11}" for title in _COLUMNS.values())
    lines = [f"{'layer':<{width}}  {'datapoints x neurons':>20}{head}"]
    for row in rows:
        shape = f"{row['datapoints']} x {'|'.join(map(str, row['neurons']))}"
        for name, size, values in (
            (row["name"], shape, row),
            ("  random", "", row["baseline"]),
        ):
            cells = "".join(
                f"{values[key]:11.4f}" if key in values else f"{'-':>11}"
                for key in _COLUMNS
            )
            lines.append(f"{name:<{width}}  {size:>20}{cells}")
    return "\n".join(lines)


def compare(pairs: Sequence[Pair], *, seed: int, out: Path) -> list[dict[str, Any]]:
    """Returns the entries of the JSON object, and draws one figure for each shape.

    Args:
      pairs: Layers to compare.
      seed: Seed of the baselines.
      out: Folder for the figures.
    """
    from svcca_jax.plots import plot_coefficients

    rows, curves, baselines = [], defaultdict(dict), {}
    for pair in pairs:
        print(f"comparing {pair.name}", file=sys.stderr)
        shapes = pair.x.shape, pair.y.shape
        found, coefficients = measure(pair)
        baseline, samples = measure_baseline(*shapes, seed)
        neurons = [width for _, width in shapes]
        size = f"{len(pair.x)} x {'|'.join(map(str, neurons))}"
        path = out / f"coefficients_{re.sub('[^0-9]+', '_', size)}.png"
        curves[path][pair.name], baselines[path] = coefficients, (size, samples)
        row = {"name": pair.name, "datapoints": len(pair.x), "neurons": neurons}
        rows.append({**row, **found, "baseline": baseline, "figure": str(path)})
    out.mkdir(parents=True, exist_ok=True)
    for path, (size, samples) in baselines.items():
        named = curves[path]
        title = f"Two networks, datapoints x neurons = {size}"
        figure = plot_coefficients(
            np.stack([*named.values()]),
            names=list(named),
            baseline=samples,
            title=title,
        )
        figure.savefig(path, dpi=150)
    return rows


def run(options: Tutorial) -> None:
    """Compares all layers and prints the table and the JSON line."""
    root = Path(__file__).resolve().parents[1]
    shared = Path(os.environ.get("E3DSNN_SHARED", root.parent / "shared")) / "data"
    activations, mnist = options.activations, options.mnist
    if activations is None and (shared / "svcca_activations").is_dir():
        activations = shared / "svcca_activations"
    if mnist is None and (shared / "mnist").is_dir():
        mnist = shared / "mnist"
    pairs = read_pairs(activations) if activations else []
    digits = read_mnist(mnist) if mnist else read_small_digits()
    print(f"training two networks on {digits.name}", file=sys.stderr)
    trained, accuracies = train_pairs(digits, seed=options.seed, steps=options.steps)
    rows = compare([*pairs, *trained], seed=options.seed, out=options.out)
    print(format_table(rows))
    print("\nPublished, for a layer whose activations do not ship:")
    print(format_table([PUBLISHED]))
    print("\nvar. 20, sum 20: share of the first layer's variance, and of the sum of")
    print("its singular values, in 20 directions; the tutorial quotes the latter.\n")
    summary = {
        "pairs": rows,
        "published": PUBLISHED,
        "figure": max(rows, key=lambda row: max(row["neurons"]))["figure"],
        "networks": {"data": digits.name, "accuracies": accuracies},
    }
    print(json.dumps(summary), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the comparison."""
    prog = "python -m experiments.svcca_tutorial"
    options = tyro.cli(Tutorial, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
