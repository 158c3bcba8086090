import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.parameter_names import list_entries
from e3dsnn_jax.pth import write_pth
from e3dsnn_jax.published import load_published
from experiments.check_reference import (
    UNMATCHED,
    check_fixture,
    compare,
    find_kind,
    main,
    relative_error,
)

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "cls_tiny_seed0.npz"
TINY_SEGMENTER = GOLDEN / "seg_tiny_seed0.npz"


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def run(capsys, *arguments: str) -> tuple[int, list[dict]]:
    status = main([str(argument) for argument in arguments])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("path", "kind"), [(TINY, "cls"), (TINY_SEGMENTER, "seg")])
def test_our_code_computes_what_the_published_code_computes(
    capsys, tmp_path, path, kind
):
    # Nothing in the name tells the kind, and one failure is enough for status 1.
    other: dict[str, Any] = {"input/voxel_coords": np.zeros((1, 4), np.int32)}
    np.savez(tmp_path / "other.npz", **other)
    status, lines = run(capsys, str(path), str(tmp_path / "other.npz"))
    assert status == 1
    first, second = lines
    assert (first["kind"], first["ok"]) == (kind, True)
    assert first["fixture"] == str(path)
    assert 0 < first["worst"] < 1e-5
    assert first["worst"] == max(first["errors"].values())
    skipped = ("input/", "state/", "cotangent", "info_json")
    assert first["errors"].keys() == {
        name
        for name in read(path)
        if not name.startswith(skipped) and not name.endswith("num_batches_tracked")
    }
    assert (second["kind"], second["ok"], second["worst"]) == ("det", False, None)
    assert second["reason"] == "kind 'det' is not covered"


@pytest.mark.parametrize(
    ("path", "kind", "by_row"),
    [
        (TINY, "cls", ()),
        # The outputs of a segmentation network have a row for each row of the inputs.
        (TINY_SEGMENTER, "seg", ("cotangent", "eval/out", "train/out")),
    ],
)
def test_weights_of_a_checkpoint_go_through_the_importer(
    capsys, tmp_path, path, kind, by_row
):
    # The fixture has no weights of its own here, and its rows come in another order;
    # the checkpoint has the prefix of distributed training.
    fixture: dict[str, Any] = read(path)
    fixture = {name: a for name, a in fixture.items() if "state/" not in name}
    first, last = fixture["input/offset"]
    order = np.concatenate([np.arange(first)[::-1], np.arange(first, last)[::-1]])
    for name in ("input/grid_coord", "input/feat", *by_row):
        fixture[name] = fixture[name][order]
    np.savez(tmp_path / "some.npz", **fixture)
    state = load_published(path.with_suffix(".pth"))
    state = {f"module.backbone.{name}": array for name, array in state.items()}
    write_pth({"state_dict": state}, tmp_path / "some.pth")
    weights = ["--weights", str(tmp_path / "some.pth")]
    status, (line,) = run(capsys, str(tmp_path / "some.npz"), *weights)
    assert (status, line["ok"], line["kind"]) == (0, True, kind)


def test_weights_of_the_other_network_are_reported():
    line = check_fixture(TINY, weights=TINY_SEGMENTER.with_suffix(".pth"))
    assert (line["kind"], line["ok"], line["worst"]) == ("cls", False, None)
    assert "this architecture has a decoder" in line["reason"]
    line = check_fixture(TINY_SEGMENTER, weights=TINY.with_suffix(".pth"))
    assert (line["kind"], line["ok"], line["worst"]) == ("seg", False, None)
    assert "this architecture has no decoder" in line["reason"]


@pytest.mark.slow
def test_a_larger_segmentation_network_agrees(capsys, shared):
    # Its extents are odd on two axes, so that voxels are dropped on the way down.
    path = shared / "fixtures" / "seg_small_seed0.npz"
    status, (line,) = run(capsys, str(path))
    assert (status, line["ok"]) == (0, True)


@pytest.mark.slow
def test_the_published_size_agrees(capsys, shared):
    path = shared / "fixtures" / "cls_T_seed0"
    for weights in ([], ["--weights", f"{path}.pth"]):
        status, (line,) = run(capsys, f"{path}.npz", *weights)
        assert (status, line["ok"]) == (0, True)


