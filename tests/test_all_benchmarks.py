"""All benchmarks run one after another: their commands, their files, their table.

A stand-in takes the place of their processes; the slow test runs them.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from experiments.benchmarks import all as everything
from experiments.benchmarks.all import NAMES, Benchmark, list_arguments
from experiments.benchmarks.headlines import format_bytes, format_headlines


def times(**medians):
    return {
        whose: {"median": m, "lower_quartile": m, "upper_quartile": m, "rounds": 3}
        for whose, m in medians.items()
    }


def ratios(value, *whose):
    row = {
        "median": value,
        "lower_quartile": value - 0.1,
        "upper_quartile": value + 0.1,
    }
    return {"ours": dict.fromkeys(whose, row)}


SCALING = {
    "300": {"pairs": 900, "nanoseconds_per_pair": 20.0, "nanoseconds_per_voxel": 60.0},
    "6000": {"pairs": 18000, "nanoseconds_per_pair": 15, "nanoseconds_per_voxel": 45},
}
KERNEL_MAP_KINDS = {
    "levels": times(ours=0.0123, ours_device=0.2, spconv_1_threads=0.04),
    "levels, find only": times(ours=0.01),
    "submanifold, 6000 voxels": times(ours=0.002, naive=0.001, spconv_2_threads=0.004),
}
SAMPLES = {
    "records": {
        "points": 10000.0,
        "clouds_per_second": {
            "cloud": {"txt": 80.0, "ours_records": 3200.0},
            "voxels": {"txt": 60.0, "ours_records": 360.0},
        },
        "speedup": {
            "cloud": {"median": 40.0, "lower_quartile": 39.0, "upper_quartile": 41.0},
            "voxels": {"median": 6.0, "lower_quartile": 5.0, "upper_quartile": 7.0},
        },
    },
    "sparse_conv": {
        "voxels": 50000,
        "seconds": {
            "64 channels forward": times(ours=0.05, floor=0.02),
            "64 channels forward and backward": times(
                ours=0.1, floor=0.03, spconv_1_threads=0.3, spconv_2_threads=0.2
            ),
        },
        "ratio": {
            "64 channels forward": ratios(2.5, "floor"),
            "64 channels forward and backward": ratios(
                0.5, "floor", "spconv_1_threads", "spconv_2_threads"
            ),
        },
        "scaling": {"forward": SCALING},
        "scaling_channels": 64,
        "busy": False,
    },
    "kernel_map": {
        "clouds": 16,
        "voxels": [32768, 9000],
        "limit_milliseconds": 20.0,
        "seconds": KERNEL_MAP_KINDS,
        "ratio": {
            "levels": ratios(0.31, "spconv_1_threads"),
            "submanifold, 6000 voxels": ratios(0.5, "naive", "spconv_2_threads"),
        },
        "scaling": {"submanifold": {"ours": SCALING}},
        "busy": True,
    },
    "training_step": {
        "variant": "T",
        "clouds": 16,
        "milliseconds": {
            kind: times(ours=209.0, spconv_1_threads=292.0)
            for kind in ("train_step_with_maps", "forward_with_maps", "train_step")
        }
        | {"maps": times(ours=12.0)},
        "ratio": {
            kind: {"median": 0.72, "against": "spconv_1_threads"}
            for kind in ("train_step_with_maps", "forward_with_maps", "train_step")
        },
        "busy": False,
    },
    "neurons": {
        "neurons": 1000,
        "parts": {
            "4": {
                "seconds": {"4 steps": times(ours_hard=0.016, snnax_hard=0.046)},
                "fastest_peer": "snnax_hard",
                "ratio_to_fastest": {"ours_hard": {"median": 0.35}},
            },
            "8": {"seconds": {"8 steps": times(ours_hard=0.03)}},
        },
    },
    "memory": {
        "rows": [
            {
                "variant": "T",
                "batch_size": size,
                "rematerialise": anew,
                "working_bytes": size * 10**7,
                "peak_bytes": size * 10**8,
                "milliseconds": 250.0,
            }
            for size in (4, 16)
            for anew in (False, True)
        ]
        + [
            {
                "variant": "spconv",
                "batch_size": 16,
                "rematerialise": False,
                "peak_bytes": 9 * 10**8,
                "milliseconds": 290.0,
            }
        ],
    },
    "similarity": {
        "parts": {
            "grid": {
                "widths": [4, 4],
                "datapoints": 5000,
                "seconds": {
                    "svcca": times(ours=1.78, ours_fast=1.9, lapack_svd=2.25),
                    "generation": times(numpy=1.0),
                },
                "ratio": {"svcca": ratios(0.79, "lapack_svd")},
            }
        }
    },
}


@pytest.fixture
def commands(monkeypatch):
    """Commands that were to be run; similarity fails and neurons prints no JSON."""
    seen: dict[str, list[str]] = {}

    def stand_in(command, *, stdout, stderr, text):
        assert (stdout, text) == (subprocess.PIPE, True)
        executable, flag, module, *arguments = command
        assert (executable, flag) == (sys.executable, "-m")
        name = module.rpartition(".")[2]
        seen[name] = arguments
        stderr.write(f"table of {name}\n")
        sample = "nothing" if name == "neurons" else json.dumps(SAMPLES[name])
        code = 3 if name == "similarity" else 0
        return subprocess.CompletedProcess(command, code, stdout=f"first\n{sample}\n")

    monkeypatch.setattr(everything.subprocess, "run", stand_in)
    return seen


def test_failures_are_named_and_the_others_run(commands, monkeypatch, capsys, tmp_path):
    (tmp_path / "similarity.json").write_text("of an earlier run")
    monkeypatch.setattr("sys.argv", ["all", "--small", f"--out={tmp_path}"])
    with pytest.raises(SystemExit) as stopped:
        everything.main()
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert list(commands) == list(NAMES) == list(result["seconds"])
    assert set(result["failed"]) == {"neurons", "similarity"}
    assert "FAILED: similarity ended with exit code 3" in captured.err
    assert "FAILED: the last line of neurons is no JSON object" in captured.err
    table = (tmp_path / "table.md").read_text()
    assert table in captured.err
    for name in NAMES:
        assert (tmp_path / f"{name}.txt").read_text() == f"table of {name}\n"
        path = tmp_path / f"{name}.json"
        assert path.exists() == (name not in result["failed"])
        assert (f"experiments.benchmarks.{name}`" in table) == path.exists()
        if path.exists():
            assert json.loads(path.read_text()) == json.loads(json.dumps(SAMPLES[name]))


def test_only_those_that_are_named_run_and_take_what_they_can(
    commands, monkeypatch, capsys, tmp_path
):
    arguments = ["--only", "training_step", "kernel_map", f"--out={tmp_path}"]
    arguments += ["--scan", "some.bin", "--data", "folder", "--settle", "0"]
    monkeypatch.setattr("sys.argv", ["all", *arguments])
    everything.main()
    assert json.loads(capsys.readouterr().out)["failed"] == {}
    out = str(tmp_path / "kernel_map")
    assert commands == {
        "training_step": ["--data", "folder"],
        "kernel_map": ["--scan", "some.bin", "--data", "folder", "--out", out],
    }


def test_waits_for_the_load_of_the_one_before_to_fade(monkeypatch):
    busy, slept = [True, True, False], []
    monkeypatch.setattr(everything, "is_busy", lambda load: busy.pop(0))
    monkeypatch.setattr(everything.time, "sleep", slept.append)
    everything.settle(60.0)
    assert slept == [5.0, 5.0]
    busy[:] = [True, True]
    everything.settle(0.0)
    assert slept == [5.0, 5.0]


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_understands_its_arguments(name):
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    scan, data, out = Path("some.bin"), Path("folder"), Path("out")
    config = Benchmark(scan=scan, data=data, small=True, out=out)
    found = tyro.cli(module.Benchmark, args=list_arguments(name, config))
    assert getattr(found, "small", True)
    assert getattr(found, "scan", scan) == scan
    assert getattr(found, "data", data) == data
    assert getattr(found, "out", out / name) == out / name


def test_table_of_the_headline_numbers():
    table = format_headlines(SAMPLES)
    header, rule, *rows = table.splitlines()
    assert rule == "|---|---|---|"
    assert all(row.count("|") == header.count("|") == 4 for row in rows)
    assert len(table) < 4000
    for text in (
        "64 channels forward | ours 50 ms / floor 20 ms, ratio 2.50 (2.40 to 2.60) | "
        "`python -m experiments.benchmarks.sparse_conv` |",
        "channels forward and backward | ours 100 ms / spconv 2 threads 200 ms, ratio "
        "0.50 (0.40 to 0.60) | as above |",
        "forward, ours | 20 ns a pair for 300, 15 ns a pair for 6,000 voxels",
        "16 clouds, 32,768 voxels | ours 12.3 ms / spconv 1 thread 40 ms, ratio 0.31 "
        "(0.21 to 0.41); limit 20 ms (on a busy machine) |",
        "submanifold map, 6,000 voxels | ours 2 ms / spconv 2 threads 4 ms",
        "submanifold map, ours | 60 ns a voxel for 300, 45 ns a voxel for 6,000 voxels",
        "maps, T, 16 clouds | ours 12 ms |",
        "train step, T, 16 clouds | ours 209 ms / spconv 1 thread 292 ms, ratio 0.72 |",
        "4 steps x 1,000 neurons | ours 16 ms / snnax hard 46 ms, ratio 0.35 |",
        "8 steps x 1,000 neurons | ours 30 ms |",
        "T, 16 clouds | 160 MB planned, 1.60 GB at the peak, 250 ms; rematerialised",
        "spconv, 16 clouds | 900 MB at the peak, 290 ms |",
        "svcca, grid, 2 layers, 5,000 datapoints | ours 1.78 s, `fast` 1.9 s / lapack "
        "svd 2.25 s, ratio 0.79",
    ):
        assert text in table
    assert "generation" not in table
    assert "4 clouds |" not in table
    assert format_bytes(12e6) == "12 MB"


@pytest.mark.slow
def test_all_run_at_sizes_that_take_seconds(tmp_path):
    result = everything.run(Benchmark(small=True, out=tmp_path))
    assert result["failed"] == {}
    table = (tmp_path / "table.md").read_text()
    for name in NAMES:
        assert f"experiments.benchmarks.{name}`" in table
