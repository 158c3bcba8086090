"""The account: counts against loops and events, prices by hand, XLA's own analysis."""

import dataclasses
import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from tiny_run import make_data, share_compilations, write_run

import e3dsnn_jax
from e3dsnn_jax import energy_command, figures
from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.cli import USER_ERROR, main
from e3dsnn_jax.data.clouds import CloudSubset
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.energy import (
    ASSUMPTIONS,
    ann_energy,
    exact_energy,
    make_account,
    rate_energy,
)
from e3dsnn_jax.energy_report import (
    describe_account,
    format_account,
    published_energy,
    published_flops,
    published_layer_flops,
)
from e3dsnn_jax.event_executor import (
    inverse_events,
    linear_events,
    strided_events,
    submanifold_events,
)
from e3dsnn_jax.events import events_of_level, to_events
from e3dsnn_jax.interop import write_weights
from e3dsnn_jax.kernel_map import make_kernel
from e3dsnn_jax.kernel_pairs import submanifold_pairs
from e3dsnn_jax.layer_calls import SpikeDense, replace_layers
from e3dsnn_jax.layer_shapes import LayerShape, describe_layers
from e3dsnn_jax.layers import SparseConv
from e3dsnn_jax.network_account import describe_network
from e3dsnn_jax.operations import (
    LayerTotals,
    add_counts,
    count_operations,
    count_spikes_and_pairs,
    grid_cells,
    pairs_of_senders,
)
from e3dsnn_jax.prices import HOROWITZ_45NM, Memory, Prices
from e3dsnn_jax.pyramid import build_pyramid, find_levels, fit_capacity
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.metrics import spike_level
from e3dsnn_jax.training.saved import load_run
from e3dsnn_jax.voxels import join_clouds, pad_features
from experiments.random_variables import random_variables
from tests import oracles
from tests.clouds_of_voxels import random_coords
from tests.test_classifier import PARAMETERS, make_batch
from tests.test_spike_driven import UpAndDown, fixture_batch, make_variables

SMALL = Architecture(3, 4, (6,), (1,))
SPIKING = 6
STEM = Architecture(3, 4, (), ())
NEURONS = [Neuron(4, 1), Neuron(2, 2)]
UNIT = 2.0**-24


# One program for each network, whichever test asks for it.
count_once = jax.jit(
    count_operations, static_argnames=("model", "spike_levels", "num_clouds", "train")
)


def count(model, variables, features, levels, **options):
    """The layers, their totals, and what the network itself returns."""
    shapes = describe_layers(model, variables, features, levels, **options)
    outputs, counts = count_once(
        model,
        variables,
        features,
        levels,
        spike_levels=getattr(model, "neuron", Neuron()).levels,
        **options,
    )
    return shapes, add_counts({}, counts, shapes, levels), outputs


def make_network(rng, neuron=NEURONS[0], architecture=SMALL):
    features, levels = make_batch(rng, slack=1.5, levels=architecture.num_levels)
    levels = jax.tree.map(jnp.asarray, levels)
    model = Classifier(architecture, 5, neuron)
    variables = make_variables(model, rng, features, levels, num_clouds=2, train=False)
    return model, variables, features, levels


@pytest.fixture(scope="module")
def network():
    return make_network(np.random.default_rng(0))


def classify(model, variables, features, levels):
    return count(model, variables, features, levels, num_clouds=2, train=False)


@pytest.mark.parametrize(("rows", "levels"), [(1, 1), (7, 4), (40, 3), (0, 2)])
def test_spikes_and_pairs_are_those_of_the_loops(rng, rows, levels):
    spikes = rng.integers(0, levels + 1, (rows, 2, 3)).astype(np.float32)
    degree, real = rng.integers(0, 28, rows), rng.random(rows) < 0.7
    fired, pair_spikes = np.zeros((2, levels), int), np.zeros(2, int)
    for row in np.flatnonzero(real):
        for t in range(2):
            for channel in range(3):
                for slot in range(int(spikes[row, t, channel])):
                    fired[t, slot] += 1
                    pair_spikes[t] += degree[row]
    degree = np.where(real, degree, 0)  # padding has no pairs
    *found, askers = count_spikes_and_pairs(
        jnp.asarray(spikes),
        jnp.asarray(degree, jnp.int32),
        jnp.asarray(real),
        levels=levels,
        most_pairs=27,
    )
    np.testing.assert_array_equal(np.asarray(found[0]).sum(0), fired)
    np.testing.assert_array_equal(np.asarray(found[1]).sum(0), pair_spikes)
    asking = sum(
        (spikes[row, t] > slot).any()
        for row in np.flatnonzero(real)
        for t in range(2)
        for slot in range(levels)
    )
    assert askers == asking


def test_counts_beyond_what_32_bits_hold_are_exact():
    # One spike more than a float32 could tell apart, and beyond int32.
    rows, channels, levels = 40_001, 16, 127
    spikes = np.full((rows, 1, channels), levels, np.float32)
    spikes[-1, 0, 1:], spikes[-1, 0, 0] = 0, 1
    expected = (rows - 1) * channels * levels * 27 + 27
    assert expected > 2**31
    assert int(np.float32(expected)) != expected
    run = jax.jit(
        functools.partial(count_spikes_and_pairs, levels=levels, most_pairs=27)
    )
    fired, pair_spikes, _ = jax.device_get(
        run(
            jnp.asarray(spikes),
            jnp.full(rows, 27, jnp.int32),
            jnp.ones(rows, bool),
        )
    )
    assert len(pair_spikes) > 1
    assert (pair_spikes >= 0).all()
    assert sum(pair_spikes[:, 0].tolist()) == expected
    assert sum(fired.ravel().tolist()) == (rows - 1) * channels * levels + 1


