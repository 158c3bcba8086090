"""The predictor: same answers alone and in batches, few programs, clear errors."""

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import make_data, write_run

import e3dsnn_jax.predictor
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.interop import write_weights
from e3dsnn_jax.predictor import Prediction, Predictor, load
from e3dsnn_jax.training.compilations import programs_compiled
from e3dsnn_jax.training.run_folder import RunFolderError
from e3dsnn_jax.training.saved import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(make_data(tmp_path_factory.mktemp("predictor")))


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return load(run)


@pytest.fixture(scope="module")
def clouds(run: Path) -> list[PointCloud]:
    dataset = open_dataset(run.parent / "data", "test")
    return [dataset[index] for index in range(len(dataset))]


def test_prediction_is_a_distribution(predictor: Predictor, clouds: list[PointCloud]):
    prediction = predictor(clouds[0].points, clouds[0].normals)
    assert prediction.class_names == predictor.class_names == ("ball", "box", "rod")
    assert prediction.probabilities.shape == (3,)
    assert prediction.probabilities.sum() == pytest.approx(1)
    # An untrained network still tells clouds apart, so the tests below can fail.
    other = predictor(clouds[2].points, clouds[2].normals)
    assert np.abs(prediction.probabilities - other.probabilities).max() > 1e-3


def test_top_classes_are_sorted():
    prediction = Prediction(("a", "b", "c"), np.array([0.2, 0.5, 0.3]))
    assert prediction.label == "b"
    assert prediction.top(2) == [("b", 0.5), ("c", 0.3)]
    assert len(prediction.top()) == 3


def test_batch_gives_what_single_clouds_give(
    predictor: Predictor, clouds: list[PointCloud], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(e3dsnn_jax.predictor, "MAX_CLOUDS", 4)
    together = predictor.predict_clouds(clouds)
    assert len(together) == len(clouds) == 6
    for cloud, prediction in zip(clouds, together, strict=True):
        alone = predictor(cloud.points, cloud.normals)
        np.testing.assert_allclose(
            prediction.probabilities, alone.probabilities, atol=1e-6
        )
    assert predictor.predict_clouds([]) == []


def test_repeated_calls_compile_nothing(predictor: Predictor, clouds: list[PointCloud]):
    predictor.predict_clouds(clouds[:1])
    before = programs_compiled()
    for cloud in clouds:
        # Other clouds, and fewer points.
        predictor(cloud.points[:50], cloud.normals[:50])  # type: ignore[index]
    assert programs_compiled() == before


def test_more_votes_average_other_voxelisations(
    predictor: Predictor, clouds: list[PointCloud]
):
    points, normals = clouds[0].points, clouds[0].normals
    one = predictor(points, normals).probabilities
    many = predictor(points, normals, votes=5).probabilities
    assert np.abs(one - many).max() > 1e-7
    assert many.sum() == pytest.approx(1)
    np.testing.assert_array_equal(many, predictor(points, normals, votes=5)[1])
    with pytest.raises(ValueError, match="votes must be 1 or more, got 0"):
        predictor(points, normals, votes=0)


def test_missing_normals_are_an_error_with_advice(
    predictor: Predictor, clouds: list[PointCloud]
):
    with pytest.raises(
        ValueError, match=r"has no normals, but .* was trained with them"
    ):
        predictor(clouds[0].points)
    bare = clouds[1]._replace(normals=None)
    with pytest.raises(
        ValueError, match=r"test_0.npz\[1\].*has no normals.*no-normals"
    ):
        predictor.predict_clouds([clouds[0], bare])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 3)), "the cloud is empty"),
        (np.full((4, 3), np.nan), "NaN or infinite"),
        (np.zeros((4, 2)), r"shape \(4, 2\), expected \(points, 3\)"),
    ],
)
def test_broken_clouds(predictor: Predictor, points: np.ndarray, message: str):
    cloud = PointCloud.__new__(
        PointCloud, points.astype(np.float32), np.ones_like(points, np.float32), -1, "x"
    )
    with pytest.raises(ValueError, match=message):
        predictor.predict_clouds([cloud])


def test_colours_are_not_taken_for_normals(predictor: Predictor):
    with pytest.raises(ValueError, match=r"the cloud: 4 of 4 normals are not of len"):
        predictor(np.zeros((4, 3)), np.full((4, 3), 0.3))


def test_broken_weights_are_no_answer(run: Path, clouds: list[PointCloud]):
    network = load_run(run)
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), network.variables)
    predictor = Predictor(network._replace(variables=broken))
    with pytest.raises(ValueError, match="answers with numbers that are not finite"):
        predictor.predict_clouds(clouds[:1])


def test_one_point_is_a_cloud(predictor: Predictor):
    prediction = predictor(np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]]))
    assert np.isfinite(prediction.probabilities).all()


def test_weights_files_load_too(
    run: Path, predictor: Predictor, clouds: list[PointCloud], tmp_path: Path
):
    path = tmp_path / "weights.pth"
    write_weights(load_run(run).variables, path)
    loaded = load(path, voxel_size=0.4)
    assert loaded.class_names == ("class_0", "class_1", "class_2")
    np.testing.assert_array_equal(
        loaded.predict_clouds(clouds[:1])[0].probabilities,
        predictor.predict_clouds(clouds[:1])[0].probabilities,
    )
    with pytest.raises(ValueError, match="3 classes apart, but 2 class names"):
        load(path, class_names=("a", "b"))
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.pth")


def test_folder_without_a_run(tmp_path: Path):
    with pytest.raises(RunFolderError, match="is not the folder of a training run"):
        load(tmp_path)
