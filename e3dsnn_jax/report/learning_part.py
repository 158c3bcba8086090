"""Sections on how layers took shape: similarity over training, and class information.

All figures have the input of the network on top or on the left.
"""

import math

import numpy as np

from e3dsnn_jax.report.analysis_file import Analysis
from e3dsnn_jax.report.contents import Contents
from e3dsnn_jax.report.page import Paragraph, Part, Section
from e3dsnn_jax.report.plots import (
    BLUE,
    GREEN,
    ORANGE,
    Choice,
    Plot,
    bars,
    heat_map,
    layer_labels,
    lines,
)

_STATISTICS = {"batch": "each batch's own statistics", "running": "running averages"}
"""How the page names what BatchNorm took."""


def dynamics_section(contents: Contents) -> Section:
    """When each layer reached its final state, and which layers are alike."""
    title, analysis = "Learning dynamics", contents.analysis
    if analysis is None:
        return Section("dynamics", title, (_missing(contents),))
    intro = (
        f"{analysis.measure}, of {analysis.values}, datapoints are "
        f"{analysis.datapoints}, {analysis.clouds} clouds of the {analysis.split} "
        f"split; BatchNorm by {_STATISTICS.get(analysis.statistics, '?')}. 1 is the "
        "same up to a linear map; the random baseline is what unrelated activations of "
        "the same shape reach."
    )
    parts: tuple[Part, ...] = (
        Paragraph(intro),
        _over_time(analysis),
        _convergence(analysis),
        _one_layer(analysis),
        _grid(analysis),
        _grid_baseline(analysis),
        Paragraph(_answer(analysis)),
    )
    return Section("dynamics", title, parts)


def class_section(contents: Contents) -> Section:
    """Where and when each class can be read from the layers."""
    title, analysis = "Class information", contents.analysis
    if analysis is None:
        return Section("class_information", title, (_missing(contents),))
    found = analysis.class_information
    if found is None:
        text = " ".join(analysis.notes) or (
            "The analysed clouds are all of one class: there is nothing to tell apart."
        )
        return Section("class_information", title, (Paragraph(text),))
    layers = layer_labels(found.layers)
    values = [
        np.concatenate([step, np.full((len(step), 1), np.nan), base], axis=1)
        for step in found.values
        for base in [found.baseline[:, None]]
    ]
    choice = Choice(
        "slider",
        "Training step",
        [str(step) for step in found.steps],
        [{"z": [step.tolist()]} for step in values],
        traces=(0,),
        start=len(found.steps) - 1,
    )
    plot = heat_map(
        "class_information_map",
        "Similarity of each layer with the indicator of each class",
        values[-1],
        rows=layers,
        columns=[*found.classes, "", "random baseline"],
        x_title="class",
        y_title="layer, input on top",
        colour_title="similarity",
        hover="%{y}<br>%{x}: %{z:.3f}",
        choice=choice,
        wide=True,
    )
    return Section("class_information", title, (plot,))


def _missing(contents: Contents) -> Paragraph:
    return Paragraph(f"No analysis yet: `e3dsnn analyse {contents.run}` makes it.")


def _over_time(analysis: Analysis) -> Plot:
    blank = np.full(len(analysis.layers), np.nan)
    return heat_map(
        "over_time",
        "Each layer at each step against its final state",
        np.column_stack([analysis.against_final.T, blank, analysis.baseline]),
        rows=layer_labels(analysis.layers),
        columns=[*(str(step) for step in analysis.steps), "", "random"],
        x_title="training step",
        y_title="layer, input on top",
        colour_title="similarity",
        hover="%{y}<br>step %{x}: %{z:.3f}",
    )


def _convergence(analysis: Analysis) -> Plot:
    found = analysis.convergence
    steps = [None if math.isnan(step) else int(step) for step in found.steps]
    return bars(
        "convergence",
        f"Step from which a layer stays above {found.threshold:g}",
        layer_labels(analysis.layers),
        [("step", [step or 0 for step in steps], GREEN)],
        x_title="training step",
        hover="%{y}: step %{x}<extra></extra>",
        texts=[_say_when(analysis, step) for step in steps],
        range=[0, 1.4 * analysis.steps[-1]],  # room for the longest text
    )


