"""Folders of npz, las and laz clouds."""

import pickle

import numpy as np
import pytest

from e3dsnn_jax.scans.folder import open_scan_folder, read_classes
from e3dsnn_jax.scans.scan import IGNORED, ScanDataset
from e3dsnn_jax.scans.scan_files import read_scan_file, write_las_labels
from e3dsnn_jax.scans.semantic_kitti import write_points


def write_npz(path, rng, ids, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    number = len(ids)
    stored = {
        "points": rng.normal(size=(number, 3)).astype(np.float32),
        "features": rng.normal(size=(number, 2)),
        "labels": np.array(ids),
    } | arrays
    np.savez(path, **stored)
    return stored


def test_every_id_is_a_class_unless_the_folder_says_otherwise(tmp_path, rng):
    stored = write_npz(tmp_path / "train/a.npz", rng, [7, 2, 7, -1])
    write_npz(tmp_path / "test/b.npz", rng, [9, 2])
    scans = open_scan_folder(tmp_path, "train")
    assert isinstance(scans, ScanDataset)
    assert scans.class_names == ("class 2", "class 7", "class 9")
    (scan,) = pickle.loads(pickle.dumps(scans))
    assert scan.labels.tolist() == [1, 0, 1, IGNORED]
    assert scan.features.dtype == scan.points.dtype == np.float32
    np.testing.assert_array_equal(scan.points, stored["points"])
    np.testing.assert_array_equal(scan.features, stored["features"].astype(np.float32))
    assert scan.name == str(tmp_path / "train/a.npz")
    assert len(open_scan_folder(tmp_path)) == 2


def test_classes_txt_names_merges_and_leaves_out(tmp_path, rng):
    text = "0 -\n2 ground\n\n6 house wall\n7 ground\n"
    (tmp_path / "classes.txt").write_text(text)
    write_npz(tmp_path / "a.npz", rng, [0, 2, 6, 7, -5])
    scans = open_scan_folder(tmp_path)
    assert scans.class_names == ("ground", "house wall")
    assert scans[0].labels.tolist() == [IGNORED, 0, 1, 0, IGNORED]
    assert scans.label_map.id_of_class.tolist() == [2, 6]
    assert scans.label_map.id_of_ignored == 0
    write_npz(tmp_path / "b.npz", rng, [2, 5, 5])
    with pytest.raises(ValueError, match=r"b.npz: 2 of 3 labels .* lacks: 5 \(2\)"):
        open_scan_folder(tmp_path)[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 ground\nhouse\n", "line 2: 'house' is no id and name"),
        ("2\n", "line 1: '2' is no id and name"),
        ("2 ground\n2 wall\n", "line 2: id 2 occurs a second time"),
        ("1 -\n", "names no class"),
        ("", "names no class"),
    ],
)
def test_malformed_class_files_are_refused(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(path)


def test_folders_without_scans_or_labels_say_so(tmp_path, rng):
    with pytest.raises(FileNotFoundError, match=r"no \.npz, \.las, \.laz files"):
        open_scan_folder(tmp_path)
    np.savez(tmp_path / "a.npz", points=rng.normal(size=(4, 3)))
    with pytest.raises(
        FileNotFoundError, match=r"below a folder called train \(1 in all"
    ):
        open_scan_folder(tmp_path, "train")
    with pytest.raises(ValueError, match="none of its 1 files has labels"):
        open_scan_folder(tmp_path)
    scan = read_scan_file(tmp_path / "a.npz")
    assert scan.labels is None
    assert scan.features.shape == (4, 0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.zeros((0, 3))}, r"the scan is empty \(0 points\)"),
        ({"points": np.zeros((3, 2))}, r"points have shape \(3, 2\)"),
        ({"features": np.zeros(3)}, r"features have shape \(3,\)"),
        ({"features": np.zeros((2, 1))}, "3 points but 2 features"),
        ({"labels": np.zeros(4, int)}, "3 points but 4 labels"),
        ({"labels": np.zeros(3)}, "labels are float64 of shape"),
        ({"points": np.full((3, 3), np.nan)}, "3 of 3 points are NaN"),
    ],
)
def test_bad_npz_files_are_named_with_their_numbers(tmp_path, rng, arrays, message):
    write_npz(tmp_path / "bad.npz", rng, [0, 1, 1], **arrays)
    (tmp_path / "classes.txt").write_text("0 a\n1 b\n")
    _, label_map = read_classes(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match=message) as caught:
        read_scan_file(tmp_path / "bad.npz", label_map)
    assert str(tmp_path / "bad.npz") in str(caught.value)