def test_totals_add_up_as_whole_numbers_of_any_size(network):
    model, variables, features, levels = network
    shapes, totals, _ = classify(model, variables, features, levels)
    name = "stem/unit1"
    large = totals[name]._replace(pair_spikes=(2**63 + 1,), pairs=2**70)
    _, counts = count_once(*network, spike_levels=4, num_clouds=2, train=False)
    again = add_counts(totals | {name: large}, counts, shapes, levels)[name]
    assert again.pair_spikes == (2**63 + 1 + totals[name].pair_spikes[0],)
    assert again.pairs == 2**70 + totals[name].pairs


def test_pairs_of_senders(rng):
    coords = random_coords(rng)
    (level,) = build_pyramid(coords, num_levels=1)
    rows = len(level.coords)
    expected = np.zeros(rows, int)
    for _, _, sender in oracles.submanifold_pairs(coords, make_kernel(3)):
        expected[sender] += 1
    found = pairs_of_senders(jax.tree.map(jnp.asarray, level.submanifold), rows)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("neuron", "architecture"),
    [
        (NEURONS[0], SMALL),
        (NEURONS[1], STEM),
        pytest.param(NEURONS[1], SMALL, marks=pytest.mark.slow),
    ],
)
def test_the_account_is_what_the_event_executor_counts(network, neuron, architecture):
    arguments = network
    if neuron != network[0].neuron:
        arguments = make_network(np.random.default_rng(0), neuron, architecture)
    shapes, totals, outputs = classify(*arguments)
    names = [shape.name for shape in shapes]
    assert names[:2] == ["stem/unit0", "stem/unit1"]
    assert [s.name for s in shapes if not s.takes_spikes] == ["stem/unit0", "head"]
    check_events_of_layers(arguments, shapes, totals, outputs)
    head = totals["head"]
    assert (head.pairs, head.spikes) == (2, 0)


def check_events_of_layers(arguments, shapes, totals, counted):
    """Counts, rates, additions and outputs of every spiking layer, from its events."""
    model, variables, _, levels = arguments
    _, outputs, (logits, activations) = watch_once(
        *arguments, num_clouds=2, train=False
    )
    np.testing.assert_array_equal(counted[0], logits)
    account = make_account(shapes, totals, clouds=2, spike_levels=model.neuron.levels)
    for layer in account.layers:
        name = layer.shape.name
        if not layer.shape.takes_spikes:
            assert layer.synaptic_operations == 0
            continue
        level = levels[spike_level(name)]
        real = int(level.voxels_needed)
        spikes = activations[f"{name}/spikes"]
        events = events_of_level(spikes, level.coords, levels=model.neuron.levels)
        coords = events.coords
        assert len(coords) == real
        leaf = variables["params"]["backbone"]
        for word in name.split("/"):
            leaf = leaf[word]
        kernel = np.asarray(leaf["conv"]["kernel"])
        if name.endswith("down"):
            geometry, convolve = make_kernel(2, stride=2), strided_events
        else:
            geometry, convolve = make_kernel(3), submanifold_events
        result = convolve(events, coords, kernel, geometry)
        assert result.synaptic_operations == layer.synaptic_operations
        assert layer.macs == 0
        assert layer.totals.spikes == len(events.time)
        by_step = np.bincount(events.time, minlength=events.binary_steps)
        np.testing.assert_array_equal(np.ravel(layer.totals.fired), by_step)
        asking = np.unique(np.stack([events.time, events.voxel]), axis=1)
        assert layer.totals.askers == asking.shape[1]
        neurons = real * layer.shape.c_in
        assert layer.neurons == neurons
        np.testing.assert_allclose(np.ravel(layer.firing_rates), by_step / neurons)
        assert layer.firing_rate == pytest.approx(by_step.mean() / neurons)
        # As in test_event_executor: the bound of rounding in float32.
        sizes = convolve(events, coords, np.abs(kernel), geometry).currents
        bound = (result.additions + 1) * UNIT * sizes
        ours = np.asarray(outputs[name])[: len(result.coords)]
        assert (np.abs(ours - result.currents) <= bound).all()


@functools.partial(jax.jit, static_argnames=("model", "num_clouds", "train"))
def watch_once(model, variables, features, levels, **options):
    """Inputs and outputs of every layer, before BatchNorm, and what is returned."""
    inputs, outputs = {}, {}

    def layer(call):
        inputs[call.name], outputs[call.name] = call.inputs, call.run()
        return outputs[call.name]

    arguments = model, variables, features, levels
    returned = replace_layers(*arguments, layer=layer, **options)
    return inputs, outputs, returned


def check_t_on(voxels, rng):
    coords, features = join_clouds(voxels)
    levels = build_pyramid(coords, num_levels=5)
    features = jnp.asarray(pad_features(features, rows=len(levels[0].coords)))
    model = Classifier(VARIANTS["T"], 40)
    options = {"num_clouds": 2, "train": False}
    variables = random_variables(model, rng, features, levels, **options)
    layers, totals, outputs = classify(model, variables, features, levels)
    assert len(layers) == 3 + 4 * 4 + 1
    arguments = model, variables, features, levels
    check_events_of_layers(arguments, layers, totals, outputs)


@pytest.mark.slow
def test_every_layer_of_t_on_a_procedural_cloud(rng):
    cloud = open_dataset(None, "test")[0]
    voxels = voxelize_cloud(cloud, rng, voxel_size=0.2, normals=True, recipe=None)
    check_t_on([voxels, voxels], rng)


@pytest.mark.slow
def test_every_layer_of_the_reference_network(shared):
    model, variables, features, levels, _ = fixture_batch(
        shared / "fixtures" / "cls_T_seed0.npz"
    )
    features, levels = jax.tree.map(jnp.asarray, (features, levels))
    arguments = model, variables, features, levels
    layers, totals, outputs = classify(*arguments)
    check_events_of_layers(arguments, layers, totals, outputs)


