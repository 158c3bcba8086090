"""Curves with their spread over seeds, and the numbers of a spread."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]


def spread(values: ArrayLike) -> dict[str, float]:
    """Mean, least and greatest value over seeds, rounded to four digits."""
    array = np.asarray(values, np.float64)
    found = {"mean": array.mean(), "low": array.min(), "high": array.max()}
    return {name: round(float(value), 4) for name, value in found.items()}


def rounded(values: ArrayLike) -> list:
    """Values as nested lists for JSON, rounded to four digits; NaN is None."""
    array = np.round(np.asarray(values, np.float64), 4)
    objects = array.astype(object)
    objects[np.isnan(array)] = None
    return objects.tolist()


def level(x: ArrayLike, baseline: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
    """Baselines that no x changes, as a curve of `plot_panels`.

    Args:
      x: The x of the other curves, of which this takes the least and the greatest.
      baseline: One value for each layer [layers]: the band is of the layers.
    """
    ends = [np.min(x), np.max(x)]
    return ends, np.tile(np.asarray(baseline, np.float64)[:, None], 2)


def plot_panels(
    panels: Mapping[str, Curves],
    path: Path,
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> None:
    """Saves one panel of curves beside another, each a mean in a band over seeds.

    Args:
      panels: For each panel its curves: x [points] and y [seeds, points] by name.
        Names that start with "random" are grey, the first dashed, others dotted.
      path: The PNG; its folder is made.
      x_label: What x is.
      y_label: What y is.
      log_x: Whether x is on a logarithmic axis of base 2.
    """
    figure = Figure(figsize=(1.2 + 3.1 * len(panels), 3.6), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(curves)))
        dashes = itertools.chain(["--"], itertools.repeat(":"))
        for (name, (x, y)), colour in zip(curves.items(), colours, strict=True):
            random = name.startswith("random")
            style = {"color": "0.5" if random else colour, "lw": 1.4}
            values = np.asarray(y, np.float64)
            line = next(dashes) if random else "-"
            axes.plot(x, values.mean(axis=0), line, label=name, **style)
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
        if log_x:
            axes.set_xscale("log", base=2)
        axes.set(title=title, xlabel=x_label)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    row[0].set_ylabel(y_label)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
