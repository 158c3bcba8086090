"""The segmentation network: its decoder by brute force, and the whole of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from e3dsnn_jax.analysis.layers import find_layers
from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.decoder import DecoderStage, SpikeLinear
from e3dsnn_jax.kernel_map import make_kernel
from e3dsnn_jax.layer_shapes import describe_layers
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.operations import add_counts, count_operations
from e3dsnn_jax.pyramid import build_pyramid, find_levels, fit_capacity, pack_levels
from e3dsnn_jax.segmenter import SEMANTIC_KITTI, Segmenter
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.spike_driven import real_layers, run_binary
from e3dsnn_jax.training.metrics import spike_level
from e3dsnn_jax.voxels import pad_features
from tests.clouds_of_voxels import hard_coords, random_coords
from tests.oracles import strided_pairs

WIDTHS = (5, 7)
TINY = Architecture(3, 4, (4, 6), (1, 1), WIDTHS)
DOWN = make_kernel(2, stride=2)
STAGES = ["decoder/stage1", "decoder/stage0"]


def spike(membrane):
    return np.floor(np.clip(membrane, 0, 4) + 0.5)


def norm(values, parameters, statistics):
    scaled = (values - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-3)
    return scaled * parameters["scale"] + parameters["bias"]


def decode(variables, membrane, skip, pairs):
    """A decoder stage on `[voxels, channels]` in float64, a pair at a time."""
    params, statistics = variables["params"], variables["batch_stats"]
    kernel = params["up"]["conv"]["kernel"]
    raised = np.zeros((len(skip), kernel.shape[-1]))
    for offset, coarse, fine in pairs:
        raised[fine] += spike(membrane[coarse]) @ kernel[offset]
    raised = norm(raised, params["up"]["norm"], statistics["up"]["norm"])
    fused = np.concatenate([raised, skip], axis=1)
    for name in ("fuse0", "fuse1"):
        linear = params[name]["conv"]
        fused = spike(fused) @ linear["kernel"] + linear["bias"]
        fused = norm(fused, params[name]["norm"], statistics[name]["norm"])
    return raised + fused


def randomise(tree, rng, scale=0.4):
    """Arrays of the same shapes that leave no neuron silent, variances positive."""
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(
            rng.uniform(0.5, 1.5, leaf.shape)
            if path[-1].key in ("var", "scale")
            else rng.normal(0, scale, leaf.shape),
            jnp.float32,
        ),
        tree,
    )


@pytest.mark.parametrize(
    "case", ["empty", "one", "full", "second cloud only", "sparse", "dense", "line"]
)
@pytest.mark.parametrize("dropping", [False, True])
def test_a_stage_of_the_decoder_by_brute_force(rng, case, dropping):
    coords, extent = hard_coords(rng)[case], None
    if dropping:
        # An odd extent on every axis: the voxels of the last layers have no parent.
        largest = coords[:, 1:].max(0, initial=0)
        coords[:, 1:] += largest % 2
        extent = tuple((largest // 2 * 2 + largest % 2 * 2 + 1).tolist())
    cells, pairs = strided_pairs(coords, DOWN, extent)
    assert (len(pairs) < len(coords)) == (dropping and case != "empty")
    levels = build_pyramid(coords, num_levels=2, extent=extent)
    fine, coarse = jax.tree.map(jnp.asarray, levels)
    membrane = rng.normal(1, 1.5, (len(cells), 6))
    skip = rng.normal(1, 1.5, (len(coords), 4))
    padded = [
        jnp.asarray(pad_features(rows.astype("f4"), rows=len(level.coords)))[:, None]
        for rows, level in ((membrane, coarse), (skip, fine))
    ]
    stage = DecoderStage(5, Neuron())
    run: Any = functools.partial(stage.apply, train=False)
    shapes = jax.eval_shape(
        functools.partial(stage.init, train=False), jax.random.key(0), *padded, fine
    )
    variables = randomise(shapes, rng)
    outputs, _ = jax.jit(run)(variables, *padded, fine)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    rounded = [np.asarray(rows[:, 0], np.float64) for rows in padded]
    expected = decode(
        wide, rounded[0], rounded[1][: len(coords)], [(k, o, i) for k, o, i in pairs]
    )
    np.testing.assert_allclose(outputs[: len(coords), 0], expected, atol=1e-5)
    np.testing.assert_array_equal(outputs[len(coords) :], 0)


def make_batch(rng, *, clouds=2, slack=1.0, levels=3, channels=3):
    coords = random_coords(rng, extent=(8, 8, 8), batch=clouds)
    found = find_levels(coords, num_levels=levels)
    packed = pack_levels(found, fit_capacity([found], slack=slack))
    features = rng.normal(size=(len(coords), channels)).astype(np.float32)
    padded = pad_features(features, rows=packed[0].coords.shape[0])
    return jnp.asarray(padded), jax.tree.map(jnp.asarray, packed)


def make_variables(model, features, levels):
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), features, levels)
    return randomise(shapes, np.random.default_rng(1))


def apply(model, variables, features, levels, train=False):
    """Logits and activations, compiled as one program."""

    def forward(variables, features, levels):
        return model.apply(
            variables, features, levels, train=train, mutable=["batch_stats"]
        )[0]

    return jax.jit(forward)(variables, features, levels)


@pytest.fixture(scope="module")
def network():
    """A network on one batch, and what it computes: logits and activations."""
    features, levels = make_batch(np.random.default_rng(0), slack=1.2)
    model = Segmenter(TINY, 5)
    variables = make_variables(model, features, levels)
    return (
        model,
        variables,
        features,
        levels,
        apply(model, variables, features, levels),
    )


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (SEMANTIC_KITTI, 20_049_683),
        (
            Architecture(4, 16, (16, 32, 32, 48), (1, 2, 1, 1), (32, 32, 40, 48)),
            569_491,
        ),
    ],
)
def test_parameter_counts_are_the_published_ones(rng, architecture, expected):
    features, levels = make_batch(rng, levels=5, channels=4)
    model = Segmenter(architecture, 19)
    shapes = jax.eval_shape(
        lambda key: model.init(key, features, levels, train=False), jax.random.key(0)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected


def test_every_activation_is_named(network):
    *_, levels, (logits, activations) = network
    assert logits.shape == (levels[0].coords.shape[0], 5)
    units = [f"{stage}/{unit}" for stage in STAGES for unit in ("up", "fuse0", "fuse1")]
    names = [*STAGES, *units, *(f"{unit}/spikes" for unit in units)]
    encoder = {name for name in activations if not name.startswith("decoder")}
    assert set(activations) == encoder | set(names)
    assert {"stem", "stem/unit2", "stage0", "stage1/block0/unit2/spikes"} <= encoder
    for index, stage in enumerate(reversed(STAGES)):
        fine, coarse = (level.coords.shape[0] for level in levels[index : index + 2])
        assert activations[stage].shape == (fine, 1, WIDTHS[index])
        assert activations[f"{stage}/up/spikes"].shape[0] == coarse
        width = [4, 4][index] + WIDTHS[index]
        assert activations[f"{stage}/fuse0/spikes"].shape == (fine, 1, width)
        joined = activations[f"{stage}/up"] + activations[f"{stage}/fuse1"]
        np.testing.assert_allclose(activations[stage], joined, atol=1e-6)
    for name in names:
        if name.endswith("/spikes"):
            assert {1.0} < set(np.unique(activations[name])) <= {0, 1, 2, 3, 4}


def test_padding_changes_nothing():
    results = []
    for slack in (1.0, 2.0):
        features, levels = make_batch(np.random.default_rng(5), slack=slack)
        model = Segmenter(TINY, 5)
        variables = make_variables(model, features, levels)
        logits, _ = apply(model, variables, features, levels, train=True)
        rows = int(levels[0].voxels_needed)
        results.append(logits[:rows])
        bias = variables["params"]["head"]["bias"]
        padding = np.broadcast_to(bias, logits[rows:].shape)
        np.testing.assert_array_equal(logits[rows:], padding)
    assert np.ptp(results[0]) > 1
    np.testing.assert_allclose(*results, atol=1e-5)


def test_a_batch_of_two_is_two_batches_of_one(rng):
    coords = random_coords(rng, extent=(8, 8, 8))
    features = rng.normal(size=(len(coords), 3)).astype(np.float32)
    model, variables, logits = Segmenter(TINY, 5), None, []
    for batch in ([0, 1], [0], [1]):
        mine = np.isin(coords[:, 0], batch)
        cells = coords[mine] - np.array([batch[0], 0, 0, 0], np.int32)
        levels = build_pyramid(cells, num_levels=3)
        padded = jnp.asarray(pad_features(features[mine], rows=len(levels[0].coords)))
        if variables is None:
            variables = make_variables(model, padded, levels)
        logits.append(apply(model, variables, padded, levels)[0][: mine.sum()])
    np.testing.assert_allclose(logits[0], np.concatenate(logits[1:]), atol=1e-5)


def gradients(model, variables, features, levels):
    """Of the sum of squared logits in training, by the parameters."""

    def loss(params):
        given = variables | {"params": params}
        (logits, _), _ = model.apply(
            given, features, levels, num_clouds=2, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum()

    return jax.jit(jax.grad(loss))(variables["params"])


def test_time_runs_end_to_end_and_its_first_step_is_the_published_network(network):
    _, variables, features, levels, (_, once) = network
    model = Segmenter(TINY, 5, Neuron(time_steps=2))
    logits, activations = apply(model, variables, features, levels)
    assert activations["decoder/stage0"].shape[1] == 2
    first = activations["decoder/stage0"][:, :1]
    # Nothing has leaked before the first step, so it equals the network without time.
    np.testing.assert_allclose(first, once["decoder/stage0"], atol=1e-5)
    head = variables["params"]["head"]
    readout = np.asarray(activations["decoder/stage0"]).mean(1)
    expected = readout @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    found = gradients(model, variables, features, levels)
    leaves = jax.tree.leaves(found)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert np.abs(found["backbone"]["stem"]["unit0"]["conv"]["kernel"]).max() > 0


def test_relu_twin_has_the_same_parameters(network):
    model, variables, features, levels, _ = network
    twin = model.clone(neuron=Neuron(relu=True))
    shapes = [
        jax.eval_shape(
            functools.partial(each.init, train=False),
            jax.random.key(0),
            features,
            levels,
        )
        for each in (model, twin)
    ]
    assert shapes[0] == shapes[1]
    _, activations = apply(twin, variables, features, levels)
    spikes = np.unique(activations["decoder/stage0/fuse1/spikes"])
    assert spikes.min() == 0
    assert not set(spikes) <= {0, 1, 2, 3, 4}
    marked = real_layers(twin, variables, features, levels, train=False)
    assert all(marked.values())


@pytest.mark.parametrize(
    ("policy", "digits"), [("float32", 2.0**-22), ("bfloat16", 2.0**-7)]
)
@pytest.mark.parametrize("time", [1, 3])
def test_a_linear_layer_keeps_the_digits_of_its_type(rng, policy, digits, time):
    spikes = jnp.asarray(rng.integers(0, 5, (40, time, 30)), jnp.float32)
    exact_layer = SpikeLinear(7)
    variables = randomise(exact_layer.init(jax.random.key(0), spikes), rng)
    kernel, bias = (
        np.asarray(variables["params"][name], np.float64) for name in ("kernel", "bias")
    )
    exact = np.asarray(spikes, np.float64) @ kernel + bias
    size = np.asarray(spikes, np.float64) @ np.abs(kernel) + np.abs(bias)
    outputs: Any = exact_layer.clone(compute=Compute(policy)).apply(variables, spikes)
    assert outputs.dtype == jnp.dtype(policy)
    assert (np.abs(np.asarray(outputs, np.float64) - exact) <= digits * size).all()
    outputs = exact_layer.clone(compute=Compute("bfloat16_split")).apply(
        variables, spikes
    )
    assert outputs.dtype == jnp.float32
    assert (np.abs(np.asarray(outputs, np.float64) - exact) <= 2.0**-15 * size).all()


@pytest.mark.parametrize(
    ("policy", "relu", "share"),
    # The split weights leave real-valued inputs alone, and so a network with ReLU.
    [
        ("bfloat16", False, 0.01),
        ("bfloat16", True, 0.01),
        ("bfloat16_split", False, 1e-5),
    ],
)
def test_bfloat16_runs_and_returns_float32(network, policy, relu, share):
    model, variables, features, levels, _ = network
    model = model.clone(neuron=Neuron(relu=relu))
    exact, _ = apply(model, variables, features, levels)
    model = model.clone(compute=Compute(policy))
    logits, _ = apply(model, variables, features, levels)
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - exact)
    assert difference.max() > 0
    # Of most voxels: a spike that rounding flips changes its neighbours altogether.
    assert np.median(difference) < share * np.abs(exact).max()


def test_bfloat16_learns(network):
    model, variables, features, levels, _ = network
    model = model.clone(compute=Compute("bfloat16"))
    found = gradients(model, variables, features, levels)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    assert np.abs(found["decoder"]["stage1"]["fuse0"]["conv"]["kernel"]).max() > 0


def test_rematerialised_gradients_are_the_same(network):
    model, variables, features, levels, _ = network
    first = gradients(model, variables, features, levels)
    again = model.clone(compute=Compute(rematerialise=True))
    second = gradients(again, variables, features, levels)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(first))
    assert largest > 0
    close = functools.partial(np.testing.assert_allclose, atol=1e-5 * largest)
    jax.tree.map(close, first, second)


def test_a_frozen_encoder_does_not_learn(network):
    model, variables, features, levels, _ = network
    frozen = model.clone(frozen_blocks=len(TINY.block_names))
    found = gradients(frozen, variables, features, levels)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["backbone"]))
    assert np.abs(found["decoder"]["stage1"]["up"]["conv"]["kernel"]).max() > 0


def test_layers_are_described_and_their_operations_counted(network):
    model, variables, features, levels, (_, activations) = network
    shapes = describe_layers(model, variables, features, levels, train=False)
    found = {shape.name: shape for shape in shapes}
    assert [name for name in found if "decoder" in name or name == "head"] == [
        f"{stage}/{unit}" for stage in STAGES for unit in ("up", "fuse0", "fuse1")
    ] + ["head"]
    assert {shape.name for shape in shapes if not shape.takes_spikes} == {
        "stem/unit0",
        "head",
    }
    parameters = jax.tree.leaves(variables["params"])
    assert sum(shape.parameters for shape in shapes) == sum(p.size for p in parameters)
    count = functools.partial(count_operations, model, spike_levels=4, train=False)
    _, counts = jax.jit(count)(variables, features, levels)
    totals = add_counts({}, counts, shapes, jax.device_get(levels))
    for index in (0, 1):
        stage = f"decoder/stage{index}"
        up = found[f"{stage}/up"]
        assert (up.level_in, up.level_out, up.offsets) == (index + 1, index, 8)
        coords = [np.asarray(level.coords) for level in levels]
        real = [rows[rows[:, 0] >= 0] for rows in coords]
        cells, pairs = strided_pairs(real[index], DOWN, None)
        assert cells == sorted(map(tuple, real[index + 1].tolist()))
        spikes = np.asarray(activations[f"{stage}/up/spikes"])[:, 0].sum(1)
        expected = sum(spikes[coarse] for _, coarse, _ in pairs)
        assert totals[f"{stage}/up"].pair_spikes == (expected,)
        for unit in ("fuse0", "fuse1"):
            shape, total = found[f"{stage}/{unit}"], totals[f"{stage}/{unit}"]
            assert (shape.level_in, shape.level_out) == (index, index)
            spikes = np.asarray(activations[f"{stage}/{unit}/spikes"])
            assert total.pairs == len(real[index])
            assert total.spikes == spikes[: len(real[index])].sum() > 0


def test_binary_spikes_give_the_same(network):
    model, variables, features, levels, (logits, activations) = network
    run = functools.partial(run_binary, model, neuron=model.neuron, train=False)
    ours, binary = jax.jit(run)(variables, features, levels)
    np.testing.assert_allclose(ours, logits, atol=1e-4)
    for name in (name for name in activations if name.endswith("/spikes")):
        rows = int(levels[0].voxels_needed) if "stage0/fuse" in name else None
        ours, theirs = (run[name][:rows] for run in (binary, activations))
        np.testing.assert_array_equal(ours, theirs)


def test_layers_are_found_for_comparisons(network):
    model, variables, features, levels, _ = network
    batch = ShapeBatch(features, levels, *[jnp.zeros(2, jnp.int32)] * 2)
    places = find_layers(model, variables, batch, "spikes")
    found = {place.name: (place.level, place.neurons) for place in places}
    assert found["decoder/stage1/up/spikes"] == (2, 6)
    assert found["decoder/stage0/fuse0/spikes"] == (0, 9)
    places = find_layers(model, variables, batch, "membranes")
    found = {place.name: (place.level, place.neurons) for place in places}
    assert found["decoder/stage1"] == (1, 7)
    assert found["decoder/stage0/up"] == (0, 5)


def test_inference_exports_for_every_platform(network):
    model, variables, features, levels, _ = network

    def infer(variables, features, levels):
        return model.apply(variables, features, levels, train=False)[0]

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (variables, features, levels),
    )
    platforms = ("cpu", "cuda", "tpu")
    exported = export.export(jax.jit(infer), platforms=platforms)(*shapes)
    assert exported.platforms == platforms


def test_wrong_architectures_are_named(network):
    _, variables, features, levels, _ = network
    model = Segmenter(TINY.encoder, 5)
    with pytest.raises(ValueError, match="needs one: give decoder_channels, 2 of them"):
        model.apply(variables, features, levels, train=False)
    with pytest.raises(ValueError, match="this architecture has a decoder"):
        Classifier(TINY, 5).apply(
            variables, features, levels, num_clouds=2, train=False
        )
    with pytest.raises(ValueError, match="has 1 entries but stage_channels has 2"):
        dataclasses.replace(TINY, decoder_channels=(4,))
    with pytest.raises(ValueError, match="2 levels but the network needs 3"):
        Segmenter(TINY, 5).apply(variables, features, levels[:2], train=False)
    stage = DecoderStage(5, Neuron())
    skip = jnp.zeros((len(levels[2].coords), 1, 4))
    with pytest.raises(ValueError, match="no map to the next: too few levels"):
        stage.init(jax.random.key(0), skip, skip, levels[2], train=False)


def test_layers_of_a_segmenter_are_found_for_analysis_and_firing():
    model = Segmenter(
        Architecture(6, 4, (4, 8), (1, 1), decoder_channels=(4, 4)), num_classes=3
    )
    coords = np.argwhere(np.ones((1, 12, 12, 12), bool)).astype(np.int32)
    levels = build_pyramid(coords, num_levels=3)
    assert len({len(level.coords) for level in levels}) == 3
    features = pad_features(
        np.ones((len(coords), 6), np.float32), rows=len(levels[0].coords)
    )
    labels = np.zeros(1, np.int32)
    batch = ShapeBatch(features, levels, labels, labels)
    init = functools.partial(model.init, num_clouds=1, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), features, levels)
    found = find_layers(model, variables, batch, "spikes")
    assert (found[-1].name, found[-1].level) == ("logits", 0)
    for layer in found[:-1]:
        assert layer.level == spike_level(layer.name.removesuffix("/spikes"))
    assert "decoder/stage0/up/spikes" in [layer.name for layer in found]