@pytest.mark.slow
def test_every_layer_of_t_on_two_real_clouds(shared, rng):
    dataset = open_dataset(shared / "data" / "kicad40", "test")
    voxels = [
        voxelize_cloud(dataset[index], rng, voxel_size=0.1, normals=True, recipe=None)
        for index in (0, 200)
    ]
    check_t_on(voxels, rng)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        pytest.param(*item, marks=[pytest.mark.slow] if item[0] != "T" else [])
        for item in PARAMETERS.items()
    ],
)
def test_parameters_are_all_accounted_for(rng, variant, expected):
    features, levels = make_batch(rng, levels=5, channels=6)
    model = Classifier(VARIANTS[variant], 40)
    options = {"num_clouds": 2, "train": False}
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), features, levels, **options)
    )
    layers = describe_layers(model, variables, features, levels, **options)
    assert sum(layer.parameters for layer in layers) == expected


def test_a_network_without_spikes_multiplies(rng):
    model, variables, features, levels = make_network(rng, Neuron(relu=True), STEM)
    shapes, totals, _ = classify(model, variables, features, levels)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    layers = {layer.shape.name: layer for layer in account.layers}
    assert not any(shape.takes_spikes for shape in shapes)
    pairs = len(
        oracles.submanifold_pairs(
            np.asarray(levels[0].coords)[: int(levels[0].voxels_needed)],
            make_kernel(3),
        )
    )
    assert layers["stem/unit0"].macs == pairs * 3 * 4
    assert layers["stem/unit1"].macs == pairs * 4 * 4
    assert layers["head"].macs == 2 * 4 * 5
    assert sum(layer.synaptic_operations for layer in account.layers) == 0
    assert exact_energy(account)["compute"] == pytest.approx(ann_energy(account))
    assert rate_energy(account) == pytest.approx(ann_energy(account))
    assert "does not spike" in account.notes[0]


def test_silent_and_untrained_networks_are_told(network):
    model, variables, features, levels = network
    fresh = jax.tree.map(lambda leaf: leaf * 0, variables["params"])
    shapes, totals, _ = classify(model, variables | {"params": fresh}, features, levels)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    assert "No neuron of this network fired: it is untrained" in account.notes[0]
    # Its pooled values are all 0, as those of a cloud that fills up the batch.
    assert totals["head"].pairs == 2
    assert account.layers[-1].macs == 2 * 6 * 5
    shapes, totals, _ = classify(model, variables, features, levels)
    assert make_account(shapes, totals, clouds=2, spike_levels=4).notes == ()
    one = totals["stage0/down"]._replace(fired=((0,) * 4,), pair_spikes=(0,))
    some = make_account(shapes, totals | {"stage0/down": one}, clouds=2, spike_levels=4)
    assert some.notes == (f"1 of {SPIKING} spiking layers never fired: stage0/down.",)


STEPPED = Prices(
    "stepped",
    "made up",
    multiply_accumulate=4.0,
    add=1.0,
    multiply=3.0,
    integer_add=0.5,
    memories=(
        Memory("a", 24, 1.0),
        Memory("b", 100, 2.0),
        Memory("c", 540, 3.0),
        Memory("d", None, 10.0),
    ),
)


def one_layer(prices=STEPPED, **changes):
    """An account of one layer whose numbers can be checked by hand."""
    shape = LayerShape("stem/unit1", True, 27, 3, 5, 2, 0, 0, 405)
    totals = LayerTotals(
        pairs=40,
        voxels_in=10,
        voxels_out=10,
        dense_positions=27 * 100,
        fired=((6, 2), (4, 0)),
        pair_spikes=(50, 30),
        askers=7,
    )
    if not changes.get("takes_spikes", True):
        totals = totals._replace(fired=((0, 0),) * 2, pair_spikes=(0, 0), askers=20)
    shape = shape._replace(**changes)
    return make_account(
        (shape,), {shape.name: totals}, clouds=2, spike_levels=2, prices=prices
    )


def test_prices_by_hand():
    account = one_layer()
    (layer,) = account.layers
    assert layer.synaptic_operations == 80 * 5
    assert layer.equivalent_macs == 40 * 15
    assert layer.dense_macs == 2700 * 15
    assert layer.firing_rates == ((6 / 30, 2 / 30), (4 / 30, 0))
    assert layer.firing_rate == 12 / 120
    assert layer.rate_estimate == pytest.approx(12 / 30 * 600)
    assert layer.membrane_bytes == 120
    # Shifts: 10 voxels, 2 steps, 5 channels; 60 updates of 2 comparisons, integrating
    # and resetting.
    assert layer.updates == {"add": 100 + 60 * 4, "multiply": 60}
    # Half of what two clouds take.
    assert layer.sizes == {
        "weights": 4 * 27 * 15,
        "sums": 100,
        "membranes": 60,
        "inputs": 24,
        "table": 540,
    }
    assert layer.memories(STEPPED) == {
        "weights": "d",
        "sums": "b",
        "membranes": "b",
        "inputs": "a",
        "table": "c",
    }
    # Every addition: one weight, one sum read and written. A membrane is read and
    # written in each of two time steps, a spike written and read.
    assert layer.traffic == {
        "weights": 4 * 400,
        "sums": 4 * 800,
        "membranes": 4 * 120,
        "inputs": 4 * 24,
        "table": 4 * 7 * 27,
    }
    expected = {
        "compute": 400,
        "updates": 340 + 3 * 60,
        "weights": 10 * 1600,
        "state": 2 * 3200 + 2 * 480,
        "spikes": 96,
        "addressing": 3 * 756 + 0.5 * 189,
    }
    assert layer.energy(STEPPED) == pytest.approx(expected)
    total = exact_energy(account)
    assert total["total"] == pytest.approx(sum(expected.values()) / 2)
    assert rate_energy(account) == pytest.approx(240 / 2)
    assert ann_energy(account) == pytest.approx(4 * 600 / 2)


