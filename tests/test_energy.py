"""The account: counts against loops and events, prices by hand, XLA's own analysis."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from tiny_run import make_data, write_run

from e3dsnn_jax import energy_command, figures
from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.clouds import CloudSubset
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.energy import (
    HOROWITZ_45NM,
    ann_energy,
    exact_energy,
    make_account,
    rate_energy,
)
from e3dsnn_jax.energy_report import (
    describe_account,
    format_account,
    published_energy,
    published_layer_flops,
)
from e3dsnn_jax.event_executor import strided_events, submanifold_events
from e3dsnn_jax.events import to_events
from e3dsnn_jax.kernel_map import make_kernel
from e3dsnn_jax.kernel_pairs import strided_pairs, submanifold_pairs
from e3dsnn_jax.layer_calls import replace_layers
from e3dsnn_jax.layer_shapes import LayerShape, describe_layers
from e3dsnn_jax.layers import SparseConv
from e3dsnn_jax.operations import (
    LayerTotals,
    add_counts,
    count_operations,
    count_spikes_and_pairs,
    grid_cells,
    pairs_of_senders,
)
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.metrics import spike_level
from e3dsnn_jax.training.saved import load_run
from e3dsnn_jax.voxels import join_clouds, pad_features
from tests import oracles
from tests.clouds_of_voxels import random_coords
from tests.test_classifier import PARAMETERS, make_batch
from tests.test_spike_driven import (
    UpAndDown,
    fixture_batch,
    make_network,
    make_variables,
)

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
    found = count_spikes_and_pairs(
        jnp.asarray(spikes),
        jnp.asarray(degree, jnp.int32),
        jnp.asarray(real),
        levels=levels,
        most_pairs=27,
    )
    np.testing.assert_array_equal(np.asarray(found[0]).sum(0), fired)
    np.testing.assert_array_equal(np.asarray(found[1]).sum(0), pair_spikes)


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
    fired, pair_spikes = jax.device_get(
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


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_the_account_is_what_the_event_executor_counts(rng, neuron):
    arguments = make_network(rng, neuron)
    model, *inputs = arguments
    shapes, totals, (logits, activations) = classify(*arguments)
    apply = functools.partial(model.apply, num_clouds=2, train=False)
    plain, _ = jax.jit(apply)(*inputs)
    np.testing.assert_array_equal(logits, plain)
    names = [shape.name for shape in shapes]
    assert names[:2] == ["stem/unit0", "stem/unit1"]
    assert [s.name for s in shapes if not s.takes_spikes] == ["stem/unit0", "head"]
    check_events_of_layers(arguments, shapes, totals, activations)
    head = totals["head"]
    assert (head.pairs, head.spikes) == (2, 0)


def check_events_of_layers(arguments, shapes, totals, activations):
    """Counts, rates, additions and outputs of every spiking layer, from its events."""
    model, variables, _, levels = arguments
    outputs = convolve_once(*arguments)
    account = make_account(shapes, totals, clouds=2, spike_levels=model.neuron.levels)
    for layer in account.layers:
        name = layer.shape.name
        if not layer.shape.takes_spikes:
            assert layer.synaptic_operations == 0
            continue
        level = levels[spike_level(name)]
        real = int(level.voxels_needed)
        coords = np.asarray(level.coords)[:real]
        spikes = np.asarray(activations[f"{name}/spikes"])[:real]
        events = to_events(spikes, levels=model.neuron.levels)
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
        neurons = real * layer.shape.c_in
        assert layer.neurons == neurons
        np.testing.assert_allclose(np.ravel(layer.firing_rates), by_step / neurons)
        assert layer.firing_rate == pytest.approx(by_step.mean() / neurons)
        # As in test_event_executor: the bound of rounding in float32.
        sizes = convolve(events, coords, np.abs(kernel), geometry).currents
        bound = (result.additions + 1) * UNIT * sizes
        ours = np.asarray(outputs[name])[: len(result.coords)]
        assert (np.abs(ours - result.currents) <= bound).all()


@functools.partial(jax.jit, static_argnames="model")
def convolve_once(model, variables, features, levels):
    """Outputs of every convolution, before BatchNorm."""
    outputs = {}

    def layer(call):
        outputs[call.name] = call.run()
        return outputs[call.name]

    arguments = model, variables, features, levels
    replace_layers(*arguments, layer=layer, num_clouds=2, train=False)
    return outputs


def check_t_on(voxels, rng):
    coords, features = join_clouds(voxels)
    levels = build_pyramid(coords, num_levels=5)
    features = jnp.asarray(pad_features(features, rows=len(levels[0].coords)))
    model = Classifier(VARIANTS["T"], 40)
    options = {"num_clouds": 2, "train": False}
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), features, levels, **options)
    )

    def fill(path, leaf):
        if path[-1].key != "kernel":
            return jnp.full(leaf.shape, float(path[-1].key in ("var", "scale")))
        terms = 8 * leaf.shape[-2]
        values = rng.standard_normal(leaf.shape) / np.sqrt(terms)
        return jnp.asarray(values, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    layers, totals, (_, activations) = classify(model, variables, features, levels)
    assert len(layers) == 3 + 4 * 4 + 1
    arguments = model, variables, features, levels
    check_events_of_layers(arguments, layers, totals, activations)


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
    layers, totals, (_, activations) = classify(*arguments)
    check_events_of_layers(arguments, layers, totals, activations)


@pytest.mark.slow
def test_every_layer_of_t_on_two_real_clouds(shared, rng):
    dataset = open_dataset(shared / "data" / "kicad40", "test")
    voxels = [
        voxelize_cloud(dataset[index], rng, voxel_size=0.1, normals=True, recipe=None)
        for index in (0, 200)
    ]
    check_t_on(voxels, rng)


@pytest.mark.parametrize(("variant", "expected"), PARAMETERS.items())
def test_parameters_are_all_accounted_for(rng, variant, expected):
    features, levels = make_batch(rng, levels=5, channels=6)
    model = Classifier(VARIANTS[variant], 40)
    options = {"num_clouds": 2, "train": False}
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), features, levels, **options)
    )
    layers = describe_layers(model, variables, features, levels, **options)
    assert sum(layer.parameters for layer in layers) == expected


def test_padding_is_not_counted(network):
    model, variables, features, levels = network
    _, padded, _ = classify(*network)
    small, tight = make_batch(np.random.default_rng(0))
    assert len(small) < len(features)
    voxels = [int(level.voxels_needed) for level in levels]
    assert [int(level.voxels_needed) for level in tight] == voxels
    _, found, _ = classify(model, variables, small, jax.tree.map(jnp.asarray, tight))
    assert found == padded


def test_a_network_without_spikes_multiplies(rng):
    model, variables, features, levels = make_network(rng, Neuron(relu=True))
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
    assert layers["head"].macs == 2 * 6 * 5
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
    shapes, totals, _ = classify(model, variables, features, levels)
    assert make_account(shapes, totals, clouds=2, spike_levels=4).notes == ()
    one = totals["stage0/down"]._replace(fired=((0,) * 4,), pair_spikes=(0,))
    some = make_account(shapes, totals | {"stage0/down": one}, clouds=2, spike_levels=4)
    assert some.notes == ("1 of 13 spiking layers never fired: stage0/down.",)


def one_layer(**changes):
    """An account of one layer whose numbers can be checked by hand."""
    shape = LayerShape("stem/unit1", True, 27, 3, 5, 2, 0, 0, 405)
    totals = LayerTotals(
        pairs=40,
        voxels_in=10,
        voxels_out=10,
        dense_positions=27 * 100,
        fired=((6, 2), (4, 0)),
        pair_spikes=(50, 30),
    )
    if not changes.get("takes_spikes", True):
        totals = totals._replace(fired=((0, 0),) * 2, pair_spikes=(0, 0))
    shape = shape._replace(**changes)
    return make_account((shape,), {shape.name: totals}, clouds=2, spike_levels=2)


def test_prices_by_hand():
    account = one_layer()
    (layer,) = account.layers
    assert layer.synaptic_operations == 80 * 5
    assert layer.equivalent_macs == 40 * 15
    assert layer.dense_macs == 2700 * 15
    assert layer.firing_rates == ((6 / 30, 2 / 30), (4 / 30, 0))
    assert layer.firing_rate == 12 / 120
    assert layer.rate_estimate == pytest.approx(12 / 30 * 600)
    assert layer.state_bytes == 120
    # Shifts: 10 voxels, 2 steps, 5 channels; 60 updates of 2 comparisons, integrating
    # and resetting.
    assert layer.updates == {"add": 100 + 60 * 4, "multiply": 60}
    assert layer.traffic == {
        "weights": 4 * 400,
        "state": 4 * (800 + 120),
        "spikes": 4 * 24,
        "addressing": 4 * 12 * 27,
        "address_additions": 12 * 27,
    }
    expected = {
        "compute": 0.9 * 400,
        "updates": 0.9 * 340 + 3.7 * 60,
        "weights": 2.5 * 1600,
        "state": 2.5 * 3680,
        "spikes": 2.5 * 96,
        "addressing": 2.5 * 1296 + 0.1 * 324,
    }
    assert layer.energy(HOROWITZ_45NM) == pytest.approx(expected)
    total = exact_energy(account)
    assert total["total"] == pytest.approx(sum(expected.values()) / 2)
    assert rate_energy(account) == pytest.approx(0.9 * 240 / 2)
    assert ann_energy(account) == pytest.approx(4.6 * 600 / 2)


def test_prices_of_real_inputs_by_hand():
    account = one_layer(takes_spikes=False)
    (layer,) = account.layers
    # Two time steps, each with every pair.
    assert (layer.macs, layer.neurons, layer.state_bytes) == (2 * 600, 0, 0)
    assert layer.equivalent_macs == 600
    assert layer.updates == {"add": 100, "multiply": 0}
    assert layer.traffic["state"] == 2 * 4 * 40 * (3 + 10)
    assert layer.traffic["weights"] == 2 * 4 * 600
    assert layer.traffic["addressing"] == 2 * 4 * 270
    assert layer.energy(HOROWITZ_45NM)["compute"] == pytest.approx(4.6 * 1200)


def test_constants_can_be_replaced():
    dear = HOROWITZ_45NM._replace(name="dear", add=9.0)
    account = one_layer()._replace(prices=dear)
    assert exact_energy(account)["compute"] == pytest.approx(9.0 * 200)
    assert "prices: dear" in format_account(account)
    assert describe_account(account)["prices_pj"]["add"] == 9.0
    assert HOROWITZ_45NM.multiply_accumulate == 4.6
    assert HOROWITZ_45NM.add == 0.9


def test_json_and_table_say_the_same(network):
    model, variables, features, levels = network
    shapes, totals, _ = classify(model, variables, features, levels)
    account = make_account(shapes, totals, clouds=2, spike_levels=4)
    told = json.loads(json.dumps(describe_account(account, source="here")))
    assert told["source"] == "here"
    layers = {layer["name"]: layer for layer in told["layers"]}
    assert list(layers) == [shape.name for shape in shapes]
    for key in ("macs", "synaptic_operations", "dense_macs", "parameters"):
        assert told[key] == sum(layer[key] for layer in layers.values())
    energies = told["energy_mj_per_cloud"]
    parts = [layer["energy_mj_per_cloud"] for layer in layers.values()]
    for part, energy in energies["exact"].items():
        if part != "total":
            assert energy == pytest.approx(sum(layer[part] for layer in parts))
    assert energies["exact"]["compute"] < energies["ann"]
    stem = [layers[f"stem/unit{index}"] for index in range(3)]
    flops = sum(2 * u["pairs"] * 16 - u["voxels"][0] for u in stem) / 2
    assert energies["paper_compatible_flops"] == flops
    table = format_account(account)
    for name in layers:
        assert f"\n{name} " in table
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


def test_an_untrained_run_is_told(tmp_path, monkeypatch):
    run = write_run(make_data(tmp_path))
    fresh = load_run(run)._replace(step=0)
    monkeypatch.setattr(energy_command, "load_run", lambda run, which: fresh)
    account, folder = energy_command.run_energy(run, clouds=2, out=tmp_path / "out")
    assert folder == tmp_path / "out"
    assert account.clouds == 2
    assert account.notes[0].startswith("The run has not been trained yet")
    stored = json.loads((folder / "energy.json").read_text())
    assert stored["notes"][0] == account.notes[0]


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


def published_cloud(seed):
    """The random cloud of the published script: 9,830 points in 64 cells an axis."""
    cells = np.random.default_rng(seed).integers(0, 64, (9830, 3))
    coords, rows = np.unique(cells, axis=0, return_counts=True)
    return np.insert(coords, 0, 0, axis=1).astype(np.int32), rows


@pytest.mark.parametrize("seed", range(3))
def test_the_published_rule_gives_the_published_numbers(seed):
    coords, rows = published_cloud(seed)
    pairs = submanifold_pairs(coords, make_kernel(3))
    # Every row of a duplicate asks for its neighbours; one of them answers.
    asked = int(rows[pairs.receivers].sum())
    flops = 3 * published_layer_flops(asked, int(rows.sum()), 16)
    assert flops == pytest.approx(2.92e7, rel=0.04)
    assert 1e-9 * published_energy(flops) == pytest.approx(0.13432, rel=0.04)
    assert 1e-9 * published_energy(2.92e7) == pytest.approx(0.13432, rel=1e-4)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kind", ["submanifold", "strided"])
@pytest.mark.parametrize(("c_in", "c_out"), [(6, 16), (16, 16), (16, 32)])
def test_on_a_full_grid_pairs_are_what_xla_counts(kind, c_in, c_out, size):
    coords = np.argwhere(np.ones((1, size, size, size))).astype(np.int32)
    if kind == "submanifold":
        pairs = submanifold_pairs(coords, make_kernel(3))
        edge, stride, padding = 3, 1, "SAME"
    else:
        _, pairs = strided_pairs(coords, make_kernel(2, stride=2), extent=(size,) * 3)
        edge, stride, padding = 2, 2, "VALID"
    dense = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x,
            w,
            (stride,) * 3,
            padding,
            dimension_numbers=("NXYZC", "XYZIO", "NXYZC"),
        )
    )
    grid = jax.ShapeDtypeStruct((1, size, size, size, c_in), jnp.float32)
    kernel = jax.ShapeDtypeStruct((edge,) * 3 + (c_in, c_out), jnp.float32)
    analysis = dense.lower(grid, kernel).compile().cost_analysis()
    ours = 2 * int(pairs.counts.sum()) * c_in * c_out
    assert ours == pytest.approx(analysis["flops"], rel=0.01)


def test_grid_cells():
    coords = np.array([[0, 1, 2, 3], [0, 0, 5, 0], [2, 0, 0, 0], [-1, -1, -1, -1]])
    assert grid_cells(coords) == 2 * 6 * 4 + 1
    assert grid_cells(coords[:0]) == 0
    far = np.array([[0, 2**31 - 2, 2**31 - 2, 2**31 - 2]])
    assert grid_cells(far) == (2**31 - 1) ** 3


def test_a_decoder_is_accounted_for(rng):
    coords = random_coords(rng, extent=(5, 6, 7))
    levels = jax.tree.map(jnp.asarray, build_pyramid(coords, num_levels=2))
    features = jnp.asarray(rng.normal(size=(len(levels[0].coords), 3)), jnp.float32)
    model = UpAndDown(Neuron())
    variables = make_variables(model, rng, features, levels, train=False)
    shapes, totals, _ = count(model, variables, features, levels, train=False)
    _, up, linear = shapes
    assert [shape.takes_spikes for shape in shapes] == [False, True, True]
    assert (up.level_in, up.level_out) == (1, 0)
    assert up.parameters == 8 * 4 * 4 + 2 * 4
    assert linear.parameters == 4 * 3 + 3
    assert totals["up"].pairs == totals["down"].pairs == len(coords)
    assert totals["linear"].pair_spikes == (totals["linear"].spikes,)
    assert totals["linear"].spikes > 0


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
