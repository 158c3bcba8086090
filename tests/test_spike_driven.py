"""Binary inference equals integer inference: layers, networks, float64, fixtures."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.interop import import_state
from e3dsnn_jax.kernel_map import invert
from e3dsnn_jax.layer_calls import SpikeDense, replace_layers
from e3dsnn_jax.layers import Compute, MaskedBatchNorm, SparseConv
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.sparse_conv import sparse_conv
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.spike_driven import (
    add_binary_steps,
    binary_conv,
    binary_linear,
    compare_runs,
    real_layers,
    run_binary,
    run_integer,
)
from e3dsnn_jax.spike_readout import classifier_on_spikes
from e3dsnn_jax.voxels import pad_features
from tests import oracles
from tests.clouds_of_voxels import random_coords
from tests.test_classifier import TINY, make_batch
from tests.test_project import ROOT

NEURONS = [
    Neuron(4, 1),
    Neuron(2, 2),
    *(
        pytest.param(Neuron(levels, time), marks=pytest.mark.slow)
        for levels, time in ((1, 1), (2, 1), (1, 4))
    ),
]


def lively(shapes, rng):
    """Variables with which every layer fires: kernels of 0.02 leave them silent."""

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(0.4 * rng.standard_normal(leaf.shape), jnp.float32)
        low, high = {"scale": (1, 3), "var": (0.5, 2)}.get(name, (-0.5, 1))
        return jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def make_variables(model, rng, *inputs, **options):
    """Variables of a network that is never compiled for them."""
    init = lambda *inputs: model.init(jax.random.key(0), *inputs, **options)
    return lively(jax.eval_shape(init, *inputs), rng)


def make_network(rng, neuron=NEURONS[0], **options):
    features, levels = make_batch(rng, slack=1.5)
    levels = jax.tree.map(jnp.asarray, levels)
    model = Classifier(TINY, 5, neuron, **options)
    variables = make_variables(model, rng, features, levels, num_clouds=2, train=False)
    return model, variables, features, levels


# One program for each network, whichever test asks for it.
@functools.partial(jax.jit, static_argnames=("function", "model", "options"))
def compiled(function, model, variables, features, levels, options):
    inputs = model, variables, features, levels
    return function(*inputs, num_clouds=2, train=False, **dict(options))


def forward(function, model, variables, features, levels, **options):
    inputs = model, variables, features, levels
    return compiled(function, *inputs, tuple(options.items()))


def apply(model, *inputs, **options):
    return model.apply(*inputs, **options)


@functools.partial(jax.jit, static_argnames="model")
def read_out(model, variables, activations, levels):
    return classifier_on_spikes(model, variables, activations, levels, num_clouds=2)


def integer(model, variables, features, levels):
    return forward(apply, model, variables, features, levels)


def largest(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
@pytest.mark.parametrize(("levels", "time"), [(4, 1), (1, 3), (3, 2)])
def test_a_binary_convolution_is_the_integer_one(rng, kind, levels, time):
    fine, _ = build_pyramid(random_coords(rng), num_levels=2)
    kernel_map = {"submanifold": fine.submanifold, "strided": fine.down}.get(
        kind, invert(fine.down)
    )
    rows_in, rows_out = (int(rows) for rows in kernel_map.rows)
    offsets = 27 if kind == "submanifold" else 8
    spikes = jnp.asarray(rng.integers(0, levels + 1, (rows_in, time, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((offsets, 3, 4)), jnp.float32)
    binary = binary_conv(spikes, kernel, kernel_map, num_out=rows_out, levels=levels)
    whole = sparse_conv(spikes, kernel, kernel_map, num_out=rows_out)
    assert largest(binary, whole) < 1e-6
    # By the pairs, in float64.
    expected = np.zeros((rows_out + 1, time, 4))
    blocks = zip(
        kernel_map.offset, kernel_map.senders, kernel_map.receivers, strict=True
    )
    padded = np.concatenate([spikes, np.zeros((1, time, 3))])
    for offset, senders, receivers in blocks:
        messages = padded[senders] @ np.asarray(kernel[int(offset)], np.float64)
        np.add.at(expected, receivers, messages)
    assert largest(binary, expected[:-1]) < 1e-6


def test_a_layer_is_given_zeros_and_ones_alone_and_all_of_them(rng):
    spikes = jnp.asarray(rng.integers(0, 4, (5, 3, 2)), jnp.float32)
    fed = []

    def step(rows):
        jax.debug.callback(lambda values: fed.append(np.asarray(values)), rows)
        return rows

    total = add_binary_steps(spikes, step, levels=3)
    jax.effects_barrier()
    np.testing.assert_array_equal(total, spikes)
    assert len(fed) == 9
    assert set(np.unique(fed)) == {0, 1}
    by_time = np.sum(fed, axis=0)
    np.testing.assert_array_equal(by_time, np.sum(spikes, axis=1))


def test_a_binary_linear_layer_is_the_integer_one(rng):
    spikes = jnp.asarray(rng.integers(0, 5, (9, 2, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    binary = binary_linear(spikes, kernel, levels=4)
    assert largest(binary, np.asarray(spikes, "f8") @ np.asarray(kernel)) < 1e-6


@pytest.mark.parametrize("wrong", [np.nan, 0.5, -1, 5])
def test_what_is_no_spike_makes_all_of_the_layer_nan(wrong):
    spikes = jnp.zeros((4, 1, 2)).at[2, 0, 1].set(wrong)
    assert np.isnan(binary_linear(spikes, jnp.ones((2, 3)), levels=4)).all()


@contextlib.contextmanager
def float64():
    """64-bit numbers, where a plain `arange` and 32-bit coordinates are two types."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def in_float64(tree):
    return jax.tree.map(
        lambda leaf: leaf.astype(float) if leaf.dtype == np.float32 else leaf,
        jax.device_get(tree),
    )


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_in_float64_networks_agree_to_1e_9(rng, neuron):
    model, variables, features, levels = make_network(rng, neuron)
    with float64():
        arguments = in_float64((variables, features, levels))
        exact, activations = forward(run_integer, model, *arguments)
        logits, binary = forward(run_binary, model, *arguments, neuron=neuron)
        assert logits.dtype == np.float64
        assert np.abs(logits - exact).max() < 1e-9
        for name, values in activations.items():
            np.testing.assert_allclose(binary[name], values, atol=1e-9)
            if name.endswith("/spikes"):
                assert 0.02 < (np.asarray(values) > 0).mean() < 0.9
        head = read_out(model, arguments[0], binary, levels)
        assert np.abs(head - exact).max() < 1e-9


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


