"""How layers of networks of digits come to their final form while they train.

    python -m experiments.digits.learning_dynamics [--mnist DIR] [--measure pwcca]

Trains a dense and a convolutional network from several seeds and compares every layer
at every checkpoint with itself at the end, and (first seed) with every layer at the
end. A layer has settled at the first checkpoint from which on its similarity stays at
least the threshold; `svcca_jax.dynamics.bottom_up_test` asks whether lower layers
settle first. It treats layers as independent, so that its p is too small where
neighbours settle alike: read it with the correlation of each run, printed beside it.
Beside all similarities stands the baseline: random activations of the same shapes.

The paper's finding, on CIFAR-10: layers converge from the bottom up.

Measured with the defaults, three seeds each, accuracy 0.966 and 0.979. Convolutional:
at a threshold of 0.9 the first layer settles by step 30, the second at 150, the third
and the dense layer at 210 to 390, the logits at 150 to 210; rank correlation with depth
0.50 (p 0.016), of the hidden layers alone 0.83 (p 0.0013). Dense: the hidden layers
rise together, 0.79 to 0.81 at 35 % of training (random 0.27), rank correlation 0.22 (p
0.37) at 0.9 and 0.67 (p 0.037) at 0.8; the ten logits settle first of all, so that with
them it is -0.39 and -0.17. By SVCCA bottom-up is clear in the convolutions only. With
`--measure cka` it is clear in both: at 0.9 rank correlation 0.83 (p 0.0006) in dense
and 0.83 (p 0.00005) in convolutional networks, all layers. The answer depends on the
measure, perhaps since SVCCA weighs all kept directions of a wide layer alike.
About 3 minutes of processor time (1.5 with CKA).
"""

import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

import svcca_jax
from e3dsnn_jax.cli import report_errors
from experiments.digits.data import Images, open_images
from experiments.digits.figures import level, plot_panels, rounded, spread
from experiments.digits.networks import (
    Conv,
    Dense,
    Network,
    image_rows,
    position_rows,
)
from experiments.digits.training import Variables, accuracy, activations, train
from svcca_jax.dynamics import bottom_up_test, convergence_steps
from svcca_jax.plots import plot_training

MEASURES: dict[str, svcca_jax.Measure] = {
    "svcca": svcca_jax.MeanSVCCA(),
    "pwcca": svcca_jax.MeanPWCCA(),
    "cka": svcca_jax.CKA(),
}
_SHARES = (0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.65, 0.75, 0.9, 1)
_PANES = (0, 0.35, 0.75, 1)
_MOST_ROWS = 10_000


@dataclass(frozen=True)
class Config:
    """Similarity of every layer with its final self, over training."""

    mnist: Path | None = None
    """Folder of the IDX files of MNIST, or an mnist.npz; ../shared/data/mnist if
    omitted and there, else scikit-learn's digits."""
    out: Path = Path("runs/digits")
    """Folder for the figures."""
    measure: Literal["svcca", "pwcca", "cka"] = "svcca"
    """What to compare layers by; SVCCA keeps 99 % of the variance."""
    thresholds: tuple[float, ...] = (0.7, 0.8, 0.9)
    """Least similarities of a settled layer; one test is done for each."""
    seeds: int = 3
    """Networks of each kind."""
    steps: int = 600
    """Batches of 128 that each is trained on."""
    images: int = 3000
    """Test images that are the datapoints."""
    width: int = 300
    """Neurons of the hidden layers of the dense network."""


def against_final(
    network: Network,
    checkpoints: list[Variables],
    images: Float[np.ndarray, "images height width 1"],
    measure: svcca_jax.Measure,
) -> Float[np.ndarray, "checkpoints layers"]:
    """Similarity of every layer at every checkpoint with itself at the last.

    Positions are datapoints and channels neurons, 10,000 datapoints at most.
    """
    found = [activations(network, each, jnp.asarray(images)) for each in checkpoints]
    columns = []
    for name in network.layer_names():
        rows = [[position_rows(each[name], most=_MOST_ROWS)] for each in found]
        columns.append(
            svcca_jax.over_checkpoints(rows, rows[-1], measure=measure)[:, 0]
        )
    return np.stack(columns, axis=1)


def layer_by_layer(
    network: Network,
    checkpoints: list[Variables],
    images: Float[np.ndarray, "images height width 1"],
    measure: svcca_jax.Measure,
) -> Float[np.ndarray, "checkpoints layers layers"]:
    """Similarity of all layers at every checkpoint with all layers at the last.

    Images are datapoints, and maps are averaged to 3 x 3.
    """
    rows = [
        [
            image_rows(a)
            for a in activations(network, each, jnp.asarray(images)).values()
        ]
        for each in checkpoints
    ]
    return svcca_jax.over_checkpoints(rows, rows[-1], measure=measure, all_pairs=True)


