"""Sections on how a run trained and what its network gets right and wrong."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from e3dsnn_jax.report.contents import Contents, Scores
from e3dsnn_jax.report.page import Paragraph, Section, Table
from e3dsnn_jax.report.plots import (
    BLUE,
    GREY,
    ORANGE,
    Choice,
    Plot,
    bars,
    escape,
    heat_map,
    lines,
)

_SHOWN_COUNTS = 24
"""Classes up to which the cells of the confusion matrix carry their counts."""

_UNITS = {
    "clouds_per_second": "clouds per second",
    "grad_norm": "norm of the gradient",
    "fetching_batches": "share of the time spent on fetching batches",
}


def training_section(contents: Contents) -> Section:
    """Loss, accuracy and every other number that the training wrote."""
    train = [line for line in contents.metrics if line["kind"] == "train"]
    held = [line for line in contents.metrics if line["kind"] == "eval"]
    title = "Training"
    if not train and not held:
        missing = f"No numbers yet: `e3dsnn train --run {contents.run}` writes them."
        return Section("training", title, (Paragraph(missing),))
    smoothing = contents.config.recipe.label_smoothing
    name = "training batches"
    if smoothing:
        name += f", label smoothing {smoothing:g}"
    loss = lines(
        "loss",
        "Loss",
        [
            _series(train, "loss", name=name, color=BLUE),
            _series(held, "loss", name="evaluated clouds", color=ORANGE, marked=True),
        ],
        x_title="training step",
        y_title="cross-entropy (nats)",
        rangemode="tozero",
    )
    accuracy = lines(
        "accuracy",
        "Accuracy",
        [
            _series(train, "accuracy", name="training batches", color=BLUE, scale=100),
            _series(
                held,
                "accuracy",
                name="evaluated clouds",
                color=ORANGE,
                scale=100,
                marked=True,
            ),
        ],
        x_title="training step",
        y_title="right clouds (%)",
        range=[0, 102],
    )
    others = _other_numbers(contents.metrics)
    return Section("training", title, (loss, accuracy, *others))


def _series(
    rows: Sequence[dict[str, Any]],
    field: str,
    *,
    name: str,
    color: str,
    scale: float = 1,
    marked: bool = False,
) -> dict[str, Any]:
    found = [(row["step"], row[field]) for row in rows if _is_number(row.get(field))]
    return {
        "x": [step for step, _ in found],
        "y": [scale * value for _, value in found],
        "name": escape(name),
        "mode": "lines+markers" if marked else "lines",
        "line": {"color": color, "width": 2 if marked else 1.3},
        "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _other_numbers(metrics: Sequence[dict[str, Any]]) -> tuple[Plot, ...]:
    """Whatever else the lines of metrics hold, one quantity at a time."""
    shown = {"step", "epoch", "loss", "accuracy"}
    found = dict.fromkeys(
        (line["kind"], field)
        for line in metrics
        for field, value in line.items()
        if field not in shown and _is_number(value)
    )
    if not found:
        return ()
    names, updates = [], []
    for kind, field in found:
        rows = [line for line in metrics if line["kind"] == kind]
        series = _series(rows, field, name=field, color=GREY)
        label = _UNITS.get(field, field.replace("_", " "))
        names.append(label if kind == "train" else f"{label} ({kind})")
        updates.append({"x": [series["x"]], "y": [series["y"]]})
    first = {"x": updates[0]["x"][0], "y": updates[0]["y"][0]}
    series = _series((), "", name="", color=GREY) | first | {"showlegend": False}
    choice = Choice("list", "Quantity", names, updates, traces=(0,))
    plot = lines(
        "others",
        "Other numbers of the training",
        [series],
        x_title="training step",
        y_title="quantity chosen above",
        choice=choice,
        height=260,
        wide=True,
    )
    return (plot,)


def confusion_section(contents: Contents) -> Section:
    """Which classes are right, and which are taken for which."""
    scores, title = contents.scores, "Classes"
    if scores is None:
        missing = f"No evaluation yet: `e3dsnn evaluate {contents.run}` makes it."
        return Section("classes", title, (Paragraph(missing),))
    names = contents.class_names
    totals = scores.confusion.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = 100 * scores.confusion / np.where(totals > 0, totals, np.nan)
    counts = [[str(int(n)) if n else "" for n in row] for row in scores.confusion]
    matrix = heat_map(
        "confusion",
        "Confusion matrix: clouds by true and predicted class",
        shares,
        rows=names,
        columns=names,
        x_title="predicted class",
        y_title="true class",
        colour_title="share of the true class (%)",
        hover="true %{y}<br>predicted %{x}<br>%{text} clouds, %{z:.1f} %",
        top=100,
        texts=counts,
        show_texts=len(names) <= _SHOWN_COUNTS,
    )
    parts: list[Any] = [matrix, _class_bars(names, scores)]
    confused = _most_confused(names, scores)
    if confused.rows:
        parts.append(confused)
    return Section("classes", title, tuple(parts))


def _class_bars(names: Sequence[str], scores: Scores) -> Plot:
    present = [i for i, a in enumerate(scores.class_accuracy) if not math.isnan(a)]
    order = sorted(present, key=lambda index: scores.class_accuracy[index])
    values = [100 * float(scores.class_accuracy[index]) for index in order]
    return bars(
        "class_accuracy",
        "Accuracy of each class, lowest first",
        [names[index] for index in order],
        [("right", values, BLUE)],
        x_title="right clouds of the class (%)",
        hover="%{y}: %{x:.1f} %<extra></extra>",
        texts=[f"{value:.0f}" for value in values],
        range=[0, 108],
    )


def _most_confused(names: Sequence[str], scores: Scores, *, shown: int = 8) -> Table:
    wrong = scores.confusion * (1 - np.eye(len(names)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:shown]
    rows = []
    for place in order.tolist():
        row, column = divmod(place, len(names))
        count = int(wrong[row, column])
        if count:
            of = int(scores.confusion[row].sum())
            rows.append((names[row], names[column], f"{count} of {of}"))
    return Table(
        "Most frequent mistakes",
        ("true class", "predicted class", "clouds"),
        tuple(rows),
    )
