"""The table of energies and the check of binary spikes, on tiny networks."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from experiments import account_cost, binary_spikes, energy_table


def make_row(**changes):
    energies = {"compute": 1.0, "updates": 2.0, "weights": 3.0, "other_memory": 4.0}
    energies |= {"total": 10.0, "rate": 5.0, "ann": 6.0, "paper_compatible": 8.0}
    row = {f"{name}_mj": value * 1e-3 for name, value in energies.items()}
    row |= {"variant": "S", "neuron": "1x4", "accuracy": 0.5, "macs": 6.0}
    row |= {"synaptic_operations": 7.0, "published": None}
    return row | changes


def test_the_table_by_hand():
    published = [
        {"accuracy": 0.9, "energy_mj": 0.04, "note": "one"},
        {"accuracy": None, "energy_mj": 1.2345, "note": "two"},
        {"accuracy": 0.8, "energy_mj": None, "note": "one"},
    ]
    rows = [make_row(published=told) for told in (*published, None)]
    lines = energy_table.format_table(rows).splitlines()
    start = "| S | 1x4 | 50.0% | 6 | 7 | 1 | 2 | 3 | 4 | 10 | 5 | 6 | 8 |"
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
    assert row["published"]["energy_mj"] == 0.03
    assert energy_table.describe_row("H", "ReLU", 0.5, told)["published"] is None


def test_a_row_that_is_done_is_read_back(tmp_path, monkeypatch):
    trained = []

    def train(config):
        trained.append(config.run.name)
        config.run.mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(evaluation=SimpleNamespace(accuracy=len(trained) / 10))

    monkeypatch.setattr(energy_table, "train", train)
    monkeypatch.setattr(energy_table, "run_energy", lambda run, clouds: (None, run))
    monkeypatch.setattr(energy_table, "describe_account", lambda account: {})
    monkeypatch.setattr(
        energy_table,
        "describe_row",
        lambda *row: dict(zip("vna", row[:3], strict=True)),
    )
    options = energy_table.EnergyTable(run=tmp_path)
    rows = [energy_table.measure(options, "T", name) for name in ("1x4", "1x4", "ReLU")]
    assert trained == ["T_1x4", "T_ReLU"]
    assert rows[0] == rows[1] == {"v": "T", "n": "1x4", "a": 0.1}
    # Other options, other rows.
    for changes in ({"epochs": 7}, {"clouds": 3}, {"train_fraction": 0.5}):
        other = dataclasses.replace(options, **changes)
        energy_table.measure(other, "T", "1x4")
    assert trained[2:] == ["T_1x4"] * 3


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


def test_binary_spikes_name_a_folder_that_is_no_run(tmp_path, capsys):
    assert binary_spikes.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_is_one_json_object(capsys):
    assert account_cost.main(["--variants", "T", "--small"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (row["variant"], row["voxels"]) == ("T", 256)
    assert set(row["ratio"]) == {"account", "binary"}
    assert row["milliseconds"]["plain"]["median"] > 0


@pytest.mark.slow
def test_the_commands_print_one_json_object(tmp_path, capsys):
    words = ["--smoke", "--variants", "T", "--neurons", "1x4", "ReLU"]
    assert energy_table.main([*words, "--run", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["neuron"] for row in rows] == ["1x4", "ReLU"]
    assert rows[1]["macs"] == rows[1]["equivalent_macs"] > rows[0]["macs"]
    assert "| T | ReLU |" in (tmp_path / "energy_table.md").read_text()
    assert binary_spikes.main([str(tmp_path / "T_1x4")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["clouds"] == 6
    assert summary["changed"] == summary["head_changed"] == 0
    assert 0 <= summary["flipped"] < 0.01
    assert binary_spikes.main([str(tmp_path / "T_ReLU")]) == 2
    assert "ReLU has no spikes" in capsys.readouterr().err
