"""Street data sets on disk: layouts, resumption, and what is refused."""

import json

import numpy as np
import pytest

from e3dsnn_jax.street import (
    Sensor,
    plan_street,
    scan_street,
    view_street,
    write_kitti,
    write_semantic_kitti,
)
from e3dsnn_jax.street import kitti as kitti_module
from e3dsnn_jax.street import semantic_kitti as semantic_module
from e3dsnn_jax.street.classes import RawLabel
from e3dsnn_jax.street.kitti import view_of_frame
from e3dsnn_jax.street.label_lines import parse_line
from e3dsnn_jax.street.manifest import MANIFEST, VERSION, code_digest

TINY = Sensor(beams=8, columns=128, farthest=30.0)


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets") / "semantic"
    write_semantic_kitti(folder, sequences={8: 2, 0: 3}, sensor=TINY, interval=0.5)
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets") / "kitti"
    write_kitti(folder, train=2, val=1, sensor=TINY, seed=5)
    return folder


def test_sequences_read_back(sequences):
    names = set(content_of(sequences))
    expected = {MANIFEST}
    for number, scans in ((0, 3), (8, 2)):
        home = f"sequences/{number:02d}"
        expected |= {f"{home}/{name}.txt" for name in ("calib", "times", "poses")}
        expected |= {f"{home}/velodyne/{i:06d}.bin" for i in range(scans)}
        expected |= {f"{home}/labels/{i:06d}.label" for i in range(scans)}
    assert names == expected
    for number, scans in ((0, 3), (8, 2)):
        home = sequences / "sequences" / f"{number:02d}"
        for index in range(scans):
            rows = np.fromfile(home / f"velodyne/{index:06d}.bin", "<f4").reshape(-1, 4)
            words = np.fromfile(home / f"labels/{index:06d}.label", "<u4")
            scan = scan_street(plan_street(0, number), 0.5 * index, TINY)
            assert len(rows) == len(words) == len(scan.points) > 300
            assert np.isfinite(rows).all()
            np.testing.assert_array_equal(rows[:, :3], scan.points.astype(np.float32))
            np.testing.assert_array_equal(rows[:, 3], scan.intensity.astype(np.float32))
            np.testing.assert_array_equal(words & 0xFFFF, scan.label)
            np.testing.assert_array_equal(words >> 16, scan.instance)
        times = np.loadtxt(home / "times.txt")
        np.testing.assert_allclose(times, 0.5 * np.arange(scans))


def test_raw_labels_are_official(sequences, shared):
    text = (shared / "data/semantickitti/semantic-kitti.yaml").read_text()
    names = text.split("labels:")[1].split("color_map:")[0].splitlines()
    official = {
        int(line.split(":")[0]): line.split('"')[1].replace("-", "_").upper()
        for line in names
        if '"' in line
    }
    for label in RawLabel:
        assert official[int(label)] == label.name


def test_poses_bring_scans_together(sequences):
    """Parked cars stand still once each scan is moved by its pose."""
    home = sequences / "sequences" / "00"
    rows = dict(
        line.split(": ") for line in (home / "calib.txt").read_text().splitlines()
    )
    assert list(rows) == ["P0", "P1", "P2", "P3", "Tr"]
    change = np.vstack(
        [np.array(rows["Tr"].split(), float).reshape(3, 4), [0, 0, 0, 1]]
    )
    poses = np.loadtxt(home / "poses.txt").reshape(-1, 3, 4)
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-9)
    found = {}
    for index, pose in enumerate(poses):
        boxes = view_street(plan_street(0, 0), 0.5 * index, TINY).snapshot.boxes
        whole = np.vstack([pose, [0, 0, 0, 1]])
        world = np.linalg.inv(change) @ whole @ change
        centers = boxes.center @ world[:3, :3].T + world[:3, 3]
        for number, center in zip(boxes.instance, centers, strict=True):
            if number < 40_000:
                found.setdefault(int(number), []).append(center)
    twice = [places for places in found.values() if len(places) == 3]
    assert len(twice) > 5
    for places in twice:
        np.testing.assert_allclose(places[1:], places[:1] * 2, atol=2e-4)


