"""The benchmark of kernel maps runs at sizes that take seconds, and all find the same.

What it times is not tested.
"""

import json

import numpy as np
import pytest

from e3dsnn_jax.kernel_pairs import submanifold_pairs
from e3dsnn_jax.pyramid import SUBMANIFOLD
from experiments.benchmarks import kernel_map
from experiments.benchmarks.kernel_map import Benchmark
from experiments.benchmarks.kernel_map_cases import (
    Scan,
    check_agreement,
    naive_pairs,
    scan_cases,
)
from experiments.benchmarks.scans import cast_rays, street_coords
from tests.clouds_of_voxels import hard_coords, random_coords

CASES = {name: c for name, c in hard_coords(np.random.default_rng(0)).items() if len(c)}


def test_prints_a_table_and_one_json_line(monkeypatch, capsys, tmp_path):
    arguments = ["--small", "--no-peer", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["kernel_map", *arguments])
    kernel_map.main()
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert result["voxels"][0] == 2 * 60
    assert len(result["voxels"]) == 5
    assert result["seconds"]["levels"]["ours"]["rounds"] == 2
    assert list(result["seconds"])[:3] == [
        "levels",
        "levels, find only",
        "levels, pack only",
    ]
    host = {"ours", "ours_packed", "ours_device"}
    assert set(result["scaling"]["submanifold"]) == host | {"naive"}
    assert set(result["scaling"]["strided"]) == host
    for by_whom in result["scaling"].values():
        for rows in by_whom.values():
            assert set(rows) == {"300", "600"}
            assert all(row["nanoseconds_per_voxel"] > 0 for row in rows.values())
    # A submanifold and a strided map of two sizes, all levels, and small programs.
    assert 5 <= result["programs_compiled"] <= 15
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert result["within_limit"] == (result["levels_milliseconds"] <= 20)
    assert "limit of 20 ms" in captured.err
    assert "submanifold, 600 voxels, ours_device" in captured.err
    assert "    ours / naive" in captured.err


@pytest.mark.parametrize("name", CASES)
def test_naive_pairs_are_those_of_the_host(name):
    coords = CASES[name]
    for ours, naive in zip(
        submanifold_pairs(coords, SUBMANIFOLD), naive_pairs(coords), strict=True
    ):
        np.testing.assert_array_equal(ours, naive)


def test_naive_pairs_do_not_run_into_the_next_cloud(rng):
    coords = random_coords(rng, extent=(2, 1, 3), batch=2, density=2.0)
    found = naive_pairs(coords)
    clouds = coords[:, 0]
    np.testing.assert_array_equal(clouds[found.senders], clouds[found.receivers])


@pytest.mark.parametrize("kind", ["submanifold", "strided"])
def test_maps_of_host_and_device_are_equal(kind):
    scan = Scan(street_coords(200))
    cases, pairs = scan_cases(kind, scan, peer=False)
    assert pairs >= 200
    host, device = (
        cases[f"{kind}, 200 voxels", w] for w in ("ours_packed", "ours_device")
    )
    for ours, theirs in zip(host(), device(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_counts_are_refused(monkeypatch):
    check_agreement("levels", {"ours": 3, "naive": 3})
    monkeypatch.setattr(Scan, "count", lambda self, kernel_map: 7)
    with pytest.raises(ValueError, match=r"strided, 50 voxels.* 'ours_device': 7"):
        scan_cases("strided", Scan(street_coords(50)), peer=False)


def test_sizes_that_a_scan_does_not_have_are_left_out(monkeypatch, tmp_path):
    points = cast_rays(40)[:1000]
    path = tmp_path / "scan.bin"
    np.pad(points, ((0, 0), (0, 1))).astype("<f4").tofile(path)
    config = Benchmark(scaling=(100, 5000), scan=path, repeats=1)
    scaling, left_out = kernel_map.measure_scaling(config, {}, peer=False)
    assert set(scaling["strided"]["ours"]) == {"100"}
    assert "too few for 5000 voxels" in left_out["5000"]
    too_small = Benchmark(scaling=(5000,), scan=path)
    with pytest.raises(ValueError, match="too few for 5000 voxels"):
        kernel_map.measure_scaling(too_small, {}, peer=False)


def test_spconv_finds_as_many(tmp_path):
    pytest.importorskip("spconv")
    result = kernel_map.run(Benchmark(small=True, out=tmp_path))
    assert {"spconv_1_threads"} <= set(result["ratio"]["levels"]["ours"])
    assert "spconv_1_threads" in result["scaling"]["submanifold"]
