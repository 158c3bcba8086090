import pickle

import h5py
import numpy as np
import pytest

from e3dsnn_jax.data import open_dataset
from e3dsnn_jax.data.clouds import ShapeDataset, Split, check_cloud, labels_of
from e3dsnn_jax.data.records import RecordClouds
from e3dsnn_jax.data.records_pack import pack_dataset
from e3dsnn_jax.data.records_writer import PackSettings
from e3dsnn_jax.data.sampling import farthest_point_sampling
from e3dsnn_jax.data.shapes import NUM_CLOUDS
from tests.whole_datasets import normals_of

SPLITS: tuple[tuple[int, Split], ...] = ((1, "train"), (2, "test"))


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def resampled(root):
    (root / "cone").mkdir()
    for number, split in SPLITS:
        points = np.random.default_rng(number).normal(size=(30, 3))
        rows = np.concatenate([points, np.tile([0, 0, 1], (30, 1))], axis=1)
        np.savetxt(root / f"cone/cone_{number:04}.txt", rows, delimiter=",")
        (root / f"modelnet40_{split}.txt").write_text(f"cone_{number:04}\n")
    (root / "modelnet40_shape_names.txt").write_text("cone\n")


def hdf5(root):
    for number, split in SPLITS:
        points = np.random.default_rng(number).normal(size=(1, 30, 3))
        with h5py.File(root / f"ply_data_{split}0.h5", "w") as file:
            file["data"], file["label"] = points, [0]


def shards(root):
    for number, split in SPLITS:
        points = np.random.default_rng(number).normal(size=(1, 30, 3))
        np.savez(root / f"{split}_0.npz", points=points, label=[0])


def own_folder(root):
    for number, split in SPLITS:
        (root / split / "cone").mkdir(parents=True)
        points = np.random.default_rng(number).normal(size=(30, 3))
        np.save(root / split / "cone" / "a.npy", points)


@pytest.mark.parametrize("layout", [resampled, hdf5, shards, own_folder])
def test_every_layout_opens_by_itself(tmp_path, layout):
    layout(tmp_path)
    for number, split in SPLITS:
        points = np.random.default_rng(number).normal(size=(30, 3))
        dataset = open_dataset(tmp_path, split)
        assert isinstance(dataset, ShapeDataset)
        assert len(dataset) == len(dataset.class_names) == 1
        check_cloud(dataset[0], num_classes=1)
        np.testing.assert_allclose(dataset[0].points, points, atol=1e-6)
        assert dataset[0].name.startswith(str(tmp_path))
        again = pickle.loads(pickle.dumps(open_dataset(tmp_path, split)))
        np.testing.assert_array_equal(again[0].points, dataset[0].points)


@pytest.mark.parametrize("layout", [resampled, hdf5, shards, own_folder])
def test_every_layout_can_be_packed(tmp_path, layout):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    layout(data)
    for packed in pack_dataset(data, out, ("train", "test"), PackSettings()):
        whole = open_dataset(data, packed.clouds.split)
        found = open_dataset(out, packed.clouds.split)
        assert found.class_names == whole.class_names
        np.testing.assert_array_equal(labels_of(found), labels_of(whole))
        assert found[0].name == whole[0].name
        for one, two in ((found, whole), (whole, found)):
            rows = {point.tobytes() for point in one[0].points}
            assert rows == {point.tobytes() for point in two[0].points}
    # What was packed wins over what was there before.
    for path in out.iterdir():
        path.rename(data / path.name)
    assert isinstance(open_dataset(data, "train"), RecordClouds)


@pytest.mark.parametrize("layout", [resampled, hdf5, shards, own_folder])
def test_every_layout_is_thinned_out_by_farthest_points(tmp_path, layout):
    layout(tmp_path)
    whole = open_dataset(tmp_path, "train")[0].points
    for _ in range(2):  # built, then from the cache
        thin = open_dataset(tmp_path, "train", points_per_cloud=8)[0].points
        np.testing.assert_array_equal(thin, whole[farthest_point_sampling(whole, 8)])
    more = open_dataset(tmp_path, "train", points_per_cloud=31)[0].points
    np.testing.assert_array_equal(more, whole)


def test_meshes_give_as_many_points_as_asked(tmp_path):
    folder = tmp_path / "wedge" / "train"
    folder.mkdir(parents=True)
    (folder / "w.off").write_text("OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    sizes = [
        len(open_dataset(tmp_path, "train", points_per_cloud=count)[0].points)
        for count in (None, 50, 10_500)
    ]
    assert sizes == [10_000, 50, 10_500]


def test_unknown_folder_lists_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "notes.md").write_text("")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        open_dataset(tmp_path, "train")
    message = str(error.value)
    for part in (
        "train.index",
        "modelnet40_shape_names.txt",
        "train_files.txt",
        "*train*.h5",
        "train_*.npz",
        "class folders",
        ".off",
        "The folder holds notes.md, pictures/.",
    ):
        assert part in message
    for index in range(30):
        (tmp_path / f"{index}.md").write_text("")
    with pytest.raises(FileNotFoundError, match="and 22 more"):
        open_dataset(tmp_path, "train")


def test_paths_that_are_no_folder(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"x.npz: a file, not a folder"):
        open_dataset(tmp_path / "x.npz", "train")
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        open_dataset(tmp_path / "gone", "train")
    (tmp_path / "x.npz").unlink()
    with pytest.raises(FileNotFoundError, match="The folder holds nothing"):
        open_dataset(tmp_path, "train")


def test_points_per_cloud_below_one():
    with pytest.raises(ValueError, match="points_per_cloud is 0, expected 1 or more"):
        open_dataset(None, "train", points_per_cloud=0)


def test_a_split_that_is_absent(tmp_path):
    shards(tmp_path)
    (tmp_path / "test_0.npz").unlink()
    with pytest.raises(FileNotFoundError, match="there is no test set"):
        open_dataset(tmp_path, "test")


def test_embedded_shapes_are_generated_once(user_cache, monkeypatch):
    monkeypatch.setitem(NUM_CLOUDS, "test", 32)
    test = open_dataset(None, "test", points_per_cloud=128)
    assert (len(test), len(test.class_names)) == (32, 16)
    assert test[3].points.shape == normals_of(test[3]).shape == (128, 3)
    assert len(list(user_cache.rglob("*.json"))) == 1
    again = open_dataset(None, "test", points_per_cloud=128)
    np.testing.assert_array_equal(test[31].points, again[31].points)
    np.testing.assert_array_equal(np.bincount(labels_of(test)), [2] * 16)


@pytest.mark.parametrize(
    ("name", "split", "clouds", "classes", "points"),
    [
        ("kicad40", "test", 293, 40, 1024),
        ("bimnet10", "test", 51, 10, 2048),
        ("modelnet_samples/ModelNet10", "train", 3, 1, 2048),
    ],
)
def test_real_data(shared, name, split, clouds, classes, points):
    root = shared / "data" / name
    if not root.is_dir():
        pytest.skip(f"no folder {root}")
    dataset = open_dataset(root, split, points_per_cloud=2048)
    assert (len(dataset), len(dataset.class_names)) == (clouds, classes)
    for index in (0, clouds - 1):
        check_cloud(dataset[index], num_classes=classes)
        assert dataset[index].points.shape == (points, 3)
