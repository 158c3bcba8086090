"""The training loop: exact resumption however it ends, and what stops it."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import make_data, same_trees, share_compilations, tiny_config

from e3dsnn_jax.training import loop
from e3dsnn_jax.training.checkpoints import restore_variables
from e3dsnn_jax.training.loop import TrainingError, TrainResult, train
from e3dsnn_jax.training.optimizer import Sgd
from e3dsnn_jax.training.run_folder import MetricsLog, RunFolderError, read_metrics
from e3dsnn_jax.training.stopping import Interrupted


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_compilations(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def whole(folder: Path, cache: Path) -> TrainResult:
    """A run that nothing interrupts."""
    return train(tiny_config(folder, run="whole"))


TIMES = ("clouds_per_second", "fetching_batches")


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run without the time that they took."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(run)
    ]


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, kind: str) -> None:
    """Sends this process a Ctrl-C when it logs a step."""
    write = MetricsLog.write

    def write_and_signal(log: MetricsLog, what: str, now: int, **numbers: Any) -> None:
        write(log, what, now, **numbers)
        if (what, now) == (kind, step):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)


def test_run_leaves_what_it_promises(whole: TrainResult):
    assert whole.step == 6
    # Parameters, train step, eval step, each for the shapes that occur; and nothing
    # that was compiled outside of these.
    assert whole.programs_compiled <= 6
    names = {path.name for path in whole.run.iterdir()}
    assert names >= {
        "config.json",
        "versions.json",
        "class_names.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "best",
        "evaluation.json",
        "figures",
    }
    assert {path.name for path in (whole.run / "figures").iterdir()} == {
        "confusion.png",
        "firing.png",
        "training.png",
    }
    assert list((whole.run / "tensorboard").glob("events.out.tfevents.*"))
    lines = read_metrics(whole.run)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("eval", 3),
        ("train", 4),
        ("train", 6),
        ("eval", 6),
    ]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[0]["clouds_per_second"] > 0
    assert 0 <= lines[0]["fetching_batches"] <= 1


def test_evaluation_of_a_run_is_that_of_its_last_checkpoint(whole: TrainResult):
    restored = restore_variables(whole.run)
    assert restored.step == 6
    assert same_trees(restored.variables, whole.variables)
    stored = json.loads((whole.run / "evaluation.json").read_text())
    assert stored["accuracy"] == whole.evaluation.accuracy
    assert stored["step"] == 6


@pytest.fixture(scope="module")
def interrupted(folder: Path, whole: TrainResult) -> Path:
    """A run that Ctrl-C stopped when it had logged step 4."""
    config = tiny_config(folder, run="interrupted")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 4, "train")
        with pytest.raises(
            Interrupted, match=r"Stopped at step [45] of 6.*resume"
        ) as e:
            train(config)
    assert e.value.exit_code == 130
    # Handlers are given back: the next Ctrl-C is Python's own again.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return config.run


def test_run_stopped_by_ctrl_c_resumes_identically(
    whole: TrainResult, interrupted: Path, folder: Path
):
    shutil.copytree(interrupted, folder / "resumed")
    resumed = train(tiny_config(folder, run="resumed"))
    assert same_trees(resumed.variables, whole.variables)
    assert lines_of(resumed.run) == lines_of(whole.run)
    np.testing.assert_array_equal(
        resumed.evaluation.probabilities, whole.evaluation.probabilities
    )


def test_run_that_is_done_is_only_evaluated_again(whole: TrainResult, folder: Path):
    before = lines_of(whole.run)
    again = train(tiny_config(folder, run="whole"))
    assert same_trees(again.variables, whole.variables)
    assert again.evaluation.accuracy == whole.evaluation.accuracy
    assert lines_of(whole.run) == before


def test_killed_run_resumes_identically(whole: TrainResult, folder: Path, cache: Path):
    # In processes of their own: nothing of a killed one survives but its files.
    def start(kill_at: int) -> int:
        script = Path(__file__).with_name("tiny_run.py")
        run, data = folder / "killed", folder / "data"
        words = [sys.executable, script, run, data, str(kill_at), cache]
        paths = os.pathsep.join([str(script.parent), str(script.parents[1])])
        finished = subprocess.run(
            [str(word) for word in words],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert finished.stdout == ""
        if not kill_at:
            assert "Resuming after step" in finished.stderr, finished.stderr
        return finished.returncode

    assert start(kill_at=4) == -signal.SIGKILL
    assert start(kill_at=0) == 0
    killed = restore_variables(folder / "killed")
    assert killed.step == 6
    assert same_trees(killed.variables, whole.variables)
    assert lines_of(folder / "killed") == lines_of(whole.run)


# A read that fails leaves other reads of orbax behind, which complain to nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_truncated_checkpoint_falls_back_and_ends_identically(
    whole: TrainResult,
    interrupted: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
):
    config = tiny_config(folder, run="truncated")
    shutil.copytree(interrupted, config.run)
    steps = sorted((config.run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    last, before = steps[-1].name, steps[-2].name
    for path in (steps[-1] / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed = train(config)
    told = capsys.readouterr().err
    assert f"The checkpoint of step {last} in" in told
    assert f"Resuming after step {before}." in told
    assert same_trees(resumed.variables, whole.variables)
    assert lines_of(resumed.run) == lines_of(whole.run)


def test_other_configuration_is_refused(whole: TrainResult, folder: Path):
    other = tiny_config(folder, run="whole", optimizer=Sgd(learning_rate=0.3))
    other = dataclasses.replace(other, seed=7)
    with pytest.raises(RunFolderError) as error:
        train(other)
    message = str(error.value)
    assert "recipe.optimizer.learning_rate: 0.1 there, 0.3 now" in message
    assert "seed: 0 there, 7 now" in message
    assert "voxel_size" not in message


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("loss", r"loss of step 1 is nan and .*: lower the learning"),
        ("grad_norm", r"the norm of its gradient nan: lower the learning"),
    ],
)
def test_step_that_is_not_finite_stops_the_run(
    folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    message: str,
):
    make_train_step = loop.make_setup

    def make_broken(config, data):
        setup, state = make_train_step(config, data)

        def step(state, batch):
            state, metrics = setup.train_steps[0](state, batch)
            return state, metrics._replace(**{field: jnp.float32(jnp.nan)})

        return setup._replace(train_steps={0: step}), state

    monkeypatch.setattr(loop, "make_setup", make_broken)
    run = f"broken_{field}"
    with pytest.raises(TrainingError, match=message):
        train(tiny_config(folder, run=run))
    assert not list((folder / run / "checkpoints").glob("*"))


def test_checkpoint_beyond_the_end_of_the_run_is_refused(
    whole: TrainResult, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(whole.run, folder / "longer")
    config = folder / "longer" / "config.json"
    config.write_text(config.read_text().replace('"epochs": 2', '"epochs": 1'))
    with pytest.raises(TrainingError, match="is at step 6, but the run has only 3"):
        train(tiny_config(folder, run="longer", epochs=1))


def test_batch_that_does_not_fit_stops_the_run(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    make_setup = loop.make_setup

    def make_narrow(config, data):
        setup, state = make_setup(config, data)
        first = setup.source.capacities[0]
        narrow = (dataclasses.replace(first[0], voxels=8), *first[1:])
        source = dataclasses.replace(setup.source, capacities=(narrow,))
        return setup._replace(source=source), state

    monkeypatch.setattr(loop, "make_setup", make_narrow)
    with pytest.raises(TrainingError) as error:
        train(tiny_config(folder, run="narrow"))
    message = str(error.value)
    assert "the capacity is 8" in message
    assert "--data.capacity-slacks, now (1.1, 1.6)" in message


def test_gradients_can_be_accumulated(folder: Path, cache: Path):
    result = train(tiny_config(folder, run="accumulated", accumulate=2, epochs=1))
    assert result.step == 3
    assert math.isfinite(result.evaluation.loss)


def test_too_few_clouds_for_a_batch(folder: Path, cache: Path):
    with pytest.raises(ValueError, match=r"12 clouds, fewer than a batch of 16"):
        train(tiny_config(folder, run="few", batch_size=16))
    # Nothing is left that a corrected command would stumble over.
    assert not (folder / "few").exists()