def test_prices_of_real_inputs_by_hand():
    account = one_layer(takes_spikes=False)
    (layer,) = account.layers
    # Two time steps, each with every pair.
    assert (layer.macs, layer.neurons, layer.membrane_bytes) == (2 * 600, 0, 0)
    assert layer.equivalent_macs == 600
    assert layer.updates == {"add": 100, "multiply": 0}
    assert layer.traffic == {
        "weights": 4 * 1200,
        "sums": 4 * 2400,
        "membranes": 4 * 60,
        "inputs": 4 * 120,
        "table": 4 * 20 * 27,
    }
    assert layer.sizes["inputs"] == 60
    energy = layer.energy(STEPPED)
    assert energy["compute"] == pytest.approx(4 * 1200)
    assert energy["state"] == pytest.approx(2 * 4 * (2400 + 60 + 120))
    assert energy["spikes"] == 0


@pytest.mark.parametrize("time", [1, 3])
def test_spikes_and_real_values_pay_memory_by_one_rule(time):
    # Every neuron fires once in each time step: as many additions as products.
    spiking = LayerShape("layer", True, 27, 3, 5, time, 0, 0, 405)
    fired, pair_spikes = ((30,),) * time, (40 * 3,) * time
    totals = LayerTotals(40, 10, 10, 0, fired, pair_spikes, askers=10 * time)
    silent = totals._replace(fired=((0,),) * time, pair_spikes=(0,) * time)
    (layer,), (twin,) = (
        make_account((shape,), {"layer": counts}, clouds=1, spike_levels=1).layers
        for shape, counts in (
            (spiking, totals),
            (spiking._replace(takes_spikes=False), silent),
        )
    )
    assert layer.synaptic_operations == twin.macs == 600 * time
    kept = 4 * 30 * time if time > 1 else 0  # written back, by neurons alone
    traffic = layer.traffic
    assert traffic["membranes"] - kept == twin.traffic["membranes"]
    assert traffic | {"membranes": 0} == twin.traffic | {"membranes": 0}


def test_weights_lie_in_the_smallest_memory_that_holds_them():
    one_mebibyte = 2**20 // 4 // 27 // 64
    for c_in, name in ((1, "8 KiB"), (3, "32 KiB"), (one_mebibyte, "1 MiB")):
        (layer,) = one_layer(HOROWITZ_45NM, c_in=c_in, c_out=64).layers
        assert layer.memories(HOROWITZ_45NM)["weights"] == name
    (layer,) = one_layer(HOROWITZ_45NM, c_in=one_mebibyte + 1, c_out=64).layers
    assert layer.memories(HOROWITZ_45NM)["weights"] == "DRAM"
    paid = layer.energy(HOROWITZ_45NM)["weights"]
    assert paid == pytest.approx(1300 / 8 * 4 * layer.synaptic_operations)


def test_constants_can_be_replaced():
    dear = HOROWITZ_45NM._replace(name="dear", source="nobody", add=9.0)
    account = one_layer(dear)
    assert exact_energy(account)["compute"] == pytest.approx(9.0 * 200)
    assert format_account(account).endswith("\nPrices: dear. nobody")
    assert describe_account(account)["prices_pj"]["add"] == 9.0


def test_json_and_table_say_the_same(network):
    model, variables, features, levels = network
    shapes, totals, _ = classify(model, variables, features, levels)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    told = json.loads(json.dumps(describe_account(account, source="here")))
    assert told["source"] == "here"
    layers = {layer["name"]: layer for layer in told["layers"]}
    assert list(layers) == [shape.name for shape in shapes]
    assert told["parameters"] == sum(layer["parameters"] for layer in layers.values())
    totals_told, means = told["totals_over_clouds"], told["operations_per_cloud"]
    for key in ("macs", "synaptic_operations", "equivalent_macs", "dense_macs"):
        found = [layer["totals_over_clouds"][key] for layer in layers.values()]
        assert totals_told[key] == sum(found) == 2 * means[key]
        assert isinstance(totals_told[key], int)
    assert totals_told["rate_operations"] == pytest.approx(2 * means["rate_operations"])
    neurons = sum(layer.neurons for layer in account.layers)
    assert told["membrane_bytes_per_cloud"] == 4 * neurons / 2
    energies = told["energy_mj_per_cloud"]
    assert set(energies) == {"exact", "rate", "ann", "paper_compatible"}
    parts = [layer["energy_mj_per_cloud"] for layer in layers.values()]
    for part, energy in energies["exact"].items():
        if part != "total":
            assert energy == pytest.approx(sum(layer[part] for layer in parts))
    assert energies["exact"]["compute"] < energies["ann"]
    stem = [layers[f"stem/unit{index}"]["totals_over_clouds"] for index in range(3)]
    flops = sum(2 * u["pairs"] * 16 - u["voxels_in"] for u in stem) / 2
    assert means["paper_compatible_flops"] == flops
    assert told["assumptions"] == list(ASSUMPTIONS)
    assert told["prices_pj"]["source"] == HOROWITZ_45NM.source
    table = format_account(account)
    for name in layers:
        assert f"\n{name} " in table
    unwrapped = " ".join(table.split())
    assert all(f"- {text}" in unwrapped for text in ASSUMPTIONS)
    assert unwrapped.endswith(HOROWITZ_45NM.source)
    assert f"{energies['rate']:.4g} mJ" in table
    assert f"{energies['paper_compatible']:.4g} mJ" in table
    assert layers["head"]["firing_rate"] is None
    assert layers["head"]["input"] == "real values"


def test_the_figure_has_a_bar_for_each_layer(network, tmp_path, monkeypatch):
    saved = []
    save = figures._save
    keep = lambda figure, path: (saved.append(figure), save(figure, path))
    monkeypatch.setattr(figures, "_save", keep)
    shapes, totals, _ = classify(*network)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    figures.draw_energy(account, tmp_path / "energy.png")
    assert matplotlib.image.imread(tmp_path / "energy.png").std() > 0.01
    left, middle, right = saved[0].axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == [shape.name for shape in shapes]
    widths = lambda axes: sum(bar.get_width() for bar in axes.patches)
    exact = exact_energy(account)
    assert widths(left) == pytest.approx(exact["compute"] / 1e3)
    assert widths(middle) == pytest.approx(exact["total"] / 1e6)
    rates = [100 * layer.firing_rate for layer in account.layers]
    assert widths(right) == pytest.approx(sum(rates))
    assert [text.get_text() for text in right.texts].count("real") == 2
    assert "nJ" in left.get_xlabel()
    assert "µJ" in middle.get_xlabel()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    share_compilations(tmp_path_factory)
    return write_run(make_data(tmp_path_factory.mktemp("energy")))


