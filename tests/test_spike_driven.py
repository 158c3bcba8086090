"""Binary inference equals integer inference: networks, float64, fixtures, the head."""

import contextlib
import functools
from collections import defaultdict

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax import binary_steps, spike_driven
from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.binary_steps import binary_conv
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.energy import make_account
from e3dsnn_jax.event_executor import strided_events, submanifold_events
from e3dsnn_jax.events import to_events
from e3dsnn_jax.interop import import_state
from e3dsnn_jax.kernel_map import invert, make_kernel
from e3dsnn_jax.layer_calls import SpikeDense, replace_layers
from e3dsnn_jax.layer_shapes import describe_layers
from e3dsnn_jax.layers import Compute, MaskedBatchNorm, SparseConv
from e3dsnn_jax.operations import LayerTotals, pairs_of_senders
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.spike_driven import (
    compare_runs,
    in_float64,
    real_layers,
    run_binary,
    run_integer,
)
from e3dsnn_jax.spike_readout import (
    account_on_spikes,
    classifier_on_spikes,
    readout_units,
)
from e3dsnn_jax.training.metrics import spike_level
from e3dsnn_jax.voxels import join_clouds, pad_features
from experiments.random_variables import random_variables
from tests import oracles
from tests.clouds_of_voxels import random_coords
from tests.test_binary_steps import largest
from tests.test_classifier import TINY, make_batch
from tests.test_project import ROOT

# Every kind of unit once, and two blocks that end on the membrane of the last stage.
SMALL = Architecture(3, 4, (6,), (2,))
PUBLISHED = Neuron(4, 1)
# What the slow tests add: no time steps, no levels, neither.
NEURONS = [
    Neuron(2, 2),
    *(
        pytest.param(Neuron(levels, time), marks=pytest.mark.slow)
        for levels, time in ((4, 1), (1, 1), (2, 1), (1, 4))
    ),
]


def make_variables(model, rng, *inputs, **options):
    """Variables with which every layer fires, and norms and biases do something."""
    return random_variables(
        model, rng, *inputs, deviation=0.4, mixed_norms=True, **options
    )


def make_network(rng, neuron=PUBLISHED, architecture=TINY, **options):
    features, levels = make_batch(rng, slack=1.5, levels=architecture.num_levels)
    levels = jax.tree.map(jnp.asarray, levels)
    model = Classifier(architecture, 5, neuron, **options)
    variables = make_variables(model, rng, features, levels, num_clouds=2, train=False)
    return model, variables, features, levels


# One program for each network and number type, whichever test asks for it.
@functools.partial(jax.jit, static_argnames=("function", "model"))
def compiled(function, model, variables, features, levels):
    return function(model, variables, features, levels)


def integer(model, *inputs):
    return run_integer(model, *inputs, num_clouds=2, train=False)


def binary(model, variables, features, levels):
    """What `run_binary` returns, and the logits of the head on spikes."""
    results = run_binary(
        model,
        variables,
        features,
        levels,
        num_clouds=2,
        train=False,
    )
    head = classifier_on_spikes(model, variables, results[1], levels, num_clouds=2)
    return results, head


def integer_and_each_layer(model, *inputs):
    """The network on integer spikes; of each layer, both outputs of its spikes."""
    outputs = {}

    def layer(call):
        own = call.run()
        if call.takes_spikes:
            on_steps = binary_conv(
                call.inputs,
                call.kernel,
                call.kernel_map,
                num_out=call.num_out,
                levels=model.neuron.levels,
            )
            outputs[call.name] = own, on_steps
        return own

    results = replace_layers(model, *inputs, layer=layer, num_clouds=2, train=False)
    return results, outputs


