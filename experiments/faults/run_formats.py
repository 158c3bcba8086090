"""Weights, checkpoints and the files of a run folder, and what reads them."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from e3dsnn_jax.interop import read_weights, write_weights
from e3dsnn_jax.training.checkpoints import Checkpoints, Position, restore_variables
from e3dsnn_jax.training.config import TrainConfig
from e3dsnn_jax.training.run_folder import (
    MetricsLog,
    open_run,
    read_config,
    read_metrics,
)
from e3dsnn_jax.training.state import TrainState
from experiments.faults.formats import Format, Refusal, fingerprint
from experiments.faults.processes import tiny_config
from experiments.smoke import ARCHITECTURE, CLASS_NAMES


def random_variables(seed: int = 0) -> dict[str, Any]:
    """Variables of the smallest classifier, with random numbers."""
    import jax

    from e3dsnn_jax.classifier import Classifier
    from e3dsnn_jax.pyramid import build_pyramid

    model = Classifier(ARCHITECTURE, len(CLASS_NAMES))
    coords = np.zeros((1, 4), np.int32)
    levels = build_pyramid(coords, num_levels=ARCHITECTURE.num_levels)
    features = np.zeros((len(levels[0].coords), ARCHITECTURE.in_channels), np.float32)
    shapes = jax.eval_shape(
        lambda key: model.init(key, features, levels, num_clouds=1, train=False),
        jax.random.key(0),
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype), shapes
    )


def _weights_format(name: str) -> Format:
    def write(folder: Path) -> list[Path]:
        write_weights(random_variables(), folder / name)
        return [folder / name]

    return Format(write, lambda folder: read_weights(folder / name), checksummed=True)


def _state(step: int) -> TrainState:
    draw = np.random.default_rng(step).standard_normal
    params = {"conv": draw((3, 2, 2)), "head": draw(3)}
    stats = {"norm": draw(2)}
    averages = {
        "params": {name: -params[name] for name in params},
        "batch_stats": stats,
    }
    count: Any = np.asarray(step, np.int32)
    return TrainState(count, params, stats, {"trace": draw(3)}, averages)


def _position(step: int) -> Position:
    return Position(step, seed=7, devices=2, window=[[1 / 3, 2.0, 4.0, 0.1]])


def _write_checkpoints(folder: Path) -> list[Path]:
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(_state(step), _position(step))
    return [
        path for path in (folder / "checkpoints" / "2").rglob("*") if path.is_file()
    ]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _read_checkpoint(folder: Path) -> Any:
    with Checkpoints(folder, keep=2) as checkpoints:
        restored = checkpoints.restore(_state(0))
    if restored is None:
        raise AssertionError("there are two checkpoints, but none was found")
    return _unless_reported(restored, (_state(1), _position(1)))


def _read_variables(folder: Path) -> Any:
    restored = restore_variables(folder)
    return _unless_reported(tuple(restored), (_state(1).ema, 1))


def _write_best(folder: Path) -> list[Path]:
    variables = {"params": {"a": np.ones(2)}}
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save_best(variables, step=1, accuracy=0.5)
    return [folder / "best" / "1" / "meta" / "metadata"]


def _compare_with_best(folder: Path) -> list[bool]:
    variables = {"params": {"a": np.ones(2)}}
    answers = []
    for step, accuracy in ((2, 0.4999), (3, 0.5001)):
        with Checkpoints(folder, keep=1) as checkpoints:
            better = checkpoints.save_best(variables, step=step, accuracy=accuracy)
        if _told():
            raise Refusal(_told())
        answers.append(better)
    return answers


def _told() -> str:
    return sys.stderr.getvalue() if isinstance(sys.stderr, io.StringIO) else ""


def _unless_reported(found: Any, older: Any) -> Any:
    """What was found; a refusal if it is the older state and stderr says so."""
    if _told() and fingerprint(found) == fingerprint(older):
        raise Refusal(_told())
    return found


def _write_run(folder: Path) -> list[Path]:
    open_run(_config(folder), CLASS_NAMES, {"training": np.arange(3)})
    log = folder / "run" / "metrics.jsonl"
    lines = [
        f'{{"kind": "train", "step": {step}, "loss": 0.{step}}}' for step in (1, 2)
    ]
    log.write_text("\n".join(lines) + "\n")
    return []


def _config(folder: Path) -> TrainConfig:
    return tiny_config(folder / "run", Path("/data"))


def _run_format(names: list[str], read: Callable[[Path], Any]) -> Format:
    def write(folder: Path) -> list[Path]:
        _write_run(folder)
        return [folder / "run" / name for name in names]

    return Format(write, read, checksummed=False)


def _resume(folder: Path) -> str:
    open_run(_config(folder), CLASS_NAMES, {"training": np.arange(3)})
    return "it may be resumed"


def _resume_metrics(folder: Path) -> list[Any]:
    with MetricsLog(folder / "run", step=2):
        pass
    return read_metrics(folder / "run")


RUN_FORMATS: dict[str, Format] = {
    "pth": _weights_format("weights.pth"),
    "npz weights": _weights_format("weights.npz"),
    "checkpoint, resumed": Format(
        _write_checkpoints, _read_checkpoint, checksummed=True
    ),
    "checkpoint, variables": Format(
        _write_checkpoints, _read_variables, checksummed=True
    ),
    "checkpoint, its metadata": Format(
        lambda folder: [
            path for path in _write_checkpoints(folder) if path.name == "metadata"
        ],
        _read_checkpoint,
        checksummed=True,
    ),
    "best checkpoint": Format(_write_best, _compare_with_best, checksummed=True),
    "config.json": _run_format(
        ["config.json"], lambda folder: read_config(folder / "run")
    ),
    "run folder, resumed": _run_format(
        ["config.json", "class_names.json", "data.json"], _resume
    ),
    "metrics.jsonl": _run_format(["metrics.jsonl"], _resume_metrics),
}
"""Everything that trained networks and runs are read from, by the name in the table."""
