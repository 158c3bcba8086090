"""Evaluation: numbers, files, and the agreement with the predictor."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_run import make_data, share_compilations, write_run

from e3dsnn_jax.data.clouds import CloudSubset, ShapeDataset
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.predictor import load
from e3dsnn_jax.training.config import DataConfig
from e3dsnn_jax.training.datasets import check_classes, open_data, open_evaluation
from e3dsnn_jax.training.evaluate import (
    Evaluation,
    describe,
    evaluate_network,
    format_firing,
    write_evaluation,
)
from e3dsnn_jax.training.metrics import FiringRate
from e3dsnn_jax.training.run_folder import read_config
from e3dsnn_jax.training.saved import SavedNetwork, load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    share_compilations(tmp_path_factory)
    return write_run(make_data(tmp_path_factory.mktemp("evaluate")))


@pytest.fixture(scope="module")
def network(run: Path) -> SavedNetwork:
    return load_run(run)


@pytest.fixture(scope="module")
def dataset(run: Path) -> ShapeDataset:
    return open_dataset(run.parent / "data", "test")


@pytest.fixture(scope="module")
def evaluation(network: SavedNetwork, dataset: ShapeDataset) -> Evaluation:
    return evaluate_network(network, dataset, votes=2)


def test_every_cloud_is_counted_once(evaluation: Evaluation):
    # Six clouds in batches of four: the padding of the last batch counts nowhere.
    assert evaluation.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert evaluation.confusion.sum() == 6
    assert evaluation.votes == 2
    np.testing.assert_allclose(evaluation.probabilities.sum(axis=1), 1)


def test_numbers_follow_from_the_probabilities(evaluation: Evaluation):
    predicted = evaluation.probabilities.argmax(axis=1)
    right = predicted == evaluation.labels
    assert evaluation.accuracy == right.mean()
    by_class = [right[evaluation.labels == label].mean() for label in range(3)]
    np.testing.assert_array_equal(evaluation.class_accuracy, by_class)
    assert evaluation.mean_class_accuracy == pytest.approx(np.mean(by_class))
    # The mean over votes of -log p is at least -log of the mean (Jensen).
    chosen = evaluation.probabilities[np.arange(6), evaluation.labels]
    assert evaluation.loss >= -np.log(chosen).mean() - 1e-6
    assert evaluation.loss == pytest.approx(-np.log(chosen).mean(), abs=0.05)


def test_every_spiking_layer_has_a_rate(evaluation: Evaluation):
    # In the order of the network.
    assert list(evaluation.firing) == [
        "stem/unit1",
        "stem/unit2",
        "stage0/down",
        "stage0/block0/unit0",
        "stage0/block0/unit1",
        "stage0/block0/unit2",
    ]
    rates = [rate.firing_rate for rate in evaluation.firing.values()]
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) > 0
    table = format_firing(evaluation.firing).splitlines()
    assert table[0].endswith("firing rate  mean spikes  silent channels")
    assert [line.split()[0] for line in table[1:]] == list(evaluation.firing)


def test_predictor_agrees(run: Path, dataset: ShapeDataset, evaluation: Evaluation):
    clouds = [dataset[index] for index in range(len(dataset))]
    predictions = load(run).predict_clouds(clouds, votes=2)
    # The random points of the voxels differ, so agreement is not exact.
    np.testing.assert_allclose(
        np.stack([prediction.probabilities for prediction in predictions]),
        evaluation.probabilities,
        atol=0.05,
    )


def test_files_of_an_evaluation(evaluation: Evaluation, tmp_path: Path):
    write_evaluation(tmp_path / "new", evaluation, step=6)
    stored = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert stored["accuracy"] == evaluation.accuracy
    assert stored["step"] == 6
    assert stored["clouds"] == 6
    assert stored["confusion"] == evaluation.confusion.tolist()
    assert list(stored["class_accuracy"]) == ["ball", "box", "rod"]
    assert stored["firing"]["stem/unit1"].keys() == set(FiringRate._fields)
    assert (tmp_path / "new" / "figures" / "confusion.png").stat().st_size > 1000
    assert (tmp_path / "new" / "figures" / "firing.png").stat().st_size > 1000


def test_absent_classes_are_null_in_json(evaluation: Evaluation):
    partial = evaluation._replace(class_accuracy=np.array([0.5, math.nan, 1.0]))
    stored = json.loads(json.dumps(describe(partial), allow_nan=False))
    assert stored["class_accuracy"] == {"ball": 0.5, "box": None, "rod": 1.0}


def test_other_classes_are_refused(network: SavedNetwork, dataset: ShapeDataset):
    two = network._replace(class_names=("ball", "box"))
    with pytest.raises(ValueError, match=r"data has 3 classes, .* trained on 2"):
        evaluate_network(two, dataset)
    renamed = network._replace(class_names=("ball", "cone", "rod"))
    with pytest.raises(ValueError, match=r"class 1 is 'box' in the data, .* 'cone'"):
        evaluate_network(renamed, dataset)
    check_classes(dataset, network.class_names, where="here")


def test_broken_weights_and_votes_are_refused(
    network: SavedNetwork, dataset: ShapeDataset
):
    params = dict(network.variables["params"])
    params["head"] = params["head"] | {"bias": np.full(3, np.nan, np.float32)}
    broken = network._replace(variables=network.variables | {"params": params})
    with pytest.raises(ValueError, match="logits of cloud 0 of 6 are not finite"):
        evaluate_network(broken, dataset)
    with pytest.raises(ValueError, match="votes must be 1 or more, got 0"):
        evaluate_network(network, dataset, votes=0)


def test_no_clouds(network: SavedNetwork, dataset: ShapeDataset):
    with pytest.raises(ValueError, match="dataset to evaluate has no clouds"):
        evaluate_network(network, CloudSubset(dataset, ()))


def test_held_out_shard_is_evaluated_and_not_trained_on(run: Path):
    config = read_config(run).data
    held = open_data(DataConfig(path=config.path, hold_out="train_1.npz"))
    whole = open_data(config)
    assert len(whole.train) == 12
    assert [len(held.train), len(held.evaluation)] == [6, 6]
    assert {held.train[k].name for k in range(6)} == {
        whole.train[k].name for k in range(6)
    }
    assert all("train_1.npz[" in held.evaluation[k].name for k in range(6))
    again = open_evaluation(
        DataConfig(path=config.path, hold_out="train_1.npz"),
        ("ball", "box", "rod"),
    )
    assert [again[k].name for k in range(6)] == [
        held.evaluation[k].name for k in range(6)
    ]


def test_shard_that_cannot_be_held_out(run: Path, tmp_path: Path):
    config = read_config(run).data
    with pytest.raises(
        FileNotFoundError, match=r"no training shard train_9.npz.*there"
    ):
        open_data(DataConfig(path=config.path, hold_out="train_9.npz"))
    for name in ("train_0.npz", "test_0.npz"):
        (tmp_path / name).write_bytes((run.parent / "data" / name).read_bytes())
    with pytest.raises(ValueError, match=r"train_0.npz is the only training shard"):
        open_data(DataConfig(path=tmp_path, hold_out="train_0.npz"))


def test_fraction_of_the_training_clouds(run: Path):
    config = read_config(run).data
    data = open_data(DataConfig(path=config.path, fraction=0.5))
    assert [len(data.train), len(data.evaluation)] == [6, 6]