def test_an_untrained_run_is_told(run, tmp_path, monkeypatch):
    network = load_run(run)
    networks = {
        "fresh": network._replace(step=0),
        "broken": network._replace(
            variables=jax.tree.map(lambda leaf: leaf * np.nan, network.variables)
        ),
    }
    load = lambda run, which: networks[run.name]
    monkeypatch.setattr(energy_command, "load_run", load)
    with pytest.raises(ValueError, match="fresh: a run tells its own neurons"):
        energy_command.run_energy(Path("fresh"), neuron=Neuron(2))
    table = describe_account(one_layer())["prices_pj"]
    (tmp_path / "prices.json").write_text(json.dumps(table))
    account, folder = energy_command.run_energy(
        Path("fresh"), clouds=2, out=tmp_path / "out", prices=tmp_path / "prices.json"
    )
    assert folder == tmp_path / "out"
    assert account.clouds == 2
    assert account.prices == STEPPED
    # Two of the four clouds of the batch are no clouds.
    assert {layer.shape.name: layer for layer in account.layers}["head"].macs == 2 * 6
    assert account.notes[0].startswith("The run has not been trained yet")
    stored = json.loads((folder / "energy.json").read_text())
    assert stored["notes"][0] == account.notes[0]
    expected = {"model": "Classifier", "variant": None, "time_steps": 1, "levels": 4}
    expected |= {"decay": 0.5, "relu": False}
    size = stored["network"].pop("architecture")
    assert stored["network"] == expected
    assert size["stage_channels"] == list(network.model.architecture.stage_channels)
    first, *_ = format_account(account).splitlines()
    assert first == "Classifier, stem of 2 channels, stages 2, T x D = 1 x 4"
    assert stored["prices_pj"] == table
    with pytest.raises(ValueError, match="not finite: its weights are broken"):
        energy_command.run_energy(Path("broken"), clouds=2)


def test_a_head_on_spikes_has_an_account_beside_the_other(run, capsys):
    assert main(["energy", str(run), "--clouds", "2", "--head-on-spikes"]) == 0
    told = capsys.readouterr().out
    assert "Note: The head takes spikes: " in told
    assert not (run / "energy.json").exists()
    stored = json.loads((run / "energy_head_on_spikes" / "energy.json").read_text())
    layers = {layer["name"]: layer["totals_over_clouds"] for layer in stored["layers"]}
    assert layers["head"]["macs"] == 0
    # Nobody but the head would read the channels of the last unit: 2 of them, and 3
    # classes. Spikes of the first unit of the block are added onto channels alone.
    last, first = layers["stage0/block0/unit2"], layers["stage0/block0/unit1"]
    assert last["equivalent_macs"] == first["equivalent_macs"] > 0
    assert last["rate_operations"] == pytest.approx(
        last["spikes"] / last["voxels_in"] / 2 * last["pairs"] * 2 * 3
    )
    assert stored["totals_over_clouds"]["macs"] == layers["stem/unit0"]["macs"]


def test_neurons_of_a_weights_file_are_given_or_told(run, tmp_path, capsys):
    weights = tmp_path / "network.npz"
    write_weights(load_run(run).variables, weights)
    words = ["energy", str(weights), "--voxel-size", "0.4", "--clouds", "2"]

    def account(*more):
        assert main([*words, *more]) == 0
        told = capsys.readouterr().out
        stored = (tmp_path / "network_energy" / "energy.json").read_text()
        return told, json.loads(stored)

    told, stored = account()
    assert "does not tell its neurons; taken as T x D = 1 x 4" in stored["notes"][0]
    assert told.startswith("Classifier, stem of 2 channels, stages 2, T x D = 1 x 4\n")
    told, stored = account("--neuron.time-steps", "2", "--neuron.levels", "1")
    assert "T x D = 2 x 1, leak 0.5\n" in told
    assert not any("does not tell" in note for note in stored["notes"])
    rates = stored["layers"][1]["firing_rates"]
    assert (len(rates), len(rates[0])) == (2, 1)
    told, stored = account("--neuron.relu")
    assert "ReLU instead of spikes\n" in told
    assert stored["totals_over_clouds"]["synaptic_operations"] == 0
    assert stored["network"]["relu"] is True
    assert main(["energy", str(run), "--neuron.levels", "2"]) == USER_ERROR
    assert "a run tells its own neurons" in capsys.readouterr().err
    assert main([*words, "--neuron.levels", "0"]) == USER_ERROR
    assert "levels must lie in 1..127, got levels=0" in capsys.readouterr().err


def test_an_own_network_is_accounted_for_in_one_call(rng):
    coords = random_coords(rng, extent=(5, 6, 7))
    levels = distinct_levels(coords)
    rows = rng.normal(size=(len(coords), 3)).astype(np.float32)
    features = pad_features(rows, rows=len(levels[0].coords))
    model = UpAndDown(Neuron())
    variables = make_variables(model, rng, features, levels, train=False)
    batches = [(features, levels)] * 2
    done = []
    account = e3dsnn_jax.account(
        model, variables, batches, prices=STEPPED, on_batch=done.append, train=False
    )
    assert done == [1, 2]
    assert account.clouds == 2 * len(np.unique(coords[:, 0]))
    arguments = model, variables, jnp.asarray(features), levels
    shapes, totals, _ = count(*arguments, train=False)
    half = make_account(shapes, totals, clouds=2, spike_levels=4, prices=STEPPED)
    assert exact_energy(account) == pytest.approx(exact_energy(half))
    assert account.network["model"] == "UpAndDown"
    assert account.network["architecture"] is account.network["variant"] is None
    assert format_account(account).startswith("UpAndDown, T x D = 1 x 4\n")
    with pytest.raises(ValueError, match="0 clouds without any voxel"):
        e3dsnn_jax.account(model, variables, [], train=False)
    with pytest.raises(ValueError, match="a UpAndDown runs without it"):
        e3dsnn_jax.account(model, variables, batches, head_on_spikes=True, train=False)