def test_wrong_weights_and_files_are_reported_not_raised(capsys, tmp_path):
    state = {
        entry.published: np.zeros(entry.published_shape, np.float32)
        for entry in list_entries(VARIANTS["T"], 40)
    }
    state["final.weight"] = np.zeros((40, 1, 1, 1, 64), np.float32)
    write_pth({"state_dict": state}, tmp_path / "a.pth")
    line = check_fixture(TINY, weights=tmp_path / "a.pth")
    assert not line["ok"]
    assert "shape: final.weight is (40, 1, 1, 1, 64)" in line["reason"]
    shutil.copy(TINY, tmp_path / "cut.npz")
    with (tmp_path / "cut.npz").open("r+b") as file:
        file.truncate(1000)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    few: dict[str, Any] = {"input/grid_coord": np.zeros((1, 3), np.int32)}
    np.savez(tmp_path / "few.npz", **few)
    names = ["cut.npz", "none.npz", "other.npz", "few.npz"]
    status, lines = run(capsys, *(str(tmp_path / name) for name in names))
    assert status == 1
    reasons = [line["reason"] for line in lines]
    assert "BadZipFile" in reasons[0]
    assert "FileNotFoundError" in reasons[1]
    assert "not a reference fixture: none of [" in reasons[2]
    assert "among its 1 arrays" in reasons[2]
    assert "there is no stem.0.weight" in reasons[3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny/cls_tiny", "cls"),
        ("tiny/seg_tiny", "seg"),
        ("det_backbone_small", "det"),
        ("bev_backbone_small", "bev"),
        ("anchor_head_small", "anchor"),
        ("roi_head_small", "roi"),
    ],
)
def test_arrays_tell_the_kind(shared, name, kind):
    with np.load(shared / "fixtures" / f"{name}_seed0.npz") as archive:
        assert find_kind(archive.files) == kind


def test_relative_error():
    theirs = np.array([1, -4, 2], np.float32)
    assert relative_error(np.array([1, -4, 1], np.float32), theirs) == 0.25
    assert relative_error(theirs, theirs) == 0
    assert relative_error(theirs * 0, theirs * 0) == 0
    assert relative_error(theirs, theirs * 0) == UNMATCHED
    assert relative_error(None, theirs) == UNMATCHED
    assert relative_error(theirs[:2], theirs) == UNMATCHED
    assert relative_error(theirs * np.float32(np.nan), theirs) == UNMATCHED
    cells = np.array([[0, 1], [0, 2]])
    assert relative_error(cells.astype(np.int32), cells) == 0
    assert relative_error(cells[::-1], cells) == UNMATCHED


def test_limits():
    fixture = {
        "input/feat": np.ones(2),
        "eval/out": np.ones(2),
        "after_train/n.running_mean": np.ones(2),
        "after_train/n.num_batches_tracked": np.array(3),
        "grad/a": np.full(2, 2.0),
        "grad/b": np.full(2, 4.0),
        "grad/zero": np.full(2, 1e-5),
    }
    good = {name: array for name, array in fixture.items() if "num_b" not in name}
    errors, ok = compare(fixture, good)
    assert ok
    assert errors == dict.fromkeys(list(good)[1:], 0.0)
    # The gradient that is zero in truth: measured against the median, which is 2.
    errors, ok = compare(fixture, good | {"grad/zero": np.full(2, 1e-4)})
    assert ok
    assert errors["grad/zero"] == pytest.approx(4.5e-5)
    for name, wrong in (
        ("eval/out", 1 + 2e-5),
        ("after_train/n.running_mean", 1 - 2e-5),
        ("grad/b", 4 * (1 + 2e-4)),
        ("grad/zero", 3e-4),
        ("eval/out", np.nan),
    ):
        errors, ok = compare(fixture, good | {name: np.full(2, wrong)})
        assert not ok
        assert max(errors, key=lambda key: errors[key]) == name
    del good["grad/a"]
    errors, ok = compare(fixture, good)
    assert not ok
    assert errors["grad/a"] == UNMATCHED
    assert compare({"input/feat": np.ones(2)}, {}) == ({}, False)
