"""SemanticKITTI: the maps against the benchmark's own file, the layout, bad files."""

import pickle

import numpy as np
import pytest

from e3dsnn_jax.scans.label_map import make_label_map, to_classes, to_ids
from e3dsnn_jax.scans.scan import IGNORED, ScanDataset
from e3dsnn_jax.scans.semantic_kitti import (
    label_path,
    open_semantic_kitti,
    prediction_path,
    read_labels,
    read_scan,
    write_labels,
    write_points,
)
from e3dsnn_jax.scans.semantic_kitti_classes import (
    CLASS_NAMES,
    CLASS_WEIGHTS,
    LABELS,
    SPLITS,
)


def sections(text):
    """The flat numbers and names of the benchmark's yaml file, section by section."""
    found, current, last = {}, {}, ""
    for line in text.splitlines():
        line = line.split("#")[0].rstrip()
        key, _, value = line.partition(":")
        if line and not line.startswith((" ", "-")):
            current = found.setdefault(key, {})
        elif line.strip().startswith("-"):
            current.setdefault(last, []).append(int(line.strip(" -")))
        elif line:
            last = key.strip()
            if value.strip():
                current[int(last)] = value.strip().strip('"')
    return found


def test_the_maps_are_those_of_the_benchmark(shared):
    official = sections((shared / "data/semantickitti/semantic-kitti.yaml").read_text())
    # There class 0 is what is not learned, here classes count from 0.
    expected = {i: int(c) - 1 for i, c in official["learning_map"].items()}
    known = np.flatnonzero(LABELS.class_of_id >= IGNORED)
    assert {int(i): int(LABELS.class_of_id[i]) for i in known} == expected
    inverse = [int(official["learning_map_inv"][c + 1]) for c in range(19)]
    assert LABELS.id_of_class.tolist() == inverse
    assert LABELS.id_of_ignored == int(official["learning_map_inv"][0])
    names = [official["labels"][i] for i in inverse]
    assert list(CLASS_NAMES) == names
    splits = {name: tuple(official["split"][name]) for name in SPLITS}
    assert splits == SPLITS
    assert len(CLASS_WEIGHTS) == len(CLASS_NAMES)


def test_real_scans_are_read_whole(shared):
    root = shared / "data/semantickitti"
    scans = open_semantic_kitti(root, "valid")
    assert isinstance(scans, ScanDataset)
    assert (scans.sequences, scans.missing, len(scans)) == ((8,), (), 3)
    scan = scans[0]
    assert scan.points.shape == (123389, 3)
    assert scan.features.shape == (123389, 1)
    assert scan.instances.max() > 0
    words = np.fromfile(label_path(scans.scans[0]), np.uint32)
    again = scan.instances.astype(np.uint32) << 16
    merged = {number for number in range(260) if number in (1, 52, 60, 99)} | set(
        range(252, 260)
    )
    plain = ~np.isin(words & 0xFFFF, list(merged))
    ids = to_ids(scan.labels, LABELS).astype(np.uint32)
    np.testing.assert_array_equal((again | ids)[plain], words[plain])
    train = open_semantic_kitti(root, "train")
    assert train.missing == (1, 2, 3, 4, 5, 6, 7, 9, 10)
    assert len(train) == 16


@pytest.fixture
def root(tmp_path, rng):
    """Two sequences of our own in the layout, one point a class."""
    number = 19
    for sequence, frames in ((0, 3), (8, 1)):
        for frame in range(frames):
            rows = rng.uniform(-9, 9, (number, 4)).astype(np.float32)
            folder = tmp_path / "sequences" / f"{sequence:02d}"
            scan = folder / "velodyne" / f"{frame:06d}.bin"
            write_points(scan, rows)
            classes = np.roll(np.arange(number), frame)
            write_labels(label_path(scan), classes, np.arange(number) * 3000)
    return tmp_path


