import concurrent.futures
import concurrent.futures.process
import contextlib
import json
import os
import pickle
import zlib

import numpy as np
import pytest

from e3dsnn_jax.data import cache
from e3dsnn_jax.data.cache import CloudSource, cached
from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset
from e3dsnn_jax.data.modelnet import read_shape
from e3dsnn_jax.data.packed import load_packed, pack_in_files, pack_in_memory
from tests.whole_datasets import all_clouds


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def source(tmp_path, rng):
    """Three text files; only the second has normals."""
    root = tmp_path / "data"
    root.mkdir()
    for index, size in enumerate((6, 4, 5)):
        columns = rng.normal(size=(size, 3))
        if index == 1:
            columns = np.concatenate([columns, np.eye(3)[[0, 1, 2, 0]]], axis=1)
        np.savetxt(root / f"{index}.txt", columns)
    files = tuple(root / f"{index}.txt" for index in range(3))
    return CloudSource(root, "demo-train", ("a", "b"), files, (0, 1, 0), read_shape)


def refuse(path, label):
    raise AssertionError(f"{path} was read again")


def same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.points, two.points)
        assert (one.normals is None) == (two.normals is None)
        if one.normals is not None:
            np.testing.assert_array_equal(one.normals, two.normals)
        assert one[2:] == two[2:]


def direct(source):
    return [
        cloud
        for file, label in zip(source.files, source.labels, strict=True)
        for cloud in source.read(file, label)
    ]


def cache_files(folder, ending):
    return sorted(folder.rglob(f"*{ending}"))


def test_first_use_writes_and_second_only_reads(source):
    first = cached(source)
    assert isinstance(first, ShapeDataset)
    same(all_clouds(first), direct(source))
    assert first.class_names == ("a", "b")
    np.testing.assert_array_equal(first.labels, [0, 1, 0])
    again = cached(source._replace(read=refuse))
    same(all_clouds(again), direct(source))
    assert isinstance(again.rows[0], np.memmap)
    folder = source.root / ".e3dsnn_cache"
    assert len(list(folder.iterdir())) == 3  # and no temporary file


def test_what_is_handed_out_is_a_copy(source):
    dataset = cached(source)
    dataset[0].points[:] = 7
    assert (dataset[0].points != 7).all()


def test_pickled_dataset_is_small_and_opens_its_own_files(source):
    dataset = cached(source)
    assert dataset.rows[0] is dataset.rows[0]
    sent = pickle.dumps(dataset)
    assert len(sent) < 1500
    same(all_clouds(pickle.loads(sent)), direct(source))


def test_thinned_out_clouds_have_their_own_cache(source):
    cached(source)
    thin = cached(source, points_per_cloud=5)
    assert [len(cloud.points) for cloud in thin] == [5, 4, 5]
    assert len(cached(source._replace(read=refuse))[0].points) == 6
    assert len(cached(source._replace(read=refuse), points_per_cloud=5)[0].points) == 5


def test_changed_source_is_read_again_and_the_old_cache_removed(source):
    cached(source)
    old = set((source.root / ".e3dsnn_cache").iterdir())
    source.files[0].write_text("1 2 3\n")
    np.testing.assert_array_equal(cached(source)[0].points, [[1, 2, 3]])
    new = set((source.root / ".e3dsnn_cache").iterdir())
    assert len(new) == 3
    assert not old & new


@pytest.mark.parametrize(
    "changed",
    [{"labels": (1, 1, 0)}, {"class_names": ("b", "a")}, {"name": "demo-test"}],
)
def test_changed_question_is_another_cache(source, changed):
    cached(source)
    with pytest.raises(AssertionError, match="was read again"):
        cached(source._replace(read=refuse, **changed))


def test_touched_or_renamed_files_make_it_stale(source, tmp_path):
    extra = tmp_path / "recipe.py"
    extra.write_text("1")
    source = source._replace(depends_on=(extra,))
    cached(source)
    os.utime(extra, ns=(1, 1))
    with pytest.raises(AssertionError, match="was read again"):
        cached(source._replace(read=refuse))


def test_new_format_makes_it_stale(source, monkeypatch):
    cached(source)
    monkeypatch.setattr(cache, "FORMAT", -1)
    with pytest.raises(AssertionError, match="was read again"):
        cached(source._replace(read=refuse))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def empty(path):
    path.write_bytes(b"")


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(bytes(content))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, empty, flip_last_bit, remove])
@pytest.mark.parametrize("ending", [".json", ".points.npy", ".normals.npy"])
def test_damaged_cache_is_built_anew(source, damage, ending):
    cached(source)
    [path] = cache_files(source.root, ending)
    damage(path)
    same(all_clouds(cached(source)), direct(source))
    same(all_clouds(cached(source._replace(read=refuse))), direct(source))


