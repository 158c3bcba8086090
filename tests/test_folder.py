import numpy as np
import pytest

from e3dsnn_jax.data.folder import folder_source, is_class_folder_tree, split_of


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0 0\n")


def names(source, root):
    return [file.relative_to(root).as_posix() for file in source.files]


def test_split_folders_inside_the_classes(tmp_path):
    touch(
        tmp_path,
        "chair/train/chair_0001.off",
        "chair/train/chair_0002.off",
        "chair/test/chair_0003.off",
        "bed/test/bed_0001.off",
        "bed/train/notes.md",
    )
    train = folder_source(tmp_path, "train")
    assert train.class_names == ("bed", "chair")
    assert names(train, tmp_path) == [
        "chair/train/chair_0001.off",
        "chair/train/chair_0002.off",
    ]
    assert train.labels == (1, 1)
    assert folder_source(tmp_path, "test").labels == (0, 1)


def test_split_folders_around_the_classes(tmp_path):
    touch(tmp_path, "train/a/1.ply", "train/b/1.obj", "test/b/2.npy", "b/3.npy")
    train, test = (folder_source(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("a", "b")
    assert names(train, tmp_path) == ["train/a/1.ply", "train/b/1.obj"]
    assert names(test, tmp_path) == ["test/b/2.npy"]
    assert (train.labels, test.labels) == ((0, 1), (1,))


def test_files_without_a_split_are_dealt_by_their_hash(tmp_path):
    touch(tmp_path, *[f"{kind}/{i}.txt" for kind in "ab" for i in range(200)])
    train, test = (folder_source(tmp_path, split) for split in ("train", "test"))
    assert len(train.files) + len(test.files) == 400
    assert not set(train.files) & set(test.files)
    assert 50 < len(test.files) < 110
    touch(tmp_path, "a/new.txt")
    again = folder_source(tmp_path, "test")
    assert set(test.files) <= set(again.files)


def test_the_hash_does_not_depend_on_the_place(tmp_path):
    # Fixed once and for all: another rule would move shapes between the splits.
    splits = [split_of(tmp_path / f"a/{i}.txt", tmp_path) for i in range(12)]
    assert [i for i, split in enumerate(splits) if split == "test"] == [2, 6, 11]


def test_hidden_folders_and_unknown_files_are_left_alone(tmp_path):
    touch(tmp_path, "a/1.TXT", "a/.2.txt", ".e3dsnn_cache/3.npy", "b/readme.md")
    source = [*folder_source(tmp_path, split_of(tmp_path / "a/1.TXT", tmp_path)).files]
    assert source == [tmp_path / "a/1.TXT"]


def test_reading(tmp_path):
    touch(tmp_path, "train/a/1.txt", "train/b/2.txt")
    source = folder_source(tmp_path, "train", mesh_points=500)
    [cloud] = source.read(source.files[1], source.labels[1])
    assert cloud.label == 1
    np.testing.assert_array_equal(cloud.points, [[0, 0, 0]])


def test_what_is_a_class_folder_tree(tmp_path):
    assert not is_class_folder_tree(tmp_path)
    touch(tmp_path, "loose.off", "docs/readme.md")
    assert not is_class_folder_tree(tmp_path)
    touch(tmp_path, "docs/points.csv")
    assert is_class_folder_tree(tmp_path)


def test_empty_split(tmp_path):
    touch(tmp_path, "bed/train/1.off", "bed/train/2.off")
    with pytest.raises(
        FileNotFoundError, match=r"none of its 2 .* belongs to the test set; put some"
    ):
        folder_source(tmp_path, "test")


def test_real_meshes(shared):
    root = shared / "data" / "modelnet_samples" / "ModelNet40"
    if not root.is_dir():
        pytest.skip(f"no folder {root}")
    source = folder_source(root, "train", mesh_points=100)
    [cloud] = source.read(source.files[0], source.labels[0])
    assert (source.class_names, source.labels) == (("airplane",), (0, 0))
    assert cloud.points.shape == (100, 3)
