"""The figures of a run, as PNG files: nothing is ever shown on a screen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.energy import Account
from e3dsnn_jax.training.metrics import FiringRate
from e3dsnn_jax.whole_file import whole_file

_BLUE, _ORANGE, _GREY = "#2f6db3", "#d9722b", "#8a8a8a"


def draw_confusion(
    confusion: Int[np.ndarray, "classes classes"],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Draws where the clouds of each class went, as shares of that class.

    Cells carry the number of clouds where there is any; the diagonal is right.

    Args:
      confusion: Counts, a row for each true class.
      class_names: Names in the order of the rows.
      path: The PNG file to write.
    """
    classes = len(class_names)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    side = 3.0 + 0.28 * max(classes, 8)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    font = 9 if classes <= 16 else 7
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "black"
            label = axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color=colour,
                fontsize=font - 1,
            )
            # Inside the axes anyway: the layout need not measure a thousand of them.
            label.set_in_layout(False)
    ticks = range(classes)
    labels = [_shorten(name) for name in class_names]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=font)
    axes.set_yticks(ticks, labels, fontsize=font)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e8e8e8", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    right, clouds = int(np.trace(confusion)), int(confusion.sum())
    axes.set_title(
        f"{right} of {clouds} clouds right ({right / max(clouds, 1):.1%})", fontsize=11
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the true class")
    _save(figure, path)


def draw_firing(firing: dict[str, FiringRate], path: Path) -> None:
    """Draws how much each spiking layer fires, in the order of the network.

    Args:
      firing: Rates by layer.
      path: The PNG file to write.
    """
    names = list(firing)
    rates = [100 * firing[name].firing_rate for name in names]
    spikes = [firing[name].mean_spikes for name in names]
    figure = _figure(8.5, 1.3 + 0.3 * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = np.arange(len(names))
    for axes, values, colour, form in (
        (left, rates, _BLUE, "{:.1f}"),
        (right, spikes, _ORANGE, "{:.2f}"),
    ):
        bars = axes.barh(rows, values, color=colour)
        axes.bar_label(bars, [form.format(v) for v in values], padding=3, fontsize=8)
        axes.margins(x=0.15, y=0.01)
        _tidy(axes)
    left.set_yticks(rows, names, fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("neurons that fire (% of voxels, steps, channels)")
    right.set_xlabel("mean spike of a neuron")
    _save(figure, path)


def draw_energy(account: Account, path: Path) -> None:
    """Draws energy and firing rate of each layer, in the order of the network.

    Args:
      account: What the layers did, with its prices.
      path: The PNG file to write.
    """
    layers, clouds = account.layers, account.clouds
    names = [layer.shape.name for layer in layers]
    rows = np.arange(len(layers))
    figure = _figure(11.0, 1.9 + 0.3 * len(layers))
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 2))
    parts = [layer.energy(account.prices) for layer in layers]
    compute = np.array([part["compute"] for part in parts]) / clouds / 1e3
    real = np.array([not layer.shape.takes_spikes for layer in layers])
    for mask, colour, label in (
        (real, _ORANGE, "products (real-valued input)"),
        (~real, _BLUE, "additions (spikes)"),
    ):
        values = np.where(mask, compute, 0)
        left.barh(rows, values, color=colour, label=label)
    for row, value in enumerate(compute):
        left.annotate(
            f"{float(f'{value:.3g}'):g}",
            (value, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    left.margins(x=0.15)
    left.set_xlabel("computation (nJ a cloud)")
    start = np.zeros(len(layers))
    for name, part_names, colour in (
        ("computation", ("compute",), _BLUE),
        ("neurons, BatchNorm", ("updates",), "#7fb2e5"),
        ("weights", ("weights",), _ORANGE),
        ("membranes, sums", ("state",), "#f0b27a"),
        ("spikes, addresses", ("spikes", "addressing"), _GREY),
    ):
        values = np.array([sum(part[key] for key in part_names) for part in parts])
        values = values / clouds / 1e6
        middle.barh(rows, values, left=start, color=colour, label=name)
        start = start + values
    middle.set_xlabel("with memory, no reuse (µJ a cloud)")
    rates = [100 * layer.firing_rate for layer in layers]
    bars = right.barh(rows, np.where(real, 0, rates), color=_BLUE)
    labels = [
        "real" if is_real else f"{rate:.1f}"
        for is_real, rate in zip(real, rates, strict=True)
    ]
    right.bar_label(bars, labels, padding=3, fontsize=8)
    right.margins(x=0.2)
    right.set_xlabel("firing rate (%)")
    for axes in (left, middle, right):
        axes.margins(y=0.01)
        _tidy(axes)
    for axes in (left, middle):
        axes.legend(
            frameon=False,
            fontsize=8,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=1 if axes is left else 2,
        )
    left.set_yticks(rows, names, fontsize=8)
    left.invert_yaxis()
    _save(figure, path)


def draw_training(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draws loss and accuracy over the epochs, of training steps and evaluations.

    Args:
      metrics: Lines of `metrics.jsonl`.
      path: The PNG file to write.
    """
    figure = _figure(9.0, 3.8)
    curves = [line for line in metrics if line["kind"] == "train"]
    points = [line for line in metrics if line["kind"] == "eval"]
    panels = figure.subplots(1, 2)
    for axes, key, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
        axes.plot(
            [line["epoch"] for line in curves],
            [scale * line[key] for line in curves],
            color=_GREY,
            linewidth=1,
            label="training (augmented clouds)",
        )
        axes.plot(
            [line["epoch"] for line in points],
            [scale * line[key] for line in points],
            color=_BLUE,
            marker="o",
            markersize=4,
            label="evaluation",
        )
        axes.set_xlabel("epoch")
        _tidy(axes)
    panels[0].set_ylabel("cross-entropy (nats; smoothed in training)")
    panels[1].set_ylabel("accuracy (%)")
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)


def draw_clouds(
    clouds: Sequence[PointCloud],
    probabilities: Float[np.ndarray, "clouds classes"],
    class_names: Sequence[str],
    path: Path,
    *,
    columns: int = 6,
) -> None:
    """Draws clouds with their true and predicted class; wrong ones in orange.

    Args:
      clouds: The clouds to show.
      probabilities: Predicted distribution of each of them.
      class_names: Names of the classes.
      path: The PNG file to write.
      columns: Clouds in a row.
    """
    rows = -(-len(clouds) // columns)
    figure = _figure(2.1 * columns, 2.5 * rows)
    grid = figure.subplots(
        rows, columns, squeeze=False, subplot_kw={"projection": "3d"}
    ).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, cloud, distribution in zip(grid, clouds, probabilities, strict=False):
        points = (
            cloud.points - (cloud.points.max(axis=0) + cloud.points.min(axis=0)) / 2
        )
        reach = float(np.abs(points).max()) or 1.0
        # Nearer points are darker, so that the shape reads as a solid.
        depth = points @ np.array([0.6, -0.7, 0.4], np.float32)
        axes.scatter(*points.T, c=depth, cmap="Blues", s=1.5, vmin=-1.5 * reach)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        axes.set_box_aspect((1, 1, 1), zoom=1.3)
        best = int(distribution.argmax())
        wrong = best != cloud.label
        title = f"{_shorten(class_names[best])} {distribution[best]:.0%}"
        if wrong and cloud.label >= 0:
            title += f"\ntrue: {_shorten(class_names[cloud.label])}"
        colour = _ORANGE if wrong and cloud.label >= 0 else "black"
        axes.set_title(title, fontsize=8, color=colour)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    # Without pyplot no figure outlives its function and no display is looked for.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=130)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