@pytest.mark.parametrize("variant", ["T", "H"])
def test_published_sizes_are_named(variant):
    size = VARIANTS[variant]
    model = Classifier(dataclasses.replace(size, in_channels=3), 40, Neuron(1, 4))
    told = describe_network(model)
    assert (told["variant"], told["time_steps"], told["levels"]) == (variant, 4, 1)
    other = model.clone(architecture=dataclasses.replace(size, embed_channels=17))
    assert describe_network(other)["variant"] is None


def test_levels_that_the_network_does_not_have_are_refused(network):
    model, variables, features, levels = network
    options = {"num_clouds": 2, "train": False}
    for given in (3, 5):
        run = functools.partial(count_operations, model, spike_levels=given, **options)
        with pytest.raises(ValueError, match=f"levels={given} are given"):
            jax.eval_shape(run, variables, features, levels)
    with pytest.raises(ValueError, match="Readers has no field `neuron`"):
        count_operations(Readers(), {}, features, levels)


def write_points(folder, points):
    """A test split of one cloud."""
    normals = np.tile(np.array([0, 0, 1], np.float32), (len(points), 1))
    arrays = {
        "points": points[None],
        "normals": normals[None],
        "label": np.zeros(1, int),
    }
    folder.mkdir()
    (folder / "shape_names.txt").write_text("ball\nbox\nrod\n")
    for split in ("train", "test"):
        np.savez(folder / f"{split}_0.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (None, "is empty")],
)
def test_a_cloud_that_cannot_be_cut_into_voxels_is_named(
    run, tmp_path, capsys, value, message
):
    points = np.random.default_rng(0).random((0 if value is None else 9, 3))
    if value is not None:
        points[3, 1] = value
    data = write_points(tmp_path / "data", points.astype(np.float32))
    assert main(["energy", str(run), "--data", str(data)]) == USER_ERROR
    told = capsys.readouterr().err
    assert message in told
    assert "test_0.npz" in told


def test_a_table_of_prices_is_checked_before_anything_is_counted(run, tmp_path, capsys):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"name": "mine", "additions": 3}))
    assert main(["energy", str(run), "--prices", str(path)]) == USER_ERROR
    assert f"{path}: additions is no field of the prices" in capsys.readouterr().err
    words = ["energy", str(run), "--prices", str(tmp_path / "absent.json")]
    assert main(words) == USER_ERROR
    assert "absent.json: No such file" in capsys.readouterr().err


def test_clouds_are_a_fixed_choice_of_the_dataset():
    dataset = open_dataset(None, "test")
    chosen = energy_command.choose_clouds(dataset, 16)
    assert len(chosen) == 16
    assert len({chosen[index].label for index in range(16)}) > 8
    again = energy_command.choose_clouds(dataset, 16)
    assert [again[k].name for k in range(16)] == [chosen[k].name for k in range(16)]
    assert energy_command.choose_clouds(dataset, None) is dataset
    with pytest.raises(ValueError, match="--clouds must be 1 or more, got 0"):
        energy_command.choose_clouds(dataset, 0)
    with pytest.raises(ValueError, match="the dataset has no clouds"):
        energy_command.choose_clouds(CloudSubset(dataset, ()), None)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_published_rule_gives_the_published_numbers(seed):
    # The random cloud of the published script: 9,830 points in 64 cells an axis, of
    # which 2 % are duplicates. It asks for the neighbours of each row, and a cell has
    # one entry in its hash, so that each row meets each cell once.
    points = np.random.default_rng(seed).integers(0, 64, (9830, 3))
    cells, rows = np.unique(points, axis=0, return_counts=True)
    assert 120 < len(points) - len(cells) < 250
    coords = np.insert(cells, 0, 0, axis=1).astype(np.int32)
    found = submanifold_pairs(coords, make_kernel(3))
    pairs = int(rows[found.receivers].sum())
    assert pairs > len(found.receivers)
    # The stem of T: three convolutions of 16 channels.
    flops = 3 * published_layer_flops(pairs, len(points), 16)
    assert flops == pytest.approx(2.92e7, rel=0.04)
    assert 1e-9 * published_energy(flops) == pytest.approx(0.13432, rel=0.04)


def test_the_published_rule_counts_the_stem_of_an_account(network):
    model, variables, features, levels = network
    shapes, totals, _ = classify(model, variables, features, levels)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    voxels = int(levels[0].voxels_needed)
    coords = np.asarray(levels[0].coords)[:voxels]
    pairs = len(oracles.submanifold_pairs(coords, make_kernel(3)))
    assert published_flops(account) == 3 * (2 * pairs * 4 * 4 - voxels) / 2


class Grid(nn.Module):
    """Layers with real inputs: two on a level, one down."""

    @nn.compact
    def __call__(self, features, levels):
        fine, coarse = levels
        x, rows = features[:, None], len(features)
        x = SparseConv(16, name="first")(x, fine.submanifold, num_out=rows)
        x = SparseConv(16, name="second")(x, fine.submanifold, num_out=rows)
        down = SparseConv(32, num_offsets=8, name="down")
        return down(x, fine.down, num_out=len(coarse.coords))


