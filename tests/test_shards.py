import pickle

import numpy as np
import pytest

from e3dsnn_jax.data.clouds import labels_of
from e3dsnn_jax.data.shards import open_shards, read_shard_clouds
from tests.whole_datasets import normals_of


def shard(rng, clouds, *, size=20, classes=3, **changes):
    normals = rng.normal(size=(clouds, size, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    arrays = {
        "points": np.round(rng.uniform(-1, 1, (clouds, size, 3)) * 32767).astype("i2"),
        "normals": np.round(normals * 127).astype("i1"),
        "label": np.arange(clouds).astype("i2") % classes,
        "name": np.array([f"part{index}.wrl" for index in range(clouds)]),
    }
    arrays.update(changes)
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.fixture
def folder(tmp_path, rng):
    for index in (0, 2, 10):
        np.savez(tmp_path / f"train_{index}.npz", **shard(rng, index + 1))
    np.savez(tmp_path / "test_0.npz", **shard(rng, 2))
    (tmp_path / "shape_names.txt").write_text("ball\nlong box\ncone\n")
    return tmp_path


def test_shards_join_in_the_order_of_their_numbers(folder):
    train = open_shards(folder, "train")
    assert len(train) == 1 + 3 + 11
    assert train.class_names == ("ball", "long box", "cone")
    names = [
        f"{folder}/train_{k}.npz[{i}] part{i}.wrl"
        for k in (0, 2, 10)
        for i in range(k + 1)
    ]
    assert [cloud.name for cloud in train] == names
    np.testing.assert_array_equal(labels_of(train), [c.label for c in train])
    with pytest.raises(IndexError):
        train[15]


def test_integers_are_scaled_and_normals_made_unit(folder):
    stored = np.load(folder / "train_2.npz")
    cloud = open_shards(folder, "train")[2]
    np.testing.assert_allclose(cloud.points, stored["points"][1] / 32767, atol=1e-7)
    assert cloud.points.dtype == normals_of(cloud).dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals_of(cloud), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(normals_of(cloud), stored["normals"][1] / 127, atol=0.01)


def test_floats_without_normals_and_names(tmp_path, rng):
    points = rng.normal(size=(4, 7, 3)) * 9
    np.savez(
        tmp_path / "test_0.npz", points=points, label=np.array([[4], [0], [1], [1]])
    )
    test = open_shards(tmp_path, "test")
    np.testing.assert_array_equal(test[1].points, points[1].astype(np.float32))
    assert test[1].normals is None
    assert test[1].name == f"{tmp_path}/test_0.npz[1]"
    assert test.class_names == ("class_0", "class_1", "class_2", "class_3", "class_4")


def test_numbered_classes_cover_both_splits(tmp_path, rng):
    np.savez(tmp_path / "train_0.npz", **shard(rng, 4, classes=4))
    np.savez(tmp_path / "test_0.npz", **shard(rng, 2))
    assert len(open_shards(tmp_path, "test").class_names) == 4


def test_pickled_shards_are_the_same(folder):
    train = open_shards(folder, "train")
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again[7].points, train[7].points)


def test_clouds_of_one_shard(folder):
    clouds = read_shard_clouds(folder / "train_2.npz")
    assert [cloud.label for cloud in clouds] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, "no array called label, only points, normals, name"),
        ({"points": None}, "no array called points"),
        (
            {"label": np.zeros(3, int)},
            "differ in their number of clouds: points 5, label 3, normals 5, name 5",
        ),
        ({"normals": np.zeros((4, 20, 3))}, "differ in their number of clouds"),
        ({"points": np.zeros((5, 20, 2))}, r"points have shape \(5, 20, 2\)"),
        ({"normals": np.zeros((5, 20))}, r"normals have shape \(5, 20\)"),
        (
            {"normals": np.ones((5, 21, 3))},
            r"\[0\] part0.wrl: normals have shape \(21, 3\)",
        ),
        ({"label": np.zeros(5)}, "label is float64 of shape"),
        (
            {"label": np.array([0, 1, 2, 3, 0])},
            r"\[3\] part3.wrl: label 3 is outside \[0, 3\)",
        ),
        ({"label": np.array([0, -1, 2, 1, 0])}, r"\[1\] .*label -1 is outside"),
        (
            {"points": np.zeros((5, 0, 3)), "normals": None},
            r"\[0\] .*the cloud is empty",
        ),
        ({"points": np.full((5, 20, 3), np.nan)}, r"\[0\] .*20 of 20 points are NaN"),
    ],
)
def test_broken_shards(folder, rng, changes, message):
    np.savez(folder / "train_2.npz", **shard(rng, 5, **changes))
    with pytest.raises(ValueError, match=f"train_2.npz.*{message}"):
        open_shards(folder, "train")


def test_truncated_shard(folder):
    path = folder / "train_10.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        ValueError, match=r"train_10.npz: cannot be read as an npz file"
    ):
        open_shards(folder, "train")


def test_altered_shard(folder):
    path = folder / "train_10.npz"
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"train_10.npz: cannot be .*(CRC|checksum)"):
        open_shards(folder, "train")


def test_absent_split(tmp_path, rng):
    np.savez(tmp_path / "train_0.npz", **shard(rng, 2))
    with pytest.raises(FileNotFoundError, match=r"no test_\*.npz, so there is no test"):
        open_shards(tmp_path, "test")


def test_real_shards(shared):
    folder = shared / "data" / "kicad40"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    test = open_shards(folder, "test")
    assert (len(test), len(test.class_names)) == (293, 40)
    cloud = test[0]
    assert cloud.points.shape == normals_of(cloud).shape == (1024, 3)
    assert np.linalg.norm(cloud.points, axis=1).max() < 1.01
