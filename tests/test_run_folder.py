"""The run folder: who may use it, and the metrics in it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from e3dsnn_jax.training.config import DataConfig, Recipe, TrainConfig
from e3dsnn_jax.training.config_json import ConfigError
from e3dsnn_jax.training.run_folder import (
    MetricsLog,
    RunFolderError,
    open_run,
    read_config,
    read_metrics,
)

NAMES = ("ball", "box")


def test_new_folder_holds_configuration_and_versions(tmp_path: Path):
    config = TrainConfig(run=tmp_path / "runs" / "one", data=DataConfig(path=tmp_path))
    assert open_run(config, NAMES, {}) == config
    assert read_config(config.run) == config
    versions = json.loads((config.run / "versions.json").read_text())
    assert versions["backend"] == "cpu"
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy"} < versions.keys()
    assert versions["git_commit"] is None or len(versions["git_commit"]) >= 40


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(run=Path("run"), data=DataConfig(path=Path("data")))
    open_run(config, NAMES, {})
    stored = read_config(tmp_path / "run")
    assert (stored.run, stored.data.path) == (tmp_path / "run", tmp_path / "data")


def test_same_run_opens_again_whatever_does_not_change_it(tmp_path: Path):
    config = TrainConfig(run=tmp_path / "run")
    open_run(config, NAMES, {})
    again = dataclasses.replace(config, keep=5, data=DataConfig(workers=3))
    assert open_run(again, NAMES, {}) == again


def test_other_run_is_refused_with_every_difference(tmp_path: Path):
    config = TrainConfig(run=tmp_path / "run")
    open_run(config, NAMES, {})
    other = dataclasses.replace(
        config, seed=4, recipe=Recipe(epochs=7, label_smoothing=0.0)
    )
    with pytest.raises(RunFolderError) as error:
        open_run(other, NAMES, {})
    message = str(error.value)
    assert message.startswith(f"{config.run} holds a run with another configuration")
    assert "recipe.epochs: 300 there, 7 now" in message
    assert "recipe.label_smoothing: 0.2 there, 0.0 now" in message
    assert "seed: 0 there, 4 now" in message
    assert "--run" in message
    with pytest.raises(RunFolderError, match=r"2 classes.*the data now have 1"):
        open_run(config, ("ball",), {})


def test_changed_data_are_refused(tmp_path: Path):
    config = TrainConfig(run=tmp_path / "run")
    labels = np.array([0, 1, 1])
    open_run(config, NAMES, {"training": labels})
    open_run(config, NAMES, {"training": labels.astype(np.int32)})
    with pytest.raises(RunFolderError, match=r"training data .* has 2 clouds, was 3"):
        open_run(config, NAMES, {"training": labels[:2]})
    with pytest.raises(RunFolderError, match="has other labels on its 3 clouds"):
        open_run(config, NAMES, {"training": labels[::-1]})
    (config.run / "data.json").unlink()  # as older versions left it
    open_run(config, NAMES, {"training": labels[:2]})


def test_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"is not empty and holds no config.json"):
        open_run(TrainConfig(run=tmp_path), NAMES, {})
    with pytest.raises(RunFolderError, match="is a file; name a folder"):
        open_run(TrainConfig(run=tmp_path / "thesis.tex"), NAMES, {})


def test_start_that_was_killed_leaves_a_usable_folder(tmp_path: Path):
    (tmp_path / "versions.json").write_text("{}")
    open_run(TrainConfig(run=tmp_path), NAMES, {})
    assert read_config(tmp_path) == TrainConfig(run=tmp_path)


def test_reading_what_is_no_run(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"absent is not the .*no such folder"):
        read_config(tmp_path / "absent")
    with pytest.raises(RunFolderError, match=r"it holds no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ConfigError, match=r"config.json: cannot be read as JSON"):
        read_config(tmp_path)


def test_metrics_are_flushed_line_by_line(tmp_path: Path):
    with MetricsLog(tmp_path, step=0) as log:
        log.write("train", 1, loss=0.5)
        assert read_metrics(tmp_path) == [{"kind": "train", "step": 1, "loss": 0.5}]
        log.write("eval", 1, accuracy=0.25)
    assert len(read_metrics(tmp_path)) == 2


def test_resumed_log_drops_later_and_unfinished_lines(tmp_path: Path):
    with MetricsLog(tmp_path, step=0) as log:
        for step in (1, 2, 3):
            log.write("train", step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    with MetricsLog(tmp_path, step=2) as log:
        log.write("train", 3, loss=30.0)
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]


def test_no_metrics_yet(tmp_path: Path):
    assert read_metrics(tmp_path) == []


def read_events(folder: Path) -> list[tuple[int, str, float]]:
    """Scalars of the TensorBoard files of a folder, from their raw records."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            # Length, its checksum, the record, its checksum.
            size = int.from_bytes(content[:8], "little")
            parse = event_pb2.Event.FromString  # pyright: ignore[reportAttributeAccessIssue]
            event = parse(content[12 : 12 + size])
            content = content[12 + size + 4 :]
            for value in event.summary.value:
                found.append((event.step, value.tag, value.simple_value))
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path: Path):
    with MetricsLog(tmp_path, step=0) as log:
        log.write("train", 5, loss=0.5, accuracy=0.75)
    assert read_events(tmp_path / "tensorboard") == [
        (5, "train/loss", 0.5),
        (5, "train/accuracy", 0.75),
    ]