def _one_layer(analysis: Analysis) -> Plot:
    labels, steps = layer_labels(analysis.layers), list(analysis.steps)
    others_x = [step for _ in labels for step in (*steps, None)]
    others_y = [
        value
        for place in range(len(labels))
        for value in (*analysis.against_final[:, place].tolist(), None)
    ]
    ends = [steps[0], steps[-1]]
    updates, captions = [], []
    for place in range(len(labels)):
        base = float(analysis.baseline[place])
        band_x, band_y = _band(analysis, place)
        updates.append(
            {
                "x": [band_x, ends, steps],
                "y": [band_y, [base, base], analysis.against_final[:, place].tolist()],
            }
        )
        captions.append(_describe_layer(analysis, place))
    series = [
        {
            "x": others_x,
            "y": others_y,
            "name": "all layers",
            "line": {"color": "#d5d8dc", "width": 1},
            "hoverinfo": "skip",
        },
        {
            "name": _band_name(analysis),
            "fill": "toself",
            "fillcolor": "rgba(47,109,179,0.2)",
            "line": {"width": 0},
            "hoverinfo": "skip",
        },
        {
            "name": "random baseline",
            "line": {"color": ORANGE, "width": 1.3, "dash": "dash"},
            "hovertemplate": "random: %{y:.3f}<extra></extra>",
        },
        {
            "name": "this layer",
            "mode": "lines+markers",
            "line": {"color": BLUE, "width": 2},
            "hovertemplate": "step %{x}: %{y:.3f}<extra></extra>",
        },
    ]
    for trace, x, y in zip(series[1:], updates[0]["x"], updates[0]["y"], strict=True):
        trace |= {"x": x, "y": y}
    return lines(
        "one_layer",
        "One layer against its final state",
        series,
        x_title="training step",
        y_title=f"similarity to step {steps[-1]}",
        range=[0, 1.02],
        choice=Choice(
            "list", "Layer", labels, updates, traces=(1, 2, 3), captions=captions
        ),
        wide=True,
    )


def _band(analysis: Analysis, place: int) -> tuple[list[int], list[float]]:
    """The outline of a layer's intervals: along the upper ends and back below."""
    if analysis.intervals is None:
        return [], []
    low, high = analysis.intervals.low[:, place], analysis.intervals.high[:, place]
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high)).tolist()
    there = [analysis.steps[index] for index in known]
    outline = [*high[known].tolist(), *low[known][::-1].tolist()]
    return [*there, *reversed(there)], outline


def _band_name(analysis: Analysis) -> str:
    if analysis.intervals is None:
        return "no intervals"
    return f"{analysis.intervals.level:.0%} interval, clouds drawn anew"


def _say_when(analysis: Analysis, step: int | None) -> str:
    """When a layer had converged; at the last step it is itself in any case."""
    if step is None:
        return "never"
    return "not before the end" if step == analysis.steps[-1] else f"from step {step}"


def _describe_layer(analysis: Analysis, place: int) -> str:
    found = analysis.convergence.steps[place]
    when = _say_when(analysis, None if math.isnan(found) else int(found))
    reached = f"stays above {analysis.convergence.threshold:g}: {when}"
    return (
        f"{analysis.neurons[place]:.0f} neurons, "
        f"{analysis.datapoints_of_layer[place]:.0f} datapoints; {reached}; random "
        f"baseline {analysis.baseline[place]:.3f}."
    )


def _grid(analysis: Analysis) -> Plot:
    grids, layers = analysis.grids, layer_labels(analysis.layers)
    return heat_map(
        "grid",
        "Layers at the chosen step against layers at the end",
        grids.values[-1],
        rows=layers,
        columns=layers,
        x_title=f"layer at step {analysis.steps[-1]}",
        y_title="layer at the chosen step",
        colour_title="similarity",
        hover="%{y} at the step<br>%{x} at the end<br>%{z:.3f}",
        choice=Choice(
            "slider",
            "Training step",
            [str(step) for step in grids.steps],
            [{"z": [grid.tolist()]} for grid in grids.values],
            traces=(0,),
            start=len(grids.steps) - 1,
        ),
    )


def _grid_baseline(analysis: Analysis) -> Plot:
    layers = layer_labels(analysis.layers)
    return heat_map(
        "grid_baseline",
        "The same of random activations",
        analysis.grids.baseline,
        rows=layers,
        columns=layers,
        x_title="random layer of that shape",
        y_title="random layer of that shape",
        colour_title="similarity",
        hover="%{y}<br>%{x}<br>%{z:.3f}",
    )


def _answer(analysis: Analysis) -> str:
    found = analysis.convergence
    question = found.question[:1].upper() + found.question[1:]
    if math.isnan(found.rank_correlation):
        return f"{question} No order is defined for these steps."
    return (
        f"{question} Rank correlation of depth and step of convergence, over the "
        f"outputs of the blocks: {found.rank_correlation:.2f}, where 1 is bottom-up."
    )
