"""The experiments on how spiking networks learn, on tiny networks and clouds."""

import json

import numpy as np
import pytest
from tiny_run import share_compilations

from e3dsnn_jax.training.run_folder import read_config
from experiments.spiking import intrinsic_dimension, learning_dynamics, memorising

SMOKE = ("--training.smoke", "--training.seeds", "2", "--training.checkpoints", "3")


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
    return share_compilations(tmp_path_factory)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("spiking")


def run(main, capsys, *arguments):
    assert main([*SMOKE, *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_learning_dynamics(out, capsys):
    answer = run(learning_dynamics.main, capsys, "--out", out, "--measure", "cka")
    steps, layers = len(answer["steps"]), len(answer["layers"])
    assert answer["steps"][0] == 0
    assert np.shape(answer["similarity"]) == (steps, layers)
    assert set(answer["bottom_up"]) == {
        f"{kind} {threshold}"
        for kind in ("plain", "above_baseline")
        for threshold in learning_dynamics.THRESHOLDS
    }
    assert (out / "learning_dynamics.png").exists()


@pytest.mark.slow
def test_intrinsic_dimension(out, capsys):
    answer = run(
        intrinsic_dimension.main, capsys, "--out", out, "--clouds", "6", "--most", "60"
    )
    neurons = answer["neurons"]
    for method in ("svcca", "pca", "highest variance", "random"):
        for name, counts in answer["needed"][method].items():
            assert len(counts) == 2
            assert all(1 <= count <= neurons[name] for count in counts)
    for found in answer["together"]["pca"]:
        assert 0 < found["share_of_weights"] <= 1
        assert found["weights"][1] <= found["weights"][0]
        if not found["units"]:
            assert found["accuracy"] == found["accuracy_whole"]


def test_directions_are_enough_from_where_on_the_accuracy_stays():
    measured = {1: 0.9, 2: 0.5, 4: 0.8, 8: 0.9}
    assert intrinsic_dimension.enough_directions(measured, 0.8, 16) == 4
    assert intrinsic_dimension.enough_directions(measured, 0.95, 16) == 16
    assert intrinsic_dimension.enough_directions(measured, 0.5, 16) == 1


@pytest.mark.slow
def test_memorising(out, capsys):
    answer = run(memorising.main, capsys, "--out", out, "--widths", "2", "--most", "60")
    for found in answer["similarity"].values():
        kinds = {
            "gen - gen",
            "mem - mem",
            "gen - mem",
            "random, gen",
            "random, width 2",
        }
        assert kinds <= set(found)
        assert len(found["gen - mem"]["mean"]) == len(answer["layers"])
    # Networks that memorise start from other values, on labels that were dealt once.
    for group, seeds, shuffled in (("gen", (0, 1), None), ("mem", (2, 3), 0)):
        for seed in seeds:
            config = read_config(out / f"{group}_seed{seed}")
            assert (config.seed, config.data.shuffle_labels) == (seed, shuffled)
