"""Every experiment runs from end to end on a handful of synthetic clouds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import share_compilations

from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.training.config import PAPER_RECIPE, TrainConfig, check_config
from experiments import kicad40, modelnet40, quickstart, smoke


@pytest.fixture(autouse=True, scope="module")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_compilations(tmp_path_factory)


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    """The lines of stdout, all of them JSON: everything else goes to stderr."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_kicad40(capsys: pytest.CaptureFixture[str]):
    words = ["--smoke", "--recipe", "paper", "--seed", "3", "--hold-out", "train_1.npz"]
    assert kicad40.main(words) == 0
    (answer,) = answers(capsys)
    assert 0 <= answer["accuracy"] <= 1
    assert 0 <= answer["mean_class_accuracy"] <= 1
    assert (answer["seed"], answer["epochs"], answer["recipe"]) == (3, 1, "paper")
    assert answer["evaluated_on"] == "train_1.npz"
    assert answer["seconds"] > 0
    assert answer["programs_compiled"] <= 6
    assert "run" in answer


def test_modelnet40(capsys: pytest.CaptureFixture[str]):
    assert modelnet40.main(["--smoke", "--variants", "T"]) == 0
    (answer,) = answers(capsys)
    assert (answer["variant"], answer["published"]) == ("T", 0.917)
    assert answer["epochs"] == 1


def test_quickstart(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    run = tmp_path / "quickstart"
    assert quickstart.main(["--smoke", "--run", str(run)]) == 0
    (answer,) = answers(capsys)
    assert {"accuracy", "seconds", "programs_compiled", "run"} <= answer.keys()
    assert 0 <= answer["accuracy_on_a_tenth"] <= 1
    table = (run / "results.md").read_text()
    assert "| all | 1 |" in table
    assert "| a tenth | 1 |" in table
    figures = {path.name for path in (Path(answer["run"]) / "figures").iterdir()}
    assert figures == {"clouds.png", "confusion.png", "firing.png", "training.png"}


def test_kicad40_settings_are_those_of_the_comparison(tmp_path: Path):
    options = kicad40.KiCad40(data=tmp_path, recipe="paper", seed=5)
    config = kicad40.make_config(options)
    check_config(config)
    assert config.recipe == dataclasses.replace(PAPER_RECIPE, epochs=20)
    assert (config.data.voxel_size, config.data.normals) == (0.05, True)
    assert (config.model.variant, config.seed) == ("T", 5)
    assert config.recipe.batch_size == 16
    # The test split is evaluated by the last parameters only.
    assert config.evaluate_every_epochs == config.recipe.epochs
    other = kicad40.make_config(dataclasses.replace(options, hold_out="train_5.npz"))
    assert other.run != config.run
    assert other.data.hold_out == "train_5.npz"


def test_modelnet40_settings_are_the_published_ones(tmp_path: Path):
    config = modelnet40.make_config(modelnet40.ModelNet40(data=tmp_path), "S")
    check_config(config)
    assert config.recipe == PAPER_RECIPE
    assert (config.data.points_per_cloud, config.data.voxel_size) == (8192, 0.01)
    assert config.model.variant == "S"


def test_quickstart_settings(tmp_path: Path):
    configs = quickstart.make_configs(quickstart.Quickstart(), tmp_path)
    assert [config.data.fraction for config in configs.values()] == [1.0, 0.1]
    assert all(config.data.path is None for config in configs.values())
    for config in configs.values():
        check_config(config)
        assert isinstance(config, TrainConfig)
    alone = quickstart.make_configs(quickstart.Quickstart(tenth_epochs=0), tmp_path)
    assert list(alone) == ["all"]


@pytest.mark.parametrize("experiment", [kicad40, modelnet40])
def test_data_folder_is_needed(experiment, capsys: pytest.CaptureFixture[str]):
    assert experiment.main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "--data DIR is needed" in told.err


def test_synthetic_shards_are_sound(tmp_path: Path):
    dataset = open_dataset(smoke.write_shards(tmp_path), "train")
    assert (len(dataset), dataset.class_names) == (12, smoke.CLASS_NAMES)
    ball, box = dataset[0], dataset[1]
    np.testing.assert_allclose(np.linalg.norm(ball.points, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.abs(box.points).max(axis=1), 1, rtol=1e-5)
