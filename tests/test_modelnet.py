import h5py
import numpy as np
import pytest

from e3dsnn_jax.data.modelnet import (
    hdf5_files,
    hdf5_source,
    is_resampled,
    read_hdf5_clouds,
    resampled_source,
)
from tests.whole_datasets import normals_of


@pytest.fixture
def resampled(tmp_path, rng):
    """Two classes, one of them with an underscore in its name."""
    for shape in ("chair_0001", "chair_0002", "night_stand_0001"):
        folder = tmp_path / shape.rpartition("_")[0]
        folder.mkdir(exist_ok=True)
        rows = np.concatenate([rng.normal(size=(5, 3)), np.eye(3)[[0, 1, 2, 0, 1]]], 1)
        np.savetxt(folder / f"{shape}.txt", rows, fmt="%.6f", delimiter=",")
    (tmp_path / "modelnet40_shape_names.txt").write_text("chair\nnight_stand\n")
    (tmp_path / "modelnet40_train.txt").write_text("night_stand_0001\nchair_0001\n")
    (tmp_path / "modelnet40_test.txt").write_text("chair_0002\n\n")
    return tmp_path


def write_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def test_resampled(resampled):
    assert is_resampled(resampled)
    source = resampled_source(resampled, "train")
    assert source.class_names == ("chair", "night_stand")
    assert [file.name for file in source.files] == [
        "night_stand_0001.txt",
        "chair_0001.txt",
    ]
    assert source.labels == (1, 0)
    [cloud] = source.read(source.files[0], 1)
    np.testing.assert_array_equal(normals_of(cloud)[:3], np.eye(3))
    assert (cloud.label, cloud.points.shape) == (1, (5, 3))
    assert resampled_source(resampled, "test").labels == (0,)


def test_resampled_with_a_broken_line(resampled):
    path = resampled / "chair" / "chair_0002.txt"
    path.write_text(path.read_text() + "0.1,0.2\n")
    source = resampled_source(resampled, "test")
    with pytest.raises(ValueError, match=r"chair_0002.txt, line 6: 2 columns"):
        source.read(path, 0)


def test_resampled_errors(resampled):
    lists = resampled / "modelnet40_test.txt"
    lists.write_text("chair_0002\nchair_0009\n")
    with pytest.raises(
        FileNotFoundError, match=r"chair_0009.txt: absent but listed in .*, line 2"
    ):
        resampled_source(resampled, "test")
    lists.write_text("sofa_0001\n")
    with pytest.raises(ValueError, match=r"line 1: 'sofa_0001' is of class 'sofa'"):
        resampled_source(resampled, "test")
    lists.unlink()
    with pytest.raises(FileNotFoundError, match="so there is no test set"):
        resampled_source(resampled, "test")


def test_resampled_without_class_names(resampled):
    (resampled / "modelnet40_shape_names.txt").unlink()
    assert is_resampled(resampled)
    with pytest.raises(FileNotFoundError, match=r"modelnet40_shape_names.txt: absent"):
        resampled_source(resampled, "train")


def test_hdf5_by_file_lists(tmp_path, rng):
    points = rng.normal(size=(3, 6, 3)).astype(np.float32)
    normals = np.broadcast_to(np.array([0, 0, 1], np.float32), points.shape)
    for index in range(2):
        write_hdf5(
            tmp_path / f"ply_data_train{index}.h5",
            data=points + index,
            normal=normals,
            label=np.array([[0], [2], [1]], np.uint8),
            faceId=np.zeros(3),
        )
    (tmp_path / "shape_names.txt").write_text("a\nb\nc\n")
    (tmp_path / "train_files.txt").write_text(
        "data/modelnet40_ply_hdf5_2048/ply_data_train1.h5\n"
        "data/modelnet40_ply_hdf5_2048/ply_data_train0.h5\n"
    )
    source = hdf5_source(tmp_path, "train")
    assert [file.name for file in source.files] == [
        "ply_data_train1.h5",
        "ply_data_train0.h5",
    ]
    assert source.class_names == ("a", "b", "c")
    clouds = source.read(source.files[0], -1)
    assert [cloud.label for cloud in clouds] == [0, 2, 1]
    np.testing.assert_array_equal(clouds[1].points, points[1] + 1)
    np.testing.assert_array_equal(clouds[1].normals, normals[1])
    assert clouds[1].name == f"{tmp_path}/ply_data_train1.h5[1]"


def test_hdf5_by_file_names(tmp_path, rng):
    points = rng.normal(size=(3, 6, 3))
    write_hdf5(tmp_path / "set_train.h5", data=points, label=np.array([0, 4, 1]))
    write_hdf5(tmp_path / "set_test.h5", data=points[:1], label=np.array([2]))
    source = hdf5_source(tmp_path, "test")
    assert [file.name for file in source.files] == ["set_test.h5"]
    assert source.class_names == tuple(f"class_{label}" for label in range(5))
    [cloud] = source.read(source.files[0], -1)
    assert cloud.normals is None
    assert cloud.points.dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": np.zeros(2, int)}, "no array called data, only label"),
        ({"data": np.zeros((2, 5, 3))}, "no array called label, only data"),
        ({"data": np.zeros((2, 5, 4)), "label": [0, 1]}, r"data has shape \(2, 5, 4\)"),
        ({"data": np.zeros((2, 5, 3)), "label": [0]}, "2 clouds but 1 labels"),
        (
            {"data": np.zeros((2, 5, 3)), "label": np.zeros((2, 2), int)},
            r"label is int64 of shape \(2, 2\)",
        ),
        (
            {
                "data": np.zeros((2, 5, 3)),
                "label": [0, 1],
                "normal": np.zeros((2, 4, 3)),
            },
            r"normal has shape \(2, 4, 3\) but data has \(2, 5, 3\)",
        ),
    ],
)
def test_broken_hdf5(tmp_path, arrays, message):
    write_hdf5(tmp_path / "train.h5", **arrays)
    with pytest.raises(ValueError, match=f"train.h5: {message}"):
        read_hdf5_clouds(tmp_path / "train.h5")


def test_truncated_hdf5(tmp_path):
    path = tmp_path / "train.h5"
    write_hdf5(path, data=np.zeros((20, 50, 3)), label=np.zeros(20, int))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        ValueError, match=r"train.h5: cannot be read as HDF5: .*cut short"
    ):
        read_hdf5_clouds(path)


def test_hdf5_files_that_are_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither test_files.txt nor \*test\*"):
        hdf5_source(tmp_path, "test")
    (tmp_path / "test_files.txt").write_text("gone.h5\n")
    with pytest.raises(FileNotFoundError, match=r"gone.h5: absent but listed in"):
        hdf5_files(tmp_path, "test")


def test_real_hdf5(shared):
    folder = shared / "data" / "bimnet10"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    source = hdf5_source(folder, "test")
    clouds = [cloud for file in source.files for cloud in source.read(file, -1)]
    assert len(clouds) == 51
    assert {cloud.points.shape for cloud in clouds} == {(2048, 3)}
    assert len(source.class_names) == 10
