"""Every experiment runs from end to end on a handful of synthetic clouds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import make_data, share_compilations, write_run

from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.training.config import PAPER_RECIPE, TrainConfig, check_config
from experiments import (
    account_cost,
    binary_spikes,
    kicad40,
    modelnet40,
    quickstart,
    smoke,
)


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
    figures = {path.stem for path in (Path(answer["run"]) / "figures").iterdir()}
    assert figures == {
        *("clouds", "confusion", "firing", "training"),
        *("class_information", "layers_against_layers", "learning_dynamics"),
    }
    page = Path(answer["report"])
    assert page.name == "report.html"
    assert "stage0/down" in page.read_text()


def test_binary_spikes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = write_run(make_data(tmp_path))
    assert binary_spikes.main([str(run), "--float64-clouds", "3"]) == 0
    (answer,) = answers(capsys)
    assert answer["clouds"] == 6
    assert answer["changed"] == answer["head_changed"] == 0
    assert answer["flipped_spikes"] == 0
    assert answer["batches"] == answer["batches_without_flips"] == 2
    assert 0 <= answer["worst_logit"] < 1e-5
    assert answer["float64"]["clouds"] == 3
    assert 0 < answer["float64"]["worst"] < 1e-9 == answer["float64"]["limit"]
    assert set(answer["layers"].values()) == {0.0}

    def flip(model, variables, batch):
        integer, (logits, activations), head = run_all(model, variables, batch)
        name = "stage0/down/spikes"
        flipped = activations | {name: activations[name].at[0, 0, 0].add(1)}
        return integer, (logits, flipped), head

    run_all = binary_spikes.run_all
    monkeypatch.setattr(binary_spikes, "run_all", flip)
    assert binary_spikes.main([str(run), "--float64-clouds", "0"]) == 0
    (answer,) = answers(capsys)
    assert (answer["flipped_spikes"], answer["float64"]) == (2, None)
    assert (answer["batches_without_flips"], answer["worst_logit"]) == (0, None)
    # Most neurons of this run send more than one binary spike.
    assert 0 < answer["flipped_of_spikes"] < answer["flipped"]
    # In float64 such a difference is no rounding.
    assert binary_spikes.main([str(run), "--float64-clouds", "2"]) == 2
    told = capsys.readouterr().err
    assert "in float64 1 spikes differ, which must be none" in told


def test_binary_spikes_of_a_negative_number_of_clouds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert binary_spikes.main([str(tmp_path), "--float64-clouds", "-1"]) == 2
    assert "--float64-clouds must be 0 or more, got -1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_account_is_timed_with_its_sums_on_the_host(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def counted(*arguments):
        calls.append(add_counts(*arguments))
        return calls[-1]

    add_counts = account_cost.add_counts
    monkeypatch.setattr(account_cost, "add_counts", counted)
    assert account_cost.main(["--variants", "T", "--small"]) == 0
    (answer,) = answers(capsys)
    assert answer["load_average_after"] is None or answer["load_average_after"] >= 0
    assert len(calls) == 2 + 2  # rounds that warm up, rounds that are timed
    assert calls[0]["stem/unit1"].spikes > 0


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
