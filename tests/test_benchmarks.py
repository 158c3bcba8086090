"""The benchmarks run, at sizes that take seconds; what they time is not tested."""

import json

import numpy as np
import pytest

from e3dsnn_jax.backbone import Architecture
from experiments.benchmarks import timing, training_step
from experiments.benchmarks.clouds import surface_clouds
from experiments.benchmarks.timing import Cases, interleave, ratio, spread
from experiments.benchmarks.training_step import Benchmark

TINY = Architecture(6, 4, (4,), (1,))


def test_surface_clouds_have_exactly_the_voxels_asked_for():
    clouds = surface_clouds(3, voxels=150, voxel_size=0.05)
    assert [len(cloud.coords) for cloud in clouds] == [150] * 3
    assert {cloud.features.shape for cloud in clouds} == {(150, 6)}
    for cloud in clouds:
        # The first three features are coordinates: one cell apart from a lowest one.
        cells = np.floor(cloud.features[:, :3].astype(np.float64) / 0.05)
        np.testing.assert_array_equal(cells - cells.min(0), cloud.coords)


def test_interleave_takes_turns_and_leaves_out_the_warm_up():
    calls = []
    cases: Cases = {
        ("step", "ours"): lambda: calls.append("ours"),
        ("step", "theirs"): lambda: calls.append("theirs"),
    }
    times = interleave(cases, repeats=3, warm_up=1)
    assert calls == ["ours", "theirs"] * 4
    assert list(times) == list(cases)
    assert {len(values) for timing in times.values() for values in timing} == {3}


def test_the_pause_before_a_case_is_not_timed(monkeypatch):
    monkeypatch.setattr(timing, "_PAUSE_SECONDS", 0.2)
    times = interleave({("step", "ours"): lambda: None}, repeats=1, warm_up=0)
    assert max(times["step", "ours"].wall) < 100


def test_ratio_is_taken_round_by_round():
    slow_minute = ratio([1.0, 1.0, 10.0], [2.0, 2.0, 20.0])
    assert slow_minute == {"median": 0.5, "lower_quartile": 0.5, "upper_quartile": 0.5}
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "median": 3.0,
        "lower_quartile": 2.0,
        "upper_quartile": 4.0,
    }


def test_training_step_prints_a_table_and_one_json_line(monkeypatch, capsys):
    monkeypatch.setitem(training_step.VARIANTS, "T", TINY)
    arguments = ["--clouds=4", "--voxels=60", "--repeats=1", "--devices=2"]
    monkeypatch.setattr("sys.argv", ["training_step", *arguments, "--no-peer"])
    training_step.main()
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert result["voxels"][0] == 4 * 60
    assert result["devices"] == 2
    assert set(result["milliseconds"]) == {
        "maps",
        "forward",
        "forward_with_maps",
        "train_step",
        "train_step_with_maps",
    }
    assert result["ratio"] == {}
    # Initial state, forward pass, train step, and small programs around them.
    assert 3 <= result["programs_compiled"] <= 12
    for kind in result["milliseconds"]:
        assert f"{kind}, ours, ms" in captured.err


@pytest.mark.slow
def test_spconv_computes_what_ours_computes():
    pytest.importorskip("spconv")
    result = training_step.run(Benchmark(clouds=4, voxels=256, repeats=1))
    # Spikes near a threshold may differ by rounding, and few voxels amplify that.
    assert result["loss_difference"] < 1e-3
    assert "train_step_with_maps" in result["ratio"]


@pytest.mark.slow
def test_spconv_reproduces_the_published_code(shared):
    pytest.importorskip("spconv")
    from experiments.benchmarks.spconv_peer import fixture_errors

    errors = fixture_errors(shared / "fixtures" / "cls_T_seed0.npz", threads=1)
    assert errors.pop("gradients") < 1e-4
    assert max(errors.values()) < 1e-5
