"""Checkpoints: exact, verified, and forgiving of one that is broken."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from tiny_run import same_trees

from e3dsnn_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Position,
    restore_variables,
)
from e3dsnn_jax.training.state import TrainState

# A read that fails leaves other reads of orbax behind, which complain to nobody.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def make_state(step: int, *, ema: bool = False) -> TrainState:
    rng = np.random.default_rng(step)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    params = {"conv": {"kernel": draw(27, 4, 8)}, "head": {"bias": draw(3)}}
    # Nested as chains of optax are, with a part that holds no array.
    opt_state = (optax.EmptyState(), (optax.TraceState({"bias": draw(3)}),))
    stats = {"norm": {"mean": draw(8)}}
    averages = {"params": params, "batch_stats": {"norm": {"mean": draw(8)}}}
    step_array: Any = np.asarray(step, np.int32)
    return TrainState(step_array, params, stats, opt_state, averages if ema else None)


def position(step: int) -> Position:
    # Numbers that need all their digits.
    return Position(step, seed=2**40 + 1, devices=2, window=[[1 / 3, 2.0, 4.0, 0.1]])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved steps 1 to 3 and keeps two."""
    run = tmp_path_factory.mktemp("written")
    with Checkpoints(run, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), position(step))
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def test_latest_are_kept(written: Path):
    assert {path.name for path in (written / "checkpoints").iterdir()} == {"2", "3"}


@pytest.mark.parametrize("ema", [False, True])
def test_state_comes_back_bit_for_bit(tmp_path: Path, ema: bool):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(make_state(0, ema=ema)) is None
        checkpoints.save(make_state(7, ema=ema), position(7))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        restored = checkpoints.restore(make_state(0, ema=ema))
    assert restored is not None
    assert same_trees(restored[0], make_state(7, ema=ema))
    assert restored[1] == position(7)


def test_saving_does_not_read_the_state_later(tmp_path: Path):
    # A train step reuses the memory of the state right after it was saved.
    state = make_state(1)
    state = state._replace(params={"kernel": np.ones((64, 64), np.float32)})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, position(1))
        state.params["kernel"][:] = 7
    variables = restore_variables(tmp_path).variables
    np.testing.assert_array_equal(variables["params"]["kernel"], np.ones((64, 64)))


def test_averages_are_what_is_evaluated(tmp_path: Path):
    state = make_state(5, ema=True)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, position(5))
    restored = restore_variables(tmp_path)
    assert restored.step == 5
    assert same_trees(restored.variables, state.ema)


def test_best_is_kept_beside_the_latest(tmp_path: Path):
    def variables(step: int) -> dict:
        return {"params": make_state(step).params, "batch_stats": {}}

    accuracies = {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.5}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        kept = []
        for step, accuracy in accuracies.items():
            checkpoints.save(make_state(step), position(step))
            kept.append(
                checkpoints.save_best(variables(step), step=step, accuracy=accuracy)
            )
    assert kept == [True, True, False, False]
    best = restore_variables(tmp_path, which="best")
    assert best.step == 2
    assert same_trees(best.variables["params"], make_state(2).params)
    assert restore_variables(tmp_path).step == 4
    # Another process goes by the same best.
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert not checkpoints.save_best(variables(5), step=5, accuracy=0.55)
        assert checkpoints.save_best(variables(6), step=6, accuracy=0.65)
    # A resumed run evaluates the same step again, and rounds differently.
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert not checkpoints.save_best(variables(6), step=6, accuracy=0.7)
        assert checkpoints.save_best(variables(7), step=7, accuracy=0.72)
    assert restore_variables(tmp_path, which="best").step == 7


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "halved":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(b"\0" * len(content))


