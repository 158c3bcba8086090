"""Packed records: the same clouds as before, in the same order, or an error."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from e3dsnn_jax.data import records
from e3dsnn_jax.data.augment import normalize
from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset, labels_of
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.data.records import (
    RecordClouds,
    decode_cloud,
    encode_cloud,
    is_packed,
    open_records,
)
from e3dsnn_jax.data.records_groups import group_by_voxel, thin_voxels
from e3dsnn_jax.data.records_pack import pack_dataset
from e3dsnn_jax.data.records_stream import stream_clouds
from e3dsnn_jax.data.records_writer import PackSettings, write_records
from experiments.faults.mutations import mutate
from tests.whole_datasets import all_clouds, normals_of

CLASS_NAMES = ("a", "b", "Tür")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def hard_clouds():
    rng = np.random.default_rng(0)

    def draw(size, scale=1.0, offset=0.0):
        return (offset + scale * rng.normal(size=(size, 3))).astype(np.float32)

    duplicates = np.repeat(draw(5), 40, axis=0)[rng.permutation(200)]
    # The mean is 0 or nearly so, by the order of the sum; the point there shows it.
    half = draw(30) * np.exp2(rng.integers(-30, 0, (30, 3))).astype(np.float32)
    wide = np.concatenate([half, -half, np.zeros((1, 3), np.float32)])
    wide = wide[rng.permutation(61)]
    return [
        PointCloud(draw(1), unit(draw(1)), 0, "one point"),
        PointCloud(duplicates, unit(draw(200)), 1, "duplicates"),
        PointCloud(np.ones((7, 3), np.float32), None, 2, "one place, no normals"),
        PointCloud(draw(700), None, 1, "no normals"),
        PointCloud(draw(501, offset=1000), unit(draw(501)), 2, "Stühle/椅子🪑.txt"),
        PointCloud(
            draw(33), np.zeros((33, 3), np.float32), 0, os.fsdecode(b"\xff.off")
        ),
        PointCloud(wide, unit(draw(61)), 0, "wide"),
        PointCloud(draw(64, scale=1e-30), None, -1, ""),
        PointCloud(draw(300, scale=1e30), unit(draw(300)), 1, "large"),
    ]


def same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.points.dtype == two.points.dtype == np.float32
        assert one.points.tobytes() == two.points.tobytes()
        assert (one.normals is None) == (two.normals is None)
        if one.normals is not None:
            assert normals_of(one).tobytes() == normals_of(two).tobytes()
        assert one[2:] == two[2:]


def grouped_by_hand(cloud, voxel_size):
    """Points sorted by cell and then by their place, and the number of cells."""
    points = normalize(cloud).points.astype(np.float64)
    cells = [tuple(np.floor(point / voxel_size).tolist()) for point in points]
    order = sorted(range(len(points)), key=lambda row: (cells[row], row))
    normals = None if cloud.normals is None else cloud.normals[order]
    grouped = cloud._replace(points=cloud.points[order], normals=normals)
    return grouped, len(set(cells))


def pack(folder, clouds, split="train", **settings):
    return write_records(clouds, CLASS_NAMES, folder, split, PackSettings(**settings))


@pytest.mark.parametrize("clouds_per_shard", [1, 2, 9, 1000])
def test_round_trip(tmp_path, clouds_per_shard):
    clouds = hard_clouds()
    packed = pack(tmp_path, clouds, clouds_per_shard=clouds_per_shard)
    assert isinstance(packed, ShapeDataset)
    expected = [grouped_by_hand(cloud, 0.05) for cloud in clouds]
    # Only this one's mean depends on the order of its points.
    wide = [cloud.name for cloud in clouds].index("wide")
    expected[wide] = (clouds[wide], expected[wide][1])
    for found in (packed, open_records(tmp_path, "train")):
        same(all_clouds(found), [cloud for cloud, _ in expected])
        assert found.class_names == CLASS_NAMES
        assert (found.voxel_size, found.index.points_per_voxel) == (0.05, None)
        assert found.voxels.tolist() == [voxels for _, voxels in expected]
        assert found.points.tolist() == [len(cloud.points) for cloud in clouds]
        assert labels_of(found).tolist() == [cloud.label for cloud in clouds]
        same([found[-1]], [expected[-1][0]])
        with pytest.raises(IndexError, match="cloud 9 of a dataset of 9"):
            found[9]
    count = -(-len(clouds) // clouds_per_shard)
    names = [f"train-{i:05}-of-{count:05}.arrayrecord" for i in range(count)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "train.index"]


def test_record_of_a_cloud():
    for cloud in hard_clouds():
        same([decode_cloud(encode_cloud(cloud))], [cloud])


def test_what_is_handed_out_is_a_copy(tmp_path):
    packed = pack(tmp_path, hard_clouds())
    packed[1].points[:] = 7
    assert (packed[1].points != 7).all()


@pytest.mark.parametrize("voxel_size", [0.03, 0.05, 0.4, 3.0])
def test_voxels_are_those_of_the_original_bit_for_bit(tmp_path, voxel_size):
    clouds = hard_clouds()
    packed = pack(tmp_path, clouds, voxel_size=voxel_size)
    for index, cloud in enumerate(clouds):
        first, second = (
            voxelize_cloud(
                some,
                np.random.default_rng(index),
                voxel_size=voxel_size,
                normals=some.normals is not None,
                recipe=None,
            )
            for some in (cloud, packed[index])
        )
        np.testing.assert_array_equal(first.coords, second.coords)
        assert first.features.tobytes() == second.features.tobytes()
        assert len(second.coords) == packed.voxels[index]
        if cloud.name != "wide":
            assert (np.diff(second.voxel_of_point) >= 0).all()


def test_voxels_of_another_size_are_the_same_cells(tmp_path):
    clouds = hard_clouds()
    packed = pack(tmp_path, clouds, voxel_size=0.3)
    for index, cloud in enumerate(clouds):
        first, second = (
            voxelize_cloud(
                some,
                np.random.default_rng(0),
                voxel_size=0.02,
                normals=False,
                recipe=None,
            )
            for some in (cloud, packed[index])
        )
        np.testing.assert_array_equal(first.coords, second.coords)


def test_thinning_keeps_every_voxel_and_no_more_than_asked():
    cloud = hard_clouds()[3]
    cells = np.floor(normalize(cloud).points.astype(np.float64) / 0.4)
    rows = {point.tobytes(): row for row, point in enumerate(cloud.points)}
    chosen = []
    for seed in range(20):
        thin = thin_voxels(
            cloud, voxel_size=0.4, points_per_voxel=2, rng=np.random.default_rng(seed)
        )
        kept = [rows[point.tobytes()] for point in thin.points]
        assert kept == sorted(set(kept))
        _, whole = np.unique(cells, axis=0, return_counts=True)
        _, counts = np.unique(cells[kept], axis=0, return_counts=True)
        np.testing.assert_array_equal(counts, np.minimum(whole, 2))
        assert whole.max() > 2
        chosen.append(tuple(kept))
    assert len(set(chosen)) == 20
    # Each point of a voxel of three stays as often as another: in 2 of 3 draws.
    labels = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    three = np.flatnonzero(np.bincount(labels)[labels] == 3)
    share = np.mean([np.isin(three, kept).mean() for kept in chosen])
    assert abs(share - 2 / 3) < 1e-12
    often = np.sum([np.isin(three, kept) for kept in chosen], axis=0)
    assert often.max() < 20
    assert often.min() > 3


def test_thinned_records(tmp_path):
    clouds = hard_clouds()
    packed = pack(tmp_path / "a", clouds, voxel_size=0.4, points_per_voxel=1)
    again = pack(
        tmp_path / "b", clouds, voxel_size=0.4, points_per_voxel=1, clouds_per_shard=2
    )
    same(all_clouds(packed), all_clouds(again))
    assert packed.index.points_per_voxel == 1
    for index, cloud in enumerate(clouds):
        _, cells = grouped_by_hand(cloud, 0.4)
        assert packed.points[index] == len(packed[index].points) == cells
        assert packed.voxels[index] == grouped_by_hand(packed[index], 0.4)[1]
        known = {point.tobytes() for point in cloud.points}
        assert all(point.tobytes() in known for point in packed[index].points)


def test_a_cloud_whose_mean_depends_on_the_order_keeps_it():
    wide = next(cloud for cloud in hard_clouds() if cloud.name == "wide")
    by_hand, voxels = grouped_by_hand(wide, 0.05)
    assert normalize(by_hand).points.tobytes() != normalize(wide).points.tobytes()
    found = group_by_voxel(wide, voxel_size=0.05)
    same([found.cloud], [wide])
    assert found.voxels == voxels


def test_an_empty_split(tmp_path):
    packed = pack(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["train.index"]
    assert (len(packed), packed.class_names) == (0, CLASS_NAMES)
    assert len(packed.voxels) == len(labels_of(packed)) == 0
    assert list(stream_clouds(packed, seed=0)) == []
    with pytest.raises(IndexError, match="cloud 0 of a dataset of 0"):
        packed[0]


def test_splits_lie_side_by_side(tmp_path):
    clouds = hard_clouds()
    pack(tmp_path, clouds[:3])
    pack(tmp_path, clouds[3:5], "test")
    assert [len(open_records(tmp_path, split)) for split in ("train", "test")] == [3, 2]


def test_streams_of_one_seed_are_the_same(tmp_path):
    packed = pack(tmp_path, hard_clouds()[:5], clouds_per_shard=2)
    expected = [
        packed[index]
        for epoch in range(2)
        for index in np.random.default_rng((7, epoch)).permutation(5)
    ]
    for dataset in (packed, open_records(tmp_path, "train")):
        same(list(stream_clouds(dataset, seed=7, epochs=2)), expected)
    same(list(stream_clouds(packed, seed=7, epochs=2, start=4)), expected[4:])
    # Other processes open the files for themselves.
    found = stream_clouds(packed, seed=7, epochs=2, start=1, workers=2, prefetch=3)
    same(list(found), expected[1:])


def test_streams_of_other_seeds_differ(tmp_path):
    packed = pack(tmp_path, hard_clouds())
    orders = {
        tuple(cloud.name for cloud in stream_clouds(packed, seed=seed))
        for seed in range(5)
    }
    assert len(orders) == 5


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_OPEN", 2)
    packed = pack(tmp_path, hard_clouds(), clouds_per_shard=1)
    expected = all_clouds(packed)
    for index in (8, 0, 3, 8, 8, 1, 0, 7, 5):
        same([packed[index]], [expected[index]])
        files = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        targets = {file.resolve() for file in files if file.exists()}
        assert len(targets & set(packed.shards)) == 2


def test_pickled_dataset_sends_its_path(tmp_path):
    packed = pack(tmp_path, hard_clouds() * 20)
    same([packed[4]], [open_records(tmp_path, "train")[4]])
    sent = pickle.dumps(packed)
    assert len(sent) < 400 + len(str(tmp_path))
    same(all_clouds(pickle.loads(sent)), all_clouds(packed))
    for path in tmp_path.iterdir():
        path.unlink()
    pack(tmp_path, hard_clouds())
    with pytest.raises(ValueError, match=r"train.index: has changed since"):
        pickle.loads(sent)[0]


def why_refused(folder, expected):
    """The error of reading all clouds, or nothing if they are the same."""
    try:
        same(all_clouds(open_records(folder, "train")), expected)
    except ValueError as error:
        return str(error)
    return ""


def test_every_damage_is_refused_by_name_or_harmless(tmp_path):
    clouds = hard_clouds()[:4]
    expected = all_clouds(pack(tmp_path, clouds, clouds_per_shard=2))
    files = sorted(tmp_path.iterdir())
    contents = [path.read_bytes() for path in files]
    refused = 0
    for number in range(400):
        rng = np.random.default_rng(number)
        file = files[number % len(files)]
        content = contents[number % len(files)]
        file.write_bytes(mutate(content, rng)[0])
        message = why_refused(tmp_path, expected)
        assert file.name in message or not message
        refused += bool(message)
        file.write_bytes(content)
    assert refused > 200


def test_a_flipped_byte_of_a_record_names_file_and_cloud(tmp_path):
    clouds = hard_clouds()
    packed = pack(tmp_path, clouds, clouds_per_shard=4)
    path = packed.shards[1]
    content = bytearray(path.read_bytes())
    content[content.index("椅子".encode()) + 1] ^= 1
    path.write_bytes(bytes(content))
    damaged = open_records(tmp_path, "train")
    same([damaged[3], damaged[5]], [packed[3], packed[5]])
    message = r"00001-of-00003.arrayrecord: cannot read record 0, cloud 4 of train:"
    with pytest.raises(ValueError, match=message):
        damaged[4]


def test_records_of_another_pack_are_refused(tmp_path):
    # Both are sound files of one length: only the index tells them apart.
    clouds = hard_clouds()
    renamed = [cloud._replace(points=-cloud.points) for cloud in clouds]
    packed = pack(tmp_path / "a", clouds, clouds_per_shard=3)
    other = pack(tmp_path / "b", renamed, clouds_per_shard=3)
    packed.shards[1].write_bytes(other.shards[1].read_bytes())
    mixed = open_records(tmp_path / "a", "train")
    with pytest.raises(ValueError, match=r"record 1, cloud 4 of train: .* checksum"):
        mixed[4]


def test_a_cut_or_missing_shard_is_refused_when_opened(tmp_path):
    packed = pack(tmp_path, hard_clouds(), clouds_per_shard=5)
    path = packed.shards[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        ValueError, match=rf"00001-of-00002.*has {len(content) - 1} bytes"
    ):
        open_records(tmp_path, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-of-00002.arrayrecord: absent"):
        open_records(tmp_path, "train")
    # Gone after it was opened.
    again = pack(tmp_path / "b", hard_clouds())
    again.shards[0].unlink()
    with pytest.raises(ValueError, match=r"00000-of-00001.*record 0, cloud 0 of train"):
        again[0]


def test_an_index_of_another_format_is_refused(tmp_path):
    pack(tmp_path, hard_clouds())
    path = tmp_path / "train.index"
    fields = json.loads(path.read_bytes().partition(b"\n")[2])
    body = json.dumps(fields | {"format": 99}).encode()
    path.write_bytes(b"%d\n" % zlib.crc32(body) + body)
    with pytest.raises(ValueError, match=r"train.index: is of format 99"):
        open_records(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train.index: does not have its checksum"):
        open_records(tmp_path, "train")


def test_an_error_of_the_source_leaves_nothing(tmp_path):
    def broken():
        yield from hard_clouds()[:5]
        raise ValueError("cloud 5 is broken")

    with pytest.raises(ValueError, match="cloud 5 is broken"):
        pack(tmp_path, broken(), clouds_per_shard=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="more than 2\\*\\*31"):
        pack(tmp_path, hard_clouds(), voxel_size=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"\.tmp: cannot be written: .*too large"):
            pack(tmp_path, hard_clouds() * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []

    calls = []
    rename = os.replace

    def full(*names):
        calls.append(names)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(*names)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"No space left on device.*00001-of-00009"):
        pack(tmp_path, hard_clouds(), clouds_per_shard=1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_pack_leaves_does_not_open_and_is_packed_again(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from tests.test_records import hard_clouds, pack\n"
        "def dying():\n"
        "    yield from hard_clouds()[:5]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack(Path(sys.argv[1]), dying(), clouds_per_shard=2)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=root)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    # As if it had been killed when some shards had their names.
    (tmp_path / "train-00000-of-00007.arrayrecord").write_bytes(b"x")
    (tmp_path / ".train.index.0123abcd.tmp").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"train.index: absent.*`e3dsnn pack`"):
        open_dataset(tmp_path, "train")
    clouds = hard_clouds()
    packed = pack(tmp_path, clouds, clouds_per_shard=4)
    assert len(all_clouds(packed)) == len(clouds)
    assert sorted(tmp_path.iterdir()) == [*packed.shards, tmp_path / "train.index"]
    with pytest.raises(FileExistsError, match=r"train.index: is there already"):
        pack(tmp_path, clouds)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voxel_size": 0.0}, "voxel_size must be positive, got 0.0"),
        ({"voxel_size": float("nan")}, "voxel_size must be positive, got nan"),
        ({"points_per_voxel": 0}, "points_per_voxel must be 1 or more, got 0"),
        ({"clouds_per_shard": 0}, "clouds_per_shard must be 1 or more, got 0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        pack(tmp_path / "x", hard_clouds(), **settings)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def data(tmp_path, rng, monkeypatch):
    """A folder of text files, of which reading makes no cache."""

    def refuse(*_, **__):
        raise AssertionError("a cache was made")

    monkeypatch.setattr("e3dsnn_jax.data.cache.pack_in_files", refuse)
    root = tmp_path / "data"
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cone", "cube"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                np.savetxt(folder / f"{number}.txt", rng.normal(size=(40, 3)))
    return root


def pack_all(data, out, **options):
    settings = PackSettings(**options.pop("settings", {}))
    splits = options.pop("splits", ("train", "test"))
    return list(pack_dataset(data, out, splits, settings, **options))


def test_packing_a_folder(data, tmp_path):
    train, test = pack_all(data, tmp_path / "out")
    assert [len(train.clouds), len(test.clouds)] == [6, 4]
    assert train.clouds.class_names == test.clouds.class_names == ("cone", "cube")
    assert labels_of(train.clouds).tolist() == [0, 0, 0, 1, 1, 1]
    files = list((data / "train").rglob("*.txt"))
    assert train.source_bytes == sum(path.stat().st_size for path in files)
    assert train.clouds[4].name == str(data / "train" / "cube" / "1.txt")
    rows = np.loadtxt(data / "train" / "cube" / "1.txt").astype(np.float32)
    assert sorted(train.clouds[4].points.tolist()) == sorted(rows.tolist())
    assert not list(data.rglob(".*"))
    opened = open_dataset(tmp_path / "out", "test")
    assert isinstance(opened, RecordClouds)
    same(all_clouds(opened), all_clouds(test.clouds))


def test_packing_again_writes_nothing(data, tmp_path):
    out = tmp_path / "out"
    assert [part.already for part in pack_all(data, out)] == [False, False]
    (out / "test.index").unlink()  # as if it had been stopped there
    times = {path: path.stat().st_mtime_ns for path in out.glob("train*")}
    assert [part.already for part in pack_all(data, out)] == [True, False]
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("train*")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"voxel_size": 0.1}}, "with voxel_size 0.05, not 0.1;"),
        ({"settings": {"points_per_voxel": 2}}, "with points_per_voxel None, not 2;"),
        ({"settings": {"clouds_per_shard": 2}}, "with clouds a shard 6, not 2;"),
        ({"points_per_cloud": 9}, "holds train packed before with other data"),
    ],
)
def test_other_settings_do_not_replace_a_pack(data, tmp_path, change, message):
    out = tmp_path / "out"
    pack_all(data, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match=message):
        pack_all(data, out, **change)
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_more_clouds_a_shard_than_there_are_is_the_same(data, tmp_path):
    pack_all(data, tmp_path / "out", settings={"clouds_per_shard": 6})
    assert pack_all(data, tmp_path / "out")[0].already


def test_changed_data_do_not_replace_a_pack(data, tmp_path):
    pack_all(data, tmp_path / "out")
    (data / "test" / "cone" / "0.txt").write_text("0 0 0\n")
    with pytest.raises(FileExistsError, match="holds test packed before with other"):
        pack_all(data, tmp_path / "out")


def test_a_folder_with_other_files_is_left_alone(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"out: holds thesis.tex, which is no"):
        pack_all(data, out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileExistsError, match=r"thesis.tex: a file, not a folder"):
        pack_all(data, out / "thesis.tex")
    with pytest.raises(FileExistsError, match=r"data: holds test, which is no part"):
        pack_all(data, data)


def test_nothing_is_written_where_a_split_is_absent(data, tmp_path):
    for path in (data / "test").rglob("*.txt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="belongs to the test set"):
        pack_all(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(pack_all(data, tmp_path / "out", splits=("train",))[0].clouds) == 6


def test_packed_clouds_can_be_packed_in_another_way(data, tmp_path):
    first, _ = pack_all(data, tmp_path / "a")
    second, _ = pack_all(
        tmp_path / "a", tmp_path / "b", settings={"points_per_voxel": 1}
    )
    assert second.source_bytes == sum(first.clouds.index.shard_bytes)
    assert (second.clouds.points <= first.clouds.points).all()
    assert second.clouds[5].name == first.clouds[5].name
    with pytest.raises(FileExistsError, match="packed before with other data"):
        pack_all(tmp_path / "a", tmp_path / "a")


def test_thinned_out_to_points_per_cloud(data, tmp_path):
    pack_all(data, tmp_path / "out", points_per_cloud=10)
    for count in (10, 11):
        clouds = open_dataset(tmp_path / "out", "train", points_per_cloud=count)
        assert {len(cloud.points) for cloud in all_clouds(clouds)} == {10}
    message = "up to 10 points, more than points_per_cloud=9;.*--points-per-cloud 9"
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path / "out", "train", points_per_cloud=9)


def test_is_packed(data, tmp_path):
    assert not is_packed(data)
    pack_all(data, tmp_path / "out", splits=("test",))
    assert is_packed(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="so there is no train set"):
        open_dataset(tmp_path / "out", "train")
