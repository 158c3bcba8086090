"""The table of energies and the check of binary spikes, on tiny networks."""

import json

import pytest

from experiments import account_cost, binary_spikes, energy_table


def make_row(**changes):
    energies = {"compute": 1.0, "updates": 2.0, "total": 3.0, "rate": 4.0, "ann": 5.0}
    row = {f"{name}_mj": value * 1e-3 for name, value in energies.items()}
    row |= {"variant": "S", "neuron": "1x4", "accuracy": 0.5, "macs": 6.0}
    row |= {"synaptic_operations": 7.0, "paper_compatible_mj": 8e-3}
    return row | {"published_mj": 0.04} | changes


def test_the_table_by_hand():
    table = energy_table.format_table([make_row(), make_row(published_mj=None)])
    lines = table.splitlines()
    assert lines[2] == "| S | 1x4 | 50.0% | 6 | 7 | 1 | 3 | 4 | 5 | 8 | 40 |"
    assert lines[3].endswith("| 8 |  |")
    assert len(lines[0].split("|")) == len(lines[1].split("|")) == 13


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
