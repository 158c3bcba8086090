"""The similarity benchmark runs at sizes that take seconds, and all agree on values.

What it times is not tested. The opponents are checked by their errors: each stands
against a float64 SVD, and so does ours.
"""

import json
import math

import numpy as np
import pytest

import svcca_jax as sv
from experiments.benchmarks import similarity
from experiments.benchmarks import similarity_peers as peers
from experiments.benchmarks.report import summarize
from experiments.benchmarks.similarity import PARTS, SMALL, Benchmark
from experiments.benchmarks.similarity_stream import Streaming, numpy_sums, stream
from experiments.benchmarks.timing import Timing


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("similarity")
    with pytest.MonkeyPatch.context() as patch:
        # The parts' own processes do not see what conftest has set in this one.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        return similarity.run(Benchmark(small=True, rounds=2, out=out))


@pytest.mark.parametrize("part", PARTS)
def test_all_agree(result, part):
    errors = result["parts"][part]["error"]
    for kind, by_whom in errors.items():
        assert "ours" in by_whom
        for whose, error in by_whom.items():
            assert error < 1e-5, (kind, whose)


@pytest.mark.parametrize("part", PARTS)
def test_fields_and_figure_of_a_part(result, part):
    measured = result["parts"][part]
    for kind, by_whom in measured["seconds"].items():
        assert set(by_whom) == set(measured["cpu_seconds"][kind])
        for row in by_whom.values():
            assert 0 < row["lower_quartile"] <= row["median"] <= row["upper_quartile"]
    for kind, by_ours in measured["ratio"].items():
        theirs = {n for n in measured["seconds"][kind] if not n.startswith("ours")}
        assert all(set(rows) == theirs for rows in by_ours.values())
        assert all(
            seconds > 0 for seconds in measured["first_call_seconds"][kind].values()
        )
    (figure,) = (path for path in result["figures"] if path.endswith(f"{part}.png"))
    with open(figure, "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_published_loops_run_in_the_first_round_only(result):
    seconds = result["parts"]["grid"]["seconds"]
    rounds = {whose: row["rounds"] for whose, row in seconds["svcca"].items()}
    assert rounds == {
        "ours": 2,
        "ours_fast": 2,
        "lapack_svd": 2,
        "lapack_gram": 2,
        "numpy_svd": 2,
        "published_cached": 1,
        "published_loop": 1,
    }
    assert set(seconds) == {"svcca", "pwcca", "cka"}
    kept = result["parts"]["grid"]["kept_directions"]
    assert all(0 < k <= w for k, w in zip(kept, SMALL.grid_widths, strict=True))


def test_packages_that_are_not_installed_are_named(result):
    pair = result["parts"]["pair"]
    for package in peers.PACKAGES:
        measured = package in pair["seconds"]["cca_flat"]
        assert measured != (package in pair["not_installed"])
    assert pair["from_covariance"]["cca_flat"]


def test_memory_of_the_parts_in_their_own_processes(result):
    checkpoints = result["parts"]["checkpoints"]
    count = SMALL.checkpoints.checkpoints * sum(SMALL.checkpoints.widths)
    assert checkpoints["input_bytes"] == 4 * count * SMALL.checkpoints.datapoints
    streaming = result["parts"]["streaming"]
    assert streaming["input_bytes"] == 4 * 5000 * 12
    assert streaming["directions"] == 4
    assert (
        1e7
        < streaming["memory_at_start_bytes"]
        <= streaming["peak_memory_after_a_tenth_bytes"]
        <= streaming["peak_memory_bytes"]
    )
    for part in (checkpoints, streaming):
        assert part["memory_at_start_bytes"] <= part["peak_memory_bytes"] < 2e9


def test_what_a_time_depends_on(result):
    assert result["cores"] >= 1
    assert result["versions"]["jax"]
    assert set(result["blas"]) == {"numpy", "scipy"}
    assert "OPENBLAS_NUM_THREADS" in result["environment"]
    assert result["load_average_after"] >= 0


def test_main_prints_a_table_and_one_json_line(monkeypatch, capsys, tmp_path):
    arguments = ["--part", "pair", "--small", "--rounds=1", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["similarity", *arguments])
    similarity.main()
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert set(json.loads(line)["parts"]) == {"pair"}
    assert "cca_flat, ours_fast / lapack_qr" in captured.err
    assert (tmp_path / "pair.png").exists()


def test_a_rare_case_is_paired_with_the_first_rounds():
    times = {
        ("cka", "ours"): Timing([1000.0, 9000.0], [1.0, 1.0]),
        ("cka", "published_loop"): Timing([4000.0], [1.0]),
    }
    summary = summarize(times)
    assert summary["ratio"]["cka"]["ours"]["published_loop"]["median"] == 0.25
    assert summary["seconds"]["cka"]["ours"]["median"] == 5.0


def test_published_cca_is_that_of_the_library(rng):
    x, y = peers.make_layers((5, 7), datapoints=80, seed=3)
    values, weights_x, _ = peers.published_cca(x, y)
    np.testing.assert_allclose(values, sv.cca(x, y).coefficients, atol=1e-5)
    variates = np.asarray(x, np.float64) @ weights_x
    np.testing.assert_allclose(np.cov(variates.T), np.eye(5), atol=1e-6)


@pytest.mark.parametrize("package", sorted(peers.PACKAGES))
def test_other_packages(package):
    pytest.importorskip(package)
    x, y = peers.make_layers((6, 6), datapoints=90)
    found = np.mean(peers.PACKAGES[package](x, y))
    assert math.isclose(found, float(sv.cca(x, y).mean), abs_tol=1e-4)


def test_sums_of_the_stream_are_those_of_all_its_datapoints():
    settings = Streaming(datapoints=60, batch=20, widths=(3, 2))
    whole = np.concatenate([np.hstack(pair) for pair in stream(settings)])
    number, sums, products = numpy_sums(settings, np.float64)
    assert number == len(whole) == 60
    shifted = whole - whole[:1].astype(np.float64)
    np.testing.assert_allclose(sums, shifted.sum(axis=0))
    np.testing.assert_allclose(products, shifted.T @ shifted)


def test_errors_name_the_setting(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="there is no gird"):
        similarity.run(Benchmark(part=("gird",), out=tmp_path))
    with pytest.raises(ValueError, match=r"at least 1 round .* got 0"):
        similarity.run(Benchmark(rounds=0, out=tmp_path))
    with pytest.raises(ValueError, match="batches of 7 do not divide 20"):
        Streaming(datapoints=20, batch=7)
    monkeypatch.setattr("sys.argv", ["similarity", "--part", "gird"])
    with pytest.raises(SystemExit):
        similarity.main()
