"""Train and eval steps: parallel equals single, padding weighs nothing, it learns."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.capacity import LevelCapacity, MapCapacity
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.compilations import programs_compiled
from e3dsnn_jax.training.memory import step_memory
from e3dsnn_jax.training.metrics import add_firing
from e3dsnn_jax.training.optimizer import (
    MomentumState,
    MultiStep,
    Sgd,
    make_optimizer,
)
from e3dsnn_jax.training.state import create_state
from e3dsnn_jax.training.steps import (
    make_eval_step,
    make_mesh,
    make_train_step,
    replicate,
    shard_batch,
)
from tests.programs import has_float_scatter_add

NUM_CLASSES = 3
ARCHITECTURE = Architecture(3, 4, (6,), (1,))
SPIKING = Classifier(ARCHITECTURE, NUM_CLASSES)
# Continuous in its inputs, so that rounding stays rounding: near a threshold it would
# move a spike by one.
CONTINUOUS = Classifier(ARCHITECTURE, NUM_CLASSES, Neuron(relu=True))


# Roomy enough for eight clouds on one device, so that few programs are compiled.
CAPACITY = (
    LevelCapacity(512, MapCapacity(48, 256), MapCapacity(16, 256)),
    LevelCapacity(256, MapCapacity(48, 256), None),
)


def make_cloud(rng, label):
    """About 40 voxels of a class-dependent plane, with random features."""
    cells = rng.integers(0, 8, size=(60, 3))
    cells[:, label] = cells[:, label] // 4
    cells = np.unique(cells, axis=0).astype(np.int32)
    features = rng.normal(size=cells.shape) + np.eye(3)[label]
    return cells, features.astype(np.float32)


def make_clouds(seed=0, count=8):
    rng = np.random.default_rng(seed)
    labels = [int(label) for label in rng.integers(0, NUM_CLASSES, count)]
    return [(*make_cloud(rng, label), label) for label in labels]


def make_batch(clouds, devices):
    """Deals clouds (None: a padding cloud) to devices, in order."""
    shares = np.array_split(np.arange(len(clouds)), devices)
    coords, features, labels = [], [], []
    for share in shares:
        rows, values = [np.zeros((0, 4), np.int32)], [np.zeros((0, 3), np.float32)]
        for slot, index in enumerate(share):
            if clouds[index] is not None:
                cells, cloud_features, _ = clouds[index]
                rows.append(np.insert(cells, 0, slot, axis=1).astype(np.int32))
                values.append(cloud_features)
        coords.append(np.concatenate(rows))
        features.append(np.concatenate(values))
        labels.append([-1 if clouds[i] is None else clouds[i][2] for i in share])
    padded = np.zeros((devices, CAPACITY[0].voxels, 3), np.float32)
    for device, values in enumerate(features):
        padded[device, : len(values)] = values
    pyramids = [build_pyramid(part, num_levels=2, capacity=CAPACITY) for part in coords]
    levels = jax.tree.map(lambda *leaves: np.stack(leaves), *pyramids)
    labels = np.array(labels, np.int32)
    return ShapeBatch(padded, levels, labels, labels)


def one_device(batch):
    return jax.tree.map(lambda leaf: leaf[0], batch)


SGD = make_optimizer(Sgd(learning_rate=0.05), MultiStep(), total_steps=10)
DECAY = Sgd.weight_decay


@pytest.fixture(scope="module")
def initial():
    """Initial state, on the host; each test puts its own copy on its mesh."""
    example = one_device(make_batch(make_clouds(), 1))
    state = create_state(CONTINUOUS, SGD, example, jax.random.key(0), ema=True)
    # The published initial kernels are so small that this network would not spike.
    params = jax.tree.map(lambda p: p * 8 if p.ndim > 1 else p, state.params)
    ema = {"params": params, "batch_stats": state.batch_stats}
    return jax.device_get(state._replace(params=params, ema=ema))


@functools.cache
def train_step(devices, *, spiking=False, accumulate=1, ema_decay=None):
    mesh = make_mesh(devices)
    model = SPIKING if spiking else CONTINUOUS
    step = make_train_step(
        model,
        SGD,
        mesh,
        label_smoothing=0.2,
        ema_decay=ema_decay,
        accumulate=accumulate,
    )
    return step, mesh


def run_step(initial, batch, devices, **options):
    """One update of the continuous network; state and metrics on the host."""
    step, mesh = train_step(devices, **options)
    state = replicate(initial._replace(ema=None), mesh)
    return jax.device_get(step(state, shard_batch(batch, mesh)))


def gradient_of(initial, state):
    """Gradient of the first update: its momentum buffer without the weight decay."""
    nodes = jax.tree.leaves(state.opt_state, is_leaf=is_momentum)
    (momentum,) = [node for node in nodes if is_momentum(node)]
    remove = lambda buffer, p: buffer - DECAY * p
    return jax.tree.map(remove, momentum.buffer, initial.params)


def is_momentum(node):
    return isinstance(node, MomentumState)


def assert_trees_close(left, right, rtol=2e-4, atol=2e-6):
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    jax.tree.map(compare, left, right)


def assert_same_update(initial, left, right):
    (left_state, left_metrics), (right_state, right_metrics) = left, right
    np.testing.assert_allclose(left_metrics.loss, right_metrics.loss, rtol=1e-5)
    np.testing.assert_allclose(
        left_metrics.grad_norm, right_metrics.grad_norm, rtol=1e-4
    )
    assert left_metrics.correct == right_metrics.correct
    assert left_metrics.clouds == right_metrics.clouds
    assert_trees_close(
        gradient_of(initial, left_state), gradient_of(initial, right_state)
    )
    assert_trees_close(left_state.batch_stats, right_state.batch_stats)
    assert_trees_close(left_state.params, right_state.params)


def test_four_devices_compute_what_one_does(initial):
    clouds = make_clouds()
    one = run_step(initial, make_batch(clouds, 1), 1)
    four = run_step(initial, make_batch(clouds, 4), 4)
    assert_same_update(initial, one, four)
    assert one[1].clouds == 8
    assert one[1].needed.shape == (1, 2, 3)
    assert four[1].needed.shape == (4, 2, 3)
    voxels = four[1].needed[:, 0, 0]
    sizes = [len(cells) for cells, _, _ in clouds]
    np.testing.assert_array_equal(voxels, np.add(sizes[::2], sizes[1::2]))


def test_every_device_holds_the_same_state(initial):
    step, mesh = train_step(4)
    batch = shard_batch(make_batch(make_clouds(), 4), mesh)
    state, _ = step(replicate(initial._replace(ema=None), mesh), batch)
    for leaf in jax.tree.leaves(state):
        first, *others = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(others) == 3
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_devices_with_unequal_numbers_of_real_clouds(initial):
    clouds = [*make_clouds(count=5), None, None, None]
    one = run_step(initial, make_batch(clouds, 1), 1)
    assert one[1].clouds == 5
    assert_same_update(initial, one, run_step(initial, make_batch(clouds, 4), 4))


def test_padding_clouds_weigh_nothing(initial):
    """Four clouds and four of padding, anywhere, act as the four clouds twice."""
    clouds = make_clouds(count=4)
    twice_state, twice = run_step(initial, make_batch(clouds * 2, 1), 1)
    padded_state, padded = run_step(
        initial, make_batch([None, *clouds[:2], None, *clouds[2:], None, None], 1), 1
    )
    assert (twice.clouds, padded.clouds) == (8, 4)
    assert twice.correct == 2 * padded.correct
    np.testing.assert_allclose(padded.loss, twice.loss, rtol=1e-5)
    assert_trees_close(
        gradient_of(initial, padded_state), gradient_of(initial, twice_state)
    )


def test_a_batch_of_padding_only_decays_weights(initial):
    state, metrics = run_step(initial, make_batch([None] * 8, 1), 1)
    assert metrics.loss == 0
    assert metrics.correct == metrics.clouds == 0
    assert metrics.grad_norm == 0
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, initial.batch_stats)
    decayed = jax.tree.map(lambda p: p * (1 - 0.05 * 1.9 * DECAY), initial.params)
    assert_trees_close(state.params, decayed, rtol=1e-6)


def test_accumulation_weighs_every_cloud_alike(initial):
    """Two micro-batches of 5 and 3 clouds against the gradient of each alone."""
    clouds = make_clouds()
    halves = [[*clouds[:5], None, None, None], [*clouds[5:], *[None] * 5]]
    parts = [make_batch(half, 1) for half in halves]
    stacked = jax.tree.map(lambda a, b: np.concatenate([a, b]), *parts)
    state, metrics = run_step(initial, stacked, 1, accumulate=2)

    first, first_metrics = run_step(initial, parts[0], 1)
    between = initial._replace(batch_stats=first.batch_stats)
    second, second_metrics = run_step(between, parts[1], 1)
    mean = lambda a, b: (5 * a + 3 * b) / 8
    expected = jax.tree.map(
        mean, gradient_of(initial, first), gradient_of(initial, second)
    )
    assert_trees_close(gradient_of(initial, state), expected)
    assert_trees_close(state.batch_stats, second.batch_stats)
    loss = mean(first_metrics.loss, second_metrics.loss)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    assert metrics.clouds == 8
    np.testing.assert_array_equal(
        metrics.needed, np.maximum(first_metrics.needed, second_metrics.needed)
    )
    assert state.step == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_laid_out_for_another_accumulation_is_refused(initial, accumulate):
    batch = make_batch(make_clouds(), 3 - accumulate)
    with pytest.raises(ValueError, match=f"accumulate={accumulate}"):
        run_step(initial, batch, 1, accumulate=accumulate)


def test_spiking_network_overfits_one_batch_with_one_program(initial):
    step, mesh = train_step(2, spiking=True, ema_decay=0.9)
    batch = shard_batch(make_batch(make_clouds(), 2), mesh)
    state, first = step(replicate(initial, mesh), batch)
    compiled, before = programs_compiled(), jax.device_get(state)
    state, second = step(state, batch)
    after, metrics = jax.device_get(state), second
    for _ in range(28):
        state, metrics = step(state, batch)
    assert programs_compiled() == compiled, "a second step compiled something"
    assert second.loss < first.loss
    assert metrics.correct == 8
    # The target's entropy is the least that smoothed labels allow.
    shares = np.array([0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3])
    least = -np.sum(shares * np.log(shares))
    assert least < metrics.loss < 0.5 * (least + first.loss)
    assert int(state.step) == 30
    current = {"params": after.params, "batch_stats": after.batch_stats}
    decay = (1 + 1) / (10 + 1)
    blend = lambda old, new: decay * old + (1 - decay) * new
    assert_trees_close(
        after.ema, jax.tree.map(blend, before.ema, current), rtol=1e-5, atol=1e-7
    )


def test_the_state_passed_in_is_donated(initial):
    step, mesh = train_step(1)
    state = replicate(initial._replace(ema=None), mesh)
    step(state, shard_batch(make_batch(make_clouds(), 1), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_eval_step_reports_logits_losses_and_spikes(initial):
    clouds = [*make_clouds(count=7), None]
    mesh = make_mesh(4)
    batch = make_batch(clouds, 4)
    output = jax.device_get(
        make_eval_step(SPIKING, mesh)(
            *replicate((initial.params, initial.batch_stats), mesh),
            shard_batch(batch, mesh),
        )
    )

    @jax.jit
    def apply(variables, batch):
        return SPIKING.apply(
            variables, batch.features, batch.levels, num_clouds=8, train=False
        )

    variables = {"params": initial.params, "batch_stats": initial.batch_stats}
    whole = one_device(make_batch(clouds, 1))
    logits, activations = apply(variables, whole)
    logits = np.asarray(logits)
    np.testing.assert_allclose(
        output.logits.reshape(8, -1)[:7], logits[:7], rtol=1e-5, atol=1e-6
    )
    labels = whole.labels[:7]
    assert output.clouds == 7
    assert output.correct == np.sum(logits[:7].argmax(1) == labels)
    probabilities = np.exp(logits[:7]) / np.exp(logits[:7]).sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(7), labels]).sum()
    np.testing.assert_allclose(output.loss_sum, loss, rtol=1e-5)

    counts = add_firing({}, output.firing)
    block = [f"stage0/block0/unit{unit}" for unit in range(3)]
    assert set(counts) == {"stem/unit1", "stem/unit2", "stage0/down", *block}
    for unit, count in counts.items():
        spikes = np.asarray(activations[f"{unit}/spikes"])
        coarse = unit.startswith("stage0/block")
        real = whole.levels[int(coarse)].coords[:, 0] >= 0
        assert count.sites == real.sum()
        np.testing.assert_array_equal(count.nonzero, (spikes[real] != 0).sum((0, 1)))
        np.testing.assert_array_equal(count.spikes, spikes[real].sum((0, 1)))
    assert sum(count.nonzero.sum() for count in counts.values()) > 100


@pytest.mark.parametrize("devices", [1, 4])
def test_steps_can_be_exported_for_every_platform(initial, devices):
    step: Any
    step, mesh = train_step(devices, spiking=True, ema_decay=0.9)
    batch = shard_batch(make_batch(make_clouds(), devices), mesh)
    state = replicate(initial, mesh)
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(step, platforms=platforms)(state, batch)
    assert exported.platforms == platforms
    assert exported.nr_devices == devices
    eval_step: Any = make_eval_step(SPIKING, mesh)
    exported = jax.export.export(eval_step, platforms=platforms)(
        state.params, state.batch_stats, batch
    )
    assert exported.platforms == platforms


def test_no_step_adds_in_an_order_that_a_gpu_chooses(initial):
    step: Any
    step, mesh = train_step(1, spiking=True, ema_decay=0.9)
    batch = shard_batch(make_batch(make_clouds(), 1), mesh)
    state = replicate(initial, mesh)
    exported = jax.export.export(step, platforms=("cuda",))(state, batch)
    program = exported.mlir_module()
    assert "stablehlo.scatter" in program  # tables of partners, each place once
    assert not has_float_scatter_add(program)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="devices=99, but JAX sees 4 cpu devices"):
        make_mesh(99)


def test_a_batch_for_other_devices_is_refused():
    with pytest.raises(ValueError, match="laid out for 2 devices, but the mesh has 4"):
        shard_batch(make_batch(make_clouds(), 2), make_mesh(4))


def test_averages_must_be_asked_for_on_both_sides(initial):
    step, mesh = train_step(1)
    batch = shard_batch(make_batch(make_clouds(), 1), mesh)
    with pytest.raises(ValueError, match="created with ema=True"):
        step(replicate(initial, mesh), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be .* got 1\.0"),
        ({"ema_decay": 1.5}, r"ema_decay must be .* got 1\.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    defaults = {"label_smoothing": 0.0, "ema_decay": None}
    with pytest.raises(ValueError, match=message):
        make_train_step(SPIKING, SGD, make_mesh(1), **(defaults | options))


def test_rematerialised_step_takes_less_memory():
    clouds = make_clouds()
    working = []
    for compute in (Compute(), Compute(rematerialise=True)):
        model = Classifier(Architecture(3, 4, (6,), (4,)), NUM_CLASSES, compute=compute)
        mesh = make_mesh(1)
        batch = make_batch(clouds, 1)
        state = create_state(
            model, SGD, one_device(batch), jax.random.key(0), ema=False
        )
        step = make_train_step(model, SGD, mesh, label_smoothing=0.2, ema_decay=None)
        arguments = replicate(state, mesh), shard_batch(batch, mesh)
        plan = step_memory(step.lower(*arguments).compile())
        working.append(plan.working)
    assert working[1] < 0.8 * working[0]