@contextlib.contextmanager
def float64():
    """64-bit numbers, where a plain `arange` and 32-bit coordinates are two types."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_in_float64_networks_agree_to_1e_9(rng, neuron):
    arguments = make_network(rng, neuron, SMALL)
    check_in_float64(*arguments)
    with float64():
        _, activations = compiled(integer, *in_float64_but_model(*arguments))
    for name, values in activations.items():
        if name.endswith("/spikes"):
            assert 0.02 < (np.asarray(values) > 0).mean() < 0.9


def in_float64_but_model(model, *inputs):
    return model, *in_float64(inputs)


def check_in_float64(model, *inputs):
    with float64():
        arguments = in_float64_but_model(model, *inputs)
        exact, activations = compiled(integer, *arguments)
        (logits, unrolled), head = compiled(binary, *arguments)
        assert logits.dtype == np.float64
        assert np.abs(logits - exact).max() < 1e-9
        assert np.abs(head - exact).max() < 1e-9
        assert activations.keys() == unrolled.keys()
        for name, values in activations.items():
            np.testing.assert_allclose(unrolled[name], values, atol=1e-9, rtol=0)
    return exact


def float64_network(model, variables, features, levels):
    """Logits and spikes in NumPy: matrices, loops over pairs, one unit at a time."""
    params = variables["params"]["backbone"]
    statistics = variables["batch_stats"]["backbone"]
    spikes = {}

    def unit(name, inputs, kernel_map, spiking=True):
        leaf, found = params, statistics
        for word in name.split("/"):
            leaf, found = leaf[word], found[word]
        if spiking:
            over_time = np.moveaxis(inputs, 1, 0)
            constants = {"levels": model.neuron.levels, "decay": model.neuron.decay}
            fired = oracles.python_integer_lif(over_time, **constants)
            inputs = spikes[f"{name}/spikes"] = np.moveaxis(fired, 0, 1)
        rows_out = int(kernel_map.rows[1])
        padded = np.concatenate([inputs, np.zeros((1, *inputs.shape[1:]))])
        kernel = np.asarray(leaf["conv"]["kernel"], np.float64)
        out = np.zeros((rows_out + 1, inputs.shape[1], kernel.shape[2]))
        blocks = (kernel_map.offset, kernel_map.senders, kernel_map.receivers)
        for offset, senders, receivers in zip(*map(np.asarray, blocks), strict=True):
            np.add.at(out, receivers, padded[senders] @ kernel[offset])
        norm = {
            name: np.asarray(a, "f8")
            for name, a in (leaf["norm"] | found["norm"]).items()
        }
        out = (out[:-1] - norm["mean"]) / np.sqrt(norm["var"] + 1e-3)
        return out * norm["scale"] + norm["bias"]

    def real(values, level):
        return np.where(np.asarray(level.coords)[:, :1, None] >= 0, values, 0)

    first = levels[0].submanifold
    x = unit("stem/unit0", np.asarray(features, "f8")[:, None], first, False)
    x = real(np.repeat(x, model.neuron.time_steps, 1), levels[0])
    for index in (1, 2):
        x = real(unit(f"stem/unit{index}", x, first), levels[0])
    for stage, depth in enumerate(model.architecture.stage_depths):
        below, level = levels[stage], levels[stage + 1]
        x = real(unit(f"stage{stage}/down", x, below.down), level)
        for block in range(depth):
            name = f"stage{stage}/block{block}"
            a = x + real(unit(f"{name}/unit0", x, level.submanifold), level)
            x = real(unit(f"{name}/unit1", a, level.submanifold), level)
            x = a + real(unit(f"{name}/unit2", x, level.submanifold), level)
    batch = np.asarray(levels[-1].coords)[:, 0]
    pooled = np.stack([x[batch == cloud].mean((0, 1)) for cloud in range(2)])
    head = variables["params"]["head"]
    return pooled @ np.asarray(head["kernel"], "f8") + np.asarray(head["bias"]), spikes


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_in_float64_both_are_the_network_by_loops(rng, neuron):
    model, variables, features, levels = make_network(rng, neuron, SMALL)
    expected, spikes = float64_network(model, variables, features, levels)
    with float64():
        arguments = in_float64((variables, features, levels))
        (logits, activations), head = compiled(binary, model, *arguments)
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    np.testing.assert_allclose(head, expected, atol=1e-9)
    for name, values in spikes.items():
        np.testing.assert_array_equal(activations[name], values)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_in_float32_layers_fed_the_same_spikes_agree(rng, neuron):
    model, variables, features, levels = make_network(rng, neuron, SMALL)
    one, outputs = compiled(integer_and_each_layer, model, variables, features, levels)
    assert len(outputs) == 9
    for own, on_steps in outputs.values():
        assert largest(on_steps, own) < 1e-6
    # End to end: a membrane at a threshold may fall to the other side.
    other, head = compiled(binary, model, variables, features, levels)
    flips = compare_runs(one, other, levels)
    assert sum(flips.spikes.values()) <= 1e-3 * sum(flips.neurons.values())
    assert flips.predictions == 0
    assert largest(head, other[0]) < 1e-5


@pytest.mark.parametrize(
    ("neuron", "blocks"), [(Neuron(4, 1), 0), (Neuron(2, 2), 1), (Neuron(1, 4), 0)]
)
def test_a_network_feeds_zeros_and_ones_alone_to_every_layer(
    rng, neuron, blocks, monkeypatch
):
    architecture = Architecture(3, 4, (4,), (blocks,))
    arguments = make_network(rng, neuron, architecture)
    marked, _ = check_what_is_fed(monkeypatch, neuron, *arguments, num_clouds=2)
    assert [name for name, real in marked.items() if real] == ["stem/unit0", "head"]
    assert len(marked) == 5 + 3 * blocks


@pytest.mark.parametrize("blocks", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_head_on_spikes_is_fed_zeros_and_ones_alone(rng, blocks, monkeypatch):
    architecture = Architecture(3, 4, (4,), (blocks,))
    model, *inputs = make_network(rng, Neuron(2, 2), architecture)
    add_steps = binary_steps.add_binary_steps
    left = []

    def watched_steps(spikes, step, *, levels):
        name = left.pop(0)

        def watched(rows):
            check_spikes = lambda rows, name=name: fed[name].append(np.asarray(rows))
            jax.debug.callback(check_spikes, rows, ordered=True)
            return step(rows) + spoilt[name]

        return add_steps(spikes, watched, levels=levels)

    # The layers themselves have their own reference to it.
    monkeypatch.setattr(binary_steps, "add_binary_steps", watched_steps)
    names = readout_units(model)
    assert len(names) == 1 + 2 * blocks
    fed, spoilt = defaultdict(list), dict.fromkeys(names, jnp.zeros(()))

    @jax.jit
    def run(added, *inputs):
        spoilt.update(added)
        left[:] = names
        options = {"num_clouds": 2, "train": False}
        return run_binary(model, *inputs, head_on_spikes=True, **options)

    none = dict(spoilt)
    logits, activations = run(none, *inputs)
    jax.effects_barrier()
    assert not left
    assert np.isfinite(logits).all()
    for name in names:
        assert len(fed[name]) == 4
        assert set(np.unique(fed[name])) == {0, 1}
        by_time = np.reshape(fed[name], (2, 2, *fed[name][0].shape)).sum(1)
        spikes = np.asarray(activations[f"{name}/spikes"])
        np.testing.assert_array_equal(by_time, np.moveaxis(spikes, 1, 0))
    # The logits are made of these very steps, each of them.
    for name in names:
        wrong, _ = run(none | {name: jnp.asarray(np.nan)}, *inputs)
        assert np.isnan(wrong).all(), name
    monkeypatch.undo()
    check_what_is_fed(
        monkeypatch,
        model.neuron,
        model,
        *inputs,
        run_with={"head_on_spikes": True},
        num_clouds=2,
    )


def test_a_decoder_feeds_zeros_and_ones_alone_to_every_layer(rng, monkeypatch):
    model, *inputs = make_decoder(rng, Neuron(3, 1))
    marked, fed = check_what_is_fed(monkeypatch, model.neuron, model, *inputs)
    assert marked == {"down": True, "up": False, "linear": False}
    # And it is with these steps that the network computes.
    plain = jax.jit(functools.partial(model.apply, train=False))(*inputs)
    assert largest(fed, plain) < 1e-6


def check_what_is_fed(
    monkeypatch, neuron, model, variables, *inputs, run_with=None, **options
):
    """Records what each layer multiplies by, and what spikes the network sent it."""
    options |= {"train": False}
    marked = real_layers(model, variables, *inputs, **options)
    names = [name for name, real in marked.items() if not real]
    fed, sent = defaultdict(list), {}
    linear_step = spike_driven.linear_step

    @jax.jit
    def run(added, variables, *inputs):
        def watched_step(call):
            step = linear_step(call)
            jax.debug.callback(
                lambda spikes, name=call.name: sent.update({name: np.asarray(spikes)}),
                call.inputs,
            )

            def watched(rows):
                jax.debug.callback(
                    lambda values, name=call.name: fed[name].append(np.asarray(values)),
                    rows,
                    ordered=True,
                )
                return step(rows) + added[call.name]

            return watched

        monkeypatch.setattr(spike_driven, "linear_step", watched_step)
        more = {"neuron": neuron} | (run_with or {})
        return run_binary(model, variables, *inputs, **more, **options)

    none = dict.fromkeys(names, jnp.zeros(()))
    outputs = jax.block_until_ready(run(none, variables, *inputs))
    jax.effects_barrier()
    assert fed.keys() == sent.keys() == set(names)
    for name, steps in fed.items():
        assert len(steps) == neuron.time_steps * neuron.levels
        assert set(np.unique(steps)) == {0, 1}
        by_time = np.reshape(steps, (neuron.time_steps, neuron.levels, *steps[0].shape))
        spikes = np.moveaxis(sent[name], 1, 0)
        np.testing.assert_array_equal(by_time.sum(1), spikes)
        assert spikes.max() > 1 or neuron.levels == 1
    assert np.isfinite(jax.tree.leaves(outputs)[0]).all()
    # The network computes with these very steps: spoilt ones reach its outputs.
    for name in names:
        spoilt = run(none | {name: jnp.asarray(np.nan)}, variables, *inputs)
        # With the head on spikes the last layer's own outputs are not in the logits.
        leaves = jax.tree.leaves(spoilt)
        seen = leaves if run_with else leaves[:1]
        assert any(np.isnan(leaf).any() for leaf in seen), name
    return marked, outputs


def test_flips_are_counted_without_padding(rng):
    _, _, _, levels = make_network(rng)
    real = [int(level.voxels_needed) for level in levels]
    rows = [len(level.coords) for level in levels]
    assert real[1] < rows[1]
    names = "stem/unit1/spikes", "stage0/down/spikes", "stage0/block0/unit1/spikes"
    one = {
        name: np.zeros((rows[spike_level(name.removesuffix("/spikes"))], 2, 3), "f4")
        for name in names
    }
    one[names[0]][0] = 4
    other = {name: spikes.copy() for name, spikes in one.items()}
    other[names[0]][0, 1, :2] = 2
    other[names[2]][real[1] - 1] = 3
    other[names[2]][real[1] :] = 1
    one |= {"stem": np.ones(3)}
    one, other = jax.tree.map(jnp.asarray, (one, other))
    logits = jnp.asarray([[0.0, 1.0], [2.0, 1.0]])
    flips = compare_runs((logits, one), (logits.at[0, 0].set(2), other), levels)
    assert flips.spikes == dict(zip(names, (2, 0, 6), strict=True))
    compared = (6 * real[0], 6 * real[0], 6 * real[1])
    assert flips.neurons == dict(zip(names, compared, strict=True))
    assert flips.sent == dict(zip(names, (24, 0, 0), strict=True))
    assert flips.predictions == 1


def test_the_head_moves_onto_spikes_in_one_call(rng):
    architecture = Architecture(3, 4, (4,), (0,))
    model, *inputs = make_network(rng, Neuron(2, 2), architecture)
    options = {"num_clouds": 2, "train": False}
    run = functools.partial(run_binary, model, **options)
    logits, activations = jax.jit(functools.partial(run, head_on_spikes=True))(*inputs)
    plain, expected = compiled(integer, model, *inputs)
    assert largest(logits, plain) < 1e-5
    assert activations.keys() == expected.keys() - {"pooled"}
    # Levels may be named, as in a call of the network.
    variables, features, levels = inputs
    named = functools.partial(run, variables, features, levels=levels)
    shape, _ = jax.eval_shape(functools.partial(named, head_on_spikes=True))
    assert shape.shape == logits.shape


def test_additions_of_the_head_on_spikes_are_those_of_its_events(rng):
    neuron = Neuron(2, 2)
    model, variables, features, levels = make_network(rng, neuron, SMALL)
    (logits, activations), _ = compiled(binary, model, variables, features, levels)
    leaf = lambda tree, name: functools.reduce(dict.get, name.split("/"), tree)
    head = np.asarray(variables["params"]["head"]["kernel"], "f8")
    batch = np.asarray(levels[1].coords)[:, 0]
    total = np.broadcast_to(variables["params"]["head"]["bias"], (2, 5)).astype("f8")
    pair_spikes, additions, own = {}, {}, {}
    names = readout_units(model)
    assert len(names) == 5
    for name in names:
        unit = leaf(variables["params"]["backbone"], name)
        norm = unit["norm"] | leaf(variables["batch_stats"]["backbone"], name)["norm"]
        scale, bias, mean, var = (
            np.asarray(norm[key], "f8") for key in ("scale", "bias", "mean", "var")
        )
        factor = scale / np.sqrt(var + 1e-3)
        level = levels[spike_level(name)]
        rows = int(level.voxels_needed)
        coords = np.asarray(level.coords)[:rows]
        spikes = np.asarray(activations[f"{name}/spikes"])
        events = to_events(spikes[:rows], levels=neuron.levels)
        kernel = np.asarray(unit["conv"]["kernel"])
        down = name.endswith("down")
        geometry = make_kernel(2, stride=2) if down else make_kernel(3)
        convolve = strided_events if down else submanifold_events
        folded = kernel.astype("f8") * factor @ head
        result = convolve(events, coords, folded, geometry)
        additions[name] = result.synaptic_operations
        own[name] = convolve(events, coords, kernel, geometry).synaptic_operations
        kernel_map = level.down if down else level.submanifold
        degree = np.asarray(pairs_of_senders(kernel_map, len(spikes)))
        pair_spikes[name] = int((spikes.sum((1, 2)) * degree).sum())
        readout = result.currents.mean(1) + (bias - mean * factor) @ head
        for cloud in range(2):
            total[cloud] += readout[batch[: len(readout)] == cloud].mean(0)
    assert all(additions.values())
    assert largest(logits, total) < 1e-5
    check_account_on_spikes(
        (model, variables, features, levels), pair_spikes, additions, own
    )


def check_account_on_spikes(network, pair_spikes, additions, own):
    """The account of a head on spikes, against what the event executor counted."""
    model, variables, features, levels = network
    options = {"num_clouds": 2, "train": False}
    shapes = describe_layers(model, variables, features, levels, **options)
    totals = {
        shape.name: LayerTotals(
            pairs=2,
            voxels_in=2,
            voxels_out=2,
            fired=((1, 1),) * 2,
            pair_spikes=(pair_spikes.get(shape.name, 3 * shape.takes_spikes),),
        )
        for shape in shapes
    }
    plain = make_account(shapes, totals, clouds=2, spike_levels=2)
    moved = account_on_spikes(model, plain)
    last = readout_units(model)[-1]
    for one, other in zip(plain.layers, moved.layers, strict=True):
        name = one.shape.name
        # The same network without spikes is what it was.
        assert other.equivalent_macs == one.equivalent_macs
        expected = one.synaptic_operations
        if name in additions:
            assert expected == own[name]
            expected = additions[name] + (0 if name == last else own[name])
        assert other.synaptic_operations == expected
        if name == "head":
            assert one.macs == 2 * 6 * 5
            assert (other.macs, sum(other.traffic.values())) == (0, 0)
            assert sum(other.energy(moved.prices).values()) == 0
        elif name == last:
            assert other.sizes["weights"] == 4 * 27 * 6 * 5
            assert other.sizes["sums"] == 4 * 5
        elif name not in additions:
            assert other == one
    difference = sum(additions.values()) - own[last]
    assert f"takes spikes: {difference / 2:+.4g} additions a cloud" in moved.notes[-1]
    assert "30 products fewer" in moved.notes[-1]


def test_the_head_on_spikes_folds_the_norms_as_the_network_has_them(rng, monkeypatch):
    wide = functools.partial(MaskedBatchNorm, epsilon=0.5)
    monkeypatch.setattr("e3dsnn_jax.layers.MaskedBatchNorm", wide)
    architecture = Architecture(3, 4, (4,), (0,))
    model, *inputs = make_network(rng, Neuron(2, 1), architecture)
    options = {"num_clouds": 2, "train": False}
    both = lambda *inputs: (
        run_binary(model, *inputs, head_on_spikes=True, **options)[0],
        run_binary(model, *inputs, **options)[0],
    )
    moved, plain = jax.jit(both)(*inputs)
    assert largest(moved, plain) < 1e-5


def test_precisions_of_the_training_are_not_looked_at(rng):
    architecture = Architecture(3, 4, (), ())
    model, *inputs = make_network(rng, Neuron(2, 1), architecture)
    half = model.clone(compute=Compute("bfloat16"))
    options = {"num_clouds": 2, "train": False}

    @jax.jit
    def run(*inputs):
        runs = [run_integer(each, *inputs, **options) for each in (model, half)]
        runs += [run_binary(each, *inputs, **options) for each in (model, half)]
        return [*runs, half.apply(*inputs, **options)]

    *runs, rounded = run(*inputs)
    for one, other in (runs[:2], runs[2:]):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    # Which the network itself does.
    assert largest(rounded[1]["stem/unit0"], runs[0][1]["stem/unit0"]) > 1e-4


def fixture_batch(path):
    """Network, variables and batch of a reference fixture of the classifier."""
    with np.load(path) as archive:
        fixture = {name: archive[name] for name in archive.files}
    state = {
        name.removeprefix("state/"): array
        for name, array in fixture.items()
        if name.startswith("state/")
    }
    variables, _ = import_state(state, source=str(path))
    architecture, classes = architecture_of(variables)
    ends = fixture["input/offset"]
    batch = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    coords = np.column_stack([batch, fixture["input/grid_coord"]]).astype(np.int32)
    order = np.lexsort(coords.T[::-1])
    levels = build_pyramid(coords[order], num_levels=architecture.num_levels)
    features = pad_features(fixture["input/feat"][order], rows=len(levels[0].coords))
    model = Classifier(architecture, classes)
    return model, variables, features, levels, fixture["eval/out"]


def check_fixture(path):
    model, variables, features, levels, expected = fixture_batch(path)
    arguments = model, variables, features, levels
    one, outputs = compiled(integer_and_each_layer, *arguments)
    assert largest(one[0], expected) < 1e-5
    assert len(outputs) == 2 + sum(1 + 3 * n for n in model.architecture.stage_depths)
    for own, on_steps in outputs.values():
        assert largest(on_steps, own) < 1e-6
    other, head = compiled(binary, *arguments)
    # No membrane of the fixtures lies within 2e-4 of a threshold.
    flips = compare_runs(one, other, levels)
    assert set(flips.spikes.values()) == {0}
    assert flips.predictions == 0
    assert largest(other[0], expected) < 1e-5
    assert largest(head, expected) < 1e-5


def check_fixture_in_float64(path):
    *arguments, expected = fixture_batch(path)
    assert largest(check_in_float64(*arguments), expected) < 1e-5


GOLDEN = ROOT / "tests" / "golden" / "cls_tiny_seed0.npz"


def test_the_small_reference_network_answers_as_published_on_binary_spikes():
    *arguments, expected = fixture_batch(GOLDEN)
    (logits, _), head = compiled(binary, *arguments)
    assert largest(logits, expected) < 1e-5
    assert largest(head, expected) < 1e-5


@pytest.mark.slow
def test_every_layer_of_the_small_reference_network_runs_on_binary_spikes():
    check_fixture(GOLDEN)


@pytest.mark.slow
def test_the_small_reference_network_agrees_in_float64():
    check_fixture_in_float64(GOLDEN)


@pytest.mark.slow
def test_the_published_size_runs_on_binary_spikes(shared):
    check_fixture(shared / "fixtures" / "cls_T_seed0.npz")


@pytest.mark.slow
def test_the_published_size_agrees_in_float64(shared):
    check_fixture_in_float64(shared / "fixtures" / "cls_T_seed0.npz")


@pytest.mark.slow
def test_every_layer_runs_on_binary_spikes_on_real_clouds(shared, rng):
    dataset = open_dataset(shared / "data" / "kicad40", "test")
    voxels = [
        voxelize_cloud(dataset[index], rng, voxel_size=0.05, normals=True, recipe=None)
        for index in (3, 150)
    ]
    coords, rows = join_clouds(voxels)
    levels = build_pyramid(coords, num_levels=5)
    features = jnp.asarray(pad_features(rows, rows=len(levels[0].coords)))
    levels = jax.tree.map(jnp.asarray, levels)
    model = Classifier(VARIANTS["T"], 40)
    options = {"num_clouds": 2, "train": False}
    variables = random_variables(
        model, rng, features, levels, mixed_norms=True, **options
    )
    arguments = model, variables, features, levels
    (_, activations), outputs = compiled(integer_and_each_layer, *arguments)
    assert len(outputs) == 2 + 4 * 4
    for name, (own, on_steps) in outputs.items():
        assert np.asarray(activations[f"{name}/spikes"]).any(), name
        assert largest(on_steps, own) < 1e-6, name


def test_real_valued_layers_are_marked(rng):
    model, variables, features, levels = make_network(rng)
    options = {"num_clouds": 2, "train": False}
    marked = real_layers(model, variables, features, levels, **options)
    assert list(marked)[:4] == ["stem/unit0", "stem/unit1", "stem/unit2", "stage0/down"]
    assert list(marked)[-2:] == ["stage1/block1/unit2", "head"]
    assert {name for name, real in marked.items() if real} == {"stem/unit0", "head"}


class UpAndDown(nn.Module):
    """A decoder's layers: down, up again by the inverse map, a linear layer."""

    neuron: Neuron

    @nn.compact
    def __call__(self, features, levels, *, train):
        fine, coarse = levels
        x = features[:, None]
        for name, kernel_map, level in (
            ("down", fine.down, coarse),
            ("up", invert(fine.down), fine),
        ):
            conv = SparseConv(4, 8, integer_inputs=name == "up", name=name)
            inputs = self.neuron(x) if name == "up" else x
            x = conv(inputs, kernel_map, num_out=level.coords.shape[0])
            x = MaskedBatchNorm(name=f"{name}_norm")(
                x, voxel_mask(level.coords), train=train
            )
        return SpikeDense(3, name="linear")(self.neuron(x))


