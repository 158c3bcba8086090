"""The table of energies and the check of binary spikes, on tiny networks."""

import dataclasses
import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from e3dsnn_jax.prices import HOROWITZ_45NM
from e3dsnn_jax.training.run_folder import RunFolderError, open_run
from experiments import account_cost, binary_spikes, energy_table


def make_row(**changes):
    energies = {"compute": 1.0, "updates": 2.0, "weights": 3.0, "other_memory": 4.0}
    energies |= {"total": 10.0, "rate": 5.0, "ann": 6.0, "paper_compatible": 8.0}
    row = {f"{name}_mj": value * 1e-3 for name, value in energies.items()}
    row |= {"variant": "S", "neuron": "1x4", "accuracy": 0.5, "macs": 6.0}
    row |= {"synaptic_operations": 7.0, "published": None, "options": ""}
    return row | changes


def test_the_table_by_hand():
    published = [
        {"accuracy": 0.9, "energy_mj": 0.04, "note": "one"},
        {"accuracy": None, "energy_mj": 1.2345, "note": "two"},
        {"accuracy": 0.8, "energy_mj": None, "note": "one"},
    ]
    rows = [make_row(published=told) for told in (*published, None)]
    lines = energy_table.format_table(rows).splitlines()
    start = "| S | 1x4 |  | 50.0% | 6 | 7 | 1 | 2 | 3 | 4 | 10 | 5 | 6 | 8 |"
    assert lines[2] == f"{start} 90.0% [1] | 40 [1] |"
    assert lines[3] == f"{start}  | 1230 [2] |"
    assert lines[4] == f"{start} 80.0% [1] |  |"
    assert lines[5] == f"{start}  |  |"
    assert lines[-2:] == ["[1] one.", "[2] two."]
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_a_row_is_that_of_the_account():
    told = {
        "parameters": 5,
        "notes": ["note"],
        "operations_per_cloud": {
            "macs": 1.0,
            "synaptic_operations": 2.0,
            "equivalent_macs": 3.0,
        },
        "energy_mj_per_cloud": {
            "exact": {
                "compute": 1.0,
                "updates": 2.0,
                "weights": 3.0,
                "state": 4.0,
                "spikes": 5.0,
                "addressing": 6.0,
                "total": 21.0,
            },
            "rate": 7.0,
            "ann": 8.0,
            "paper_compatible": 9.0,
        },
    }
    row = energy_table.describe_row("S", "2x1", 0.5, told)
    parts = ("compute", "updates", "weights", "other_memory")
    assert sum(row[f"{part}_mj"] for part in parts) == row["total_mj"] == 21
    assert (row["macs"], row["rate_mj"], row["ann_mj"]) == (1, 7, 8)
    published = energy_table.PUBLISHED["S", "2x1"]
    assert row["published"] == published._asdict()
    assert energy_table.describe_row("H", "ReLU", 0.5, told)["published"] is None


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that are trained; folders are kept as those of real runs."""
    names = []

    def train(config):
        open_run(config, ("a", "b"), {})  # refuses a folder of another run
        names.append(config.run.name)
        return SimpleNamespace(evaluation=SimpleNamespace(accuracy=len(names) / 10))

    rows = lambda variant, neuron, accuracy, told: make_row(
        variant=variant, neuron=neuron, accuracy=accuracy
    )
    monkeypatch.setattr(energy_table, "train", train)
    monkeypatch.setattr(energy_table, "run_energy", lambda run, clouds: (None, run))
    monkeypatch.setattr(energy_table, "describe_account", lambda account: {})
    monkeypatch.setattr(energy_table, "describe_row", rows)
    return names


def test_a_row_that_is_done_is_read_back(tmp_path, trained):
    options = energy_table.EnergyTable(run=tmp_path)
    rows = [energy_table.measure(options, "T", name) for name in ("1x4", "1x4", "ReLU")]
    assert trained == ["T_1x4", "T_ReLU"]
    assert rows[0] == rows[1]
    assert (rows[0]["neuron"], rows[0]["accuracy"], rows[0]["options"]) == (
        "1x4",
        0.1,
        "",
    )


def test_other_options_have_runs_of_their_own(tmp_path, trained):
    options = energy_table.EnergyTable(run=tmp_path)
    energy_table.measure(options, "T", "1x4")
    for changes, name, told in (
        ({"epochs": 7}, "T_1x4_7epochs", "7 epochs"),
        ({"train_fraction": 0.5}, "T_1x4_0.5oftheclouds", "0.5 of the clouds"),
        ({"seed": 2, "epochs": 3}, "T_1x4_3epochs_seed2", "3 epochs, seed 2"),
        ({"voxel_size": 0.1}, "T_1x4_voxels0.1", "voxels 0.1"),
        ({"clouds": 3}, "T_1x4", "3 clouds counted"),  # of the same run
    ):
        other = dataclasses.replace(options, **changes)
        assert energy_table.measure(other, "T", "1x4")["options"] == told
        assert trained[-1] == name
    # Such a run in the other's folder is refused: it must not be named so.
    config = energy_table.make_config(options, "T", "1x4")
    other = dataclasses.replace(config, seed=config.seed + 1)
    with pytest.raises(RunFolderError):
        open_run(other, ("a", "b"), {})


def test_rows_of_other_rules_or_prices_are_counted_again(
    tmp_path, trained, monkeypatch
):
    options = energy_table.EnergyTable(run=tmp_path)
    for name in ("1x4", "ReLU"):
        energy_table.measure(options, "T", name)
    assert [len(energy_table.read_rows(tmp_path)[0]), len(trained)] == [2, 2]
    for name, value in (
        ("ASSUMPTIONS", ("Other rules.",)),
        ("HOROWITZ_45NM", HOROWITZ_45NM._replace(add=1.0)),
    ):
        monkeypatch.setattr(energy_table, name, value)
        rows, older = energy_table.read_rows(tmp_path)
        assert (rows, older) == ([], 2)
        energy_table.measure(options, "T", "1x4")
        energy_table.write_table(tmp_path)
        table = (tmp_path / "energy_table.md").read_text()
        assert "| T | 1x4 |" in table
        assert "| T | ReLU |" not in table
        assert "1 more were counted by other rules or prices" in table
        energy_table.measure(options, "T", "ReLU")
    assert trained == ["T_1x4", "T_ReLU"] * 3


def test_the_table_holds_the_rows_of_earlier_commands(tmp_path, trained, capsys):
    asked = (
        ["--variants", "S", "--neurons", "1x4", "--epochs", "2"],
        ["--variants", "T", "--neurons", "ReLU", "1x4"],
        ["--variants", "S", "--neurons", "2x1"],
    )
    for words in asked:
        assert energy_table.main([*words, "--run", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["variant"], row["neuron"]) for row in rows] == [("S", "2x1")]
    lines = (tmp_path / "energy_table.md").read_text().splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:6]] == [
        ["| T", "1x4", ""],
        ["| T", "ReLU", ""],
        ["| S", "2x1", ""],
        ["| S", "1x4", "2 epochs"],
    ]
    (tmp_path / "S_2x1" / energy_table.ROW).write_text("{")
    assert energy_table.main([*asked[1], "--run", str(tmp_path)]) == 2
    assert "S_2x1/energy_row.json: damaged, remove it" in capsys.readouterr().err


def test_rows_are_runs_of_their_own(tmp_path):
    options = energy_table.EnergyTable(run=tmp_path)
    configs = {
        (variant, neuron): energy_table.make_config(options, variant, neuron)
        for variant in options.variants
        for neuron in options.neurons
    }
    assert len({config.run for config in configs.values()}) == 20
    neuron = configs["L", "4x1"].model.neuron
    assert (neuron.time_steps, neuron.levels, neuron.relu) == (4, 1, False)
    assert configs["T", "ReLU"].model.neuron.relu
    part = dataclasses.replace(options, train_fraction=0.25)
    assert energy_table.make_config(part, "L", "1x4").data.fraction == 0.25
    assert set(energy_table.PUBLISHED) <= set(configs)


def test_an_unknown_neuron_is_named(tmp_path, capsys):
    words = ["--neurons", "3x3", "--run", str(tmp_path)]
    assert energy_table.main(words) == 2
    assert "no neuron '3x3'; there are 1x2, 2x1" in capsys.readouterr().err


def fake_answers(logits, activations):
    """Stands for the three runs of a batch: integer, binary, head on spikes."""
    zeros = np.zeros((2, 3))

    def run_all(model, variables, batch):
        found = {
            name: jax.numpy.asarray(values) for name, values in activations.items()
        }
        same = {name: values * 0 for name, values in found.items()}
        return (zeros, same), (jax.numpy.asarray(logits), found), zeros

    return run_all


class OneBatch(NamedTuple):
    levels: tuple = ()


@pytest.mark.parametrize("place", [None, "logits", "first", "last"])
def test_what_is_not_a_number_stays_the_worst(monkeypatch, place):
    logits = np.full((2, 3), 1e-12)
    activations = {name: np.full((2, 3), 1e-11) for name in ("first", "last")}
    if place == "logits":
        logits[1, 2] = np.nan
    elif place is not None:
        activations[place][0, 1] = np.nan
    monkeypatch.setattr(binary_spikes, "run_all", fake_answers(logits, activations))
    batches = SimpleNamespace(batches=[OneBatch(), OneBatch()])
    monkeypatch.setattr(binary_spikes, "open_batches", lambda network, data: batches)
    monkeypatch.setattr(binary_spikes, "open_model", lambda network: None)
    network = SimpleNamespace(variables={})
    found = binary_spikes.compare_in_float64(network, [0])
    if place is None:
        assert found["worst"] == pytest.approx(1e-11)
    else:
        assert np.isnan(found["worst"])


@pytest.mark.parametrize(
    ("wide", "message"),
    [
        ({}, None),
        ({"worst": np.nan}, "runs differ by nan, more than 1e-09"),
        ({"worst": 2e-9}, "runs differ by 2.0e-09, more than 1e-09"),
        ({"flipped_spikes": 1}, "in float64 1 spikes differ"),
    ],
)
def test_a_difference_in_float64_is_an_error(monkeypatch, capsys, wide, message):
    found = {"clouds": 2, "flipped_spikes": 0, "worst": 1e-12, "limit": 1e-9} | wide
    summary = {"layers": {"stem": 0.0}}
    network = SimpleNamespace(data=None, class_names=())
    for name, answer in (
        ("load_run", network),
        ("open_evaluation", []),
        ("compare", summary),
        ("choose_clouds", []),
        ("compare_in_float64", found),
    ):
        monkeypatch.setattr(binary_spikes, name, lambda *_, answer=answer: answer)
    code = binary_spikes.main(["run"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["float64"]["clouds"] == 2
    assert code == (0 if message is None else 2)
    assert (message or "") in printed.err


def test_binary_spikes_name_a_folder_that_is_no_run(tmp_path, capsys):
    assert binary_spikes.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_an_account_over_the_limit_is_an_error_unless_others_compute(capsys):
    row = lambda ratio: {"variant": "T", "ratio": {"account": {"median": ratio}}}
    account_cost.judge([row(1.1), row(1.5)], busy=False)
    assert capsys.readouterr().err == ""
    for wrong in (1.51, np.nan):
        with pytest.raises(ValueError, match=r"over 1\.5 times a plain pass"):
            account_cost.judge([row(1.1), row(wrong)], busy=False)
        account_cost.judge([row(wrong)], busy=True)
        assert "The machine is busy" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_is_one_json_object(capsys):
    assert account_cost.main(["--variants", "T", "--small"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["limit"] == account_cost.LIMIT
    assert isinstance(answer["busy"], bool)
    (row,) = answer["rows"]
    assert (row["variant"], row["voxels"]) == ("T", 256)
    assert set(row["ratio"]) == {"account", "binary"}
    assert row["milliseconds"]["plain"]["median"] > 0


@pytest.mark.slow
def test_the_commands_print_one_json_object(tmp_path, capsys, monkeypatch):
    words = ["--smoke", "--variants", "T", "--neurons", "1x4", "ReLU"]
    assert energy_table.main([*words, "--run", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["neuron"] for row in rows] == ["1x4", "ReLU"]
    assert rows[1]["macs"] == rows[1]["equivalent_macs"] > rows[0]["macs"]
    assert "| T | ReLU |" in (tmp_path / "energy_table.md").read_text()
    assert binary_spikes.main([str(tmp_path / "T_1x4_smoke")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["clouds"] == 6
    assert summary["changed"] == summary["head_changed"] == 0
    assert 0 <= summary["flipped"] < 0.01
    wide = summary["float64"]
    assert (wide["clouds"], wide["flipped_spikes"]) == (6, 0)
    assert 0 <= wide["worst"] <= wide["limit"] == binary_spikes.FLOAT64_LIMIT
    assert binary_spikes.main([str(tmp_path / "T_ReLU_smoke")]) == 2
    assert "ReLU has no spikes" in capsys.readouterr().err
    load = binary_spikes.load_run

    def broken(run):
        network = load(run)
        kernel = network.variables["params"]["backbone"]["stage0"]["down"]["conv"]
        kernel["kernel"] = np.array(kernel["kernel"])
        kernel["kernel"][0, 0, 0] = np.nan
        return network

    monkeypatch.setattr(binary_spikes, "load_run", broken)
    assert binary_spikes.main([str(tmp_path / "T_1x4_smoke")]) == 2
    assert "numbers that are not finite: its weights" in capsys.readouterr().err
