"""What an analysis found, as JSON and as figures.

`analysis.json` holds, with null for a number that does not exist:

| key | meaning |
|---|---|
| `measure`, `values`, `datapoints`, `statistics`, `clouds`, `split`, `data`,
`source` | what was compared |
| `layers`, `neurons` | names and widths, from the input up |
| `datapoints_of_layer` | datapoints of each layer |
| `steps`, `against_final` | each layer with itself at the last step [steps, layers] |
| `intervals` | `level`, `low`, `high`: the same over clouds drawn anew, or null |
| `baseline` | the same for random activations [layers], of at most 2000 datapoints |
| `grids` | `steps`, `values` [steps, layers, layers at the end], `baseline` |
| `convergence` | `threshold`, `steps` of each layer, `rank_correlation` with depth |
| `class_information` | `layers`, `classes`, `steps`, `baseline` [layers] and
`values` [steps, layers, classes]; null if all clouds are of one class, or too few |
| `notes` | what a reader must know |
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e3dsnn_jax.analysis.class_information import ClassInformation
from e3dsnn_jax.analysis.dynamics import LEVEL, Dynamics
from e3dsnn_jax.analysis.layers import LayerPlace
from e3dsnn_jax.training.run_folder import write_json
from e3dsnn_jax.whole_file import whole_file
from svcca_jax.dynamics import bottom_up_test, convergence_steps
from svcca_jax.plots import plot_dynamics, plot_grid, plot_training

ANALYSIS = "analysis.json"


class Analysis(NamedTuple):
    """Everything that is written of a run."""

    details: dict[str, Any]
    """What was compared: measure, values, datapoints, clouds, split, source."""
    layers: tuple[LayerPlace, ...]
    """The layers on voxels, then those of clouds."""
    datapoints: tuple[int, ...]
    """Datapoints of each compared layer."""
    dynamics: Dynamics
    classes: ClassInformation | None
    class_names: tuple[str, ...]
    threshold: float
    """Similarity from which on a layer counts as converged."""

    @property
    def compared(self) -> tuple[LayerPlace, ...]:
        """The layers whose dynamics were computed."""
        return self.layers[: self.dynamics.against_final.shape[1]]


def describe_analysis(analysis: Analysis) -> dict[str, Any]:
    """The analysis as JSON."""
    dynamics, compared = analysis.dynamics, analysis.compared
    settled = convergence_steps(
        dynamics.against_final, np.array(dynamics.steps), analysis.threshold
    )
    outputs = outputs_of_blocks([layer.name for layer in compared])
    order = bottom_up_test(settled[None, outputs])
    described = {
        **analysis.details,
        "layers": [layer.name for layer in compared],
        "neurons": [layer.neurons for layer in compared],
        "datapoints_of_layer": list(analysis.datapoints),
        "steps": list(dynamics.steps),
        "against_final": dynamics.against_final.tolist(),
        "intervals": dynamics.bands
        and {
            "level": LEVEL,
            "low": dynamics.bands.low.tolist(),
            "high": dynamics.bands.high.tolist(),
        },
        "baseline": dynamics.baseline.tolist(),
        "grids": {
            "steps": list(dynamics.grid_steps),
            "values": dynamics.grids.tolist(),
            "baseline": dynamics.grid_baseline.tolist(),
        },
        "convergence": {
            "threshold": analysis.threshold,
            "steps": settled.tolist(),
            # One run is no sample: no p-value.
            "rank_correlation": order.correlation,
            "question": "do lower blocks converge before higher ones?",
        },
        "class_information": analysis.classes
        and {
            "layers": [layer.name for layer in analysis.layers],
            "classes": [analysis.class_names[k] for k in analysis.classes.classes],
            "steps": list(dynamics.steps),
            "values": analysis.classes.values.tolist(),
            "baseline": analysis.classes.baseline.tolist(),
        },
    }
    return _without_nan(described)


def write_analysis(folder: Path, analysis: Analysis) -> dict[str, Any]:
    """Writes `analysis.json` and the figures; returns the former."""
    described = describe_analysis(analysis)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ANALYSIS, described)
    dynamics, names = analysis.dynamics, described["layers"]
    measure = f"{described['measure']} of {described['values']}"
    figures = {
        "learning_dynamics": plot_dynamics(
            dynamics.against_final,
            steps=list(dynamics.steps),
            names=names,
            baseline=dynamics.baseline,
            title="Each layer against itself at the end",
            label=measure,
        ),
        "layers_against_layers": plot_training(
            dynamics.grids,
            steps=list(dynamics.grid_steps),
            names=names,
            baseline=dynamics.grid_baseline,
            label=measure,
        ),
    }
    if analysis.classes is not None:
        random = analysis.classes.baseline[:, None]
        figures["class_information"] = plot_grid(
            np.concatenate([analysis.classes.values[-1], random], axis=1),
            names=[layer.name for layer in analysis.layers],
            other_names=[
                *described["class_information"]["classes"],
                "labels dealt at random",
            ],
            title="Layers and classes at the end",
            label=measure,
        )
    for name, figure in figures.items():
        path = folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished, unfinished.open("wb") as file:
            figure.savefig(file, format="png", dpi=120)
    return described


def format_analysis(described: dict[str, Any]) -> str:
    """A table of the layers: when each converged, how alike it was when halfway."""
    steps, values = described["steps"], np.array(described["against_final"], float)
    halfway = len(steps) // 2
    width = max(map(len, described["layers"]))
    lines = [
        f"{'layer':<{width}}  neurons  at step {steps[0]}  at step {steps[halfway]}  "
        "random  converged at"
    ]
    converged = described["convergence"]["steps"]
    for place, name in enumerate(described["layers"]):
        start, middle = f"at step {steps[0]}", f"at step {steps[halfway]}"
        last = converged[place] == steps[-1]  # where it is itself in any case
        when = "not before the end" if last else _or_never(converged[place])
        lines.append(
            f"{name:<{width}}  {described['neurons'][place]:>7}  "
            f"{values[0, place]:>{len(start)}.3f}  "
            f"{values[halfway, place]:>{len(middle)}.3f}  "
            f"{described['baseline'][place]:>6.3f}  {when}"
        )
    found = described["convergence"]
    lines += [
        "",
        f"{described['measure']} of {described['values']} with step {steps[-1]}, "
        f"{described['datapoints_of_layer'][0]} {described['datapoints']} of "
        f"{described['clouds']} clouds of the {described['split']} split",
        f"converged: {found['threshold']} from a step on; bottom-up: correlation of "
        f"depth and step {found['rank_correlation']:.2f} over the blocks' outputs",
        *described["notes"],
    ]
    return "\n".join(lines)


def outputs_of_blocks(names: Sequence[str]) -> list[int]:
    """Places of the layers that hand on to others: units within a block are left out.

    A block and its units are one thing; counted one by one, they would make an order of
    a few blocks look like one of many layers.
    """
    outputs = [
        place
        for place, name in enumerate(names)
        if not re.search(r"block\d+/unit\d+|stem/unit[01]|fuse0", name)
    ]
    return outputs if len(outputs) > 1 else list(range(len(names)))


def _or_never(step: float | None) -> str:
    return "never" if step is None else f"{step:g}"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