def measure_baseline(
    network: Network,
    variables: Variables,
    images: Float[np.ndarray, "images height width 1"],
    measure: svcca_jax.Measure,
) -> Float[np.ndarray, " layers"]:
    """Similarity of random activations of the shape of every layer."""
    shapes = [
        position_rows(a, most=_MOST_ROWS).shape
        for a in activations(network, variables, jnp.asarray(images)).values()
    ]
    draw = functools.partial(
        svcca_jax.random_baseline, measure, key=jax.random.key(0), repeats=2
    )
    return np.stack([np.asarray(draw(shape, shape)).mean() for shape in shapes])


def measure_grid_baseline(
    network: Network,
    variables: Variables,
    images: Float[np.ndarray, "images height width 1"],
    measure: svcca_jax.Measure,
) -> Float[np.ndarray, "layers layers"]:
    """What `layer_by_layer` finds of random activations of the same shapes."""
    shapes = [
        image_rows(a).shape
        for a in activations(network, variables, jnp.asarray(images)).values()
    ]
    rng = np.random.default_rng(0)
    ours, others = (
        [rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(2)
    )
    return np.asarray(svcca_jax.pairwise(ours, others, measure=measure))


def study(network: Network, kind: str, data: Images, config: Config) -> dict[str, Any]:
    """Trains networks of one kind from all seeds and compares their layers."""
    measure = MEASURES[config.measure]
    images = data.test[: config.images]
    steps = sorted({round(share * config.steps) for share in _SHARES})
    values, accuracies, last = [], [], []
    for seed in range(config.seeds):
        print(f"{kind}: seed {seed}", file=sys.stderr)
        key = jax.random.key(seed)
        taken = train(network, data.train, data.train_labels, steps=steps, key=key)
        accuracies.append(accuracy(network, taken[-1], data.test, data.test_labels))
        values.append(against_final(network, taken, images, measure))
        if seed == 0:
            last = taken
    names = network.layer_names()
    curves = np.stack(values)
    baseline = measure_baseline(network, last[-1], images, measure)
    panes = [round(share * config.steps) for share in _PANES]
    grids = layer_by_layer(
        network, [last[steps.index(step)] for step in panes], images, measure
    )
    grid_baseline = measure_grid_baseline(network, last[-1], images, measure)
    figure = plot_training(
        grids,
        steps=panes,
        names=names,
        baseline=grid_baseline,
        label=f"{config.measure.upper()}, {kind}",
    )
    config.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out / f"dynamics_{kind}_{config.measure}.png", dpi=130)
    settled = {
        threshold: np.stack([convergence_steps(v, steps, threshold) for v in values])
        for threshold in config.thresholds
    }
    return {
        "layers": names,
        "steps": steps,
        "accuracy": spread(accuracies),
        "against_final": rounded(curves),
        "baseline": rounded(baseline),
        "panes": {
            "steps": panes,
            "values": rounded(grids),
            "baseline": rounded(grid_baseline),
        },
        "convergence": {str(t): rounded(s) for t, s in settled.items()},
        "bottom_up": {
            str(t): {
                "all_layers": bottom_up_test(each)._asdict(),
                "hidden_layers": bottom_up_test(each[:, :-1])._asdict(),
            }
            for t, each in settled.items()
        },
    }


def format_table(kind: str, result: dict[str, Any]) -> str:
    """The similarity at each step, and when each layer settled in each seed."""
    names = result["layers"]
    mean = np.mean(result["against_final"], axis=0)
    lines = [f"{kind}, mean over seeds: step" + "".join(f"{n:>9}" for n in names)]
    for step, row in zip(result["steps"], mean, strict=True):
        lines.append(f"{step:>{len(kind) + 22}}" + "".join(f"{v:9.3f}" for v in row))
    base = "".join(f"{v:9.3f}" for v in result["baseline"])
    lines.append(f"{'random':>{len(kind) + 22}}{base}")
    for threshold, tests in result["bottom_up"].items():
        lines.append(f"settled at {threshold}: {result['convergence'][threshold]}")
        for which, test in tests.items():
            runs = ", ".join(f"{each:.2f}" for each in test["correlations"])
            lines.append(
                f"  {which}: rank correlation with depth {test['correlation']:.2f} "
                f"(runs: {runs}), p {test['p_value']:.2g} (layers treated as "
                "independent)"
            )
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
        curves = np.asarray(result["against_final"])
        panels[kind] = {
            name: (result["steps"], curves[:, :, i])
            for i, name in enumerate(result["layers"])
        } | {"random": level(result["steps"], result["baseline"])}
    path = config.out / f"dynamics_{config.measure}.png"
    label = f"{config.measure.upper()} with the end of training"
    plot_panels(panels, path, x_label="step", y_label=label)
    summary = {"data": data.name, "measure": config.measure, **results}
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({**summary, "figure": str(path), "seconds": seconds}))


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.digits.learning_dynamics"
    config = tyro.cli(Config, args=arguments, prog=prog)
    return report_errors(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