def test_cut_and_unknown_files_are_refused(tmp_path, rng):
    write_npz(tmp_path / "a.npz", rng, [0, 1])
    with (tmp_path / "a.npz").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"a.npz: cannot be read as an npz file"):
        read_scan_file(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"cannot read \.pcd as a scan; known"):
        read_scan_file(tmp_path / "a.pcd")
    with pytest.raises(FileNotFoundError):
        read_scan_file(tmp_path / "absent.npz")
    np.savez(tmp_path / "b.npz", xyz=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no array called points, only xyz"):
        read_scan_file(tmp_path / "b.npz")


def test_a_bin_file_is_a_scan_without_labels(tmp_path, rng):
    rows = rng.normal(size=(5, 4)).astype(np.float32)
    write_points(tmp_path / "a.bin", rows)
    scan = read_scan_file(tmp_path / "a.bin")
    np.testing.assert_array_equal(scan.points, rows[:, :3])
    assert scan.labels is None


def write_las(path, rng, laspy, number=40):
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales = np.full(3, 0.001)
    header.offsets = np.array([691_000.0, 5_334_000.0, 500.0])
    file = laspy.LasData(header)
    xyz = header.offsets + rng.uniform(0, 50, (number, 3)).round(3)
    file.x, file.y, file.z = xyz.T
    file.intensity = rng.integers(0, 65536, number)
    file.classification = rng.choice([2, 6], number)
    file.write(str(path))
    return xyz, np.asarray(file.intensity), np.asarray(file.classification)


@pytest.mark.parametrize("ending", ["las", "laz"])
def test_las_files_keep_their_millimetres(tmp_path, rng, ending):
    laspy = pytest.importorskip("laspy")
    path = tmp_path / f"a.{ending}"
    xyz, intensity, ids = write_las(path, rng, laspy)
    scans = open_scan_folder(tmp_path)
    assert scans.class_names == ("class 2", "class 6")
    scan = scans[0]
    # Far from the origin, float32 would round to half a metre.
    np.testing.assert_allclose(scan.points, xyz - np.floor(xyz.min(axis=0)), atol=5e-6)
    np.testing.assert_allclose(scan.features[:, 0], intensity / 65535, rtol=1e-6)
    assert scan.labels.tolist() == [{2: 0, 6: 1}[i] for i in ids]
    written = tmp_path / f"b.{ending}"
    write_las_labels(written, path, np.full(40, 9))
    assert set(np.asarray(laspy.read(written).classification)) == {9}
    np.testing.assert_array_equal(read_scan_file(written).points, scan.points)


def test_bad_las_files_are_named(tmp_path, rng):
    laspy = pytest.importorskip("laspy")
    path = tmp_path / "a.las"
    write_las(path, rng, laspy)
    with pytest.raises(ValueError, match="40 points but 39 labels"):
        write_las_labels(tmp_path / "b.las", path, np.zeros(39, int))
    with pytest.raises(ValueError, match=r"label 256 is outside \[0, 255\]"):
        write_las_labels(tmp_path / "b.las", path, np.full(40, 256))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(ValueError, match=r"a.las: "):
        read_scan_file(path)
    path.write_bytes(b"LASF")
    with pytest.raises(ValueError, match=r"a.las: cannot be read as a las file"):
        read_scan_file(path)


def test_without_laspy_the_extra_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'e3dsnn-jax\[las\]'"):
        read_scan_file(tmp_path / "a.las")