@pytest.mark.parametrize("neuron", NEURONS[:2], ids=str)
def test_in_float64_both_are_the_network_by_loops(rng, neuron):
    model, variables, features, levels = make_network(rng, neuron)
    expected, spikes = float64_network(model, variables, features, levels)
    with float64():
        arguments = in_float64((variables, features, levels))
        logits, binary = forward(run_binary, model, *arguments, neuron=neuron)
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    for name, values in spikes.items():
        np.testing.assert_array_equal(binary[name], values)


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_in_float32_layers_fed_the_same_spikes_agree(rng, neuron):
    model, variables, features, levels = make_network(rng, neuron)
    logits, activations = integer(model, variables, features, levels)

    def both(variables, features, levels):
        outputs = {}

        def layer(call):
            own = call.run()
            if call.takes_spikes:
                binary = binary_conv(
                    call.inputs,
                    call.kernel,
                    call.kernel_map,
                    num_out=call.num_out,
                    levels=neuron.levels,
                )
                outputs[call.name] = own, binary
            return own

        arguments = model, variables, features, levels
        replace_layers(*arguments, layer=layer, num_clouds=2, train=False)
        return outputs

    errors = jax.jit(both)(variables, features, levels)
    assert len(errors) == 13
    for own, binary in errors.values():
        assert largest(binary, own) < 1e-6
    # End to end: a membrane at a threshold may fall to the other side.
    again = forward(run_binary, model, variables, features, levels, neuron=neuron)
    flips = compare_runs((logits, activations), again)
    neurons = sum(flips.neurons.values())
    assert sum(flips.spikes.values()) <= 1e-3 * neurons
    assert flips.predictions == 0
    head = read_out(model, variables, again[1], levels)
    assert largest(head, again[0]) < 1e-5


