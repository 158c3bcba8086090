"""Layers as `[datapoints, neurons]`: voxels, parents, clouds, against plain loops."""

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from clouds_of_voxels import random_coords
from tiny_run import make_data, share_compilations, tiny_config

from e3dsnn_jax.analysis.activations import apply_model, cloud_labels, make_collect
from e3dsnn_jax.analysis.checkpoints import open_series, read_step
from e3dsnn_jax.analysis.class_information import compute_class_information
from e3dsnn_jax.analysis.command import AnalyseOptions, run_analysis
from e3dsnn_jax.analysis.datapoints import carry_voxels, choose_voxels
from e3dsnn_jax.analysis.dynamics import Pass, Settings, compute_dynamics
from e3dsnn_jax.analysis.layers import find_layers
from e3dsnn_jax.analysis.streamed import compare_streamed
from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.kernel_map import make_kernel
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.checkpoints import CheckpointError, saved_steps
from e3dsnn_jax.training.config import ModelConfig
from e3dsnn_jax.training.datasets import open_data
from e3dsnn_jax.training.loop import train
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.run_folder import read_config
from e3dsnn_jax.training.saved import load_run
from e3dsnn_jax.training.setup import make_setup
from e3dsnn_jax.voxels import pad_features
from svcca_jax import CKA, MeanSVCCA, pairwise

ARCHITECTURE = Architecture(6, 4, (4, 8), (1, 2))
MODEL = Classifier(ARCHITECTURE, num_classes=3, neuron=Neuron(time_steps=2))


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
    return share_compilations(tmp_path_factory)


def make_batches(seed: int = 0, *, downs: Any = None) -> list[ShapeBatch]:
    """Two batches of two clouds, the last of which is padding."""
    rng = np.random.default_rng(seed)
    batches = []
    for first, labels in ((0, [0, 1]), (2, [2, -1])):
        coords = random_coords(rng, batch=sum(label >= 0 for label in labels))
        levels = build_pyramid(coords, num_levels=ARCHITECTURE.num_levels, downs=downs)
        rows = rng.normal(size=(len(coords), 6)).astype(np.float32)
        features = pad_features(rows, rows=len(levels[0].coords))
        indices = [first + n if label >= 0 else -1 for n, label in enumerate(labels)]
        batches.append(
            ShapeBatch(
                features, levels, np.array(labels, "i4"), np.array(indices, "i4")
            )
        )
    return batches


@pytest.fixture(scope="module")
def network():
    batches = make_batches()
    batch = batches[0]
    init = functools.partial(MODEL.init, num_clouds=2, train=False)
    variables = jax.jit(init)(jax.random.key(0), batch.features, batch.levels)
    # Kernels large enough that neurons fire.
    scaled = jax.tree.map(lambda leaf: np.asarray(leaf) * 2, variables)
    return batches, scaled


def apply(variables: Any, batch: ShapeBatch) -> Any:
    run = jax.jit(functools.partial(MODEL.apply, num_clouds=2, train=False))
    return run(variables, batch.features, batch.levels)


def test_layers_are_named_once_with_the_level_of_their_voxels(network):
    batches, variables = network
    found = find_layers(MODEL, variables, batches[0], "membranes")
    named = {layer.name: (layer.level, layer.neurons) for layer in found}
    assert len(named) == len(found)
    assert named["stem/unit0"] == (0, 4)
    assert named["stage0/down"] == (1, 4)
    assert named["stage1/block1/unit2"] == (2, 8)
    assert named["stage1/block1"] == (2, 8)
    assert named["pooled"] == (None, 8)
    assert named["logits"] == (None, 3)
    # The stem and a stage put out what their last unit or block does.
    assert not {"stem", "stage0", "stage1"} & named.keys()
    spikes = find_layers(MODEL, variables, batches[0], "spikes")
    named = {layer.name: (layer.level, layer.neurons) for layer in spikes}
    assert named["stage0/down/spikes"] == (0, 4)
    assert named["stage1/down/spikes"] == (1, 4)
    assert named["stage1/block0/unit0/spikes"] == (2, 8)
    assert "stem/unit0/spikes" not in named


