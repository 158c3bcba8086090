"""`analysis.json`: how similar layers are to their final state, step by step."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.report.json_file import JsonFile

ANALYSIS = "analysis.json"


class Intervals(NamedTuple):
    """Similarity of each layer with its final state, over clouds drawn anew."""

    level: float
    """Confidence of the intervals."""
    low: Float[np.ndarray, "steps layers"]
    high: Float[np.ndarray, "steps layers"]


class Grids(NamedTuple):
    """Layers at some steps (rows) against the layers at the end (columns)."""

    steps: tuple[int, ...]
    values: Float[np.ndarray, "steps layers layers"]
    baseline: Float[np.ndarray, "layers layers"]


class Convergence(NamedTuple):
    """The step from which each layer resembles its final state."""

    threshold: float
    steps: Float[np.ndarray, " layers"]
    """NaN for a layer that never does."""
    rank_correlation: float
    """Of depth and step over the blocks; NaN where it is not defined."""
    question: str


class ClassInformation(NamedTuple):
    """How similar each layer is to the indicator of each class."""

    layers: tuple[str, ...]
    classes: tuple[str, ...]
    steps: tuple[int, ...]
    values: Float[np.ndarray, "steps layers classes"]
    baseline: Float[np.ndarray, " layers"]


class Analysis(NamedTuple):
    """What `e3dsnn analyse` found out about a run."""

    measure: str
    values: str
    """What of a layer was compared: spikes or membranes."""
    datapoints: str
    """Rows of the matrices that were compared: voxels or clouds."""
    statistics: str
    """Whose means and variances BatchNorm took: batch or running."""
    clouds: int
    split: str
    notes: tuple[str, ...]
    """What a reader must know."""
    layers: tuple[str, ...]
    neurons: Float[np.ndarray, " layers"]
    datapoints_of_layer: Float[np.ndarray, " layers"]
    steps: tuple[int, ...]
    against_final: Float[np.ndarray, "steps layers"]
    intervals: Intervals | None
    baseline: Float[np.ndarray, " layers"]
    """The measure of random activations of the same shape."""
    grids: Grids
    convergence: Convergence
    class_information: ClassInformation | None
    """None if all clouds were of one class, or too few; `notes` say so."""


def read_analysis(run: Path) -> Analysis | None:
    """Reads the analysis of a run; None if there is none yet.

    Raises:
      ConfigError: If the file is damaged or of another layout.
    """
    path = run / ANALYSIS
    if not path.exists():
        return None
    file = JsonFile(path, f"e3dsnn analyse {run}")
    layers, steps = file.names("layers"), file.steps("steps")
    depth = len(layers)
    over_time = (len(steps), depth)
    grid_steps = file.steps("grids", "steps")
    return Analysis(
        measure=str(file.take("measure")),
        values=str(file.take("values")),
        datapoints=str(file.take("datapoints")),
        statistics=str(file.take("statistics")),
        clouds=file.whole("clouds"),
        split=str(file.take("split")),
        notes=file.names("notes"),
        layers=layers,
        neurons=file.array((depth,), "neurons"),
        datapoints_of_layer=file.array((depth,), "datapoints_of_layer"),
        steps=steps,
        against_final=file.array(over_time, "against_final"),
        intervals=file.take("intervals")
        and Intervals(
            file.number("intervals", "level"),
            file.array(over_time, "intervals", "low"),
            file.array(over_time, "intervals", "high"),
        ),
        baseline=file.array((depth,), "baseline"),
        grids=Grids(
            grid_steps,
            file.array((len(grid_steps), depth, depth), "grids", "values"),
            file.array((depth, depth), "grids", "baseline"),
        ),
        convergence=Convergence(
            threshold=file.number("convergence", "threshold"),
            steps=file.array((depth,), "convergence", "steps"),
            rank_correlation=file.number("convergence", "rank_correlation"),
            question=str(file.take("convergence", "question")),
        ),
        class_information=_read_classes(file),
    )


def _read_classes(file: JsonFile) -> ClassInformation | None:
    key = "class_information"
    if file.take(key) is None:
        return None
    layers, classes = file.names(key, "layers"), file.names(key, "classes")
    steps = file.steps(key, "steps")
    shape = len(steps), len(layers), len(classes)
    values = file.array(shape, key, "values")
    baseline = file.array((len(layers),), key, "baseline")
    return ClassInformation(layers, classes, steps, values, baseline)
