"""The benchmark of records runs, at sizes that take seconds."""

import json
import os

import numpy as np
import pytest

from experiments.benchmarks import records
from experiments.benchmarks.records import Benchmark


def test_it_prints_a_table_and_one_json_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["records", "--small"])
    cores = os.sched_getaffinity(0)
    records.main()
    assert os.sched_getaffinity(0) == cores
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert (result["clouds"], result["points"], result["cores_used"]) == (4, 200, 1)
    readers = {"txt", "cache", "ours_records", "ours_thinned"}
    for kind in ("cloud", "voxels"):
        assert set(result["clouds_per_second"][kind]) == readers
        assert set(result["ratio"][kind]["ours_records"]) == {"txt", "cache"}
    assert min(result["bytes"].values()) > 0
    assert "txt / records, up to the voxels" in captured.err


def test_text_files_of_ones_own_are_repeated(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        normals = np.tile([0, 0, 1], (30, 1))
        rows = np.concatenate([rng.normal(size=(30, 3)), normals], axis=1)
        (tmp_path / "cone").mkdir(exist_ok=True)
        np.savetxt(tmp_path / f"cone/cone_{number:04}.txt", rows, delimiter=",")
    result = records.run(Benchmark(texts=tmp_path, clouds=5, repeats=1))
    assert (result["clouds"], result["points"]) == (5, 30)
    with pytest.raises(ValueError, match=r"x: holds no text files called CLASS_NUMBER"):
        records.run(Benchmark(texts=tmp_path / "x"))
