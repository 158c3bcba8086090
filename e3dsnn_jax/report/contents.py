"""Everything that a run folder holds, read and checked before a page is made of it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.report.analysis_file import Analysis, read_analysis
from e3dsnn_jax.report.energy_file import EnergyFile, read_energy
from e3dsnn_jax.report.json_file import JsonFile
from e3dsnn_jax.training.config import TrainConfig
from e3dsnn_jax.training.config_json import ConfigError
from e3dsnn_jax.training.run_folder import (
    DATA,
    VERSIONS,
    read_class_names,
    read_config,
    read_metrics,
)

EVALUATION = "evaluation.json"


class Firing(NamedTuple):
    """How much the spiking layers fire, in the order of the network."""

    layers: tuple[str, ...]
    rate: Float[np.ndarray, " layers"]
    """Share of voxels, steps and channels with a spike."""
    mean_spikes: Float[np.ndarray, " layers"]
    silent_channels: Float[np.ndarray, " layers"]


class Scores(NamedTuple):
    """What `evaluation.json` holds."""

    accuracy: float
    mean_class_accuracy: float
    loss: float
    clouds: int
    votes: int
    step: int | None
    class_accuracy: Float[np.ndarray, " classes"]
    """NaN for a class that does not occur."""
    confusion: Float[np.ndarray, "classes classes"]
    firing: Firing


class Contents(NamedTuple):
    """A run folder in memory; None where a file is not there yet."""

    run: Path
    config: TrainConfig
    class_names: tuple[str, ...]
    versions: dict[str, Any]
    data: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: Scores | None
    analysis: Analysis | None
    energy: EnergyFile | None


def read_contents(run: Path) -> Contents:
    """Reads a run folder.

    Args:
      run: Folder that a training wrote, finished or not.

    Raises:
      RunFolderError: If the folder is not that of a run.
      ConfigError: If a file in it is damaged; the message names it.
    """
    config, class_names = read_config(run), read_class_names(run)
    return Contents(
        run=run,
        config=config,
        class_names=class_names,
        versions=_read_notes(run / VERSIONS),
        data=_read_notes(run / DATA),
        metrics=read_metrics(run),
        scores=_read_scores(run, class_names),
        analysis=read_analysis(run),
        energy=read_energy(run),
    )


def _read_notes(path: Path) -> dict[str, Any]:
    """What a run noted at its start, which no command can write anew."""
    if not path.exists():
        return {}
    try:
        notes = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(notes, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return notes


def _read_scores(run: Path, class_names: tuple[str, ...]) -> Scores | None:
    path = run / EVALUATION
    if not path.exists():
        return None
    file = JsonFile(path, f"e3dsnn evaluate {run}")
    classes = len(class_names)
    by_class = file.take("class_accuracy")
    if not isinstance(by_class, dict) or tuple(by_class) != class_names:
        raise file.error("class_accuracy has other classes than the run")
    firing = file.take("firing")
    if not isinstance(firing, dict):
        raise file.error("firing is no object with layers")
    rates = {
        field: np.array([file.number("firing", layer, field) for layer in firing])
        for field in ("firing_rate", "mean_spikes", "silent_channels")
    }
    step = file.content.get("step")
    return Scores(
        accuracy=file.number("accuracy"),
        mean_class_accuracy=file.number("mean_class_accuracy"),
        loss=file.number("loss"),
        clouds=file.whole("clouds"),
        votes=file.whole("votes"),
        step=step if isinstance(step, int) else None,
        class_accuracy=np.array(
            [file.number("class_accuracy", name) for name in class_names]
        ),
        confusion=file.array((classes, classes), "confusion"),
        firing=Firing(tuple(firing), *rates.values()),
    )
