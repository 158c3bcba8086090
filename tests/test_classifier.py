"""Whole networks: sizes, names, padding, time, the ReLU twin, precision, export."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.pyramid import build_pyramid, find_levels, fit_capacity, pack_levels
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.voxels import pad_features
from tests.clouds_of_voxels import random_coords

TINY = Architecture(3, 4, (4, 6), (1, 2))
PARAMETERS = {"T": 1_874_216, "S": 3_271_144, "L": 17_330_600, "H": 46_574_248}


def make_batch(rng, *, clouds=2, slack=1.0, levels=3, channels=3):
    coords = random_coords(rng, extent=(8, 8, 8), batch=clouds)
    found = find_levels(coords, num_levels=levels)
    packed = pack_levels(found, fit_capacity([found], slack=slack))
    features = rng.normal(size=(len(coords), channels)).astype(np.float32)
    rows = packed[0].coords.shape[0]
    padded = pad_features(features, rows=rows)
    return jnp.asarray(padded), packed


def run(model, features, levels, *, clouds=2, train=False):
    """Initial variables, then (logits, activations), each compiled as one program."""
    options = {"num_clouds": clouds}
    init = jax.jit(functools.partial(model.init, train=False, **options))
    variables = init(jax.random.key(0, impl="rbg"), features, levels)
    return variables, apply(model, variables, features, levels, clouds, train)


def apply(model, variables, features, levels, clouds=2, train=False):
    def forward(variables, features, levels):
        return model.apply(
            variables,
            features,
            levels,
            num_clouds=clouds,
            train=train,
            mutable=["batch_stats"],
        )[0]

    return jax.jit(forward)(variables, features, levels)


@pytest.mark.parametrize(("variant", "expected"), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(rng, variant, expected):
    features, levels = make_batch(rng, levels=5, channels=6)
    model = Classifier(VARIANTS[variant], 40)
    shapes = jax.eval_shape(
        lambda key: model.init(key, features, levels, num_clouds=2, train=False),
        jax.random.key(0),
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == expected


def test_every_activation_is_named(rng):
    features, levels = make_batch(rng)
    _, (logits, activations) = run(Classifier(TINY, 5), features, levels)
    units = ["stem/unit0", "stem/unit1", "stem/unit2", "stage0/down", "stage1/down"]
    blocks = ["stage0/block0", "stage1/block0", "stage1/block1"]
    units += [f"{block}/unit{i}" for block in blocks for i in range(3)]
    spikes = [f"{unit}/spikes" for unit in units if unit != "stem/unit0"]
    names = {*units, *spikes, *blocks, "stem", "stage0", "stage1", "pooled"}
    assert set(activations) == names
    assert logits.shape == (2, 5)
    for name in spikes:
        values = np.unique(activations[name])
        assert set(values) <= {0, 1, 2, 3, 4}
    rows = {level.coords.shape[0] for level in levels}
    assert {activations[name].shape[0] for name in [*units, *spikes]} == rows


def test_padding_changes_nothing(rng):
    results = []
    for slack in (1.0, 2.0):
        features, levels = make_batch(np.random.default_rng(5), slack=slack)
        _, (logits, _) = run(Classifier(TINY, 5), features, levels, train=True)
        results.append(logits)
    np.testing.assert_allclose(*results, atol=1e-6)


def test_a_batch_of_two_is_two_batches_of_one(rng):
    coords = random_coords(rng, extent=(8, 8, 8))
    features = rng.normal(size=(len(coords), 3)).astype(np.float32)
    model = Classifier(TINY, 5)
    logits = []
    for batch in ([0, 1], [0], [1]):
        mine = np.isin(coords[:, 0], batch)
        cells = coords[mine].copy()
        cells[:, 0] -= batch[0]
        levels = build_pyramid(cells, num_levels=3)
        rows = levels[0].coords.shape[0]
        padded = pad_features(features[mine], rows=rows)
        logits.append(run(model, padded, levels, clouds=len(batch))[1][0])
    np.testing.assert_allclose(logits[0], np.concatenate(logits[1:]), atol=1e-5)


@pytest.mark.parametrize("steps", [2, 4])
def test_time_runs_end_to_end_and_its_first_step_is_the_published_network(rng, steps):
    features, levels = make_batch(rng)
    variables, (_, once) = run(Classifier(TINY, 5), features, levels)
    model = Classifier(TINY, 5, Neuron(time_steps=steps))
    logits, activations = apply(model, variables, features, levels)
    # Nothing has leaked before the first step, so it equals the network without time.
    np.testing.assert_allclose(activations["stage1"][:, :1], once["stage1"], atol=1e-5)
    assert activations["stage1"].shape[1] == steps
    loss = lambda p: apply(
        model, variables | {"params": p}, features, levels, train=True
    )[0].sum()
    grads = jax.jit(jax.grad(loss))(variables["params"])
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads)]
    assert np.isfinite(norms).all()
    assert max(norms) > 0
    assert np.isfinite(logits).all()


def test_relu_twin_has_the_same_parameters(rng):
    features, levels = make_batch(rng)
    spiking, _ = run(Classifier(TINY, 5), features, levels)
    twin, (_, activations) = run(
        Classifier(TINY, 5, Neuron(relu=True)), features, levels
    )
    jax.tree.map(np.testing.assert_array_equal, spiking, twin)
    assert not set(np.unique(activations["stage1/down/spikes"])) <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("policy", "share"), [("bfloat16", 0.2), ("bfloat16_split", 0.01)]
)
def test_bfloat16_runs_and_returns_float32(rng, policy, share):
    features, levels = make_batch(rng)
    variables, _ = run(Classifier(TINY, 5), features, levels)
    # Initial kernels of 0.02 leave every membrane silent.
    variables = jax.tree.map(lambda leaf: leaf * 20, variables)
    exact, _ = apply(Classifier(TINY, 5), variables, features, levels)
    model = Classifier(TINY, 5, compute=Compute(policy))
    logits, _ = apply(model, variables, features, levels)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < share * np.abs(exact).max()


def test_rematerialised_gradients_are_the_same(rng):
    features, levels = make_batch(rng)
    variables, _ = run(Classifier(TINY, 5), features, levels)
    # Initial kernels of 0.02 leave every membrane silent.
    variables = jax.tree.map(lambda leaf: leaf * 20, variables)
    results = []
    for compute in (Compute(), Compute(rematerialise=True)):
        model = Classifier(TINY, 5, compute=compute)
        again, _ = run(model, features, levels)
        assert jax.tree.structure(again) == jax.tree.structure(variables)

        def loss(params, model=model):
            outputs, updates = model.apply(
                variables | {"params": params},
                features,
                levels,
                num_clouds=2,
                train=True,
                mutable=["batch_stats"],
            )
            return (outputs[0] ** 2).sum(), updates

        results.append(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(results[0]))
    assert largest > 0
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6 * largest), *results
    )


def test_inference_exports_for_every_platform(rng):
    features, levels = make_batch(rng)
    model = Classifier(TINY, 5)
    variables, _ = run(model, features, levels)

    def infer(variables, features, levels):
        return model.apply(variables, features, levels, num_clouds=2, train=False)[0]

    arguments = (variables, features, levels)
    exported = export.export(jax.jit(infer), platforms=("cpu", "cuda", "tpu"))(
        *jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments
        )
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_wrong_features_and_levels_are_named(rng):
    features, levels = make_batch(rng)
    model = Classifier(TINY, 5)
    with pytest.raises(ValueError, match=r"features have 2 channels but .* takes 3"):
        run(model, features[:, :2], levels)
    with pytest.raises(ValueError, match=r"features have \d+ rows but .* \d+ voxels"):
        run(model, features[:-1], levels)
    with pytest.raises(ValueError, match="2 levels but the network needs 3"):
        run(model, features, levels[:2])
    with pytest.raises(ValueError, match="1 entries but stage_depths has 2"):
        dataclasses.replace(TINY, stage_channels=(4,))