@pytest.mark.parametrize("most", [1, 7, 10_000])
def test_own_voxels_are_real_distinct_and_as_many_for_each_level(most):
    batches = make_batches()
    chosen = choose_voxels(batches, most=most)
    again = choose_voxels(batches, most=most)
    coarsest = sum(int((b.levels[-1].coords[:, 0] >= 0).sum()) for b in batches)
    assert chosen.size == min(most, coarsest)
    for level in range(ARCHITECTURE.num_levels):
        assert len(chosen.clouds[level]) == chosen.size
        owners = []
        for batch, rows, same in zip(batches, chosen.rows, again.rows, strict=True):
            real = rows[level][rows[level] >= 0]
            np.testing.assert_array_equal(rows[level], same[level])
            assert len(set(real.tolist())) == len(real)
            places = batch.levels[level].coords[real, 0]
            assert (places >= 0).all()
            owners.extend(batch.indices[places].tolist())
        assert owners == chosen.clouds[level].tolist()


@pytest.mark.parametrize("overlapping", [False, True])
def test_carried_voxels_are_the_ancestors_of_the_fine_ones(overlapping):
    kernel = make_kernel(3, stride=2, padding=1)
    batches = make_batches(downs=[kernel, kernel] if overlapping else None)
    chosen = carry_voxels(batches, most=30)
    assert chosen.size == 30
    for batch, rows in zip(batches, chosen.rows, strict=True):
        for level in range(ARCHITECTURE.num_levels - 1):
            down = batch.levels[level].down
            assert down is not None
            fine = np.asarray(batch.levels[level].coords)
            coarse = np.asarray(batch.levels[level + 1].coords)
            for child, parent in zip(rows[level], rows[level + 1], strict=True):
                if child < 0:
                    assert parent < 0
                    continue
                if not overlapping:
                    batch_index, *cell = fine[child].tolist()
                    expected = [batch_index, *(axis // 2 for axis in cell)]
                    assert coarse[parent].tolist() == expected
                # The first pair of the voxel in the order of the offsets.
                senders, receivers = np.ravel(down.senders), np.ravel(down.receivers)
                first = int(np.argmax(senders == child))
                assert senders[first] == child
                assert receivers[first] == parent


def test_the_seed_chooses_other_voxels():
    batches = make_batches()
    one, other = (choose_voxels(batches, most=10, seed=seed) for seed in (0, 1))
    chosen = [
        {(n, row) for n, rows in enumerate(each.rows) for row in rows[0] if row >= 0}
        for each in (one, other)
    ]
    assert len(chosen[0]) == len(chosen[1]) == 10
    assert chosen[0] != chosen[1]


def test_clouds_without_voxels_and_no_datapoints_are_refused():
    batches = make_batches()
    with pytest.raises(ValueError, match="most must be 1 or more datapoints, got 0"):
        choose_voxels(batches, most=0)
    empty = build_pyramid(np.zeros((0, 4), np.int32), num_levels=3)
    blank = batches[0]._replace(levels=empty)
    with pytest.raises(ValueError, match="no voxels to compare"):
        carry_voxels([blank], most=3)


def test_collected_activations_equal_the_network_row_by_row(network):
    batches, variables = network
    for values in ("membranes", "spikes"):
        layers = find_layers(MODEL, variables, batches[0], values)
        own, carried = choose_voxels(batches, most=9), carry_voxels(batches, most=9)
        collect = make_collect(MODEL, batches, layers, [own, carried], clouds=True)
        found = collect(variables)
        runs = [apply(variables, batch) for batch in batches]
        on_voxels = [layer for layer in layers if layer.level is not None]
        for choice, collected in zip((own, carried), found.by_choice, strict=True):
            for layer, array in zip(on_voxels, collected, strict=True):
                expected = [
                    np.asarray(activations[layer.name])[row].mean(axis=0)
                    for (_, activations), rows in zip(runs, choice.rows, strict=True)
                    for row in rows[layer.level]
                    if row >= 0
                ]
                assert array.shape == (choice.size, layer.neurons)
                np.testing.assert_allclose(array, expected, atol=1e-5, rtol=1e-5)
        labels, indices = cloud_labels(batches)
        assert labels.tolist() == [0, 1, 2]
        assert indices.tolist() == [0, 1, 2]
        for layer, array in zip(layers, found.pooled, strict=True):
            expected = []
            for batch, (logits, activations) in zip(batches, runs, strict=True):
                for cloud in np.flatnonzero(batch.labels >= 0):
                    if layer.name == "logits":
                        expected.append(np.asarray(logits)[cloud])
                    elif layer.level is None:
                        expected.append(np.asarray(activations[layer.name])[cloud])
                    else:
                        inside = batch.levels[layer.level].coords[:, 0] == cloud
                        value = np.asarray(activations[layer.name])[inside]
                        expected.append(value.mean(axis=(0, 1)))
            np.testing.assert_allclose(array, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_streamed_similarities_are_those_of_all_voxels_at_once(network, statistics):
    batches, variables = network
    others = jax.tree.map(lambda leaf: leaf + 0.1 * np.abs(leaf).mean(), variables)
    found = find_layers(MODEL, variables, batches[0], "membranes")
    layers = tuple(layer for layer in found if layer.level is not None)
    measure = CKA()
    streamed = compare_streamed(
        MODEL,
        batches,
        layers,
        variables,
        others,
        measure=measure,
        statistics=statistics,
    )
    stacked = []
    for values in (variables, others):
        rows: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            run = jax.jit(
                lambda variables, batch: apply_model(
                    MODEL, variables, batch, statistics
                )
            )
            activations = run(values, batch)
            for name, level, _ in layers:
                real = batch.levels[level].coords[:, 0] >= 0
                value = np.asarray(activations[name]).mean(axis=1)[real]
                rows.setdefault(name, []).append(value)
        stacked.append([np.concatenate(each) for each in rows.values()])
    for x, y, value in zip(*stacked, streamed, strict=True):
        expected = pairwise([x], [y], measure=measure)[0, 0]
        np.testing.assert_allclose(value, expected, atol=2e-4)
    assert (streamed > 0).any()
    assert streamed.min() < 0.999
    with pytest.raises(ValueError, match="no clouds"):
        compare_streamed(MODEL, [], layers, variables, others, measure=measure)


def related(rng, rows, widths, noise):
    signal = rng.normal(size=(rows, 3))
    return [
        (signal @ rng.normal(size=(3, w)) + noise * rng.normal(size=(rows, w))).astype(
            np.float32
        )
        for w in widths
    ]


def test_dynamics_of_a_layer_that_becomes_its_final_self():
    rng = np.random.default_rng(0)
    widths, rows = (4, 6), 80
    final = related(rng, rows, widths, 0.1)
    noises = {0: 10.0, 10: 1.0, 20: 0.0}

    def look(step: int) -> Pass:
        own = np.random.default_rng(step)
        layers = [
            (layer + noises[step] * own.normal(size=layer.shape)).astype(np.float32)
            for layer in final
        ]
        return Pass(layers, layers)

    groups = [np.repeat(np.arange(8), 10)] * 2
    done = []
    found = compute_dynamics(
        (0, 10, 20),
        look,
        groups,
        Settings(MeanSVCCA(), draws=12, grids=2),
        on_step=lambda number, total: done.append((number, total)),
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert (np.diff(found.against_final, axis=0) > 0).all()
    np.testing.assert_allclose(found.against_final[-1], 1, atol=1e-5)
    assert found.grid_steps == (0, 20)
    np.testing.assert_allclose(np.diagonal(found.grids[1]), 1, atol=1e-5)
    assert found.bands is not None
    assert (found.bands.low <= found.against_final).all()
    assert (found.against_final <= found.bands.high).all()
    # The interval of a similarity that depends on the clouds has a width.
    assert (found.bands.high[0] - found.bands.low[0] > 0.01).all()
    assert found.baseline.shape == (2,)
    assert (found.baseline < 0.5).all()
    assert found.grid_baseline.shape == (2, 2)


def test_class_information_tells_classes_from_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    blind = rng.normal(size=(60, 3)).astype(np.float32)
    seeing = blind.copy()
    seeing[:, 0] = labels == 1
    found = compute_class_information([[blind], [seeing]], labels, MeanSVCCA())
    assert found is not None
    assert found.classes == (0, 1, 2)
    assert found.values.shape == (2, 1, 3)
    assert found.values[1, 0, 1] > 0.99
    assert found.values[0, 0, 1] < 0.5
    assert 0 < found.baseline[0] < 0.6
    nothing = compute_class_information([[blind]], np.zeros(60, int), MeanSVCCA())
    assert nothing is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = make_data(tmp_path_factory.mktemp("analysed"))
    config = dataclasses.replace(
        tiny_config(folder, ema_decay=None),
        checkpoint_every_steps=None,
        checkpoints=3,
        keep=1,
    )
    return train(config).run


def test_step_0_is_what_training_started_from(trained):
    series = open_series(trained)
    assert series.steps == (0, *saved_steps(trained))
    # Three of six steps evenly spaced, and one that was evaluated; all are kept.
    assert series.steps == (0, 2, 3, 4, 6)
    network = load_run(trained)
    config = dataclasses.replace(read_config(trained), run=trained)
    data = open_data(config.data)
    batch = next(iter(open_batches(network, data.evaluation).batches))
    found = read_step(series, 0, open_model(network), batch)
    _, state = make_setup(config, data)
    expected = {"params": state.params, "batch_stats": state.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    last = read_step(series, series.steps[-1], open_model(network), batch)
    jax.tree.map(np.testing.assert_array_equal, last, network.variables)


def test_a_run_is_analysed_and_told(trained, tmp_path):
    options = AnalyseOptions(
        trained, out=tmp_path, grids=2, draws=4, measure="cka", most=60, split="train"
    )
    described, folder = run_analysis(options)
    assert folder == tmp_path
    assert described["steps"][0] == 0
    layers, steps = len(described["layers"]), len(described["steps"])
    assert np.shape(described["against_final"]) == (steps, layers)
    # A layer is its own final self, but for those that are silent on these clouds.
    last = np.array(described["against_final"][-1])
    np.testing.assert_allclose(last[last > 0], 1, atol=1e-5)
    assert last[0] > 0
    assert np.shape(described["intervals"]["low"]) == (steps, layers)
    assert np.shape(described["grids"]["values"]) == (2, layers, layers)
    told = described["class_information"]
    shape = (steps, layers + 2, len(told["classes"]))
    assert np.shape(told["values"]) == shape
    assert told["layers"][-2:] == ["pooled", "logits"]
    for name in ("analysis.json", "figures/learning_dynamics.png"):
        assert (tmp_path / name).stat().st_size > 0
    every = AnalyseOptions(
        trained, out=tmp_path, grids=1, most=None, measure="cka", split="train"
    )
    streamed, _ = run_analysis(every)
    assert streamed["intervals"] is None
    assert min(streamed["datapoints_of_layer"]) >= 60
    assert streamed["datapoints_of_layer"][0] > streamed["datapoints_of_layer"][-1]
    clouds = AnalyseOptions(
        trained,
        out=tmp_path,
        grids=1,
        draws=0,
        measure="cka",
        datapoints="clouds",
        split="train",
    )
    described, _ = run_analysis(clouds)
    assert described["layers"][-1] == "logits"
    assert described["intervals"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"most": 0}, "--most must be 1 or more, got 0"),
        ({"draws": -1}, "--draws must be 0 or more, got -1"),
        ({"threshold": 0.0}, r"--threshold must lie in \(0, 1\], got 0.0"),
        ({"clouds": 0}, "--clouds must be 1 or more"),
        ({"checkpoints": 1}, "at least 2 steps"),
        ({"most": 2}, "2 datapoints are too few for .* Give more clouds"),
    ],
)
def test_options_and_too_few_datapoints_are_refused(trained, change, message):
    with pytest.raises(ValueError, match=message):
        run_analysis(AnalyseOptions(trained, **change))


def test_a_run_without_checkpoints_says_how_to_keep_them(trained, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    shutil.rmtree(bare / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoints to analyse.*--analyse"):
        open_series(bare)


def test_checkpoints_of_several_runs_are_not_mixed(trained, tmp_path):
    mixed = shutil.copytree(trained, tmp_path / "mixed")
    wider = Architecture(6, 3, (5,), (1,))
    folder = make_data(tmp_path / "elsewhere")
    config = tiny_config(folder, ema_decay=None)
    other = train(
        dataclasses.replace(config, model=ModelConfig(architecture=wider))
    ).run
    shutil.rmtree(mixed / "checkpoints" / "4")
    shutil.copytree(other / "checkpoints" / "4", mixed / "checkpoints" / "4")
    with pytest.raises(
        CheckpointError, match=r"step 4 in .* another network.*were checkpoints of"
    ):
        run_analysis(AnalyseOptions(mixed, split="train"))


def test_a_measure_from_activations_alone_is_bootstrapped_by_moments():
    # Debiased CKA reads single datapoints: it says so instead of guessing.
    rng = np.random.default_rng(0)
    layers = related(rng, 40, (4,), 0.5)
    passes = lambda step: Pass(layers, layers)
    groups = [np.repeat(np.arange(4), 10)]
    with pytest.raises(ValueError, match="debiased CKA needs the activations"):
        compute_dynamics((0, 1), passes, groups, Settings(CKA(debiased=True), draws=2))


def test_paths_are_absent(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no such folder"):
        run_analysis(AnalyseOptions(tmp_path / "nothing"))