def test_flips_are_counted():
    spikes = np.zeros((3, 1, 2), np.float32)
    one = jnp.asarray([[0.0, 1.0], [2.0, 1.0]]), {"a/spikes": jnp.asarray(spikes)}
    other = spikes.copy()
    other[1] = 3
    two = jnp.asarray([[2.0, 1.0], [2.0, 1.0]]), {"a/spikes": jnp.asarray(other)}
    flips = compare_runs(one, two)
    assert (flips.spikes, flips.neurons, flips.predictions) == (
        {"a/spikes": 2},
        {"a/spikes": 6},
        1,
    )


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
    logits, activations = integer(model, variables, features, levels)
    assert largest(logits, expected) < 1e-5
    binary = forward(
        run_binary, model, variables, features, levels, neuron=model.neuron
    )
    # No membrane of the fixtures lies within 2e-4 of a threshold.
    flips = compare_runs((logits, activations), binary)
    assert set(flips.spikes.values()) == {0}
    assert flips.predictions == 0
    assert largest(binary[0], expected) < 1e-5
    with float64():
        arguments = in_float64((variables, features, levels))
        exact, _ = forward(run_integer, model, *arguments)
        logits, spikes = forward(run_binary, model, *arguments, neuron=model.neuron)
        assert np.abs(logits - exact).max() < 1e-9
        assert largest(exact, expected) < 1e-5
        head = read_out(model, arguments[0], spikes, levels)
        assert np.abs(head - exact).max() < 1e-9


def test_the_small_reference_network_runs_on_binary_spikes():
    check_fixture(ROOT / "tests" / "golden" / "cls_tiny_seed0.npz")


@pytest.mark.slow
def test_the_published_size_runs_on_binary_spikes(shared):
    check_fixture(shared / "fixtures" / "cls_T_seed0.npz")


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


def test_any_network_of_these_layers_runs_on_binary_spikes(rng):
    coords = random_coords(rng, extent=(5, 6, 7))
    levels = jax.tree.map(jnp.asarray, build_pyramid(coords, num_levels=2))
    features = jnp.asarray(rng.normal(size=(len(levels[0].coords), 3)), jnp.float32)
    model = UpAndDown(Neuron())
    variables = make_variables(model, rng, features, levels, train=False)
    plain = model.apply(variables, features, levels, train=False)
    binary = run_binary(
        model, variables, features, levels, train=False, neuron=model.neuron
    )
    assert largest(binary, plain) < 1e-6
    marked = real_layers(model, variables, features, levels, train=False)
    assert marked == {"down": True, "up": False, "linear": False}


def test_what_cannot_run_on_spikes_is_refused(rng):
    model, variables, features, levels = make_network(rng)
    relu = Neuron(relu=True)
    with pytest.raises(ValueError, match="ReLU has no spikes"):
        forward(run_binary, model, variables, features, levels, neuron=relu)
    twin = model.clone(neuron=relu)
    with pytest.raises(ValueError, match="no layer of Classifier takes spikes"):
        forward(run_binary, twin, variables, features, levels, neuron=Neuron())
    with pytest.raises(ValueError, match="no spikes that a head"):
        classifier_on_spikes(twin, variables, {}, levels, num_clouds=2)
    with pytest.raises(ValueError, match="call with train=False"):
        run_binary(
            model,
            variables,
            features,
            levels,
            neuron=Neuron(),
            num_clouds=2,
            train=True,
        )
    other = model.clone(compute=Compute(rematerialise=True))
    with pytest.raises(ValueError, match="rematerialise=False"):
        forward(run_integer, other, variables, features, levels)
