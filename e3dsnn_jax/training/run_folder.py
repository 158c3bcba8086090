"""The folder of a training run: what it holds, and who may write into it.

`config.json` (the resolved configuration), `class_names.json`, `data.json` (how many
clouds, and of which classes), `versions.json` (software and hardware), `metrics.jsonl`
(one JSON object a line), `tensorboard/` (the same numbers as event files),
`checkpoints/` and `best/`, and after an evaluation `evaluation.json` and `figures/`.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import tensorboardX
from jaxtyping import Int

from e3dsnn_jax.training.config import FREE_FIELDS, TrainConfig
from e3dsnn_jax.training.config_json import (
    ConfigError,
    differing_fields,
    from_json,
    to_json,
)
from e3dsnn_jax.whole_file import naming, whole_file

CONFIG, VERSIONS, METRICS = "config.json", "versions.json", "metrics.jsonl"
CLASS_NAMES, DATA = "class_names.json", "data.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunFolderError(ValueError):
    """A folder cannot serve as the folder of this run; the message says why."""


def check_run(config: TrainConfig) -> TrainConfig:
    """Checks that a run may use its folder, without making it.

    Args:
      config: The run to start or to resume.

    Returns:
      The configuration with absolute paths, so that the run can be evaluated from
      another working directory.

    Raises:
      RunFolderError: If the folder holds a run with another configuration (the message
        names every differing field with both values), or files of something else.
    """
    run = config.run.absolute()
    path = None if config.data.path is None else config.data.path.resolve()
    data = dataclasses.replace(config.data, path=path)
    config = dataclasses.replace(config, run=run, data=data)
    if run.exists() and not run.is_dir():
        raise RunFolderError(f"{run} is a file; name a folder for the run")
    if (run / CONFIG).exists():
        _check_same(read_config(run), config)
        return config
    ours = {VERSIONS, CLASS_NAMES, DATA}  # a process that was killed right at the start
    if run.is_dir() and any(path.name not in ours for path in run.iterdir()):
        raise RunFolderError(
            f"{run} is not empty and holds no {CONFIG}, so it is not the folder of a "
            "run; name a new folder"
        )
    return config


def open_run(
    config: TrainConfig,
    class_names: tuple[str, ...],
    labels: dict[str, Int[np.ndarray, " clouds"]],
) -> TrainConfig:
    """Makes the folder of a run, or checks that it holds the same run.

    Args:
      config: The run to start or to resume.
      class_names: Classes of its training data.
      labels: The label of every cloud of each of its datasets, by name.

    Returns:
      The configuration with absolute paths.

    Raises:
      RunFolderError: As `check_run`, and if the run there has other classes or clouds.
    """
    data = {
        name: {
            "clouds": len(each),
            "checksum": zlib.crc32(each.astype("<i4").tobytes()),
        }
        for name, each in labels.items()
    }
    config = check_run(config)
    run = config.run
    if (run / CONFIG).exists():
        stored_names = read_class_names(run)
        if stored_names != class_names:
            raise RunFolderError(
                f"{run} holds a run with {len(stored_names)} classes, {stored_names}; "
                f"the data now have {len(class_names)}: {class_names}. Were they "
                "changed? Name another folder with --run"
            )
        _check_data(run, data)
        return config
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / VERSIONS, describe_versions())
    write_json(run / CLASS_NAMES, list(class_names))
    write_json(run / DATA, data)
    # Last: a folder with a configuration is a run.
    write_json(run / CONFIG, to_json(config))
    return config


def read_config(run: Path) -> TrainConfig:
    """Returns the configuration of a run.

    Raises:
      RunFolderError: If the folder is not that of a run.
      ConfigError: If its configuration cannot be read.
    """
    stored = run / CONFIG
    if not stored.is_file():
        what = f"it holds no {CONFIG}" if run.is_dir() else "there is no such folder"
        raise RunFolderError(f"{run} is not the folder of a training run: {what}")
    return from_json(TrainConfig, _read_json(stored), where=str(stored))


def read_class_names(run: Path) -> tuple[str, ...]:
    """Returns the names of the classes that a run was trained on.

    Raises:
      ConfigError: If they cannot be read.
    """
    names = _read_json(run / CLASS_NAMES)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{run / CLASS_NAMES}: expected a list of names")
    return tuple(names)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error


def _check_same(stored: TrainConfig, config: TrainConfig) -> None:
    differing = [
        f"  {name}: {was!r} there, {now!r} now"
        for name, was, now in differing_fields(to_json(stored), to_json(config))
        if name not in FREE_FIELDS
    ]
    if differing:
        raise RunFolderError(
            f"{config.run} holds a run with another configuration:\n"
            + "\n".join(differing)
            + "\nName another folder with --run, or use the same values to resume."
        )


def _check_data(run: Path, data: dict[str, dict[str, int]]) -> None:
    if not (run / DATA).exists():  # runs of versions that did not write it
        return
    found = _read_json(run / DATA)
    fields = {"clouds", "checksum"}
    if not (
        isinstance(found, dict)
        and found.keys() == data.keys()
        and all(isinstance(s, dict) and s.keys() == fields for s in found.values())
    ):
        raise ConfigError(f"{run / DATA}: expected {', '.join(data)} with {fields}")
    for name, stored in found.items():
        now = data[name]
        if stored != now:
            change = (
                f"has {now['clouds']} clouds, was {stored['clouds']}"
                if stored["clouds"] != now["clouds"]
                else f"has other labels on its {now['clouds']} clouds"
            )
            raise RunFolderError(
                f"the {name} data of {run} have changed since it started: it {change}. "
                "A run is resumed on the data it began with; name another folder with "
                "--run to start on these"
            )


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def describe_versions() -> dict[str, Any]:
    """Software, platform and devices of this process, and the commit where there is."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": device.device_kind,
        "backend": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": os.cpu_count(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of the source tree, marked where files differ; None outside of one."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return answer.stdout.strip()

    try:
        # An installed package may lie within somebody else's repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


class MetricsLog:
    """Numbers over steps, appended to `metrics.jsonl` and to TensorBoard event files.

    Lines of steps after `step` are dropped at the start: a resumed run computes them
    again. So is a last line that a killed process left unfinished. A silent log, that
    of all processes but one, writes nothing.
    """

    def __init__(self, run: Path, *, step: int, silent: bool = False):
        self._silent = silent
        if silent:
            return
        path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        with whole_file(path) as unfinished:
            unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path = path
        self._file = path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(run / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, kind: str, step: int, **numbers: float | int) -> None:
        """Appends one line and flushes it, so that a killed run loses none."""
        if self._silent:
            return
        line = {"kind": kind, "step": step, **numbers}
        with naming(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        for name, value in numbers.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)
        self._events.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._silent:
            self._file.close()
            self._events.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Every finished line of a run's metrics, oldest first; empty without a file."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").split("\n")
    # What follows the last line break was cut off by the end of a process.
    return [
        _read_line(line, f"{path}, line {number}")
        for number, line in enumerate(lines[:-1], start=1)
        if line
    ]


def _read_line(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        if isinstance(line["kind"], str) and type(line["step"]) is int:
            return line
    except (ValueError, TypeError, LookupError):
        pass
    raise ConfigError(
        f"{where}: not a line of metrics: {text[:80]!r}; delete it to go on without"
    )