def make_decoder(rng, neuron):
    coords = random_coords(rng, extent=(5, 6, 7))
    levels = jax.tree.map(jnp.asarray, build_pyramid(coords, num_levels=2))
    features = jnp.asarray(rng.normal(size=(len(levels[0].coords), 3)), jnp.float32)
    model = UpAndDown(neuron)
    variables = make_variables(model, rng, features, levels, train=False)
    return model, variables, features, levels


def test_a_network_without_a_head_cannot_move_it(rng):
    model, *inputs = make_decoder(rng, Neuron())
    with pytest.raises(ValueError, match="a UpAndDown runs without it"):
        run_binary(
            model, *inputs, train=False, neuron=model.neuron, head_on_spikes=True
        )


def test_a_network_without_stages_cannot_move_its_head(rng):
    model, *inputs = make_network(rng, architecture=Architecture(3, 4, (), ()))
    options = {"num_clouds": 2, "train": False}
    message = "needs a network with stages, and this one has none"
    for action in (
        lambda: readout_units(model),
        lambda: run_binary(model, *inputs, head_on_spikes=True, **options),
        lambda: classifier_on_spikes(model, inputs[0], {}, inputs[2], num_clouds=2),
    ):
        with pytest.raises(ValueError, match=message):
            action()


def test_other_neurons_than_the_network_has_are_refused(rng):
    model, *inputs = make_network(rng)
    options = {"num_clouds": 2, "train": False}
    with pytest.raises(ValueError, match=r"levels=3 are given, but .* up to 4 spikes"):
        run_binary(model, *inputs, neuron=Neuron(3), **options)
    with pytest.raises(ValueError, match="Dense has no field `neuron`"):
        run_binary(nn.Dense(2), {}, inputs[1])


def test_what_cannot_run_on_spikes_is_refused(rng):
    model, *inputs = make_network(rng)
    options = {"num_clouds": 2, "train": False}
    relu = Neuron(relu=True)
    with pytest.raises(ValueError, match="ReLU has no spikes"):
        run_binary(model, *inputs, neuron=relu, **options)
    twin = model.clone(neuron=relu)
    with pytest.raises(ValueError, match="no layer of Classifier takes spikes"):
        jax.eval_shape(
            functools.partial(run_binary, twin, neuron=Neuron(), **options), *inputs
        )
    with pytest.raises(ValueError, match="no spikes that a head"):
        classifier_on_spikes(twin, inputs[0], {}, inputs[2], num_clouds=2)
    training = options | {"train": True}
    with pytest.raises(ValueError, match="call with train=False"):
        jax.eval_shape(
            functools.partial(run_binary, model, neuron=Neuron(), **training), *inputs
        )
    other = model.clone(compute=Compute(rematerialise=True))
    with pytest.raises(ValueError, match="rematerialise=False"):
        run_integer(other, *inputs, **options)