def test_the_layout_is_written_and_read(root, rng):
    scans = open_semantic_kitti(root, "train")
    assert [path.stem for path in scans.scans] == ["000000", "000001", "000002"]
    assert scans.class_names == CLASS_NAMES
    scans = pickle.loads(pickle.dumps(scans))
    scan = scans[-1]
    assert scan.labels.tolist() == np.roll(np.arange(19), 2).tolist()
    assert scan.instances.tolist() == (np.arange(19) * 3000).tolist()
    assert scan.name == str(scans.scans[2])
    rows = np.fromfile(scans.scans[2], np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(scan.points, rows[:, :3])
    np.testing.assert_array_equal(scan.features, rows[:, 3:])
    assert read_scan(scans.scans[0]).labels is None
    chosen = open_semantic_kitti(root, sequences=[8, 0])
    assert chosen.sequences == (8, 0)
    assert len(chosen) == 4
    with pytest.raises(IndexError):
        chosen[4]


def test_predictions_are_written_in_the_submission_layout(root, tmp_path):
    scan = open_semantic_kitti(root, "valid").scans[0]
    path = prediction_path(scan, tmp_path / "submission")
    assert path == tmp_path / "submission/sequences/08/predictions/000000.label"
    classes = np.array([0, 18, IGNORED, 8])
    write_labels(path, classes)
    assert np.fromfile(path, np.uint32).tolist() == [10, 81, 0, 40]
    ids, instances = read_labels(path)
    assert to_classes(ids, LABELS, name="x").tolist() == classes.tolist()
    assert not instances.any()


def test_test_scans_need_no_labels(root):
    scans = root / "sequences" / "00"
    (scans / "labels").rename(scans / "elsewhere")
    (root / "sequences" / "00").rename(root / "sequences" / "11")
    scans = open_semantic_kitti(root, "test")
    assert scans[0].labels is None
    assert scans.missing == tuple(range(12, 22))
    with pytest.raises(ValueError, match=r"3 of 3 scans have no labels, .* 000000.bin"):
        open_semantic_kitti(root, "test", labelled=True)


def test_folders_that_lack_something_say_what(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder that holds"):
        open_semantic_kitti(root / "sequences", "train")
    with pytest.raises(FileNotFoundError, match=r"11, 12, .*; it holds 00, 08"):
        open_semantic_kitti(root, "test")
    with pytest.raises(FileNotFoundError, match="lacks the sequences 03"):
        open_semantic_kitti(root, sequences=[0, 3])
    with pytest.raises(ValueError, match="either a split or sequences"):
        open_semantic_kitti(root)
    (root / "sequences/08/velodyne/000000.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"velodyne: holds no \.bin"):
        open_semantic_kitti(root, "valid")


def corrupt(root, what):
    scan = root / "sequences/00/velodyne/000001.bin"
    labels = label_path(scan)
    rows = np.fromfile(scan, np.float32).reshape(-1, 4)
    words = np.fromfile(labels, np.uint32)
    match what:
        case "truncated points":
            scan.write_bytes(scan.read_bytes()[:-3])
        case "truncated labels":
            labels.write_bytes(labels.read_bytes()[:-1])
        case "fewer labels":
            words[:-2].tofile(labels)
        case "unknown ids":
            words[[2, 5, 6]] = 77 | 5 << 16, 300, 300
            words.tofile(labels)
        case "highest id":
            words[0] = 0xFFFF
            words.tofile(labels)
        case "empty":
            scan.write_bytes(b"")
            labels.write_bytes(b"")
        case "nan":
            rows[4, 1] = np.nan
            rows.tofile(scan)
        case "infinite remission":
            rows[9, 3] = -np.inf
            rows.tofile(scan)


@pytest.mark.parametrize(
    ("what", "file", "message"),
    [
        (
            "truncated points",
            "velodyne/000001.bin",
            "301 bytes are 18 points .* 13 byt",
        ),
        (
            "truncated labels",
            "labels/000001.label",
            "75 bytes are 18 labels .* 3 bytes",
        ),
        (
            "fewer labels",
            "labels/000001.label",
            "17 labels but .*000001.bin has 19 poi",
        ),
        (
            "unknown ids",
            "labels/000001.label",
            r"3 of 19 labels .* lacks: 77 \(1\), 300 \(2\)",
        ),
        ("highest id", "labels/000001.label", r"1 of 19 labels .* lacks: 65535 \(1\)"),
        ("empty", "velodyne/000001.bin", r"the scan is empty \(0 points\)"),
        ("nan", "velodyne/000001.bin", "1 of 19 points are NaN .* first is row 4"),
        (
            "infinite remission",
            "velodyne/000001.bin",
            "1 of 19 features are NaN or infinite, the first is row 9",
        ),
    ],
)
def test_bad_files_are_named_with_their_numbers(root, what, file, message):
    corrupt(root, what)
    scans = open_semantic_kitti(root, "train")
    with pytest.raises(ValueError, match=message) as caught:
        scans[1]
    assert str(caught.value).startswith(str(root / "sequences/00" / file))
    assert len(scans[0].points) == 19  # and the others can still be read


def test_a_lost_label_file_is_named(root):
    scans = open_semantic_kitti(root, "train")
    label_path(scans.scans[2]).unlink()
    with pytest.raises(FileNotFoundError, match=r"000002.label"):
        scans[2]
    with pytest.raises(ValueError, match=r"1 of 3 scans .* the first is 000002.bin"):
        open_semantic_kitti(root, "train")


def test_labels_that_cannot_be_written_leave_no_file(tmp_path):
    path = tmp_path / "a.label"
    with pytest.raises(ValueError, match="class 19 is neither -1"):
        write_labels(path, np.array([0, 19]))
    with pytest.raises(ValueError, match="class -2 is neither -1"):
        write_labels(path, np.array([0, -2]))
    with pytest.raises(ValueError, match="instance 65536 is outside"):
        write_labels(path, np.array([0]), np.array([65536]))
    assert not list(tmp_path.iterdir())


def test_maps_of_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match="label id 70000 is outside"):
        make_label_map({70000: 0}, (1,))


def test_many_unknown_ids_are_summed_up():
    labels = make_label_map({0: IGNORED, 1: 0}, (1,))
    with pytest.raises(
        ValueError, match=r"f: 9 of 11 .* 2 \(1\), .*, 6 \(1\) and 4 more"
    ):
        to_classes(np.arange(11), labels, name="f")
    with pytest.raises(ValueError, match=r"1 of 2 labels .* lacks: -3 \(1\)"):
        to_classes(np.array([1, -3]), labels, name="f")
