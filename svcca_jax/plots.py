"""Figures of similarities: grids, training, dynamics and coefficients.

Each function returns a matplotlib `Figure`, which the caller saves. It is made without
pyplot: no window opens. `import svcca_jax` imports neither this module nor matplotlib.
"""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

_COLOURS = matplotlib.colormaps["viridis"].with_extremes(bad="0.8")
_GREY = "#8a8a8a"
_MOST_NUMBERS = 12
# Room of a tick label of 8 points: its height, and its width for each letter.
_HEIGHT, _LETTER = 0.14, 0.065  # inches


def plot_grid(
    values: ArrayLike,
    *,
    names: Sequence[str],
    other_names: Sequence[str] | None = None,
    title: str | None = None,
    label: str = "similarity",
    lowest: float = 0.0,
    highest: float = 1.0,
) -> Figure:
    """Heat map of the similarity of every layer with every other one.

    Row 0 is at the top, as in a table. At most 12 x 12 cells carry their numbers; NaN
    is grey and carries none.

    Args:
      values: Similarities [layers, other layers], such as `pairwise` returns.
      names: Names of the layers, and of the others too without `other_names`.
      other_names: Names of the other layers.
      title: Title of the figure.
      label: What the values are.
      lowest: Value at the lower end of the colours.
      highest: Value at the upper end of the colours.

    Raises:
      ValueError: For values of another rank or without entries, names that are not one
        for each layer, and `lowest` that is not below `highest`.

    Source: SVCCA (NIPS 2017), one pane of the learning dynamics plots.
    """
    grid = _check_array(values, "values", "layers", "other layers")
    others = _check_names_of_grid(grid.shape, names, other_names)
    if not lowest < highest:
        raise ValueError(f"lowest must be below highest, got {lowest} and {highest}")
    numbered = max(grid.shape) <= _MOST_NUMBERS
    cell = 0.46 if numbered else min(0.24, 9 / max(grid.shape))
    figure, ((axes,),) = _make_panels(1, 1, grid.shape, cell, names, others, title)
    image = _draw_map(axes, grid, names, others, cell, lowest, highest)
    _add_bar(figure, axes, image, cell * len(others), label)
    if numbered:
        for (row, column), value in np.ndenumerate(grid):
            if np.isnan(value):
                continue
            red, green, blue, _ = image.to_rgba(value)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            colour = "white" if dark else "black"
            number = axes.text(column, row, f"{value:z.2f}", color=colour, fontsize=8)
            number.set(ha="center", va="center")
    return figure