def test_nonsense_with_a_right_checksum_is_built_anew(source):
    cached(source)
    [path] = cache_files(source.root, ".json")
    body = json.dumps({"sizes": 3}).encode()
    path.write_bytes(b"%d\n" % zlib.crc32(body) + body)
    same(all_clouds(cached(source)), direct(source))


def test_read_only_folder_falls_back_to_the_user_cache(source, user_cache, capsys):
    source.root.chmod(0o555)
    try:
        same(all_clouds(cached(source)), direct(source))
        message = capsys.readouterr().err
        assert "warning: cannot keep a cache in" in message
        assert str(source.root) in message
        same(all_clouds(cached(source._replace(read=refuse))), direct(source))
        assert capsys.readouterr().err == ""
    finally:
        source.root.chmod(0o755)
    assert len(cache_files(user_cache, ".json")) == 1
    assert not (source.root / ".e3dsnn_cache").exists()


def test_two_folders_of_one_name_do_not_share_the_user_cache(source, monkeypatch):
    other = source.root.parent / "elsewhere" / source.root.name
    other.mkdir(parents=True)
    for file in source.files:
        os.link(file, other / file.name)
    moved = source._replace(
        root=other, files=tuple(other / f.name for f in source.files)
    )
    for root in (source.root, other):
        (root / ".e3dsnn_cache").write_text("in the way")
    cached(source)
    with pytest.raises(AssertionError, match="was read again"):
        cached(moved._replace(read=refuse))


def test_without_any_place_clouds_stay_in_memory(source, user_cache, capsys):
    (source.root / ".e3dsnn_cache").write_text("in the way")
    (user_cache / "e3dsnn_jax").write_text("in the way")
    dataset = cached(source)
    same(all_clouds(dataset), direct(source))
    same(all_clouds(pickle.loads(pickle.dumps(dataset))), direct(source))
    message = capsys.readouterr().err
    assert message.count("warning: cannot keep a cache") == 2
    assert "stays in memory and is read anew next time" in message
    with pytest.raises(AssertionError, match="was read again"):
        cached(source._replace(read=refuse))


def test_no_home_folder(source, monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache.Path, "home", no_home)
    same(all_clouds(cached(source._replace(root=None))), direct(source))
    assert "stays in memory" in capsys.readouterr().err


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_full_disk_leaves_nothing_behind(source, user_cache, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("e3dsnn_jax.whole_file.os.replace", full)
    same(all_clouds(cached(source)), direct(source))
    assert "No space left on device" in capsys.readouterr().err
    assert list((source.root / ".e3dsnn_cache").iterdir()) == []


def test_errors_of_the_source_are_not_taken_for_the_cache(source):
    source.files[2].write_text("1 2 nan\n")
    with pytest.raises(ValueError, match=r"2.txt: 1 of 1 points are NaN"):
        cached(source)
    source.files[2].write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"2.txt: label 9 is outside \[0, 2\)"):
        cached(source._replace(labels=(0, 1, 9)))
    assert list((source.root / ".e3dsnn_cache").iterdir()) == []
    source.files[2].unlink()
    with pytest.raises(FileNotFoundError):
        cached(source)


def test_several_processes_give_the_same(source, monkeypatch):
    expected = direct(source)
    monkeypatch.setattr(cache, "MANY_FILES", 3)
    same(all_clouds(cached(source)), expected)


def test_errors_in_other_processes_arrive(source, monkeypatch):
    monkeypatch.setattr(cache, "MANY_FILES", 3)
    source.files[2].write_text("1 2 three\n")
    with pytest.raises(ValueError, match=r"2.txt, line 1: 'three' is not a number"):
        cached(source)


def test_reading_goes_on_when_the_processes_die(source, monkeypatch, capsys):
    class Dying(contextlib.AbstractContextManager):
        def __init__(self, **options):
            del options

        def __exit__(self, *_):
            return None

        def map(self, function, *iterables, chunksize):
            del chunksize
            yield function(*(items[0] for items in iterables))
            raise concurrent.futures.process.BrokenProcessPool

    monkeypatch.setattr(cache, "MANY_FILES", 3)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Dying)
    same(all_clouds(cached(source)), direct(source))
    assert "reading goes on in this one" in capsys.readouterr().err


def test_packing_nothing(tmp_path):
    written = pack_in_files([], ("a",), tmp_path / "x")
    loaded = load_packed(tmp_path / "x")
    assert loaded is not None
    for empty in (pack_in_memory([], ("a",)), written, loaded):
        assert (len(empty), empty.class_names) == (0, ("a",))
        with pytest.raises(IndexError, match="cloud 0 of a dataset of 0"):
            empty[0]


def test_packing_clouds_without_normals(tmp_path):
    clouds = [PointCloud(np.ones((2, 3), np.float32), None, -1, "x")]
    pack_in_files(clouds, ("a",), tmp_path / "x")
    same(all_clouds(load_packed(tmp_path / "x")), clouds)
    assert load_packed(tmp_path / "absent") is None