@pytest.mark.parametrize("size", [8, 9])
def test_on_a_full_grid_the_account_is_what_xla_counts(size):
    coords = np.argwhere(np.ones((1, size, size, size))).astype(np.int32)
    levels = build_pyramid(coords, num_levels=2, extent=(size,) * 3)
    levels = jax.tree.map(jnp.asarray, levels)
    features, model = jnp.ones((len(levels[0].coords), 6)), Grid()
    variables = make_variables(model, np.random.default_rng(0), features, levels)
    shapes, totals, _ = count(model, variables, features, levels)
    account = make_account(shapes, totals, clouds=1, spike_levels=4)
    assert [layer.shape.name for layer in account.layers] == ["first", "second", "down"]
    for layer in account.layers:
        strided = layer.shape.name == "down"
        dense = jax.jit(
            functools.partial(
                jax.lax.conv_general_dilated,
                window_strides=(2 if strided else 1,) * 3,
                padding="VALID" if strided else "SAME",
                dimension_numbers=("NXYZC", "XYZIO", "NXYZC"),
            )
        )
        channels = layer.shape.c_in, layer.shape.c_out
        grid = jax.ShapeDtypeStruct((1, size, size, size, channels[0]), jnp.float32)
        edges = (2 if strided else 3,) * 3
        kernel = jax.ShapeDtypeStruct(edges + channels, jnp.float32)
        analysis = dense.lower(grid, kernel).compile().cost_analysis()
        assert analysis is not None
        assert 2 * layer.macs == pytest.approx(analysis["flops"], rel=0.01)


def test_grid_cells():
    coords = np.array([[0, 1, 2, 3], [0, 0, 5, 0], [2, 0, 0, 0], [-1, -1, -1, -1]])
    assert grid_cells(coords) == 2 * 6 * 4 + 1
    assert grid_cells(coords[:0]) == 0
    far = np.array([[0, 2**31 - 2, 2**31 - 2, 2**31 - 2]])
    assert grid_cells(far) == (2**31 - 1) ** 3


def distinct_levels(coords, padding=0):
    """Two levels whose row capacities differ, so that linear layers find theirs."""
    found = find_levels(coords, num_levels=2)
    fine, coarse = fit_capacity([found])
    fine = dataclasses.replace(fine, voxels=fine.voxels + padding)
    capacity = (fine, dataclasses.replace(coarse, voxels=fine.voxels + 64))
    levels = build_pyramid(coords, num_levels=2, capacity=capacity)
    return jax.tree.map(jnp.asarray, levels)


def test_a_decoder_is_accounted_for(rng):
    coords = random_coords(rng, extent=(5, 6, 7))
    levels = distinct_levels(coords)
    rows = rng.normal(size=(len(coords), 3)).astype(np.float32)
    features = jnp.asarray(pad_features(rows, rows=len(levels[0].coords)))
    model = UpAndDown(Neuron())
    variables = make_variables(model, rng, features, levels, train=False)
    arguments = model, variables, features, levels
    shapes, totals, _ = count(*arguments, train=False)
    # Padding is not counted, be it more or less.
    wide = distinct_levels(coords, padding=64)
    assert len(wide[0].coords) > len(levels[0].coords)
    padded = jnp.asarray(pad_features(rows, rows=len(wide[0].coords)))
    _, found, _ = count(model, variables, padded, wide, train=False)
    assert found == totals
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    down, up, linear = account.layers
    assert [shape.takes_spikes for shape in shapes] == [False, True, True]
    assert (up.shape.level_in, up.shape.level_out) == (1, 0)
    assert (linear.shape.level_in, linear.shape.level_out) == (0, 0)
    assert up.shape.parameters == 8 * 4 * 4 + 2 * 4
    assert linear.shape.parameters == 4 * 3 + 3
    assert up.totals.pairs == down.totals.pairs == len(coords)
    fine, coarse = (np.asarray(n.coords)[: int(n.voxels_needed)] for n in levels)
    # A dense layer up multiplies each cell of the coarse grid by eight matrices; one
    # down does for each of its outputs, which are the same cells.
    assert up.dense_macs == grid_cells(coarse) * 8 * 4 * 4
    assert down.dense_macs == grid_cells(coarse) * 8 * 3 * 4
    assert linear.dense_macs == grid_cells(fine) * 4 * 3
    inputs, _, _ = watch_once(*arguments, train=False)
    events = to_events(np.asarray(inputs["up"])[: len(coarse)], levels=4)
    kernel = np.asarray(variables["params"]["up"]["kernel"])
    result = inverse_events(events, coarse, fine, kernel, make_kernel(2, stride=2))
    assert up.synaptic_operations == result.synaptic_operations > 0
    check_linear(linear, np.asarray(inputs["linear"]), fine)


def check_linear(layer, inputs, coords):
    events = to_events(inputs[: len(coords)], levels=4)
    kernel = np.ones((layer.shape.c_in, layer.shape.c_out), np.float32)
    result = linear_events(events, coords, kernel)
    assert layer.synaptic_operations == result.synaptic_operations > 0
    assert layer.totals.pairs == layer.totals.voxels_in == len(coords)
    assert layer.equivalent_macs == len(coords) * kernel.size
    by_step = np.bincount(events.time, minlength=events.binary_steps)
    neurons = len(coords) * layer.shape.c_in
    np.testing.assert_allclose(np.ravel(layer.firing_rates), by_step / neurons)


class Readers(nn.Module):
    """Linear layers on spikes, which are given: two on the same, one on a copy."""

    @nn.compact
    def __call__(self, features, levels):
        spikes = features[:, None]
        for name in ("one", "two"):
            SpikeDense(2, name=name)(spikes)
        return SpikeDense(5, name="copy")(spikes + 0)


def read_spikes(rng, spikes=None):
    coords = random_coords(rng)
    levels = distinct_levels(coords)
    if spikes is None:
        spikes = rng.integers(0, 5, (len(coords), 3))
        spikes[rng.random(len(coords)) < 0.4] = 0
    rows = len(levels[0].coords)
    features = jnp.asarray(pad_features(spikes.astype(np.float32), rows=rows))
    variables = make_variables(Readers(), rng, features, levels)
    return coords, features, count(Readers(), variables, features, levels)


