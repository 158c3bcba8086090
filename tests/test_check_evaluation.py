"""The comparison with the published pipelines: its rules, its lines, its cases."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.training.segmentation_loss import weighted_cross_entropy
from experiments.check_evaluation import COMPUTE, CONTRACT, main
from experiments.evaluation.contract import (
    UNMATCHED,
    compare,
    find_kind,
    load_contract,
    make_case,
    measure_error,
)


@pytest.fixture(scope="module")
def contract():
    return load_contract(CONTRACT)


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()]


def cross_entropy_float64(logits, labels):
    """Loss and gradient in float64, unweighted, without smoothing."""
    kept = labels >= 0
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    true = labels[:, None] == np.arange(logits.shape[1])
    loss = -np.log(p[true]).sum() / kept.sum()
    return loss, np.where(kept[:, None], (p - true) / kept.sum(), 0)


@pytest.fixture
def case(tmp_path, rng):
    """A small case of our own with a contract of our own, of kind seg_losses."""
    logits = rng.normal(size=(9, 4)).astype(np.float32)
    labels = rng.integers(-1, 4, 9).astype(np.int16)
    loss, gradient = cross_entropy_float64(logits.astype(np.float64), labels)
    arrays = {
        "plain/logits": logits,
        "plain/target": labels,
        "plain/loss": np.float64(loss),
        "plain/grad": gradient.astype(np.float32),
    }
    rule = {"loss": "cross_entropy", "smoothing": 0.0, "weighted": False}
    contract = {
        "seg_losses": {
            "recognise": ["*/logits", "*/grad"],
            "inputs": ["*/logits", "*/target"],
            "compare": {
                "*/loss": {"tolerance": 2e-6, "measure": "relative"},
                "*/grad": {"tolerance": 1e-7, "measure": "absolute"},
            },
            "constants": {"class_weights": [1, 1, 1, 1], "cases": {"plain": rule}},
        },
        "other": {"recognise": ["boxes"], "inputs": ["boxes"], "compare": {}},
    }
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    np.savez(tmp_path / "some.npz", **arrays)
    return tmp_path, arrays, contract


def test_one_line_a_case_by_another_contract(case, capsys):
    folder, _, _ = case
    status, (line,) = run(
        capsys, folder / "some.npz", "--contract", folder / "contract.json"
    )
    assert status == 0
    keys = ["case", "kind", "ok", "quantities", "reference_only"]
    assert list(line) == keys
    assert line["case"] == str(folder / "some.npz")
    assert (line["kind"], line["ok"], line["reference_only"]) == (
        "seg_losses",
        True,
        {},
    )
    assert line["quantities"].keys() == {"plain/loss", "plain/grad"}
    assert line["quantities"]["plain/loss"]["tolerance"] == 2e-6
    assert 0 <= line["quantities"]["plain/loss"]["error"] < 2e-6


def test_a_wrong_number_fails(case, capsys):
    folder, arrays, _ = case
    np.savez(folder / "bad.npz", **arrays | {"plain/loss": arrays["plain/loss"] * 1.1})
    contract = ("--contract", folder / "contract.json")
    status, lines = run(capsys, folder / "bad.npz", folder / "some.npz", *contract)
    assert status == 1
    assert [line["ok"] for line in lines] == [False, True]
    error = lines[0]["quantities"]["plain/loss"]["error"]
    assert error == pytest.approx(0.1 / 1.1, rel=1e-4)


def test_kinds_that_are_not_covered_count_for_nothing(case, capsys):
    folder, _, _ = case
    np.savez(folder / "boxes.npz", boxes=np.zeros(2))
    contract = ("--contract", folder / "contract.json")
    status, (line,) = run(capsys, folder / "boxes.npz", *contract)
    assert status == 1  # nothing was compared
    assert (line["kind"], line["ok"]) == ("other", None)
    assert "kind other is not covered; covered are seg_losses" in line["reason"]
    status, lines = run(capsys, folder / "boxes.npz", folder / "some.npz", *contract)
    assert status == 0
    assert [line["ok"] for line in lines] == [None, True]


def test_files_that_are_no_cases_fail_and_are_reported(case, capsys):
    folder, arrays, _ = case
    np.savez(folder / "strange.npz", x=np.zeros(2))
    np.savez(folder / "more.npz", **arrays, extra=np.zeros(2))
    (folder / "cut.npz").write_bytes((folder / "some.npz").read_bytes()[:300])
    np.savez(
        folder / "few.npz", **{"a/logits": np.zeros((2, 2)), "a/grad": np.zeros(2)}
    )
    names = ["strange.npz", "more.npz", "cut.npz", "none.npz", "few.npz"]
    contract = ("--contract", folder / "contract.json")
    status, lines = run(capsys, *(folder / name for name in names), *contract)
    assert status == 1
    assert [line["ok"] for line in lines] == [False] * 5
    reasons = [line["reason"] for line in lines]
    assert "its 1 keys fit none of the 2 kinds" in reasons[0]
    assert "does not say what extra is" in reasons[1]
    assert "BadZipFile" in reasons[2]
    assert "FileNotFoundError" in reasons[3]
    assert "a/target" in reasons[4]


def test_no_case_and_no_contract_are_failures(case, capsys):
    folder, _, _ = case
    assert main([]) == 1
    assert "nothing was compared" in capsys.readouterr().err
    (folder / "empty.json").write_text('{"x": {"inputs": []}}')
    for name in ("absent.json", "empty.json"):
        assert main([str(folder / "some.npz"), "--contract", str(folder / name)]) == 1
        assert f"cannot read the contract {folder / name}" in capsys.readouterr().err


def test_computations_do_not_see_what_they_are_compared_with(case):
    _, arrays, contract = case
    entry = contract["seg_losses"]
    seen = make_case(arrays, entry)
    assert seen.inputs.keys() == {"plain/logits", "plain/target"}
    assert seen.shapes["plain/grad"] == (9, 4)
    fed = make_case(arrays, entry | {"feed": {"*/loss": ["<case>/grad"]}})
    assert fed.inputs.keys() == {"plain/logits", "plain/target", "plain/grad"}


def test_kinds_are_told_by_keys_and_only_one_fits(contract):
    assert set(COMPUTE) <= set(contract)
    names = ["raw", "api_iou", "pc_iou"]
    assert find_kind(names, contract) == "semkitti"
    with pytest.raises(ValueError, match="its 2 keys fit none of the 11 kinds"):
        find_kind(names[:2], contract)
    both = contract["nms"]["recognise"] + names
    with pytest.raises(ValueError, match="its 6 keys fit nms, semkitti of"):
        find_kind(both, contract)


@pytest.mark.parametrize(
    ("ours", "theirs", "measure", "expected"),
    [
        ([1.0, 2.5], [1.0, 2.0], "absolute", 0.5),
        ([1.0, 2.5], [1.0, -2.0], "relative", 4.5 / 2),
        ([0.0, 0.1], [0.0, 0.0], "relative", UNMATCHED),
        ([0.0], [0.0], "relative", 0),
        ([1, 2, 3], [1, 0, 0], "exact", 2),
        ([True, False], [True, True], "exact", 1),
        (["car", "bus"], ["car", "van"], "exact", 1),
        ([], [], "exact", 0),
        ([1.0], [1.0, 2.0], "absolute", UNMATCHED),
        ([np.nan, 1.0], [1.0, 1.0], "absolute", UNMATCHED),
        ([np.nan, 1.0], [np.nan, 1.5], "absolute", 0.5),
        ([np.inf, 1.0], [-np.inf, 1.0], "absolute", UNMATCHED),
    ],
)
def test_errors(ours, theirs, measure, expected):
    assert measure_error(np.array(ours), np.array(theirs), measure) == expected


def test_a_missing_quantity_and_an_unknown_measure_do_not_pass():
    assert measure_error(None, np.zeros(2), "absolute") == UNMATCHED
    with pytest.raises(ValueError, match="unknown measure 'nearly'"):
        measure_error(np.zeros(2), np.zeros(2), "nearly")


def test_64_bit_hashes_are_compared_to_the_last_bit():
    large = np.array([2**63 + 1], np.uint64)
    assert measure_error(large, large + np.uint64(1), "exact") == 1


def test_masks_exceptions_and_defects_of_the_published_code():
    theirs = {
        "a/x": np.array([1.0, 2.0, 3.0]),
        "a/mask": np.array([True, False, True]),
        "a/y": np.array([[1, 2], [3, 4]]),
        "a/ties": np.array([[0, 1], [1, 0]]),
        "a/flaw": np.array([4.0]),
        "a/absent": np.array([4]),
    }
    entry = {
        "compare": {
            "*/x": {"tolerance": 0.1, "measure": "absolute", "rows": "<frame>/mask"},
            "*/y": {"tolerance": 0, "measure": "exact", "except_at": "<frame>/ties"},
        },
        "reference_only": {"*/flaw": "too large", "*/absent": "wrong"},
    }
    ours = {
        "a/x": np.array([1.05, 9.0, 3.0]),
        "a/y": np.array([[1, 0], [0, 5]]),
        "a/flaw": np.array([3.0]),
    }
    quantities, reference = compare(ours, theirs, entry)
    assert quantities["a/x"] == {"error": pytest.approx(0.05), "tolerance": 0.1}
    assert quantities["a/y"] == {"error": 1, "tolerance": 0}
    assert reference == {"a/flaw": 0.25, "a/absent": UNMATCHED}


def test_large_cases_of_our_own_agree_in_float32(rng):
    # The tolerance of the published gradients is met by float32 against float64.
    logits = rng.normal(scale=3, size=(1500, 19)).astype(np.float32)
    labels = rng.integers(-1, 19, 1500)
    expected, _ = cross_entropy_float64(logits.astype(np.float64), labels)
    ours = weighted_cross_entropy(jnp.asarray(logits), jnp.asarray(labels, jnp.int32))
    assert measure_error(np.asarray(ours), np.asarray(expected), "relative") < 2e-6


@pytest.mark.parametrize("name", sorted(COMPUTE))
def test_the_published_cases_agree(shared, capsys, name):
    status, (line,) = run(capsys, shared / "golden" / "evals" / f"{name}.npz")
    wrong = {
        quantity: numbers
        for quantity, numbers in line["quantities"].items()
        if numbers["error"] > numbers["tolerance"]
    }
    assert (wrong, line.get("reason")) == ({}, None)
    assert (status, line["kind"], line["ok"]) == (0, name, True)


def test_the_contract_is_the_published_one(shared):
    published = shared / "golden" / "evals" / "compare.json"
    assert json.loads(CONTRACT.read_text()) == json.loads(published.read_text())


def test_detection_cases_are_known_and_not_covered(shared, capsys):
    status, (line,) = run(capsys, shared / "golden" / "evals" / "nms.npz")
    assert (status, line["kind"], line["ok"]) == (1, "nms", None)
