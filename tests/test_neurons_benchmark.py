"""The benchmark of neurons runs, at sizes that take seconds, and all agree on values.

What it times is not tested.
"""

import importlib.util
import json

import pytest

from experiments.benchmarks import neurons
from experiments.benchmarks.neurons import OTHERS, OURS


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("neurons")


def test_prints_a_table_and_one_json_line(out, monkeypatch, capsys):
    # Other packages take long to import, and rely on JAX's leniencies.
    mine = {name: peer for name, peer in OTHERS.items() if peer[0] is None}
    absent = ("no_such_package", "ours_soft", mine["plain_soft"][2])
    monkeypatch.setattr(neurons, "OTHERS", mine | {"absent": absent})
    arguments = ["--small", "--rounds=1", f"--out={out}"]
    monkeypatch.setattr("sys.argv", ["neurons", *arguments])
    neurons.main()
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert list(result["parts"]) == ["2", "5"]
    assert (out / "neurons.png").stat().st_size > 0
    for steps, part in result["parts"].items():
        assert set(part["seconds"][f"{steps} steps"]) == set(OURS) | set(mine)
        assert part["not_installed"] == ["no_such_package"]
        assert set(part["spike_difference"].values()) == {0.0}
        assert max(part["error"].values()) < 1e-6
        assert "fastest_peer" not in part
    assert "no_such_package: not installed" in captured.err
    assert "ours_hard" in captured.err


def test_a_loop_in_torch_agrees_and_is_compared(out, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(neurons, "OTHERS", {"torch_loop": OTHERS["torch_loop"]})
    result = neurons.run(neurons.Benchmark(small=True, rounds=1, out=out))
    for part in result["parts"].values():
        assert part["spike_difference"]["torch_loop"] == 0
        assert part["error"]["torch_loop"] < 1e-6
        assert part["fastest_peer"] == "torch_loop"
        assert set(part["ratio_to_fastest"]) == set(OURS)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["spyx", "snnax", "snntorch", "spikingjelly"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("lenient_promotion")
def test_peers_with_equal_dynamics_agree(out, monkeypatch, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    chosen = {name: peer for name, peer in OTHERS.items() if peer[0] == package}
    monkeypatch.setattr(neurons, "OTHERS", chosen)
    result = neurons.run(neurons.Benchmark(small=True, rounds=1, out=out))
    for part in result["parts"].values():
        for whose, difference in part["spike_difference"].items():
            if whose.startswith("spikingjelly") or whose.endswith("_hard"):
                assert difference == 0
        for whose, error in part["error"].items():
            if whose.startswith("spikingjelly") or whose == "snntorch_hard":
                assert error < 1e-6