def plot_training(
    values: ArrayLike,
    *,
    steps: ArrayLike,
    names: Sequence[str],
    other_names: Sequence[str] | None = None,
    baseline: ArrayLike | None = None,
    title: str | None = None,
    label: str = "SVCCA similarity",
) -> Figure:
    """Heat maps of all layers at each checkpoint against all layers at the end.

    Layers count from the bottom up and the colours of all panels run from 0 to 1:
    where layers near the input settle first, the diagonal lights up from the lower
    left.

    Args:
      values: Similarities [checkpoints, layers, other layers] of each layer at the
        checkpoint with each layer at the end of training.
      steps: Training step of each checkpoint.
      names: Names of the layers, and of those at the end too without `other_names`.
      other_names: Names of the layers at the end.
      baseline: Similarities of random activations of the same shapes [layers, other
        layers], in a last panel.
      title: Title of the figure.
      label: What the values are.

    Raises:
      ValueError: For values of another rank or without entries, and names or steps
        that are not one for each layer or checkpoint.

    Source: SVCCA (NIPS 2017), learning dynamics plots; google/svcca,
    `examples/dynamics_plots_crop.png`.
    """
    grids = _check_array(values, "values", "checkpoints", "layers", "other layers")
    shape = grids.shape[1:]
    others = _check_names_of_grid(shape, names, other_names)
    titles = [f"step {step:,}" for step in _check_steps(steps, len(grids))]
    if baseline is not None:
        random = _check_array(baseline, "baseline", "layers", "other layers")
        if random.shape != shape:
            raise ValueError(f"values are {shape} but the baseline is {random.shape}")
        grids = np.concatenate([grids, random[None]])
        titles.append("random")
    down = -(-len(grids) // 5)
    across = -(-len(grids) // down)
    cell = min(0.3, 2.4 / max(shape))
    figure, panels = _make_panels(down, across, shape, cell, names, others, title)
    for place, axes in enumerate(panels.flat):
        if place >= len(grids):
            axes.remove()
            continue
        image = _draw_map(axes, grids[place], names, others, cell, 0, 1)
        axes.invert_yaxis()
        axes.set_title(titles[place], fontsize=10)
        axes.set(xlabel="layer at the end", ylabel="layer at the step")
        axes.label_outer()
        if place + across >= len(grids):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("layer at the end")
            # Over an empty place there is room for names: rows need not move apart.
            axes.xaxis.set_in_layout(place // across == down - 1)
        if place == across - 1:
            _add_bar(figure, axes, image, cell * len(others), label)
    return figure


def plot_dynamics(
    values: ArrayLike,
    *,
    steps: ArrayLike,
    names: Sequence[str],
    baseline: ArrayLike | None = None,
    title: str | None = None,
    label: str = "similarity with the end of training",
) -> Figure:
    """Curves of how similar each layer is to its final self, over the steps.

    Args:
      values: Similarities [checkpoints, layers], such as `over_checkpoints` returns.
      steps: Training step of each checkpoint.
      names: Names of the layers in order of depth, which runs from dark to light.
      baseline: Similarity of random activations of the shape of each layer [layers], a
        grey band from the least to the greatest.
      title: Title of the figure.
      label: What the values are.

    Raises:
      ValueError: As `plot_training`.

    Source: google/svcca, `examples/PTB_Learning_Dynamics_CCA_Similarity-1.png`.
    """
    curves = _check_array(values, "values", "checkpoints", "layers")
    _check_count("values", curves.shape[1], "layers", "names", len(names))
    at = _check_steps(steps, len(curves))
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=label, title=title or "")
    if baseline is not None:
        random = _check_array(baseline, "baseline", "layers")
        _check_count("baseline", len(random), "layers", "names", len(names))
        axes.axhspan(
            random.min(), random.max(), color=_GREY, alpha=0.3, lw=0, label="random"
        )
    _draw_lines(figure, axes, at, curves.T, names)
    return figure


def plot_coefficients(
    coefficients: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    baseline: ArrayLike | None = None,
    title: str | None = None,
) -> Figure:
    """Curves of the sorted canonical correlations of pairs of layers.

    Args:
      coefficients: Correlations [pairs, directions], or [directions] of one pair.
      names: Names of the pairs.
      baseline: Correlations of unrelated layers, [samples, directions] or [directions]:
        a grey line at their mean, in a band from the least to the greatest.
      title: Title of the figure.

    Raises:
      ValueError: For another rank or no entries, names that are not one for each pair,
        and a baseline with another number of directions.

    Source: google/svcca, tutorial 001, the plots of sorted coefficients.
    """
    curves = _sort_curves(coefficients, "coefficients", "pairs")
    pairs, directions = curves.shape
    if names is not None:
        _check_count("coefficients", pairs, "pairs", "names", len(names))
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel="direction", ylabel="canonical correlation")
    axes.set_title(title or "")
    index = np.arange(1, directions + 1)
    if baseline is not None:
        draws = _sort_curves(baseline, "baseline", "samples")
        if draws.shape[1] != directions:
            raise ValueError(
                f"coefficients have {directions} directions but baseline has "
                f"{draws.shape[1]}"
            )
        axes.fill_between(
            index, draws.min(axis=0), draws.max(axis=0), color=_GREY, alpha=0.3, lw=0
        )
        axes.plot(index, draws.mean(axis=0), "--", color=_GREY, label="random baseline")
    # Matplotlib leaves labels with an underscore out of the legend.
    labels = [f"_{i}" for i in range(pairs)] if names is None else names
    _draw_lines(figure, axes, index, curves, labels)
    axes.set_xlim(0.5, directions + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _check_array(values: ArrayLike, name: str, *axes: str) -> Num[np.ndarray, "..."]:
    array = np.asarray(values)
    if array.ndim != len(axes):
        raise ValueError(
            f"{name} must have {len(axes)} axes [{', '.join(axes)}], got {array.ndim}: "
            f"shape {array.shape}"
        )
    for axis, size in zip(axes, array.shape, strict=True):
        if size == 0:
            raise ValueError(f"{name} must hold some {axis}, got 0: {array.shape}")
    # Half precision too: matplotlib draws no bfloat16.
    return array.astype(np.float64)


def _check_count(what: str, size: int, axis: str, argument: str, count: int) -> None:
    if count != size:
        raise ValueError(
            f"{what} have {size} {axis} but {argument} has {count} entries"
        )


def _check_names_of_grid(
    shape: tuple[int, ...], names: Sequence[str], other_names: Sequence[str] | None
) -> Sequence[str]:
    _check_count("values", shape[0], "layers", "names", len(names))
    argument = "names" if other_names is None else "other_names"
    others = names if other_names is None else other_names
    _check_count("values", shape[1], "other layers", argument, len(others))
    return others


def _check_steps(steps: ArrayLike, checkpoints: int) -> list[float]:
    at = np.asarray(steps)
    if at.ndim != 1:
        raise ValueError(f"steps must have 1 axis, got {at.ndim}: shape {at.shape}")
    _check_count("values", checkpoints, "checkpoints", "steps", len(at))
    return at.tolist()


def _sort_curves(values: ArrayLike, name: str, axis: str) -> Num[np.ndarray, "_ _"]:
    array = np.asarray(values)
    curves = array[None] if array.ndim == 1 else array
    return -np.sort(-_check_array(curves, name, axis, "directions"), axis=1)


def _make_panels(
    down: int,
    across: int,
    shape: tuple[int, ...],
    cell: float,
    names: Sequence[str],
    others: Sequence[str],
    title: str | None,
) -> tuple[Figure, np.ndarray]:
    """Figure with room for panels of square cells and the names beside them."""
    left, below = (_LETTER * max(map(len, each)) for each in (names, others))
    rows, columns = (max(1.3, cell * size) for size in shape)
    width = across * (columns + 0.2) + left + 1.3
    height = down * (rows + 0.4) + below + 0.5
    # Not merely constrained: panels of square cells move together.
    size = (max(width, 0.11 * len(title or "")), height)
    figure = Figure(figsize=size, layout="compressed")
    if title:
        figure.suptitle(title)
    return figure, figure.subplots(down, across, squeeze=False)


def _draw_map(
    axes: Axes,
    grid: Num[np.ndarray, "layers others"],
    names: Sequence[str],
    others: Sequence[str],
    cell: float,
    lowest: float,
    highest: float,
) -> AxesImage:
    image = axes.imshow(grid, cmap=_COLOURS, vmin=lowest, vmax=highest)
    # Where cells are smaller than letters, every second or third layer is named.
    stride = math.ceil(_HEIGHT / cell)
    rows, columns = range(0, len(names), stride), range(0, len(others), stride)
    axes.set_yticks(rows, names[::stride], fontsize=8)
    upright = _LETTER * max(map(len, others)) > 0.9 * cell * stride
    axes.set_xticks(columns, others[::stride], fontsize=8, rotation=90 * upright)
    return image


def _add_bar(
    figure: Figure, axes: Axes, image: AxesImage, width: float, label: str
) -> None:
    # In the coordinates of the axes it is exactly as high as the square cells.
    inch = 1 / max(1.3, width)
    bar = axes.inset_axes((1 + 0.1 * inch, 0, 0.15 * inch, 1))
    figure.colorbar(image, cax=bar, label=label)


def _draw_lines(
    figure: Figure,
    axes: Axes,
    x: ArrayLike,
    curves: Num[np.ndarray, "lines points"],
    names: Sequence[str],
) -> None:
    # Not to the end of the colours: yellow is faint on white.
    colours = _COLOURS(np.linspace(0, 0.88, len(curves)))
    marker = "o" if curves.shape[1] <= 30 else ""
    for curve, name, colour in zip(curves, names, colours, strict=True):
        axes.plot(x, curve, color=colour, label=name, marker=marker, markersize=3)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    columns = -(-len(labels) // 20)
    longest = max(map(len, labels), default=0)
    figure.set_size_inches(5.8 + columns * (0.55 + _LETTER * longest), 4.0)
    if labels:
        place = "outside right upper"
        figure.legend(handles, labels, loc=place, ncols=columns, fontsize=8)