def test_frames_read_back(frames):
    expected = {MANIFEST, "ImageSets/train.txt", "ImageSets/val.txt"}
    for stem in ("000000", "000001", "000002"):
        expected |= {f"training/velodyne/{stem}.bin"}
        expected |= {f"training/{name}/{stem}.txt" for name in ("calib", "label_2")}
    assert set(content_of(frames)) == expected
    assert (frames / "ImageSets/train.txt").read_text() == "000000\n000001\n"
    assert (frames / "ImageSets/val.txt").read_text() == "000002\n"
    for frame in range(3):
        path = frames / f"training/velodyne/{frame:06d}.bin"
        rows = np.fromfile(path, "<f4").reshape(-1, 4)
        scan = view_of_frame(5, frame, TINY).scan
        np.testing.assert_array_equal(rows[:, :3], scan.points.astype(np.float32))
        for line in (
            (frames / f"training/label_2/{frame:06d}.txt").read_text().split("\n")
        ):
            if line:
                assert parse_line(line).kind in {
                    "Car",
                    "Truck",
                    "Pedestrian",
                    "DontCare",
                }


def test_manifest(frames):
    manifest = json.loads((frames / MANIFEST).read_text())
    assert manifest["version"] == VERSION
    assert manifest["code"] == code_digest()
    assert manifest["seed"] == 5
    assert manifest["sensor"]["beams"] == 8
    assert manifest["image_size"] == [1242, 375]


def test_resumes_where_it_was_stopped(tmp_path, sequences, monkeypatch):
    folder = tmp_path / "street"
    scans = []

    def stops_at_the_third(*arguments):
        if len(scans) == 2:
            raise KeyboardInterrupt
        scans.append(arguments)
        return scan_street(*arguments)

    monkeypatch.setattr(semantic_module, "scan_street", stops_at_the_third)
    asked = {"sequences": {8: 2, 0: 3}, "sensor": TINY, "interval": 0.5}
    with pytest.raises(KeyboardInterrupt):
        write_semantic_kitti(folder, **asked)
    begun = content_of(folder)
    assert 0 < len(begun) < len(content_of(sequences))
    monkeypatch.setattr(semantic_module, "scan_street", scan_street)
    kept = folder / "sequences/00/velodyne/000000.bin"
    changed = kept.stat().st_mtime_ns
    write_semantic_kitti(folder, **asked)
    assert content_of(folder) == content_of(sequences)
    assert kept.stat().st_mtime_ns == changed


def test_frames_lose_nothing_when_stopped(tmp_path, frames, monkeypatch):
    folder = tmp_path / "street"
    monkeypatch.setattr(kitti_module, "annotate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_kitti(folder, train=2, val=1, sensor=TINY, seed=5)
    assert not list((folder / "training").rglob("*.*"))
    monkeypatch.undo()
    write_kitti(folder, train=2, val=1, sensor=TINY, seed=5)
    assert content_of(folder) == content_of(frames)
    (folder / "training/label_2/000001.txt").unlink()
    write_kitti(folder, train=2, val=1, sensor=TINY, seed=5)
    assert content_of(folder) == content_of(frames)


def test_what_is_refused(tmp_path, frames):
    with pytest.raises(ValueError, match=r"says seed 5, but 6 is asked for"):
        write_kitti(frames, train=2, val=1, sensor=TINY, seed=6)
    with pytest.raises(ValueError, match=r"says train 2, but 3 is asked for"):
        write_kitti(frames, train=3, val=1, sensor=TINY, seed=5)
    with pytest.raises(ValueError, match="says code"):
        write_with_other_code(frames)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files but no street\.json"):
        write_kitti(tmp_path, train=1, val=0, sensor=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="0 and 0 frames"):
        write_kitti(tmp_path / "none", train=0, val=0)
    with pytest.raises(ValueError, match="sequence 100 with 2 scans"):
        write_semantic_kitti(tmp_path / "none", sequences={100: 2})
    with pytest.raises(ValueError, match="sequence 3 with 0 scans"):
        write_semantic_kitti(tmp_path / "none", sequences={3: 0})
    with pytest.raises(ValueError, match="must be positive: 0 s"):
        write_semantic_kitti(tmp_path / "none", sequences={3: 1}, interval=0)
    assert not (tmp_path / "none").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    for text in ("{", "[]"):
        (broken / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=r"street.json is no manifest"):
            write_kitti(broken, train=1, val=0, sensor=TINY)


def write_with_other_code(frames):
    path = frames / MANIFEST
    text = path.read_text()
    path.write_text(text.replace(code_digest(), "0" * 16))
    try:
        write_kitti(frames, train=2, val=1, sensor=TINY, seed=5)
    finally:
        path.write_text(text)
