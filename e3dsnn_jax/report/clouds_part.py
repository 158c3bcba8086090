"""The section with clouds of the test set that can be turned, wrong ones first."""

import base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from e3dsnn_jax.data.clouds import CloudSubset, PointCloud, ShapeDataset
from e3dsnn_jax.report.page import Paragraph, Section
from e3dsnn_jax.report.plots import Choice, Plot
from e3dsnn_jax.training.evaluate import Evaluation, evaluate_network
from e3dsnn_jax.training.saved import SavedNetwork

_POINTS = 1500
"""Points shown of a cloud."""
_SHOWN, _WRONG = 40, 28
"""Clouds on the page, and the most of them that are wrong."""
_UNIT = 10_000
"""Steps of a stored coordinate in the reach of a cloud: two bytes instead of four."""

_SHADES = [[0, "#bcd3ea"], [0.5, "#4b89c8"], [1, "#16365f"]]


class Judged(NamedTuple):
    """A cloud with what the network says of it."""

    cloud: PointCloud
    probabilities: Float[np.ndarray, " classes"]

    @property
    def wrong(self) -> bool:
        """Whether the most probable class is another than the true one."""
        return int(self.probabilities.argmax()) != self.cloud.label


class JudgedClouds(NamedTuple):
    """The clouds of a page, and how many they were chosen from."""

    shown: tuple[Judged, ...]
    evaluated: int
    wrong: int
    whole: int
    """Clouds of the whole dataset."""
    step: int | None
    """Of the network."""


def judge_clouds(
    network: SavedNetwork,
    dataset: ShapeDataset,
    count: int,
    *,
    on_batch: Callable[[int, int], None] | None = None,
) -> JudgedClouds:
    """Runs the network over clouds of a dataset and chooses those to show.

    Args:
      network: From `load_run`.
      dataset: What the run is evaluated on.
      count: Clouds to run it over, a fixed random choice.
      on_batch: Called with the batches done and their number after each one.

    Raises:
      ValueError: If the dataset is empty or does not fit the network.
    """
    places = np.random.default_rng(0).permutation(len(dataset))[:count]
    part = CloudSubset(dataset, tuple(sorted(places.tolist())))
    evaluation = evaluate_network(network, part, on_batch=on_batch)
    chosen = choose_clouds(part, evaluation, step=network.step)
    return chosen._replace(whole=len(dataset))


def choose_clouds(
    dataset: ShapeDataset, evaluation: Evaluation, *, step: int | None
) -> JudgedClouds:
    """The clouds to show: wrong ones, the surest first, then right ones of each class.

    Args:
      dataset: Its clouds.
      evaluation: Of that dataset.
      step: Optimizer updates behind the network.
    """
    order = rank_clouds(evaluation.labels, evaluation.probabilities)
    wrong = int((evaluation.probabilities.argmax(axis=1) != evaluation.labels).sum())
    shown = [*order[: min(wrong, _WRONG)], *order[wrong:]][:_SHOWN]
    return JudgedClouds(
        tuple(Judged(dataset[i], evaluation.probabilities[i]) for i in shown),
        evaluated=len(evaluation.labels),
        wrong=wrong,
        whole=len(dataset),
        step=step,
    )


def rank_clouds(
    labels: Int[np.ndarray, " clouds"],
    probabilities: Float[np.ndarray, "clouds classes"],
) -> list[int]:
    """All clouds: wrong ones first, the surest mistake first; then right ones in turns.

    Turns go over the classes: the first right cloud of each, then the second of each.

    Args:
      labels: True class of each cloud.
      probabilities: Predicted distribution of each cloud.
    """
    best = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(best != labels)
    wrong = wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")]
    seen: dict[int, int] = {}
    right = []
    for index in np.flatnonzero(best == labels).tolist():
        label = int(labels[index])
        right.append((seen.setdefault(label, 0), label, index))
        seen[label] += 1
    return [*wrong.tolist(), *(index for _, _, index in sorted(right))]