@pytest.mark.parametrize("how", ["deleted", "halved", "zeroed"])
def test_any_damaged_file_gives_a_sound_state_or_the_one_before(
    written: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
):
    last = written / "checkpoints" / "3"
    files = [path for path in last.rglob("*") if path.is_file()]
    # The large arrays, what lists them, and what holds step and checksums.
    assert len(files) > 10
    fallen_back = 0
    for number, path in enumerate(files):
        run = tmp_path / str(number)
        shutil.copytree(written, run)
        damage(run / path.relative_to(written), how)
        with Checkpoints(run, keep=2) as checkpoints:
            restored = checkpoints.restore(make_state(0))
            told = capsys.readouterr().err
            assert restored is not None
            state, found = restored
            assert same_trees(state, make_state(found.step)), path
            if found.step == 2:
                fallen_back += 1
                assert f"checkpoint of step 3 in {run / 'checkpoints'}" in told
                assert (run / "unreadable" / "checkpoints_3").is_dir()
                # The step can be reached and saved again.
                checkpoints.save(make_state(3), position(3))
                checkpoints.wait()
                assert restore_variables(run).step == 3
    assert fallen_back >= 5


def test_bits_that_flipped_are_noticed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # A format without checksums of its own would hand out the wrong numbers.
    from e3dsnn_jax.training import checkpoints as module

    restored = module.ocp.CheckpointManager.restore

    def flip(manager, step, **options):
        items = restored(manager, step, **options)
        if step == 3 and "model" in items:
            items["model"]["params"]["head"]["bias"][0] += 1
        return items

    monkeypatch.setattr(module.ocp.CheckpointManager, "restore", flip)
    found = restore_variables(run)
    assert found.step == 2
    assert "'model' have the checksum" in capsys.readouterr().err


def test_reading_variables_passes_over_a_broken_checkpoint_and_changes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    damage(run / "checkpoints" / "3" / "meta" / "metadata", "halved")
    before = sorted(run.rglob("*"))
    restored = restore_variables(run)
    assert restored.step == 2
    assert same_trees(restored.variables["params"], make_state(2).params)
    assert "step 3" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_latest_stands_in_for_a_missing_best_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(make_state(1), position(1))
    assert restore_variables(tmp_path, which="best").step == 1
    assert "no best checkpoint that can be read: the latest" in capsys.readouterr().err
    restore_variables(tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("checksum_lost", [False, True])
def test_a_position_that_was_altered_is_noticed(
    run: Path, capsys: pytest.CaptureFixture[str], checksum_lost: bool
):
    (meta,) = (run / "checkpoints" / "3" / "meta").glob("metadata")
    text = meta.read_text()
    assert '"step": 3' in text
    altered = text.replace('"step": 3', '"step": 9')
    if checksum_lost:
        before, checksums = altered.split('"checksums"')
        altered = f'{before}"checksums"{checksums.replace("position", "qosition")}'
        assert "qosition" in altered
    meta.write_text(altered)
    assert restore_variables(run).step == 2
    assert "position does not have the checksum" in capsys.readouterr().err


def test_a_time_that_no_calendar_has_is_an_error_with_advice(run: Path):
    path = run / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
    stamp = json.loads(path.read_text())
    stamp["commit_timestamp_nsecs"] = int(f"{stamp['commit_timestamp_nsecs']}111")
    path.write_text(json.dumps(stamp))
    with pytest.raises(CheckpointError, match="_CHECKPOINT_METADATA there is damaged"):
        restore_variables(run)


def test_no_checkpoint_can_be_read(run: Path):
    for step in (2, 3):
        damage(run / "checkpoints" / str(step) / "meta" / "metadata", "zeroed")
    with pytest.raises(CheckpointError, match="none of checkpoints/3, checkpoints/2"):
        restore_variables(run)
    with (
        Checkpoints(run, keep=2) as checkpoints,
        pytest.raises(CheckpointError, match=r"steps \[3, 2\] can be read.*beginning"),
    ):
        checkpoints.restore(make_state(0))


def test_there_is_no_checkpoint_yet(tmp_path: Path):
    with pytest.raises(
        CheckpointError, match="no checkpoint to restore: there is none"
    ):
        restore_variables(tmp_path)


def test_state_of_another_network_is_not_restored(run: Path):
    other = make_state(0)
    other = other._replace(params={"conv": {"kernel": np.zeros((1, 2, 3))}})
    with (
        Checkpoints(run, keep=2) as checkpoints,
        pytest.raises(CheckpointError, match="none of the checkpoints"),
    ):
        checkpoints.restore(other)
