"""The benchmark of one convolution runs, and dealing its outputs changes no value."""

import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import sparse_conv
from experiments.benchmarks.dealt_conv import deal_outputs
from experiments.benchmarks.one_conv import Layer
from tests.clouds_of_voxels import random_coords


def test_it_prints_a_table_and_one_json_line(monkeypatch, capsys, tmp_path):
    arguments = ["sparse_conv", "--small", "--no-peer", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    sparse_conv.main()
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    whose = {"ours", f"ours_{jax.device_count()}_devices"}
    for channels in (4, 16):
        kinds = (
            f"{channels} channels forward",
            f"{channels} channels forward and backward",
        )
        assert set(result["seconds"][kinds[0]]) == whose | {"floor"}
        assert set(result["seconds"][kinds[1]]) == whose
    assert "ours / floor" in captured.err
    assert set(result["scaling"]["forward"]) == {"300", "600"}
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_dealt_outputs_cover_every_pair_once(rng, num_parts):
    pairs = Layer(random_coords(rng, extent=(9, 9, 9)), 4).pairs
    rows = int(pairs.receivers.max()) + 1
    parts = deal_outputs(pairs, rows, num_parts)
    assert [row for run, _ in parts for row in run] == list(range(rows))
    offset = np.repeat(np.arange(27), pairs.counts)
    whole = set(zip(offset, pairs.senders, pairs.receivers, strict=True))
    found = []
    for run, part in parts:
        own = np.repeat(np.arange(27), part.counts)
        found += zip(own, part.senders, part.receivers + run.start, strict=True)
        assert part.counts.sum() < 1.3 * len(pairs.senders) / num_parts
    assert len(found) == len(pairs.senders)
    assert set(found) == whole


def test_values_that_differ_when_dealt_stop_the_benchmark(rng, monkeypatch):
    layer = Layer(random_coords(rng, extent=(6, 6, 6)), 4)
    sparse_conv.make_dealt(layer)
    both = layer.both()
    wrong = both[0], both[1], both[2] + 1
    monkeypatch.setattr(layer, "both", lambda: wrong)
    with pytest.raises(ValueError, match=r"dealt to \d devices, values of up to"):
        sparse_conv.make_dealt(layer)