def clouds_section(judged: JudgedClouds | str, class_names: Sequence[str]) -> Section:
    """The clouds, one at a time.

    Args:
      judged: From `choose_clouds`, or why there are none.
      class_names: Names in the order of the probabilities.
    """
    title = "Clouds"
    if isinstance(judged, str):
        return Section("clouds", title, (Paragraph(judged),))
    if judged.evaluated == judged.whole:
        among = f"all {judged.whole} clouds"
    else:
        among = f"{judged.evaluated} of {judged.whole} clouds, a fixed random choice"
    at = "" if judged.step is None else f" by the network of step {judged.step}"
    shown_wrong = sum(each.wrong for each in judged.shown)
    text = (
        f"{judged.wrong} wrong among {among}{at}. "
        f"{shown_wrong} of them come first, the surest mistake on top; then right ones "
        f"of every class. Drag to turn, scroll or pinch to come nearer; at most "
        f"{_POINTS} points of a cloud are shown."
    )
    plot = _scatter(judged.shown, class_names)
    return Section("clouds", title, (Paragraph(text), plot))


def _scatter(shown: Sequence[Judged], class_names: Sequence[str]) -> Plot:
    updates = [_trace(each.cloud) for each in shown]
    names, captions = [], []
    for each in shown:
        best = class_names[int(each.probabilities.argmax())]
        true = class_names[each.cloud.label]
        names.append(f"✗ {true}, taken for {best}" if each.wrong else f"✓ {true}")
        captions.append(_caption(each, class_names))
    trace = {
        "type": "scatter3d",
        "mode": "markers",
        "hoverinfo": "skip",
        "showlegend": False,
        **{
            field: values[0] for field, values in updates[0].items() if "." not in field
        },
        "marker": {
            "size": 2.2,
            "color": updates[0]["marker.color"][0],
            "colorscale": _SHADES,
            "cmin": 0,
            "cmax": 255,
        },
    }
    axis = {"visible": False, "range": [-_UNIT, _UNIT]}
    layout = {
        "scene": {
            "xaxis": axis,
            "yaxis": axis,
            "zaxis": axis,
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.05, "y": -1.25, "z": 0.7}},
        },
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        # Choosing another cloud leaves the view as it was turned.
        "uirevision": "kept",
    }
    choice = Choice("list", "Cloud", names, updates, traces=(0,), captions=captions)
    return Plot("cloud", "", [trace], layout, 440, choice, wide=True)


def _caption(each: Judged, class_names: Sequence[str]) -> str:
    order = np.argsort(-each.probabilities, kind="stable")[:3].tolist()
    guesses = ", ".join(
        f"{class_names[index]} {each.probabilities[index]:.0%}" for index in order
    )
    return (
        f"True class: {class_names[each.cloud.label]}. Predicted: {guesses}. "
        f"{len(each.cloud.points)} points, {each.cloud.name}."
    )


def _trace(cloud: PointCloud) -> dict[str, Any]:
    points = cloud.points
    if len(points) > _POINTS:
        kept = np.random.default_rng(0).permutation(len(points))[:_POINTS]
        points = points[kept]
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    points = points / (float(np.abs(points).max()) or 1.0)
    # Shaded from one side to the other, so that the shape reads as a solid.
    depth = points @ np.array([0.6, -0.7, 0.4], np.float32)
    shade = (depth - depth.min()) / (float(np.ptp(depth)) or 1.0)
    stored = np.round(_UNIT * points).astype(np.int16)
    return {
        **{name: [_pack(stored[:, axis])] for axis, name in enumerate("xyz")},
        "marker.color": [_pack(np.round(255 * shade).astype(np.uint8))],
    }


def _pack(values: Num[np.ndarray, " points"]) -> dict[str, str]:
    """An array as plotly reads it from base64."""
    kind = {"int16": "i2", "uint8": "u1"}[values.dtype.name]
    little = values.astype(values.dtype.newbyteorder("<"))
    return {"dtype": kind, "bdata": base64.b64encode(little.tobytes()).decode()}