def test_silent_voxels_of_linear_layers_are_voxels(rng):
    coords, features, (shapes, totals, _) = read_spikes(rng)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    silent = ~np.asarray(features)[: len(coords)].any(1)
    assert 10 < silent.sum() < len(coords) - 10
    for layer in account.layers:
        check_linear(layer, np.asarray(features)[:, None], coords)
        assert (layer.lookups, layer.traffic["table"]) == (0, 0)  # no neighbours


def test_a_neuron_that_feeds_two_layers_is_counted_once(rng):
    coords, features, (shapes, totals, _) = read_spikes(rng)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    one, two, copy = account.layers
    assert [shape.same_input_as for shape in shapes] == [None, "one", None]
    neurons, spikes = 3 * len(coords), int(features.sum())
    assert [layer.neurons for layer in account.layers] == [neurons] * 3
    assert [x.membrane_bytes for x in account.layers] == [4 * neurons, 0, 4 * neurons]
    assert one.updates["add"] - two.updates["add"] == 4 * neurons
    # Written once, and read by each layer.
    found = [layer.traffic["inputs"] for layer in account.layers]
    assert found == [8 * spikes, 4 * spikes, 8 * spikes]
    assert (one.traffic["membranes"], two.traffic["membranes"]) == (4 * neurons, 0)
    assert copy.firing_rate == two.firing_rate
    told = describe_account(account)
    assert told["membrane_bytes_per_cloud"] == 4 * neurons
    assert "paper_compatible" not in told["energy_mj_per_cloud"]


@pytest.mark.parametrize("wrong", [np.nan, 0.5, -1, 5])
def test_what_is_no_spike_is_refused_with_its_layer(rng, wrong):
    spikes = np.zeros((len(random_coords(np.random.default_rng(0))), 3))
    spikes[[3, 5, 5], [0, 0, 2]] = wrong
    spikes[7] = 4
    message = "one: 3 of its inputs are no spikes, which are whole numbers from 0 to 4"
    with pytest.raises(ValueError, match=message):
        read_spikes(rng, spikes)


def test_rows_of_a_linear_layer_that_fit_two_levels_are_refused(rng):
    coords = random_coords(rng, extent=(5, 6, 7))
    fine, coarse = fit_capacity([find_levels(coords, num_levels=2)])
    capacity = (fine, dataclasses.replace(coarse, voxels=fine.voxels))
    levels = build_pyramid(coords, num_levels=2, capacity=capacity)
    features = np.zeros((len(levels[0].coords), 3), np.float32)
    variables = make_variables(Readers(), rng, features, levels)
    message = f"one: level 0 and level 1 have its {fine.voxels} rows"
    with pytest.raises(ValueError, match=message):
        describe_layers(Readers(), variables, features, levels)
    few = jax.tree.map(jnp.asarray, levels[:1])
    with pytest.raises(ValueError, match="one: no level and not the clouds have its 9"):
        jax.eval_shape(
            functools.partial(count_operations, Readers(), spike_levels=4),
            variables,
            features[:9],
            few,
        )


def test_a_head_on_as_many_clouds_as_a_level_has_rows_is_on_the_clouds(network):
    model, variables, features, levels = network
    options = {"num_clouds": len(levels[1].coords), "train": False}
    *_, head = describe_layers(model, variables, features, levels, **options)
    assert (head.name, head.level_in, head.level_out) == ("head", None, None)


class Twice(nn.Module):
    """A layer that is called twice."""

    @nn.compact
    def __call__(self, features, levels):
        conv = SparseConv(3, name="shared")
        x = features[:, None]
        for _ in range(2):
            x = conv(x, levels[0].submanifold, num_out=len(features))
        return x


def test_a_layer_that_is_called_twice_is_named(network):
    _, _, features, levels = network
    model = Twice()
    variables = make_variables(model, np.random.default_rng(0), features, levels)
    with pytest.raises(ValueError, match="shared is called twice in one pass"):
        describe_layers(model, variables, features, levels)
    run = functools.partial(count_operations, model, spike_levels=4)
    with pytest.raises(ValueError, match="shared is called twice in one pass"):
        jax.eval_shape(run, variables, features, levels)


class OwnMap(nn.Module):
    """A convolution along a map that it makes itself."""

    @nn.compact
    def __call__(self, features, levels):
        own = levels[0].submanifold
        own = own._replace(senders=own.senders + 0)
        rows = len(features)
        return SparseConv(2, name="own")(features[:, None], own, num_out=rows)


def test_a_map_that_belongs_to_no_level_is_named(network):
    _, _, features, levels = network
    variables = make_variables(OwnMap(), np.random.default_rng(0), features, levels)
    with pytest.raises(ValueError, match="own: its kernel map is none of the levels"):
        describe_layers(OwnMap(), variables, features, levels)


def test_a_map_that_was_cut_is_not_counted(network):
    model, variables, features, levels = network
    fine = levels[0].submanifold
    cut = fine._replace(blocks_needed=fine.blocks_needed * 0 + 10**6)
    levels = (levels[0]._replace(submanifold=cut), *levels[1:])
    with pytest.raises(ValueError, match="stem/unit0: its kernel map overflows"):
        classify(model, variables, features, levels)


def test_other_variables_and_foreign_maps_are_named(network):
    model, variables, features, levels = network
    options = {"num_clouds": 2, "train": False}
    wide = model.clone(num_classes=7)
    with pytest.raises(ValueError, match=r"head/bias is \(5,\).*needs \(7,\).*variant"):
        describe_layers(wide, variables, features, levels, **options)
    few = {"params": dict(variables["params"]), "batch_stats": variables["batch_stats"]}
    del few["params"]["head"]
    with pytest.raises(ValueError, match=r"head/\w+ is missing"):
        describe_layers(model, few, features, levels, **options)
    shapes, totals, _ = classify(model, variables, features, levels)
    with pytest.raises(ValueError, match="0 clouds without any voxel"):
        make_account(shapes, totals, clouds=0, spike_levels=4)
    with pytest.raises(ValueError, match="without any voxel"):
        make_account(shapes, {}, clouds=1, spike_levels=4)
