"""Every known case within its limits, and a checker that can fail."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import check_similarity
from experiments.check_similarity import check_case, main, measure_error

GOLDEN = Path(__file__).parent / "golden" / "svcca"
CASES = sorted(GOLDEN.glob("*.npz"))
# One of each kind of difficulty; the others run with `make slow`.
FAST = {
    "constant_neurons",
    "dft_nonsquare",
    "m_lt_n",
    "near_collinear_1e-3",
    "zero_layer",
}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=() if path.stem in FAST else pytest.mark.slow
        )
        for path in CASES
    ],
)
def test_known_cases(path):
    line = check_case(path)
    assert line["ok"], line
    assert line["errors"]


def test_the_cases_are_there():
    assert {path.stem for path in CASES} >= FAST
    assert len(CASES) == 24


@pytest.mark.slow
def test_real_activations(shared):
    for name in ("mnist_lay04", "svhn_lay06", "dft_mnist_different"):
        assert check_case(shared / "golden" / "svcca" / f"{name}.npz")["ok"]


def test_a_wrong_number_fails(tmp_path, monkeypatch, capsys):
    source = GOLDEN / "zero_layer.npz"
    with np.load(source) as file:
        arrays = dict(file)
    arrays["out_cka"] = arrays["out_cka"] + 1e-3
    np.savez(tmp_path / "case.npz", **arrays)
    (tmp_path / "case.json").write_text(source.with_suffix(".json").read_text())
    monkeypatch.setattr(sys, "argv", ["check", str(tmp_path / "case.npz")])
    with pytest.raises(SystemExit) as exit_status:
        main()
    assert exit_status.value.code == 1
    line = json.loads(capsys.readouterr().out)
    assert not line["ok"]
    assert line["errors"]["cka"]["float64"] == pytest.approx(1e-3)
    assert not jax.config.jax_enable_x64


def test_an_unreadable_case_fails_with_its_path(tmp_path, monkeypatch, capsys):
    (tmp_path / "cut.npz").write_bytes((GOLDEN / "zero_layer.npz").read_bytes()[:1000])
    monkeypatch.setattr(
        sys, "argv", ["check", str(tmp_path / "cut.npz"), str(tmp_path / "no.npz")]
    )
    with pytest.raises(SystemExit) as exit_status:
        main()
    assert exit_status.value.code == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "cut.npz" in first["error"]
    assert "no.npz" in second["error"]


def test_an_incomplete_case_fails_alone(tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "half.npz", in_X=np.ones((2, 5)), out_cka=1.0)
    text = json.dumps({"name": "half", "not_unique": [], "min_dtype": "float32"})
    (tmp_path / "half.json").write_text(text)
    np.savez(tmp_path / "bare.npz", in_X=np.ones((2, 5)), out_cka=1.0)
    (tmp_path / "bare.json").write_text("{}")
    files = [str(tmp_path / f"{name}.npz") for name in ("half", "bare")]
    monkeypatch.setattr(sys, "argv", ["check", *files])
    with pytest.raises(SystemExit) as exit_status:
        main()
    assert exit_status.value.code == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "in_Y" in first["error"]
    assert "name" in second["error"]


def test_directions_are_compared_where_they_are_determined():
    golden = {
        "pls_values": np.array([2.0, 1.0, 1.0, 0.0]),
        "pls_dirs_x": np.eye(4),
    }
    ours = np.eye(4)[:, [0, 2, 1, 3]] * np.array([-1.0, 1, 1, 1])
    assert measure_error("pls_dirs_x", ours, golden) == 0
    assert measure_error("pls_dirs_x", ours[:, ::-1], golden) == 1


def test_another_shape_or_a_missing_quantity_never_matches():
    golden = {"cca_coefs": np.ones(3)}
    assert measure_error("cca_coefs", np.ones(4), golden) == check_similarity.UNMATCHED
    assert measure_error("cca_coefs", None, golden) == check_similarity.UNMATCHED
    nan = np.array([1, 1, np.nan])
    assert measure_error("cca_coefs", nan, golden) == check_similarity.UNMATCHED
